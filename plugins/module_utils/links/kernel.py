# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the links of a network namespace and carry out operations on them. The one file that imports pyroute2.

Of pyroute2 it takes the codec of rtnetlink messages, which is the same from 0.5.14 to 0.9.7, and not the socket, which
is not: 0.5.14 sends deletions with a flag that newer kernels take for "in bulk" and refuse, 0.9.7 has no usable
`nlm_request` on IPRoute, extended answers come with some versions only, and `IPRoute.link` drops keywords that it does
not know. The socket here speaks just the part of rtnetlink(7) that the operations need.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tapfd import tuntap
from . import guard
from .host import Sysfs, errno_words, namespace
from .model import (
    ADDRESS,
    ALIAS,
    BRIDGE_OPTIONS,
    GROUP,
    IPV6,
    LINK,
    MTU,
    MULTI_QUEUE,
    NOBODY,
    OWNER,
    PACKET_INFO,
    PORT,
    PORT_OPTIONS,
    TUN_OPTIONS,
    TXQUEUELEN,
    UP,
    VNET_HDR,
    Address,
    Bridge,
    Link,
    LinksError,
    Network,
    Option,
    Tap,
    Value,
)
from .plan import (
    AddAddress,
    CreateBridge,
    CreateTap,
    DeleteLink,
    GiveTap,
    Operation,
    Plan,
    RemoveAddress,
    Set,
    SetMaster,
    Step,
    make_plan,
)

try:
    # It has neither stubs nor annotations.
    import pyroute2  # type: ignore[import-untyped]
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # type: ignore[import-untyped]
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg, protinfo_bridge  # type: ignore[import-untyped]
    from pyroute2.netlink.rtnl.rtmsg import rtmsg  # type: ignore[import-untyped]
except ImportError as missing:
    _import_error: ImportError | None = missing
else:
    _import_error = None

    # Older releases don't know the later attributes. As far as they go they number them like the kernel's headers, so
    # what may be missing is appended here, before the codecs are used. "none" is one that nothing here asks for.
    # <linux/if_addr.h>, after IFA_FLAGS
    ifaddrmsg.nla_map = (*ifaddrmsg.nla_map[:9], ("IFA_RT_PRIORITY", "uint32"))
    # <linux/if_link.h>, after IFLA_BRPORT_BCAST_FLOOD
    protinfo_bridge.nla_map = (
        *protinfo_bridge.nla_map[:31],
        ("IFLA_BRPORT_GROUP_FWD_MASK", "none"),
        ("IFLA_BRPORT_NEIGH_SUPPRESS", "uint8"),
        ("IFLA_BRPORT_ISOLATED", "uint8"),
        ("IFLA_BRPORT_BACKUP_PORT", "none"),
        ("IFLA_BRPORT_MRP_RING_OPEN", "none"),
        ("IFLA_BRPORT_MRP_IN_OPEN", "none"),
        ("IFLA_BRPORT_MCAST_EHT_HOSTS_LIMIT", "none"),
        ("IFLA_BRPORT_MCAST_EHT_HOSTS_CNT", "none"),
        ("IFLA_BRPORT_LOCKED", "uint8"),
    )

MIN_PYROUTE2 = (0, 5, 14)

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
_SEQUENCE, _SEQUENCE_OFFSET = struct.Struct("=I"), 8
_ERRNO = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")

# <linux/rtnetlink.h>
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_GETROUTE = 26
RT_TABLE_MAIN = 254
RTEXT_FILTER_SKIP_STATS = 8
# <linux/if.h>
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
# <linux/if_arp.h>
ARPHRD_ETHER = 1
# <linux/if_link.h>
_TUN_ATTRIBUTES = {
    1: "IFLA_TUN_OWNER",
    2: "IFLA_TUN_GROUP",
    4: "IFLA_TUN_PI",
    5: "IFLA_TUN_VNET_HDR",
    6: "IFLA_TUN_PERSIST",
    7: "IFLA_TUN_MULTI_QUEUE",
    8: "IFLA_TUN_NUM_QUEUES",
    9: "IFLA_TUN_NUM_DISABLED_QUEUES",
}
# <linux/if_addr.h>
IFA_F_PERMANENT = 0x80
# NODAD, OPTIMISTIC, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN: what an address can be added with
_IFA_F_SETTABLE = 0x02 | 0x04 | 0x10 | 0x100 | 0x200 | 0x400

