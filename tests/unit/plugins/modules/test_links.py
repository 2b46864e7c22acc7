# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The links module as Ansible runs it, against the real kernel in a private network namespace."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest
import yaml
from ansible_collections.hostnet.qemu.plugins.doc_fragments.links import ModuleDocFragment
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import tuntap
from ansible_collections.hostnet.qemu.plugins.modules import links
from hypothesis import given, settings
from hypothesis import strategies as st
from support.garbage import SCALARS, check_answer
from support.modules import documented_options, run_module
from support.namespaces import Sandbox, ip

SCENE: dict[str, Any] = {
    "bridges": [
        {"name": "br0", "mac": "stable", "stp": False, "ports": ["tap1"], "ports_mode": "exact"},
        {"name": "br1", "mtu": 9000, "addresses": ["192.0.2.1/24"]},
    ],
    "taps": [
        {"name": "tap0", "owner": "nobody", "bridge": "br0", "isolated": True},
        {"name": "tap1", "group": "0", "multi_queue": True},
        {"name": "tap2", "bridge": "br1", "cost": 7},
    ],
}


def run(check: bool = False, **arguments: Any) -> dict[str, Any]:
    """The result of a task that must succeed."""
    result = run_module(links.main, arguments, check=check)
    assert not result.get("failed"), result
    return result


def fail(**arguments: Any) -> str:
    """The message of a task that must fail, and change nothing."""
    before = state()
    result = run_module(links.main, arguments)
    assert result.get("failed"), result
    assert "Traceback" not in json.dumps(result)
    assert state() == before
    return str(result["msg"])


def state() -> list[str]:
    """What tasks here set, and nothing that the kernel changes by itself when a carrier comes."""
    kept = ("ifname", "address", "mtu", "master", "ifalias", "txqlen", "inet6_addr_gen_mode")
    lines = [str([link.get(key) for key in kept]) for link in json.loads(ip("-d", "-j", "link", "show"))]
    for link in json.loads(ip("-j", "address", "show")):
        lines += [f"{link['ifname']} {each['local']}" for each in link["addr_info"] if each["scope"] == "global"]
    return sorted(lines)


def masters() -> dict[str, str]:
    return {link["ifname"]: link.get("master", "") for link in json.loads(ip("-j", "link", "show"))}


def test_bridges_and_taps_in_one_task(sandbox: Sandbox) -> None:
    before = state()
    foreseen = run(check=True, **SCENE)
    assert state() == before
    made = run(**SCENE)
    assert made["changed"] and made["operations"] == foreseen["operations"]
    assert made["operations_count"] == len(made["operations"])
    assert made["diff"] == foreseen["diff"]
    assert [each["name"] for each in made["diff"]["after"]["taps"]] == ["tap0", "tap1", "tap2"]
    assert made["diff"]["before"]["bridges"][0] == {"name": "br0", "state": "absent"}
    assert masters() == {"lo": "", "br0": "", "br1": "", "tap0": "br0", "tap1": "br0", "tap2": "br1"}
    again = run(**SCENE)
    assert (again["changed"], again["operations"], again["operations_count"]) == (False, [], 0)
    assert again["diff"] == {side: {"bridges": [], "taps": []} for side in ("before", "after")}


@pytest.mark.kernel_feature("vlan_filtering")
def test_many_guests_in_vlans_of_their_own(sandbox: Sandbox) -> None:
    """More than are asked for one by one; from nothing, then all of them elsewhere, and nothing the second time."""
    for offset in (100, 200):
        scene = {
            "bridges": [{"name": "br0", "vlan_filtering": True, "vlan_default_pvid": 0, "vlans": ["100-299"]}],
            "taps": [{"name": f"tap{number}", "bridge": "br0", "pvid": offset + number} for number in range(20)],
        }
        foreseen, made = run(check=True, **scene), run(**scene)
        assert made["operations"] == foreseen["operations"]
        assert f"bridge vlan add dev tap7 vid {offset + 7} pvid untagged" in made["operations"]
        assert made["diff"]["after"]["taps"][7].items() >= {"pvid": offset + 7, "untagged": [str(offset + 7)]}.items()
        assert not run(**scene)["changed"]


def test_guests_move_and_their_bridge_goes(sandbox: Sandbox) -> None:
    run(**SCENE)
    moved = run(bridges=[{"name": "br1", "state": "absent"}, {"name": "br2"}], taps=[{"name": "tap2", "bridge": "br2"}])
    assert moved["operations"][-1] == "ip link delete dev br1"
    assert masters()["tap2"] == "br2"
    assert {each["name"] for each in moved["diff"]["after"]["bridges"]} == {"br1", "br2"}
    gone = run(bridges=[{"name": "br2", "state": "absent"}], taps=[{"name": "tap2", "state": "absent"}])
    assert gone["operations"] == ["ip link delete dev tap2", "ip link delete dev br2"]


