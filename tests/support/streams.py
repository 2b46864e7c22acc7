# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steady streams of packets, of which each single one is accounted for."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time

# Seconds between two packets. A bridge or a tap that carries nothing for as long loses one.
INTERVAL = 0.005
# So many may be on their way before the stream slows down: a guest that gets no processor time must not lose some
# because the queue of its tap, 1000 packets, is full.
WINDOW = 100
SLOW = 0.2
# So many later ones that arrive prove that one that did not is lost.
LATER = 20
# Seconds to wait for those.
PATIENCE = 120.0

# RFC 792
_ECHO_REPLY, _ECHO_REQUEST = 0, 8
_HEADER = struct.Struct("!BBHHH")
_NUMBER = struct.Struct("!I")
# Of IEEE 802 for local experiments
_ETHERTYPE = b"\x88\xb5"
# An Ethernet frame without its checksum
_MIN_FRAME = 60


class Stream:
    """Numbered packets, sent and received by a thread of their own until `close`."""

    def __init__(self, name: str, source: int) -> None:
        self._name = name
        self._source = source
        self._sent = 0
        self._arrived: set[int] = set()
        self._settled = 0
        self._change = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the stream."""
        self._closing.set()
        self._thread.join()

    def send_more(self, count: int) -> None:
        """Wait until so many more packets were sent."""
        with self._change:
            end = self._sent + count
            if not self._change.wait_for(lambda: self._sent >= end, PATIENCE):
                raise TimeoutError(f"{self._name}: no more packets are sent")

    def lost(self) -> list[int]:
        """The numbers of the packets, of those sent since the last call, that never arrived.

        Waits until later ones have: neither a bridge nor a tap lets packets overtake each other. Raises TimeoutError if
        those don't come.
        """
        with self._change:
            end = self._sent

            def decided() -> bool:
                return sum(number >= end for number in self._arrived) >= LATER

            if not self._change.wait_for(decided, PATIENCE):
                raise TimeoutError(f"{self._name}: nothing arrives any more; the last packet was {self._newest}")
            lost = [number for number in range(self._settled, end) if number not in self._arrived]
            self._settled = end
            self._arrived = {number for number in self._arrived if number >= end}
            return lost

    def _send(self, number: int) -> None:
        raise NotImplementedError

    def _receive(self) -> int | None:
        """The number of the packet that has arrived; None for one of somebody else."""
        raise NotImplementedError

    @property
    def _newest(self) -> int:
        return max(self._arrived, default=self._settled - 1)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._closing.is_set():
            wait = due - time.monotonic()
            if wait > 0:
                if select.select([self._source], [], [], wait)[0]:
                    number = self._receive()
                    if number is not None:
                        with self._change:
                            self._arrived.add(number)
                            self._change.notify_all()
                continue
            due = time.monotonic() + (INTERVAL if self._sent - self._newest <= WINDOW else SLOW)
            # Where there is no way at this moment, it is one that will not arrive.
            with contextlib.suppress(OSError):
                self._send(self._sent)
            with self._change:
                self._sent += 1
                self._change.notify_all()


class Pings(Stream):
    """Pings from the network namespace of this moment to `target`; what arrives are the answers."""

    def __init__(self, target: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)
        self._socket.connect((target, 0))
        self._identifier = struct.unpack("!H", os.urandom(2))[0]
        super().__init__(f"pings to {target}", self._socket.fileno())

    def close(self) -> None:
        super().close()
        self._socket.close()

    def _send(self, number: int) -> None:
        # The number stands in the payload as well, since the field for it has 16 bits only.
        fields, payload = (self._identifier, number & 0xFFFF), _NUMBER.pack(number)
        checksum = _checksum(_HEADER.pack(_ECHO_REQUEST, 0, 0, *fields) + payload)
        self._socket.send(_HEADER.pack(_ECHO_REQUEST, 0, checksum, *fields) + payload)

    def _receive(self) -> int | None:
        packet = self._socket.recv(2048)
        # ip(7): of a raw socket they come with their header, whose length is in the low half of the first byte.
        icmp = packet[(packet[0] & 0x0F) * 4 :]
        kind, _code, _sum, identifier, _sequence = _HEADER.unpack_from(icmp)
        if kind != _ECHO_REPLY or identifier != self._identifier:
            return None
        return int(_NUMBER.unpack_from(icmp, _HEADER.size)[0])


class Frames(Stream):
    """Frames from one guest to another, each of which is the descriptor of a tap without headers and a MAC address."""

    def __init__(self, sender: tuple[int, bytes], receiver: tuple[int, bytes]) -> None:
        self._out, (source, address) = sender[0], receiver
        self._head = address + sender[1] + _ETHERTYPE
        super().__init__(f"frames from {sender[1].hex(':')} to {address.hex(':')}", source)

    def _send(self, number: int) -> None:
        os.write(self._out, (self._head + _NUMBER.pack(number)).ljust(_MIN_FRAME, b"\0"))

    def _receive(self) -> int | None:
        frame = os.read(self._source, 2048)
        if not frame.startswith(self._head):
            return None
        return int(_NUMBER.unpack_from(frame, len(self._head))[0])


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
