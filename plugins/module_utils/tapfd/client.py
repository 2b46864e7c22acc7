# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a bridge helper as QEMU does, and take the tap that it hands over.

QEMU's own taking trusts the helper: it uses whatever number lies in its buffer. Here everything is checked that the
kernel lets a receiver check, there is a time limit, and no descriptor and no child is left on any path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import sys
import time
from typing import BinaryIO, NoReturn

from . import fdpass, tuntap
from .errors import because

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


class HelperError(Exception):
    """No tap was taken; the message says why in one sentence.

    `status` is the helper's exit status, negative for the signal that ended it, None where it was never known; `stderr`
    is what the helper wrote.
    """

    def __init__(self, message: str, status: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.stderr = stderr


class HelperNotStarted(HelperError):
    """The helper could not be executed."""


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
            os.close(descriptor)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def run_helper(helper: str, bridge: str, *, vnet_hdr: bool = True, timeout: float = 10.0) -> Tap:
    """Ask the program `helper` (a path) for a tap on `bridge`, and wait at most `timeout` seconds until it has ended.

    The helper is called as QEMU calls it, `--use-vnet --fd=N --br=BRIDGE`. It inherits the socket N, /dev/null as input
    and a pipe, read here, as its outputs. `vnet_hdr` asks for IFF_VNET_HDR, which it gives where the kernel has it.
    Raises HelperError, in one of its precise forms.
    """
    with contextlib.ExitStack() as resources:
        try:
            child = _Child(resources, helper, bridge, vnet_hdr)
        except OSError as error:
            raise HelperNotStarted(f"cannot start bridge helper `{helper}': {because(error)}") from error
        descriptor = child.take(timeout)
        try:
            name, flags = tuntap.query(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise child.error(NotATap, f"sent a descriptor that is no tap (TUNGETIFF: {because(error)})") from error
        if not flags & tuntap.IFF_TAP:
            os.close(descriptor)
            raise child.error(
                NotATap, f"sent the tun device `{os.fsdecode(name)}', which carries packets and no frames"
            )
        return Tap(descriptor, os.fsdecode(name), flags)


class _Child:
    """A started helper; what it holds of this process is given back when `resources` close."""

    def __init__(self, resources: contextlib.ExitStack, helper: str, bridge: str, vnet_hdr: bool) -> None:
        self._what = f"bridge helper `{helper}', asked for a tap on `{bridge}',"
        self._status: int | None = None
        self._output = b""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        resources.enter_context(self._channel)
        self._channel.setblocking(False)
        with theirs:
            self._outputs, outputs = _pipe(resources)
            self._failure, failure = _pipe(resources)
            # Ours would keep the pipes open after the helper's end.
            with outputs, failure:
                os.set_blocking(self._outputs, False)
                self._pid = os.fork()
                if self._pid == 0:
                    _become_helper(helper, bridge, vnet_hdr, theirs.fileno(), outputs.fileno(), failure.fileno())
        resources.callback(self._kill)
        self._pidfd = -1
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(self._pid)
            resources.callback(os.close, self._pidfd)

    def take(self, timeout: float) -> int:
        """The one descriptor that the helper has sent when it ends well; HelperError for everything else."""
        self._wait(timeout)
        failure = os.read(self._failure, 4)
        if failure:
            error = OSError(int.from_bytes(failure, sys.byteorder), "execve")
            raise self.error(
                HelperNotStarted, f"cannot be executed: {because(error)}{_EXEC_HINTS.get(error.errno or 0, '')}"
            )
        # A descriptor lies in the socket since before the helper ended, and goes with it if it is not taken.
        if self._status != 0:
            raise self.error(HelperFailed, self._ending())
        try:
            return fdpass.receive_descriptor(self._channel)
        except fdpass.TooManySent:
            raise self.error(SurplusDescriptors, "sent more than one descriptor") from None
        except (fdpass.NothingSent, OSError):
            raise self.error(NoDescriptor, "ended well, but sent no descriptor") from None

    def error(self, kind: type[HelperError], what: str) -> HelperError:
        """An error about this helper: what it did, and what it said."""
        said = self._output.decode("utf-8", "backslashreplace").strip()
        message = f"{self._what} {what}"
        return kind(f"{message}: {said}" if said else message, self._status, said)

    def _ending(self) -> str:
        status = self._status or 0
        return (
            f"was ended by signal {-status} ({signal.strsignal(-status)})"
            if status < 0
            else f"ended with status {status}"
        )

    def _wait(self, timeout: float) -> None:
        """Wait for the helper's end and read what it writes meanwhile; HelperTimeout after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._outputs, select.POLLIN)
        if self._pidfd >= 0:
            poller.register(self._pidfd, select.POLLIN)
        while not self._ended():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self.error(HelperTimeout, f"had not ended after {timeout:g} seconds and was killed")
            if self._pidfd < 0:
                remaining = min(remaining, _LOOK_EVERY)
            ready = [descriptor for descriptor, _events in poller.poll(remaining * 1000)]
            if self._outputs in ready and not self._read_outputs():
                poller.unregister(self._outputs)
        self._read_outputs()

    def _ended(self) -> bool:
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def _read_outputs(self) -> bool:
        """Read all that is there to read; False at the end of file."""
        try:
            while True:
                block = os.read(self._outputs, _MAX_OUTPUT)
                if not block:
                    return False
                self._output = (self._output + block)[:_MAX_OUTPUT]
        except BlockingIOError:
            return True

    def _kill(self) -> None:
        """End a helper that is still there, and reap it."""
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _pipe(resources: contextlib.ExitStack) -> tuple[int, BinaryIO]:
    """A pipe: the descriptor to read from, closed with `resources`, and the end to write to, the caller's to close."""
    read, write = os.pipe()
    resources.callback(os.close, read)
    return read, open(write, "wb", buffering=0)


def _become_helper(helper: str, bridge: str, vnet_hdr: bool, channel: int, outputs: int, failure: int) -> NoReturn:
    """In the child: leave it nothing but the socket and descriptors 0-2, and execute the helper."""
    try:
        # Above 2 before anything is laid there: the caller may have started without descriptors 0-2.
        channel, outputs, failure = (
            fcntl.fcntl(item, fcntl.F_DUPFD_CLOEXEC, 3) for item in (channel, outputs, failure)
        )
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(outputs, 1)
        os.dup2(outputs, 2)
        for entry in os.listdir("/proc/self/fd"):
            if int(entry) > 2 and int(entry) not in (channel, failure):
                with contextlib.suppress(OSError):
                    os.close(int(entry))
        os.set_inheritable(channel, True)
        # Python ignores it, and ignored signals stay ignored over exec.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execv(helper, [helper, *(["--use-vnet"] if vnet_hdr else []), f"--fd={channel}", f"--br={bridge}"])
    except OSError as error:
        os.write(failure, (error.errno or errno.EIO).to_bytes(4, sys.byteorder))
    except ValueError:  # a NUL in an argument
        os.write(failure, errno.EINVAL.to_bytes(4, sys.byteorder))
    finally:
        os._exit(1)
