# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module file_capabilities on real files: what getcap reads afterwards, and what the kernel makes of it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.modules import file_capabilities
from support.modules import for_users, run_module
from support.namespaces import MS_BIND, MS_NOSUID, MS_RDONLY, MS_REMOUNT, Sandbox, mount
from support.user import User

NOBODY = 65534
# Numbers of setxattr(2), <asm/unistd.h>.
SYS_SETXATTR = {"x86_64": 188, "aarch64": 5}
# <linux/prctl.h>, <linux/seccomp.h>, <linux/filter.h>
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000
BPF_LD_W_ABS = 0x20
BPF_JMP_JEQ_K = 0x15
BPF_RET_K = 0x06


def run(path: Path, capabilities: str | None = None, *, check: bool = False, **options: Any) -> dict[str, Any]:
    parameters = {"path": str(path), **options}
    if capabilities is not None:
        parameters["capabilities"] = capabilities
    return run_module(file_capabilities.main, parameters, check=check)


def getcap(path: Path) -> str:
    printed = subprocess.run(["getcap", "-n", path], check=True, capture_output=True, text=True).stdout
    return printed.rstrip("\n").removeprefix(f"{path} ")


def setcap(*arguments: str | Path) -> None:
    subprocess.run(["setcap", *arguments], check=True)


@pytest.fixture
def file(sandbox: Sandbox) -> Path:
    """A program in a directory that everyone can reach."""
    path = sandbox.scratch / "program"
    shutil.copyfile("/bin/sleep", path)
    path.chmod(0o755)
    return path


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def test_sets_exactly_what_getcap_then_reads(file: Path) -> None:
    setcap("cap_net_raw=ep", file)
    result = run(file, "cap_net_admin=p")
    assert getcap(file) == "cap_net_admin=p"
    assert result["changed"] is True
    assert (result["path"], result["capabilities"]) == (str(file), "cap_net_admin=p")
    assert result["diff"] == {
        "before": {"path": str(file), "capabilities": "cap_net_raw=ep"},
        "after": {"path": str(file), "capabilities": "cap_net_admin=p"},
    }


@pytest.mark.parametrize(
    "text", ["cap_net_admin,cap_net_raw=ep", "cap_net_raw+ep cap_net_admin+pe", "CAP_Net_Raw,cap_net_admin=p+e"]
)
def test_any_spelling_of_what_setcap_stored_changes_nothing(file: Path, text: str) -> None:
    setcap("cap_net_admin,cap_net_raw=ep", file)
    before = file.stat().st_ctime_ns
    result = run(file, text)
    assert result["changed"] is False
    assert result["capabilities"] == "cap_net_admin,cap_net_raw=ep"
    assert result["diff"]["before"] == result["diff"]["after"]
    assert file.stat().st_ctime_ns == before


def test_removes_on_request_and_only_once(file: Path) -> None:
    setcap("cap_net_admin=p", file)
    results = [run(file, state="absent") for _run in range(2)]
    assert [result["changed"] for result in results] == [True, False]
    assert attributes(file) == {}
    assert results[0]["diff"]["before"]["capabilities"] == "cap_net_admin=p"
    assert results[0]["diff"]["after"]["capabilities"] == results[0]["capabilities"] == ""


@pytest.mark.parametrize("options", [{"capabilities": "cap_net_admin=p"}, {"capabilities": "="}, {"state": "absent"}])
def test_check_mode_tells_what_the_run_then_does(file: Path, options: dict[str, str]) -> None:
    setcap("cap_net_raw=ep", file)
    before = attributes(file)
    foretold = run(file, check=True, **options)
    assert attributes(file) == before
    assert foretold == run(file, **options)
    assert foretold["changed"] is True
    assert run(file, check=True, **options)["changed"] is False


def test_the_empty_set_is_not_none(file: Path) -> None:
    assert run(file, "=")["changed"] is True
    assert getcap(file) == "="
    assert run(file, state="absent")["changed"] is True


