# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu-bridge-run as users start it, with the real helper: the command finds all as it was, and a tap."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.install import COMMAND, LAUNCHER, LIBRARY, install
from support.namespaces import Sandbox, ip

UID = 60001
# Every signal whose disposition can be set and whose default does not end the test's own start of the command.
ALL_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


@pytest.fixture(autouse=True)
def host(sandbox: Sandbox) -> Sandbox:
    """A host with the helper and two bridges that everybody may use, and one that nobody may."""
    install(sandbox, "allow br0\nallow br1\n")
    for bridge in ("br0", "br1", "br2"):
        ip("link", "add", bridge, "up", "type", "bridge")
    return sandbox


def start(
    command: Sequence[str | os.PathLike[str]], prepare: Callable[[], object] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program as an unprivileged user, who does `prepare` before it; its descriptors 0-2 are ours."""
    options = {"env": {"PATH": os.environ["PATH"]}, "cwd": "/", **options}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        user=UID,
        group=UID,
        extra_groups=[],
        preexec_fn=prepare,
        check=False,
        # It would set to their defaults what the tests set.
        restore_signals=False,
        **options,
    )


def run(*arguments: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return start([COMMAND, *arguments], **options)


def reset_signals() -> None:
    """As in a login shell's children: nothing ignored, nothing blocked."""
    for number in ALL_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def ignore(*numbers: int) -> Callable[[], None]:
    """For `prepare`."""

    def prepare() -> None:
        reset_signals()
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return prepare


def block(*numbers: int) -> Callable[[], None]:
    """For `prepare`."""

    def prepare() -> None:
        reset_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, numbers)

    return prepare


# What the command finds


def test_one_tap(host: Sandbox) -> None:
    """On its bridge and up, with virtio-net headers; the tap goes with the command."""
    script = "cat /proc/self/fdinfo/{fd}; ip -details link show master br0"
    done = run("--br=br0", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert "iff:\ttap0\n" in done.stdout
    assert "tap0: <BROADCAST,MULTICAST,UP" in done.stdout
    assert "vnet_hdr on" in done.stdout
    assert "tap0" not in ip("link")


def test_two_taps(host: Sandbox) -> None:
    """Each placeholder has the tap on the bridge of its place, whichever helper was quicker."""
    script = (
        "for fd in {fd0} {fd1}; do readlink /sys/class/net/$(sed -n 's/^iff:.//p' /proc/self/fdinfo/$fd)/master; done"
    )
    for _turn in range(3):
        done = run("--br=br0", "--br=br1", "--", "sh", "-c", script)
        assert (done.stdout.split(), done.stderr) == (["../br0", "../br1"], "")


def test_a_helper_with_arguments(host: Sandbox) -> None:
    done = run("--br=br0", f"--helper={LAUNCHER} --vnet-hdr", "--", "cat", "/proc/self/fdinfo/{fd}")
    assert "iff:\ttap0\n" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "prepare",
    [
        reset_signals,
        ignore(signal.SIGCHLD),
        # Python ignores these two from its start on, and no trace of what they were is left: they get their default.
        ignore(*ALL_SIGNALS - {signal.SIGPIPE, signal.SIGXFSZ}),
        block(signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT),
        block(*ALL_SIGNALS),
    ],
    ids=["default", "SIGCHLD", "ignored", "some blocked", "blocked"],
)
def test_signals_and_rights_are_as_they_were(host: Sandbox, prepare: Callable[[], None]) -> None:
    """What Python did to signals is undone, and no right is gained or lost."""
    kept = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "Cap", "NoNewPrivs", "Umask", "Uid", "Gid", "Groups")

    def facts(done: subprocess.CompletedProcess[str]) -> list[str]:
        assert (done.returncode, done.stderr) == (0, "")
        return [line for line in done.stdout.splitlines() if line.startswith(kept)]

    through = facts(run("--br=br0", "--", "cat", "/proc/self/status", "/proc/self/fdinfo/{fd}", prepare=prepare))
    assert len(through) == 15
    assert through == facts(start(["cat", "/proc/self/status"], prepare))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # Of the interpreter's own variables none counts for ours, and all are there for the command.
        {"PYTHONHOME": "/nonexistent", "PYTHONPATH": "/nonexistent", "PYTHONMALLOC": "debug"},
        # Where the locale is C, Python would leave LC_CTYPE=C.UTF-8 to the command.
        {"LC_CTYPE": "C", "EMPTY": "", "TWO": "a=b", "LINES": "a\nb"},
        {"LC_ALL": "C", "BYTES": "\udcff\udce9"},
    ],
)
def test_environment_is_as_it_was(host: Sandbox, environment: dict[str, str]) -> None:
    given = {"PATH": os.environ["PATH"], **environment}
    command = ["cat", "/proc/self/environ", "/proc/self/fdinfo/{fd}"]
    done = run("--br=br0", "--", *command, env=given, errors="surrogateescape")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\0")[:-1] == [f"{name}={value}" for name, value in given.items()]


