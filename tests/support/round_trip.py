# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What bridge_info and tap_info tell, given back to links: nothing to do on the same host, the same on an empty one."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible_collections.hostnet.qemu.plugins.modules import bridge_info, links, tap_info
from hypothesis import strategies as st

from support.modules import run_module
from support.namespaces import ip

# Imported here so that not every module that is run has to do it, which takes the most of its time.
importlib.import_module("pyroute2.netlink.rtnl.ifaddrmsg")


class Told(NamedTuple):
    """The results of both modules."""

    bridges: list[dict[str, Any]]
    taps: list[dict[str, Any]]
    bridge_facts: dict[str, Any]
    tap_facts: dict[str, Any]


def tell(netns: str | None = None) -> Told:
    """Ask both modules for all links."""
    bridges, taps = (run_module(module.main, {"netns": netns}) for module in (bridge_info, tap_info))
    assert not bridges["changed"] and not taps["changed"], (bridges, taps)
    return Told(bridges["bridges"], taps["taps"], bridges["facts"], taps["facts"])


def give_back(told: Told, netns: str | None = None) -> dict[str, Any]:
    """Give the module links what was told."""
    result = run_module(links.main, {"bridges": told.bridges, "taps": told.taps, "netns": netns})
    assert not result.get("failed"), result
    return result


def check_round_trip() -> Told:
    """What is told changes nothing here, and makes the same anew in an empty namespace."""
    told = tell()
    assert give_back(told)["operations"] == []
    assert tell()[:2] == told[:2]
    ip("netns", "add", "empty")
    try:
        _lend_ports(told)
        give_back(told, "empty")
        made = tell("empty")
        assert _comparable(made, told) == _comparable(told, told)
        assert give_back(made, "empty")["operations"] == []
    finally:
        ip("netns", "delete", "empty")
    return told


def _lend_ports(told: Told) -> None:
    """Have in the empty namespace what bridges need there: links that are no taps, with the same MTU."""
    taps = {tap["name"] for tap in told.taps}
    for name in {port for bridge in told.bridges for port in bridge["ports"]} - taps:
        mtu = Path(f"/sys/class/net/{name}/mtu").read_text().strip()
        ip("-n", "empty", "link", "add", name, "mtu", mtu, "type", "veth", "peer", "name", f"{name}-far")


def _comparable(told: Told, original: Told) -> dict[str, dict[str, Any]]:
    """What is told of each link, less what the original leaves to the kernel."""
    found: dict[str, dict[str, Any]] = {}
    for kind in ("bridges", "taps"):
        options = {link["name"]: link for link in getattr(original, kind)}
        for link in getattr(told, kind):
            found[link["name"]] = {
                option: _comparable_value(link, option) for option in link if option in options[link["name"]]
            }
    return found


def _comparable_value(link: dict[str, Any], option: str) -> Any:
    value = link[option]
    if option == "vlans":
        # The host may have the VLAN of new ports with a tag, but no task takes it from it without one.
        return _numbers(value) - {link["vlan_default_pvid"]}
    # Timers are rounded by the kernel's clock.
    return pytest.approx(value, abs=0.011) if isinstance(value, float) else value


def _numbers(ranges: list[str]) -> set[int]:
    """The VLANs of ranges such as 20-30."""
    ends = [[int(end) for end in each.split("-")] for each in ranges]
    return {number for each in ends for number in range(each[0], each[-1] + 1)}


# ---------------------------------------------------------------------------------------------------------------------
# Links as anybody may have made them

# Some of the names are such that the modules refuse them.
BRIDGES = ("br0", "br1", "br\x01", b"br\xff")
TAPS = ("tap0", "tap1", b"tap\xff")
PORTS = ("p1", "p2")

# By iproute2's words.
OF_BRIDGES = {
    "forward_delay": st.integers(0, 4000),
    "hello_time": st.integers(90, 1010),
    "max_age": st.integers(590, 4010),
    "ageing_time": st.integers(0, 100000),
    "priority": st.integers(0, 65535),
    "group_fwd_mask": st.integers(0, 65535),
    **dict.fromkeys(("stp_state", "mcast_snooping", "mcast_querier", "vlan_filtering"), st.integers(0, 1)),
}
OF_PORTS = {
    "cost": st.integers(1, 65535),
    "priority": st.integers(0, 63),
    **dict.fromkeys(
        ("hairpin", "guard", "learning", "flood", "mcast_flood", "isolated", "locked", "fastleave"),
        st.sampled_from(("on", "off")),
    ),
}
_ADDRESSES = (
    "192.0.2.1/24 broadcast +",
    "192.0.2.2/24",
    "192.0.2.2/25",
    "198.51.100.1/31",
    "10.0.0.1 peer 10.0.0.2/32",
    "127.0.0.9/32",
    "224.0.0.5/24",
    "0.0.0.5/8",
    "169.254.9.9/16",
    "203.0.113.5/24 valid_lft 1000 preferred_lft 500",
    "2001:db8::1/64",
    "2001:db8::2/64 preferred_lft 0",
    "2001:db8:1::1/128 peer 2001:db8:2::1/64",
    "2001:db8::9/64 valid_lft 1000 preferred_lft 500",
    "::ffff:192.0.2.77/128",
    "fe80::7/64",
)
_ALIASES = (b"one's own", b"", b" two\tlines\n", b"\xff", "bröcke ↔ \U0001f5a7".encode(), b"{{ braces }}")
_MACS = ("02:00:00:00:00:07", "fe:54:00:12:34:56", "00:00:00:00:00:01")

