# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a bridge helper as QEMU does, and take the tap that it hands over.

QEMU's own taking trusts the helper: it uses whatever number lies in its buffer. Here everything is checked that the
kernel lets a receiver check, there is a time limit, and no descriptor and no child is left on any path. QEMU has a
shell split a helper string with arguments, and run whatever else stands in it and in the name of the bridge; here no
shell ever sees them.
"""

import _signal
import errno
import posix
import sys
from _socket import AF_UNIX, SHUT_RD, SOCK_STREAM, socket, socketpair
from _struct import unpack_from
from fcntl import F_DUPFD_CLOEXEC, fcntl, ioctl
from select import POLLIN, poll
from time import monotonic

from . import fdpass, tuntap
from .errors import because, show

# What means something to a shell and would be lost on us, the quotes and the backslash aside.
_SHELL_SYNTAX = "$`;|&<>()*?[~#"
# Of what a helper writes: enough for any sentence, and no way to fill our memory.
_MAX_OUTPUT = 16384
# Seconds between looks at a child where the kernel gives no descriptor of it (pidfd_open(2), Linux 5.3).
_LOOK_EVERY = 0.02
# What an errno of execve(2) may mean for a bridge helper.
_EXEC_HINTS = {
    errno.ENOENT: "; is it installed?",
    errno.EACCES: "; it may be kept for the members of a group, or a directory above it is closed",
    errno.EPERM: "; its file capability is not in this process's bounding set",
}

# <linux/pidfd.h>: _IOWR(0xFF, 11, struct pidfd_info), which is 64 bytes in its first version, mask first and exit_code
# last. Since Linux 6.15 it gives the status of a process that is reaped.
_PIDFD_INFO_SIZE = 64
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO_SIZE << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3


class HelperError(Exception):
    """No tap was taken; the message says why in one sentence.

    `status` is the helper's exit status, negative for the signal that ended it, None where it was never known; `stderr`
    is what the helper wrote.
    """

    def __init__(self, message: str, status: "int | None" = None, stderr: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.stderr = stderr


class HelperNotStarted(HelperError):
    """The helper could not be executed, or its command line is refused."""


class HelperFailed(HelperError):
    """The helper ended with another status than 0, whatever it may have sent before."""


class HelperTimeout(HelperError):
    """The helper had not sent a tap and ended within the time limit; it was killed."""


class NoDescriptor(HelperError):
    """The helper ended well, or closed the socket, without sending a descriptor."""


class SurplusDescriptors(HelperError):
    """The helper sent more than one descriptor; all were closed."""


class NotATap(HelperError):
    """The helper sent a descriptor that is no tap; it was closed."""


class Tap:
    """A tap handed over by a helper; it goes when the last descriptor of it is closed."""

    def __init__(self, fd: int, name: str, flags: int) -> None:
        self.fd = fd
        """Close-on-exec and non-blocking."""
        self.name = name
        self.flags = flags
        """IFF_* flags of <linux/if_tun.h> as TUNGETIFF reports them."""

    @property
    def vnet_hdr(self) -> bool:
        """Whether each frame comes with a struct virtio_net_hdr before it (IFF_VNET_HDR)."""
        return bool(self.flags & tuntap.IFF_VNET_HDR)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self.fd >= 0:
            descriptor, self.fd = self.fd, -1
            posix.close(descriptor)

    def __enter__(self) -> "Tap":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def run_helper(helper: str, bridge: str, *, vnet_hdr: bool = True, timeout: float = 10.0) -> Tap:
    """Ask the program `helper` for a tap on `bridge`, and wait at most `timeout` seconds until it has ended.

    `helper` is a path. With a blank in it, it is a path and arguments, split as a shell splits words and quotes; what
    else a shell would heed is refused.

    The helper is called as QEMU calls it, with `--use-vnet --fd=N --br=BRIDGE` after arguments of its own; if `--br=`
    is among these, it is not given again, and `bridge` has no meaning. It inherits the socket N, /dev/null as input and
    a pipe, read here, as its outputs; its signal mask is the caller's. `vnet_hdr` asks for IFF_VNET_HDR, which it gives
    where the kernel has it.

    SIGCHLD is blocked meanwhile in this thread, so that no handler of the caller's reaps the helper.
    Raises HelperError, in one of its precise forms.
    """
    (tap,) = run_helpers(helper, [bridge], vnet_hdr=vnet_hdr, timeout=timeout)
    return tap


def run_helpers(helper: str, bridges: "list[str]", *, vnet_hdr: bool = True, timeout: float = 10.0) -> "list[Tap]":
    """Take a tap on each of `bridges` like `run_helper`, with all helpers at work at the same time.

    If one of them gives none, no tap is left of the others.
    """
    command = _Command(helper)
    children: list[_Child] = []
    taps: list[Tap] = []
    deadline = monotonic() + timeout
    try:
        mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGCHLD])
        try:
            for bridge in bridges:
                child = _Child(command, bridge)
                children.append(child)
                child.start(vnet_hdr, mask)
            for child in children:
                taps.append(child.take(deadline, timeout))
        finally:
            for child in children:
                child.close()
            # Last, and within the outer `try`: handlers that waited run here, and may raise.
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    except BaseException:
        for tap in taps:
            tap.close()
        raise
    return taps


def close_all_but(kept: "list[int]") -> None:
    """Close every descriptor of this process but 0-2 and `kept`."""
    for entry in posix.listdir("/proc/self/fd"):
        if int(entry) > 2 and int(entry) not in kept:
            # Not close(), which would complain about the listing's own.
            posix.closerange(int(entry), int(entry) + 1)


class _Command:
    """A helper as users write it: a path, or a path and arguments."""

    def __init__(self, helper: str) -> None:
        """HelperNotStarted where `helper` has no path in it, or would need a shell."""
        self.text = helper
        self.words = [helper]
        # QEMU looks at the text, too, and not at the words.
        self.names_bridge = False
        for character in helper:
            if character in _SHELL_SYNTAX or (character < " " and character != "\t"):
                whole, part = (show(text.encode("utf-8", "backslashreplace")) for text in (helper, character))
                raise HelperNotStarted(
                    f"bridge helper `{whole}' is refused for its `{part}': no shell runs a helper here, "
                    "so that only a path, arguments and quotes are understood"
                )
        if " " in helper or "\t" in helper:
            # It costs twice the start of the interpreter, and few need it.
            import shlex  # noqa: PLC0415

            try:
                self.words = shlex.split(helper)
            except ValueError as error:
                raise HelperNotStarted(f"bridge helper `{helper}' can't be split into words: {error}") from None
            self.names_bridge = "--br=" in helper
        if not self.words or "/" not in self.words[0]:
            raise HelperNotStarted(
                f"bridge helper `{helper}' does not begin with a path: no helper is searched for, give the whole path"
            )

    def arguments(self, bridge: str, vnet_hdr: bool, channel: int) -> "list[str]":
        """The words to execute, in QEMU's order."""
        words = [*self.words, *(["--use-vnet"] if vnet_hdr else []), f"--fd={channel}"]
        return words if self.names_bridge else [*words, f"--br={bridge}"]


