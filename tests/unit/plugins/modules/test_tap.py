# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tap module as Ansible runs it, against the real kernel in a private network namespace."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.hostnet.qemu.plugins.module_utils.links import model
from ansible_collections.hostnet.qemu.plugins.module_utils.links.rtnetlink import IFF_UP
from ansible_collections.hostnet.qemu.plugins.module_utils.links_module import TASK_OPTIONS
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import tuntap
from ansible_collections.hostnet.qemu.plugins.modules import tap
from hypothesis import given, settings
from support.garbage import check_answer, garbage
from support.modules import check_documented, run_module
from support.namespaces import Sandbox, ip

MAC, OTHER_MAC = "fe:00:00:00:00:01", "fe:00:00:00:00:02"


def run(check: bool = False, **arguments: Any) -> dict[str, Any]:
    """The result of a task that must succeed."""
    result = run_module(tap.main, {"name": "tap0", **arguments}, check=check)
    assert not result.get("failed"), result
    return result


def fail(check: bool = False, **arguments: Any) -> str:
    """The message of a task that must fail, and change nothing."""
    before = state()
    result = run_module(tap.main, {"name": "tap0", **arguments}, check=check)
    assert result.get("failed"), result
    assert "Traceback" not in json.dumps(result)
    assert state() == before
    return str(result["msg"])


def state() -> list[str]:
    """Every link with its settings, and its addresses."""
    lines = ip("-d", "link", "show").splitlines() + ip("-o", "address", "show").splitlines()
    # Timers run, and duplicate address detection ends.
    return sorted(line.split(" hello_timer")[0].replace(" tentative", "") for line in lines)


def data(name: str = "tap0") -> dict[str, Any]:
    """What iproute2 says of a tap."""
    (link,) = json.loads(ip("-d", "-j", "link", "show", name))
    info = link["linkinfo"]
    return {**link, **info.get("info_data", {}), "port": info.get("info_slave_data", {})}


@contextmanager
def held(name: str = "tap0", flags: int = 0) -> Iterator[int]:
    """Hold a tap as a running guest does: by an open queue."""
    descriptor = tuntap.open_tun()
    try:
        tuntap.create(descriptor, name.encode(), tuntap.IFF_TAP | tuntap.IFF_NO_PI | flags)
        link = Path("/sys/class/net", name)
        # One that is up has a carrier now, of which the kernel takes note within a second (net/core/link_watch.c).
        if int((link / "flags").read_text(), 16) & IFF_UP:
            while (link / "operstate").read_text() != "up\n":
                time.sleep(0.01)
        yield descriptor
    finally:
        os.close(descriptor)


# Option, first value, second value, and what iproute2 shows of the second.
OPTIONS = [
    ("up", False, True, lambda link: "UP" in link["flags"]),
    ("owner", "nobody", "0", lambda link: link["user"] == "root"),
    ("owner", 0, 4294967294, lambda link: str(link["user"]) in ("4294967294", "-2")),
    ("group", 0, "nogroup", lambda link: str(link["group"]) != "0"),
    ("mtu", 1280, 65521, lambda link: link["mtu"] == 65521),
    ("mac", OTHER_MAC, MAC, lambda link: link["address"] == MAC),
    ("alias", "one's own", "", lambda link: "ifalias" not in link),
    ("alias", "", "two words", lambda link: link["ifalias"] == "two words"),
    ("txqueuelen", 0, 77, lambda link: link["txqlen"] == 77),
    ("ipv6", True, False, lambda link: link["inet6_addr_gen_mode"] == "none"),
    ("ipv6", False, True, lambda link: link["inet6_addr_gen_mode"] == "eui64"),
    ("bridge", "br0", "br1", lambda link: link["master"] == "br1"),
    ("bridge", "br0", "", lambda link: "master" not in link),
]
PORT_OPTIONS = [
    ("isolated", True, False, "isolated"),
    ("learning", False, True, "learning"),
    ("unicast_flood", False, True, "flood"),
    ("multicast_flood", False, True, "mcast_flood"),
    ("hairpin", True, False, "hairpin"),
    ("guard", True, False, "guard"),
    ("locked", True, False, "locked"),
    ("cost", 1, 65535, "cost"),
    ("priority", 0, 63, "priority"),
]


