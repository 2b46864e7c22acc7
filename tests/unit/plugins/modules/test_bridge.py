# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridge module as Ansible runs it, against the real kernel in a private network namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.hostnet.qemu.plugins.module_utils.links import model
from ansible_collections.hostnet.qemu.plugins.module_utils.links_module import TASK_OPTIONS
from ansible_collections.hostnet.qemu.plugins.modules import bridge
from hypothesis import given, settings
from support.garbage import check_answer, garbage
from support.modules import check_documented, run_module
from support.namespaces import Sandbox, ip

ROOT = Path(__file__).resolve().parents[4]
MAC = "02:00:00:00:00:01"


def run(check: bool = False, **arguments: Any) -> dict[str, Any]:
    """The result of a task that must succeed."""
    result = run_module(bridge.main, {"name": "br0", **arguments}, check=check)
    assert not result.get("failed"), result
    return result


def fail(check: bool = False, **arguments: Any) -> str:
    """The message of a task that must fail, and change nothing."""
    before = state()
    result = run_module(bridge.main, {"name": "br0", **arguments}, check=check)
    assert result.get("failed"), result
    assert "Traceback" not in json.dumps(result)
    assert state() == before
    return str(result["msg"])


def state() -> list[str]:
    """Every link with its settings, and its addresses, less those that come by themselves after it is up."""
    addresses = [line for line in ip("-o", "address", "show").splitlines() if " scope link " not in line]
    # Timers run.
    return sorted(line.split(" hello_timer")[0] for line in ip("-d", "link", "show").splitlines() + addresses)


def veth(*names: str) -> None:
    for name in names:
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")


def bridge_data(name: str = "br0") -> dict[str, Any]:
    (link,) = json.loads(ip("-d", "-j", "link", "show", name))
    return {**link, **link["linkinfo"]["info_data"]}


VLANS = pytest.mark.kernel_feature("vlan_filtering")

# Option, first value, second value, and what iproute2 shows of the second.
OPTIONS = [
    ("up", False, True, lambda data: "UP" in data["flags"]),
    ("mtu", 1400, 9000, lambda data: data["mtu"] == 9000),
    ("mac", "02:00:00:00:00:0A", MAC, lambda data: data["address"] == MAC),
    ("mac", MAC, "stable", lambda data: data["address"] not in (MAC, "00:00:00:00:00:00")),
    ("stp", False, True, lambda data: data["stp_state"] == 1),
    ("stp", True, False, lambda data: data["stp_state"] == 0),
    ("forward_delay", 2.5, 0, lambda data: data["forward_delay"] == 0),
    ("forward_delay", 0, 7.2, lambda data: data["forward_delay"] == 720),
    ("ageing_time", 0, 12.3, lambda data: data["ageing_time"] == 1230),
    ("ageing_time", 60, 100000, lambda data: data["ageing_time"] == 10000000),
    ("alias", "one's own", "two words", lambda data: data["ifalias"] == "two words"),
    ("alias", "ä" * 127 + "x", "", lambda data: "ifalias" not in data),
    ("hello_time", 1, 9.5, lambda data: data["hello_time"] == 950),
    ("hello_time", 1.2, 10, lambda data: data["hello_time"] == 1000),
    ("max_age", 6, 7.2, lambda data: data["max_age"] == 720),
    ("max_age", 39, 40, lambda data: data["max_age"] == 4000),
    ("priority", 4096, 0, lambda data: data["priority"] == 0),
    ("priority", 0, 65535, lambda data: data["priority"] == 65535),
    ("multicast_snooping", False, True, lambda data: data["mcast_snooping"] == 1),
    ("multicast_snooping", True, False, lambda data: data["mcast_snooping"] == 0),
    ("multicast_querier", True, False, lambda data: data["mcast_querier"] == 0),
    ("multicast_querier", False, True, lambda data: data["mcast_querier"] == 1),
    ("group_fwd_mask", 8, 0x4000, lambda data: data["group_fwd_mask"] == "0x4000"),
    ("group_fwd_mask", 0xFFF8, 0, lambda data: data["group_fwd_mask"] == "0"),
    pytest.param("vlan_filtering", True, False, lambda data: data["vlan_filtering"] == 0, marks=VLANS),
    pytest.param("vlan_filtering", False, True, lambda data: data["vlan_filtering"] == 1, marks=VLANS),
    pytest.param("vlan_default_pvid", 4094, 0, lambda data: data["vlan_default_pvid"] == 0, marks=VLANS),
    pytest.param("vlan_default_pvid", 0, 7, lambda data: data["vlan_default_pvid"] == 7, marks=VLANS),
]


