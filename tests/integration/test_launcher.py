# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher: whatever state it is started in, it hands over one capability and a clean state, or says why not.

In the helper's place is a probe that tells what it finds. Where something hostile must do nothing, a control shows that
it does its worst to an interpreter that is started without the launcher.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.install import LAUNCHER, LIBRARY, NET_ADMIN_PERMITTED, PYTHON, ROOT, install_launcher
from support.launcher import (
    CAP_NET_ADMIN,
    CAP_SETPCAP,
    GROUP,
    HOSTILE_VARIABLES,
    MARK,
    NET_ADMIN,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECUREBITS,
    SECBIT_NO_CAP_AMBIENT_RAISE,
    SECBIT_NOROOT,
    SECBIT_NOROOT_LOCKED,
    UID,
    capabilities,
    close,
    drop_from_bounding_set,
    execute_traced,
    execute_without_arguments,
    fields,
    fill_inheritable_set,
    hostile_environment,
    ignore_and_block_all_signals,
    install_probe,
    launch,
    lay_library,
    plant,
    prctl,
    set_hard_limit,
    set_soft_limit,
    spoil_everything,
)
from support.namespaces import MS_BIND, MS_NOSUID, MS_REMOUNT, Sandbox, ip, mount

SOURCES = ROOT / "files/launcher"
# struct vfs_cap_data, revision 2: CAP_NET_RAW (13) permitted.
NET_RAW_PERMITTED = bytes.fromhex("00000002 00200000 00000000 00000000 00000000")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
# <elf.h>: e_machine, and class and byte order as `struct` and readelf would put them.
MACHINES = {
    "x86_64": (62, 64, "<"),
    "aarch64": (183, 64, "<"),
    "armv7l": (40, 32, "<"),
    "i686": (3, 32, "<"),
    "ppc64le": (21, 64, "<"),
    "riscv64": (243, 64, "<"),
    "s390x": (22, 64, ">"),
}
ET_DYN = 3
PT_INTERP = 3
PT_GNU_STACK = 0x6474E551
PF_X = 1


@pytest.fixture
def library(sandbox: Sandbox) -> Path:
    """Install the launcher and the probe; the directory that the probe is in."""
    return install_probe(sandbox)


@pytest.fixture(scope="module")
def python_path() -> list[str]:
    """Where the host's interpreter looks for modules if nobody has a say in it."""
    command = [str(PYTHON), "-I", "-S", "-c", "import json, sys; print(json.dumps(sys.path))"]
    path: list[str] = json.loads(subprocess.run(command, env={}, check=True, capture_output=True).stdout)
    return path


# What is executed


def test_executes_one_command_with_the_callers_arguments(library: Path, python_path: list[str]) -> None:
    arguments = ["--use-vnet", "-c", "import this", "", "--fd=3", "--br=br\udce9"]
    told = launch([LAUNCHER, *arguments]).told
    assert told["command"] == [f"{LIBRARY}/python3", "-I", "-S", "-B", f"{LIBRARY}/qemu-bridge-helper.py", *arguments]
    assert told["arguments"] == arguments
    assert told["executed"] == str(PYTHON)
    assert told["flags"] == {"isolated": 1, "no_site": 1, "dont_write_bytecode": 1}
    assert told["path"] == python_path


def test_environment_and_directory_are_the_launchers(library: Path) -> None:
    told = launch(environment={"PATH": "/tmp", "HOME": "/root", "TERM": "vt100"}, directory="/tmp").told
    assert told["environment"] == ENVIRONMENT
    assert told["directory"] == "/"


def test_takes_32_arguments_and_no_more(library: Path) -> None:
    assert launch([LAUNCHER, *["x"] * 32]).told["arguments"] == ["x"] * 32
    assert "more than 32 arguments" in launch([LAUNCHER, *["x"] * 33]).refusal