def test_replaces_those_of_another_user_namespace(file: Path) -> None:
    setcap("-n", "1000", "cap_net_admin=p", file)
    result = run(file, "cap_net_admin=p")
    assert result["changed"] is True
    assert result["diff"]["before"]["capabilities"] == "cap_net_admin=p [rootid=1000]"
    assert getcap(file) == "cap_net_admin=p"


def test_the_kernel_lends_what_the_module_set(sandbox: Sandbox) -> None:
    # cat, for it shows the sets of its own process.
    file = sandbox.scratch / "cat"
    shutil.copyfile("/bin/cat", file)
    file.chmod(0o755)

    assert run(file, "cap_net_admin=p")["changed"] is True
    assert _sets_of(file) == {"CapPrm": 1 << 12, "CapEff": 0}
    assert run(file, "cap_net_admin,cap_checkpoint_restore=ep")["changed"] is True
    assert _sets_of(file) == {"CapPrm": 1 << 12 | 1 << 40, "CapEff": 1 << 12 | 1 << 40}
    assert run(file, state="absent")["changed"] is True
    assert _sets_of(file) == {"CapPrm": 0, "CapEff": 0}


def _sets_of(program: Path) -> dict[str, int]:
    """The permitted and effective sets of a `cat` that nobody starts."""
    status = subprocess.run(
        [program, "/proc/self/status"], check=True, capture_output=True, text=True, user=NOBODY, group=NOBODY, cwd="/"
    ).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    return {name: int(fields[name], 16) for name in ("CapPrm", "CapEff")}


def test_a_missing_file_fails_but_in_check_mode_is_expected_from_an_earlier_task(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    result = run(missing, "cap_net_admin=p")
    assert result["failed"] is True
    assert result["msg"] == f"Cannot set the capabilities of {missing}: No such file or directory (ENOENT)."

    foretold = run(missing, "cap_net_admin=p", check=True)
    assert foretold["changed"] is True
    assert foretold["capabilities"] == "cap_net_admin=p"
    assert foretold["diff"]["before"]["capabilities"] == ""
    (warning,) = foretold["warnings"]
    assert str(missing) in str(warning)
    assert "does not exist" in str(warning)

    for check in (True, False):
        result = run(missing, state="absent", check=check)
        assert result["changed"] is False
        assert "warnings" not in result


def test_refuses_what_is_no_regular_file_and_touches_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"")
    link = tmp_path / "link"
    link.symlink_to("program")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, why in (
        (link, f"{link} is a symbolic link to program; name the file"),
        (tmp_path, f"{tmp_path} is not a regular file (drwx"),
        (fifo, f"{fifo} is not a regular file (prw-"),
        (program / "below", f"Cannot open {program}/below: Not a directory (ENOTDIR)."),
    ):
        for check in (True, False):
            result = run(path, "cap_net_admin=p", check=check)
            assert result["failed"] is True
            assert why in result["msg"]
    assert attributes(program) == {}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"capabilities": "cap_net_admn=p"},
            "capabilities: 'cap_net_admn=p': unknown capability 'cap_net_admn'; known",
        ),
        ({"capabilities": ""}, "capabilities: no capabilities given"),
        ({}, "state is present but all of the following are missing: capabilities"),
        ({"capabilities": "cap_net_admin=p", "state": "absent"}, "leave this option out"),
        ({"capabilities": "cap_net_admin=p", "path": "bin/program"}, "path: 'bin/program' is not an absolute path."),
        ({"capabilities": "cap_net_admin=p", "path": "/bin/a\0b"}, "path: '/bin/a\\x00b' is not an absolute path."),
    ],
)
def test_refuses_bad_options_before_anything_changes(file: Path, options: dict[str, str], why: str) -> None:
    for check in (True, False):
        result = run_module(file_capabilities.main, {"path": str(file), **options}, check=check)
        assert result["failed"] is True
        assert why in result["msg"]
    assert attributes(file) == {}


def test_refuses_a_capability_that_this_kernel_would_ignore(file: Path, sandbox: Sandbox) -> None:
    older = sandbox.scratch / "cap_last_cap"
    older.write_text("37\n")
    mount(str(older), "/proc/sys/kernel/cap_last_cap", None, MS_BIND)
    result = run(file, "cap_net_admin,cap_bpf,cap_checkpoint_restore=p")
    assert result["failed"] is True
    assert "does not know cap_bpf, cap_checkpoint_restore; its last one is cap_audit_read" in result["msg"]
    assert run(file, "cap_audit_read=p")["changed"] is True


