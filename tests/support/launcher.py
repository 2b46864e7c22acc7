# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher with a probe in the helper's place, and starts from a process state of the test's choosing."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from support.install import LAUNCHER, LIBRARY, PYTHON, install_launcher
from support.namespaces import Sandbox

# <linux/prctl.h>
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
# <linux/securebits.h>
SECBIT_NOROOT = 1 << 0
SECBIT_NOROOT_LOCKED = 1 << 1
SECBIT_NO_CAP_AMBIENT_RAISE = 1 << 6
# <linux/capability.h>
CAP_SETPCAP = 8
CAP_NET_ADMIN = 12
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
# <sys/ptrace.h>
PTRACE_TRACEME = 0
PTRACE_CONT = 7
NET_ADMIN = 1 << CAP_NET_ADMIN

UID = 60001
GROUP = 60100
# The number of the pipe that takes the probe's report; no descriptor above it is open.
REPORT = 3

# Runs in the helper's place and tells all it can see of the state that it was started in. Descriptors come first, as
# imports open some.
PROBE = """\
import os
descriptors = {}
for name in os.listdir("/proc/self/fd"):
    try:
        descriptors[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        pass  # the listing's own
mask = os.umask(0)
import ctypes, json, resource, signal, sys
def text(path):
    with open(path) as file:
        return file.read()
child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
libc = ctypes.CDLL(None)
report = {
    "descriptors": descriptors,
    "umask": mask,
    "status": text("/proc/self/status"),
    "child": text(f"/proc/{child}/status"),
    "environment": dict(os.environ),
    "directory": os.getcwd(),
    "command": sys.orig_argv,
    "executed": os.readlink("/proc/self/exe"),
    "arguments": sys.argv[1:],
    "flags": {name: getattr(sys.flags, name) for name in ("isolated", "no_site", "dont_write_bytecode")},
    "path": sys.path,
    "files": sorted(filter(None, (getattr(module, "__file__", None) for module in sys.modules.values()))),
    "timers": [signal.getitimer(timer) for timer in (0, 1, 2)],
    "limits": {"core": resource.getrlimit(resource.RLIMIT_CORE), "files": resource.getrlimit(resource.RLIMIT_NOFILE)},
    "securebits": libc.prctl(27, 0, 0, 0, 0),
}
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
os.write(3, json.dumps(report).encode())
os._exit(0)
"""

_libc = ctypes.CDLL(None, use_errno=True)


class Outcome(NamedTuple):
    """What came of one start."""

    status: int
    """Exit status, negative for the signal that ended it."""
    report: dict[str, Any] | None
    """What the script in the helper's place told, None if it told nothing."""
    stdout: str
    stderr: str

    @property
    def told(self) -> dict[str, Any]:
        """The report of a start that succeeded in silence."""
        assert (self.status, self.stdout, self.stderr) == (0, "", "")
        assert self.report is not None
        return self.report

    @property
    def refusal(self) -> str:
        """The sentence of a start that the launcher refused, without its prefix."""
        assert (self.status, self.report, self.stdout) == (1, None, "")
        prefix, _, sentence = self.stderr.partition(": ")
        assert prefix == "qemu-bridge-helper"
        assert sentence.endswith("\n")
        assert sentence.count("\n") == 1
        # What is wrong, and a way out.
        assert sentence.count("; ") >= 1
        return sentence


def install_probe(sandbox: Sandbox, script: str = PROBE) -> Path:
    """Lay the launcher, and `script` as the helper; return the version directory that it is in."""
    sandbox.overlay("/usr/local")
    version = LIBRARY.with_suffix(".d") / "probe"
    lay_library(version, script)
    LIBRARY.symlink_to(version)
    install_launcher()
    return version


def lay_library(directory: Path, script: str) -> None:
    """Lay what the launcher executes: the link to the interpreter and the script."""
    directory.mkdir(parents=True)
    (directory / "python3").symlink_to(PYTHON)
    (directory / LIBRARY.name).with_suffix(".py").write_text(script, encoding="utf-8")


