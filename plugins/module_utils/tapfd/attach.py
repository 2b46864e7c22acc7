# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a tap on a bridge: MAC address, MTU, master, up; over rtnetlink(7)."""

import errno
import posix
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, socket
from _struct import calcsize, pack, unpack_from
from fcntl import ioctl

from . import tuntap

# <linux/netlink.h>
NETLINK_ROUTE = 0
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR = 2
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
# <linux/rtnetlink.h>
RTM_NEWLINK = 16
RTM_GETLINK = 18
RTM_SETLINK = 19
RTEXT_FILTER_SKIP_STATS = 8
# <linux/if_link.h>
IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_AF_SPEC = 26
IFLA_EXT_MASK = 29
IFLA_INFO_KIND = 1
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1
# <linux/socket.h>, <linux/if.h>, <linux/sockios.h>
AF_INET6 = 10
IFF_UP = 1
SIOCGIFINDEX = 0x8933

_HEADER = "=IHHII"  # struct nlmsghdr
_LINK = "=BxHiII"  # struct ifinfomsg
_HEADER_SIZE = calcsize(_HEADER)
_LINK_SIZE = calcsize(_LINK)
# Room for one answer about one link; the kernel's own buffers end at 32 KiB.
_ANSWER_SIZE = 32768


class Link:
    """What the kernel reports of one network interface (RTM_NEWLINK)."""

    def __init__(self, message: bytes) -> None:
        _family, _type, self.index, flags, _change = unpack_from(_LINK, message)
        attributes = _attributes(message, _LINK_SIZE)
        self.name = attributes.get(IFLA_IFNAME, b"").rstrip(b"\0")
        self.address = attributes.get(IFLA_ADDRESS, b"")
        self.mtu = _number(attributes.get(IFLA_MTU))
        self.master = _number(attributes.get(IFLA_MASTER))
        """Index of the bridge (or other master) that the interface is a port of, 0 for none."""
        self.up = bool(flags & IFF_UP)
        info = _attributes(attributes.get(IFLA_LINKINFO, b""), 0)
        self.kind = info[IFLA_INFO_KIND].rstrip(b"\0") if IFLA_INFO_KIND in info else None


class Rtnetlink:
    """A socket to the kernel's rtnetlink, for one request and one answer at a time."""

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)
        # The kernel's own sentence about an error, and not a copy of our request.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def link(self, name: bytes = b"", index: int = 0) -> Link:
        """The interface of this name or index; OSError ENODEV where there is none.

        The kernel looks a name up among alternative names too: compare `Link.name` where that matters.
        """
        wanted = _attribute(IFLA_IFNAME, name + b"\0") if name else b""
        request = pack(_LINK, 0, 0, index, 0, 0) + _attribute(IFLA_EXT_MASK, pack("=I", RTEXT_FILTER_SKIP_STATS))
        return Link(self._ask(RTM_GETLINK, 0, request + wanted))

    def index_of(self, tap: int) -> int:
        """The index of the device behind the descriptor `tap`."""
        while True:
            name, _flags = tuntap.query(tap)
            request = bytearray(name.ljust(tuntap.IFREQ_SIZE, b"\0"))
            ioctl(self._socket.fileno(), SIOCGIFINDEX, request)
            # Whoever renames devices may have come between; then the index was another device's.
            if tuntap.query(tap)[0] == name:
                (index,) = unpack_from("=i", request, tuntap.IFNAMSIZ)
                return int(index)

    def prepare(self, index: int, address: bytes, mtu: int) -> None:
        """Set the MAC address and MTU of a tap, and keep the host from giving it an IPv6 address."""
        values = _attribute(IFLA_ADDRESS, address) + _attribute(IFLA_MTU, pack("=I", mtu))
        mode = _attribute(IFLA_INET6_ADDR_GEN_MODE, pack("=B", IN6_ADDR_GEN_MODE_NONE))
        quiet = _attribute(IFLA_AF_SPEC | NLA_F_NESTED, _attribute(AF_INET6 | NLA_F_NESTED, mode))
        request = pack(_LINK, 0, 0, index, 0, 0) + values
        try:
            self._ask(RTM_SETLINK, NLM_F_ACK, request + quiet)
        except OSError as error:
            # The kernel has no IPv6, or not on this device: then it gives no address either.
            if error.errno != errno.EAFNOSUPPORT:
                raise
            self._ask(RTM_SETLINK, NLM_F_ACK, request)

    def enslave(self, index: int, bridge: int) -> None:
        """Make the interface a port of the bridge with index `bridge`, and set it up.

        OSError: EXFULL where the bridge has all its 1023 ports, EOPNOTSUPP or EINVAL where it takes none.
        """
        request = pack(_LINK, 0, 0, index, IFF_UP, IFF_UP) + _attribute(IFLA_MASTER, pack("=I", bridge))
        self._ask(RTM_SETLINK, NLM_F_ACK, request)

    def _ask(self, kind: int, flags: int, body: bytes) -> bytes:
        """Send one request and return the body of its answer, empty for an acknowledgement."""
        self._sequence += 1
        length = _HEADER_SIZE + len(body)
        self._socket.sendto(pack(_HEADER, length, kind, NLM_F_REQUEST | flags, self._sequence, 0) + body, (0, 0))
        while True:
            answer, (sender, _groups) = self._socket.recvfrom(_ANSWER_SIZE)
            length, kind, flags, sequence, _port = unpack_from(_HEADER, answer)
            # Only the kernel is port 0.
            if sender != 0 or sequence != self._sequence:
                continue
            if kind != NLMSG_ERROR:
                return answer[_HEADER_SIZE:length]
            (code,) = unpack_from("=i", answer, _HEADER_SIZE)
            if code == 0:
                return b""
            raise OSError(-code, _kernel_text(answer[:length], flags) or posix.strerror(-code))


def get_link(name: bytes) -> Link:
    """The interface of this name (or alternative name); OSError ENODEV where there is none."""
    rtnetlink = Rtnetlink()
    try:
        return rtnetlink.link(name)
    finally:
        rtnetlink.close()


def _kernel_text(answer: bytes, flags: int) -> str:
    """The kernel's own sentence in an error (NETLINK_EXT_ACK), or an empty string."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    # An int, the header of our request, and where it was not cut off (NLM_F_CAPPED) also its body.
    start = _HEADER_SIZE + 4 + _HEADER_SIZE
    if not flags & NLM_F_CAPPED:
        (request,) = unpack_from("=I", answer, _HEADER_SIZE + 4)
        start += request - _HEADER_SIZE
    return _attributes(answer, start).get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("ascii", "replace")


def _attribute(kind: int, payload: bytes) -> bytes:
    """One struct nlattr with its payload, padded to four bytes."""
    length = 4 + len(payload)
    return pack("=HH", length, kind) + payload + bytes(-length % 4)


def _attributes(data: bytes, start: int) -> dict[int, bytes]:
    """The netlink attributes in `data` from `start` on, by type."""
    found = {}
    while start + 4 <= len(data):
        length, kind = unpack_from("=HH", data, start)
        if length < 4:
            break
        found[kind & NLA_TYPE_MASK] = data[start + 4 : start + length]
        start += length + (-length % 4)
    return found


def _number(payload: "bytes | None") -> int:
    return int(unpack_from("=I", payload)[0]) if payload else 0