def test_only_the_taps_are_inherited(host: Sandbox) -> None:
    """Beside 0-2: what else was open here, and all that it took to get the taps, is closed."""
    spare = os.open("/dev/null", os.O_RDONLY)
    script = 'for fd in /proc/$$/fd/*; do echo "${fd##*/}"; readlink $fd; done; : {fd0} {fd1}'
    done = run("--br=br0", "--br=br1", "--", "sh", "-c", script, pass_fds=[spare])
    os.close(spare)
    lines = done.stdout.splitlines()
    assert lines[:6:2] == ["0", "1", "2"]
    assert lines[7::2] == ["/dev/net/tun", "/dev/net/tun"]


def test_closed_descriptors_stay_closed(host: Sandbox) -> None:
    """No tap becomes the command's standard input or error."""

    def close() -> None:
        os.close(0)
        os.close(2)

    script = "for fd in 0 1 2 {fd}; do [ ! -e /proc/self/fd/$fd ] || echo $fd; done; readlink /proc/$$/fd/{fd}"
    one, three, tun = run("--br=br0", "--", "sh", "-c", script, prepare=close).stdout.split()
    assert (one, tun) == ("1", "/dev/net/tun")
    assert int(three) >= 3


def test_the_command_takes_the_place(host: Sandbox) -> None:
    """Its pid is the one that was started, and its end is the end."""
    with subprocess.Popen(
        [COMMAND, "--br=br0", "--", "sh", "-c", "echo $$; : {fd}; kill -USR1 $$"], stdout=subprocess.PIPE, text=True
    ) as process:
        output, _stderr = process.communicate()
        assert output.split() == [str(process.pid)]
        assert process.returncode == -signal.SIGUSR1


def test_found_like_by_a_shell(host: Sandbox) -> None:
    """By PATH, past files that can't be executed; in the working directory only where PATH says so."""
    for place, mode in (("a", 0o644), ("b", 0o755), ("c", 0o755)):
        directory = host.scratch / place
        directory.mkdir()
        (directory / "probe").write_text(f"#!/bin/sh\necho {place} $1\n")
        (directory / "probe").chmod(mode)
    inside = host.scratch / "c"

    def probe(path: str | None, command: str = "probe") -> tuple[int, list[str]]:
        environment = {} if path is None else {"PATH": path}
        done = run("--br=br0", "--", command, "x{fd}", env=environment, cwd=inside)
        return done.returncode, done.stdout.split()[:1]

    assert probe(f"/nonexistent:/dev/null:{host.scratch}/a:{host.scratch}/b") == (0, ["b"])
    assert probe(f":{host.scratch}/b") == (0, ["c"])
    assert probe(f"{host.scratch}/a") == (126, [])
    assert probe(f"{host.scratch}/nothing") == (127, [])
    assert probe("/nonexistent", "./probe") == (0, ["c"])
    assert probe(None) == (127, [])
    assert probe(None, "echo") == (0, ["x3"])


