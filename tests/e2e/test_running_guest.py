# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that run don't lose a packet while what they are connected with is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.links.host import namespace
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import bridge_argument_spec, tap_argument_spec
from ansible_collections.hostnet.qemu.plugins.modules import bridge, tap
from support.install import LAUNCHER
from support.machine import UID, Machine, guest_arguments, guest_mac, lay_guest, wait_for
from support.modules import run_module
from support.namespaces import Sandbox, ip
from support.playbook import Playbook, prepare
from support.qemu import Debian, lay
from support.streams import Pings

HOST, STATION = "10.99.0.1", "10.99.0.2"
# One on a tap of the helper, one on a tap of the role.
HELPERS, ROLES = "10.99.0.11", "10.99.0.12"
GUESTS = {HELPERS: f"bridge,id=hn0,br=br0,helper={LAUNCHER}", ROLES: "tap,id=hn0,ifname=guest0,script=no,downscript=no"}
MAC = "02:00:00:00:00:01"

VARIABLES: dict[str, Any] = {
    "qemu_bridge_bridges": [{"name": "br0", "mac": MAC, "addresses": [f"{HOST}/24"]}],
    "qemu_bridge_taps": [{"name": "guest0", "owner": UID, "bridge": "br0"}],
}
# Another state in every respect that the guests have to do with. guest0 is on its bridge by its own item alone.
OTHER_VARIABLES: dict[str, Any] = {
    "qemu_bridge_bridges": [
        {
            **VARIABLES["qemu_bridge_bridges"][0],
            "mtu": 1400,
            "stp": True,
            "multicast_snooping": False,
            "ports": ["uplink"],
            "ports_mode": "exact",
            "force": True,
        }
    ],
    "qemu_bridge_taps": [
        {**VARIABLES["qemu_bridge_taps"][0], "alias": "the first", "mtu": 1400, "isolated": True},
        {"name": "guest1", "bridge": "br0"},
    ],
}

# One task after the other, each of which changes something. What they change is changed back in the end.
BRIDGE_TASKS: list[dict[str, Any]] = [
    {"alias": "a text"},
    {"alias": ""},
    {"mtu": 1300},
    {"mtu": 1500},
    # STP can't be turned on with a forward delay of less than 2 s. Ports that forward go on to do so.
    {"priority": 4096, "hello_time": 1, "max_age": 10, "forward_delay": 4, "stp": True},
    {"priority": 8192},
    {"hello_time": 3, "max_age": 12, "forward_delay": 2},
    {"stp": False},
    {"priority": 32768, "hello_time": 2, "max_age": 20, "forward_delay": 15},
    {"ageing_time": 0},
    {"ageing_time": 300},
    {"multicast_snooping": False},
    {"multicast_querier": True},
    {"multicast_snooping": True},
    {"multicast_querier": False},
    {"group_fwd_mask": 0x4000},
    {"group_fwd_mask": 0},
    {"addresses": ["198.51.100.1/24", "2001:db8::1/64"]},
    {"addresses": [f"{HOST}/24"], "addresses_mode": "exact"},
    {"ports": ["small"]},
    # The taps of both guests are not in the list.
    {"ports": ["uplink"], "ports_mode": "exact", "force": True},
]
# arp_netdev_event() in net/ipv4/arp.c: the host forgets its neighbours and does not tell them its new address, so who
# talks with an address of the bridge loses packets until the host asks for him. What goes through the bridge does not.
BRIDGE_HOST_TASKS: list[dict[str, Any]] = [{"mac": "02:00:00:00:00:02"}, {"mac": MAC}]
BRIDGE_REFUSALS: list[dict[str, Any]] = [{"state": "absent"}]
# br_dev_stop() in net/bridge/br_device.c: every port of a bridge that is down is disabled.
BRIDGE_CUTS = {"up"}
# Not every kernel has them: tests/integration/test_held_taps.py.
BRIDGE_VLANS = {"vlan_default_pvid", "vlan_filtering", "vlans"}

TAP_TASKS: list[dict[str, Any]] = [
    {"mtu": 1300},
    {"mtu": 1500},
    {"mac": "fe:00:00:00:00:01"},
    {"mac": "fe:00:00:00:00:02"},
    {"alias": "a text"},
    {"alias": ""},
    {"ipv6": True},
    {"ipv6": False},
    {"cost": 7},
    {"cost": 100},
    {"priority": 7},
    {"priority": 32},
]
for flag, value in (
    ("isolated", True),
    ("learning", False),
    ("unicast_flood", False),
    ("multicast_flood", False),
    ("hairpin", True),
    ("guard", True),
    ("locked", True),
):
    TAP_TASKS += [{flag: value}, {flag: not value}]
