# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading, changing and undoing against the real kernel, in a network namespace of the test's own."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shlex
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Callable

import pyroute2
import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.links import host, kernel, rtnetlink
from ansible_collections.hostnet.qemu.plugins.module_utils.links.kernel import Kernel, KernelError
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import (
    Bridge,
    LinksError,
    Network,
    Tap,
    describe,
    describe_tap,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links.plan import (
    AddAddress,
    Operation,
    Refused,
    SetMaster,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links.vlans import Vlans
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import tuntap
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.guest import kernel_has
from support.namespaces import Sandbox, ip, mount

MAC = "02:00:00:00:00:01"
BRIDGE_SETTINGS = (
    "stp_state",
    "priority",
    "forward_delay",
    "hello_time",
    "max_age",
    "ageing_time",
    "mcast_snooping",
    "mcast_querier",
    "group_fwd_mask",
)
PORT_SETTINGS = (
    "state",
    "priority",
    "cost",
    "hairpin",
    "guard",
    "root_block",
    "fastleave",
    "learning",
    "flood",
    "mcast_flood",
    "mcast_to_unicast",
    "bcast_flood",
    "neigh_suppress",
    "isolated",
    "locked",
)

# <linux/capability.h>
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def bridge(name: str = "br0", **arguments: Any) -> Bridge:
    return Bridge.from_arguments({"name": name, "up": True, **arguments}, lambda: "0" * 32)


def apply(*bridges: Bridge, check: bool = False) -> kernel.Outcome:
    with Kernel() as links:
        return links.reconcile(bridges, check=check)


def veth(*names: str) -> None:
    for name in names:
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")


def snapshot() -> dict[str, Any]:
    """What iproute2 says of the links that operations change."""
    state: dict[str, Any] = {}
    command = ["bridge", "-json", "-compressvlans", "vlan", "show"]
    listed = subprocess.run(command, check=True, capture_output=True).stdout
    vlans = {port["ifname"]: port["vlans"] for port in json.loads(listed)}
    for link in json.loads(ip("-d", "-j", "link", "show")):
        info = link.get("linkinfo", {})
        state[link["ifname"]] = {
            "up": "UP" in link["flags"],
            **{key: link.get(key) for key in ("mtu", "address", "master", "ifalias", "txqlen")},
            "tun": info.get("info_data") if info.get("info_kind") == "tun" else None,
            "bridge": {key: info.get("info_data", {}).get(key) for key in BRIDGE_SETTINGS}
            if info.get("info_kind") == "bridge"
            else None,
            "vlans": vlans.get(link["ifname"], []),
            "filter": [info.get("info_data", {}).get(key) for key in ("vlan_filtering", "vlan_default_pvid")],
            "port": {key: info.get("info_slave_data", {}).get(key) for key in PORT_SETTINGS},
        }
    for link in json.loads(ip("-j", "address", "show")):
        kept = ("family", "local", "prefixlen", "broadcast", "secondary", "dynamic", "label", "metric")
        addresses = [
            {key: address.get(key) for key in kept} for address in link["addr_info"] if address["scope"] != "link"
        ]
        state[link["ifname"]]["addresses"] = sorted(addresses, key=str)
    return state


def untimed(text: str) -> str:
    """Without the lifetimes of addresses, which run on."""
    return re.sub(r"_lft \d+", "_lft", text)


def set_effective(change: Callable[[int], int]) -> None:
    """Change the effective capabilities of this thread, a bit mask."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    assert _libc.capget(header, data) == 0
    sets = list(struct.unpack("=6I", data.raw))
    effective = change(sets[0] | sets[3] << 32)
    sets[0], sets[3] = effective & 0xFFFFFFFF, effective >> 32
    assert _libc.capset(header, struct.pack("=6I", *sets)) == 0


class without:  # reads as a statement
    """Lack a capability for a while."""

    def __init__(self, capability: int) -> None:
        self._bit = 1 << capability

    def __enter__(self) -> None:
        set_effective(lambda mask: mask & ~self._bit)

    def __exit__(self, *_exception: object) -> None:
        set_effective(lambda mask: mask | self._bit)


class Interrupted(Kernel):
    """A kernel to which something happens before operation number `at`, counted from 0 in the order of the plan.

    That is the command `event` of `ip`, or else the loss of CAP_NET_ADMIN for this one operation.
    """

    def __init__(self, at: int, event: str = "") -> None:
        super().__init__()
        self.at = at
        self.event = event
        self.count = -1

    def perform(self, operation: Operation) -> None:
        self.count += 1
        if self.count != self.at:
            super().perform(operation)
        elif self.event:
            ip(*self.event.split())
            super().perform(operation)
        else:
            with without(CAP_NET_ADMIN):
                super().perform(operation)


# ---------------------------------------------------------------------------------------------------------------------
# What is read


def test_taps_and_who_holds_them(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "type", "bridge")
    ip("tuntap", "add", "idle", "mode", "tap")
    ip("tuntap", "add", "queued", "mode", "tap", "multi_queue")
    ip("tuntap", "add", "busy", "mode", "tap")
    multi_queue = 0x0100  # IFF_MULTI_QUEUE of <linux/if_tun.h>
    descriptors = []
    for name, flags in ((b"busy", 0), (b"queued", multi_queue), (b"guest", 0)):
        descriptors.append(tuntap.open_tun())
        tuntap.create(descriptors[-1], name, tuntap.IFF_TAP | tuntap.IFF_NO_PI | flags)
    names = ("idle", "busy", "queued", "guest")
    for name in names:
        ip("link", "set", name, "master", "br0")
    with Kernel() as links:
        network = links.read([bridge()])
    assert {name: network[name].holder for name in names} == {
        "idle": "",
        "busy": "a tap with a carrier",
        "queued": "a tap with a queue in use",
        "guest": "a tap that ends with its user",
    }
    assert [network[name].persistent for name in names] == [True, True, True, False]
    assert describe(network, "br0")["ports"] == ["busy", "idle", "queued"]
    for descriptor in descriptors:
        os.close(descriptor)
    with Kernel() as links:
        network = links.read([bridge()])
    assert "guest" not in network
    assert [network[name].holder for name in ("busy", "queued")] == ["", ""]


def test_a_dump_reads_what_single_requests_read(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    veth("p1", "p2", "p3")
    for name in ("br0", "br1"):
        ip("link", "add", name, "type", "bridge", "stp_state", "1")
    ip("link", "set", "p1", "master", "br0")
    ip("link", "set", "p2", "master", "br1")
    ip("address", "add", "192.0.2.1/24", "dev", "br0")
    wanted = [bridge(ports=["p2", "p3"])]
    with Kernel() as links:
        singly = links.read(wanted)
        monkeypatch.setattr(kernel, "_FEW", 0)
        dumped = links.read(wanted)
    assert {link.name for link in singly} == {"br0", "br1", "p1", "p2", "p3"}
    assert [dumped[link.name] for link in singly] == list(singly)


@pytest.mark.parametrize("few", [0, 16])
def test_names_that_are_not_utf_8(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Other people's links must not stop a task."""
    monkeypatch.setattr(kernel, "_FEW", few)
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "add", "p1", "type", "veth", "peer", "name", "\udcff\udcfe")
    for name in ("p1", "\udcff\udcfe"):
        ip("link", "set", name, "master", "br0")
    outcome = apply(bridge(ports=["p1"], ports_mode="exact"))
    assert outcome.plan.operations[0] == "ip link set dev \udcff\udcfe nomaster"
    assert describe(outcome.after, "br0")["ports"] == ["p1"]


def test_an_alternative_name_is_no_name(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "property", "add", "dev", "br0", "altname", "uplink")
    with pytest.raises(LinksError, match="uplink is an alternative name of the link br0"):
        apply(bridge("uplink"))


def test_pinned_is_read_from_the_namespace_of_the_links(sandbox: Sandbox) -> None:
    """/sys shows the sandbox, the links are in another namespace."""
    ip("netns", "add", "lab")
    for name, arguments in (("pinned", ["address", MAC]), ("free", [])):
        ip("-n", "lab", "link", "add", name, *arguments, "type", "bridge")
    with Kernel("lab") as links:
        network = links.read([bridge("pinned"), bridge("free")])
    assert (network["pinned"].mac_pinned, network["free"].mac_pinned) == (True, False)


def test_pinned_without_the_right_to_mount(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "address", MAC, "type", "bridge")
    ip("netns", "add", "lab")
    ip("-n", "lab", "link", "add", "elsewhere", "address", MAC, "type", "bridge")
    with without(CAP_SYS_ADMIN), Kernel() as links:
        assert links.read([bridge()])["br0"].mac_pinned is True
    mount("tmpfs", "/sys", "tmpfs")
    with without(CAP_SYS_ADMIN), Kernel() as links:
        assert links.read([bridge()])["br0"].mac_pinned is None
    # A /sys of another namespace has a link of this name, but another one.
    Path("/sys/class/net/br0").mkdir(parents=True)
    Path("/sys/class/net/br0/ifindex").write_text("4711\n")
    Path("/sys/class/net/br0/addr_assign_type").write_text("1\n")
    with without(CAP_SYS_ADMIN), Kernel() as links:
        assert links.read([bridge()])["br0"].mac_pinned is None


# ---------------------------------------------------------------------------------------------------------------------
# What is done

SCENE = """
link add br0 type bridge stp_state 1 forward_delay 1000
link add br1 type bridge
link set p1 master br0
link set p2 master br0
link set p3 master br1
link set p1 type bridge_slave cost 7 isolated on locked on neigh_suppress on guard on
link set p2 type bridge_slave hairpin on learning off priority 3 mcast_to_unicast on fastleave on
link set p3 type bridge_slave cost 9 flood off mcast_flood off bcast_flood off root_block on
link set br0 up
link set p1 up
address add 192.0.2.1/24 broadcast + dev br0
address add 192.0.2.2/24 dev br0 label br0:x
address add 198.51.100.1/32 dev br0 metric 7
address add 2001:db8::1/64 dev br0 nodad
address add 2001:db8::2/64 dev br0 nodad
address add 192.0.2.9/24 dev br0 valid_lft 3000 preferred_lft 3000
address add 2001:db8::d/64 dev p4 nodad
"""
# Every kind of operation, in one task.
UPHEAVAL: dict[str, Any] = {
    "stp": False,
    "forward_delay": 0,
    "ageing_time": 60.5,
    "hello_time": 1.5,
    "max_age": 6,
    "priority": 4096,
    "multicast_snooping": False,
    "multicast_querier": True,
    "group_fwd_mask": 0x4008,
    "alias": "guests of the lab",
    "ports": ["p3", "p4"],
    "ports_mode": "exact",
    "force": True,
    "mtu": 1400,
    "mac": MAC,
    "addresses": ["192.0.2.2/24", "2001:db8::1/48"],
    "addresses_mode": "exact",
}


def batch(commands: str, tmp_path: Path) -> None:
    script = tmp_path / "commands"
    script.write_text(commands)
    ip("-batch", str(script))


def lay_scene(tmp_path: Path) -> None:
    veth("p1", "p2", "p3", "p4")
    batch(SCENE, tmp_path)


@pytest.mark.parametrize("promote", ["0", "1"])
@pytest.mark.parametrize("up", [True, False])
def test_everything_at_once(sandbox: Sandbox, tmp_path: Path, promote: str, up: bool) -> None:
    Path("/proc/sys/net/ipv4/conf/all/promote_secondaries").write_text(promote)
    lay_scene(tmp_path)
    desired = bridge(up=up, **UPHEAVAL)
    foreseen = apply(desired, check=True)
    before = snapshot()
    outcome = apply(desired)
    assert [*map(untimed, outcome.plan.operations)] == [*map(untimed, foreseen.plan.operations)]
    assert describe(outcome.after, "br0") == describe(foreseen.after, "br0")
    assert apply(desired).plan.operations == []
    after = snapshot()
    assert after["br0"]["ifalias"] == UPHEAVAL["alias"]
    assert after["br0"]["bridge"] == {
        "stp_state": 0,
        "priority": 4096,
        "forward_delay": 0,
        "hello_time": 150,
        "max_age": 600,
        "ageing_time": 6050,
        "mcast_snooping": 0,
        "mcast_querier": 1,
        "group_fwd_mask": "0x4008",
    }
    assert (after["br0"]["mtu"], after["br0"]["address"], after["br0"]["up"]) == (1400, MAC, up)
    assert [after[name]["master"] for name in ("p1", "p2", "p3", "p4")] == [None, None, "br0", "br0"]
    assert (before["p4"]["up"], after["p4"]["up"]) == (False, up)
    kept = {(each["local"], each["prefixlen"]) for each in after["br0"]["addresses"]}
    assert kept == {("192.0.2.2", 24), ("192.0.2.9", 24), ("2001:db8::1", 48)}
    # Its last port left: the kernel's doing.
    assert after["br1"] == {**before["br1"], "address": "00:00:00:00:00:00"}


def test_check_mode_changes_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    lay_scene(tmp_path)
    before = snapshot()
    assert apply(bridge(**UPHEAVAL), bridge("br2", mac="stable"), bridge("br1", state="absent"), check=True)
    assert snapshot() == before


@pytest.mark.parametrize("up", [True, False])
def test_the_operations_are_commands_of_iproute2(sandbox: Sandbox, tmp_path: Path, up: bool) -> None:
    """Replayed by `ip`, they lead to the same state."""
    lay_scene(tmp_path)
    desired = [bridge(up=up, **UPHEAVAL), bridge("br2", stp=True, mac="stable"), bridge("br1", state="absent")]
    operations = apply(*desired, check=True).plan.operations
    batch("\n".join(operation.removeprefix("ip ") for operation in operations), tmp_path)
    replayed = snapshot()
    assert apply(*desired).plan.operations == []
    assert snapshot() == replayed


def failures(*desired: Bridge, taps: Sequence[Tap] = ()) -> int:
    """Let each operation of the task fail in turn; the state must be as before every time. Returns their number."""
    before = snapshot()
    with Kernel() as links:
        operations = links.reconcile(desired, taps, check=True).plan.operations
    for at, operation in enumerate(operations):
        with pytest.raises(KernelError) as failure, Interrupted(at) as links:
            links.reconcile(desired, taps)
        message = str(failure.value)
        assert snapshot() == before, f"after the failure of {operation}"
        assert failure.value.errno == errno.EPERM
        assert f"(as by: {untimed(operation)}" in untimed(message)
        assert "): the kernel answered EPERM (Operation not permitted)" in message
        assert "CAP_NET_ADMIN" in message
        assert message.endswith("What had been done before was undone." if at else "Nothing was changed.")
    return len(operations)


@pytest.mark.parametrize("up", [True, False])
def test_any_operation_fails_on_a_bridge_in_use(sandbox: Sandbox, tmp_path: Path, up: bool) -> None:
    lay_scene(tmp_path)
    assert failures(bridge(up=up, **UPHEAVAL)) >= 15


def test_any_operation_fails_on_a_new_bridge(sandbox: Sandbox) -> None:
    veth("p1")
    ip("address", "add", "2001:db8::a/64", "dev", "p1", "nodad")
    arguments: dict[str, Any] = {"mtu": 1400, "ports": ["p1"], "addresses": ["192.0.2.1/24", "2001:db8::1/64"]}
    assert failures(bridge(mac=MAC, stp=True, **arguments)) == 7


def test_any_operation_fails_on_a_bridge_without_ports(sandbox: Sandbox) -> None:
    """Where its only port leaves again, an unpinned bridge would end with the address of zeros."""
    veth("p1", "p2")
    ip("link", "add", "br0", "type", "bridge")
    assert failures(bridge(ports=["p1", "p2"], addresses=["2001:db8::1/64"])) == 6


def tap(name: str, **arguments: Any) -> Tap:
    return Tap.from_arguments({"name": name, "up": True, **arguments}, int, int)


def test_any_operation_fails_on_bridges_and_taps(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "type", "bridge")
    ip("tuntap", "add", "old", "mode", "tap", "user", "1000", "group", "1000")
    for words in ("master br0", "type bridge_slave isolated on cost 9", "txqueuelen 7", "alias old", "mtu 1400"):
        ip("link", "set", "dev", "old", *words.split())
    changed = tap("old", owner="1001", group="1001", bridge="br1", txqueuelen=9, alias="new", mtu=1300, cost=3)
    new = tap("new", owner="1000", group="1000", bridge="br1", isolated=True, multi_queue=True, mac=MAC)
    assert failures(bridge("br0", mtu=1500), bridge("br1"), taps=[changed, new]) >= 15


def test_a_tap_that_appears_in_the_meantime(sandbox: Sandbox) -> None:
    """It is somebody else's, and neither attached to nor changed nor removed."""
    race = Interrupted(0, "tuntap add tap0 mode tap user 77")
    with pytest.raises(KernelError, match=r"Can't make the tap tap0 .*EBUSY") as failure, race as links:
        links.reconcile([], [tap("tap0", owner="1000")])
    assert str(failure.value).endswith("Nothing was changed.")
    assert Path("/sys/class/net/tap0/owner").read_text() == "77\n"


def test_a_bridge_that_appears_in_the_meantime(sandbox: Sandbox) -> None:
    race = Interrupted(0, "link add br0 type veth")
    with pytest.raises(KernelError, match=r"Can't make the bridge br0 .*EEXIST .*run again") as failure, race as links:
        links.reconcile([bridge()])
    assert failure.value.errno == errno.EEXIST
    assert "br0" in snapshot()


def test_a_port_that_disappears_in_the_meantime(sandbox: Sandbox) -> None:
    veth("p1", "p2")
    race = Interrupted(2, "link delete p2")
    with pytest.raises(KernelError, match=r"^Can't put p2 on the bridge br0 .*ENODEV") as failure, race as links:
        links.reconcile([bridge(up=None, ports=["p1", "p2"])])
    assert failure.value.errno == errno.ENODEV
    assert "br0" not in snapshot()
    assert snapshot()["p1"]["master"] is None


def test_the_kernel_says_why(sandbox: Sandbox) -> None:
    """Its extended answer is part of the message."""
    for name in ("br0", "br1"):
        ip("link", "add", name, "type", "bridge")
    with Kernel() as links:
        links.read([bridge("br0"), bridge("br1")])
        with pytest.raises(KernelError, match=r"ELOOP \(.*\), 'Can not enslave a bridge to a bridge'; .*veth"):
            links.perform(SetMaster("br1", "br0"))


def test_undoing_that_fails_says_so(sandbox: Sandbox) -> None:
    """What can be undone is undone all the same."""
    veth("p1", "p2", "p3")
    ip("link", "add", "br0", "address", MAC, "type", "bridge")

    class Vanishing(Interrupted):
        def perform(self, operation: Operation) -> None:
            if self.count == 2:
                ip("link", "delete", "p1")
            super().perform(operation)

    with pytest.raises(KernelError) as failure, Vanishing(2) as links:
        links.reconcile([bridge(up=None, ports=["p2", "p1", "p3"])])
    assert "Can't put p3 on the bridge br0 " in str(failure.value)
    assert "Undoing what had been done before failed in part: Can't take p1 off its bridge" in str(failure.value)
    assert snapshot()["p2"]["master"] is None


def test_an_interrupt_is_undone_too(sandbox: Sandbox) -> None:
    class Stopped(Kernel):
        def perform(self, operation: Operation) -> None:
            if isinstance(operation, AddAddress):
                raise KeyboardInterrupt
            super().perform(operation)

    veth("p1")
    before = snapshot()
    with pytest.raises(KeyboardInterrupt), Stopped() as links:
        links.reconcile([bridge(ports=["p1"], addresses=["192.0.2.1/24"])])
    assert snapshot() == before


def test_a_state_that_does_not_last_is_a_failure(sandbox: Sandbox) -> None:
    """Something else turns a value back before it is read back."""
    veth("p1")
    before = snapshot()

    race = Interrupted(1, "link set br0 type bridge ageing_time 100")
    with pytest.raises(LinksError) as failure, race as links:
        links.reconcile([bridge(ageing_time=60)])
    assert "It would still take: ip link set dev br0 type bridge ageing_time 6000." in str(failure.value)
    assert "What had been done before was undone." in str(failure.value)
    assert snapshot() == before


def test_an_address_that_went_away_by_itself(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "type", "bridge")
    ip("address", "add", "192.0.2.1/24", "dev", "br0")
    desired = bridge(up=None, addresses=[], addresses_mode="exact")
    with Interrupted(0, "address flush br0") as links:
        assert len(links.reconcile([desired]).plan.operations) == 1


@pytest.mark.parametrize("address", ["::ffff:192.0.2.77/128", "::192.0.2.77/96", "2001:DB8:0::7/64"])
def test_an_address_is_known_again_however_it_is_written(sandbox: Sandbox, address: str) -> None:
    assert apply(bridge(addresses=[address])).plan.steps
    assert not apply(bridge(addresses=[address])).plan.steps


def test_ipv6_turned_off(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "type", "bridge")
    Path("/proc/sys/net/ipv6/conf/br0/disable_ipv6").write_text("1")
    with pytest.raises(KernelError, match=r"EACCES .*disable_ipv6"):
        apply(bridge(addresses=["2001:db8::1/64"]))


def test_refusals_come_before_any_change(sandbox: Sandbox) -> None:
    veth("p1")
    before = snapshot()
    for faulty in (
        bridge("br1", stp=True, forward_delay=1),
        bridge("br1", ports=["missing"]),
        bridge("br1", mtu=67),
        bridge("p1"),
    ):
        with pytest.raises(Refused):
            apply(bridge("br0", ports=["p1"]), faulty)
        assert snapshot() == before


# The real kernel against the planner's account of it.
REAL_ADDRESSES = ("192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24", "192.0.2.1/16", "2001:db8::1/64", "2001:db8::2/64")


@st.composite
def tasks(draw: st.DrawFn) -> Bridge:
    arguments: dict[str, Any] = {
        "up": draw(st.sampled_from([True, False, None])),
        "mtu": draw(st.sampled_from([None, 1280, 1400, 1500, 9000])),
        "mac": draw(st.sampled_from([None, MAC, "stable"])),
        "stp": draw(st.sampled_from([None, False, True])),
        "forward_delay": draw(st.sampled_from([None, 2, 2.5, 30])),
        "ageing_time": draw(st.sampled_from([None, 0, 60.5, 300])),
        "hello_time": draw(st.sampled_from([None, 1, 1.8, 10])),
        "max_age": draw(st.sampled_from([None, 6, 7.6, 40])),
        "priority": draw(st.sampled_from([None, 0, 0x1001, 0xFFFF])),
        "multicast_snooping": draw(st.sampled_from([None, False, True])),
        "multicast_querier": draw(st.sampled_from([None, False, True])),
        "group_fwd_mask": draw(st.sampled_from([None, 0, 0xFFF8])),
        "alias": draw(st.sampled_from([None, "", "ä b"])),
        "force": True,
    }
    for name, values in (("ports", ("p1", "p2", "p3")), ("addresses", REAL_ADDRESSES)):
        if draw(st.booleans()):
            arguments[name] = draw(st.lists(st.sampled_from(values), unique=True))
            arguments[f"{name}_mode"] = draw(st.sampled_from(["append", "exact"]))
    return bridge(draw(st.sampled_from(["br0", "br1"])), **arguments)


def foreseeable(network: Network, name: str) -> dict[str, Any]:
    """Less what the kernel decides by itself: a MAC address and an MTU that were not set, and whether it has VLANs."""
    description = describe(network, name)
    for key in ("mac", "mac_pinned", "mtu", "vlan_default_pvid"):
        description.pop(key, None)
    return description


@settings(max_examples=30, deadline=None)
@given(sequence=st.lists(tasks(), min_size=2, max_size=5))
def test_the_kernel_does_what_the_planner_says(sequence: list[Bridge]) -> None:
    box = Sandbox()
    try:
        veth("p1", "p2", "p3")
        ip("link", "set", "p3", "mtu", "1300")
        for task in sequence:
            outcome = apply(task)
            assert foreseeable(outcome.after, task.name) == foreseeable(outcome.plan.after, task.name)
            assert apply(task).plan.operations == []
    finally:
        box.close()


# ---------------------------------------------------------------------------------------------------------------------
# VLANs

VLAN_SCENE = """
link add br0 type bridge vlan_filtering 1
link add br1 type bridge vlan_default_pvid 7
link set p1 master br0
link set p2 master br1
tuntap add old mode tap
link set old master br0
"""
VLANS_OF_SCENE = """
vlan add dev br0 vid 100-102 self
vlan add dev old vid 20 pvid untagged
vlan add dev old vid 30-35
vlan del dev old vid 1
vlan add dev p1 vid 2-4094
"""


def lay_vlan_scene(tmp_path: Path) -> None:
    veth("p1", "p2")
    batch(VLAN_SCENE, tmp_path)
    for line in VLANS_OF_SCENE.strip().splitlines():
        subprocess.run(["bridge", *line.split()], check=True)


def members(name: str) -> list[tuple[int, ...]]:
    """What iproute2 says of a port: VLAN, whether it is the PVID, whether it leaves without a tag."""
    found: list[tuple[int, ...]] = []
    for told in snapshot()[name]["vlans"]:
        flags = told.get("flags", [])
        every = range(told["vlan"], told.get("vlanEnd", told["vlan"]) + 1)
        found += [(vlan, "PVID" in flags, "Egress Untagged" in flags) for vlan in every]
    return found


def vlan_tasks() -> tuple[list[Bridge], list[Tap]]:
    """Every kind of change, of bridges and taps, new and old."""
    return [
        bridge("br0", vlan_default_pvid=5, vlans=["102-104", "4094"], force=True),
        bridge("br1", vlan_filtering=True, vlan_default_pvid=0, vlans=["9"]),
    ], [
        tap("old", bridge="br1", pvid=0, untagged=[], tagged=["1-4094"]),
        tap("new", bridge="br0", pvid=30, tagged=["40-42", "44"]),
        tap("plain", bridge="br0"),
    ]


def reconcile_vlans(check: bool = False) -> kernel.Outcome:
    with Kernel() as links:
        return links.reconcile(*vlan_tasks(), check=check)


@pytest.mark.kernel_feature("vlan_filtering")
def test_vlans(sandbox: Sandbox, tmp_path: Path) -> None:
    lay_vlan_scene(tmp_path)
    foreseen = reconcile_vlans(check=True)
    outcome = reconcile_vlans()
    assert outcome.plan.operations == foreseen.plan.operations
    assert {link.name: link.vlans for link in outcome.after} == {link.name: link.vlans for link in foreseen.after}
    after = snapshot()
    assert [after[name]["filter"] for name in ("br0", "br1")] == [[1, 5], [1, 0]]
    own = [(5, True, True)]
    assert members("br0") == [*own, *((vlan, False, False) for vlan in (102, 103, 104, 4094))]
    assert members("br1") == [(9, False, False)]
    # The new default is one of the VLANs that it had already, so the kernel leaves it alone.
    assert members("p1") == [(1, True, True), *((vlan, False, False) for vlan in range(2, 4095))]
    assert members("p2") == []
    assert members("old") == [(vlan, False, False) for vlan in range(1, 4095)]
    assert members("new") == [(30, True, True), *((vlan, False, False) for vlan in (40, 41, 42, 44))]
    assert members("plain") == own
    again = reconcile_vlans()
    assert again.plan.operations == []
    # Nobody reads lists of four thousand numbers, and the kernel is not asked for each.
    assert describe_tap(outcome.after, "old")["tagged"] == ["1-4094"]
    assert len(outcome.plan.operations) < 40


@pytest.mark.kernel_feature("vlan_filtering")
def test_any_operation_on_vlans_fails(sandbox: Sandbox, tmp_path: Path) -> None:
    """A port that had left has its VLANs again, and so have those whom a new default has moved."""
    lay_vlan_scene(tmp_path)
    bridges, taps = vlan_tasks()
    assert failures(*bridges, taps=taps) >= 20


@pytest.mark.kernel_feature("vlan_filtering")
def test_the_operations_on_vlans_are_commands_of_iproute2(sandbox: Sandbox, tmp_path: Path) -> None:
    lay_vlan_scene(tmp_path)
    for operation in reconcile_vlans(check=True).plan.operations:
        subprocess.run(shlex.split(operation), check=True)
    replayed = snapshot()
    assert reconcile_vlans().plan.operations == []
    assert snapshot() == replayed


@pytest.mark.kernel_feature("vlan_filtering")
def test_a_bridge_that_has_lost_its_address(sandbox: Sandbox) -> None:
    """The kernel would answer EINVAL, also to what undoes the removal of a VLAN."""
    veth("p1")
    wanted = bridge(vlan_filtering=True, vlans=["5"])
    apply(replace(wanted, ports=("p1",)))
    # While it has its address, its VLANs change, and also if it loses it by the same task.
    assert failures(bridge(vlans=["6"], ports=[], ports_mode="exact")) == 3
    apply(bridge(vlans=["6"], ports=[], ports_mode="exact"))
    command = "bridge vlan add dev br0 vid 7 self"
    done = subprocess.run(shlex.split(command), check=False, capture_output=True)
    assert b"Invalid argument" in done.stderr
    with pytest.raises(Refused, match="no MAC address since its last port left"):
        apply(wanted)


@pytest.mark.kernel_feature("vlan_filtering")
def test_vlans_that_anybody_made_can_be_asked_for(sandbox: Sandbox, tmp_path: Path) -> None:
    """What is described is a task that changes nothing."""
    lay_vlan_scene(tmp_path)
    with Kernel() as links:
        network = links.read([bridge("br0"), bridge("br1")])
        described = [describe(network, name) for name in ("br0", "br1")]
        port = describe_tap(network, "old")
        assert (described[0]["vlans"], described[1]["vlans"]) == (["100-102"], None)
        assert (port["pvid"], port["untagged"], port["tagged"]) == (20, ["20"], ["30-35"])
        # Addresses that are asked for get pinned.
        wanted = [bridge(**{**each, "mac": None}) for each in described]
        assert links.reconcile(wanted, [tap(**port)]).plan.operations == []


@pytest.mark.kernel_feature("vlan_filtering")
def test_every_way_of_reading_vlans_reads_the_same(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_vlan_scene(tmp_path)
    bridges, taps = vlan_tasks()
    with Kernel() as links:
        singly = links.read(bridges, taps)
        monkeypatch.setattr(kernel, "_FEW", 0)
        dumped = links.read(bridges, taps)
    assert [dumped[link.name] for link in singly] == list(singly)
    assert {link.name for link in singly if link.vlans} == {"br0", "br1", "p1", "p2", "old"}


def test_vlans_are_read_only_where_they_matter(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    ip("link", "add", "br0", "type", "bridge")
    families = []

    class Watched(rtnetlink.Rtnetlink):
        def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
            families.append(body[0])
            return super().ask(kind, flags, body)

    monkeypatch.setattr(kernel, "Rtnetlink", Watched)
    with Kernel() as links:
        links.reconcile([bridge(stp=True)], [tap("tap0", bridge="br0", isolated=True)])
        assert families and rtnetlink.AF_BRIDGE not in families
        links.read([bridge(vlan_filtering=False)])
        assert families.count(rtnetlink.AF_BRIDGE) == 1


@pytest.mark.skipif(kernel_has("vlan_filtering"), reason="this kernel can filter VLANs")
@pytest.mark.parametrize("arguments", [{"vlan_filtering": True}, {"vlan_default_pvid": 5}])
def test_a_kernel_that_can_not_filter_vlans(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    before = snapshot()
    with pytest.raises(LinksError, match=r"ENOTSUP|CONFIG_BRIDGE_VLAN_FILTERING") as failure:
        apply(bridge(**arguments))
    assert str(failure.value).endswith("What had been done before was undone.")
    assert snapshot() == before
    apply(bridge())
    with pytest.raises(Refused, match="CONFIG_BRIDGE_VLAN_FILTERING"):
        apply(bridge(**arguments))
    assert apply(bridge(vlan_filtering=False)).plan.operations == []


def test_vlans_of_a_switch_in_a_network_card() -> None:
    """It describes itself in messages of the same form, which say so: ndo_dflt_bridge_getlink() in the kernel."""
    request = rtnetlink.vlan_request(7, 10, 12, own=False, untagged=True)
    switch = rtnetlink.vlan_request(7, 10, 12, own=True, untagged=True)
    told = [rtnetlink.vlans(rtnetlink.LinkMessage(bytes(16) + body)) for body in (request, switch)]
    assert told == [Vlans(0, frozenset((10, 11, 12))), None]


VLAN_LISTS = st.none() | st.lists(st.sampled_from(["1", "5-7", "6", "4094"]), unique=True)


@st.composite
def tasks_on_vlans(draw: st.DrawFn) -> tuple[Bridge, list[Tap]]:
    filtering = draw(st.booleans())
    arguments = {
        "vlan_filtering": filtering,
        "vlan_default_pvid": draw(st.sampled_from([None, 0, 1, 6])),
        "vlans": draw(VLAN_LISTS) if filtering else None,
        "force": True,
    }
    places = {"bridge": draw(st.sampled_from(["br0", "br1", ""]))}
    name = draw(st.sampled_from(["br0", "br1"]))
    if filtering and places["bridge"] == name:
        places.update(pvid=draw(st.sampled_from([None, 0, 6])), tagged=draw(VLAN_LISTS))
    return bridge(name, **arguments), [tap(draw(st.sampled_from(["tap0", "tap1"])), **places)]


@pytest.mark.kernel_feature("vlan_filtering")
# Shrinking an example takes too long in an emulated guest.
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(sequence=st.lists(tasks_on_vlans(), min_size=3, max_size=5))
def test_the_kernel_does_with_vlans_what_the_planner_says(sequence: list[tuple[Bridge, list[Tap]]]) -> None:
    box = Sandbox()
    try:
        with Kernel() as links:
            links.reconcile([bridge("br0", vlan_filtering=True), bridge("br1")], [tap("tap1", bridge="br0")])
            for wanted, taps in sequence:
                try:
                    outcome = links.reconcile([wanted], taps)
                except Refused:
                    # A PVID that is none of the VLANs.
                    continue
                # A bridge that the tap has left is of no interest any more.
                assert {link.name: link.vlans for link in outcome.after} == {
                    link.name: outcome.plan.after[link.name].vlans for link in outcome.after
                }
                assert links.reconcile([wanted], taps).plan.operations == []
    finally:
        box.close()


# ---------------------------------------------------------------------------------------------------------------------
# The host around the links


def test_a_namespace_is_entered_and_left(sandbox: Sandbox) -> None:
    ip("netns", "add", "lab")
    home = os.readlink("/proc/thread-self/ns/net")
    with Kernel("lab") as links:
        assert os.readlink("/proc/thread-self/ns/net") != home
        links.reconcile([bridge()])
    assert os.readlink("/proc/thread-self/ns/net") == home
    assert "br0" not in snapshot()
    assert "br0" in ip("-n", "lab", "link", "show", "br0")


def test_namespaces_that_can_not_be_entered(sandbox: Sandbox) -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    with pytest.raises(host.NoNamespace, match=r"no network namespace 'lab' .*ip netns add lab"):
        Kernel("lab").__enter__()
    Path("/run/netns/stale").touch()
    with pytest.raises(LinksError, match=r"Can't enter .*stale: EINVAL .*make the namespace again"):
        Kernel("stale").__enter__()
    ip("netns", "add", "lab")
    with without(CAP_SYS_ADMIN), pytest.raises(LinksError, match=r"Can't enter .*lab: EPERM .*CAP_SYS_ADMIN"):
        Kernel("lab").__enter__()
    for name in ("", ".", "..", "a/b", "a\0b"):
        with pytest.raises(LinksError, match="can't be the name"):
            Kernel(name).__enter__()
    assert os.readlink("/proc/thread-self/ns/net") == home


def test_nothing_stays_open(sandbox: Sandbox) -> None:
    ip("netns", "add", "lab")
    before = os.listdir("/proc/self/fd")
    with Kernel("lab") as links:
        links.reconcile([bridge()])
    with pytest.raises(host.NoNamespace):
        Kernel("missing").__enter__()
    assert os.listdir("/proc/self/fd") == before


def test_machine_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(host, "MACHINE_ID", (first, second))
    second.write_text("0123456789abcdef0123456789abcdef\n")
    assert host.machine_id() == "0123456789abcdef0123456789abcdef"
    for text in ("uninitialized\n", "", "\xff" * 32):
        first.write_text(text, encoding="latin-1")
        second.unlink(missing_ok=True)
        with pytest.raises(LinksError, match="systemd-machine-id-setup"):
            host.machine_id()


@pytest.mark.parametrize(
    ("version", "fit"),
    [("0.5.13", False), ("0.5.3", False), ("0.5.14", True), ("0.6", True), ("0.10rc1", True), ("1", True)],
)
@pytest.mark.parametrize("told", [True, False])
def test_versions_of_the_library(monkeypatch: pytest.MonkeyPatch, version: str, fit: bool, told: bool) -> None:
    """Debian 12's says `unknown` of itself, and its metadata tell."""
    monkeypatch.setattr(pyroute2, "__version__", version if told else "unknown")
    monkeypatch.setattr(metadata, "version", lambda _name: version)
    fault = kernel.library_fault()
    assert (fault == "") is fit
    if not fit:
        assert f"has version {version} at " in fault and "0.5.14 or newer" in fault


def test_a_library_of_unknown_version_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(pyroute2, "__version__", "unknown")
    monkeypatch.setattr(metadata, "version", absent)
    assert kernel.library_fault() == ""


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=debian\n", "apt-get install python3-pyroute2"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install epel-release"),
        ("# comment\nNAME='Linux Mint'\nID=linuxmint\nID_LIKE='ubuntu debian'\n", "apt-get install python3-pyroute2"),
        ("ID=alpine", "apk add py3-pyroute2"),
        ("ID='unclosed", "pyroute2 on PyPI"),
        ("ID=other\n", "pyroute2 on PyPI"),
    ],
)
def test_a_missing_library_is_named_as_this_system_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, command: str
) -> None:
    (tmp_path / "os-release").write_text(release)
    monkeypatch.setattr(kernel, "_OS_RELEASE", (tmp_path / "os-release",))
    # As Python has it: an import that finds None fails.
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    fault = kernel.library_fault()
    assert "has none that it can import (" in fault and command in fault