class _Child:
    """A helper at work; `close` gives back what it holds of this process."""

    # Of waitpid(2) as Python gives it, negative for a signal; None until then, and where another took it.
    _status: "int | None" = None

    def __init__(self, command: _Command, bridge: str) -> None:
        self._command = command
        self._bridge = bridge
        self._pid = 0
        # Known by the kernel's word that it ended, and not by the status, which may be lost.
        self._ended = False
        self._output = b""
        # Our end of the one that the helper sends through; none before the start.
        self._channels: list[socket] = []
        self._outputs = self._failure = self._pidfd = -1

    def start(self, vnet_hdr: bool, mask: "set[int]") -> None:
        """Start it, with `mask` as its signal mask; HelperNotStarted where this process can't."""
        theirs: list[int] = []
        try:
            ours, channel = socketpair(AF_UNIX, SOCK_STREAM)
            self._channels.append(ours)
            theirs.append(channel.detach())
            self._outputs, outputs = posix.pipe()
            theirs.append(outputs)
            self._failure, failure = posix.pipe()
            theirs.append(failure)
            ours.setblocking(False)
            # Another thread may fork meanwhile, and so keep their other ends open beyond the helper's.
            posix.set_blocking(self._outputs, False)
            posix.set_blocking(self._failure, False)
            self._pid = posix.fork()
            if self._pid == 0:
                _become_helper(self._command, self._bridge, vnet_hdr, mask, *theirs)
        except OSError as error:
            raise HelperNotStarted(f"cannot start bridge helper `{self._command.text}': {because(error)}") from error
        finally:
            # Ours would keep the pipes open after the helper's end.
            for descriptor in theirs:
                posix.close(descriptor)
        self._pidfd = _pidfd_of(self._pid)

    def take(self, deadline: float, timeout: float) -> Tap:
        """The tap that the helper has sent when it ends well before `deadline`; HelperError for everything else."""
        self._wait(deadline, timeout)
        self._judge_start()
        # A descriptor lies in the socket since before the helper ended, and goes with it if it is not taken.
        if self._status:
            raise self._error(HelperFailed, _ending(self._status))
        descriptor = self._receive()
        try:
            name, flags = tuntap.query(descriptor)
            posix.set_blocking(descriptor, False)
        except OSError as error:
            posix.close(descriptor)
            raise self._error(NotATap, f"sent a descriptor that is no tap (TUNGETIFF: {because(error)})") from error
        shown = name.decode(sys.getfilesystemencoding(), "surrogateescape")
        if not flags & tuntap.IFF_TAP:
            posix.close(descriptor)
            raise self._error(NotATap, f"sent the tun device `{shown}', which carries packets and no frames")
        return Tap(descriptor, shown, flags)

    def close(self) -> None:
        """Kill a helper that is still there, reap it, and close all that was opened for it."""
        if self._pid > 0 and not self._has_ended():
            try:
                if self._pidfd >= 0:
                    _signal.pidfd_send_signal(self._pidfd, _signal.SIGKILL)
                else:
                    posix.kill(self._pid, _signal.SIGKILL)
                posix.waitpid(self._pid, 0)
            except (ProcessLookupError, ChildProcessError):
                # Reaped in between by who waits for all children of this process.
                pass
        for channel in self._channels:
            channel.close()
        for descriptor in (self._outputs, self._failure, self._pidfd):
            if descriptor >= 0:
                posix.close(descriptor)

    def _receive(self) -> int:
        """The one descriptor that was sent."""
        (channel,) = self._channels
        try:
            # What has been sent counts, and no more: a process that the helper left behind could send for ever.
            channel.shutdown(SHUT_RD)
            descriptor = fdpass.receive_descriptor(channel)
            if fdpass.discard(channel):
                posix.close(descriptor)
                raise fdpass.TooManySent
        except fdpass.TooManySent:
            raise self._error(SurplusDescriptors, "sent more than one descriptor") from None
        except (fdpass.NothingSent, OSError):
            ended = "ended well" if self._status == 0 else "ended, with a status that another part of this process took"
            raise self._error(NoDescriptor, f"{ended}, but sent no descriptor") from None
        return descriptor

    def _judge_start(self) -> None:
        """HelperNotStarted if the child could not execute the helper."""
        try:
            failure = posix.read(self._failure, 4)
        except BlockingIOError:
            return
        if failure:
            error = OSError(int.from_bytes(failure, sys.byteorder), "execve")
            raise self._error(
                HelperNotStarted, f"cannot be executed: {because(error)}{_EXEC_HINTS.get(error.errno or 0, '')}"
            )

    def _error(self, kind: "type[HelperError]", what: str) -> HelperError:
        """An error about this helper: what it did, and what it said."""
        asked = "" if self._command.names_bridge else f", asked for a tap on `{self._bridge}',"
        said = self._output.decode("utf-8", "backslashreplace").strip()
        message = f"bridge helper `{self._command.text}'{asked} {what}"
        return kind(f"{message}: {said}" if said else message, self._status, said)

    def _wait(self, deadline: float, timeout: float) -> None:
        """Wait for the helper's end and read what it writes meanwhile; HelperTimeout after `deadline`."""
        poller = poll()
        poller.register(self._outputs, POLLIN)
        if self._pidfd >= 0:
            poller.register(self._pidfd, POLLIN)
        while not self._has_ended():
            remaining = deadline - monotonic()
            if remaining <= 0:
                raise self._error(HelperTimeout, f"had not ended after {timeout:g} seconds and was killed")
            if self._pidfd < 0:
                remaining = min(remaining, _LOOK_EVERY)
            ready = [descriptor for descriptor, _events in poller.poll(remaining * 1000)]
            if self._outputs in ready and not self._read_output():
                poller.unregister(self._outputs)
        # Until enough is there: a process that the helper left behind could write for ever.
        while len(self._output) < _MAX_OUTPUT and self._read_output():
            pass

    def _has_ended(self) -> bool:
        """Whether the helper has ended; it is reaped then."""
        if not self._ended:
            try:
                pid, status = posix.waitpid(self._pid, posix.WNOHANG)
                if pid:
                    self._ended = True
                    self._status = posix.waitstatus_to_exitcode(status)
            except ChildProcessError:
                # This process ignores SIGCHLD, for which the kernel reaps its children, or another thread has done it.
                self._ended = True
                self._status = _status_of_reaped(self._pidfd)
        return self._ended

    def _read_output(self) -> bool:
        """Read what there is to read, up to a limit; False where there is nothing, or nothing more to come."""
        try:
            block = posix.read(self._outputs, _MAX_OUTPUT)
        except BlockingIOError:
            return False
        self._output = (self._output + block)[:_MAX_OUTPUT]
        return bool(block)


