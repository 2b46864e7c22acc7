# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talk rtnetlink(7): a socket, and the messages of which a task may have thousands, on links and on what bridges learn.

Of these only what is asked for is decoded, which is where the time of a task on many links goes. For messages on
anything else there is pyroute2, see kernel.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Union

from .model import Option, Value
from .vlans import Vlans

# <linux/netlink.h>
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
# struct nlmsghdr: length, type, flags, sequence, port
_HEADER = struct.Struct("=IHHII")
_ERRNO = struct.Struct("=i")
# struct rtattr: length, type
_ATTRIBUTE = struct.Struct("=HH")
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

# <linux/rtnetlink.h>
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_GETROUTE = 26
RTM_GETNEIGH = 30
RT_TABLE_MAIN = 254
RTEXT_FILTER_BRVLAN_COMPRESSED = 4
RTEXT_FILTER_SKIP_STATS = 8
# struct ifinfomsg: family, type, index, flags, change
_IFINFOMSG = struct.Struct("=BxHiII")
# <linux/if.h>
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
# <linux/if_arp.h>
ARPHRD_ETHER = 1

# <linux/neighbour.h>
_NDA_LLADDR = 2
_NDA_VLAN = 5
_NDA_MASTER = 9
_NUD_NOARP = 0x40
_NUD_PERMANENT = 0x80
# struct ndmsg: family, index, state, flags, type
_NDMSG = struct.Struct("=BxxxiHBB")
# <bits/socket.h>
AF_BRIDGE = 7

# <linux/if_link.h>
IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_TXQLEN = 13
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_STATS64 = 23
IFLA_AF_SPEC = 26
IFLA_EXT_MASK = 29
IFLA_CARRIER = 33
IFLA_LINK_NETNSID = 37
IFLA_MIN_MTU = 50
IFLA_MAX_MTU = 51
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_KIND = 4
IFLA_INFO_SLAVE_DATA = 5
IFLA_BR_ROOT_ID = 10
IFLA_BR_BRIDGE_ID = 11
IFLA_BRPORT_STATE = 1
IFLA_TUN_PERSIST = 6
IFLA_TUN_NUM_QUEUES = 8
IFLA_TUN_NUM_DISABLED_QUEUES = 9

# The first members of struct rtnl_link_stats64
_COUNTERS = (
    "rx_packets",
    "tx_packets",
    "rx_bytes",
    "tx_bytes",
    "rx_errors",
    "tx_errors",
    "rx_dropped",
    "tx_dropped",
)
_STATISTICS = struct.Struct(f"={len(_COUNTERS)}Q")
# <linux/if_bridge.h>
_IFLA_BRIDGE_FLAGS = 0
_IFLA_BRIDGE_VLAN_INFO = 2
_BRIDGE_FLAGS_SELF = 2
_BRIDGE_VLAN_INFO_PVID = 1 << 1
_BRIDGE_VLAN_INFO_UNTAGGED = 1 << 2
_BRIDGE_VLAN_INFO_RANGE_BEGIN = 1 << 3
_BRIDGE_VLAN_INFO_RANGE_END = 1 << 4
# struct bridge_vlan_info: flags, VLAN
_VLAN_INFO = struct.Struct("=HH")

U8, U16, U32 = struct.Struct("=B"), struct.Struct("=H"), struct.Struct("=I")

# The attributes that options stand for: number, and layout of the value, None for one of its own. <linux/if_link.h>
_OPTIONS: dict[str, tuple[int, struct.Struct | None]] = {
    "IFLA_MTU": (IFLA_MTU, U32),
    "IFLA_ADDRESS": (IFLA_ADDRESS, None),
    "IFLA_IFALIAS": (IFLA_IFALIAS, None),
    "IFLA_TXQLEN": (IFLA_TXQLEN, U32),
    "IFLA_INET6_ADDR_GEN_MODE": (8, U8),
    "IFLA_BR_FORWARD_DELAY": (1, U32),
    "IFLA_BR_HELLO_TIME": (2, U32),
    "IFLA_BR_MAX_AGE": (3, U32),
    "IFLA_BR_AGEING_TIME": (4, U32),
    "IFLA_BR_STP_STATE": (5, U32),
    "IFLA_BR_PRIORITY": (6, U16),
    "IFLA_BR_VLAN_FILTERING": (7, U8),
    "IFLA_BR_GROUP_FWD_MASK": (9, U16),
    "IFLA_BR_MCAST_SNOOPING": (23, U8),
    "IFLA_BR_MCAST_QUERIER": (25, U8),
    "IFLA_BR_VLAN_DEFAULT_PVID": (39, U16),
    "IFLA_BRPORT_PRIORITY": (2, U16),
    "IFLA_BRPORT_COST": (3, U32),
    "IFLA_BRPORT_MODE": (4, U8),
    "IFLA_BRPORT_GUARD": (5, U8),
    "IFLA_BRPORT_PROTECT": (6, U8),
    "IFLA_BRPORT_FAST_LEAVE": (7, U8),
    "IFLA_BRPORT_LEARNING": (8, U8),
    "IFLA_BRPORT_UNICAST_FLOOD": (9, U8),
    "IFLA_BRPORT_MCAST_FLOOD": (27, U8),
    "IFLA_BRPORT_MCAST_TO_UCAST": (28, U8),
    "IFLA_BRPORT_BCAST_FLOOD": (30, U8),
    "IFLA_BRPORT_NEIGH_SUPPRESS": (32, U8),
    "IFLA_BRPORT_ISOLATED": (33, U8),
    "IFLA_BRPORT_LOCKED": (39, U8),
    "IFLA_TUN_OWNER": (1, U32),
    "IFLA_TUN_GROUP": (2, U32),
    "IFLA_TUN_PI": (4, U8),
    "IFLA_TUN_VNET_HDR": (5, U8),
    "IFLA_TUN_MULTI_QUEUE": (7, U8),
}