def launch(
    command: Sequence[str | os.PathLike[str]] = (LAUNCHER,),
    *,
    uid: int = UID,
    groups: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] = "/",
    prepare: Callable[[], object] | None = None,
    spoil: Callable[[], object] | None = None,
    execute: Callable[[str, list[str], dict[str, str]], object] = os.execve,
) -> Outcome:
    """Start a command as a user and return what came of it.

    In the child, `prepare` runs as root, `spoil` as the user, then `execute(path, command, environment)`. Descriptors
    are 0 (/dev/null), 1 and 2 (files that are read here afterwards) and `REPORT`.
    """
    words = [os.fspath(word) for word in command]
    stdout, stderr = os.memfd_create("stdout"), os.memfd_create("stderr")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            _place([os.open("/dev/null", os.O_RDONLY), stdout, stderr, writer])
            os.chdir(directory)
            if prepare:
                prepare()
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            if spoil:
                spoil()
            execute(words[0], words, dict(environment or {}))
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(125)
    os.close(writer)
    with open(reader, "rb") as pipe:
        report = pipe.read()
    _pid, status = os.waitpid(child, 0)
    return Outcome(
        os.waitstatus_to_exitcode(status), json.loads(report) if report else None, _text(stdout), _text(stderr)
    )


def _place(descriptors: list[int]) -> None:
    """Give these descriptors the numbers from 0 on, to be inherited, and close all others."""
    # First out of the way of each other.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in descriptors]
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number)
    os.closerange(len(descriptors), os.sysconf("SC_OPEN_MAX"))


def _text(descriptor: int) -> str:
    # From the start: the child shares the position.
    text = os.pread(descriptor, 1 << 20, 0).decode()
    os.close(descriptor)
    return text


def prctl(option: int, *arguments: int) -> int:
    """prctl(2)."""
    result: int = _libc.prctl(option, *(ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {arguments})")
    return result


def drop_from_bounding_set(capability: int) -> None:
    """What is executed from here on can't have this capability."""
    prctl(PR_CAPBSET_DROP, capability)


def fill_inheritable_set() -> None:
    """Put all that this process has into its inheritable set, but for what its bounding set lacks."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)
    if _libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    words = list(struct.unpack("=6I", sets.raw))
    for capability in range(64):
        # Effective, permitted, inheritable; then the same of the higher half.
        half, bit = 3 * (capability // 32), 1 << capability % 32
        if words[half + 1] & bit and prctl(PR_CAPBSET_READ, capability):
            words[half + 2] |= bit
    if _libc.capset(header, struct.pack("=6I", *words)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def execute_without_arguments(path: str, _command: list[str], _environment: dict[str, str]) -> None:
    """For `execute`: with an empty list of arguments, which os.execve refuses."""
    empty = (ctypes.c_char_p * 1)(None)
    _libc.execve(os.fsencode(path), empty, empty)
    raise OSError(ctypes.get_errno(), "execve")


def execute_traced(path: str, command: list[str], environment: dict[str, str]) -> None:
    """For `execute`: under a tracer that has no more rights than the program, as strace is."""
    child = os.fork()
    if not child:
        _libc.ptrace(PTRACE_TRACEME, 0, None, None)
        os.execve(path, command, environment)
    while True:
        _pid, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            os._exit(os.waitstatus_to_exitcode(status))
        _libc.ptrace(PTRACE_CONT, child, None, None)


def ignore_and_block_all_signals() -> None:
    """Every signal that the C library lets us name: ignored, and blocked."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def capabilities(status: str) -> dict[str, int]:
    """The capability sets in a text of /proc/PID/status: CapInh, CapPrm, CapEff, CapBnd, CapAmb."""
    return {key: int(value, 16) for key, value in fields(status).items() if key.startswith("Cap")}


def fields(status: str) -> dict[str, str]:
    """The lines of a text of /proc/PID/status."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in status.splitlines())}
