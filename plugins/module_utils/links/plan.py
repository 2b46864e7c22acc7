# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the desired and the current state to the operations between them, in order, each with what undoes it.

Nothing here asks or changes the host. An operation knows four things: its command in iproute2's words (`str`), what it
is for (`purpose`), what it does to a `Network` (`apply`), and what undoes it (`inverse`). The planner applies every
operation to a copy of the current state as it goes, so each next step, the state at the end and the inverses follow
from one account of what the kernel does.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .model import (
    ADDRESS,
    ALIAS,
    BRIDGE,
    BRIDGE_OPTIONS,
    FOREVER,
    FORWARD_DELAY,
    GROUP,
    IPV6,
    IPV6_MIN_MTU,
    LINK,
    LINK_OPTIONS,
    MAX_PORTS,
    MAX_TAP_MTU,
    MIN_MTU,
    MTU,
    MULTI_QUEUE,
    NOBODY,
    OWNER,
    PORT_OPTIONS,
    PVID,
    ROOT,
    STP,
    STP_FORWARD_DELAY,
    TAP_LINK_OPTIONS,
    TAP_PORT_OPTIONS,
    TUN_OPTIONS,
    UP,
    VLAN_DEFAULT_PVID,
    VLAN_FILTERING,
    Address,
    Bridge,
    Link,
    LinksError,
    Network,
    Option,
    Tap,
    Value,
    describe,
    describe_tap,
    write_addresses,
)
from .vlans import Vlans, ranges, write_range


class Refused(LinksError):
    """The desired state can't be reached, or not without harm to others; nothing was changed."""


# What a bridge that nobody gave an address has after its last port has left. No VLAN can be added to it then, as
# fdb_add_local() in net/bridge/br_fdb.c refuses that address.
NO_MAC = "00:00:00:00:00:00"

# ---------------------------------------------------------------------------------------------------------------------
# Operations


@dataclass(frozen=True)
class Operation:
    """One message to the kernel about the link `name`."""

    name: str

    def __str__(self) -> str:
        raise NotImplementedError

    @property
    def purpose(self) -> str:
        """What it is for, to follow "can't" in a sentence."""
        raise NotImplementedError

    def apply(self, network: Network) -> None:
        """Change `network` as the kernel would change the host's."""
        raise NotImplementedError

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        """The operations that lead back to `before`, the state that this one is applied to."""
        raise NotImplementedError


