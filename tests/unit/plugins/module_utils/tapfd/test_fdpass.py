# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One descriptor over a unix socket: what is taken, what is refused, and that nothing stays open."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
from collections.abc import Iterator

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import fdpass


def open_descriptors() -> list[str]:
    """What this process holds open."""
    return sorted(os.listdir("/proc/self/fd"), key=int)


@pytest.fixture(params=[socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected unix sockets, of each type there is."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, request.param)
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def send(channel: socket.socket, descriptors: list[int], data: bytes = b"\0") -> None:
    """Send these descriptors in one message."""
    rights = struct.pack(f"{len(descriptors)}i", *descriptors)
    channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])


def test_there_and_back(pair: Pair) -> None:
    """One zero byte and one descriptor of the same open file arrive, close-on-exec."""
    ours, theirs = pair
    read, write = os.pipe()
    channel = fdpass.unix_socket(theirs.fileno())
    fdpass.send_descriptor(channel, write, 1.0)
    assert ours.recv(1, socket.MSG_PEEK) == b"\0"
    received = fdpass.receive_descriptor(ours)
    assert not os.get_inheritable(received)
    os.write(received, b"x")
    assert os.read(read, 2) == b"x"
    for descriptor in (read, write, received):
        os.close(descriptor)
    channel.detach()


@pytest.mark.parametrize("count", [2, 3, 20])
def test_surplus_is_refused_and_closed(pair: Pair, count: int) -> None:
    """Two fit into CMSG_SPACE of one, which is why the room is CMSG_LEN of one."""
    ours, theirs = pair
    before = open_descriptors()
    send(theirs, [0] * count)
    with pytest.raises(fdpass.TooManySent):
        fdpass.receive_descriptor(ours)
    assert open_descriptors() == before


def test_byte_without_descriptor(pair: Pair) -> None:
    ours, theirs = pair
    send(theirs, [])
    with pytest.raises(fdpass.NothingSent):
        fdpass.receive_descriptor(ours)


def test_closed_without_a_word() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(fdpass.NothingSent):
        fdpass.receive_descriptor(ours)


def test_credentials_are_no_descriptor() -> None:
    """Ancillary data of another kind (SCM_CREDENTIALS, asked for by the receiver's own option)."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        send(theirs, [])
        with pytest.raises(fdpass.TooManySent):
            fdpass.receive_descriptor(ours)


def test_no_room_for_another_descriptor(pair: Pair) -> None:
    """At the receiver's limit of open files the kernel drops the descriptor and says so (MSG_CTRUNC)."""
    ours, theirs = pair
    send(theirs, [0])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(fdpass.TooManySent):
            fdpass.receive_descriptor(ours)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refused(descriptor: int) -> int | None:
    """The errno by which `descriptor` is refused as a channel."""
    with pytest.raises(OSError) as caught:
        fdpass.unix_socket(descriptor)
    return caught.value.errno


def test_what_is_no_channel() -> None:
    """Each refused by its errno, and left open: it is the caller's."""
    read, write = os.pipe()
    assert refused(read) == errno.ENOTSOCK
    os.close(write)
    os.close(read)
    assert refused(read) == errno.EBADF
    with socket.socket(socket.AF_UNIX) as unconnected:
        assert refused(unconnected.fileno()) == errno.ENOTCONN
        unconnected.bind("\0hostnet-qemu-test")
        unconnected.listen()
        assert refused(unconnected.fileno()) == errno.ENOTCONN
        assert os.fstat(unconnected.fileno())


def test_tcp_is_no_channel(sandbox: object) -> None:
    """QEMU's helper sends over TCP, exits 0, and no descriptor arrives."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
    ):
        assert refused(connection.fileno()) == errno.EAFNOSUPPORT


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_peer_that_hung_up(kind: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.close()
    with theirs:
        assert refused(theirs.fileno()) == errno.EPIPE


def test_peer_gone_before_the_send(pair: Pair) -> None:
    ours, theirs = pair
    channel = fdpass.unix_socket(theirs.fileno())
    ours.close()
    with pytest.raises(OSError) as caught:
        fdpass.send_descriptor(channel, 0, 1.0)
    assert caught.value.errno in (errno.EPIPE, errno.ECONNREFUSED)
    channel.detach()


def test_peer_that_does_not_read(pair: Pair) -> None:
    """A full queue ends in an error, not in waiting for ever; the open file's flags stay the caller's."""
    _ours, theirs = pair
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            theirs.send(b"x" * 4096)
    theirs.setblocking(True)
    channel = fdpass.unix_socket(theirs.fileno())
    with pytest.raises(OSError) as caught:
        fdpass.send_descriptor(channel, 0, 0.05)
    assert caught.value.errno in (errno.ETIMEDOUT, errno.EAGAIN)
    assert os.get_blocking(theirs.fileno())
    channel.detach()