def test_starts_without_any_argument_not_even_a_name(library: Path) -> None:
    assert launch(execute=execute_without_arguments).told["arguments"] == []


def test_its_own_name_does_not_matter(library: Path) -> None:
    told = launch(execute=lambda path, _, environment: os.execve(path, ["/bin/sh", "-c"], environment)).told
    assert told["command"] == [f"{LIBRARY}/python3", "-I", "-S", "-B", f"{LIBRARY}/qemu-bridge-helper.py", "-c"]


def test_names_a_missing_interpreter(library: Path) -> None:
    (library / "python3").unlink()
    assert launch().refusal.startswith(f"cannot execute {LIBRARY}/python3: No such file or directory; an administrator")


# What the helper may


def test_user_stays_who_it_is_and_gains_one_capability(library: Path) -> None:
    told = launch(groups=[GROUP]).told
    status = fields(told["status"])
    assert status["Uid"].split() == status["Gid"].split() == [str(UID)] * 4
    assert status["Groups"] == str(GROUP)
    # The child is a further exec.
    for text in (told["status"], told["child"]):
        sets = capabilities(text)
        assert [sets[key] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [NET_ADMIN] * 4
        assert fields(text)["NoNewPrivs"] == "1"


def test_inheritable_capabilities_of_the_caller_end(library: Path) -> None:
    assert capabilities(launch(prepare=fill_inheritable_set).told["status"])["CapInh"] == NET_ADMIN


@pytest.mark.parametrize("setpcap", [True, False], ids=["with CAP_SETPCAP", "without CAP_SETPCAP"])
@pytest.mark.parametrize("capability", [NET_ADMIN_PERMITTED, None], ids=["file capability", "no file capability"])
@pytest.mark.parametrize("inheritable", [True, False], ids=["inheritable set full", "inheritable set empty"])
def test_root_is_left_with_one_capability(
    library: Path, setpcap: bool, capability: bytes | None, inheritable: bool
) -> None:
    install_launcher(capability=capability)

    def prepare() -> None:
        if not setpcap:
            drop_from_bounding_set(CAP_SETPCAP)
        if inheritable:
            fill_inheritable_set()

    told = launch(uid=0, prepare=prepare).told
    # The child is a further exec as uid 0, for which the kernel would give all that it can.
    for text in (told["status"], told["child"]):
        sets = capabilities(text)
        assert [sets[key] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [NET_ADMIN] * 4
        assert fields(text)["NoNewPrivs"] == "1"
        assert (sets["CapBnd"] == NET_ADMIN) is setpcap
    assert told["securebits"] == (SECBIT_NOROOT | SECBIT_NOROOT_LOCKED if setpcap else 0)


def test_root_without_the_rights_of_root_needs_the_file_capability(library: Path) -> None:
    def prepare() -> None:
        prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED)

    assert capabilities(launch(uid=0, prepare=prepare).told["status"])["CapPrm"] == NET_ADMIN
    install_launcher(capability=None)
    assert "this file has no capability" in launch(uid=0, prepare=prepare).refusal


# The state of the process


# For users the C library does it before main(), for root it doesn't.
@pytest.mark.parametrize("uid", [UID, 0])
@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1], [1, 2], [0, 2], [0, 1, 2]], ids=str)
def test_opens_closed_standard_descriptors(library: Path, closed: list[int], uid: int) -> None:
    descriptors = launch(uid=uid, spoil=lambda: close(closed)).told["descriptors"]
    assert sorted(descriptors) == ["0", "1", "2", "3"]
    assert {descriptors[str(number)] for number in closed} == {"/dev/null"}


def test_leaves_further_descriptors_alone(library: Path) -> None:
    descriptors = launch(spoil=lambda: os.dup2(os.open("/etc/passwd", os.O_RDONLY), 77)).told["descriptors"]
    assert descriptors["77"] == "/etc/passwd"
    assert descriptors["3"].startswith("socket:")