# A dump part is at most 32 KiB (rtnl_dump_all and netlink_dump in the kernel); an answer on one link less.
_RECEIVE = 1 << 17
# A dump that others' changes interrupt is started again so many times.
_DUMP_TRIES = 20

# The attributes of a message, by their numbers.
Attributes = dict[int, bytes]
Payload = Union[bytes, Iterable[bytes]]


class Refusal(Exception):
    """The kernel's negative answer: errno and its own words."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(number, text)
        self.number = number
        self.text = text


class Rtnetlink:
    """A socket to the kernel's rtnetlink: one request, all of its answers."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0
        # Each is an improvement that the oldest kernels lack: short errors, errors in words, filtered dumps.
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send a request and return the messages that answer it, with their headers; raises Refusal.

        `body` is what follows struct nlmsghdr.
        """
        try:
            for _try in range(_DUMP_TRIES):
                self._sequence += 1
                header = _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0)
                self._socket.send(header + body)
                answers, torn = self._answers()
                if not torn:
                    return answers
        except OSError as error:
            raise Refusal(error.errno or 0) from None
        raise Refusal(errno.EAGAIN, "the links of the host change faster than they can be listed")

    def _answers(self) -> tuple[list[bytes], bool]:
        """The messages up to the end of the answer, and whether changes of others have torn it."""
        answers: list[bytes] = []
        torn = False
        while True:
            data = self._socket.recv(_RECEIVE)
            offset = 0
            while offset < len(data):
                length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
                part = data[offset : offset + length]
                offset += length + 3 & ~3
                if sequence != self._sequence:
                    # The rest of a dump that was given up.
                    continue
                torn = torn or bool(flags & NLM_F_DUMP_INTR)
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    # A dump ends by DONE with an errno as well.
                    number = -_ERRNO.unpack_from(part, _HEADER.size)[0] if len(part) > _HEADER.size else 0
                    if number > 0:
                        raise Refusal(number, _kernel_words(part, flags) if kind == NLMSG_ERROR else "")
                    return answers, torn
                answers.append(part)
                if not flags & NLM_F_MULTI:
                    return answers, torn


def _kernel_words(error: bytes, flags: int) -> str:
    """What the kernel says in an error message, from its extended acknowledgement."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    # struct nlmsgerr: the errno, the header of the request; with NETLINK_CAP_ACK nothing else of it
    told = dict(_attributes(error, _HEADER.size + _ERRNO.size + _HEADER.size))
    return told.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("utf-8", "replace")


def _attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes (struct rtattr) in `data` from `offset` on."""
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        yield kind & _NLA_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3


def nested(payload: bytes | None) -> Attributes:
    """The attributes inside of an attribute; none in one that is not there."""
    return dict(_attributes(payload)) if payload else {}


def attribute(number: int, payload: Payload) -> bytes:
    """An attribute with the bytes `payload`, or with those attributes inside."""
    if not isinstance(payload, bytes):
        payload, number = b"".join(payload), number | _NLA_F_NESTED
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), number) + payload + bytes(-len(payload) % 4)


def option_attribute(option: Option, value: Value) -> bytes:
    """The attribute that gives an option a value."""
    number, layout = _OPTIONS[option.attribute]
    if layout is not None:
        return attribute(number, layout.pack(int(value)))
    text = str(value)
    return attribute(number, bytes.fromhex(text.replace(":", "")) if number == IFLA_ADDRESS else os.fsencode(text))


def option_values(options: Iterable[Option], attributes: Attributes) -> dict[str, Value]:
    """The values of those `options` that are among `attributes`, by the options' names."""
    values: dict[str, Value] = {}
    for option in options:
        number, layout = _OPTIONS[option.attribute]
        payload = attributes.get(number)
        if payload is None:
            continue
        if layout is not None:
            value = layout.unpack_from(payload)[0]
            # A flag can be more than 1: STP run by a daemon is 2.
            values[option.name] = bool(value) if isinstance(option.default, bool) else value
        elif number == IFLA_ADDRESS:
            values[option.name] = payload.hex(":")
        else:
            values[option.name] = text(payload)
    return values