@pytest.fixture
def no_pyroute2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kernel._library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyroute2", None)
        yield
    kernel._library.cache_clear()


def test_links_need_no_library(sandbox: Sandbox, no_pyroute2: None) -> None:
    """It takes longer to import than a task on hundreds of taps takes to find them as they should be."""
    bridges = [bridge(mac=MAC, stp=True, group_fwd_mask=8)]
    taps = [tap("tap0", bridge="br0", isolated=True, mtu=1400)]
    with Kernel() as links:
        for changes in (True, False):
            outcome = links.reconcile(bridges, taps, spare_connection=True, all_addresses=False)
            assert bool(outcome.plan.steps) is changes


def test_nothing_to_do_takes_one_dump(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many links there are: the budget of a second run."""
    bridges = [bridge(f"br{number}") for number in range(2)]
    taps = [tap(f"tap{number}", bridge=f"br{number % 2}") for number in range(30)]
    asked: list[int] = []
    real = rtnetlink.Rtnetlink.ask

    def ask(self: rtnetlink.Rtnetlink, kind: int, flags: int, body: bytes) -> list[bytes]:
        asked.append(kind)
        return real(self, kind, flags, body)

    with Kernel() as links:
        links.reconcile(bridges, taps, all_addresses=False)
        monkeypatch.setattr(rtnetlink.Rtnetlink, "ask", ask)
        assert not links.reconcile(bridges, taps, all_addresses=False).plan.steps
    assert asked == [rtnetlink.RTM_GETLINK]


@pytest.mark.parametrize("existing", [True, False])
def test_addresses_need_the_library_before_any_change(sandbox: Sandbox, no_pyroute2: None, existing: bool) -> None:
    if existing:
        ip("link", "add", "br0", "type", "bridge")
    before = snapshot()
    with Kernel() as links, pytest.raises(kernel.NoLibrary, match=r"pyroute2 0\.5\.14 or newer is needed"):
        links.reconcile([bridge(addresses=["192.0.2.1/24"])], all_addresses=False)
    assert snapshot() == before


def message(kind: int, sequence: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def test_a_dump_that_others_tear_is_asked_for_again(sandbox: Sandbox) -> None:
    """Answers as in netlink(7): NLM_F_DUMP_INTR on a part, leftovers of an earlier request, then a whole dump."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = struct.pack("=BBHiII", 0, 0, 1, 7, 0, 0)
    multi, torn = rtnetlink.NLM_F_MULTI, rtnetlink.NLM_F_DUMP_INTR
    theirs.send(message(rtnetlink.RTM_NEWLINK, 1, multi, link) + message(rtnetlink.RTM_NEWLINK, 1, multi | torn, link))
    theirs.send(message(rtnetlink.NLMSG_DONE, 1, multi, struct.pack("=i", 0)))
    theirs.send(message(rtnetlink.RTM_NEWLINK, 1, multi, link) + message(rtnetlink.RTM_NEWLINK, 2, multi, link))
    theirs.send(message(rtnetlink.NLMSG_DONE, 2, multi, struct.pack("=i", 0)))
    with Kernel() as links:
        links._socket._socket, real = ours, links._socket._socket
        real.close()
        assert [answer.index for answer in links._dump()] == [7]
    requests = [theirs.recv(4096) for _request in range(2)]
    theirs.close()
    # length, type, flags; the sequence number counts; then the same again
    assert [struct.unpack_from("=I", request, 8)[0] for request in requests] == [1, 2]
    first, second = (request[:8] + request[12:] for request in requests)
    assert first == second
    assert len(first) > 16


def test_a_dump_that_the_kernel_breaks_off(sandbox: Sandbox) -> None:
    """The end of a dump carries an errno too."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(message(rtnetlink.NLMSG_DONE, 1, rtnetlink.NLM_F_MULTI, struct.pack("=i", -errno.ENOMEM)))
    with Kernel() as links:
        links._socket._socket, real = ours, links._socket._socket
        real.close()
        with pytest.raises(KernelError, match=r"Can't list the links .*ENOMEM"):
            links._dump()
    theirs.close()