def test_signals_have_their_default_action_and_are_not_blocked(library: Path) -> None:
    status = fields(launch(spoil=ignore_and_block_all_signals).told["status"])
    assert int(status["SigBlk"], 16) == 0
    # What CPython itself ignores.
    assert int(status["SigIgn"], 16) == 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1


def test_obeys_a_signal_that_was_sent_before(library: Path) -> None:
    """Someone told the child to end and it blocked the signal: it is delivered, not discarded."""

    def spoil() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGTERM)

    outcome = launch(spoil=spoil)
    assert (outcome.status, outcome.sent) == (-signal.SIGTERM, b"")


@pytest.mark.parametrize("timer", [signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF])
def test_stops_timers(library: Path, timer: int) -> None:
    assert launch(spoil=lambda: signal.setitimer(timer, 3600, 3600)).told["timers"] == [[0, 0]] * 3


def test_umask_is_077(library: Path) -> None:
    assert launch(spoil=lambda: os.umask(0)).told["umask"] == 0o077


def test_raises_the_soft_limit_of_descriptors_to_the_hard_one(library: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    told = launch(spoil=lambda: set_soft_limit(resource.RLIMIT_NOFILE, 3)).told
    assert told["limits"]["files"] == [hard, hard]


@pytest.mark.parametrize("hard", range(11))
def test_hard_limit_of_descriptors(library: Path, hard: int) -> None:
    """Where one more descriptor can be opened, all is well; else the dynamic linker says so, or there are no words."""
    outcome = launch(spoil=lambda: set_hard_limit(resource.RLIMIT_NOFILE, hard))
    if hard > 4:
        assert capabilities(outcome.told["status"])["CapPrm"] == NET_ADMIN
    elif hard > 2:
        assert (outcome.status, outcome.sent, outcome.stdout) == (127, b"", "")
        assert "cannot open shared object file" in outcome.stderr
    else:
        # musl looks whether 0-2 are open before main(), by a poll() which fails for more than the limit.
        assert (outcome.status, outcome.sent, outcome.stdout) == (-signal.SIGSEGV, b"", "")


def test_refuses_if_it_cannot_open_closed_descriptors(library: Path) -> None:
    def spoil() -> None:
        set_hard_limit(resource.RLIMIT_NOFILE, 0)
        os.close(0)

    assert "cannot open /dev/null" in launch(uid=0, spoil=spoil).refusal
    # Where the kernel asks for secure execution, which it doesn't for root, the C library ends us before.
    assert launch(spoil=spoil).sent == b""


def test_dumps_no_core(library: Path) -> None:
    """Not 0: a core_pattern that is a pipe gets the core of a process whose limit is 0, and none where it is 1."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert launch().told["limits"]["core"] == [1, 1] if hard else [0, 0]
    assert launch(spoil=lambda: set_hard_limit(resource.RLIMIT_CORE, 0)).told["limits"]["core"] == [0, 0]


# Hostile surroundings


@pytest.fixture
def trap(sandbox: Sandbox) -> Path:
    """A directory of the user's, full of planted modules."""
    directory = sandbox.scratch / "trap"
    plant(directory)
    return directory


def test_planted_library_in_the_working_directory(library: Path, trap: Path, python_path: list[str]) -> None:
    """If its argv[0] is a bare name and there is no PATH, CPython takes its library from the working directory."""
    words = ["python3", "-I", "-S", "-B", f"{LIBRARY}/qemu-bridge-helper.py"]
    control = launch(directory=trap, execute=lambda *_: os.execve(PYTHON, words, {}))
    assert control.stderr == MARK
    told = launch(directory=trap).told
    assert told["path"] == python_path
    assert {str(Path(file).parent) for file in told["files"]} & {str(trap)} == set()


@pytest.mark.parametrize(
    ("name", "value", "control"), HOSTILE_VARIABLES, ids=[name for name, _value, _control in HOSTILE_VARIABLES]
)
def test_environment_does_nothing(
    library: Path, trap: Path, python_path: list[str], name: str, value: str, control: str | None
) -> None:
    environment = {name: value.format(trap=trap)}
    if control is not None:
        assert control in launch([PYTHON, f"{LIBRARY}/qemu-bridge-helper.py"], environment=environment).stderr
    told = launch(environment=environment, directory=trap).told
    assert told["environment"] == ENVIRONMENT
    assert told["path"] == python_path


def test_all_of_it_at_once(library: Path, trap: Path, python_path: list[str]) -> None:
    told = launch(environment=hostile_environment(trap), directory=trap, spoil=spoil_everything).told
    assert told["environment"] == ENVIRONMENT
    assert told["path"] == python_path
    assert capabilities(told["status"])["CapEff"] == NET_ADMIN
    assert [told["descriptors"][number] for number in "012"] == ["/dev/null"] * 3


# Other ways in


def test_symlink_is_the_launcher_itself(library: Path, sandbox: Sandbox) -> None:
    link = sandbox.scratch / "link"
    link.symlink_to(LAUNCHER)
    assert capabilities(launch([link]).told["status"])["CapPrm"] == NET_ADMIN


def test_hard_link_beside_a_false_library_runs_the_true_one(library: Path) -> None:
    """With fs.protected_hardlinks users can't make one; where that is off, this is all they get."""
    home = Path("/usr/local/home")
    lay_library(home / "lib/qemu-bridge-helper", f"import posix; posix.write(2, b'{MARK}')")
    link = home / "libexec/qemu-bridge-helper"
    link.parent.mkdir()
    os.link(LAUNCHER, link)
    told = launch([link], directory=home).told
    assert capabilities(told["status"])["CapPrm"] == NET_ADMIN
    assert told["command"][0] == f"{LIBRARY}/python3"


def test_copy_that_a_user_made_has_nothing(library: Path, trap: Path) -> None:
    copy = trap / "copy"
    assert launch(["/bin/cp", LAUNCHER, copy]).status == 0
    assert "this file has no capability (copying, chown and most archivers drop it)" in launch([copy]).refusal


def test_mode_keeps_it_to_a_group(library: Path) -> None:
    os.chown(LAUNCHER, 0, GROUP)
    LAUNCHER.chmod(0o750)
    os.setxattr(LAUNCHER, "security.capability", NET_ADMIN_PERMITTED)
    assert capabilities(launch(groups=[GROUP]).told["status"])["CapPrm"] == NET_ADMIN
    stranger = launch()
    assert stranger.sent == b""
    assert "PermissionError" in stranger.stderr


# TUNSETIFF, SIOCBRDELIF and SIOCSIFFLAGS on what it finds.
FALSE_HELPER = """\
import fcntl, json, os, socket, struct
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tun = os.open("/dev/net/tun", os.O_RDWR)
def attempt(descriptor, request, argument):
    try:
        fcntl.ioctl(descriptor, request, argument)
        return 0
    except OSError as error:
        return error.errno
report = {
    "status": open("/proc/self/status").read(),
    "results": [
        attempt(tun, 0x400454CA, struct.pack("16sH22x", b"tap%d", 0x1002)),
        attempt(control, 0x89A3, struct.pack("16si20x", b"br0", socket.if_nametoindex("port0"))),
        attempt(control, 0x8914, struct.pack("16sH22x", b"br0", 1)),
    ],
}
os.write(3, json.dumps(report).encode())
"""


def test_false_library_in_a_namespace_of_the_users(library: Path, sandbox: Sandbox) -> None:
    """Users can put their code in our place there, and the capability with it: it is good for what is theirs."""
    false = sandbox.scratch / "false"
    lay_library(false, FALSE_HELPER)
    links = "ip link add br0 type bridge && ip link add port0 type veth && ip link set port0 master br0"
    subprocess.run(["/bin/sh", "-c", links], check=True)
    start = f"mount --bind {false} {library} && exec {LAUNCHER}"
    told = launch(["/usr/bin/unshare", "-Urm", "/bin/sh", "-c", start]).told
    assert capabilities(told["status"])["CapEff"] == NET_ADMIN
    assert told["results"] == [errno.EPERM] * 3
    assert "port0" in ip("link", "show", "master", "br0")
    # The control, in a network namespace of their own.
    told = launch(["/usr/bin/unshare", "-Urmn", "/bin/sh", "-c", f"{links} && {start}"]).told
    assert told["results"] == [0] * 3


# Refusals


def test_no_new_privs(library: Path) -> None:
    assert "no_new_privs is set" in launch(prepare=lambda: prctl(PR_SET_NO_NEW_PRIVS, 1)).refusal


def test_no_new_privs_takes_nothing_from_root(library: Path) -> None:
    told = launch(uid=0, prepare=lambda: prctl(PR_SET_NO_NEW_PRIVS, 1)).told
    assert capabilities(told["status"])["CapPrm"] == NET_ADMIN


@pytest.mark.parametrize("uid", [UID, 0])
def test_bounding_set_without_the_capability(library: Path, uid: int) -> None:
    outcome = launch(uid=uid, prepare=lambda: drop_from_bounding_set(CAP_NET_ADMIN))
    assert "the capability bounding set lacks it" in outcome.refusal


def test_nosuid_mount(library: Path) -> None:
    mount(str(LAUNCHER.parent), LAUNCHER.parent, None, MS_BIND)
    mount("none", LAUNCHER.parent, None, MS_REMOUNT | MS_BIND | MS_NOSUID)
    assert "on a nosuid mount" in launch().refusal


def _write() -> None:
    with LAUNCHER.open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    "lose",
    [lambda: os.removexattr(LAUNCHER, "security.capability"), lambda: os.chown(LAUNCHER, 0, 0), _write],
    ids=["removed", "chown", "written to"],
)
def test_lost_file_capability(library: Path, lose: Callable[[], object]) -> None:
    lose()
    refusal = launch().refusal
    assert "this file has no capability" in refusal
    assert f"setcap cap_net_admin=p {LAUNCHER}" in refusal


