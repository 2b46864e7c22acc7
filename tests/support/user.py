# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An unprivileged user who starts bridge helpers: a process that has given up root, and how it takes a tap."""

from __future__ import annotations

import array
import contextlib
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, TypeVar

Result = TypeVar("Result")

# Seconds after which a helper that neither sends nor ends has failed the test.
PATIENCE = 60.0
# The number of the socket in the helper.
CHANNEL = 3


class User:
    """A child of this process with this user, these groups and no capability, in the namespaces of this moment."""

    def __init__(self, uid: int, groups: Sequence[int] = ()) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._child = os.fork()
        if self._child:
            theirs.close()
            return
        try:
            self._connection.close()
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            while (request := theirs.recv()) is not None:
                function, arguments = request
                try:
                    answer = True, function(*arguments)
                except Exception:
                    answer = False, traceback.format_exc()
                theirs.send(answer)
            os._exit(0)
        except BaseException:
            # Never back into the code of the parent, whose copy this process is.
            traceback.print_exc()
            os._exit(1)

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function as the user and return its result; it and the arguments must be picklable."""
        self._connection.send((function, arguments))
        fine, result = self._connection.recv()
        if not fine:
            raise AssertionError(f"in the process of the unprivileged user:\n{result}")
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process, and with it every tap that it took."""
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(None)
        self._connection.close()
        os.waitpid(self._child, 0)


class HandOver(NamedTuple):
    """What came of one start of a bridge helper."""

    status: int
    """Exit status, negative for the signal that ended it."""
    tap: int | None
    """The first descriptor that arrived."""
    surplus: int
    """How many more arrived; they are closed."""
    stderr: bytes
    seconds: float
    """From just before the start until the descriptor had arrived and the helper was reaped."""
    processor: float
    """Seconds of processor time that the helper took, its own and the kernel's for it."""


def arguments(bridge: bytes) -> list[bytes]:
    """The arguments of QEMU, with the socket at `CHANNEL`."""
    return [b"--use-vnet", b"--fd=%d" % CHANNEL, b"--br=" + bridge]


def start(command: Sequence[str | os.PathLike[str] | bytes], channel: socket.socket, stderr: int) -> int:
    """Start a program with an empty environment and `channel` as its descriptor `CHANNEL`; return its pid.

    posix_spawn: the child shares our memory until it executes, so the start costs the same however large we are.
    """
    actions = [
        (os.POSIX_SPAWN_DUP2, channel.fileno(), CHANNEL),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    ]
    return os.posix_spawn(command[0], list(command), {}, file_actions=actions)


def receive(channel: socket.socket) -> tuple[int | None, int]:
    """Wait for the answer of a helper: its descriptor, if any, and how many more it sent."""
    channel.settimeout(PATIENCE)
    received = array.array("i")
    size = 8 * received.itemsize
    _data, ancillary, _flags, _address = channel.recvmsg(1, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(payload)
    for surplus in received[1:]:
        os.close(surplus)
    return (received[0] if received else None), max(len(received) - 1, 0)


def take_tap(helper: str | os.PathLike[str], bridge: bytes) -> HandOver:
    """Start a bridge helper as QEMU does and take what it hands over; the caller closes the tap."""
    ours, theirs = socket.socketpair()
    stderr = os.memfd_create("stderr")
    with ours:
        began = time.perf_counter()
        child = start([helper, *arguments(bridge)], theirs, stderr)
        theirs.close()
        tap, surplus = receive(ours)
        _pid, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - began
    # Not the position of the descriptor: the helper shares it.
    text = os.pread(stderr, 1 << 20, 0)
    os.close(stderr)
    processor = usage.ru_utime + usage.ru_stime
    return HandOver(os.waitstatus_to_exitcode(status), tap, surplus, text, seconds, processor)
