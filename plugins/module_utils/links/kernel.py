# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the links of a network namespace and carry out operations on them. The one file that imports pyroute2.

Messages on links, and on what bridges have learned, are our own (rtnetlink.py), since a task may have thousands. Those
on addresses and routes are few, and pyroute2 knows them. It is imported when the first of them is needed, since that
takes longer than most tasks.

Of pyroute2 the codec is taken, which is the same from 0.5.14 to 0.9.7, and not the socket, which is not: 0.5.14 sends
deletions with a flag that newer kernels take for "in bulk" and refuse, 0.9.7 has no usable `nlm_request` on IPRoute,
and extended answers come with some versions only.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..tapfd import tuntap
from . import guard
from .facts import Details, Learned
from .host import Sysfs, errno_words, namespace
from .model import (
    ADDRESS,
    ALIAS,
    BRIDGE,
    BRIDGE_OPTIONS,
    GROUP,
    IPV6,
    IPV6_MIN_MTU,
    LINK,
    LINK_OPTIONS,
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
    VLAN_DEFAULT_PVID,
    VLAN_FILTERING,
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
    AddVlans,
    CreateBridge,
    CreateTap,
    DeleteLink,
    GiveTap,
    Operation,
    Plan,
    RemoveAddress,
    RemoveVlans,
    Set,
    SetMaster,
    Step,
    make_plan,
)
from .rtnetlink import (
    AF_BRIDGE,
    ARPHRD_ETHER,
    IFF_LOOPBACK,
    IFF_UP,
    IFLA_AF_SPEC,
    IFLA_BR_BRIDGE_ID,
    IFLA_BR_ROOT_ID,
    IFLA_BRPORT_STATE,
    IFLA_CARRIER,
    IFLA_EXT_MASK,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_LINK,
    IFLA_LINK_NETNSID,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MAX_MTU,
    IFLA_MIN_MTU,
    IFLA_TUN_NUM_DISABLED_QUEUES,
    IFLA_TUN_NUM_QUEUES,
    IFLA_TUN_PERSIST,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RT_TABLE_MAIN,
    RTEXT_FILTER_BRVLAN_COMPRESSED,
    RTEXT_FILTER_SKIP_STATS,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_SETLINK,
    U32,
    Attributes,
    LinkMessage,
    Refusal,
    Rtnetlink,
    attribute,
    learned,
    link_request,
    neighbours_request,
    nested,
    number,
    option_attribute,
    option_values,
    statistics,
    text,
    vlan_request,
    vlans,
)
from .vlans import Vlans

MIN_PYROUTE2 = (0, 5, 14)

# <linux/if_addr.h>
IFA_F_PERMANENT = 0x80
# NODAD, OPTIMISTIC, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN: what an address can be added with
_IFA_F_SETTABLE = 0x02 | 0x04 | 0x10 | 0x100 | 0x200 | 0x400

# Up to so many links are asked for one by one, more with one dump.
_FEW = 16

# struct nlmsghdr of <linux/netlink.h>, in bytes
_NLMSGHDR = 16
# Options that a link of any kind has as attributes.
_EVERY_LINK_S = tuple(option for option in LINK_OPTIONS if option is not UP)

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


# The attribute of requests on links that asks for no more than is needed.
_WITHOUT_STATISTICS = attribute(IFLA_EXT_MASK, U32.pack(RTEXT_FILTER_SKIP_STATS))


class NoLibrary(LinksError):
    """pyroute2 is needed, and this Python has none that can be used."""


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
    try:
        import pyroute2  # type: ignore[import-untyped]  # noqa: PLC0415  # see the head of this file; it has no types
    except ImportError as missing:
        found = f"{sys.executable} has none that it can import ({missing})"
    else:
        version = _library_version(pyroute2)
        if not _version(version) or _version(version) >= MIN_PYROUTE2:
            # One of unknown version is given a try.
            return ""
        found = f"{sys.executable} has version {version} at {Path(pyroute2.__file__).parent}"
    return f"pyroute2 {wanted} or newer is needed on the host, and {found}. Install it: {_install_command()}."


def _library_version(library: Any) -> str:
    """The version of pyroute2, empty where it can't be known."""
    version = str(getattr(library, "__version__", ""))
    if not _version(version):
        # Debian 12's says `unknown` of itself. Costly to import, so only then.
        from importlib import metadata  # noqa: PLC0415

        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version("pyroute2")
    return version