@for_users
def test_without_the_right_to_set_capabilities_it_says_what_is_missing(file: Path) -> None:
    os.chown(file, NOBODY, NOBODY)
    user = User(NOBODY)
    try:
        result = user.call(run_module, file_capabilities.main, {"path": str(file), "capabilities": "cap_net_admin=p"})
    finally:
        user.close()
    assert result["failed"] is True
    assert result["msg"] == (
        f"Cannot set the capabilities of {file}: Operation not permitted (EPERM); "
        "this needs CAP_SETFCAP (run the task with become: true) and a file that is not immutable (lsattr)."
    )
    assert attributes(file) == {}


@for_users
def test_behind_a_closed_directory_it_says_so(file: Path, sandbox: Sandbox) -> None:
    sandbox.scratch.chmod(0o700)
    user = User(NOBODY)
    try:
        result = user.call(run_module, file_capabilities.main, {"path": str(file), "state": "absent"})
    finally:
        user.close()
    assert f"Cannot open {file}: Permission denied (EACCES); run the task with become: true" in result["msg"]


def test_a_read_only_file_system_is_named(file: Path, sandbox: Sandbox) -> None:
    setcap("cap_net_raw=p", file)
    mount(str(sandbox.scratch), sandbox.scratch, None, MS_REMOUNT | MS_RDONLY, "mode=0755")
    assert "Cannot set the capabilities of" in run(file, "cap_net_admin=p")["msg"]
    assert "Read-only file system (EROFS); its file system is mounted read-only" in run(file, state="absent")["msg"]
    assert run(file, "cap_net_raw=p")["changed"] is False


def test_a_file_system_without_attributes_can_have_none_and_need_not_lose_any(sandbox: Sandbox) -> None:
    directory = sandbox.scratch / "plain"
    directory.mkdir()
    mount("ramfs", directory, "ramfs")
    file = directory / "program"
    file.write_bytes(b"")
    for check in (True, False):
        result = run(file, "cap_net_admin=p", check=check)
        assert result["failed"] is True
        assert "Operation not supported (ENOTSUP); its file system keeps no such attributes" in result["msg"]
        assert run(file, state="absent", check=check)["changed"] is False


def test_warns_where_the_kernel_ignores_what_it_sets(file: Path, sandbox: Sandbox) -> None:
    assert "warnings" not in run(file, "cap_net_admin=p")

    script = sandbox.scratch / "script"
    script.write_text("#!/bin/sh\n")
    result = run(script, "cap_net_admin=p")
    assert result["changed"] is True
    assert "the kernel ignores the capabilities of scripts" in str(result["warnings"])
    assert "warnings" not in run(script, state="absent")

    mount(str(sandbox.scratch), sandbox.scratch, None, MS_REMOUNT | MS_NOSUID, "mode=0755")
    result = run(file, "cap_net_admin=p")
    assert result["changed"] is False
    assert "mounted nosuid" in str(result["warnings"])
    assert "warnings" not in run(file, "=")


def test_sees_that_a_kernel_which_says_yes_has_stored_nothing(file: Path) -> None:
    setcap("cap_net_raw=p", file)

    def main() -> None:
        swallow_setxattr()
        file_capabilities.main()

    result = run_module(main, {"path": str(file), "capabilities": "cap_net_admin=p"})
    assert result["failed"] is True
    assert "took the capabilities 'cap_net_admin=p'" in result["msg"]
    assert "reads back 'cap_net_raw=p'" in result["msg"]


def swallow_setxattr() -> None:
    """From now on setxattr(2) of this process does nothing and succeeds: seccomp answers it with errno 0."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (BPF_LD_W_ABS, 0, 0, 0),  # seccomp_data.nr
            (BPF_JMP_JEQ_K, 0, 1, SYS_SETXATTR[platform.machine()]),
            (BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO),
            (BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW),
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")