def test_all_is_undone_if_the_last_link_fails(sandbox: Sandbox) -> None:
    run(**SCENE)
    guest = tuntap.open_tun()
    tuntap.create(guest, b"tap2", tuntap.IFF_TAP | tuntap.IFF_NO_PI)
    try:
        message = fail(
            bridges=[{"name": "br0", "mtu": 1400, "alias": "x"}, {"name": "br3"}],
            taps=[
                {"name": "tap0", "bridge": "", "mtu": 1400},
                {"name": "tap3", "bridge": "br3"},
                # No host has the memory for such a long queue.
                {"name": "tap2", "txqueuelen": 4294967295},
            ],
        )
    finally:
        os.close(guest)
    assert "Can't set txqueuelen of tap2" in message
    assert message.endswith("What had been done before was undone.")


def test_many_taps_stay_readable(sandbox: Sandbox) -> None:
    taps = [{"name": f"tap{number}", "bridge": "br0"} for number in range(150)]
    arguments: dict[str, Any] = {"bridges": [{"name": "br0"}], "taps": taps}
    made = run(**arguments)
    assert made["operations_count"] == 602
    assert len(made["operations"]) == links.MAX_OPERATIONS
    shown = made["diff"]["after"]
    assert len(shown["bridges"] + shown["taps"]) == links.MAX_DIFF
    assert made["diff"]["after_header"] == "the first 100 of 151 links that change"
    assert not run(**arguments)["changed"]


def test_namespace(sandbox: Sandbox) -> None:
    assert "no network namespace 'lab'" in fail(netns="lab", **SCENE)
    foreseen = run(check=True, netns="lab", **SCENE)
    ip("netns", "add", "lab")
    made = run(netns="lab", **SCENE)
    assert made["operations"] == foreseen["operations"]
    assert not run(netns="lab", **SCENE)["changed"]
    assert masters() == {"lo": ""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bridges": [{"name": "br0"}, {"name": "br0"}]}, "The bridge br0 is listed 2 times"),
        ({"taps": [{"name": "tap0"}] * 3}, "The tap tap0 is listed 3 times"),
        ({"bridges": [{"name": "x"}], "taps": [{"name": "x"}]}, "as a bridge and as a tap"),
        ({"taps": [{"name": "tap0", "bridge": "br9"}]}, "there is no link of that name"),
        ({"bridges": [{"name": "br0", "ports_mode": "exact"}]}, "missing: ports found in bridges"),
        ({"bridges": [{"name": "br0", "stp": "perhaps"}]}, "stp"),
        ({"taps": [{"nam": "tap0"}]}, "nam"),
        ({"taps": [{"bridge": "br0"}]}, "missing required arguments: name found in taps"),
        ({"bridges": [{"name": "br0"}], "taps": [{"name": "tap0", "owner": "nobody-there"}]}, "no user 'nobody-there'"),
        ({"bridges": [{"name": "br0"}, {"name": "br1", "max_age": 5}]}, "max_age of bridge br1"),
    ],
)
def test_refusals(sandbox: Sandbox, arguments: dict[str, Any], message: str) -> None:
    assert message in fail(**arguments)


def test_nothing_to_do(sandbox: Sandbox) -> None:
    assert not run()["changed"]


ELEMENTS = {
    kind: st.lists(st.dictionaries(st.sampled_from(list(spec["options"])), SCALARS, max_size=4), max_size=2)
    for kind, spec in links.links_argument_spec().items()
    if "options" in spec
}


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({}, optional={"bridges": ELEMENTS["bridges"] | SCALARS, "taps": ELEMENTS["taps"]}))
def test_garbage_is_a_clear_failure(arguments: dict[str, Any]) -> None:
    check_answer(links.main, arguments, "operations")


def test_documentation_matches_the_arguments() -> None:
    documented = documented_options(links.DOCUMENTATION)
    assert set(documented) == set(links.links_argument_spec())
    for kind, rules in links.links_argument_spec().items():
        for name, rule in rules.get("options", {}).items():
            told = {
                key: documented[kind]["suboptions"][name].get(key)
                for key in ("type", "default", "choices", "elements", "required")
            }
            assert told == {key: rule.get(key) for key in told}, name
        if "options" in rules:
            assert set(documented[kind]["suboptions"]) == set(rules["options"])


@pytest.mark.parametrize("kind", ["BRIDGE", "TAP"])
def test_every_option_says_what_it_is_in_the_kernel(kind: str) -> None:
    of_task = {"netns", "state", "force", "ports_mode", "addresses_mode"}
    for name, option in yaml.safe_load(getattr(ModuleDocFragment, kind))["options"].items():
        text = " ".join(option["description"])
        assert name in of_task or re.search(r"C\((IFLA_|IFF_|IFA_|TUNSET|BRIDGE_VLAN_)[A-Z0-9_]+\)", text), name


def test_references_mean_the_same_element() -> None:
    names = re.findall(r"O\(([^)=]+)", ModuleDocFragment.BOTH)
    assert {name.partition(".")[0] for name in names} == {"bridges[]", "taps[]", "netns", "hostnet"}