def text(payload: bytes) -> str:
    """A string of the kernel. What is not UTF-8 in it is escaped as file names are."""
    return os.fsdecode(payload.partition(b"\0")[0])


def number(payload: bytes | None) -> int:
    """A u8 or u32 of the kernel, 0 where there is none."""
    if payload is None:
        return 0
    return int(U32.unpack_from(payload)[0]) if len(payload) >= U32.size else payload[0]


def link_request(index: int, *attributes: bytes, family: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """The body of a message on the link `index`, 0 for one that the attributes name, or for all.

    `flags` are IFF_*, of which those in `change` are set.
    """
    return _IFINFOMSG.pack(family, 0, index, flags, change) + b"".join(attributes)


class LinkMessage:
    """What the kernel tells of a link: the header, and the attributes undecoded."""

    __slots__ = ("attributes", "flags", "index", "type")

    def __init__(self, message: bytes) -> None:
        _family, self.type, self.index, self.flags, _change = _IFINFOMSG.unpack_from(message, _HEADER.size)
        self.attributes = dict(_attributes(message, _HEADER.size + _IFINFOMSG.size))

    @property
    def name(self) -> str:
        """The name of the link."""
        return text(self.attributes[IFLA_IFNAME])

    @property
    def master(self) -> int:
        """The index of the link that this one belongs to, 0 for none."""
        return number(self.attributes.get(IFLA_MASTER))


class Neighbour(NamedTuple):
    """An address that a bridge forwards frames to: the indexes of the port and of the bridge, the VLAN (0: none)."""

    mac: str
    port: int
    bridge: int
    vlan: int


def neighbours_request() -> bytes:
    """The body of a message that asks for the forwarding tables of all bridges."""
    return _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0)


def learned(message: bytes) -> Neighbour | None:
    """The entry of a forwarding table that a message tells, if the bridge has learned it from a frame.

    Others are the own addresses of ports, those that an administrator has written, and those that network cards filter
    by: fdb_to_nud() and fdb_fill_info() in net/bridge/br_fdb.c.
    """
    _family, port, state, _flags, _type = _NDMSG.unpack_from(message, _HEADER.size)
    told = dict(_attributes(message, _HEADER.size + _NDMSG.size))
    if state & (_NUD_NOARP | _NUD_PERMANENT) or _NDA_MASTER not in told or _NDA_LLADDR not in told:
        return None
    vlan = U16.unpack_from(told[_NDA_VLAN])[0] if _NDA_VLAN in told else 0
    return Neighbour(told[_NDA_LLADDR].hex(":"), port, number(told[_NDA_MASTER]), vlan)


def statistics(message: LinkMessage) -> dict[str, int]:
    """The counters of a link, which have 64 bits, by the names of struct rtnl_link_stats64 in <linux/if_link.h>."""
    payload = message.attributes.get(IFLA_STATS64, bytes(_STATISTICS.size))
    return dict(zip(_COUNTERS, _STATISTICS.unpack_from(payload)))


def vlan_request(index: int, first: int, last: int, *, own: bool, untagged: bool = False, pvid: bool = False) -> bytes:
    """The body of a message on the VLANs `first` to `last` of a port, or with `own` of a bridge as a port of itself."""
    flags = untagged * _BRIDGE_VLAN_INFO_UNTAGGED | pvid * _BRIDGE_VLAN_INFO_PVID
    ends = [(flags, first)]
    if last > first:
        ends = [(flags | _BRIDGE_VLAN_INFO_RANGE_BEGIN, first), (flags | _BRIDGE_VLAN_INFO_RANGE_END, last)]
    told = [attribute(_IFLA_BRIDGE_VLAN_INFO, _VLAN_INFO.pack(*end)) for end in ends]
    if own:
        # Otherwise it is a message to the bridge of the link, about the link.
        told.insert(0, attribute(_IFLA_BRIDGE_FLAGS, U16.pack(_BRIDGE_FLAGS_SELF)))
    return link_request(index, attribute(IFLA_AF_SPEC, told), family=AF_BRIDGE)


def vlans(message: LinkMessage) -> Vlans | None:
    """The VLANs that a message of the family AF_BRIDGE tells; None if it is not from a bridge.

    It may come from a network card, about a switch of its own.
    """
    told = list(_attributes(message.attributes.get(IFLA_AF_SPEC, b"")))
    if any(kind == _IFLA_BRIDGE_FLAGS for kind, _payload in told):
        return None
    pvid, first = 0, 0
    tagged: set[int] = set()
    untagged: set[int] = set()
    for kind, payload in told:
        if kind != _IFLA_BRIDGE_VLAN_INFO:
            continue
        flags, vlan = _VLAN_INFO.unpack_from(payload)
        if flags & _BRIDGE_VLAN_INFO_PVID:
            pvid = vlan
        if not flags & _BRIDGE_VLAN_INFO_RANGE_END:
            first = vlan
        (untagged if flags & _BRIDGE_VLAN_INFO_UNTAGGED else tagged).update(range(first, vlan + 1))
    return Vlans(pvid, frozenset(untagged), frozenset(tagged))
