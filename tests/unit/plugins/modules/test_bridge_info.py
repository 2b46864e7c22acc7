# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridge_info module as Ansible runs it, and what it and tap_info tell given back to links, on the real kernel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import Any

import pytest
import yaml
from ansible_collections.hostnet.qemu.plugins.module_utils.links.facts import MAX_LEARNED
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import (
    BRIDGE_OPTIONS,
    TAP_PORT_OPTIONS,
    bridge_argument_spec,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links_module import INFO_OPTIONS
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import tuntap
from ansible_collections.hostnet.qemu.plugins.modules import bridge_info
from hypothesis import Phase, given, settings
from support import round_trip
from support.garbage import check_answer, garbage
from support.modules import check_documented, run_module
from support.namespaces import Sandbox, ip

MAC = "02:00:00:00:00:01"


def run(check: bool = False, **arguments: Any) -> dict[str, Any]:
    """The result of a task that must succeed."""
    result = run_module(bridge_info.main, arguments, check=check)
    assert not result.get("failed"), result
    return result


def fail(check: bool = False, **arguments: Any) -> str:
    """The message of a task that must fail."""
    result = run_module(bridge_info.main, arguments, check=check)
    assert result.get("failed"), result
    assert "Traceback" not in json.dumps(result)
    return str(result["msg"])


def test_a_bridge_in_the_words_of_the_module(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "address", MAC, "type", "bridge", "stp_state", "1", "forward_delay", "250")
    ip("link", "set", "br0", "up", "mtu", "1400", "alias", "of the lab")
    ip("address", "add", "192.0.2.1/24", "dev", "br0")
    ip("link", "add", "p1", "type", "veth", "peer", "name", "p1-far")
    ip("link", "set", "p1", "master", "br0")
    (bridge,) = run()["bridges"]
    assert set(bridge) <= set(bridge_argument_spec())
    assert set(bridge_argument_spec()) - set(bridge) <= {
        *("state", "force", "ports_mode", "addresses_mode"),
        # Not of every kernel, nor without a filter.
        *("vlan_default_pvid", "vlans"),
    }
    told = {"name": "br0", "up": True, "mac": MAC, "mtu": 1400, "alias": "of the lab", "stp": True}
    assert bridge.items() >= {**told, "forward_delay": 2.5, "max_age": 20.0, "priority": 32768}.items()
    assert (bridge["ports"], bridge["addresses"]) == (["p1"], ["192.0.2.1/24"])


def test_what_follows_from_the_ports_is_not_pinned(sandbox: Sandbox) -> None:
    """Giving it back would pin it: the bridge would no longer follow."""
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "add", "p1", "mtu", "1300", "type", "veth", "peer", "name", "p1-far")
    ip("link", "set", "p1", "master", "br0")
    told = round_trip.check_round_trip()
    assert {"mac", "mtu"} & set(told.bridges[0]) == set()
    assert (told.bridge_facts["br0"]["mtu"], told.bridge_facts["br0"]["mac_pinned"]) == (1300, False)
    # Still so after links had its way.
    ip("link", "set", "p1", "mtu", "1200")
    assert run()["facts"]["br0"]["mtu"] == 1200


def test_names_and_texts_that_the_modules_refuse_are_in_the_facts_only(sandbox: Sandbox) -> None:
    for name in (b"br\xff", "br\x01", "br0"):
        subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    for name in (b"tap\xff", "tap0", "tap1"):
        subprocess.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", b"tap\xff", "master", "br0"], check=True)
    subprocess.run(["ip", "link", "set", "tap0", "master", b"br\xff"], check=True)
    subprocess.run(["ip", "link", "set", "br0", "alias", b"\xff\n"], check=True)
    told = round_trip.check_round_trip()
    assert [bridge["name"] for bridge in told.bridges] == ["br0"]
    assert [tap["name"] for tap in told.taps] == ["tap0", "tap1"]
    assert told.bridges[0]["ports"] == [] and "alias" not in told.bridges[0]
    assert "bridge" not in told.taps[0] and "isolated" not in told.taps[0]
    assert told.taps[1]["bridge"] == ""
    assert set(told.bridge_facts) == {"br0", "br\x01", "br\\xff"}
    assert [port["name"] for port in told.bridge_facts["br0"]["ports"]] == ["tap\\xff"]
    assert told.bridge_facts["br0"]["alias"] == "\\xff\n"
    assert told.tap_facts["tap0"]["master"] == "br\\xff"
    assert told.tap_facts["tap0"]["isolated"] is False


