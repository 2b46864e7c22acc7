# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tap_info module as Ansible runs it, against the real kernel; test_bridge_info.py has the states of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import pytest
import yaml
from ansible_collections.hostnet.qemu.plugins.module_utils.links import host
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import tap_argument_spec
from ansible_collections.hostnet.qemu.plugins.module_utils.links_module import INFO_OPTIONS
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import tuntap
from ansible_collections.hostnet.qemu.plugins.modules import tap_info
from hypothesis import given, settings
from support import round_trip
from support.garbage import check_answer, garbage
from support.install import ROOT
from support.modules import check_documented, for_users, run_module
from support.namespaces import Sandbox, ip

MAC = "fe:00:00:00:00:01"
BRIDGE_VLANS = ("vlan_filtering", "vlan_default_pvid", "vlans")

# A program that attaches to a tap so many times, as a guest's QEMU does, and stays until its input ends.
GUEST = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from tapfd import tuntap
for _queue in range(int(sys.argv[4])):
    tuntap.create(tuntap.open_tun(), sys.argv[2].encode(), tuntap.IFF_TAP | int(sys.argv[3]))
if len(sys.argv) > 5:
    user = int(sys.argv[5])
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # PR_SET_DUMPABLE: as if that user had started it, who may look into it.
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def guest(name: str, flags: int = tuntap.IFF_NO_PI, queues: int = 1, user: int | None = None) -> Iterator[int]:
    """Run a program that holds a tap; its process id."""
    arguments = [str(ROOT / "plugins/module_utils"), name, str(flags), str(queues), *([str(user)] if user else [])]
    with subprocess.Popen(
        [sys.executable, "-c", GUEST, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.stdin.close()


def run(check: bool = False, **arguments: Any) -> dict[str, Any]:
    """The result of a task that must succeed."""
    result = run_module(tap_info.main, arguments, check=check)
    assert not result.get("failed"), result
    return result


def make(name: str, *words: str) -> None:
    ip("tuntap", "add", "dev", name, "mode", "tap", *words)


def test_a_tap_in_the_words_of_the_module(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "type", "bridge")
    make("tap0", "user", "nobody", "group", "54321", "multi_queue", "vnet_hdr", "pi")
    ip("link", "set", "tap0", "up", "address", MAC, "mtu", "1400", "txqueuelen", "77", "master", "br0")
    ip("link", "set", "tap0", "type", "bridge_slave", "isolated", "on", "cost", "7")
    told = round_trip.check_round_trip()
    (tap,) = told.taps
    assert set(tap) <= set(tap_argument_spec())
    assert set(tap_argument_spec()) - set(tap) <= {"state", "force", "alias", "pvid", "untagged", "tagged"}
    assert tap.items() >= {"name": "tap0", "up": True, "mac": MAC, "mtu": 1400, "txqueuelen": 77}.items()
    assert tap.items() >= {"owner": "65534", "group": "54321", "bridge": "br0", "isolated": True, "cost": 7}.items()
    assert (tap["multi_queue"], tap["vnet_hdr"], tap["packet_info"], tap["learning"]) == (True, True, True, True)
    facts = told.tap_facts["tap0"]
    assert (facts["owner"], facts["owner_name"], facts["group"], facts["group_name"]) == (65534, "nobody", 54321, None)
    assert (facts["master"], facts["master_kind"], facts["persistent"], facts["held"]) == ("br0", "bridge", True, "")


def test_a_tap_of_nobody_stays_one(sandbox: Sandbox) -> None:
    """A new tap of the module tap belongs to root unless it is told otherwise."""
    make("tap0")
    ip("tuntap", "add", "dev", "tap1", "mode", "tap", "group", "0")
    told = round_trip.check_round_trip()
    assert [(tap["owner"], tap["group"]) for tap in told.taps] == [("", ""), ("", "0")]
    facts = told.tap_facts["tap0"]
    assert (facts["owner"], facts["owner_name"], facts["group"], facts["group_name"]) == (None, None, None, None)


def test_what_a_tap_is_by_default_is_told_as_it_is(sandbox: Sandbox) -> None:
    """The module tap brings a tap up by default, and takes IPv6 off one that it puts on a bridge."""
    ip("link", "add", "br0", "type", "bridge")
    for name in ("tap0", "tap1", "tap2", "tap3"):
        make(name)
        ip("link", "set", name, "master", "br0")
    ip("link", "set", "tap1", "up")
    ip("link", "set", "tap2", "mtu", "1000")
    ip("link", "set", "tap3", "addrgenmode", "random")
    told = round_trip.check_round_trip()
    assert [tap["up"] for tap in told.taps] == [False, True, False, False]
    assert [tap.get("ipv6") for tap in told.taps] == [True, True, None, True]
    # The kernel drew it, and it would be wrong on another host.
    assert all("mac" not in tap for tap in told.taps)


def test_who_holds_a_tap(sandbox: Sandbox) -> None:
    make("tap0")
    make("tap1", "multi_queue", "user", "65534")
    make("tap2")
    with (
        guest("tap0") as first,
        guest("tap1", tuntap.IFF_NO_PI | tuntap.IFF_MULTI_QUEUE, queues=3, user=65534) as second,
        guest("own") as third,
    ):
        told = round_trip.check_round_trip()
    command = os.path.basename(os.path.realpath(sys.executable))[:15]
    holders = {name: facts["holders"] for name, facts in told.tap_facts.items()}
    assert {name: [(each["pid"], each["user"]) for each in found] for name, found in holders.items()} == {
        "tap0": [(first, "root")],
        "tap1": [(second, "nobody")],
        "own": [(third, "root")],
        "tap2": [],
    }
    assert holders["tap0"][0]["command"].startswith(("python", command))
    assert {name: facts["queues"] for name, facts in told.tap_facts.items()} == {
        "tap0": 1,
        "tap1": 3,
        "own": 1,
        "tap2": 0,
    }
    assert told.tap_facts["tap1"]["held"] == "a tap with a queue in use"
    assert told.tap_facts["own"]["persistent"] is False
    # A guest's own ends with it, and is nothing that a task could ask for.
    assert [tap["name"] for tap in told.taps] == ["tap0", "tap1", "tap2"]


def test_the_same_name_in_another_namespace_is_another_tap(sandbox: Sandbox) -> None:
    """Also where the process that holds it is in our namespace: the one of the tap counts."""
    ip("netns", "add", "lab")
    with guest("tap0") as process:
        ip("link", "set", "tap0", "netns", "lab")
        make("tap0")
        assert run()["facts"]["tap0"]["holders"] == []
        (holder,) = run(netns="lab")["facts"]["tap0"]["holders"]
    assert holder["pid"] == process


def test_holders_where_the_kernel_does_not_tell_the_namespace(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.6, or without the right to take a descriptor: the process's own counts."""
    monkeypatch.setattr(host, "_NR_PIDFD_GETFD", -1)
    with guest("tap0") as process:
        assert [holder.pid for holder in host.tap_holders()["tap0"]] == [process]


@for_users
def test_a_user_without_privileges_is_told_what_a_user_may_know(sandbox: Sandbox) -> None:
    """All but the processes of others."""
    ip("link", "add", "br0", "up", "type", "bridge")
    make("tap0", "user", "nobody")
    ip("link", "set", "tap0", "up", "address", MAC, "master", "br0")
    make("tap1")
    with guest("tap0", user=65534) as own, guest("tap1"):
        told = round_trip.tell()
        seen = _as_nobody(round_trip.tell)
    assert seen[:2] == told[:2]
    assert [holder["pid"] for holder in seen.tap_facts["tap0"]["holders"]] == [own]
    assert len(told.tap_facts["tap1"]["holders"]) == 1 and seen.tap_facts["tap1"]["holders"] == []


def _as_nobody(ask: Callable[[], round_trip.Told]) -> round_trip.Told:
    """What a user without privileges is answered."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with open(writer, "w", encoding="utf-8") as pipe:
                json.dump(ask(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return round_trip.Told(*json.loads(answer))


def test_looking_leaves_nothing_open(sandbox: Sandbox) -> None:
    with guest("tap0"):
        before = os.listdir("/proc/self/fd")
        assert host.tap_holders()
        assert os.listdir("/proc/self/fd") == before
    # Nor does the tap stay.
    assert run()["facts"] == {}


@pytest.mark.kernel_feature("bond")
def test_a_tap_that_belongs_to_another_kind_of_link(sandbox: Sandbox) -> None:
    """The module tap leaves such a tap where it is."""
    make("tap0")
    ip("link", "add", "bond0", "type", "bond")
    ip("link", "set", "tap0", "master", "bond0")
    told = round_trip.tell()
    assert "bridge" not in told.taps[0]
    assert (told.tap_facts["tap0"]["master"], told.tap_facts["tap0"]["master_kind"]) == ("bond0", "bond")
    assert round_trip.give_back(told)["operations"] == []


@pytest.mark.kernel_feature("vlan_filtering")
def test_vlans(sandbox: Sandbox) -> None:
    """Those of a bridge that filters; on another one they mean nothing, and no task can ask for them."""
    ip("link", "add", "br0", "type", "bridge", "vlan_default_pvid", "5")
    ip("link", "set", "br0", "type", "bridge", "vlan_filtering", "1")
    ip("link", "add", "br1", "type", "bridge", "vlan_default_pvid", "0")
    for name, bridge in (("tap0", "br0"), ("tap1", "br0"), ("tap2", "br1")):
        make(name)
        ip("link", "set", name, "master", bridge)
    for words in (
        "br0 vid 100-102 self",
        "tap0 vid 10 pvid",
        "tap0 vid 20-29",
        "tap0 vid 30 untagged",
        "tap2 vid 7 pvid untagged",
    ):
        subprocess.run(["bridge", "vlan", "add", "dev", *words.split()], check=True)
    told = round_trip.check_round_trip()
    own = [{name: told.bridges[number].get(name) for name in BRIDGE_VLANS} for number in (0, 1)]
    assert [list(each.values()) for each in own] == [[True, 5, ["100-102"]], [False, 0, None]]
    ports = [[tap.get(name) for name in ("pvid", "untagged", "tagged")] for tap in told.taps]
    assert ports == [[10, ["5", "30"], ["10", "20-29"]], [5, ["5"], []], [None, None, None]]
    assert told.tap_facts["tap0"]["tagged"] == ["10", "20-29"] and told.tap_facts["tap2"]["tagged"] is None
    assert told.bridge_facts["br0"]["vlans"] == ["100-102"]


def test_names(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "type", "bridge")
    ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    for name in ("tap0", "tap1"):
        make(name)
    assert [tap["name"] for tap in run()["taps"]] == ["tap0", "tap1"]
    for names, found in (("tap1", ["tap1"]), (["tap0", "missing", "br0", "tun0"], ["tap0"]), ("", []), ([], [])):
        told = run(name=names)
        assert [tap["name"] for tap in told["taps"]] == list(told["facts"]) == found


def test_namespace(sandbox: Sandbox) -> None:
    failed = run_module(tap_info.main, {"netns": "lab"})
    assert failed["failed"] and "no network namespace 'lab'" in failed["msg"]
    foreseen = run(check=True, netns="lab")
    assert "no network namespace 'lab'" in json.dumps(foreseen["warnings"])
    assert (foreseen["taps"], foreseen["facts"]) == ([], {})
    ip("netns", "add", "lab")
    ip("-n", "lab", "tuntap", "add", "dev", "tap0", "mode", "tap")
    assert [tap["name"] for tap in run(netns="lab")["taps"]] == ["tap0"]
    assert run()["taps"] == []


def test_counters(sandbox: Sandbox) -> None:
    """The host receives what a guest writes; nobody else writes there."""
    tap = tuntap.open_tun()
    try:
        tuntap.create(tap, b"tap0", tuntap.IFF_TAP | tuntap.IFF_NO_PI)
        ip("link", "set", "tap0", "up")
        for _frame in range(3):
            os.write(tap, bytes.fromhex("ffffffffffff 525400123456 88b5") + bytes(86))
        shown = json.loads(ip("-s", "-j", "link", "show", "tap0"))[0]["stats64"]
        counters = run()["facts"]["tap0"]["statistics"]
    finally:
        os.close(tap)
    assert counters["rx_packets"] == 3
    assert {name: counters[f"rx_{name}"] for name in ("bytes", "errors", "dropped")} == {
        name: shown["rx"][name] for name in ("bytes", "errors", "dropped")
    }


@settings(max_examples=40, deadline=None)
@given(garbage(INFO_OPTIONS))
def test_garbage_is_a_clear_failure(arguments: dict[str, Any]) -> None:
    check_answer(tap_info.main, arguments, "taps", check=False)


def test_documentation_matches_the_arguments() -> None:
    check_documented(tap_info.DOCUMENTATION, INFO_OPTIONS)


def test_returned_is_what_is_documented(sandbox: Sandbox) -> None:
    make("tap0")
    returned = yaml.safe_load(tap_info.RETURN)
    result = run()
    assert set(result) - {"changed", "invocation"} == set(returned)
    told = returned["facts"]["contains"]
    assert set(result["facts"]["tap0"]) == {*told, *tap_argument_spec()} - {"state", "force", "bridge"}
    assert set(result["facts"]["tap0"]["statistics"]) == set(told["statistics"]["contains"])
    assert set(returned["taps"]["sample"][0]) == set(tap_argument_spec()) - {"state", "force", "mac"}