# What is refused


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--br=br0", "sh"], 125, "qemu-bridge-run: no command is given: it comes after `--'\nUsage: qemu-bridge-run "),
        (["--br=br0", "--", "echo"], 125, "no word of the command has `{fd}' in it"),
        (["--br=br0", "--", "echo", "{fd7}"], 125, "unknown placeholder `{fd7}'"),
        (
            ["--br=br2", "--", "echo", "{fd}"],
            125,
            "asked for a tap on `br2', ended with status 1: qemu-bridge-helper: acc",
        ),
        (
            ["--br=br0", "--br=br2", "--", "echo", "{fd0}{fd1}"],
            125,
            "access denied by acl file: bridge `br2' for uid 600",
        ),
        (["--br=../x", "--", "echo", "{fd}"], 125, "`../x' is no bridge name"),
        (
            ["--br=br0", "--helper=/nonexistent/h", "--", "echo", "{fd}"],
            125,
            "cannot be executed: No such file or direct",
        ),
        (["--br=br0", "--helper=/bin/true", "--", "echo", "{fd}"], 125, "ended well, but sent no descriptor"),
        (["--br=br0", "--helper=/bin/true; id", "--", "echo", "{fd}"], 125, "no shell runs a helper here"),
        (
            ["--br=br0", "--", "no-such-command", "{fd}"],
            127,
            "cannot execute `no-such-command': No such file or director",
        ),
        (["--br=br0", "--", "/etc/passwd/x", "{fd}"], 126, "cannot execute `/etc/passwd/x': Not a directory (ENOTDIR)"),
        (["--br=br0", "--", "/etc/passwd", "{fd}"], 126, "cannot execute `/etc/passwd': Permission denied (EACCES)"),
        (["--br=br0", "--", "/", "{fd}"], 126, "cannot execute `/': Permission denied (EACCES)"),
    ],
)
def test_refusals(host: Sandbox, arguments: list[str], status: int, words: str) -> None:
    """In words, with a status of env(1); nothing is left and nothing was executed."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("qemu-bridge-run: ")
    assert words in done.stderr
    assert "tap" not in ip("link")


def test_not_executable(host: Sandbox) -> None:
    """A file that the kernel can't execute is not handed to a shell."""
    script = host.scratch / "script"
    script.write_text("echo started\n")
    script.chmod(0o755)
    done = run("--br=br0", "--", script, "{fd}")
    assert (done.returncode, done.stdout) == (126, "")
    assert "Exec format error (ENOEXEC)" in done.stderr


def test_help(host: Sandbox) -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: qemu-bridge-run --br=bridge ")
    assert run("-h").stdout == done.stdout


def test_broken_installation(host: Sandbox) -> None:
    for path in (LIBRARY / "tapfd/run.py", *(LIBRARY / "tapfd/__pycache__").glob("run.*")):
        path.unlink()
    done = run("--br=br0", "--", "echo", "{fd}")
    assert done.returncode == 125
    assert "qemu-bridge-run: cannot run: ModuleNotFoundError(\"No module named 'tapfd.run'\"); " in done.stderr


def test_interrupted(host: Sandbox) -> None:
    """Ctrl-C while a helper is at work ends it as it ends any program: whoever started it can tell."""
    helper, mark = host.scratch / "helper", host.scratch / "mark"
    helper.write_text(f"#!/bin/sh\necho $$ >{mark}.new; mv {mark}.new {mark}; exec sleep 60\n")
    helper.chmod(0o755)
    command = [COMMAND, "--br=br0", f"--helper={helper}", "--", "echo", "{fd}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not mark.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        os.kill(int(Path(mark).read_text()), signal.SIGKILL)
        assert process.communicate() == (b"", b"")