def _version(words: str) -> tuple[int, ...]:
    """The leading numbers of a version such as 0.8.1 or 0.9.1rc1, for comparisons."""
    numbers = []
    for part in words.split("."):
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
# Messages on addresses and routes


class _Library(NamedTuple):
    """What is taken of pyroute2: the classes of its messages."""

    address: Any
    route: Any


@functools.cache
def _library() -> _Library:
    """pyroute2, imported by the first call; raises NoLibrary."""
    fault = library_fault()
    if fault:
        raise NoLibrary(fault)
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # type: ignore[import-untyped]  # noqa: PLC0415
    from pyroute2.netlink.rtnl.rtmsg import rtmsg  # type: ignore[import-untyped]  # noqa: PLC0415

    # Older releases don't know this attribute of <linux/if_addr.h>, which comes after IFA_FLAGS.
    ifaddrmsg.nla_map = (*ifaddrmsg.nla_map[:9], ("IFA_RT_PRIORITY", "uint32"))
    return _Library(ifaddrmsg, rtmsg)


def _encoded(message: Any) -> bytes:
    """A message of pyroute2 without its header. It can be encoded once only: again would not give the same bytes."""
    message.encode()
    return bytes(message.data[_NLMSGHDR:])


def _decoded(codec: Any, answers: Iterable[bytes]) -> Iterator[Any]:
    for answer in answers:
        message = codec(answer)
        message.decode()
        yield message


def _address_message(index: int, address: Address) -> Any:
    message = _library().address()
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


def _option_request(index: int, option: Option, value: Value) -> bytes:
    """The body of a request to give an option of a link a value."""
    if option is UP:
        return link_request(index, flags=IFF_UP if value else 0, change=IFF_UP)
    change = option_attribute(option, value)
    if option is IPV6:
        change = attribute(IFLA_AF_SPEC, [attribute(socket.AF_INET6, [change])])
    elif option.level != LINK:
        kind, data = IFLA_INFO_KIND, IFLA_INFO_DATA
        if option.level == PORT:
            kind, data = IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA
        change = attribute(IFLA_LINKINFO, [attribute(kind, b"bridge"), attribute(data, [change])])
    return link_request(index, change)


def _holder(tun: Attributes, carrier: bool) -> str:
    """How a guest holds a tap; empty if none does."""
    if not number(tun.get(IFLA_TUN_PERSIST)):
        return "a tap that ends with its user"
    # The kernel counts the queues of a multi_queue tap only.
    if number(tun.get(IFLA_TUN_NUM_QUEUES)) or number(tun.get(IFLA_TUN_NUM_DISABLED_QUEUES)):
        return "a tap with a queue in use"
    return "a tap with a carrier" if carrier else ""


def _is(kind: str, message: LinkMessage) -> bool:
    """Whether a message is on a bridge, or on a tap."""
    of_kernel = text(nested(message.attributes.get(IFLA_LINKINFO)).get(IFLA_INFO_KIND, b""))
    return of_kernel == "bridge" if kind == BRIDGE else of_kernel == "tun" and message.type == ARPHRD_ETHER


def _details(message: LinkMessage, tables: Sequence[Learned]) -> Details:
    """What a message tells of a link besides its options."""
    information = nested(message.attributes.get(IFLA_LINKINFO))
    data, port = nested(information.get(IFLA_INFO_DATA)), nested(information.get(IFLA_INFO_SLAVE_DATA))
    kind, of_bridge = information.get(IFLA_INFO_KIND, b""), information.get(IFLA_INFO_SLAVE_KIND, b"")
    is_bridge, is_tun = text(kind) == "bridge", text(kind) == "tun"
    return Details(
        index=message.index,
        carrier=bool(number(message.attributes.get(IFLA_CARRIER))),
        statistics=statistics(message),
        port_state=_PORT_STATES.get(number(port.get(IFLA_BRPORT_STATE)), "") if text(of_bridge) == "bridge" else "",
        bridge_id=_bridge_id(data.get(IFLA_BR_BRIDGE_ID)) if is_bridge else "",
        root_id=_bridge_id(data.get(IFLA_BR_ROOT_ID)) if is_bridge else "",
        queues=number(data.get(IFLA_TUN_NUM_QUEUES)) if is_tun else 0,
        disabled_queues=number(data.get(IFLA_TUN_NUM_DISABLED_QUEUES)) if is_tun else 0,
        learned=tuple(sorted(tables)),
    )