def changes(option: str, values: tuple[object, ...], **always: Any) -> None:
    """Set at creation or first, changed, foreseen by check mode, read back, unchanged by a second run."""
    for value in values:
        arguments = {**always, option: value}
        before = state()
        foreseen = run(check=True, **arguments)
        assert state() == before
        made = run(**arguments)
        assert foreseen["changed"] and made["changed"]
        assert made["operations"] == foreseen["operations"]
        assert made["diff"] == foreseen["diff"]
        assert made["diff"]["before"] != made["diff"]["after"]
        again = run(**arguments)
        assert (again["changed"], again["operations"]) == (False, [])
        assert made["tap"] == again["tap"]


def test_every_option_is_tested() -> None:
    """The flags of TUN_OPTIONS that a new tap gets have a test of their own."""
    assert {each[0] for each in OPTIONS} - {"bridge"} == {
        option.name for option in (*model.TAP_LINK_OPTIONS, model.OWNER, model.GROUP)
    }
    assert {each[0] for each in PORT_OPTIONS} == {option.name for option in model.TAP_PORT_OPTIONS}


@pytest.mark.parametrize(("option", "first", "second", "reached"), OPTIONS)
def test_option(sandbox: Sandbox, option: str, first: object, second: object, reached: Any) -> None:
    for name in ("br0", "br1"):
        ip("link", "add", name, "type", "bridge")
    changes(option, (first, second))
    assert reached(data())
    # An option that is not given stays.
    assert not run(up=second if option == "up" else True)["changed"]


@pytest.mark.parametrize(("option", "first", "second", "shown"), PORT_OPTIONS)
def test_option_of_a_port(sandbox: Sandbox, option: str, first: object, second: object, shown: str) -> None:
    ip("link", "add", "br0", "type", "bridge")
    changes(option, (first, second), bridge="br0")
    port = data()["port"]
    assert (int(port[shown], 0) if isinstance(port[shown], str) else port[shown]) == second
    assert not run(**{option: second})["changed"]


@pytest.mark.kernel_feature("vlan_filtering")
@pytest.mark.parametrize(
    ("option", "values", "always"),
    [
        ("pvid", (10, 4094, 0), {}),
        ("tagged", (["20-22", 30], ["21"], []), {}),
        ("untagged", ([10, "20-22"], [10]), {"pvid": 10}),
        ("untagged", ([], [1]), {"pvid": 0, "tagged": ["5"]}),
    ],
)
def test_vlans(sandbox: Sandbox, option: str, values: tuple[object, ...], always: dict[str, Any]) -> None:
    ip("link", "add", "br0", "type", "bridge", "vlan_filtering", "1")
    run(bridge="br0")
    changes(option, values, bridge="br0", **always)
    assert not run()["changed"]
    # What is returned asks for what there is.
    reached = run()["tap"]
    assert not run(**{name: reached[name] for name in ("pvid", "untagged", "tagged", "bridge")})["changed"]


@pytest.mark.kernel_feature("vlan_filtering")
def test_vlans_of_a_tap_that_moves(sandbox: Sandbox) -> None:
    """They are those of a new port of the other bridge; a bridge that does not filter has none to tell of."""
    for name, arguments in (("br0", ["vlan_filtering", "1"]), ("br1", [])):
        ip("link", "add", name, "type", "bridge", *arguments)
    guest = run(bridge="br0", pvid=10, tagged=["20"])["tap"]
    assert (guest["pvid"], guest["untagged"], guest["tagged"]) == (10, ["10"], ["20"])
    moved = run(bridge="br1")["tap"]
    assert (moved["pvid"], moved["untagged"], moved["tagged"]) == (None, None, None)
    assert "because its bridge br1 does not filter them" in fail(pvid=10)
    back = run(bridge="br0")["tap"]
    assert (back["pvid"], back["untagged"], back["tagged"]) == (1, ["1"], [])
    assert "would not be a member of VLAN 1, its pvid" in fail(untagged=["10"])