def test_addresses_are_told_as_they_can_be_given(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "up", "type", "bridge")
    for address in (
        # The first one of its subnet, though not by number: the kernel sends from it.
        "192.0.2.9/24",
        "192.0.2.1/24",
        "10.0.0.1 peer 10.0.0.2/32",
        "2001:db8::9/64",
        "2001:db8::1/64",
    ):
        ip("address", "add", *address.split(), "dev", "br0", *(["nodad"] if ":" in address else []))
    ip("address", "add", "203.0.113.5/24", "dev", "br0", "valid_lft", "1000", "preferred_lft", "1000")
    for address in ("224.0.0.5/24", "169.254.1.1/16", "fe80::1/64"):
        ip("address", "add", address, "dev", "br0")
    told = round_trip.check_round_trip()
    assert told.bridges[0]["addresses"] == [
        *("192.0.2.9/24", "10.0.0.1 peer 10.0.0.2/32", "192.0.2.1/24"),
        *("2001:db8::9/64", "2001:db8::1/64"),
    ]
    facts = {each["address"]: each for each in told.bridge_facts["br0"]["addresses"]}
    assert set(facts) >= {"224.0.0.5/24", "169.254.1.1/16", "fe80::1/64", "192.0.2.9/24"}
    leased = facts["203.0.113.5/24"]
    assert leased["dynamic"] and 0 < leased["valid_seconds"] <= 1000
    assert (facts["192.0.2.9/24"]["dynamic"], facts["192.0.2.9/24"]["valid_seconds"]) == (False, None)


def test_stp_as_another_bridge_dictates_it(sandbox: Sandbox) -> None:
    """The root of the tree sets the timers of all, within no limits, and no task could ask for them."""
    ip("link", "add", "br0", "up", "type", "bridge", "stp_state", "1", "forward_delay", "200", "priority", "60000")
    ip("link", "add", "p1", "up", "type", "veth", "peer", "name", "p1-far")
    ip("link", "set", "p1", "master", "br0")
    ip("link", "set", "p1-far", "up")
    # A configuration message of STP, IEEE 802.1D 9.3.1: root 1000, forward delay 1 s, which the kernel refuses.
    message = bytes.fromhex("0180c2000000 020000000099 0026 424203 0000 00 00 00")
    message += bytes.fromhex("1000 020000000099 00000000 1000 020000000099 8001 0000 1400 0200 0100")
    with _packet_socket("p1-far") as wire:
        for _try in range(200):
            # As a root does: the port hears nothing until the kernel has noticed its carrier (net/core/link_watch.c).
            wire.send(message)
            facts = run()["facts"]["br0"]
            if facts["root_id"].startswith("1000."):
                break
    assert facts["root_id"] == "1000.02:00:00:00:00:99"
    assert facts["bridge_id"].startswith("ea60.")
    assert (facts["stp"], facts["forward_delay"]) == (True, 1.0)
    told = round_trip.tell()
    assert {"stp", "forward_delay"} & set(told.bridges[0]) == set()
    assert round_trip.give_back(told)["operations"] == []