def _bridge_id(payload: bytes | None) -> str:
    """A struct ifla_bridge_id of <linux/if_link.h>, two bytes of priority and a MAC address, as iproute2 writes it."""
    return f"{payload[:2].hex()}.{payload[2:].hex(':')}" if payload else ""


# <linux/if_bridge.h>: BR_STATE_*
_PORT_STATES = dict(enumerate(("disabled", "listening", "learning", "forwarding", "blocking")))


# ---------------------------------------------------------------------------------------------------------------------
# Reading and changing links


@dataclass(frozen=True)
class Outcome:
    """What reconciling did, or in check mode would do: the plan and the state after it."""

    plan: Plan
    after: Network


@dataclass(frozen=True)
class Inspection:
    """All bridges, or all taps, or those of them that were asked for: their `names`, and what is known of them.

    `network` holds them and what they are seen with: the ports of bridges, the masters of taps.
    """

    names: tuple[str, ...] = ()
    network: Network = field(default_factory=Network)
    details: Mapping[str, Details] = field(default_factory=dict)


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
            self._socket = Rtnetlink()
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
        all_addresses: bool = True,
    ) -> Outcome:
        """Bring the host into the state that `bridges` and `taps` ask for, or with `check` only say how.

        With `spare_connection`, what may cut the connection of whoever runs this is refused unless forced. Without
        `all_addresses`, the states of the outcome hold those of the bridges only where the task is about them. Raises
        LinksError: NoLibrary and Refused before any change, KernelError after all that was done has been undone.
        """
        plan = make_plan(bridges, self.read(bridges, taps, all_addresses=all_addresses), taps)
        # The connection is one of the namespace that the process came from.
        if spare_connection and self._netns is None and guard.suspicious(plan):
            guard.spare(plan, self._carriers())
        if check or not plan.steps:
            return Outcome(plan, plan.after)
        if takes_library(plan, all_addresses=all_addresses):
            # Missing, it has to be missed now and not half-way.
            _library()
        done: list[Step] = []
        try:
            for step in plan.steps:
                self.perform(step.operation)
                done.append(step)
            after = self.read(bridges, taps, all_addresses=all_addresses)
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

    def read(self, bridges: Sequence[Bridge], taps: Sequence[Tap] = (), *, all_addresses: bool = True) -> Network:
        """The links that matter; raises NoLibrary or KernelError.

        That is `bridges` and `taps`, the bridges to be joined, their ports, those to become ports, and the bridges of
        these.
        """
        masters = {bridge.name for bridge in bridges} | {tap.bridge for tap in taps if tap.bridge}
        names = masters | {tap.name for tap in taps} | {port for bridge in bridges for port in bridge.ports or ()}
        if len(names) > _FEW:
            messages = {message.name: message for message in self._dump()}
        else:
            messages = {}
            for name in sorted(names):
                messages.update(self._get(name))
            for name in sorted(masters):
                if name in messages:
                    for message in self._dump(messages[name].index):
                        messages[message.name] = message
        by_index = {message.index: name for name, message in messages.items()}
        for message in list(messages.values()):
            master = message.master
            if master and master not in by_index:
                for name, found in self._get(index=master).items():
                    messages[name], by_index[master] = found, name
        self._indexes = {name: message.index for name, message in messages.items()}
        up = {name: bool(message.flags & IFF_UP) for name, message in messages.items()}
        addressed = _addressed(bridges, taps, up, all_addresses)
        addresses = self._addresses({messages[name].index for name in addressed})
        network = Network(
            self._link(message, by_index, name in names, addresses.get(message.index, ()))
            for name, message in messages.items()
        )
        asked = any(bridge.names_vlans for bridge in bridges) or any(tap.vlans for tap in taps)
        # The kernel can't list those of some links only, and few hosts have any.
        if asked or any(link.filters_vlans for link in network):
            self._read_vlans(network, by_index)
        return network

    def _get(self, name: str = "", index: int = 0) -> dict[str, LinkMessage]:
        """The message on one link by its name; empty if there is none."""
        query = [attribute(IFLA_IFNAME, os.fsencode(name) + b"\0")] if name else []
        try:
            (answer,) = self._socket.ask(RTM_GETLINK, 0, link_request(index, *query, _WITHOUT_STATISTICS))
        except Refusal as refusal:
            if refusal.number == errno.ENODEV:
                return {}
            raise _failure(f"ask for the link {name or index}", "", refusal) from None
        message = LinkMessage(answer)
        if name and message.name != name:
            raise LinksError(
                f"{name} is an alternative name of the link {message.name}. Use {message.name}, or another name."
            )
        return {message.name: message}

    def inspect(self, kind: str, names: Iterable[str] | None = None) -> Inspection:
        """What is to be known of all bridges or taps (BRIDGE, TAP), or of those among `names`; raises LinksError."""
        wanted = None if names is None else set(names)
        messages = {message.index: message for message in self._dump(with_statistics=True)}
        found = {
            index: message
            for index, message in messages.items()
            if _is(kind, message) and (wanted is None or message.name in wanted)
        }
        if not found:
            return Inspection()
        addresses: dict[int, tuple[Address, ...]] = {}
        if kind == BRIDGE:
            seen = {index: message for index, message in messages.items() if message.master in found}
            addresses = self._addresses(set(found))
        else:
            masters = {message.master for message in found.values()}
            seen = {index: message for index, message in messages.items() if index in masters}
        by_index = {index: message.name for index, message in messages.items()}
        network, details = Network(), {}
        tables = self._learned(by_index)
        for index, message in {**found, **seen}.items():
            link = self._link(message, by_index, False, addresses.get(index, ()))
            if index in found:
                link = replace(link, mac_pinned=self._sysfs.mac_pinned(link.name, index))
            network.put(link)
            details[link.name] = _details(message, tables.get(index, ()))
        if any(link.filters_vlans for link in network):
            self._read_vlans(network, by_index)
        return Inspection(tuple(sorted(by_index[index] for index in found)), network, details)

    def _learned(self, names: Mapping[int, str]) -> dict[int, list[Learned]]:
        """What bridges have learned, by the index of the bridge and of the port that it was learned from."""
        try:
            answers = self._socket.ask(RTM_GETNEIGH, NLM_F_DUMP, neighbours_request())
        except Refusal as refusal:
            raise _failure("list the addresses that bridges have learned", "bridge fdb show", refusal) from None
        found: dict[int, list[Learned]] = {}
        for entry in filter(None, map(learned, answers)):
            address = Learned(entry.mac, names.get(entry.port, ""), entry.vlan)
            for index in (entry.bridge, entry.port):
                found.setdefault(index, []).append(address)
        return found

    def _dump(self, master: int = 0, *, with_statistics: bool = False) -> list[LinkMessage]:
        """The messages on all links, or on those that belong to the link with the index `master`."""
        query = [attribute(IFLA_MASTER, U32.pack(master))] if master else []
        if not with_statistics:
            query.append(_WITHOUT_STATISTICS)
        try:
            answers = self._socket.ask(RTM_GETLINK, NLM_F_DUMP, link_request(0, *query))
        except Refusal as refusal:
            raise _failure("list the links", "ip link show", refusal) from None
        messages = [LinkMessage(answer) for answer in answers]
        # Kernels before 4.6 don't filter.
        return [message for message in messages if master in (0, message.master)]

    def _link(
        self, message: LinkMessage, names: Mapping[int, str], named: bool, addresses: tuple[Address, ...]
    ) -> Link:
        """A link from the kernel's message on it. Of one that the task names, more than the message is read."""
        attributes, name = message.attributes, message.name
        information = nested(attributes.get(IFLA_LINKINFO))
        kind = text(information.get(IFLA_INFO_KIND, b""))
        is_bridge = kind == "bridge"
        # Without an alias there is no attribute.
        settings: dict[str, Value] = {UP.name: bool(message.flags & IFF_UP), ALIAS.name: ""}
        settings.update(option_values(_EVERY_LINK_S, attributes))
        persistent, holder = True, ""
        if is_bridge:
            settings.update(option_values(BRIDGE_OPTIONS, nested(information.get(IFLA_INFO_DATA))))
        elif kind == "tun":
            tun = nested(information.get(IFLA_INFO_DATA))
            persistent = bool(number(tun.get(IFLA_TUN_PERSIST)))
            holder = _holder(tun, bool(number(attributes.get(IFLA_CARRIER))))
            # Without an owner or a group there is no attribute.
            settings.update({OWNER.name: NOBODY, GROUP.name: NOBODY})
            settings.update(option_values(TUN_OPTIONS, tun))
            settings.update(option_values((TXQUEUELEN,), attributes))
            # There is nothing of IPv6 where the kernel or the link is without.
            inet6 = nested(nested(attributes.get(IFLA_AF_SPEC)).get(socket.AF_INET6))
            settings.update(option_values((IPV6,), inet6))
        if text(information.get(IFLA_INFO_SLAVE_KIND, b"")) == "bridge":
            settings.update(option_values(PORT_OPTIONS, nested(information.get(IFLA_INFO_SLAVE_DATA))))
        lowest, highest = number(attributes.get(IFLA_MIN_MTU)), number(attributes.get(IFLA_MAX_MTU))
        return Link(
            name=name,
            kind=kind,
            settings=settings,
            master=names.get(message.master, ""),
            mac_pinned=self._sysfs.mac_pinned(name, message.index) if named and is_bridge else None,
            mtu_range=(lowest, highest) if lowest and highest else Link.mtu_range,
            ethernet=message.type == ARPHRD_ETHER,
            loopback=bool(message.flags & IFF_LOOPBACK),
            persistent=persistent,
            holder=holder,
            addresses=addresses,
        )

    def _read_vlans(self, network: Network, names: Mapping[int, str]) -> None:
        """Add to bridges and their ports their VLANs."""
        query = attribute(IFLA_EXT_MASK, U32.pack(RTEXT_FILTER_BRVLAN_COMPRESSED))
        try:
            answers = self._socket.ask(RTM_GETLINK, NLM_F_DUMP, link_request(0, query, family=AF_BRIDGE))
        except Refusal as refusal:
            raise _failure("list the VLANs", "bridge vlan show", refusal) from None
        for answer in answers:
            message = LinkMessage(answer)
            link = network.get(names.get(message.index, ""))
            bridge = link and (link if link.is_bridge else network.get(link.master))
            if link and bridge and bridge.is_bridge and VLAN_DEFAULT_PVID.name in bridge.settings:
                network.put(replace(link, vlans=vlans(message) or link.vlans))

    def _addresses(self, indexes: set[int]) -> dict[int, tuple[Address, ...]]:
        """The addresses of the links with these indexes, by index."""
        if not indexes:
            return {}
        message = _library().address()
        if len(indexes) == 1:
            message["index"] = min(indexes)
        found: dict[int, tuple[Address, ...]] = {}
        for answer in self._ask("list the addresses", message, RTM_GETADDR, NLM_F_DUMP):
            # Kernels before 4.20 don't filter.
            if answer["index"] in indexes:
                found[answer["index"]] = (*found.get(answer["index"], ()), _address(answer))
        return found

    def _carriers(self) -> dict[str, str]:
        """The links over which this process is reached, by name, and what each carries."""
        connection = guard.connection()
        if connection is None:
            what = "a default route, over which the host may be reached"
            indexes = self._default_routes()
        else:
            what = f"the connection from {connection.client} to {connection.server}"
            indexes = self._links_with(connection.server) | self._route_to(connection.client)
        carriers: dict[str, str] = {}
        waiting = [(index, "") for index in sorted(indexes)]
        seen: set[int] = set()
        while waiting:
            index, above = waiting.pop(0)
            if index in seen:
                continue
            seen.add(index)
            for name, message in self._get(index=index).items():
                carriers[name] = f"{what}, under {above}" if above else what
                # What it lies on carries too: the card or bridge of a VLAN link, the other end of a veth pair, and the
                # bridge of that. The number of a link in another namespace means nothing here.
                attributes = message.attributes
                below = 0 if IFLA_LINK_NETNSID in attributes else number(attributes.get(IFLA_LINK))
                waiting += [(each, name) for each in (below, message.master if above else 0) if each]
        return carriers

    def _links_with(self, ip: str) -> set[int]:
        """The indexes of the links that have the address `ip`."""
        answers = self._ask("list the addresses", _library().address(), RTM_GETADDR, NLM_F_DUMP)
        return {
            answer["index"]
            for answer in answers
            if ip in (answer.get_attr("IFA_LOCAL"), answer.get_attr("IFA_ADDRESS"))
        }

    def _route_to(self, ip: str) -> set[int]:
        """The index of the link by which packets to `ip` leave; none if there is no route."""
        message = _library().route()
        message["family"] = socket.AF_INET6 if ":" in ip else socket.AF_INET
        message["dst_len"] = 128 if ":" in ip else 32
        message["attrs"] = [("RTA_DST", ip)]
        try:
            (answer,) = _decoded(_library().route, self._socket.ask(RTM_GETROUTE, 0, _encoded(message)))
        except Refusal as refusal:
            if refusal.number in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return set()
            raise _failure(f"ask for the route to {ip}", f"ip route get {ip}", refusal) from None
        return {answer.get_attr("RTA_OIF")} - {None}

    def _default_routes(self) -> set[int]:
        """The indexes of the links of all default routes, IPv4's and IPv6's."""
        found = set()
        # One by one: a dump for every family ends with IPv4's.
        for family in (socket.AF_INET, socket.AF_INET6):
            message = _library().route()
            message["family"] = family
            for answer in self._ask("list the routes", message, RTM_GETROUTE, NLM_F_DUMP):
                if answer["dst_len"] == 0 and answer["table"] == RT_TABLE_MAIN:
                    hops = answer.get_attr("RTA_MULTIPATH") or []
                    found |= {answer.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)}
        return found - {None}

    def _ask(self, purpose: str, message: Any, kind: int, flags: int) -> list[Any]:
        """Ask by a message of pyroute2, and have the answers as such."""
        codec = type(message)
        try:
            return list(_decoded(codec, self._socket.ask(kind, flags, _encoded(message))))
        except Refusal as refusal:
            raise _failure(purpose, "", refusal) from None

    # Changing

    def perform(self, operation: Operation) -> None:
        """Carry out one operation on links that `read` has seen or this Kernel has made; raises KernelError."""
        try:
            _PERFORMERS[type(operation)](self, operation)
        except Refusal as refusal:
            raise _failure(operation.purpose, str(operation), refusal) from None

    def _change(self, request: bytes) -> None:
        self._socket.ask(RTM_NEWLINK, NLM_F_ACK, request)

    def _index(self, name: str) -> int:
        if name not in self._indexes:
            # It was made by this Kernel, so the name is no alternative one.
            try:
                self._indexes[name] = socket.if_nametoindex(name)
            except OSError as error:
                raise Refusal(error.errno or 0) from None
        return self._indexes[name]

    def _create_bridge(self, operation: CreateBridge) -> None:
        attributes = [attribute(IFLA_IFNAME, operation.name.encode() + b"\0")]
        if ADDRESS.name in operation.settings:
            attributes.append(option_attribute(ADDRESS, operation.settings[ADDRESS.name]))
        given = (option for option in BRIDGE_OPTIONS if option.name in operation.settings)
        data = [option_attribute(option, operation.settings[option.name]) for option in given]
        information = [attribute(IFLA_INFO_KIND, b"bridge"), attribute(IFLA_INFO_DATA, data)]
        request = link_request(0, *attributes, attribute(IFLA_LINKINFO, information))
        self._socket.ask(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, request)
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
        self._socket.ask(RTM_DELLINK, NLM_F_ACK, link_request(self._index(operation.name)))

    def _set(self, operation: Set) -> None:
        request = _option_request(self._index(operation.name), operation.option, operation.value)
        try:
            self._change(request)
        except Refusal as refusal:
            # Without IPv6 a link has no address of it either.
            idle = operation.option is IPV6 and not IPV6.report(operation.value)
            if not idle or refusal.number != errno.EAFNOSUPPORT:
                raise

    def _set_master(self, operation: SetMaster) -> None:
        master = self._index(operation.master) if operation.master else 0
        self._change(link_request(self._index(operation.name), attribute(IFLA_MASTER, U32.pack(master))))

    def _add_vlans(self, operation: AddVlans) -> None:
        how = {"own": operation.own, "untagged": operation.untagged, "pvid": operation.pvid}
        request = vlan_request(self._index(operation.name), operation.first, operation.last, **how)
        self._socket.ask(RTM_SETLINK, NLM_F_ACK, request)

    def _remove_vlans(self, operation: RemoveVlans) -> None:
        request = vlan_request(self._index(operation.name), operation.first, operation.last, own=operation.own)
        self._socket.ask(RTM_DELLINK, NLM_F_ACK, request)

    def _add_address(self, operation: AddAddress) -> None:
        message = _address_message(self._index(operation.name), operation.address)
        self._socket.ask(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, _encoded(message))

    def _remove_address(self, operation: RemoveAddress) -> None:
        message = _address_message(self._index(operation.name), operation.address)
        try:
            self._socket.ask(RTM_DELADDR, NLM_F_ACK, _encoded(message))
        except Refusal as refusal:
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
    AddVlans: Kernel._add_vlans,
    RemoveVlans: Kernel._remove_vlans,
    AddAddress: Kernel._add_address,
    RemoveAddress: Kernel._remove_address,
}