def test_every_option_is_tested() -> None:
    # Those with a mark are values of pytest's.
    tested = {getattr(each, "values", each)[0] for each in OPTIONS}
    assert tested == {option.name for option in (*model.LINK_OPTIONS, *model.BRIDGE_OPTIONS)}


@pytest.mark.parametrize(("option", "first", "second", "reached"), OPTIONS)
def test_option(sandbox: Sandbox, option: str, first: object, second: object, reached: Any) -> None:
    """Set at creation, changed, foreseen by check mode, read back, unchanged by a second run."""
    for value in (first, second):
        before = state()
        foreseen = run(check=True, **{option: value})
        assert state() == before
        made = run(**{option: value})
        assert foreseen["changed"] and made["changed"]
        assert made["operations"] == foreseen["operations"]
        assert made["diff"]["before"] != made["diff"]["after"]
        assert made["diff"] == foreseen["diff"]
        again = run(**{option: value})
        assert (again["changed"], again["operations"]) == (False, [])
        assert again["diff"]["before"] == again["diff"]["after"] == made["diff"]["after"]
        assert made["bridge"] == again["bridge"]
    assert reached(bridge_data())
    # An option that is not given stays.
    assert not run(up=second if option == "up" else True)["changed"]


@VLANS
def test_vlans_of_the_host(sandbox: Sandbox) -> None:
    """Beside the one that it has without a tag."""
    made: dict[str, Any] = {}
    for vlans, written in ((["100", "3-5", "4094"], ["3-5", "100", "4094"]), ([1, 6], ["6"]), ([], [])):
        arguments: dict[str, Any] = {"vlan_filtering": True, "vlans": vlans}
        foreseen, made = run(check=True, **arguments), run(**arguments)
        assert made["changed"] and made["operations"] == foreseen["operations"]
        assert made["diff"] == foreseen["diff"]
        assert (made["diff"]["after"]["vlans"], made["bridge"]["vlans"]) == (written, written)
        assert not run(**arguments)["changed"]
        assert not run()["changed"]
    assert made["operations"] == ["bridge vlan del dev br0 vid 6 self"]
    assert "would do nothing" in fail(vlan_filtering=False, vlans=["7"])


def test_timers_that_the_kernel_rounds(sandbox: Sandbox) -> None:
    """It counts in jiffies, of 4 ms for example."""
    for seconds in (7.25, 7.27, 0.01, 0.03, 123.45):
        assert run(forward_delay=seconds, ageing_time=seconds)["changed"]
        assert not run(forward_delay=seconds, ageing_time=seconds)["changed"]
    for hello_time, max_age in ((1.01, 6.01), (1.33, 7.25), (9.99, 39.99)):
        assert run(hello_time=hello_time, max_age=max_age)["changed"]
        assert not run(hello_time=hello_time, max_age=max_age)["changed"]


def test_ports_and_addresses(sandbox: Sandbox) -> None:
    veth("p1", "p2", "p3")
    arguments: dict[str, Any] = {"ports": ["p1", "p2"], "addresses": ["192.0.2.1/24", "2001:DB8::1/64"]}
    foreseen = run(check=True, **arguments)
    made = run(**arguments)
    assert made["operations"] == foreseen["operations"]
    assert made["diff"] == foreseen["diff"]
    assert made["diff"]["after"]["addresses"] == ["192.0.2.1/24", "2001:db8::1/64"]
    assert made["bridge"]["ports"] == ["p1", "p2"]
    assert not run(**arguments)["changed"]
    more = run(ports=["p3"], addresses=["192.0.2.2/24"])
    assert more["bridge"]["ports"] == ["p1", "p2", "p3"]
    assert more["bridge"]["addresses"] == ["192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64"]
    exact = {"ports": ["p2"], "ports_mode": "exact", "addresses": ["192.0.2.2/24"], "addresses_mode": "exact"}
    fewer = run(**exact)
    assert fewer["bridge"]["ports"] == ["p2"]
    assert fewer["bridge"]["addresses"] == ["192.0.2.2/24"]
    assert not run(**exact)["changed"]
    assert run(**{**exact, "ports": [], "addresses": []})["bridge"]["addresses"] == []


def test_a_bridge_is_removed_and_its_ports_stay(sandbox: Sandbox) -> None:
    veth("p1")
    run(ports=["p1"])
    foreseen = run(check=True, state="absent")
    gone = run(state="absent")
    assert gone["operations"] == foreseen["operations"] == ["ip link delete dev br0"]
    assert gone["diff"] == {"before": {"name": "br0", "state": "present"}, "after": {"name": "br0", "state": "absent"}}
    assert gone["bridge"] == {"name": "br0", "state": "absent"}
    assert "p1" in ip("link", "show", "p1")
    assert not run(state="absent")["changed"]


