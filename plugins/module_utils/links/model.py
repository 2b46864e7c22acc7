# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What bridges and taps are: as the administrator wants them (`Bridge`, `Tap`), as the kernel has them (`Link`), and
the options of both.

Values inside are the kernel's: timers are whole centiseconds (clock_t of USER_HZ = 100), addresses are normalised.
Seconds and what else the administrator writes exist at the edges only: `Option.parse` on the way in, `Option.report`
on the way out.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Union

from .vlans import MAX_VLAN, MIN_VLAN, Vlans, VlanWish, write_vlans

Value = Union[bool, int, str]
Arguments = Mapping[str, Any]
# An argument specification as Ansible reads it.
ArgumentSpec = dict[str, dict[str, Any]]

# <linux/if.h>: IFNAMSIZ less the final NUL
MAX_NAME = 15
# <linux/if_ether.h>: ETH_MIN_MTU and ETH_MAX_MTU, the range of every bridge
MIN_MTU, MAX_MTU = 68, 65535
# <linux/ipv6.h>: IPV6_MIN_MTU; the kernel takes IPv6 off a link with a smaller MTU
IPV6_MIN_MTU = 1280
# net/bridge/br_private.h: BR_MAX_PORTS less port number 0
MAX_PORTS = 1023
# <linux/if.h>: IFALIASZ, less the final NUL that the kernel adds
MAX_ALIAS = 255
# net/bridge/br_private.h: BR_GROUPFWD_RESTRICTED. Frames of STP, of flow control and of link aggregation are for the
# bridge itself, and never forwarded.
RESTRICTED_GROUPS = 0b111
# <linux/if_addr.h>: lifetime of an address that nobody renews
FOREVER = 0xFFFFFFFF

# drivers/net/tun.c: MAX_MTU less the Ethernet header, the largest of every tap
MAX_TAP_MTU = 65521
# <linux/uidgid.h>: the id that is none, as a tap has it whose owner was never set
NOBODY = -1
# The user who gets a new tap that is for nobody else.
ROOT = 0
# <linux/if_link.h>: IN6_ADDR_GEN_MODE_EUI64 and IN6_ADDR_GEN_MODE_NONE
_EUI64, _NO_ADDRESS = 0, 1

# What `mac` may say instead of an address.
STABLE = "stable"


class LinksError(Exception):
    """What stops the work; the text is made of whole sentences for the administrator."""


class BadValue(LinksError):
    """A value that no host could be given."""


# ---------------------------------------------------------------------------------------------------------------------
# Values


def link_name(value: object, what: str) -> str:
    """`value` if it can be the name of a link: the rule of dev_valid_name() in net/core/dev.c, and stricter.

    The kernel takes 1-15 bytes without `/`, `:` and blanks, which to it include the byte 0xa0. Beyond that `%` (a
    template) and control bytes are refused. `what` names the value in the message. Raises BadValue.
    """
    name = str(value)
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise BadValue(f"{what}: {name!r} is not valid UTF-8.") from None
    if not raw:
        fault = "it is empty"
    elif len(raw) > MAX_NAME:
        fault = f"it has {len(raw)} bytes, and the kernel takes at most {MAX_NAME}"
    elif name in (".", ".."):
        fault = "it is a directory's name"
    elif any(byte <= 0x20 or byte in (0x7F, 0xA0) for byte in raw):
        fault = "it holds a blank or control byte"
    elif any(byte in b"/:%" for byte in raw):
        fault = "it holds one of / : %"
    else:
        return name
    raise BadValue(f"{what}: {name!r} can't be the name of a link, because {fault}.")


def unicast_mac(value: object, what: str) -> str:
    """`value` as a MAC address in lower case with colons; a link can be given unicast addresses only.

    Fact: is_valid_ether_addr() in <linux/etherdevice.h>. Raises BadValue.
    """
    text = str(value)
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-])[0-9A-Fa-f]{2}(\1[0-9A-Fa-f]{2}){4}", text):
        raise BadValue(
            f"{what}: {text!r} is not a MAC address. Write six pairs of hexadecimal digits, in quotes: without them "
            "YAML takes an address of decimal digits only for a number."
        )
    mac = text.lower().replace("-", ":")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise BadValue(f"{what}: {mac} is not a unicast address, which is what a link needs.")
    return mac


def stable_mac(machine_id: str, name: str, netns: str | None = None) -> str:
    """A MAC address that belongs to the bridge `name` of this machine (and of this network namespace) for good.

    Unicast and locally administered. machine-id(5) asks that the id itself is not exposed, hence the keyed hash.
    """
    subject = f"hostnet.qemu bridge {netns}/{name}" if netns else f"hostnet.qemu bridge {name}"
    octets = bytearray(hmac.new(machine_id.encode(), subject.encode(), hashlib.sha256).digest()[:6])
    octets[0] = octets[0] & 0xFE | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)