_GIVE = {OWNER.name: tuntap.set_owner, GROUP.name: tuntap.set_group}


@contextlib.contextmanager
def _attached(name: str, settings: Mapping[str, Value], flags: int = 0) -> Iterator[int]:
    """A descriptor of the tap `name` with the flags of `settings`, which it gets by that; raises Refusal."""
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
        raise Refusal(error.errno or 0, "") from None


def _address(message: Any) -> Address:
    """An address from the kernel's message on it."""
    # The attribute is wider than the field of the header, and missing on old kernels.
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    # As Python writes them: the C library has its own way with those that hold an IPv4 address, ::ffff:192.0.2.1.
    far = str(ipaddress.ip_address(message.get_attr("IFA_ADDRESS")))
    local = str(ipaddress.ip_address(message.get_attr("IFA_LOCAL") or far))
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


def takes_library(plan: Plan, *, all_addresses: bool = True) -> bool:
    """Whether pyroute2 is needed to carry out a plan, beyond what it took to make it."""
    if not plan.steps:
        return False
    up = {link.name: bool(link.settings.get(UP.name)) for link in plan.after}
    # The links are read again when all is done.
    return any(isinstance(step.operation, AddAddress) for step in plan.steps) or bool(
        _addressed(plan.bridges, plan.taps, up, all_addresses)
    )


