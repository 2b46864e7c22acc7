# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher with a probe in the helper's place, and starts from a process state of the test's choosing."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
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
# <linux/ptrace.h>
PTRACE_TRACEME = 0
PTRACE_CONT = 7
PTRACE_SYSCALL = 24
PTRACE_SETOPTIONS = 0x4200
PTRACE_O_TRACESYSGOOD = 1 << 0
PTRACE_O_TRACEEXEC = 1 << 4
PTRACE_O_EXITKILL = 1 << 20
NET_ADMIN = 1 << CAP_NET_ADMIN

UID = 60001
GROUP = 60100
# The number of the socket over which the helper sends its tap and the probe its report.
CHANNEL = 3

# What planted code writes to stderr.
MARK = "planted code ran"

# Names, values, and what the interpreter writes to stderr when it starts with them and without the launcher, where it
# shows.
HOSTILE_VARIABLES = [
    ("PYTHONPATH", "{trap}", MARK),
    ("PYTHONHOME", "{trap}", MARK),
    ("PYTHONVERBOSE", "1", "import "),
    ("PYTHONMALLOC", "none", "unknown allocator"),
    ("PYTHONHASHSEED", "none", "PYTHONHASHSEED"),
    ("PYTHONSTARTUP", "{trap}/os.py", None),
    ("PYTHONINSPECT", "1", None),
    ("PYTHONUSERBASE", "{trap}", None),
    ("PYTHONPLATLIBDIR", "{trap}/lib", None),
    ("LD_PRELOAD", "{trap}/preload.so", "cannot be preloaded"),
    ("LD_AUDIT", "{trap}/audit.so", "cannot open shared object file"),
    ("LD_LIBRARY_PATH", "{trap}", None),
    ("LD_DEBUG", "libs", "calling init"),
    ("LD_TRACE_LOADED_OBJECTS", "1", None),
    ("GLIBC_TUNABLES", "glibc.malloc.perturb=255", None),
    ("MALLOC_CHECK_", "3", None),
    ("LOCPATH", "{trap}", None),
    ("GCONV_PATH", "{trap}", None),
    ("OPENSSL_CONF", "{trap}/openssl.cnf", None),
    ("BASH_ENV", "{trap}/bash", None),
    ("LC_ALL", "en_US.UTF-8", None),
    ("PATH", "{trap}", None),
]

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
    sent: bytes
    """What arrived over the socket `CHANNEL`."""
    descriptors: list[int]
    """The descriptors that came with it; the test closes them."""
    stdout: str
    stderr: str

    @property
    def told(self) -> dict[str, Any]:
        """The probe's report of a start that succeeded in silence."""
        assert (self.status, self.stdout, self.stderr) == (0, "", "")
        report: dict[str, Any] = json.loads(self.sent)
        return report

    @property
    def sentence(self) -> str:
        """The one line that a start which handed nothing over ended in, without its prefix."""
        assert (self.status, self.sent, self.descriptors, self.stdout) == (1, b"", [], "")
        prefix, _colon, sentence = self.stderr.partition(": ")
        assert prefix == "qemu-bridge-helper"
        assert sentence.endswith("\n")
        assert sentence.count("\n") == 1
        return sentence

    @property
    def refusal(self) -> str:
        """The `sentence` of a launcher that refused: what is wrong, and a way out."""
        assert "; " in self.sentence
        return self.sentence


def install_probe(sandbox: Sandbox, script: str = PROBE) -> Path:
    """Lay the launcher, and `script` as the helper; return the version directory that it is in."""
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
    attend: Callable[[int], int] = lambda pid: os.waitpid(pid, 0)[1],
) -> Outcome:
    """Start a command as a user and return what came of it.

    In the child, `prepare` runs as root, `spoil` as the user, then `execute(path, command, environment)`. Descriptors
    are 0 (/dev/null), 1 and 2 (files that are read here afterwards) and `CHANNEL`. Meanwhile `attend(pid)` waits for
    its end and returns the status of wait(2).
    """
    words = [os.fspath(word) for word in command]
    stdout, stderr = os.memfd_create("stdout"), os.memfd_create("stderr")
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        try:
            _place([os.open("/dev/null", os.O_RDONLY), stdout, stderr, theirs.fileno()])
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
    theirs.close()
    status = os.waitstatus_to_exitcode(attend(child))
    with ours:
        sent, descriptors = _receive(ours)
    return Outcome(status, sent, descriptors, _text(stdout), _text(stderr))


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """All that waits in the socket of a peer that has ended."""
    sent = b""
    descriptors = []
    while True:
        data, received, flags, _address = socket.recv_fds(channel, 1 << 16, 16)
        assert not flags & socket.MSG_CTRUNC
        descriptors += received
        if not data:
            return sent, descriptors
        sent += data


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


