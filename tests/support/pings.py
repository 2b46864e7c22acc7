# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A steady stream of pings, of which each single one is accounted for."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time

# Seconds between two pings. A bridge or a tap that carries nothing for as long loses one.
INTERVAL = 0.005
# So many may be on their way before the stream slows down: a guest that gets no processor time must not lose some
# because the queue of its tap, 1000 packets, is full.
WINDOW = 100
SLOW = 0.2
# So many later answers prove that one that did not come is lost.
LATER = 20
# Seconds to wait for those.
PATIENCE = 120.0

# RFC 792
_ECHO_REPLY, _ECHO_REQUEST = 0, 8
_HEADER = struct.Struct("!BBHHH")
# Beside the sequence number of ICMP, which has 16 bits only.
_NUMBER = struct.Struct("!I")


class Pings:
    """Pings from the network namespace of this moment to `target`, in a thread of their own until `close`."""

    def __init__(self, target: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)
        self._socket.connect((target, 0))
        self._identifier = struct.unpack("!H", os.urandom(2))[0]
        self._target = target
        self._sent = 0
        self._answered: set[int] = set()
        self._change = threading.Condition()
        self._closing = threading.Event()
        self._settled = 0
        self._thread = threading.Thread(target=self._run, name=f"pings to {target}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the stream."""
        self._closing.set()
        self._thread.join()
        self._socket.close()

    def send_more(self, count: int) -> None:
        """Wait until so many more pings were sent."""
        with self._change:
            end = self._sent + count
            if not self._change.wait_for(lambda: self._sent >= end, PATIENCE):
                raise TimeoutError(f"no more pings are sent to {self._target}")

    def lost(self) -> list[int]:
        """The numbers of the pings, of those sent since the last call, that were never answered.

        Waits until the answers to later ones are there: neither a bridge nor a tap lets packets overtake each other.
        Raises TimeoutError if those don't come.
        """
        with self._change:
            end = self._sent

            def decided() -> bool:
                return sum(number >= end for number in self._answered) >= LATER

            if not self._change.wait_for(decided, PATIENCE):
                raise TimeoutError(f"{self._target} answers no more; the last answer was that to ping {self._newest}")
            lost = [number for number in range(self._settled, end) if number not in self._answered]
            self._settled = end
            self._answered = {number for number in self._answered if number >= end}
            return lost

    @property
    def _newest(self) -> int:
        return max(self._answered, default=self._settled - 1)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._closing.is_set():
            wait = due - time.monotonic()
            if wait > 0 and select.select([self._socket], [], [], wait)[0]:
                self._receive()
                continue
            if wait <= 0:
                due = time.monotonic() + (INTERVAL if self._sent - self._newest <= WINDOW else SLOW)
                self._send()

    def _send(self) -> None:
        payload = _NUMBER.pack(self._sent)
        header = _HEADER.pack(_ECHO_REQUEST, 0, 0, self._identifier, self._sent & 0xFFFF)
        checksum = _checksum(header + payload)
        # Where there is no route at this moment, it is one that will not be answered.
        with contextlib.suppress(OSError):
            self._socket.send(_HEADER.pack(_ECHO_REQUEST, 0, checksum, self._identifier, self._sent & 0xFFFF) + payload)
        with self._change:
            self._sent += 1
            self._change.notify_all()

    def _receive(self) -> None:
        packet = self._socket.recv(2048)
        # ip(7): of a raw socket they come with their header, whose length is in the low half of the first byte.
        icmp = packet[(packet[0] & 0x0F) * 4 :]
        kind, _code, _sum, identifier, _sequence = _HEADER.unpack_from(icmp)
        if kind == _ECHO_REPLY and identifier == self._identifier:
            with self._change:
                self._answered.add(_NUMBER.unpack_from(icmp, _HEADER.size)[0])
                self._change.notify_all()


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