# A dump part is at most 32 KiB (rtnl_dump_all and netlink_dump in the kernel); an answer on one link less.
_RECEIVE = 1 << 17
# Up to so many links are asked for one by one, more with one dump; a dump costs 0.5 ms of decoding for each link.
_FEW = 16
# A dump that others' changes interrupt is started again so many times.
_DUMP_TRIES = 20

_OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))

# By ID or ID_LIKE of os-release(5).
_PACKAGES = {
    "debian": "apt-get install python3-pyroute2",
    "ubuntu": "apt-get install python3-pyroute2",
    "fedora": "dnf install python3-pyroute2",
    "rhel": "dnf install epel-release, then dnf install python3-pyroute2",
    "arch": "pacman -S python-pyroute2",
    "alpine": "apk add py3-pyroute2",
    "suse": "zypper install python3-pyroute2",
    "opensuse": "zypper install python3-pyroute2",
    "gentoo": "emerge dev-python/pyroute2",
}


class KernelError(LinksError):
    """The kernel refused a request. `errno` is its number, `text` what the kernel itself said, if anything."""

    def __init__(self, message: str, number: int, text: str = "") -> None:
        super().__init__(message)
        self.errno = number
        self.text = text


# ---------------------------------------------------------------------------------------------------------------------
# What the host provides


def library_fault() -> str:
    """Why pyroute2 can't be used by this Python, with the way to get it; empty if it can."""
    wanted = ".".join(map(str, MIN_PYROUTE2))
    if _import_error is not None:
        found = f"{sys.executable} has none that it can import ({_import_error})"
    else:
        version = _library_version()
        if not _version(version) or _version(version) >= MIN_PYROUTE2:
            # Of an unknown version all that is used here could be imported.
            return ""
        found = f"{sys.executable} has version {version} at {Path(pyroute2.__file__).parent}"
    return f"pyroute2 {wanted} or newer is needed on the host, and {found}. Install it: {_install_command()}."


def _library_version() -> str:
    """The version of pyroute2, empty where it can't be known."""
    version = str(getattr(pyroute2, "__version__", ""))
    if not _version(version):
        # Debian 12's says `unknown` of itself. Costly to import, so only then.
        from importlib import metadata  # noqa: PLC0415

        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version("pyroute2")
    return version


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version such as 0.8.1 or 0.9.1rc1, for comparisons."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _install_command() -> str:
    for path in _OS_RELEASE:
        with contextlib.suppress(OSError, ValueError):
            words = shlex.split(path.read_text(encoding="utf-8"), comments=True)
            release = dict(word.partition("=")[::2] for word in words)
            for name in (release.get("ID", ""), *release.get("ID_LIKE", "").split()):
                if name in _PACKAGES:
                    return _PACKAGES[name]
            break
    return "the package is called python3-pyroute2 on most systems, and pyroute2 on PyPI"


# ---------------------------------------------------------------------------------------------------------------------
# rtnetlink