def _seconds(value: object, what: str) -> int:
    """Seconds as whole centiseconds, the kernel's unit of bridge timers (a u32)."""
    try:
        seconds = float(value)  # type: ignore[arg-type]  # whatever else it is, float() says so
    except (TypeError, ValueError):
        raise BadValue(f"{what}: {value!r} is not a number of seconds.") from None
    if not math.isfinite(seconds) or not 0 <= round(seconds * 100) <= 0xFFFFFFFF:
        raise BadValue(f"{what}: {value!r} seconds are out of range; the kernel holds 0 to 42949672.95.")
    return round(seconds * 100)


def _number(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadValue(f"{what}: {value!r} is not a whole number.")
    return value


def _group_mask(value: object, what: str) -> int:
    """A mask of the group addresses 01:80:C2:00:00:00 to -0F; br_set_group_fwd_mask() in the kernel refuses three."""
    mask = _number(value, what)
    if not 0 <= mask <= 0xFFFF:
        raise BadValue(f"{what}: {mask} is out of range; it is a mask of 16 bits, 0 to 65535.")
    if mask & RESTRICTED_GROUPS:
        raise BadValue(
            f"{what}: {mask} has one of the bits 0, 1 and 2 set, and the kernel never forwards STP, flow control and "
            "link aggregation, which they stand for. Leave these bits out."
        )
    return mask


def _alias(value: object, what: str) -> str:
    """Text of at most 255 bytes; dev_set_alias() in the kernel. Control characters would spoil what shows it."""
    text = str(value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise BadValue(f"{what}: {text!r} is not valid UTF-8.") from None
    if size > MAX_ALIAS:
        raise BadValue(f"{what}: it has {size} bytes, and {MAX_ALIAS} are possible. Shorten it.")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise BadValue(f"{what}: {text!r} holds a control character. Leave it out.")
    return text


def _vlans(values: Iterable[object], what: str) -> frozenset[int]:
    """VLANs written as numbers and ranges such as 100-110; raises BadValue."""
    found: set[int] = set()
    for value in values:
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", str(value))
        if not match:
            raise BadValue(f"{what}: {value!r} is not a VLAN. Write a number or a range, such as 100 or 100-110.")
        first, last = int(match[1]), int(match[2] or match[1])
        if not MIN_VLAN <= first <= last <= MAX_VLAN:
            raise BadValue(f"{what}: {value} is out of range; VLANs are {MIN_VLAN} to {MAX_VLAN}, the lower one first.")
        found.update(range(first, last + 1))
    return frozenset(found)


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise BadValue(f"{what}: {value!r} is neither true nor false.")
    return value


@dataclass(frozen=True)
class Unit:
    """How values of one sort are read, reported and compared."""

    argument_type: str
    parse: Callable[[object, str], Value]
    report: Callable[[Any], Any] = lambda value: value
    # Kernel values this far apart are equal: jiffies round timers by up to a centisecond.
    slack: int = 0
    # Kernel values are equal if this says the same of them.
    meaning: Callable[[Any], Any] = lambda value: value


FLAG = Unit("bool", _flag)
NUMBER = Unit("int", _number)
SECONDS = Unit("float", _seconds, lambda value: value / 100, slack=1)
MAC = Unit("str", unicast_mac)
TEXT = Unit("str", _alias)
# The kernel has more ways to make an address up than one; any of them means true.
ADDR_GEN_MODE = Unit(
    "bool",
    lambda value, what: _EUI64 if _flag(value, what) else _NO_ADDRESS,
    lambda value: value != _NO_ADDRESS,
    meaning=lambda value: value != _NO_ADDRESS,
)
# Ids of users and groups; the names that they are written by are looked up by `Tap.from_arguments`.
ID = Unit("str", _number, lambda value: None if value == NOBODY else value)
GROUP_MASK = Unit("int", _group_mask)

# What an option belongs to: any link, a bridge, a port of a bridge, a tap.
LINK, BRIDGE, PORT, TAP = "link", "bridge", "port", "tap"


@dataclass(frozen=True)
class Option:
    """One setting of a link: its name in the modules, its netlink attribute, its word in iproute2, its unit.

    `default` is what a fresh link of the kind has, in the kernel's unit; None where the kernel works it out. `limits`
    are the lowest and highest value that the kernel ever takes, where it does not take all that the attribute can hold.
    """

    name: str
    level: str
    attribute: str
    word: str
    unit: Unit
    default: Value | None = None
    limits: tuple[int, int] | None = None

    def parse(self, value: object, owner: str) -> Value:
        """The kernel's value for what the administrator wrote for `owner`; raises BadValue."""
        what = f"{self.name} of {owner}"
        parsed = self.unit.parse(value, what)
        if self.limits and not self.limits[0] <= int(parsed) <= self.limits[1]:
            lowest, highest = (f"{self.report(limit):.10g}" for limit in self.limits)
            raise BadValue(f"{what}: {value} is out of range; the kernel takes {lowest} to {highest}.")
        return parsed

    def report(self, value: Value) -> Any:
        """What the administrator would have written for the kernel's `value`."""
        return self.unit.report(value)

    def same(self, one: Value | None, other: Value | None) -> bool:
        """Whether the kernel's values `one` and `other` mean the same."""
        if one is None or other is None:
            return one is other
        if not self.unit.slack:
            return bool(self.unit.meaning(one) == self.unit.meaning(other))
        return abs(int(one) - int(other)) <= self.unit.slack


# Facts: <linux/if_link.h> for the attributes, br_dev_setup() and new_nbp() in net/bridge/ for the defaults,
# iplink_bridge.c and iplink_bridge_slave.c of iproute2 for the words.
UP = Option("up", LINK, "IFF_UP", "up", FLAG, False)
MTU = Option("mtu", LINK, "IFLA_MTU", "mtu", NUMBER, 1500)
ADDRESS = Option("mac", LINK, "IFLA_ADDRESS", "address", MAC)
ALIAS = Option("alias", LINK, "IFLA_IFALIAS", "alias", TEXT, "")
STP = Option("stp", BRIDGE, "IFLA_BR_STP_STATE", "stp_state", FLAG, False)
FORWARD_DELAY = Option("forward_delay", BRIDGE, "IFLA_BR_FORWARD_DELAY", "forward_delay", SECONDS, 1500)
AGEING_TIME = Option("ageing_time", BRIDGE, "IFLA_BR_AGEING_TIME", "ageing_time", SECONDS, 30000)
# br_set_hello_time() and br_set_max_age() in net/bridge/br_stp.c keep these limits with STP on and off.
HELLO_TIME = Option("hello_time", BRIDGE, "IFLA_BR_HELLO_TIME", "hello_time", SECONDS, 200, (100, 1000))
MAX_AGE = Option("max_age", BRIDGE, "IFLA_BR_MAX_AGE", "max_age", SECONDS, 2000, (600, 4000))
PRIORITY = Option("priority", BRIDGE, "IFLA_BR_PRIORITY", "priority", NUMBER, 0x8000, (0, 0xFFFF))
MULTICAST_SNOOPING = Option("multicast_snooping", BRIDGE, "IFLA_BR_MCAST_SNOOPING", "mcast_snooping", FLAG, True)
MULTICAST_QUERIER = Option("multicast_querier", BRIDGE, "IFLA_BR_MCAST_QUERIER", "mcast_querier", FLAG, False)
GROUP_FWD_MASK = Option("group_fwd_mask", BRIDGE, "IFLA_BR_GROUP_FWD_MASK", "group_fwd_mask", GROUP_MASK, 0)
VLAN_FILTERING = Option("vlan_filtering", BRIDGE, "IFLA_BR_VLAN_FILTERING", "vlan_filtering", FLAG, False)
# Only of a kernel that can filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING).
VLAN_DEFAULT_PVID = Option(
    "vlan_default_pvid", BRIDGE, "IFLA_BR_VLAN_DEFAULT_PVID", "vlan_default_pvid", NUMBER, 1, (0, MAX_VLAN)
)

LINK_OPTIONS = (UP, MTU, ADDRESS, ALIAS)
BRIDGE_OPTIONS = (
    STP,
    PRIORITY,
    FORWARD_DELAY,
    HELLO_TIME,
    MAX_AGE,
    AGEING_TIME,
    MULTICAST_SNOOPING,
    MULTICAST_QUERIER,
    GROUP_FWD_MASK,
    VLAN_FILTERING,
    VLAN_DEFAULT_PVID,
)

TXQUEUELEN = Option("txqueuelen", LINK, "IFLA_TXQLEN", "txqueuelen", NUMBER, 1000, (0, 0xFFFFFFFF))
IPV6 = Option("ipv6", LINK, "IFLA_INET6_ADDR_GEN_MODE", "addrgenmode", ADDR_GEN_MODE, _EUI64)
OWNER = Option("owner", TAP, "IFLA_TUN_OWNER", "user", ID, NOBODY)
GROUP = Option("group", TAP, "IFLA_TUN_GROUP", "group", ID, NOBODY)
MULTI_QUEUE = Option("multi_queue", TAP, "IFLA_TUN_MULTI_QUEUE", "multi_queue", FLAG, False)
# Whoever attaches to a tap rewrites these two, so they are given at creation only, and never compared.
VNET_HDR = Option("vnet_hdr", TAP, "IFLA_TUN_VNET_HDR", "vnet_hdr", FLAG, False)
PACKET_INFO = Option("packet_info", TAP, "IFLA_TUN_PI", "pi", FLAG, False)

# Of a tap, those that netlink sets while it exists; those of `ip tuntap`; the latter that can be compared.
TAP_LINK_OPTIONS = (*LINK_OPTIONS, TXQUEUELEN, IPV6)
TUN_OPTIONS = (OWNER, GROUP, MULTI_QUEUE, VNET_HDR, PACKET_INFO)
COMPARED_TUN_OPTIONS = (OWNER, GROUP, MULTI_QUEUE)

# A link that leaves its bridge loses these; they are known here so that an undone departure restores them. Limits:
# br_stp_set_path_cost() and br_stp_set_port_priority() in net/bridge/br_stp_if.c.
PORT_OPTIONS = (
    Option("cost", PORT, "IFLA_BRPORT_COST", "cost", NUMBER, limits=(1, 0xFFFF)),
    Option("priority", PORT, "IFLA_BRPORT_PRIORITY", "priority", NUMBER, 32, (0, 63)),
    Option("hairpin", PORT, "IFLA_BRPORT_MODE", "hairpin", FLAG, False),
    Option("guard", PORT, "IFLA_BRPORT_GUARD", "guard", FLAG, False),
    Option("root_block", PORT, "IFLA_BRPORT_PROTECT", "root_block", FLAG, False),
    Option("fast_leave", PORT, "IFLA_BRPORT_FAST_LEAVE", "fastleave", FLAG, False),
    Option("learning", PORT, "IFLA_BRPORT_LEARNING", "learning", FLAG, True),
    Option("unicast_flood", PORT, "IFLA_BRPORT_UNICAST_FLOOD", "flood", FLAG, True),
    Option("multicast_flood", PORT, "IFLA_BRPORT_MCAST_FLOOD", "mcast_flood", FLAG, True),
    Option("multicast_to_unicast", PORT, "IFLA_BRPORT_MCAST_TO_UCAST", "mcast_to_unicast", FLAG, False),
    Option("broadcast_flood", PORT, "IFLA_BRPORT_BCAST_FLOOD", "bcast_flood", FLAG, True),
    Option("neigh_suppress", PORT, "IFLA_BRPORT_NEIGH_SUPPRESS", "neigh_suppress", FLAG, False),
    Option("isolated", PORT, "IFLA_BRPORT_ISOLATED", "isolated", FLAG, False),
    Option("locked", PORT, "IFLA_BRPORT_LOCKED", "locked", FLAG, False),
)

# Those that a tap has as options.
TAP_PORT_OPTIONS = tuple(
    option
    for option in PORT_OPTIONS
    if option.name
    in (
        "cost",
        "guard",
        "hairpin",
        "isolated",
        "learning",
        "locked",
        "multicast_flood",
        "priority",
        "unicast_flood",
    )
)

# The VLAN of frames without a tag; of a port, and beside the lists of its VLANs, so not one of its plain settings.
PVID = Option("pvid", PORT, "IFLA_BRIDGE_VLAN_INFO", "pvid", NUMBER, limits=(0, MAX_VLAN))

# The options of a tap that list VLANs, by how their frames leave the bridge.
VLAN_LISTS = ("untagged", "tagged")

# In clock_t; net/bridge/br_private.h. With STP on the kernel refuses a forward delay outside of this, and clamps one
# that it finds when STP is turned on.
STP_FORWARD_DELAY = (200, 3000)


@dataclass(frozen=True)
class Address:
    """An IP address on a link, with what is needed to put it back as it was.

    `peer` is the other end of a point-to-point address, else empty. Two addresses are the same one if their `key` is.
    """

    ip: str
    prefix: int
    peer: str = ""
    broadcast: str = ""
    label: str = ""
    scope: int = 0
    flags: int = 0
    metric: int = 0
    # Seconds that are left.
    valid: int = FOREVER
    preferred: int = FOREVER
    # Somebody renews it: a DHCP client, router advertisements.
    dynamic: bool = False

    @classmethod
    def parse(cls, value: object, what: str) -> Address:
        """An address written as `192.0.2.1/24`, `2001:db8::1/64` or `10.0.0.1 peer 10.0.0.2/32`; raises BadValue.

        IPv4 addresses get their network's broadcast address, as network managers give them one.
        """
        text = str(value)
        local, word, far = text.partition(" peer ")
        try:
            if "/" not in (far or local) or "%" in text:
                raise ValueError
            interface = ipaddress.ip_interface(far or local)
            ip = ipaddress.ip_address(local) if word else interface.ip
            if ip.version != interface.version:
                raise ValueError
        except ValueError:
            raise BadValue(f"{what}: {text!r} is not an address with prefix length such as 192.0.2.1/24.") from None
        if any(each.is_multicast or each.is_unspecified for each in (ip, interface.ip)):
            raise BadValue(f"{what}: {text} is not an address that a link can have.")
        network = interface.network
        if word:
            return cls(str(ip), network.prefixlen, peer=str(interface.ip))
        # RFC 3021: a /31 has no broadcast address.
        with_broadcast = network.version == 4 and network.prefixlen <= 30
        return cls(str(ip), network.prefixlen, broadcast=str(network.broadcast_address) if with_broadcast else "")

    @property
    def key(self) -> tuple[str, int, str]:
        """What makes two addresses of one link the same."""
        return self.ip, self.prefix, self.peer or self.ip

    @property
    def packed(self) -> tuple[bytes, int]:
        """What addresses are sorted by."""
        return ipaddress.ip_address(self.ip).packed, self.prefix

    @property
    def ipv6(self) -> bool:
        """Whether it is an IPv6 address."""
        return ":" in self.ip

    @property
    def link_local(self) -> bool:
        """Whether it is of fe80::/10 or 169.254.0.0/16, which hosts give themselves."""
        return ipaddress.ip_address(self.ip).is_link_local

    @property
    def subnet(self) -> str:
        """The network that it is in; the kernel treats IPv4 addresses of one subnet as one primary and its others."""
        return str(ipaddress.ip_interface(f"{self.peer or self.ip}/{self.prefix}").network)

    def __str__(self) -> str:
        if self.peer and self.peer != self.ip:
            return f"{self.ip} peer {self.peer}/{self.prefix}"
        return f"{self.ip}/{self.prefix}"


# ---------------------------------------------------------------------------------------------------------------------
# The current state


@dataclass(frozen=True)
class Link:
    """A link of the kernel.

    `settings` holds values by option name: those of LINK_OPTIONS, on a bridge those of BRIDGE_OPTIONS, on a port of a
    bridge those of PORT_OPTIONS that this kernel has, on a tap those of TUN_OPTIONS and TAP_LINK_OPTIONS. `holder` says
    how a guest holds the link, empty if none does.
    """

    name: str
    kind: str = ""
    settings: Mapping[str, Value] = field(default_factory=dict)
    master: str = ""
    # Its MAC address was set by somebody. An unpinned bridge takes the lowest address of its ports. None: unknown.
    mac_pinned: bool | None = True
    mtu_range: tuple[int, int] = (MIN_MTU, MAX_MTU)
    ethernet: bool = True
    loopback: bool = False
    # It stays when its last user closes it. A tap need not.
    persistent: bool = True
    holder: str = ""
    addresses: tuple[Address, ...] = ()
    # Of a bridge, as a port of itself, and of its ports. None: not read, or the kernel can't filter.
    vlans: Vlans | None = None

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge of the kernel."""
        return self.kind == "bridge"

    @property
    def is_tap(self) -> bool:
        """Whether it is a tap: a tun device, of which there are two types, that carries Ethernet frames."""
        return self.kind == "tun" and self.ethernet

    @property
    def static_addresses(self) -> list[Address]:
        """Its addresses less those that are renewed, and the link-local ones."""
        return [address for address in self.addresses if not address.dynamic and not address.link_local]

    @property
    def filters_vlans(self) -> bool:
        """Whether it is a bridge on which the VLANs of ports mean something."""
        return bool(self.settings.get(VLAN_FILTERING.name))


class Network:
    """The links that matter to a task, by name. Links are values; the network is changed by replacing them."""

    def __init__(self, links: Iterable[Link] = ()) -> None:
        self._links = {link.name: link for link in links}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self._links == other._links

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Network({list(self)!r})"

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def __contains__(self, name: str) -> bool:
        return name in self._links

    def __getitem__(self, name: str) -> Link:
        return self._links[name]

    def get(self, name: str) -> Link | None:
        """The link of this name, or None."""
        return self._links.get(name)

    def put(self, link: Link) -> None:
        """Add a link, or replace the one of its name."""
        self._links[link.name] = link

    def remove(self, name: str) -> None:
        """Take a link away."""
        del self._links[name]

    def ports(self, bridge: str) -> list[Link]:
        """The ports of a bridge, by name."""
        return sorted((link for link in self if link.master == bridge), key=lambda link: link.name)

    def copy(self) -> Network:
        """A network of the same links that can be changed apart."""
        return Network(self)


# ---------------------------------------------------------------------------------------------------------------------
# The desired state


@dataclass(frozen=True)
class Bridge:
    """A bridge as the administrator wants it. What is None, or not in `settings`, is left as it is."""

    name: str
    present: bool = True
    force: bool = False
    settings: Mapping[str, Value] = field(default_factory=dict)
    ports: tuple[str, ...] | None = None
    ports_exact: bool = False
    addresses: tuple[Address, ...] | None = None
    addresses_exact: bool = False
    # Those that the host sends and receives with a tag.
    vlans: frozenset[int] | None = None

    @classmethod
    def from_arguments(cls, arguments: Arguments, machine_id: Callable[[], str], netns: str | None = None) -> Bridge:
        """The bridge that arguments after `bridge_argument_spec` ask for; raises BadValue.

        `machine_id` is called where `mac` says `stable`.
        """
        name = link_name(arguments["name"], "name")
        owner = f"bridge {name}"
        settings: dict[str, Value] = {}
        for option in (*LINK_OPTIONS, *BRIDGE_OPTIONS):
            value = arguments.get(option.name)
            if option is ADDRESS and value == STABLE:
                settings[option.name] = stable_mac(machine_id(), name, netns)
            elif value is not None:
                settings[option.name] = option.parse(value, owner)
        ports, vlans = arguments.get("ports"), arguments.get("vlans")
        addresses = arguments.get("addresses")
        if addresses is not None:
            addresses = _unique(Address.parse(address, f"addresses of {owner}") for address in addresses)
            ipv6 = [address.ip for address in addresses if address.ipv6]
            if len(ipv6) > len(set(ipv6)):
                raise BadValue(f"addresses of {owner}: an IPv6 address can be there once, with one prefix length.")
        return cls(
            name=name,
            present=arguments.get("state", "present") == "present",
            force=bool(arguments.get("force")),
            settings=settings,
            ports=None if ports is None else _unique(link_name(port, f"ports of {owner}") for port in ports),
            ports_exact=arguments.get("ports_mode") == "exact",
            addresses=addresses,
            addresses_exact=arguments.get("addresses_mode") == "exact",
            vlans=None if vlans is None else _vlans(vlans, f"vlans of {owner}"),
        )

    @property
    def names_vlans(self) -> bool:
        """Whether it asks for something that concerns VLANs."""
        return self.vlans is not None or bool({VLAN_FILTERING.name, VLAN_DEFAULT_PVID.name} & set(self.settings))


@dataclass(frozen=True)
class Tap:
    """A persistent tap as the administrator wants it. What is None, or not in `settings`, is left as it is.

    `settings` are those of TAP_LINK_OPTIONS and COMPARED_TUN_OPTIONS, `port_settings` those of TAP_PORT_OPTIONS, which
    it has as a port of `bridge` (empty: of none), like `vlans`. `creation` are the flags that matter while it is made.
    """

    name: str
    present: bool = True
    force: bool = False
    settings: Mapping[str, Value] = field(default_factory=dict)
    port_settings: Mapping[str, Value] = field(default_factory=dict)
    vlans: VlanWish | None = None
    bridge: str | None = None
    creation: Mapping[str, Value] = field(default_factory=dict)
    # It was not asked for: it goes with being on a bridge.
    ipv6_by_default: bool = False

    @classmethod
    def from_arguments(cls, arguments: Arguments, user_id: Callable[[str], int], group_id: Callable[[str], int]) -> Tap:
        """The tap that arguments after `tap_argument_spec` ask for; raises BadValue.

        `user_id` and `group_id` look names up, and raise KeyError for those that are none.
        """
        name = link_name(arguments["name"], "name")
        where = f"tap {name}"
        settings: dict[str, Value] = {}
        for option in (*TAP_LINK_OPTIONS, MULTI_QUEUE):
            if arguments.get(option.name) is not None:
                settings[option.name] = option.parse(arguments[option.name], where)
        present = arguments.get("state", "present") == "present"
        for option, look_up, kind in ((OWNER, user_id, "user"), (GROUP, group_id, "group")):
            # Whose tap is to go may have gone before.
            if present and arguments.get(option.name) is not None:
                settings[option.name] = _id(str(arguments[option.name]), f"{option.name} of {where}", kind, look_up)
        bridge = arguments.get("bridge")
        if bridge:
            bridge = link_name(bridge, f"bridge of {where}")
        ipv6_by_default = bool(bridge) and IPV6.name not in settings
        if ipv6_by_default:
            settings[IPV6.name] = _NO_ADDRESS
        return cls(
            name=name,
            present=present,
            force=bool(arguments.get("force")),
            settings=settings,
            port_settings={
                option.name: option.parse(arguments[option.name], where)
                for option in TAP_PORT_OPTIONS
                if arguments.get(option.name) is not None
            },
            vlans=_vlan_wish(arguments, where),
            bridge=bridge,
            creation={
                option.name: option.parse(bool(arguments.get(option.name)), where) for option in (VNET_HDR, PACKET_INFO)
            },
            ipv6_by_default=ipv6_by_default,
        )


def _vlan_wish(arguments: Arguments, where: str) -> VlanWish | None:
    """What the VLAN options of a port ask for; None if none is given. Raises BadValue."""
    lists = {
        name: None if arguments.get(name) is None else _vlans(arguments[name], f"{name} of {where}")
        for name in VLAN_LISTS
    }
    untagged, tagged = lists.values()
    pvid = None if arguments.get(PVID.name) is None else int(PVID.parse(arguments[PVID.name], where))
    both = (untagged or frozenset()) & (tagged or frozenset())
    if both:
        raise BadValue(f"untagged and tagged of {where}: {min(both)} is in both lists. List it in one.")
    if pvid is not None and untagged is None:
        # A port of one VLAN, or the own VLAN of a port with more: what has no tag coming in has none going out.
        untagged = frozenset((pvid,)) - {0} - (tagged or frozenset())
    if untagged is None and tagged is None:
        return None
    return VlanWish(pvid, untagged, tagged)


def _id(text: str, what: str, kind: str, look_up: Callable[[str], int]) -> int:
    """The id of the user or group `text`, which is a name or an id; an empty text is nobody. Raises BadValue."""
    if not text:
        return NOBODY
    if text.isascii() and text.isdigit():
        # The largest one is (uid_t) -1, which is none.
        if int(text) >= 0xFFFFFFFF:
            raise BadValue(f"{what}: {text} is out of range; ids are 0 to 4294967294.")
        return int(text)
    try:
        return look_up(text)
    except (KeyError, ValueError):
        raise BadValue(f"{what}: there is no {kind} {text!r} on this host. Make it first, or give an id.") from None


def _unique(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


# A list to be exact about has to be given.
BRIDGE_REQUIRED_IF = [("ports_mode", "exact", ["ports"]), ("addresses_mode", "exact", ["addresses"])]


def bridge_argument_spec() -> ArgumentSpec:
    """The options of one bridge, without those of the task as a whole such as `netns`."""
    spec: ArgumentSpec = {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "force": {"type": "bool", "default": False},
        "ports": {"type": "list", "elements": "str"},
        "ports_mode": {"type": "str", "choices": ["append", "exact"], "default": "append"},
        "addresses": {"type": "list", "elements": "str"},
        "addresses_mode": {"type": "str", "choices": ["append", "exact"], "default": "append"},
        "vlans": {"type": "list", "elements": "str"},
    }
    for option in (*LINK_OPTIONS, *BRIDGE_OPTIONS):
        spec[option.name] = {"type": option.unit.argument_type}
    spec[UP.name]["default"] = True
    return spec


def tap_argument_spec() -> ArgumentSpec:
    """The options of one tap, without those of the task as a whole such as `netns`."""
    spec: ArgumentSpec = {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "force": {"type": "bool", "default": False},
        "bridge": {"type": "str"},
        PVID.name: {"type": PVID.unit.argument_type},
        **{name: {"type": "list", "elements": "str"} for name in VLAN_LISTS},
    }
    for option in (*TAP_LINK_OPTIONS, *TUN_OPTIONS, *TAP_PORT_OPTIONS):
        spec[option.name] = {"type": option.unit.argument_type}
    spec[UP.name]["default"] = True
    for option in (VNET_HDR, PACKET_INFO):
        spec[option.name]["default"] = False
    return spec


def describe_tap(network: Network, name: str) -> dict[str, Any]:
    """The tap `name` in the words of the module's options; of an absent one its name and state only.

    `held` says how a guest holds it. VLANs are told only if its bridge filters them.
    """
    tap = network.get(name)
    if tap is None:
        return {"name": name, "state": "absent"}
    state: dict[str, Any] = {"name": name, "state": "present"}
    for option in (*TAP_LINK_OPTIONS, *COMPARED_TUN_OPTIONS, *TAP_PORT_OPTIONS):
        value = tap.settings.get(option.name)
        state[option.name] = None if value is None else option.report(value)
    state["bridge"] = tap.master
    state.update(_vlans_of_port(network, tap) or dict.fromkeys((PVID.name, *VLAN_LISTS)))
    state["held"] = tap.holder
    return state


def describe(network: Network, name: str) -> dict[str, Any]:
    """The bridge `name` in the words of the module's options; of an absent one its name and state only.

    Among `ports` are no taps that end with their user, among `addresses` none that are dynamic or link-local: what a
    task can't bring about is not part of the state. `held_ports` are the taps that a guest holds. `vlans` are told only
    if it filters them.
    """
    bridge = network.get(name)
    if bridge is None:
        return {"name": name, "state": "absent"}
    ports = network.ports(name)
    state: dict[str, Any] = {"name": name, "state": "present"}
    for option in (*LINK_OPTIONS, *BRIDGE_OPTIONS):
        value = bridge.settings.get(option.name)
        state[option.name] = None if value is None else option.report(value)
    state["mac_pinned"] = bridge.mac_pinned
    state["ports"] = [port.name for port in ports if port.persistent]
    state["held_ports"] = [port.name for port in ports if port.holder]
    state["addresses"] = write_addresses(bridge.static_addresses)
    state["vlans"] = _vlans_of_host(bridge)
    return state


def _vlans_of_port(network: Network, port: Link) -> dict[str, Any] | None:
    """The VLANs of a port in the words of options; None where they mean nothing."""
    bridge = network.get(port.master)
    if port.vlans is None or bridge is None or not bridge.filters_vlans:
        return None
    written = write_vlans(port.vlans.untagged), write_vlans(port.vlans.tagged)
    return {PVID.name: port.vlans.pvid, **dict(zip(VLAN_LISTS, written))}


def _vlans_of_host(bridge: Link) -> list[str] | None:
    """Those that the host is a member of with a tag; None where they mean nothing."""
    return write_vlans(bridge.vlans.tagged) if bridge.vlans is not None and bridge.filters_vlans else None


def settable_tap(network: Network, name: str) -> dict[str, Any] | None:
    """The options that make the tap `name` anew as it is, and that a task which gives them finds as they should be.

    What the options can't say is left out, and so is a MAC address that nobody has set. None if there is nothing that a
    task could do: the tap ends with its user, or its name is refused.
    """
    tap = network[name]
    if not tap.persistent or not _valid(link_name, name, "name"):
        return None
    options: dict[str, Any] = {"name": name}
    options.update(_written(tap, (*TAP_LINK_OPTIONS, MULTI_QUEUE, VNET_HDR, PACKET_INFO)))
    for option in (OWNER, GROUP):
        given = tap.settings.get(option.name, NOBODY)
        options[option.name] = "" if given == NOBODY else str(given)
    master = network.get(tap.master)
    if master is None:
        options["bridge"] = ""
    elif master.is_bridge and _valid(link_name, master.name, "bridge"):
        options["bridge"] = master.name
        options.update(_written(tap, TAP_PORT_OPTIONS))
        options.update(_vlans_of_port(network, tap) or {})
    return options


def settable(network: Network, name: str) -> dict[str, Any] | None:
    """The options that make the bridge `name` anew as it is, and that a task which gives them finds as they should be.

    What the options can't say is left out. So is what the bridge takes from its ports: a MAC address that nobody has
    set, and an MTU that is the smallest of theirs. None if the name is one that tasks refuse. `network` holds all of
    its ports.
    """
    bridge = network[name]
    if not _valid(link_name, name, "name"):
        return None
    options: dict[str, Any] = {"name": name}
    options.update(_written(bridge, (*LINK_OPTIONS, *BRIDGE_OPTIONS)))
    ports = network.ports(name)
    # br_mtu_min() in net/bridge/br_if.c
    if bridge.settings.get(MTU.name) == min((port.settings[MTU.name] for port in ports), default=MTU.default):
        options.pop(MTU.name, None)
    lowest, highest = STP_FORWARD_DELAY
    if bridge.settings.get(STP.name) and not lowest <= int(bridge.settings[FORWARD_DELAY.name]) <= highest:
        # The root of a spanning tree dictates its delay to other bridges, and any. No task can ask for that.
        for option in (STP, FORWARD_DELAY):
            options.pop(option.name, None)
    options["ports"] = [port.name for port in ports if port.persistent and _valid(link_name, port.name, "ports")]
    options["addresses"] = [str(each) for each in _in_order_of_addition(bridge) if _valid(Address.parse, each, "")]
    vlans = _vlans_of_host(bridge)
    if vlans is not None:
        options["vlans"] = vlans
    return options


def _written(link: Link, options: Iterable[Option]) -> dict[str, Any]:
    """Those of `options` that the link has, and that can be given as they are."""
    written: dict[str, Any] = {}
    for option in options:
        value = link.settings.get(option.name)
        if value is None or (option is ADDRESS and not link.mac_pinned):
            continue
        told = option.report(value)
        if _valid(option.parse, told, link.name):
            written[option.name] = told
    return written


def _in_order_of_addition(link: Link) -> list[Address]:
    """Its static addresses in an order that leads to the kernel's own, by which it chooses among them.

    Fact: inet_insert_ifa() in net/ipv4/devinet.c puts a new address at the end, ipv6_link_dev_addr() in
    net/ipv6/addrconf.c before the others of its scope.
    """
    static = link.static_addresses
    return [each for each in static if not each.ipv6] + [each for each in reversed(static) if each.ipv6]


def _valid(parse: Callable[[Any, str], object], value: object, what: str) -> bool:
    """Whether `parse` takes the value."""
    try:
        parse(value, what)
    except BadValue:
        return False
    return True


def write_addresses(addresses: Iterable[Address]) -> list[str]:
    """Addresses as the administrator would write them, in the order of their numbers, IPv4 first."""
    return [str(address) for address in sorted(addresses, key=lambda each: (each.ipv6, each.packed))]