def test_other_file_capability(library: Path) -> None:
    install_launcher(capability=NET_RAW_PERMITTED)
    assert "the file capabilities of this file do not permit it" in launch().refusal


def test_tracer(library: Path) -> None:
    assert "though this file permits it: a tracer" in launch(execute=execute_traced).refusal


def test_ambient_capabilities_forbidden(library: Path) -> None:
    refusal = launch(prepare=lambda: prctl(PR_SET_SECUREBITS, SECBIT_NO_CAP_AMBIENT_RAISE)).refusal
    assert "no_cap_ambient_raise: Operation not permitted; " in refusal


@pytest.mark.parametrize("users", [(UID, 0), (0, UID), (UID, UID + 1), (UID, UID)], ids=str)
@pytest.mark.parametrize("groups", [(UID, GROUP), (UID, UID)], ids=str)
def test_real_and_effective_ids(library: Path, users: tuple[int, int], groups: tuple[int, int]) -> None:
    def spoil() -> None:
        os.setresgid(*groups, groups[1])
        os.setresuid(*users, users[1])

    outcome = launch(uid=0, spoil=spoil)
    if users[0] == users[1] and groups[0] == groups[1]:
        assert capabilities(outcome.told["status"])["CapPrm"] == NET_ADMIN
    else:
        assert "the real and the effective user or group differ" in outcome.refusal