_VLANS = ("1", "7", "20-30", "4094")
_HOW = ((), ("untagged",), ("pvid",), ("pvid", "untagged"))
_GIVEN = (("user", "nobody"), ("user", "0"), ("group", "54321"), ("multi_queue",), ("vnet_hdr",), ("pi",))

Command = list[Any]


def commands(*, vlans: bool = False) -> st.SearchStrategy[list[Command]]:
    """Commands of iproute2, of which the kernel may refuse some, that leave bridges, taps and ports in some state."""
    bridge, tap, port = (st.sampled_from(names) for names in (BRIDGES, TAPS, (*TAPS, *PORTS)))
    link = st.sampled_from((*BRIDGES, *TAPS, *PORTS))
    changes = [
        _of_kind("bridge", OF_BRIDGES, bridge),
        _of_kind("bridge_slave", OF_PORTS, port),
        _words("ip link set", link, st.sampled_from(("up", "down"))),
        _words("ip link set", link, "mtu", st.integers(68, 9000) | st.sampled_from((1279, 1280, 1500))),
        _words("ip link set", link, "address", st.sampled_from(_MACS)),
        _words("ip link set", link, "alias", st.sampled_from(_ALIASES)),
        _words("ip link set", tap, "txqueuelen", st.integers(0, 5000)),
        _words("ip link set", tap, "addrgenmode", st.sampled_from(("none", "eui64", "random"))),
        _words("ip link set", port, "master", bridge),
        _words("ip link set", port, "nomaster"),
        _words("ip address add dev", link, st.sampled_from(_ADDRESSES)),
    ]
    made: list[Command] = [["ip", "link", "add", name, "type", "bridge"] for name in BRIDGES]
    made += [["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far"] for name in PORTS]
    if vlans:
        which, how = st.sampled_from(_VLANS), st.sampled_from(_HOW)
        changes += [
            _words("bridge vlan add dev", port, "vid", which, how),
            _words("bridge vlan del dev", port, "vid", which),
            _words("bridge vlan add dev", bridge, "self vid", which, how),
            _words("bridge vlan del dev", bridge, "self vid", which),
            _words("ip link set", bridge, "type bridge vlan_default_pvid", st.sampled_from((0, 1, 7, 4094))),
        ]
        made += [["ip", "link", "set", name, "type", "bridge", "vlan_filtering", "1"] for name in BRIDGES]
    given = st.lists(st.sampled_from(_GIVEN), max_size=3, unique_by=lambda words: words[0])
    taps = st.tuples(*(_words("ip tuntap add mode tap dev", name, given) for name in TAPS))
    return st.builds(
        lambda one, other: [*made, *one, *other], taps, st.lists(st.one_of(changes), min_size=5, max_size=30)
    )


def _of_kind(kind: str, options: dict[str, Any], link: st.SearchStrategy[Any]) -> st.SearchStrategy[Command]:
    """A command that gives a link of a kind one of `options`."""
    return st.one_of([_words("ip link set", link, "type", kind, option, value) for option, value in options.items()])


def _words(*parts: Any) -> st.SearchStrategy[Command]:
    """A command of these parts: strategies for words or for several of them, and words with blanks between them."""
    found = [part if isinstance(part, st.SearchStrategy) else st.just(part) for part in parts]
    return st.tuples(*found).map(lambda drawn: [word for part in drawn for word in _split(part)])


def _split(part: Any) -> Command:
    if isinstance(part, (list, tuple)):
        return [word for each in part for word in _split(each)]
    # Bytes are one word whatever they hold.
    return [part] if isinstance(part, bytes) else str(part).split(" ")


def run(sequence: list[Command]) -> None:
    """Run commands of iproute2, whatever comes of them."""
    for command in sequence:
        subprocess.run(command, check=False, capture_output=True)