def test_pinning_the_address_that_the_bridge_has(sandbox: Sandbox) -> None:
    """Pinned, it does not follow a port with a lower address."""
    run()
    mac = bridge_data()["address"]
    pinned = run(mac=mac)
    assert pinned["operations"] == [f"ip link set dev br0 address {mac}"]
    assert (pinned["diff"]["before"]["mac_pinned"], pinned["diff"]["after"]["mac_pinned"]) == (False, True)
    assert not run(mac=mac)["changed"]
    veth("p1")
    ip("link", "set", "p1", "address", "00:00:00:00:00:02")
    assert run(ports=["p1"])["bridge"]["mac"] == mac


def test_a_stable_address_is_the_same_for_a_bridge_made_again(sandbox: Sandbox) -> None:
    mac = run(mac="stable")["bridge"]["mac"]
    run(state="absent")
    assert run(mac="stable")["bridge"]["mac"] == mac
    assert run(name="br1", mac="stable")["bridge"]["mac"] != mac


def test_an_mtu_that_ports_would_move(sandbox: Sandbox) -> None:
    veth("small")
    ip("link", "set", "small", "mtu", "1300")
    assert run(mtu=1500, ports=["small"])["bridge"]["mtu"] == 1500
    assert not run(mtu=1500, ports=["small"])["changed"]


def test_namespace(sandbox: Sandbox) -> None:
    veth("p1")
    assert "no network namespace 'lab'" in fail(netns="lab")
    foreseen = run(check=True, netns="lab", ports=["p1"], mac="stable")
    assert "no network namespace 'lab'" in json.dumps(foreseen["warnings"])
    ip("netns", "add", "lab")
    ip("link", "set", "p1", "netns", "lab", "up")
    made = run(netns="lab", ports=["p1"], mac="stable")
    assert made["operations"] == foreseen["operations"]
    assert made["operations"][0].startswith("ip -n lab link add name br0 address ")
    assert not run(netns="lab", ports=["p1"], mac="stable")["changed"]
    assert "br0" not in ip("link", "show")
    assert run(netns="lab", state="absent")["operations"] == ["ip -n lab link delete dev br0"]