def _addressed(bridges: Iterable[Bridge], taps: Iterable[Tap], up: Mapping[str, bool], all_bridges: bool) -> set[str]:
    """The links whose addresses a task may move, or take away: one that goes down, or below IPv6's MTU, loses some.

    `up` has the links that there are, and whether they are up.
    """
    # A port that is brought up goes down again when that is undone.
    found = {port for bridge in bridges for port in bridge.ports or () if not up.get(port, True)}
    for bridge in bridges:
        loses = bridge.settings.get(UP.name) is not True or MTU.name in bridge.settings
        asked = all_bridges or bridge.addresses is not None or loses
        if bridge.name in up and (asked or not up[bridge.name]):
            found.add(bridge.name)
    for tap in taps:
        is_up = up.get(tap.name, False)
        loses = is_up and int(tap.settings.get(MTU.name, IPV6_MIN_MTU)) < IPV6_MIN_MTU
        if tap.name in up and (loses or tap.settings.get(UP.name, is_up) is not is_up):
            found.add(tap.name)
    return found


def imagine(bridges: Iterable[Bridge], taps: Iterable[Tap] = ()) -> Network:
    """What check mode assumes of a missing namespace: it holds the links that `bridges` and `taps` build on, no others.

    Those are links to become ports, and bridges to be joined, which filter VLANs if that is asked of one of their taps.
    """
    bridges, taps = list(bridges), list(taps)
    made = {bridge.name for bridge in bridges} | {tap.name for tap in taps}
    plain: dict[str, Value] = {UP.name: True, MTU.name: 1500}
    network = Network(
        Link(port, settings=plain) for bridge in bridges for port in bridge.ports or () if port not in made
    )
    for tap in taps:
        if tap.bridge and tap.bridge not in made:
            bridge = network.get(tap.bridge) or Link(tap.bridge, "bridge", settings=plain)
            if tap.vlans:
                filtering = {**plain, VLAN_FILTERING.name: True, VLAN_DEFAULT_PVID.name: 1}
                bridge = replace(bridge, settings=filtering, vlans=Vlans.of_new_port(1))
            network.put(bridge)
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


def _failure(purpose: str, command: str, refusal: Refusal) -> KernelError:
    """The sentence for a refused request: object, operation, errno, the kernel's words, a way out."""
    like = f" (as by: {command})" if command else ""
    said = f", {refusal.text!r}" if refusal.text else ""
    way_out = _WAYS_OUT.get(refusal.number, "see the log of the kernel (dmesg) for more")
    return KernelError(
        f"Can't {purpose}{like}: the kernel answered {errno_words(refusal.number)}{said}; {way_out}.",
        refusal.number,
        refusal.text,
    )
