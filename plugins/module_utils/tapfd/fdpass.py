# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send and receive one descriptor over a unix socket (SCM_RIGHTS, unix(7))."""

import errno
import posix
from _socket import (
    AF_UNIX,
    CMSG_LEN,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SO_DOMAIN,
    SOL_SOCKET,
    socket,
)
from _struct import calcsize, pack, unpack
from select import POLLERR, POLLHUP, POLLOUT, poll

_INT = calcsize("i")


class NothingSent(Exception):
    """The peer closed the socket, or sent data, without a descriptor."""


class TooManySent(Exception):
    """The peer sent more than one descriptor, or ancillary data of another kind; all of it is closed."""


def unix_socket(descriptor: int) -> socket:
    """`descriptor` as a connected unix socket whose peer is still there.

    The caller's descriptor stays open: `detach` the result when done. OSError: EBADF, ENOTSOCK, ENOTCONN as the kernel
    says, EAFNOSUPPORT for a socket of another family, EPIPE where the peer has hung up.
    """
    candidate = socket(fileno=descriptor)
    try:
        if candidate.getsockopt(SOL_SOCKET, SO_DOMAIN) != AF_UNIX:
            raise OSError(errno.EAFNOSUPPORT, "not a unix socket")
        candidate.getpeername()
        if _events(descriptor, 0, 0) & (POLLHUP | POLLERR):
            raise OSError(errno.EPIPE, "the peer has hung up")
    except BaseException:
        candidate.detach()
        raise
    return candidate


def send_descriptor(channel: socket, descriptor: int, timeout: float) -> None:
    """Send one zero byte and `descriptor`, waiting at most `timeout` seconds for room in the peer's queue.

    The zero byte is there because ancillary data travels only with data; it is the byte that QEMU's helper sends.
    OSError: EPIPE or ECONNREFUSED where the peer is gone, ETIMEDOUT where it does not read.
    """
    # Not setblocking or settimeout: O_NONBLOCK belongs to the open file that the caller may share with others.
    if not _events(channel.fileno(), POLLOUT, timeout) & (POLLOUT | POLLHUP | POLLERR):
        raise OSError(errno.ETIMEDOUT, "the peer does not read")
    channel.sendmsg([b"\0"], [(SOL_SOCKET, SCM_RIGHTS, pack("i", descriptor))], MSG_NOSIGNAL | MSG_DONTWAIT)


def receive_descriptor(channel: socket) -> int:
    """Receive one byte and the one descriptor that came with it, close-on-exec.

    Raises NothingSent or TooManySent; on both, and on every OSError, no received descriptor stays open.
    """
    received, complete, length = _receive(channel, 1)
    if len(received) == 1 and length and complete:
        return received[0]
    for surplus in received:
        posix.close(surplus)
    if received or not complete:
        raise TooManySent
    raise NothingSent


def discard(channel: socket) -> bool:
    """Receive all that `channel` still holds, keep nothing of it, and return whether a descriptor was in it.

    For a socket that does not block, and that is shut down for reading: else a busy peer could hold us here.
    """
    found = False
    length = 1
    try:
        while length:
            received, complete, length = _receive(channel, 65536)
            for surplus in received:
                posix.close(surplus)
            found = found or bool(received) or not complete
    except BlockingIOError:
        pass
    return found


def _receive(channel: socket, size: int) -> "tuple[list[int], bool, int]":
    """Receive up to `size` bytes and the descriptors with them, close-on-exec.

    Returns the descriptors, whether they are all that came besides the bytes, and how many bytes came.
    """
    # CMSG_LEN and not CMSG_SPACE: the padding of CMSG_SPACE would take a second descriptor in without a word.
    data, ancillary, flags, _address = channel.recvmsg(size, CMSG_LEN(_INT), MSG_CMSG_CLOEXEC)
    received: list[int] = []
    complete = not flags & MSG_CTRUNC
    for level, kind, payload in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            whole = payload[: len(payload) - len(payload) % _INT]
            received.extend(unpack(f"{len(whole) // _INT}i", whole))
        else:
            complete = False
    return received, complete, len(data)


def _events(descriptor: int, wanted: int, timeout: float) -> int:
    """What poll(2) reports of `descriptor` within `timeout` seconds; 0 for nothing."""
    poller = poll()
    poller.register(descriptor, wanted)
    found = poller.poll(timeout * 1000)
    return found[0][1] if found else 0