def test_guests_are_in_the_facts_only(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "up", "type", "bridge")
    guest = tuntap.open_tun()
    try:
        tuntap.create(guest, b"guest0", tuntap.IFF_TAP | tuntap.IFF_NO_PI)
        ip("tuntap", "add", "dev", "tap0", "mode", "tap")
        for name in ("guest0", "tap0"):
            ip("link", "set", name, "up", "master", "br0")
        told = round_trip.check_round_trip()
    finally:
        os.close(guest)
    assert told.bridges[0]["ports"] == ["tap0"]
    ports = {port["name"]: port for port in told.bridge_facts["br0"]["ports"]}
    assert ports["guest0"] == {
        "name": "guest0",
        "kind": "tun",
        "state": "forwarding",
        "persistent": False,
        "held": "a tap that ends with its user",
    }
    assert (ports["tap0"]["state"], ports["tap0"]["persistent"], ports["tap0"]["held"]) == ("disabled", True, "")


def test_learned_addresses_and_counters(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "up", "address", MAC, "type", "bridge")
    ip("link", "add", "p1", "up", "type", "veth", "peer", "name", "p1-far")
    ip("link", "set", "p1", "master", "br0")
    ip("link", "set", "p1-far", "up")
    with _packet_socket("p1-far") as wire:
        for _try in range(200):
            wire.send(bytes.fromhex("020000000001 525400123456 88b5") + bytes(86))
            facts = run()["facts"]["br0"]
            if any(entry["mac"] == "52:54:00:12:34:56" for entry in facts["learned"]):
                break
    assert {"mac": "52:54:00:12:34:56", "port": "p1", "vlan": 0} in facts["learned"]
    (link,) = json.loads(ip("-s", "-j", "link", "show", "br0"))
    shown = link["stats64"]
    counters = run()["facts"]["br0"]["statistics"]
    assert counters["rx_packets"] >= 1
    # Less what has come since, such as answers to the kernel's own questions about multicast.
    for way in ("rx", "tx"):
        for counter in ("packets", "bytes", "errors", "dropped"):
            assert counters[f"{way}_{counter}"] >= shown[way][counter]


def test_many_learned_addresses_stay_readable(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "up", "type", "bridge")
    ip("tuntap", "add", "dev", "tap0", "mode", "tap")
    ip("link", "set", "tap0", "up", "master", "br0")
    entries = [f"fdb add 52:54:00:00:{number // 256:02x}:{number % 256:02x} dev tap0 master" for number in range(300)]
    batch = "".join(f"{entry} dynamic\n" for entry in entries)
    # By hand, and so not learned.
    batch += "fdb add 52:54:00:ff:00:01 dev tap0 master static\n"
    guest = tuntap.open_tun()
    try:
        tuntap.create(guest, b"tap0", tuntap.IFF_TAP | tuntap.IFF_NO_PI)
        # The kernel takes note of a carrier now and then, and a port without one learns nothing.
        for _try in range(200):
            if run()["facts"]["br0"]["ports"][0]["state"] == "forwarding":
                break
        subprocess.run(["bridge", "-batch", "-"], input=batch, text=True, check=True)
        told = round_trip.tell()
    finally:
        os.close(guest)
    for facts in (told.bridge_facts["br0"], told.tap_facts["tap0"]):
        assert (len(facts["learned"]), facts["learned_count"]) == (MAX_LEARNED, 300)
        assert facts["learned"][1] == {"mac": "52:54:00:00:00:01", "port": "tap0", "vlan": 0}


def test_names(sandbox: Sandbox) -> None:
    for name in ("br0", "br1", "a,b"):
        ip("link", "add", name, "type", "bridge")
    ip("tuntap", "add", "dev", "tap0", "mode", "tap")
    assert [bridge["name"] for bridge in run()["bridges"]] == ["a,b", "br0", "br1"]
    for names, found in (
        ("br1", ["br1"]),
        (["br0", "br0", "missing", "tap0"], ["br0"]),
        (["a,b"], ["a,b"]),
        ("missing", []),
        ("", []),
        ([], []),
    ):
        told = run(name=names)
        assert [bridge["name"] for bridge in told["bridges"]] == list(told["facts"]) == found