@dataclass(frozen=True)
class CreateBridge(Operation):
    """Make a bridge that is down; `settings` are options that the kernel takes at creation."""

    settings: Mapping[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        words = ["ip link add name", self.name]
        if ADDRESS.name in self.settings:
            words += _words(ADDRESS, self.settings[ADDRESS.name])
        words += ["type bridge"]
        for option in BRIDGE_OPTIONS:
            if option.name in self.settings:
                words += _words(option, self.settings[option.name])
        return " ".join(words)

    @property
    def purpose(self) -> str:
        return f"make the bridge {self.name}"

    def apply(self, network: Network) -> None:
        defaults = {option.name: option.default for option in (*LINK_OPTIONS, *BRIDGE_OPTIONS)}
        settings = {name: value for name, value in {**defaults, **self.settings}.items() if value is not None}
        vlans = Vlans.of_new_port(int(settings[VLAN_DEFAULT_PVID.name]))
        network.put(Link(self.name, "bridge", settings, mac_pinned=ADDRESS.name in self.settings, vlans=vlans))

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        return (DeleteLink(self.name),)


@dataclass(frozen=True)
class CreateTap(Operation):
    """Make a persistent tap that is down; `settings` are those of TUN_OPTIONS that it gets."""

    settings: Mapping[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        return _tuntap(self.name, self.settings)

    @property
    def purpose(self) -> str:
        return f"make the tap {self.name}"

    def apply(self, network: Network) -> None:
        defaults = {option.name: option.default for option in (*TAP_LINK_OPTIONS, *TUN_OPTIONS)}
        settings = {name: value for name, value in {**defaults, **self.settings}.items() if value is not None}
        network.put(Link(self.name, "tun", settings, mac_pinned=None, mtu_range=(MIN_MTU, MAX_TAP_MTU)))

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        return (DeleteLink(self.name),)


@dataclass(frozen=True)
class GiveTap(Operation):
    """Give a tap that nobody holds an owner or a group: `option`. The kernel has no way back to none.

    It takes an attached descriptor, and attaching writes the flags of the tap, so `settings` holds the present ones.
    """

    option: Option
    value: Value
    settings: Mapping[str, Value]

    def __str__(self) -> str:
        return _tuntap(self.name, {**self.settings, self.option.name: self.value})

    @property
    def purpose(self) -> str:
        return f"give the tap {self.name} to the {'user' if self.option is OWNER else 'group'} {self.value}"

    def apply(self, network: Network) -> None:
        link = network[self.name]
        network.put(replace(link, settings={**link.settings, self.option.name: self.value}))

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        old = before[self.name].settings.get(self.option.name, NOBODY)
        return () if old == NOBODY else (replace(self, value=old),)


@dataclass(frozen=True)
class DeleteLink(Operation):
    """Delete a link. Ports of a bridge become free. It can't be undone."""

    def __str__(self) -> str:
        return f"ip link delete dev {self.name}"

    @property
    def purpose(self) -> str:
        return f"delete {self.name}"

    def apply(self, network: Network) -> None:
        for port in network.ports(self.name):
            network.put(_without_master(port))
        network.remove(self.name)

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        return ()


@dataclass(frozen=True)
class Set(Operation):
    """Give an option of a link a value."""

    option: Option
    value: Value

    def __str__(self) -> str:
        words = ["ip link set dev", self.name]
        if self.option.level != LINK:
            words.append("type bridge" if self.option.level == BRIDGE else "type bridge_slave")
        return " ".join(words + _words(self.option, self.value))

    @property
    def purpose(self) -> str:
        if self.option is IPV6:
            return f"turn link-local IPv6 addresses of {self.name} {'on' if IPV6.report(self.value) else 'off'}"
        if self.option is UP:
            return f"bring {self.name} up" if self.value else f"take {self.name} down"
        return f"set {self.option.name} of {self.name} to {self.option.report(self.value)}"

    def apply(self, network: Network) -> None:
        link = network[self.name]
        changed = replace(link, settings={**link.settings, self.option.name: self.value})
        if self.option is ADDRESS:
            changed = replace(changed, mac_pinned=True)
        if self.option is VLAN_DEFAULT_PVID:
            old, new = int(link.settings[self.option.name]), int(self.value)
            for port in network.ports(self.name):
                if port.vlans is not None:
                    network.put(replace(port, vlans=port.vlans.after_default(old, new)))
            changed = replace(changed, vlans=link.vlans and link.vlans.after_default(old, new))
        if self._ends_ipv6():
            changed = replace(changed, addresses=tuple(address for address in link.addresses if not address.ipv6))
        network.put(changed)

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        link = before[self.name]
        old = link.settings.get(self.option.name)
        if old is None:
            return ()
        back = Set(self.name, self.option, old)
        if self.option is VLAN_DEFAULT_PVID:
            return (back, *self._moved_back(back, before))
        # Going up and down again loses them too.
        lost = self._ends_ipv6() or back._ends_ipv6()
        return (back, *(AddAddress(self.name, address) for address in link.addresses if lost and address.ipv6))

    def _moved_back(self, back: Set, before: Network) -> list[Operation]:
        """The VLANs that changing the default PVID and changing it back does not leave as they were."""
        returned = before.copy()
        for operation in (self, back):
            operation.apply(returned)
        found: list[Operation] = []
        for link in (before[self.name], *before.ports(self.name)):
            found += _vlan_operations(returned[link.name], link.vlans)
        return found

    def _ends_ipv6(self) -> bool:
        """Whether the kernel takes all IPv6 addresses off the link (addrconf_notify() in net/ipv6/addrconf.c)."""
        return (self.option is UP and not self.value) or (self.option is MTU and int(self.value) < IPV6_MIN_MTU)


@dataclass(frozen=True)
class SetMaster(Operation):
    """Put a link on a bridge, or with an empty `master` take it off."""

    master: str

    def __str__(self) -> str:
        return f"ip link set dev {self.name} " + (f"master {self.master}" if self.master else "nomaster")

    @property
    def purpose(self) -> str:
        return f"put {self.name} on the bridge {self.master}" if self.master else f"take {self.name} off its bridge"

    def apply(self, network: Network) -> None:
        link = _without_master(network[self.name])
        if self.master:
            fresh = {option.name: option.default for option in PORT_OPTIONS if option.default is not None}
            vlans = _vlans_of_new_port(network[self.master])
            link = replace(link, master=self.master, settings={**link.settings, **fresh}, vlans=vlans)
        network.put(link)

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        link = before[self.name]
        back: list[Operation] = [SetMaster(self.name, link.master)]
        for option in PORT_OPTIONS:
            value = link.settings.get(option.name)
            if value is not None and value != option.default:
                back.append(Set(self.name, option, value))
        if link.vlans is not None:
            back += _vlan_operations(replace(link, vlans=_vlans_of_new_port(before[link.master])), link.vlans)
        bridge = before.get(self.master)
        lonely = bridge and not any(each.master == self.master for each in before)
        if bridge and lonely and bridge.mac_pinned is False and ADDRESS.name in bridge.settings:
            # When its last port leaves, the kernel gives a bridge the address of zeros.
            back.append(Set(self.master, ADDRESS, bridge.settings[ADDRESS.name]))
        return tuple(back)


@dataclass(frozen=True)
class ChangeVlans(Operation):
    """Change what a port is to the VLANs `first` to `last`. A bridge is a port of itself, for which `own` is said."""

    first: int
    last: int
    own: bool

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        link = before[self.name]
        after = Network([link])
        self.apply(after)
        return tuple(_vlan_operations(after[self.name], link.vlans))

    def apply(self, network: Network) -> None:
        link = network[self.name]
        vlans = self._change(link.vlans or Vlans(), range(self.first, self.last + 1))
        network.put(replace(link, vlans=vlans))

    def _change(self, present: Vlans, which: range) -> Vlans:
        raise NotImplementedError

    def _command(self, verb: str, *words: str) -> str:
        which = f"bridge vlan {verb} dev {self.name} vid {write_range(self.first, self.last)}"
        return " ".join([which, *words, *(["self"] if self.own else [])])


@dataclass(frozen=True)
class AddVlans(ChangeVlans):
    """Make a port a member of VLANs, `untagged` or not, and of one of them as its `pvid`; or change how it is one."""

    untagged: bool
    pvid: bool

    def __str__(self) -> str:
        return self._command("add", *(["pvid"] if self.pvid else []), *(["untagged"] if self.untagged else []))

    @property
    def purpose(self) -> str:
        how = "as its pvid, " if self.pvid else ""
        how += "untagged" if self.untagged else "tagged"
        return f"give {self.name} the VLAN {write_range(self.first, self.last)}, {how}"

    def _change(self, present: Vlans, which: range) -> Vlans:
        return present.plus(which, untagged=self.untagged, pvid=self.pvid)


@dataclass(frozen=True)
class RemoveVlans(ChangeVlans):
    """Take VLANs from a port. With its pvid it loses what frames without a tag belong to."""

    def __str__(self) -> str:
        return self._command("del")

    @property
    def purpose(self) -> str:
        return f"take the VLAN {write_range(self.first, self.last)} from {self.name}"

    def _change(self, present: Vlans, which: range) -> Vlans:
        return present.minus(which)


def _vlan_operations(link: Link, wanted: Vlans | None) -> list[Operation]:
    """What gives a link the VLANs `wanted`, additions first; nothing where they or its own are not known."""
    found: list[Operation] = []
    present, own = link.vlans, link.is_bridge
    if present is None or wanted is None:
        return found

    def add(vlans: frozenset[int], untagged: bool, pvid: bool = False) -> None:
        found.extend(AddVlans(link.name, *each, own, untagged, pvid) for each in ranges(vlans))

    main = frozenset((wanted.pvid,)) - {0}
    moved = wanted.pvid != present.pvid or bool(main & present.untagged) != bool(main & wanted.untagged)
    if main and moved:
        add(main, wanted.pvid in wanted.untagged, pvid=True)
    # One that was the PVID and stays a member is added again without that, unless another one has taken its place.
    lowered = frozenset() if main else frozenset((present.pvid,)) - {0}
    add((wanted.untagged - present.untagged | lowered & wanted.untagged) - main, True)
    add((wanted.tagged - present.tagged | lowered & wanted.tagged) - main, False)
    found.extend(RemoveVlans(link.name, *each, own) for each in ranges(present.members - wanted.members))
    return found


def _vlans_of_new_port(bridge: Link) -> Vlans | None:
    """Those that a port has after it has joined; None if those of the bridge are not known either."""
    return bridge.vlans and Vlans.of_new_port(int(bridge.settings.get(VLAN_DEFAULT_PVID.name, 0)))


@dataclass(frozen=True)
class AddAddress(Operation):
    """Have an address on a link. Harmless where it is there already."""

    address: Address

    def __str__(self) -> str:
        address = self.address
        words = ["ip address replace", str(address)]
        if address.broadcast:
            words += ["broadcast", address.broadcast]
        if address.label not in ("", self.name):
            words += ["label", address.label]
        if address.metric:
            words += ["metric", str(address.metric)]
        words += ["dev", self.name]
        if address.valid != FOREVER:
            words += ["valid_lft", str(address.valid), "preferred_lft", str(address.preferred)]
        return " ".join(words)

    @property
    def purpose(self) -> str:
        return f"add the address {self.address} to {self.name}"

    def apply(self, network: Network) -> None:
        link = network[self.name]
        if not _has(link, self.address):
            network.put(replace(link, addresses=(*link.addresses, self.address)))

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        return () if _has(before[self.name], self.address) else (RemoveAddress(self.name, self.address),)


@dataclass(frozen=True)
class RemoveAddress(Operation):
    """Remove an address. With the first one of an IPv4 subnet go the others of that subnet.

    Those stay where the sysctl promote_secondaries is set; to add them again then does no harm.
    """

    address: Address

    def __str__(self) -> str:
        return f"ip address delete {self.address} dev {self.name}"

    @property
    def purpose(self) -> str:
        return f"remove the address {self.address} from {self.name}"

    def apply(self, network: Network) -> None:
        link = network[self.name]
        gone = {address.key for address in self._gone(link)}
        network.put(replace(link, addresses=tuple(each for each in link.addresses if each.key not in gone)))

    def inverse(self, before: Network) -> tuple[Operation, ...]:
        return tuple(AddAddress(self.name, address) for address in self._gone(before[self.name]))

    def _gone(self, link: Link) -> list[Address]:
        if self.address.ipv6:
            return [self.address]
        subnet = [each for each in link.addresses if not each.ipv6 and each.subnet == self.address.subnet]
        return subnet if subnet[0].key == self.address.key else [self.address]


def _words(option: Option, value: Value) -> list[str]:
    """`option` with `value` as arguments of iproute2."""
    if option is UP:
        return ["up" if value else "down"]
    if option is IPV6:
        return [option.word, _ADDR_GEN_MODES[int(value)]]
    if isinstance(value, bool):
        # Bridges say 1 and 0, their ports on and off; iproute2 takes either only there.
        return [option.word, str(int(value)) if option.level == BRIDGE else "on" if value else "off"]
    return [option.word, shlex.quote(str(value))]


# By number: the IN6_ADDR_GEN_MODE_* of <linux/if_link.h>.
_ADDR_GEN_MODES = ("eui64", "none", "stable_secret", "random")


def _tuntap(name: str, settings: Mapping[str, Value]) -> str:
    """The command that makes a tap, or gives one to somebody."""
    words = ["ip tuntap add dev", name, "mode tap"]
    for option in TUN_OPTIONS:
        value = settings.get(option.name, option.default)
        if value != option.default:
            words += [option.word] if value is True else [option.word, str(value)]
    return " ".join(words)


def _without_master(link: Link) -> Link:
    port_options = {option.name for option in PORT_OPTIONS}
    settings = {name: value for name, value in link.settings.items() if name not in port_options}
    return replace(link, master="", settings=settings, vlans=None)


def _has(link: Link, address: Address) -> bool:
    return any(each.key == address.key for each in link.addresses)


# ---------------------------------------------------------------------------------------------------------------------
# The plan


@dataclass(frozen=True)
class Step:
    """An operation and what undoes it, in order."""

    operation: Operation
    inverse: tuple[Operation, ...]


@dataclass(frozen=True)
class Plan:
    """What leads from `before` to `after`. Without steps the desired state is there already."""

    bridges: tuple[Bridge, ...]
    steps: tuple[Step, ...]
    before: Network
    after: Network
    taps: tuple[Tap, ...] = ()

    @property
    def operations(self) -> list[str]:
        """Each operation as the command of iproute2 that does the same."""
        return [str(step.operation) for step in self.steps]


def given(bridge: Bridge, network: Network) -> dict[str, Any]:
    """Of the bridge in `network`, the options that `bridge` gives: what a diff shows."""
    description = describe(network, bridge.name)
    shown = {"name", "state"}
    if bridge.present:
        shown |= set(bridge.settings)
        if ADDRESS.name in bridge.settings:
            shown.add("mac_pinned")
        if bridge.ports is not None:
            shown.add("ports")
        if bridge.vlans is not None:
            shown.add("vlans")
        if bridge.addresses is not None:
            shown.add("addresses")
            link = network.get(bridge.name)
            if link is not None:
                # A listed one counts also where `describe` leaves it out.
                keys = {address.key for address in (*link.static_addresses, *bridge.addresses)}
                description["addresses"] = write_addresses(each for each in link.addresses if each.key in keys)
    return {name: value for name, value in description.items() if name in shown}


def given_tap(tap: Tap, network: Network) -> dict[str, Any]:
    """Of the tap in `network`, the options that `tap` gives: what a diff shows."""
    description = describe_tap(network, tap.name)
    shown = {"name", "state"}
    if tap.present:
        shown |= {*tap.settings, *tap.port_settings}
        if tap.vlans is not None:
            wishes = {PVID.name: tap.vlans.pvid, "untagged": tap.vlans.untagged, "tagged": tap.vlans.tagged}
            shown |= {name for name, wish in wishes.items() if wish is not None}
        if tap.bridge is not None:
            shown.add("bridge")
    return {name: value for name, value in description.items() if name in shown}


def make_plan(bridges: Sequence[Bridge], network: Network, taps: Sequence[Tap] = ()) -> Plan:
    """The operations that bring `network` into the state that `bridges` and `taps` ask for; raises Refused."""
    planner = _Planner(bridges, network, taps)
    planner.check()
    planner.plan()
    return Plan(tuple(bridges), tuple(planner.steps), network, planner.network, tuple(taps))


class _Planner:
    def __init__(self, bridges: Sequence[Bridge], network: Network, taps: Sequence[Tap]) -> None:
        self.bridges = bridges
        self.taps = taps
        self.wanted_taps = {tap.name: tap for tap in taps}
        self.wanted_bridges = {bridge.name: bridge for bridge in bridges}
        # The taps that a task puts on a bridge are among its ports, listed or not.
        self.joining: dict[str, list[str]] = {}
        for tap in taps:
            if tap.present and tap.bridge:
                self.joining.setdefault(tap.bridge, []).append(tap.name)
        self.before = network
        self.network = network.copy()
        self.steps: list[Step] = []

    def check(self) -> None:
        """Refuse what the kernel would refuse or bend, and what would cut somebody off."""
        for kind, listed in (("bridge", self.bridges), ("tap", self.taps)):
            for name, count in Counter(each.name for each in listed).items():
                if count > 1:
                    raise Refused(f"The {kind} {name} is listed {count} times. List it once.")
        both = self.wanted_bridges.keys() & self.wanted_taps.keys()
        if both:
            raise Refused(f"{min(both)} is listed as a bridge and as a tap. It can be one of them.")
        for tap in self.taps:
            self._check_tap(tap)
        owners = {name: bridge for bridge, names in self.joining.items() for name in names}
        for bridge in self.bridges:
            link = self.before.get(bridge.name)
            if link is not None and not link.is_bridge:
                raise Refused(
                    f"{bridge.name} exists and is no bridge but {_kind(link)}, which stays untouched. "
                    "Choose another name, or remove that link first."
                )
            if not bridge.present:
                self._check_removal(bridge)
                continue
            for port in bridge.ports or ():
                self._check_port(bridge, port)
                if owners.setdefault(port, bridge.name) != bridge.name:
                    raise Refused(f"{port} can't be a port of both {owners[port]} and {bridge.name}. List it once.")
            self._check_settings(bridge, link)

    def _check_removal(self, bridge: Bridge) -> None:
        held = [port for port in self.before.ports(bridge.name) if port.holder]
        if held and not bridge.force:
            holders = ", ".join(f"{port.name} ({port.holder})" for port in held)
            raise Refused(
                f"Guests are on the bridge {bridge.name}, which is therefore not removed: {holders}. "
                "Stop them first, or say force: true to cut them off."
            )

    def _check_port(self, bridge: Bridge, name: str) -> None:
        port = self.before.get(name)
        tap = self.wanted_taps.get(name)
        why = ""
        if name == bridge.name:
            why = "that is the bridge itself"
        elif tap is not None and not tap.present:
            why = "the same task removes it"
        elif tap is not None and tap.bridge == "":
            why = "the same task takes it off every bridge"
        elif tap is not None and port is None:
            # It is made before it joins.
            pass
        elif port is None:
            why = "there is no link of that name"
        elif port.is_bridge:
            why = "it is a bridge, and the kernel puts no bridge on another; connect the two with a veth pair"
        elif port.loopback or not port.ethernet:
            why = "it is no Ethernet link"
        elif port.master not in ("", bridge.name):
            master = self.before.get(port.master)
            if master is None or not master.is_bridge:
                why = f"it belongs to {port.master}, which is no bridge; take it out of there first"
            elif not bridge.force:
                why = (
                    f"it is on the bridge {port.master}; take it off there first, "
                    "or say force: true to move it and whatever depends on it"
                )
        if why:
            raise Refused(f"{name} can't become a port of the bridge {bridge.name}: {why}.")

    def _check_tap(self, tap: Tap) -> None:
        link = self.before.get(tap.name)
        if link is not None and not link.is_tap:
            raise Refused(
                f"{tap.name} exists and is no tap but {_kind(link)}, which stays untouched. "
                "Choose another name, or remove that link first."
            )
        if not tap.present:
            if link is not None and link.holder and not tap.force:
                raise Refused(
                    f"A guest holds the tap {tap.name} ({link.holder}), which is therefore not removed. "
                    "Stop the guest first, or say force: true to cut it off."
                )
            return
        if link is not None:
            self._check_existing_tap(tap, link)
        if tap.bridge:
            self._check_bridge_of(tap)
        of_port = [*tap.port_settings, *(["VLANs"] if tap.vlans else [])]
        master = self._master(tap, link) if tap.bridge is None else tap.bridge
        if of_port and not master:
            raise Refused(
                f"{', '.join(of_port)} of the tap {tap.name} need it to be a port, and it would be on no "
                "bridge. Name one in bridge."
            )
        if tap.vlans and not self._reached(master, VLAN_FILTERING):
            raise Refused(
                f"The VLANs of the tap {tap.name} would do nothing, because its bridge {master} does not filter them. "
                "Turn on vlan_filtering of the bridge, or leave pvid, untagged and tagged out."
            )
        if IPV6.report(tap.settings.get(IPV6.name, IPV6.parse(False, ""))) and not self._has_ipv6(tap, link):
            raise Refused(
                f"The tap {tap.name} has no IPv6, because its MTU is below {IPV6_MIN_MTU} or the kernel is without it. "
                "Raise mtu, or leave ipv6 out."
            )
        smallest, largest = link.mtu_range if link else (MIN_MTU, MAX_TAP_MTU)
        mtu = self._tap_settings(tap).get(MTU.name)
        if mtu is not None and not smallest <= int(mtu) <= largest:
            raise Refused(f"The MTU of the tap {tap.name} can be {smallest} to {largest} bytes, not {mtu}.")

    def _reached(self, bridge: str, option: Option) -> Value | None:
        """What an option of a bridge will be, as far as the task or the host says so."""
        wanted, link = self.wanted_bridges.get(bridge), self.before.get(bridge)
        present = link.settings.get(option.name) if link else option.default
        return wanted.settings.get(option.name, present) if wanted else present

    def _has_ipv6(self, tap: Tap, link: Link | None) -> bool:
        mtu = self._tap_settings(tap).get(MTU.name)
        if mtu is None:
            return link is None or IPV6.name in link.settings
        return int(mtu) >= IPV6_MIN_MTU

    def _master(self, tap: Tap, link: Link | None) -> str:
        """The bridge that a tap will be on if it does not say so itself."""
        for bridge in self.bridges:
            if bridge.present and tap.name in (bridge.ports or ()):
                return bridge.name
        master = self.before.get(link.master) if link else None
        if master is None or not master.is_bridge or tap.name in self._surplus_of(master.name):
            return ""
        removed = master.name in self.wanted_bridges and not self.wanted_bridges[master.name].present
        return "" if removed else master.name

    def _check_existing_tap(self, tap: Tap, link: Link) -> None:
        again = "remove it (state: absent) and make it again"
        if not link.persistent:
            raise Refused(
                f"The tap {tap.name} ends with the program that made it, such as a running guest, and is not taken "
                "over. Choose another name, or stop that program first."
            )
        multi_queue = tap.settings.get(MULTI_QUEUE.name)
        if multi_queue is not None and multi_queue != link.settings.get(MULTI_QUEUE.name):
            raise Refused(
                f"The kernel can't turn multi_queue of the existing tap {tap.name} {'on' if multi_queue else 'off'}. "
                f"To change it, {again}."
            )
        for option in (OWNER, GROUP):
            value, present = tap.settings.get(option.name), link.settings.get(option.name, NOBODY)
            if value is None or value == present:
                continue
            if value == NOBODY:
                raise Refused(
                    f"The kernel can't take the {option.name} {present} away from the tap {tap.name}. "
                    f"Give it to another one, or {again}."
                )
            if link.holder:
                raise Refused(
                    f"The {option.name} of the tap {tap.name} can't be changed while a guest holds it ({link.holder}). "
                    "Stop the guest first."
                )
        master = self.before.get(link.master) if link.master else None
        if tap.bridge is not None and link.master and (master is None or not master.is_bridge):
            raise Refused(
                f"The tap {tap.name} belongs to {link.master}, which is no bridge. Take it out of there first, "
                "or leave bridge out."
            )
        if link.holder and not tap.force:
            if link.settings[UP.name] and tap.settings.get(UP.name) is False:
                self._refuse_cutting(tap, link, "is therefore not taken down")
            if link.master and tap.bridge is not None and tap.bridge != link.master:
                self._refuse_cutting(tap, link, f"is therefore not taken off {link.master}")

    @staticmethod
    def _refuse_cutting(tap: Tap, link: Link, what: str) -> None:
        raise Refused(
            f"A guest holds the tap {tap.name} ({link.holder}), which {what}. "
            "Stop the guest first, or say force: true to cut it off."
        )

    def _check_bridge_of(self, tap: Tap) -> None:
        name = tap.bridge or ""
        wanted, bridge = self.wanted_bridges.get(name), self.before.get(name)
        why = ""
        if wanted is not None and not wanted.present:
            why = "the same task removes it"
        elif wanted is None and bridge is None:
            why = "there is no link of that name; make the bridge first"
        elif bridge is not None and not bridge.is_bridge:
            why = f"it is no bridge but {_kind(bridge)}"
        if why:
            raise Refused(f"The tap {tap.name} can't be put on {name}: {why}.")

    def _tap_settings(self, tap: Tap) -> dict[str, Value]:
        """The settings of a tap with those that follow from the rest of the state."""
        settings = dict(tap.settings)
        if tap.name not in self.before and tap.bridge and MTU.name not in settings:
            # One with another MTU would change that of the bridge, unless somebody has set it.
            wanted, bridge = self.wanted_bridges.get(tap.bridge), self.before.get(tap.bridge)
            mtu = (wanted.settings if wanted else {}).get(MTU.name) or (bridge and bridge.settings[MTU.name])
            if mtu:
                settings[MTU.name] = min(int(mtu), MAX_TAP_MTU)
        return settings

    def _check_settings(self, bridge: Bridge, link: Link | None) -> None:
        current = link.settings if link else {}

        def reached(option: Option) -> Any:
            return bridge.settings.get(option.name, current.get(option.name, option.default))

        self._check_vlans(bridge, link)
        lowest, highest = STP_FORWARD_DELAY
        timers_given = STP.name in bridge.settings or FORWARD_DELAY.name in bridge.settings
        if timers_given and reached(STP) and not lowest <= reached(FORWARD_DELAY) <= highest:
            raise Refused(
                f"With STP on, the forward delay of the bridge {bridge.name} has to be 2 to 30 s, "
                f"and it would be {FORWARD_DELAY.report(reached(FORWARD_DELAY))} s. "
                "Set forward_delay in that range, or stp: false."
            )
        mtu = reached(MTU)
        smallest, largest = (link or Link(bridge.name)).mtu_range
        if MTU.name in bridge.settings and not smallest <= mtu <= largest:
            raise Refused(f"The MTU of the bridge {bridge.name} can be {smallest} to {largest} bytes, not {mtu}.")
        ipv6 = [each for each in (*(link.static_addresses if link else ()), *(bridge.addresses or ())) if each.ipv6]
        if ipv6 and mtu < IPV6_MIN_MTU:
            raise Refused(
                f"IPv6 needs an MTU of {IPV6_MIN_MTU} bytes or more, and the bridge {bridge.name} would have {mtu} "
                f"with the address {ipv6[0]}. Raise mtu, or do without IPv6 addresses there."
            )
        staying = {port.name for port in self.before.ports(bridge.name)} - set(self._surplus(bridge))
        elsewhere = {tap.name for tap in self.taps if not tap.present or tap.bridge not in (None, bridge.name)}
        count = len(staying - elsewhere | set(bridge.ports or ()) | set(self.joining.get(bridge.name, ())))
        if count > MAX_PORTS:
            raise Refused(f"The bridge {bridge.name} would have {count} ports, and the kernel allows {MAX_PORTS}.")

    def _check_vlans(self, bridge: Bridge, link: Link | None) -> None:
        filters = bool(self._reached(bridge.name, VLAN_FILTERING))
        asked = bridge.vlans is not None or bridge.settings.get(VLAN_DEFAULT_PVID.name) is not None
        if link is not None and VLAN_DEFAULT_PVID.name not in link.settings and (filters or asked):
            raise Refused(
                f"The bridge {bridge.name} can't have VLANs, because this kernel was built without "
                "CONFIG_BRIDGE_VLAN_FILTERING. Leave vlan_filtering, vlan_default_pvid and vlans out."
            )
        if bridge.vlans is not None and not filters:
            raise Refused(
                f"vlans of the bridge {bridge.name} would do nothing, because it does not filter VLANs. "
                "Say vlan_filtering: true, or leave vlans out."
            )
        if filters and self._lets_through(bridge) and self.before.ports(bridge.name) and not bridge.force:
            raise Refused(
                f"The kernel changes vlan_default_pvid of the bridge {bridge.name} only while it does not filter, and "
                "without the filter its ports would for a moment reach each other across all VLANs. "
                "Say force: true to do so, or leave vlan_default_pvid out."
            )

    def _lets_through(self, bridge: Bridge) -> bool:
        """Whether the bridge has to stop filtering before its default PVID is what is asked for."""
        link, pvid = self.before.get(bridge.name), bridge.settings.get(VLAN_DEFAULT_PVID.name)
        return bool(link and link.filters_vlans and pvid not in (None, link.settings[VLAN_DEFAULT_PVID.name]))

    def plan(self) -> None:
        """Plan for all links together: what gives before what takes, what can't be undone last."""
        present = [bridge for bridge in self.bridges if bridge.present]
        taps = [tap for tap in self.taps if tap.present]
        for bridge in present:
            self._create(bridge)
        for tap in taps:
            self._create_tap(tap)
            self._set_tap(tap)
        for step in (
            self._set_options,
            self._set_vlans,
            # A port joins before others leave, so that a failure to join costs nobody his place.
            self._add_ports,
            self._drop_ports,
        ):
            for bridge in present:
                step(bridge)
        for tap in taps:
            self._place_tap(tap)
        for step in (
            # After all that join, whom it would cut off until they have their VLANs.
            self._filter_vlans,
            # After the ports, which an MTU that was never set follows.
            self._set_mtu,
            # Before the addresses: going down takes IPv6 addresses away.
            self._take_down,
            self._set_addresses,
            self._bring_up,
            # An address that was pinned once can't be let go again.
            self._pin_mac,
        ):
            for bridge in present:
                step(bridge)
        for tap in taps:
            self._give_tap(tap)
        for tap in self.taps:
            if not tap.present and tap.name in self.network:
                self._do(DeleteLink(tap.name))
        for bridge in self.bridges:
            if not bridge.present and bridge.name in self.network:
                self._do(DeleteLink(bridge.name))

    def _do(self, operation: Operation) -> None:
        self.steps.append(Step(operation, operation.inverse(self.network)))
        operation.apply(self.network)

    def _set_to(self, name: str, option: Option, value: Value | None) -> None:
        if value is not None and not option.same(self.network[name].settings.get(option.name), value):
            self._do(Set(name, option, value))

    def _create_tap(self, tap: Tap) -> None:
        if tap.name not in self.network:
            wanted = {**tap.settings, **tap.creation}
            if OWNER.name not in wanted and GROUP.name not in wanted:
                # One of nobody is open to everybody: tun_not_capable() in drivers/net/tun.c.
                wanted[OWNER.name] = ROOT
            settings = {option.name: wanted[option.name] for option in TUN_OPTIONS if option.name in wanted}
            self._do(CreateTap(tap.name, settings))

    def _set_tap(self, tap: Tap) -> None:
        link, settings = self.network[tap.name], self._tap_settings(tap)
        for option in TAP_LINK_OPTIONS:
            # Where the kernel has no IPv6 on the link there is nothing to turn off.
            idle = option is IPV6 and IPV6.name not in link.settings and not IPV6.report(settings.get(IPV6.name, 0))
            if option is not UP and not idle:
                self._set_to(tap.name, option, settings.get(option.name))

    def _place_tap(self, tap: Tap) -> None:
        """Put a tap on its bridge, and bring it up last, so that it carries nothing before it is as it should be."""
        if tap.bridge is not None and self.network[tap.name].master != tap.bridge:
            self._do(SetMaster(tap.name, tap.bridge))
        for option in TAP_PORT_OPTIONS:
            self._set_to(tap.name, option, tap.port_settings.get(option.name))
        if tap.vlans is not None:
            link = self.network[tap.name]
            wanted = tap.vlans.applied_to(link.vlans or Vlans())
            if wanted.pvid and wanted.pvid not in wanted.members:
                raise Refused(
                    f"The tap {tap.name} would not be a member of VLAN {wanted.pvid}, its pvid. List that in untagged "
                    "or tagged, or give another pvid; 0 stands for none."
                )
            for operation in _vlan_operations(link, wanted):
                self._do(operation)
        self._set_to(tap.name, UP, tap.settings.get(UP.name))

    def _give_tap(self, tap: Tap) -> None:
        for option in (OWNER, GROUP):
            value, link = tap.settings.get(option.name), self.network[tap.name]
            if value is not None and value != link.settings.get(option.name, NOBODY):
                names = [each.name for each in TUN_OPTIONS if each not in (OWNER, GROUP)]
                flags = {name: link.settings[name] for name in names if name in link.settings}
                self._do(GiveTap(tap.name, option, value, flags))

    def _set(self, bridge: Bridge, option: Option) -> None:
        self._set_to(bridge.name, option, bridge.settings.get(option.name))

    def _create(self, bridge: Bridge) -> None:
        if bridge.name not in self.network:
            # Not the alias, which the kernel passes over at creation. Not the MTU: the kernel would not take one given
            # at creation for the administrator's choice, and would let it follow the ports.
            # It filters VLANs when all its ports have theirs.
            at_creation = {option.name for option in (ADDRESS, *BRIDGE_OPTIONS) if option is not VLAN_FILTERING}
            settings = {name: value for name, value in bridge.settings.items() if name in at_creation}
            self._do(CreateBridge(bridge.name, settings))

    def _set_options(self, bridge: Bridge) -> None:
        self._set(bridge, ALIAS)
        # The kernel checks the timers while STP is on: turn it off before them, on after them.
        first = () if bridge.settings.get(STP.name) else (STP,)
        others = tuple(option for option in BRIDGE_OPTIONS if option not in (STP, VLAN_FILTERING, VLAN_DEFAULT_PVID))
        for option in (*first, *others, STP):
            self._set(bridge, option)

    def _set_vlans(self, bridge: Bridge) -> None:
        """Before the last port of the bridge may leave, and with that its address, without which no VLANs change."""
        link = self.network[bridge.name]
        through = self._lets_through(bridge)
        if through:
            self._do(Set(bridge.name, VLAN_FILTERING, False))
        # Before the ports, which join with it.
        self._set(bridge, VLAN_DEFAULT_PVID)
        if through:
            self._set_to(bridge.name, VLAN_FILTERING, self._reached(bridge.name, VLAN_FILTERING))
        present = self.network[bridge.name].vlans
        if bridge.vlans is not None and present is not None:
            # One that the host has without a tag stays that.
            wanted = replace(present, tagged=bridge.vlans - present.untagged)
            for operation in _vlan_operations(self.network[bridge.name], wanted):
                self._do(operation)
        if link.settings.get(ADDRESS.name) == NO_MAC and self.network[bridge.name].vlans != link.vlans:
            raise Refused(
                f"The kernel changes no VLANs of the bridge {bridge.name}, because it has had no MAC address since its "
                "last port left. Give it a port, or mac, by a task before this one."
            )

    def _filter_vlans(self, bridge: Bridge) -> None:
        self._set(bridge, VLAN_FILTERING)

    def _add_ports(self, bridge: Bridge) -> None:
        for name in bridge.ports or ():
            if self.network[name].master != bridge.name:
                self._do(SetMaster(name, bridge.name))
                up = self.wanted_taps[name].settings.get(UP.name) if name in self.wanted_taps else True
                if up and bridge.settings.get(UP.name) and not self.network[name].settings[UP.name]:
                    self._do(Set(name, UP, True))

    def _surplus(self, bridge: Bridge) -> list[str]:
        """The ports which an exact list of ports sends away."""
        if not bridge.ports_exact or bridge.ports is None:
            return []
        # A tap that the task places or removes goes its own way.
        kept = {*bridge.ports, *(tap.name for tap in self.taps if tap.bridge is not None or not tap.present)}
        return [port.name for port in self.before.ports(bridge.name) if port.name not in kept and not port.holder]

    def _surplus_of(self, name: str) -> list[str]:
        bridge = self.wanted_bridges.get(name)
        return self._surplus(bridge) if bridge is not None and bridge.present else []

    def _drop_ports(self, bridge: Bridge) -> None:
        for name in self._surplus(bridge):
            if self.network[name].master == bridge.name:
                self._do(SetMaster(name, ""))

    def _set_mtu(self, bridge: Bridge) -> None:
        mtu = bridge.settings.get(MTU.name)
        if mtu is None:
            return
        # Coming and going ports may have moved an MTU that looks right in the account of the planner.
        ports = self.network.ports(bridge.name)
        smallest = min((port.settings[MTU.name] for port in ports), default=MTU.default)
        moved = [port.name for port in self.before.ports(bridge.name)] != [port.name for port in ports]
        if self.network[bridge.name].settings[MTU.name] != mtu or (moved and smallest != mtu):
            self._do(Set(bridge.name, MTU, mtu))

    def _take_down(self, bridge: Bridge) -> None:
        if not bridge.settings.get(UP.name, True):
            self._set(bridge, UP)

    def _bring_up(self, bridge: Bridge) -> None:
        self._set(bridge, UP)

    def _set_addresses(self, bridge: Bridge) -> None:
        link = self.before.get(bridge.name)
        present = link.addresses if link else ()
        static = {address.key for address in link.static_addresses} if link else set()
        listed = bridge.addresses or ()
        keys = {address.key for address in listed}
        exact = bridge.addresses_exact and bridge.addresses is not None
        # The kernel holds an IPv6 address once, with one prefix length.
        resized = {address.ip for address in listed if address.ipv6}
        surplus = [
            address
            for address in present
            if address.key not in keys and (address.ip in resized or (exact and address.key in static))
        ]
        for address in surplus:
            if _has(self.network[bridge.name], address):
                self._do(RemoveAddress(bridge.name, address))
        # Going down has taken IPv6 addresses along, of which those that are not static come back by themselves, and
        # removing the first of an IPv4 subnet its others.
        gone = {address.key for address in surplus}
        kept = [each for each in present if each.key not in gone and (each.key in static or not each.ipv6)]
        for address in (*kept, *listed):
            if not _has(self.network[bridge.name], address):
                self._do(AddAddress(bridge.name, address))

    def _pin_mac(self, bridge: Bridge) -> None:
        mac = bridge.settings.get(ADDRESS.name)
        link = self.network[bridge.name]
        if mac is not None and (link.settings.get(ADDRESS.name) != mac or link.mac_pinned is False):
            self._do(Set(bridge.name, ADDRESS, mac))


def _kind(link: Link) -> str:
    return f"a link of kind {link.kind}" if link.kind else "a device of its own"