@pytest.mark.kernel_feature("vlan_filtering")
def test_vlans_in_another_namespace(sandbox: Sandbox) -> None:
    assert not run(check=True, netns="lab", bridge="br0", pvid=10).get("failed")
    ip("netns", "add", "lab")
    ip("-n", "lab", "link", "add", "br0", "type", "bridge", "vlan_filtering", "1")
    operations = run(netns="lab", bridge="br0", pvid=10)["operations"]
    assert "bridge -n lab vlan add dev tap0 vid 10 pvid untagged" in operations
    for operation in operations[-2:]:
        subprocess.run(operation.split(), check=True)
    assert not run(netns="lab", bridge="br0", pvid=10)["changed"]


def test_flags_of_a_new_tap(sandbox: Sandbox) -> None:
    run()
    plain = data()
    assert (plain["type"], plain["pi"], plain["vnet_hdr"], plain["multi_queue"]) == ("tap", False, False, False)
    run(name="tap1", vnet_hdr=True, packet_info=True, multi_queue=True)
    rich = data("tap1")
    assert (rich["type"], rich["pi"], rich["vnet_hdr"], rich["multi_queue"]) == ("tap", True, True, True)
    assert plain["persist"] and rich["persist"]
    # A new owner changes neither these nor anything else.
    assert run(name="tap1", owner="nobody")["changed"]
    assert {**data("tap1"), "user": None, "linkinfo": None} == {**rich, "user": None, "linkinfo": None}


def test_a_new_tap_leaves_the_mtu_of_its_bridge_alone(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "mtu", "9000", "type", "bridge")
    assert run(bridge="br0")["tap"]["mtu"] == 9000
    assert data("br0")["mtu"] == 9000
    assert not run(bridge="br0")["changed"]


def test_a_port_comes_up_without_an_ipv6_address(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "type", "bridge")
    run(bridge="br0")
    run(name="tap1")
    with held(), held("tap1"):
        # The kernel takes note of a carrier now and then.
        for _try in range(200):
            addresses = {link["ifname"]: link["addr_info"] for link in json.loads(ip("-j", "address", "show"))}
            if addresses["tap1"]:
                break
            time.sleep(0.05)
    assert addresses["tap0"] == []
    assert addresses["tap1"] != []


def test_the_owner_attaches_and_nobody_else(sandbox: Sandbox) -> None:
    """As QEMU does it: by name, without any privilege."""
    run(owner=4321)
    run(name="tap1")
    run(name="tap2", owner="")
    run(name="tap3", group=4321)

    def attach(uid: int, name: str = "tap0") -> int:
        child = os.fork()
        if not child:
            status = 2
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                with held(name):
                    status = 0
            except PermissionError:
                status = 1
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert (attach(4321), attach(4322)) == (0, 1)
    # Root's by default; everybody's if that is asked for; a group's.
    assert (attach(4321, "tap1"), attach(4321, "tap2")) == (1, 0)
    assert (attach(4321, "tap3"), attach(4322, "tap3")) == (0, 1)


@pytest.mark.parametrize("flags", [0, tuntap.IFF_MULTI_QUEUE])
def test_a_held_tap_is_neither_attached_to_nor_cut_off(sandbox: Sandbox, flags: int) -> None:
    for name in ("br0", "br1"):
        ip("link", "add", name, "type", "bridge")
    run(bridge="br0", owner="0", multi_queue=bool(flags))
    with held(flags=flags):
        queues = data().get("numqueues")
        # What cuts nobody off works, and a second run is unchanged.
        for _run in range(2):
            changed = run(bridge="br0", owner="0", isolated=True, alias="in use", txqueuelen=500)
        assert not changed["changed"] and changed["tap"]["held"]
        for check in (True, False):
            assert "can't be changed while a guest holds it" in fail(check=check, owner="nobody", force=True)
            assert "not taken off br0" in fail(check=check, bridge="br1")
            assert "not taken down" in fail(check=check, up=False)
            assert "not removed" in fail(check=check, state="absent")
        assert data().get("numqueues") == queues
        assert run(bridge="br1", force=True)["changed"]
        # The user may be gone before.
        assert run(state="absent", force=True, owner="no-such-user", group="no-such-group")["changed"]


def test_a_tap_that_ends_with_its_user_is_not_taken_over(sandbox: Sandbox) -> None:
    with held():
        assert "ends with the program that made it" in fail()
        assert "ends with the program that made it" in fail(force=True)
        assert "not removed" in fail(state="absent")
    assert run()["changed"]