class _Refusal(Exception):
    """The kernel's negative answer: errno and its own words."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.number = number
        self.text = text


class _Rtnetlink:
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

    def ask(self, message: Any, kind: int, flags: int) -> list[Any]:
        """Send a pyroute2 message and return the decoded ones that answer it; raises _Refusal."""
        header = message["header"]
        header["type"], header["flags"], header["sequence_number"], header["pid"] = kind, NLM_F_REQUEST | flags, 0, 0
        # Once only: encoding a message again does not give the same bytes.
        message.encode()
        request = bytearray(message.data)
        try:
            for _try in range(_DUMP_TRIES):
                self._sequence += 1
                _SEQUENCE.pack_into(request, _SEQUENCE_OFFSET, self._sequence)
                self._socket.send(request)
                answers, torn = self._answers(type(message))
                if not torn:
                    return answers
        except OSError as error:
            raise _Refusal(error.errno or 0, "") from None
        raise _Refusal(errno.EAGAIN, "the links of the host change faster than they can be listed")

    def _answers(self, codec: Any) -> tuple[list[Any], bool]:
        """The messages up to the end of the answer, and whether changes of others have torn it."""
        answers: list[Any] = []
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
                        raise _Refusal(number, _kernel_words(part, flags) if kind == NLMSG_ERROR else "")
                    return answers, torn
                answer = codec(part)
                answer.decode()
                answers.append(answer)
                if not flags & NLM_F_MULTI:
                    return answers, torn


def _kernel_words(error: bytes, flags: int) -> str:
    """What the kernel says in an error message, from its extended acknowledgement."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    # struct nlmsgerr: the errno, the header of the request; with NETLINK_CAP_ACK nothing else of it
    for kind, payload in _attributes(error[_HEADER.size + _ERRNO.size + _HEADER.size :]):
        if kind == NLMSGERR_ATTR_MSG:
            return payload.rstrip(b"\0").decode("utf-8", "replace")
    return ""


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes (struct rtattr) that `data` is made of."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        yield kind, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3


def _link_message(index: int, *attributes: tuple[str, Any]) -> Any:
    message = ifinfmsg()
    message["index"] = index
    message["attrs"] = list(attributes)
    return message


def _address_message(index: int, address: Address) -> Any:
    message = ifaddrmsg()
    message["index"] = index
    message["family"] = socket.AF_INET6 if address.ipv6 else socket.AF_INET
    message["prefixlen"] = address.prefix
    message["scope"] = address.scope
    attributes: list[tuple[str, Any]] = [("IFA_LOCAL", address.ip), ("IFA_ADDRESS", address.peer or address.ip)]
    if address.broadcast:
        attributes.append(("IFA_BROADCAST", address.broadcast))
    if address.label:
        attributes.append(("IFA_LABEL", address.label))
    if address.flags:
        attributes.append(("IFA_FLAGS", address.flags))
    if address.metric:
        attributes.append(("IFA_RT_PRIORITY", address.metric))
    lifetime = {"ifa_preferred": address.preferred, "ifa_valid": address.valid, "cstamp": 0, "tstamp": 0}
    message["attrs"] = [*attributes, ("IFA_CACHEINFO", lifetime)]
    return message


def _nested(*attributes: tuple[str, Any]) -> dict[str, Any]:
    return {"attrs": list(attributes)}


def _wire(option: Option, value: Value) -> tuple[str, Any]:
    """An option as a netlink attribute."""
    if option is IPV6:
        inet6 = _nested((option.attribute, value))
        return "IFLA_AF_SPEC", _nested(("AF_INET6", inet6))
    if option is ALIAS:
        return option.attribute, os.fsencode(str(value))
    return option.attribute, int(value) if isinstance(value, bool) else value


def _name(message: Any) -> str:
    """The name of a link. One that is not UTF-8, of which pyroute2 gives the bytes, is escaped as file names are."""
    return os.fsdecode(message.get_attr("IFLA_IFNAME"))


def _values(options: Iterable[Option], attributes: Any) -> dict[str, Value]:
    """The options that the nested `attributes` hold."""
    if attributes is None:
        return {}
    read = ((option, attributes.get_attr(option.attribute)) for option in options)
    # A flag can be more than 1: STP run by a daemon is 2.
    return {
        option.name: bool(value) if isinstance(option.default, bool) else value
        for option, value in read
        if value is not None
    }


def _tun_values(information: Any) -> dict[str, int]:
    """The attributes of a tap, IFLA_INFO_DATA of kind `tun`, by the names in _TUN_ATTRIBUTES.

    Without an owner or a group there is no attribute, and then NOBODY.
    """
    values = dict.fromkeys(_TUN_ATTRIBUTES.values(), 0)
    values.update({OWNER.attribute: NOBODY, GROUP.attribute: NOBODY})
    data = information.get_attr("IFLA_INFO_DATA")
    if not isinstance(data, str):
        read = {name: data.get_attr(name) for name in values}
        return {**values, **{name: value for name, value in read.items() if value is not None}}
    # pyroute2 0.5 has no codec for them and gives the hexadecimal digits.
    for kind, payload in _attributes(bytes.fromhex(data.replace(":", ""))):
        if kind in _TUN_ATTRIBUTES:
            values[_TUN_ATTRIBUTES[kind]] = int.from_bytes(payload, sys.byteorder)
    return values