def test_root_directory_that_may_not_be_searched(library: Path, sandbox: Sandbox) -> None:
    jail = sandbox.scratch / "jail"
    jail.mkdir(mode=0o700)

    def prepare() -> None:
        # No path leads to it from in there.
        os.dup2(os.open(LAUNCHER, os.O_RDONLY), 4)
        os.chroot(jail)

    outcome = launch(prepare=prepare, execute=lambda _, words, environment: os.execve(4, words, environment))
    assert outcome.refusal.startswith("cannot change to the directory /: Permission denied; ")


def test_refusal_that_nobody_can_read(library: Path) -> None:
    def spoil() -> None:
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(reader)
        os.close(writer)

    outcome = launch(prepare=lambda: prctl(PR_SET_NO_NEW_PRIVS, 1), spoil=spoil)
    assert (outcome.status, outcome.sent, outcome.stdout) == (1, b"", "")


# The binaries


def test_binaries_are_built_of_these_sources() -> None:
    """So that a change of the source without `make launchers` is seen here."""
    digests = {}
    for line in (SOURCES / "bin/SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        digests[name] = digest
    binaries = {f"qemu-bridge-helper.{machine}" for machine in MACHINES}
    assert {path.name for path in (SOURCES / "bin").iterdir()} == {"SHA256SUMS", *binaries}
    assert set(digests) == {*binaries, "../launcher.c", "../build", "../../../requirements/launchers.txt"}
    for name, digest in digests.items():
        assert hashlib.sha256((SOURCES / "bin" / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("machine", MACHINES)
def test_binary_is_static_and_says_nothing_of_its_origin(machine: str) -> None:
    image = (SOURCES / f"bin/qemu-bridge-helper.{machine}").read_bytes()
    number, bits, order = MACHINES[machine]
    assert image[:6] == b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2])
    kind, found = struct.unpack_from(f"{order}HH", image, 16)
    assert (kind, found) == (ET_DYN, number)
    # Elf32_Ehdr and Elf64_Ehdr: offset, size and number of program headers; type and flags of each.
    offset, size, count, flags_at = (
        (*struct.unpack_from(f"{order}I", image, 28), *struct.unpack_from(f"{order}HH", image, 42), 24)
        if bits == 32
        else (*struct.unpack_from(f"{order}Q", image, 32), *struct.unpack_from(f"{order}HH", image, 54), 4)
    )
    headers = {}
    for position in range(offset, offset + count * size, size):
        (header,) = struct.unpack_from(f"{order}I", image, position)
        (headers[header],) = struct.unpack_from(f"{order}I", image, position + flags_at)
    assert PT_INTERP not in headers
    assert not headers[PT_GNU_STACK] & PF_X
    assert f"{LIBRARY}/qemu-bridge-helper.py".encode() in image
    for trace in (b"launcher.c", b"/build/", b"/home/", b"/root/", b"/tmp/"):
        assert trace not in image


@pytest.mark.timeout(1200)  # The first time, compiler and C library are fetched and built.
def test_same_source_same_bytes(tmp_path: Path) -> None:
    machine = platform.machine()

    def build(directory: str, source: str) -> bytes:
        here = tmp_path / directory
        (here / "files/launcher").mkdir(parents=True)
        shutil.copy(SOURCES / "build", here / "files/launcher")
        (here / "files/launcher/launcher.c").write_text(source)
        (here / "requirements").symlink_to(ROOT / "requirements")
        (ROOT / "build").mkdir(exist_ok=True)
        (here / "build").symlink_to(ROOT / "build")
        # Clang would take headers from CPATH, so the build may not see it.
        (here / "errno.h").write_text("#error not this one\n")
        environment = {**os.environ, "PYTHON": sys.executable, "CPATH": str(here)}
        subprocess.run([here / "files/launcher/build", here / "out", machine], env=environment, check=True)
        return (here / f"out/qemu-bridge-helper.{machine}").read_bytes()

    committed = (SOURCES / f"bin/qemu-bridge-helper.{machine}").read_bytes()
    source = (SOURCES / "launcher.c").read_text()
    assert build("one", source) == committed
    assert build("a longer name", source) == committed
    assert build("changed", source.replace("umask(077)", "umask(022)")) != committed