def ptrace(request: int, pid: int = 0, data: int = 0) -> None:
    """ptrace(2)."""
    if _libc.ptrace(request, pid, None, ctypes.c_void_p(data)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace({request}): {os.strerror(error)}")


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
        ptrace(PTRACE_TRACEME)
        os.execve(path, command, environment)
    while True:
        _pid, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            os._exit(os.waitstatus_to_exitcode(status))
        ptrace(PTRACE_CONT, child)


def stepwise(visit: Callable[[int, int], bool]) -> Callable[[int], int]:
    """For `attend`, if `prepare` asked to be traced: call visit(pid, number) at each stop while it returns True.

    The stops are before and after each system call, numbered from 0. We trace as root, before whom the kernel grants
    file capabilities as if there were no tracer.
    """

    def attend(pid: int) -> int:
        # The stop at the first exec.
        os.waitpid(pid, 0)
        ptrace(PTRACE_SETOPTIONS, pid, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL)
        request, number = PTRACE_SYSCALL, 0
        while True:
            # The visit may have killed it.
            with contextlib.suppress(ProcessLookupError):
                ptrace(request, pid)
            _pid, status = os.waitpid(pid, 0)
            if not os.WIFSTOPPED(status):
                return status
            if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
                if not visit(pid, number):
                    request = PTRACE_CONT
                number += 1

    return attend


def ask_to_be_traced() -> None:
    """For `prepare`: the test traces what is executed."""
    ptrace(PTRACE_TRACEME)


def close(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def set_soft_limit(kind: int, value: int) -> None:
    """Lower a limit in a way that the process itself may take back."""
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def set_hard_limit(kind: int, value: int) -> None:
    """Lower a limit for good."""
    resource.setrlimit(kind, (value, value))


def ignore_and_block_all_signals() -> None:
    """Every signal that the C library lets us name: ignored, and blocked."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def spoil_everything() -> None:
    """For `spoil`: the worst state that a user can be in and still see the answer of a helper."""
    close([0, 1, 2])
    os.umask(0)
    set_soft_limit(resource.RLIMIT_NOFILE, 3)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 3600)
    ignore_and_block_all_signals()


def hostile_environment(trap: Path) -> dict[str, str]:
    """All of `HOSTILE_VARIABLES`, with what `plant` made in `trap`."""
    return {name: value.format(trap=trap) for name, value, _control in HOSTILE_VARIABLES}


def plant(directory: Path) -> None:
    """Make a directory of the user's with everything that an interpreter which trusts it would run."""
    home = directory / "lib" / PYTHON.name
    mark = f"import posix; posix.write(2, b'{MARK}'); posix._exit(66)\n"
    for place in (directory, home, home / "site-packages"):
        for module in ("sitecustomize", "usercustomize", "encodings", "json", "ctypes", "tapfd"):
            (place / module).mkdir(parents=True)
            (place / module / "__init__.py").write_text(mark)
        (place / "planted.pth").write_text(mark)
        # The file by which CPython recognizes its library.
        (place / "os.py").write_text(mark)
    (home / "lib-dynload").mkdir()
    (directory / "pyvenv.cfg").write_text(f"home = {directory}\n")
    for path in (directory, *directory.rglob("*")):
        os.chown(path, UID, UID)


def capabilities(status: str) -> dict[str, int]:
    """The capability sets in a text of /proc/PID/status: CapInh, CapPrm, CapEff, CapBnd, CapAmb."""
    return {key: int(value, 16) for key, value in fields(status).items() if key.startswith("Cap")}


def fields(status: str) -> dict[str, str]:
    """The lines of a text of /proc/PID/status."""
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in status.splitlines())}