def _holder(tun: Mapping[str, int], carrier: bool) -> str:
    """How a guest holds a tap; empty if none does."""
    if not tun["IFLA_TUN_PERSIST"]:
        return "a tap that ends with its user"
    # The kernel counts the queues of a multi_queue tap only.
    if tun["IFLA_TUN_NUM_QUEUES"] or tun["IFLA_TUN_NUM_DISABLED_QUEUES"]:
        return "a tap with a queue in use"
    return "a tap with a carrier" if carrier else ""


# ---------------------------------------------------------------------------------------------------------------------
# Reading and changing links


@dataclass(frozen=True)
class Outcome:
    """What reconciling did, or in check mode would do: the plan and the state after it."""

    plan: Plan
    after: Network


class Kernel:
    """The links of the network namespace `netns`, or of the one that the process is in; a context manager.

    Entering raises NoNamespace or LinksError. Inside, the thread is in the namespace.
    """

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._resources = contextlib.ExitStack()
        self._indexes: dict[str, int] = {}

    def __enter__(self) -> Kernel:
        with self._resources:
            self._resources.enter_context(namespace(self._netns))
            self._socket = _Rtnetlink()
            self._resources.callback(self._socket.close)
            self._sysfs = Sysfs()
            self._resources.callback(self._sysfs.close)
            self._resources = self._resources.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._resources.close()

    def reconcile(
        self,
        bridges: Sequence[Bridge],
        taps: Sequence[Tap] = (),
        *,
        check: bool = False,
        spare_connection: bool = False,
    ) -> Outcome:
        """Bring the host into the state that `bridges` and `taps` ask for, or with `check` only say how.

        With `spare_connection`, what may cut the connection of whoever runs this is refused unless forced. Raises
        LinksError: Refused before any change, KernelError after all that was done has been undone.
        """
        plan = make_plan(bridges, self.read(bridges, taps), taps)
        # The connection is one of the namespace that the process came from.
        if plan.steps and spare_connection and self._netns is None:
            guard.spare(plan, self._carriers())
        if check or not plan.steps:
            return Outcome(plan, plan.after)
        done: list[Step] = []
        try:
            for step in plan.steps:
                self.perform(step.operation)
                done.append(step)
            after = self.read(bridges, taps)
            left = make_plan(bridges, after, taps)
            if left.steps:
                raise LinksError(
                    "The kernel accepted every operation, but its state is not the one asked for. "
                    f"It would still take: {'; '.join(left.operations)}. "
                    "Something else on the host, such as a network manager, may be changing the same links."
                )
        except LinksError as error:
            raise self._undo(done, error) from None
        except BaseException:
            # An administrator's Ctrl-C, for one.
            self._undo(done, LinksError())
            raise
        return Outcome(plan, after)

    def _undo(self, done: Sequence[Step], error: LinksError) -> LinksError:
        """Undo steps, the last one first. The error to raise is `error` with what became of the host."""
        faults = []
        for step in reversed(done):
            for operation in step.inverse:
                try:
                    self.perform(operation)
                except KernelError as fault:
                    faults.append(str(fault))
        if faults:
            ending = "Undoing what had been done before failed in part: " + " ".join(faults)
        elif done:
            ending = "What had been done before was undone."
        else:
            ending = "Nothing was changed."
        error.args = (f"{error} {ending}",)
        return error

    # Reading

    def read(self, bridges: Sequence[Bridge], taps: Sequence[Tap] = ()) -> Network:
        """The links that matter; raises KernelError.

        That is `bridges` and `taps`, the bridges to be joined, their ports, those to become ports, and the bridges of
        these.
        """
        masters = {bridge.name for bridge in bridges} | {tap.bridge for tap in taps if tap.bridge}
        names = masters | {tap.name for tap in taps} | {port for bridge in bridges for port in bridge.ports or ()}
        if len(names) > _FEW:
            messages = {_name(message): message for message in self._dump()}
        else:
            messages = {}
            for name in sorted(names):
                messages.update(self._get(name))
            for name in sorted(masters):
                if name in messages:
                    for message in self._dump(("IFLA_MASTER", messages[name]["index"])):
                        messages[_name(message)] = message
        by_index = {message["index"]: name for name, message in messages.items()}
        for message in list(messages.values()):
            master = message.get_attr("IFLA_MASTER")
            if master and master not in by_index:
                for name, found in self._get(index=master).items():
                    messages[name], by_index[master] = found, name
        self._indexes = {name: message["index"] for name, message in messages.items()}
        return Network(self._link(message, by_index, name in names) for name, message in messages.items())

    def _get(self, name: str = "", index: int = 0) -> dict[str, Any]:
        """The message on one link by its name; empty if there is none."""
        query = [("IFLA_IFNAME", name)] if name else []
        try:
            (message,) = self._socket.ask(
                _link_message(index, *query, ("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)), RTM_GETLINK, 0
            )
        except _Refusal as refusal:
            if refusal.number == errno.ENODEV:
                return {}
            raise _failure(f"ask for the link {name or index}", "", refusal) from None
        found = _name(message)
        if name and found != name:
            raise LinksError(f"{name} is an alternative name of the link {found}. Use {found}, or another name.")
        return {found: message}

    def _dump(self, *attributes: tuple[str, Any]) -> list[Any]:
        """The messages on all links, or on those that `attributes` describe."""
        message = _link_message(0, *attributes, ("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS))
        try:
            answers = self._socket.ask(message, RTM_GETLINK, NLM_F_DUMP)
        except _Refusal as refusal:
            raise _failure("list the links", "ip link show", refusal) from None
        # Kernels before 4.6 don't filter.
        return [
            answer for answer in answers if all(answer.get_attr(attribute) == value for attribute, value in attributes)
        ]

    def _link(self, message: Any, names: Mapping[int, str], named: bool) -> Link:
        """A link from the kernel's message on it. Of one that the task names, more than the message is read."""
        name = _name(message)
        information = message.get_attr("IFLA_LINKINFO")
        kind = (information and information.get_attr("IFLA_INFO_KIND")) or ""
        index, is_bridge = message["index"], kind == "bridge"
        settings: dict[str, Value] = {
            UP.name: bool(message["flags"] & IFF_UP),
            MTU.name: message.get_attr("IFLA_MTU"),
            # Without one there is no attribute. One that is not UTF-8 is escaped, like a name.
            ALIAS.name: os.fsdecode(message.get_attr("IFLA_IFALIAS") or ""),
        }
        mac = message.get_attr("IFLA_ADDRESS")
        if mac:
            settings[ADDRESS.name] = mac
        persistent, holder = True, ""
        if is_bridge:
            settings.update(_values(BRIDGE_OPTIONS, information.get_attr("IFLA_INFO_DATA")))
        elif kind == "tun":
            tun = _tun_values(information)
            persistent = bool(tun["IFLA_TUN_PERSIST"])
            holder = _holder(tun, bool(message.get_attr("IFLA_CARRIER")))
            for option in TUN_OPTIONS:
                value = tun[option.attribute]
                settings[option.name] = bool(value) if isinstance(option.default, bool) else value
            settings[TXQUEUELEN.name] = message.get_attr(TXQUEUELEN.attribute)
            mode = _addr_gen_mode(message)
            if mode is not None:
                settings[IPV6.name] = mode
        if information and information.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge":
            settings.update(_values(PORT_OPTIONS, information.get_attr("IFLA_INFO_SLAVE_DATA")))
        lowest, highest = message.get_attr("IFLA_MIN_MTU"), message.get_attr("IFLA_MAX_MTU")
        return Link(
            name=name,
            kind=kind,
            settings=settings,
            master=names.get(message.get_attr("IFLA_MASTER") or 0, ""),
            mac_pinned=self._sysfs.mac_pinned(name, index) if named and is_bridge else None,
            mtu_range=(lowest, highest) if lowest and highest else Link.mtu_range,
            ethernet=message["ifi_type"] == ARPHRD_ETHER,
            loopback=bool(message["flags"] & IFF_LOOPBACK),
            persistent=persistent,
            holder=holder,
            # Those of a port matter if it is brought up and, when that is undone, down again.
            addresses=self._addresses(index) if named and (is_bridge or not settings[UP.name]) else (),
        )

    def _addresses(self, index: int) -> tuple[Address, ...]:
        message = ifaddrmsg()
        message["index"] = index
        try:
            answers = self._socket.ask(message, RTM_GETADDR, NLM_F_DUMP)
        except _Refusal as refusal:
            raise _failure("list the addresses", "ip address show", refusal) from None
        # Kernels before 4.20 don't filter.
        return tuple(_address(answer) for answer in answers if answer["index"] == index)

    def _carriers(self) -> dict[str, str]:
        """The links over which this process is reached, by name, and what each carries."""
        connection = guard.connection()
        if connection is None:
            what = "a default route, over which the host may be reached"
            indexes = self._default_routes()
        else:
            what = f"the connection from {connection.client} to {connection.server}"
            indexes = self._links_with(connection.server) | self._route_to(connection.client)
        return {name: what for index in sorted(indexes) for name in self._get(index=index)}

    def _links_with(self, ip: str) -> set[int]:
        """The indexes of the links that have the address `ip`."""
        answers = self._ask("list the addresses", ifaddrmsg(), RTM_GETADDR, NLM_F_DUMP)
        return {
            answer["index"]
            for answer in answers
            if ip in (answer.get_attr("IFA_LOCAL"), answer.get_attr("IFA_ADDRESS"))
        }

    def _route_to(self, ip: str) -> set[int]:
        """The index of the link by which packets to `ip` leave; none if there is no route."""
        message = rtmsg()
        message["family"] = socket.AF_INET6 if ":" in ip else socket.AF_INET
        message["dst_len"] = 128 if ":" in ip else 32
        message["attrs"] = [("RTA_DST", ip)]
        try:
            (answer,) = self._socket.ask(message, RTM_GETROUTE, 0)
        except _Refusal as refusal:
            if refusal.number in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return set()
            raise _failure(f"ask for the route to {ip}", f"ip route get {ip}", refusal) from None
        return {answer.get_attr("RTA_OIF")} - {None}

    def _default_routes(self) -> set[int]:
        """The indexes of the links of all default routes, IPv4's and IPv6's."""
        found = set()
        # One by one: a dump for every family ends with IPv4's.
        for family in (socket.AF_INET, socket.AF_INET6):
            message = rtmsg()
            message["family"] = family
            for answer in self._ask("list the routes", message, RTM_GETROUTE, NLM_F_DUMP):
                if answer["dst_len"] == 0 and answer["table"] == RT_TABLE_MAIN:
                    hops = answer.get_attr("RTA_MULTIPATH") or []
                    found |= {answer.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)}
        return found - {None}

    def _ask(self, purpose: str, message: Any, kind: int, flags: int) -> list[Any]:
        try:
            return self._socket.ask(message, kind, flags)
        except _Refusal as refusal:
            raise _failure(purpose, "", refusal) from None

    # Changing

    def perform(self, operation: Operation) -> None:
        """Carry out one operation on links that `read` has seen or this Kernel has made; raises KernelError."""
        try:
            _PERFORMERS[type(operation)](self, operation)
        except _Refusal as refusal:
            raise _failure(operation.purpose, str(operation), refusal) from None

    def _change(self, index: int, *attributes: tuple[str, Any]) -> None:
        self._socket.ask(_link_message(index, *attributes), RTM_NEWLINK, NLM_F_ACK)

    def _index(self, name: str) -> int:
        if name not in self._indexes:
            message = self._get(name).get(name)
            if message is None:
                raise _Refusal(errno.ENODEV, "")
            self._indexes[name] = message["index"]
        return self._indexes[name]

    def _create_bridge(self, operation: CreateBridge) -> None:
        attributes: list[tuple[str, Any]] = [("IFLA_IFNAME", operation.name)]
        if ADDRESS.name in operation.settings:
            attributes.append(_wire(ADDRESS, operation.settings[ADDRESS.name]))
        given = (option for option in BRIDGE_OPTIONS if option.name in operation.settings)
        data = [_wire(option, operation.settings[option.name]) for option in given]
        information: list[tuple[str, Any]] = [("IFLA_INFO_KIND", "bridge")]
        if data:
            information.append(("IFLA_INFO_DATA", _nested(*data)))
        message = _link_message(0, *attributes, ("IFLA_LINKINFO", _nested(*information)))
        self._socket.ask(message, RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
        # Asked for when it is needed, so that a bridge is made or not, and never made and counted as failed.
        self._indexes.pop(operation.name, None)

    def _create_tap(self, operation: CreateTap) -> None:
        # EXCL: it is made, and never one that somebody else has made meanwhile taken for ours.
        with _attached(operation.name, operation.settings, tuntap.IFF_TUN_EXCL) as tap:
            for option, give in _GIVE.items():
                who = operation.settings.get(option, NOBODY)
                if who != NOBODY:
                    give(tap, int(who))
            # Last, so that what fails before leaves nothing behind.
            tuntap.set_persistent(tap)
        self._indexes.pop(operation.name, None)

    def _give_tap(self, operation: GiveTap) -> None:
        with _attached(operation.name, operation.settings) as tap:
            _GIVE[operation.option.name](tap, int(operation.value))

    def _delete_link(self, operation: DeleteLink) -> None:
        self._socket.ask(_link_message(self._index(operation.name)), RTM_DELLINK, NLM_F_ACK)

    def _set(self, operation: Set) -> None:
        index, option = self._index(operation.name), operation.option
        if option is UP:
            message = _link_message(index)
            message["flags"], message["change"] = IFF_UP if operation.value else 0, IFF_UP
            self._socket.ask(message, RTM_NEWLINK, NLM_F_ACK)
        elif option.level == LINK:
            try:
                self._change(index, _wire(option, operation.value))
            except _Refusal as refusal:
                # Without IPv6 a link has no address of it either.
                if option is not IPV6 or IPV6.report(operation.value) or refusal.number != errno.EAFNOSUPPORT:
                    raise
        else:
            which = "IFLA_INFO_KIND", "IFLA_INFO_DATA"
            if option.level == PORT:
                which = "IFLA_INFO_SLAVE_KIND", "IFLA_INFO_SLAVE_DATA"
            data = _nested(_wire(option, operation.value))
            self._change(index, ("IFLA_LINKINFO", _nested((which[0], "bridge"), (which[1], data))))

    def _set_master(self, operation: SetMaster) -> None:
        master = self._index(operation.master) if operation.master else 0
        self._change(self._index(operation.name), ("IFLA_MASTER", master))

    def _add_address(self, operation: AddAddress) -> None:
        message = _address_message(self._index(operation.name), operation.address)
        self._socket.ask(message, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)

    def _remove_address(self, operation: RemoveAddress) -> None:
        message = _address_message(self._index(operation.name), operation.address)
        try:
            self._socket.ask(message, RTM_DELADDR, NLM_F_ACK)
        except _Refusal as refusal:
            # It went away by itself.
            if refusal.number != errno.EADDRNOTAVAIL:
                raise


_PERFORMERS: dict[type[Operation], Any] = {
    CreateBridge: Kernel._create_bridge,
    CreateTap: Kernel._create_tap,
    GiveTap: Kernel._give_tap,
    DeleteLink: Kernel._delete_link,
    Set: Kernel._set,
    SetMaster: Kernel._set_master,
    AddAddress: Kernel._add_address,
    RemoveAddress: Kernel._remove_address,
}


_GIVE = {OWNER.name: tuntap.set_owner, GROUP.name: tuntap.set_group}


@contextlib.contextmanager
def _attached(name: str, settings: Mapping[str, Value], flags: int = 0) -> Iterator[int]:
    """A descriptor of the tap `name` with the flags of `settings`, which it gets by that; raises _Refusal."""
    flags |= tuntap.IFF_TAP
    if not settings.get(PACKET_INFO.name):
        flags |= tuntap.IFF_NO_PI
    if settings.get(VNET_HDR.name):
        flags |= tuntap.IFF_VNET_HDR
    if settings.get(MULTI_QUEUE.name):
        flags |= tuntap.IFF_MULTI_QUEUE
    try:
        descriptor = tuntap.open_tun()
        try:
            tuntap.create(descriptor, name.encode(), flags)
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _Refusal(error.errno or 0, "") from None


def _addr_gen_mode(message: Any) -> int | None:
    """How the kernel makes up IPv6 addresses of a link; None where it has no IPv6."""
    families = message.get_attr("IFLA_AF_SPEC")
    inet6 = families and families.get_attr("AF_INET6")
    mode = inet6 and inet6.get_attr(IPV6.attribute)
    return None if mode is None else int(mode)


def _address(message: Any) -> Address:
    """An address from the kernel's message on it."""
    # The attribute is wider than the field of the header, and missing on old kernels.
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    far = message.get_attr("IFA_ADDRESS")
    local = message.get_attr("IFA_LOCAL") or far
    lifetime = message.get_attr("IFA_CACHEINFO") or {}
    return Address(
        ip=local,
        prefix=message["prefixlen"],
        peer="" if far == local else far,
        broadcast=message.get_attr("IFA_BROADCAST") or "",
        label=message.get_attr("IFA_LABEL") or "",
        scope=message["scope"],
        flags=flags & _IFA_F_SETTABLE,
        metric=message.get_attr("IFA_RT_PRIORITY") or 0,
        valid=lifetime.get("ifa_valid", Address.valid),
        preferred=lifetime.get("ifa_preferred", Address.preferred),
        dynamic=not flags & IFA_F_PERMANENT,
    )


def imagine(bridges: Iterable[Bridge], taps: Iterable[Tap] = ()) -> Network:
    """What check mode assumes of a missing namespace: it holds the links that `bridges` and `taps` build on, no others.

    Those are links to become ports, and bridges to be joined.
    """
    bridges, taps = list(bridges), list(taps)
    made = {bridge.name for bridge in bridges} | {tap.name for tap in taps}
    plain = {UP.name: True, MTU.name: 1500}
    network = Network(
        Link(port, settings=plain) for bridge in bridges for port in bridge.ports or () if port not in made
    )
    for tap in taps:
        if tap.bridge and tap.bridge not in made:
            network.put(Link(tap.bridge, "bridge", settings=plain))
    return network


# ---------------------------------------------------------------------------------------------------------------------
# Errors in words

_WAYS_OUT = {
    errno.EPERM: "it needs CAP_NET_ADMIN in the network namespace; run the task with become: true",
    errno.EACCES: "it may be IPv6 that is turned off there; see the sysctl net.ipv6.conf.*.disable_ipv6",
    errno.EEXIST: "something else made it in the meantime; run again",
    errno.ENOENT: "there is no /dev/net/tun; load the kernel's module for it with modprobe tun",
    errno.ENODEV: "the link went away in the meantime; run again",
    errno.EBUSY: "something else uses the link; see which program does, and end it there",
    errno.ENOBUFS: "the kernel is short of memory for it",
    errno.EXFULL: "the bridge has all the 1023 ports that it can have",
    errno.ELOOP: "a bridge can't be a port of a bridge; connect the two with a veth pair",
    errno.EOPNOTSUPP: "this kernel or the link's driver doesn't support it",
    errno.ERANGE: "the kernel doesn't accept the value in the bridge's present state",
    errno.EADDRNOTAVAIL: "the address is not one that a link can have",
    errno.EINVAL: "the kernel doesn't accept the value for this link",
}


def _failure(purpose: str, command: str, refusal: _Refusal) -> KernelError:
    """The sentence for a refused request: object, operation, errno, the kernel's words, a way out."""
    like = f" (as by: {command})" if command else ""
    said = f", {refusal.text!r}" if refusal.text else ""
    way_out = _WAYS_OUT.get(refusal.number, "see the log of the kernel (dmesg) for more")
    return KernelError(
        f"Can't {purpose}{like}: the kernel answered {errno_words(refusal.number)}{said}; {way_out}.",
        refusal.number,
        refusal.text,
    )