def test_namespace(sandbox: Sandbox) -> None:
    assert "no network namespace 'lab'" in fail(netns="lab")
    foreseen = run(check=True, netns="lab", bridge="br0")
    assert "no network namespace 'lab'" in json.dumps(foreseen["warnings"])
    ip("netns", "add", "lab")
    ip("-n", "lab", "link", "add", "br0", "type", "bridge")
    made = run(netns="lab", bridge="br0")
    assert made["operations"][0] == "ip -n lab tuntap add dev tap0 mode tap user 0"
    assert not run(netns="lab", bridge="br0")["changed"]
    assert "tap0" not in ip("link", "show")
    assert run(netns="lab", state="absent")["operations"] == ["ip -n lab link delete dev tap0"]


def test_what_fails_is_undone(sandbox: Sandbox) -> None:
    """No host has the memory for such a long queue, which matters as soon as it is in use."""
    run(mtu=1500)
    with held():
        message = fail(alias="x", mtu=1400, txqueuelen=4294967295)
    assert "Can't set txqueuelen of tap0 to 4294967295" in message
    assert message.endswith("What had been done before was undone.")


def test_without_the_device(sandbox: Sandbox) -> None:
    sandbox.make_tun(None)
    assert "there is no /dev/net/tun" in fail()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sixteen-bytes-xx"}, "16 bytes, and the kernel takes at most 15"),
        ({"name": "lo"}, "lo exists and is no tap but a device of its own"),
        ({"name": "br0"}, "br0 exists and is no tap but a link of kind bridge"),
        ({"name": "tun0", "state": "absent"}, "tun0 exists and is no tap but a link of kind tun"),
        ({"owner": "no-such-user"}, "there is no user 'no-such-user' on this host"),
        ({"group": "no-such-group"}, "there is no group 'no-such-group' on this host"),
        ({"owner": 4294967295}, "ids are 0 to 4294967294"),
        ({"bridge": "br9"}, "there is no link of that name"),
        ({"bridge": "lo"}, "it is no bridge but a device of its own"),
        ({"isolated": True}, "need it to be a port"),
        ({"bridge": "br0", "cost": 0}, "the kernel takes 1 to 65535"),
        ({"bridge": "br0", "priority": 64}, "the kernel takes 0 to 63"),
        ({"txqueuelen": -1}, "is out of range"),
        ({"mtu": 67}, "68 to 65521 bytes"),
        ({"mac": "01:00:5e:00:00:01"}, "not a unicast address"),
        ({"mtu": 1000, "ipv6": True}, "has no IPv6"),
        ({"pvid": 10}, "VLANs of the tap tap0 need it to be a port"),
        ({"bridge": "br0", "pvid": 10}, "because its bridge br0 does not filter them"),
        ({"bridge": "br0", "pvid": 4095}, "the kernel takes 0 to 4094"),
        ({"bridge": "br0", "tagged": ["0"]}, "VLANs are 1 to 4094"),
        ({"bridge": "br0", "tagged": ["20-10"]}, "the lower one first"),
        ({"bridge": "br0", "untagged": ["ten"]}, "Write a number or a range"),
        ({"bridge": "br0", "untagged": ["1-3"], "tagged": ["3-5"]}, "3 is in both lists"),
    ],
)
def test_refusals(sandbox: Sandbox, arguments: dict[str, Any], message: str) -> None:
    ip("link", "add", "br0", "type", "bridge")
    ip("tuntap", "add", "tun0", "mode", "tun")
    for check in (True, False):
        assert message in fail(check=check, **arguments)


@settings(max_examples=60, deadline=None)
@given(garbage([*model.tap_argument_spec(), *TASK_OPTIONS]))
def test_garbage_is_a_clear_failure(arguments: dict[str, Any]) -> None:
    check_answer(tap.main, {"name": "tap0", **arguments}, "operations")


def test_documentation_matches_the_arguments() -> None:
    check_documented(tap.DOCUMENTATION, {**model.tap_argument_spec(), **TASK_OPTIONS})


def test_returned_is_what_is_documented(sandbox: Sandbox) -> None:
    returned = yaml.safe_load(tap.RETURN)
    assert set(run()["tap"]) == set(returned["tap"]["contains"])
    assert set(run()) - {"changed", "diff", "invocation"} == set(returned)
