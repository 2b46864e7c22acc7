# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu-bridge-run: start a command that has taps open, and their numbers in its arguments.

It is for programs that take a tap as the number of an open descriptor: QEMU's `-netdev tap,fd=`, cloud-hypervisor,
crosvm. It has no privilege of its own: a bridge helper makes the taps, and decides who gets one. The command replaces
this process, so that whoever started it has the command's own pid and end.
"""

import _signal
import errno
import posix
import sys
from fcntl import F_DUPFD, fcntl

from . import client
from .errors import because, write

USAGE = """\
Usage: qemu-bridge-run --br=bridge [--br=bridge ...] [--helper=path] -- command [argument ...]

Takes one tap on each bridge, then executes the command with the number of the tap's
descriptor in place of {fd} (one bridge) or {fd0}, {fd1} ... in any of its words.
"""

# Where the role installs ours.
HELPER = "/usr/local/libexec/qemu-bridge-helper"
# As of env(1), nohup(1) and timeout(1): an error of this program, a command that can't be executed, one that is not
# there. Every other status is the command's.
OWN_ERROR = 125
NOT_EXECUTED = 126
NOT_FOUND = 127

# The beginning of a placeholder.
_OPENING = "{fd"
# Where execvp(3) looks in an environment without PATH: confstr(3), _CS_PATH.
_PATH = b"/bin:/usr/bin"


class Usage(Exception):
    """The command line is not of the accepted form; the message says where and why."""


class Arguments:
    """What the command line asks for."""

    def __init__(self, words: "list[str]") -> None:
        self.bridges: list[str] = []
        self.helper = HELPER
        if "--" not in words:
            raise Usage("no command is given: it comes after `--'")
        end = words.index("--")
        for word in words[:end]:
            if word.startswith("--br="):
                self.bridges.append(word[len("--br=") :])
            elif word.startswith("--helper="):
                self.helper = word[len("--helper=") :]
            else:
                raise Usage(f"unknown argument `{word}'")
        self._command = words[end + 1 :]
        if not self.bridges:
            raise Usage("no bridge is given, `--br=bridge' is missing")
        if "--br=" in self.helper:
            raise Usage("`--helper=' has a `--br=' in it, by which none of the others would count")
        if not self._command:
            raise Usage("no command is given after `--'")
        self._require_placeholders()

    def command(self, descriptors: "list[int]") -> "list[str]":
        """The words of the command, with the numbers of these descriptors, one for each bridge, in their places."""
        return [_fill(word, self._numbers(descriptors), set()) for word in self._command]

    def _numbers(self, descriptors: "list[int]") -> "dict[str, int]":
        numbers = {str(place): descriptor for place, descriptor in enumerate(descriptors)}
        return {"": descriptors[0], **numbers} if len(descriptors) == 1 else numbers

    def _require_placeholders(self) -> None:
        """Usage where a tap would have no place in the command, or a placeholder no tap."""
        used: set[str] = set()
        places = range(len(self.bridges))
        for word in self._command:
            _fill(word, self._numbers([*places]), used)
        for place, bridge in enumerate(self.bridges):
            if str(place) not in used and not (len(places) == 1 and "" in used):
                name = "{fd}" if len(places) == 1 else f"{{fd{place}}}"
                raise Usage(f"no word of the command has `{name}' in it, the place for the tap on `{bridge}'")


def _fill(word: str, numbers: "dict[str, int]", used: "set[str]") -> str:
    """`word` with numbers in place of placeholders, whose names are added to `used`; Usage for an unknown one.

    Other braces stay, such as those of JSON.
    """
    filled, *pieces = word.split(_OPENING)
    for piece in pieces:
        name, brace, rest = piece.partition("}")
        if not brace or not f"_{name}".isidentifier():
            filled += _OPENING + piece
        elif name in numbers:
            used.add(name)
            filled += f"{numbers[name]}{rest}"
        else:
            known = ", ".join(f"`{_OPENING}{number}}}'" for number in numbers)
            raise Usage(f"unknown placeholder `{_OPENING}{name}}}' in `{word}': here there is {known}")
    return filled


def main(words: "list[str]") -> int:
    """Take the taps and become the command; returns an exit status only where that fails."""
    # Ctrl-C ends this program as any other, which needs no more cleaning up than the kernel does.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    if words in (["--help"], ["-h"]):
        write(1, USAGE.encode())
        return 0
    pending = _signal.sigpending()
    try:
        arguments = Arguments(words)
        taps = client.run_helpers(arguments.helper, arguments.bridges)
    except Usage as usage:
        return _fail(OWN_ERROR, f"{usage}\n{USAGE.partition(chr(10))[0]}")
    except client.HelperError as error:
        return _fail(OWN_ERROR, str(error))
    # Above 2, if this process was started without descriptors 0-2: the command shall find it so.
    descriptors = [_inheritable(tap) for tap in taps]
    client.close_all_but(descriptors)
    _restore_signals(pending)
    command = arguments.command(descriptors)
    failure = _execute(command, _environment())
    status = NOT_FOUND if failure.errno == errno.ENOENT else NOT_EXECUTED
    return _fail(status, f"cannot execute `{command[0]}': {because(failure)}")


def _inheritable(tap: client.Tap) -> int:
    """A descriptor of `tap` for the command, the only one."""
    descriptor = fcntl(tap.fd, F_DUPFD, 3)
    tap.close()
    return descriptor


def _restore_signals(pending: "set[int]") -> None:
    """Undo what the interpreter and we did to signals; `pending` were so before."""
    # Ignored by the interpreter from its start on. It keeps no record of what they were, so they get their default.
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    # Where the caller has blocked it, it tells of our helpers' ends, and the command has not started them.
    if _signal.SIGCHLD in _signal.sigpending() - pending:
        _signal.sigtimedwait([_signal.SIGCHLD], 0)


def _environment() -> "dict[bytes, bytes]":
    """The variables with which this process was started: where the locale is C, the interpreter has added LC_CTYPE."""
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return dict(posix.environ)
    return {name: value for name, found, value in (entry.partition(b"=") for entry in entries) if found}


def _execute(command: "list[str]", environment: "dict[bytes, bytes]") -> OSError:
    """Become the command, found as execvp(3) finds it; returns why that failed."""
    if "/" in command[0]:
        return _replace(command[0], command, environment)
    failure = OSError(errno.ENOENT, "execve")
    path = environment.get(b"PATH", _PATH).decode(sys.getfilesystemencoding(), "surrogateescape")
    for directory in path.split(":"):
        error = _replace(f"{directory or '.'}/{command[0]}", command, environment)
        # One that may not be executed is reported only if no other is found.
        if error.errno == errno.EACCES:
            failure = error
        elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return error
    return failure


def _replace(path: str, command: "list[str]", environment: "dict[bytes, bytes]") -> OSError:
    try:
        posix.execve(path, command, environment)
    except OSError as error:
        return error


def _fail(status: int, message: str) -> int:
    """Write `message`, and return `status`."""
    write(2, f"qemu-bridge-run: {message}\n".encode("ascii", "backslashreplace"))
    return status