TAP_REFUSALS: list[dict[str, Any]] = [
    {"owner": 0},
    {"group": 0},
    {"multi_queue": True},
    {"bridge": ""},
    {"up": False},
    {"state": "absent"},
]
# They are for a new tap only.
TAP_UNUSED = {"vnet_hdr", "packet_info"}
# dev_qdisc_change_tx_queue_len() in net/sched/sch_generic.c: while the queue gets its new length the kernel drops what
# is for the guest. To cut a guest off is what `force` is for.
TAP_CUTS = {"txqueuelen", "force"}
TAP_VLANS = {"pvid", "tagged", "untagged"}


def test_no_option_is_forgotten() -> None:
    bridge_options = chain(BRIDGE_CUTS, BRIDGE_VLANS, *BRIDGE_TASKS, *BRIDGE_HOST_TASKS, *BRIDGE_REFUSALS)
    assert set(bridge_options) == bridge_argument_spec().keys() - {"name"}
    tap_options = chain(TAP_CUTS, TAP_VLANS, TAP_UNUSED, *TAP_TASKS, *TAP_REFUSALS)
    assert set(tap_options) == tap_argument_spec().keys() - {"name"}


@pytest.fixture
def host(debian: Debian, sandbox: Sandbox) -> Sandbox:
    """A host that never had the role, with QEMU, and a station that can be plugged in as the link uplink."""
    prepare(sandbox)
    lay(sandbox, debian)
    ip("netns", "add", "station")
    ip("link", "add", "uplink", "up", "type", "veth", "peer", "name", "eth0", "netns", "station")
    ip("-n", "station", "address", "add", f"{STATION}/24", "dev", "eth0")
    ip("-n", "station", "link", "set", "eth0", "up")
    ip("link", "add", "small", "mtu", "1400", "type", "veth", "peer", "name", "none")
    return sandbox


@contextmanager
def streams() -> Iterator[dict[str, Pings]]:
    """Pings to the guests, from a station through the bridge and from the bridge's own address."""
    with ExitStack() as stack:
        pings = {}
        for guest in GUESTS:
            with namespace("station"):
                pings[f"{STATION} -> {guest}"] = Pings(guest)
            pings[f"{HOST} -> {guest}"] = Pings(guest)
        for each in pings.values():
            stack.callback(each.close)
        yield pings


def test_guests_lose_no_packet(host: Sandbox, debian: Debian, machines: list[Machine]) -> None:
    """Their pings go on while the modules change what they may, refuse the rest, and through a run of the role."""
    playbook = Playbook(host.scratch)
    playbook.converge(VARIABLES)
    ip("link", "set", "uplink", "master", "br0")
    image = lay_guest(debian, host.scratch)
    for number, (address, netdev) in enumerate(GUESTS.items()):
        words = f"address={address} reach={STATION},{HOST}"
        machines.append(Machine(host.scratch, address, *guest_arguments(debian, image, number, netdev, words)))
        # A guest that gets no processor time for seconds does not answer ARP either, which is not what this is about.
        neighbour = ("neighbour", "replace", address, "lladdr", guest_mac(number), "nud", "permanent")
        ip("-n", "station", *neighbour, "dev", "eth0")
        ip(*neighbour, "dev", "br0")
    wait_for("the guests", lambda: all(f"reached {HOST}" in each.console for each in machines), machines)
    assert machines[1].holds("guest0")
    # By what was done, then by the two ends, the numbers of the pings that were lost.
    losses: dict[str, dict[str, list[int]]] = {}
    with streams() as pings:

        def account(what: str) -> None:
            found = {ends: lost for ends, each in pings.items() if (lost := each.lost())}
            if found:
                losses[what] = found

        def perform(main: Callable[[], None], name: str, tasks: list[dict[str, Any]], outcome: str) -> None:
            for task in tasks:
                result = run_module(main, {"name": name, **task})
                assert result.get(outcome), (task, result)
                account(f"{name}: {task}")

        account("nothing")
        perform(bridge.main, "br0", BRIDGE_TASKS, "changed")
        perform(bridge.main, "br0", BRIDGE_REFUSALS, "failed")
        perform(tap.main, "guest0", TAP_TASKS, "changed")
        perform(tap.main, "guest0", TAP_REFUSALS, "failed")
        assert playbook.converge(OTHER_VARIABLES).changed > 0
        account("the role")
        assert losses == {}

        perform(bridge.main, "br0", BRIDGE_HOST_TASKS, "changed")
        assert not [ends for found in losses.values() for ends in found if ends.startswith(STATION)], losses

        # What cuts a guest off does not escape this account.
        ip("link", "set", "guest0", "nomaster")
        for each in pings.values():
            each.send_more(1)
        ip("link", "set", "guest0", "master", "br0")
        account("cut")
        assert losses["cut"].keys() == {f"{STATION} -> {ROLES}", f"{HOST} -> {ROLES}"}