def test_guests_keep_their_taps(sandbox: Sandbox) -> None:
    run()
    ip("tuntap", "add", "tap0", "mode", "tap")
    ip("link", "set", "tap0", "master", "br0")
    guest = subprocess.Popen([sys.executable, "-c", HOLD_TAP], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert guest.stdout and guest.stdout.readline() == b"held\n"
    try:
        kept = run(ports=[], ports_mode="exact")
        assert not kept["changed"]
        assert kept["bridge"]["held_ports"] == ["tap0"]
        assert "tap0 (a tap with a carrier)" in fail(state="absent")
        assert "tap0" in fail(check=True, state="absent")
        assert run(state="absent", force=True)["changed"]
    finally:
        guest.communicate()
    run()
    ip("link", "set", "tap0", "master", "br0")
    assert run(ports=[], ports_mode="exact")["operations"] == ["ip link set dev tap0 nomaster"]


# TUNSETIFF with IFF_TAP | IFF_NO_PI, as QEMU has it of a tap that it was given by name.
HOLD_TAP = """
import fcntl, struct, sys
tap = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_port_of_another_bridge(sandbox: Sandbox) -> None:
    veth("p1")
    run(name="br1", ports=["p1"])
    for check in (True, False):
        assert "on the bridge br1" in fail(check=check, ports=["p1"])
    run()
    assert run(ports=["p1"], force=True)["operations"] == ["ip link set dev p1 master br0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sixteen-bytes-xx"}, "16 bytes, and the kernel takes at most 15"),
        ({"name": "br0:1"}, "holds one of / : %"),
        ({"name": ""}, "it is empty"),
        ({"name": "p1"}, "p1 exists and is no bridge but a link of kind veth"),
        ({"name": "p1", "state": "absent"}, "p1 exists and is no bridge"),
        ({"name": "lo"}, "lo exists and is no bridge but a device of its own"),
        ({"ports": ["missing"]}, "there is no link of that name"),
        ({"ports": ["lo"]}, "no Ethernet link"),
        ({"ports": ["br0"]}, "the bridge itself"),
        ({"ports_mode": "exact"}, "ports_mode is exact but all of the following are missing: ports"),
        ({"addresses_mode": "exact"}, "all of the following are missing: addresses"),
        ({"stp": True, "forward_delay": 1.9}, "has to be 2 to 30 s"),
        ({"stp": True, "forward_delay": 31}, "has to be 2 to 30 s"),
        ({"forward_delay": -1}, "out of range"),
        ({"ageing_time": "nan"}, "out of range"),
        ({"hello_time": 0.99}, "the kernel takes 1 to 10"),
        ({"max_age": 40.01}, "the kernel takes 6 to 40"),
        ({"priority": 65536}, "the kernel takes 0 to 65535"),
        ({"vlan_default_pvid": 4095}, "the kernel takes 0 to 4094"),
        ({"vlan_filtering": True, "vlans": ["1-4095"]}, "VLANs are 1 to 4094"),
        ({"vlans": ["100"]}, "vlans of the bridge br0 would do nothing"),
        ({"group_fwd_mask": 1}, "bits 0, 1 and 2"),
        ({"alias": "two\nlines"}, "holds a control character"),
        ({"mtu": 67}, "68 to 65535 bytes"),
        ({"mtu": 1279, "addresses": ["2001:db8::1/64"]}, "IPv6 needs an MTU of 1280"),
        ({"mac": "01:00:5e:00:00:01"}, "not a unicast address"),
        ({"mac": 40906425296}, "in quotes"),
        ({"addresses": ["192.0.2.1"]}, "prefix length"),
        ({"netns": "a/b"}, "can't be the name of a network namespace"),
    ],
)
def test_refusals(sandbox: Sandbox, arguments: dict[str, Any], message: str) -> None:
    veth("p1")
    for check in (True, False):
        assert message in fail(check=check, **arguments)


@settings(max_examples=60, deadline=None)
@given(garbage([*model.bridge_argument_spec(), *TASK_OPTIONS]))
def test_garbage_is_a_clear_failure(arguments: dict[str, Any]) -> None:
    check_answer(bridge.main, {"name": "br0", **arguments}, "operations")


def test_documentation_matches_the_arguments() -> None:
    check_documented(bridge.DOCUMENTATION, {**model.bridge_argument_spec(), **TASK_OPTIONS})


def test_returned_is_what_is_documented(sandbox: Sandbox) -> None:
    returned = yaml.safe_load(bridge.RETURN)
    assert set(run()["bridge"]) == set(returned["bridge"]["contains"])
    assert set(run()) - {"changed", "diff", "invocation"} == set(returned)


# ---------------------------------------------------------------------------------------------------------------------
# By Ansible itself

# What the tests' own Python has, for another one.
SITE_PACKAGES = str(Path(yaml.__file__).parent.parent)


def ansible(sandbox: Sandbox, python: str, arguments: str, *options: str) -> subprocess.CompletedProcess[str]:
    # By `ansible-test units` modules are tested with no more of Ansible than hosts get.
    pytest.importorskip("ansible.cli", reason="the controller's part of Ansible is not here")
    # A PYTHONPATH, which may choose the pyroute2 of this test run, would lend it to every Python.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [
            *(sys.executable, "-m", "ansible", "adhoc", "localhost", "-c", "local", "-m", "hostnet.qemu.bridge"),
            *("-a", arguments, "-e", f"ansible_python_interpreter={python}", *options),
        ],
        cwd=ROOT,
        env={**environment, "ANSIBLE_HOME": str(sandbox.scratch / "ansible"), "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_ansible_runs_it(sandbox: Sandbox) -> None:
    foreseen = ansible(sandbox, sys.executable, "name=br0 mac=stable stp=false", "--check", "--diff")
    assert foreseen.returncode == 0, foreseen.stdout + foreseen.stderr
    assert "CHANGED" in foreseen.stdout and '+    "state": "present"' in foreseen.stdout
    assert "br0" not in ip("link", "show")
    assert "CHANGED" in ansible(sandbox, sys.executable, "name=br0 mac=stable stp=false").stdout
    assert "br0" in ip("link", "show")


def test_a_python_without_the_library_hands_over_to_the_system_s(sandbox: Sandbox) -> None:
    """First nobody has it, then the system's Python."""
    environment = sandbox.scratch / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(environment)], check=True)
    python = str(environment / "bin/python")
    packages = Path("/usr/lib/python3/dist-packages")
    sandbox.overlay(str(packages))
    if (packages / "pyroute2").exists():
        subprocess.run(["rm", "-r", str(packages / "pyroute2")], check=True)
    missing = ansible(sandbox, python, "name=br0")
    assert missing.returncode != 0
    assert f"pyroute2 0.5.14 or newer is needed on the host, and {python} has none" in missing.stdout
    assert "Install it: " in missing.stdout
    (packages / "pyroute2").symlink_to(Path(SITE_PACKAGES) / "pyroute2")
    found = ansible(sandbox, python, "name=br0 mac=stable")
    assert "CHANGED" in found.stdout, found.stdout + found.stderr
    assert "br0" in ip("link", "show")