def _pidfd_of(pid: int) -> int:
    """A descriptor of the process `pid`, -1 where there is none to be had."""
    try:
        return posix.pidfd_open(pid)
    except (AttributeError, OSError):  # the interpreter was built for an older kernel than 5.3, or it runs on one
        return -1


def _status_of_reaped(pidfd: int) -> "int | None":
    """Exit status of the process behind `pidfd`, negative for a signal; None where the kernel does not keep it."""
    info = bytearray(_PIDFD_INFO_SIZE)
    info[0] = _PIDFD_INFO_EXIT
    try:
        ioctl(pidfd, _PIDFD_GET_INFO, info)
    except (OSError, ValueError):  # no such ioctl(2); no pidfd
        return None
    mask, status = unpack_from("=Q", info)[0], unpack_from("=i", info, _PIDFD_INFO_SIZE - 4)[0]
    return posix.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by signal {-status} ({_signal.strsignal(-status)})"
    return f"ended with status {status}"


def _become_helper(
    command: _Command, bridge: str, vnet_hdr: bool, mask: "set[int]", channel: int, outputs: int, failure: int
) -> None:
    """In the child: leave it nothing but the socket and descriptors 0-2, and execute the helper. Does not return."""
    try:
        # Above 2 before anything is laid there: the caller may have started without descriptors 0-2.
        channel, outputs, failure = (fcntl(item, F_DUPFD_CLOEXEC, 3) for item in (channel, outputs, failure))
        posix.dup2(posix.open("/dev/null", posix.O_RDONLY), 0)
        posix.dup2(outputs, 1)
        posix.dup2(outputs, 2)
        close_all_but([channel, failure])
        posix.set_inheritable(channel, True)
        # Python ignores them, and ignored signals stay ignored over exec.
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        posix.execv(command.words[0], command.arguments(bridge, vnet_hdr, channel))
    except OSError as error:
        posix.write(failure, (error.errno or errno.EIO).to_bytes(4, sys.byteorder))
    except ValueError:  # a NUL in an argument
        posix.write(failure, errno.EINVAL.to_bytes(4, sys.byteorder))
    finally:
        posix._exit(1)