def test_namespace(sandbox: Sandbox) -> None:
    assert "no network namespace 'lab'" in fail(netns="lab")
    foreseen = run(check=True, netns="lab")
    assert "no network namespace 'lab'" in json.dumps(foreseen["warnings"])
    assert (foreseen["bridges"], foreseen["facts"]) == ([], {})
    ip("netns", "add", "lab")
    ip("-n", "lab", "link", "add", "br0", "address", MAC, "type", "bridge")
    assert run(netns="lab")["bridges"][0]["mac"] == MAC
    assert run()["bridges"] == []


def test_nothing_is_changed(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "up", "type", "bridge")
    before = ip("-d", "link", "show"), ip("address", "show")
    for check in (True, False):
        assert run(check=check)["changed"] is False
    after = ip("-d", "link", "show"), ip("address", "show")
    assert [text.replace(" tentative", "").split("hello_timer")[0] for text in after] == [
        text.replace(" tentative", "").split("hello_timer")[0] for text in before
    ]


@pytest.mark.kernel_feature("vlan_filtering")
def test_learned_addresses_have_their_vlan(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "up", "type", "bridge", "vlan_filtering", "1", "vlan_default_pvid", "7")
    ip("link", "add", "p1", "up", "type", "veth", "peer", "name", "p1-far")
    ip("link", "set", "p1", "master", "br0")
    ip("link", "set", "p1-far", "up")
    entry = {"mac": "52:54:00:12:34:56", "port": "p1", "vlan": 7}
    with _packet_socket("p1-far") as wire:
        for _try in range(200):
            wire.send(bytes.fromhex("020000000001 525400123456 88b5") + bytes(86))
            if entry in run()["facts"]["br0"]["learned"]:
                break
    assert entry in run()["facts"]["br0"]["learned"]


def test_every_option_goes_round() -> None:
    assert {option.word for option in BRIDGE_OPTIONS} - {"vlan_default_pvid"} == set(round_trip.OF_BRIDGES)
    assert {option.word for option in TAP_PORT_OPTIONS} <= set(round_trip.OF_PORTS)


@settings(max_examples=15, deadline=None)
@given(round_trip.commands())
def test_whatever_state_is_told_and_given_back(sequence: list[round_trip.Command]) -> None:
    _check_after(sequence)


@pytest.mark.kernel_feature("vlan_filtering")
# Where the guest of the tests has to be emulated, to make a failing example smaller takes too long.
@settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(round_trip.commands(vlans=True))
def test_whatever_state_with_vlans_is_told_and_given_back(sequence: list[round_trip.Command]) -> None:
    _check_after(sequence)


def _check_after(sequence: list[round_trip.Command]) -> None:
    """Have a namespace in the state that commands leave it in, and check what is told of it."""
    box = Sandbox()
    try:
        round_trip.run(sequence)
        round_trip.check_round_trip()
    finally:
        box.close()


@settings(max_examples=40, deadline=None)
@given(garbage(INFO_OPTIONS))
def test_garbage_is_a_clear_failure(arguments: dict[str, Any]) -> None:
    check_answer(bridge_info.main, arguments, "bridges", check=False)


def test_documentation_matches_the_arguments() -> None:
    check_documented(bridge_info.DOCUMENTATION, INFO_OPTIONS)


def test_returned_is_what_is_documented(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "type", "bridge")
    returned = yaml.safe_load(bridge_info.RETURN)
    result = run()
    assert set(result) - {"changed", "invocation"} == set(returned)
    told = returned["facts"]["contains"]
    of_task = {"state", "force", "ports_mode", "addresses_mode"}
    assert set(result["facts"]["br0"]) == {*told, *bridge_argument_spec()} - of_task
    assert set(result["facts"]["br0"]["statistics"]) == set(told["statistics"]["contains"])
    assert set(returned["bridges"]["sample"][0]) == set(bridge_argument_spec()) - of_task - {"mtu"}


def _packet_socket(link: str) -> socket.socket:
    """A raw socket on a link, see packet(7)."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.bind((link, 0))
    return wire
