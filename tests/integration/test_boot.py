# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The links come again after a start of the host: what the role installs for that, and the program that does it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.namespaces import Sandbox, ip
from support.playbook import Playbook

RESTORERS = Path("/usr/local/lib/hostnet-qemu-links")
STATE = Path("/etc/qemu/hostnet-links.json")
SERVICE = Path("/etc/init.d/hostnet-qemu-links")
ENABLED = Path("/etc/runlevels/boot/hostnet-qemu-links")
UNIT = Path("/etc/systemd/system/hostnet-qemu-links.service")

BRIDGES = [
    {"name": "br0", "mac": "stable", "stp": True, "forward_delay": 2.5, "addresses": ["192.0.2.1/24"]},
    # As Ansible reads them, these are a number and a truth.
    {"name": "br1", "mac": "02:00:00:00:00:01", "mtu": "1400", "up": "no", "ageing_time": 60, "ports": ["tap1"]},
]

TAPS = [
    {"name": "tap0", "owner": "nobody", "bridge": "br0", "isolated": True, "txqueuelen": "500"},
    # On br1 because that lists it.
    {"name": "tap1", "owner": "", "group": 4100, "multi_queue": "yes", "mac": "fe:00:00:00:00:01", "up": False},
]


def tap(name: str) -> dict[str, Any]:
    """What outlasts a start of the host, as iproute2 reports it."""
    (link,) = json.loads(ip("-details", "-json", "link", "show", "dev", name))
    data = link["linkinfo"]["info_data"]
    return {
        **{key: link.get(key) for key in ("mtu", "master", "txqlen", "inet6_addr_gen_mode")},
        "mac": link["address"] if link["address"].startswith("fe:") else None,
        "up": "UP" in link["flags"],
        "isolated": link["linkinfo"]["info_slave_data"]["isolated"],
        **{key: data.get(key) for key in ("persist", "user", "group", "multi_queue")},
    }


def bridge(name: str) -> dict[str, Any]:
    """What outlasts a start of the host, as iproute2 reports it."""
    (link,) = json.loads(ip("-details", "-json", "address", "show", "dev", name))
    data = link["linkinfo"]["info_data"]
    return {
        "mac": link["address"],
        "mtu": link["mtu"],
        "up": "UP" in link["flags"],
        "addresses": [each["local"] for each in link["addr_info"] if each["scope"] == "global"],
        **{key: data[key] for key in ("stp_state", "forward_delay", "ageing_time")},
    }


def links() -> set[str]:
    return {link["ifname"] for link in json.loads(ip("-json", "link", "show"))}


def lose_the_links() -> None:
    """What a start of the host does."""
    for name in links() - {"lo"}:
        ip("link", "delete", name)


def give_pyroute2_to_the_system(host: Sandbox) -> None:
    """What the package python3-pyroute2 does."""
    packages = "/usr/lib/python3/dist-packages"
    host.overlay(packages)
    files = importlib.metadata.files("pyroute2") or []
    origin = Path(str(files[0].locate())).parents[len(files[0].parts) - 1]
    for name in {file.parts[0] for file in files if ".." not in file.parts}:
        shutil.copytree(origin / name, Path(packages, name), dirs_exist_ok=True)


def start_service() -> subprocess.CompletedProcess[str]:
    """Do what OpenRC does with the script."""
    script = f"ebegin() {{ :; }}; eend() {{ return $1; }}; . {SERVICE}; start"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


def test_a_host_with_openrc_has_its_bridges_again(host: Sandbox, playbook: Playbook) -> None:
    Path("/run/openrc").mkdir()
    give_pyroute2_to_the_system(host)
    variables = {"qemu_bridge_bridges": BRIDGES, "qemu_bridge_taps": TAPS, "qemu_bridge_verify": False}
    check = playbook.converge(variables, "--check", "--diff")
    assert "+#!/sbin/openrc-run" in check.output
    assert not any(path.exists() for path in (STATE, SERVICE, ENABLED, RESTORERS))

    playbook.converge(variables)
    assert json.loads(STATE.read_text()) == {"bridges": BRIDGES, "taps": TAPS}
    assert stat.filemode(SERVICE.stat().st_mode) == "-rwxr-xr-x"
    assert ENABLED.resolve() == SERVICE
    before = bridge("br0"), bridge("br1"), tap("tap0"), tap("tap1")
    assert (before[0]["addresses"], before[1]["mtu"], before[1]["up"]) == (["192.0.2.1"], 1400, False)
    assert (before[2]["master"], before[2]["isolated"], before[2]["up"]) == ("br0", True, True)
    assert (before[3]["master"], before[3]["multi_queue"], before[3]["up"]) == ("br1", True, False)

    lose_the_links()
    started = start_service()
    assert (started.returncode, started.stderr) == (0, "")
    assert "ip link add name br0" in started.stdout
    assert (bridge("br0"), bridge("br1"), tap("tap0"), tap("tap1")) == before
    again = start_service()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    second = playbook.converge(variables)
    assert second.changed == 0, second.output

    (version,) = RESTORERS.iterdir()
    (version / "hostnet_qemu/links/boot.py").write_text("")
    (RESTORERS / "older").mkdir()
    STATE.write_text("{")
    ENABLED.unlink()
    playbook.converge(variables)
    lose_the_links()
    assert start_service().returncode == 0
    assert (bridge("br0"), bridge("br1"), tap("tap0"), tap("tap1")) == before
    assert list(RESTORERS.iterdir()) == [version]
    assert ENABLED.resolve() == SERVICE

    playbook.converge({**variables, "qemu_bridge_boot": False})
    assert not any(os.path.lexists(path) for path in (STATE, SERVICE, ENABLED, RESTORERS))
    assert {"br0", "tap0"} <= links()


def test_a_host_without_an_init_system_is_told_so(host: Sandbox, playbook: Playbook) -> None:
    run = playbook.converge({"qemu_bridge_verify": False})
    assert "started by neither systemd nor OpenRC" in run.output
    assert not any(os.path.lexists(path) for path in (STATE, SERVICE, UNIT, RESTORERS))
    assert "br0" in links()


# What the look at a host finds, and the program by itself: a playbook for each would take minutes.


def test_what_was_installed_is_found_and_goes(
    host: Sandbox, program: ModuleType, request_of_role: dict[str, Any]
) -> None:
    request_of_role["interpreters"] = ["/usr/bin/python3"]
    Path("/run/systemd/system").mkdir(parents=True)
    boot = program.survey(request_of_role)["boot"]
    assert (boot["init"], boot["install"]["path"], boot["install"]["drift"]) == ("systemd", str(UNIT), ["missing"])
    RESTORERS.mkdir()
    program.lay_links({"directory": boot["install"]["directory"], "sources": request_of_role["links_sources"]})
    UNIT.touch()
    # Of the time when the host ran OpenRC.
    SERVICE.touch()
    boot = program.survey(request_of_role)["boot"]
    assert (boot["install"]["drift"], boot["remove"]) == ([], [str(SERVICE)])
    everything = [str(path) for path in (UNIT, SERVICE, RESTORERS)]
    for change in ({"boot": False}, {"bridges": []}):
        boot = program.survey({**request_of_role, **change})["boot"]
        assert (boot["install"], boot["unable"], boot["remove"]) == (None, False, everything)
    assert program.survey({**request_of_role, "state": "absent"})["leftovers"]["files"] == everything


@pytest.fixture
def restorer(sandbox: Sandbox, program: ModuleType, links_sources: dict[str, str]) -> Path:
    directory = sandbox.scratch / "links"
    program.lay_links({"directory": str(directory), "sources": links_sources})
    return directory


def command(restorer: Path, state: object, seconds: int) -> list[str]:
    """Save `state`, text as it is, and return the command that makes links of it."""
    saved = restorer.with_name("state.json")
    saved.write_text(state if isinstance(state, str) else json.dumps(state))
    return [sys.executable, "-I", "-B", "-X", "utf8", str(restorer / "restore-links.py"), str(saved), str(seconds)]


def restore(restorer: Path, state: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(restorer, state, 0), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("", "are not valid JSON"),
        ('{"bridges": [', "are not valid JSON"),
        ("[" * 100000, "are not valid JSON"),
        ("\x00", "are not valid JSON"),
        ([], "are not of the form"),
        ({"bridges": {}}, "are not of the form"),
        ({"bridges": [], "bonds": []}, "are not of the form"),
        ({"taps": []}, "are not of the form"),
        ({"bridges": [], "taps": {}}, "are not of the form"),
        ({"bridges": ["br9"]}, "item 0 of bridges: 'br9' is not an object with options."),
        ({"bridges": [{"name": "br9", "mtuu": 1}]}, "there is no option mtuu."),
        ({"bridges": [{"mtu": 1400}]}, "the option name is missing."),
        ({"bridges": [{"name": "br9", "mtu": "big"}]}, "mtu: 'big' is not of the type int."),
        ({"bridges": [{"name": "br9", "up": "perhaps"}]}, "up: 'perhaps' is not of the type bool."),
        ({"bridges": [{"name": "br9", "stp": []}]}, "stp: [] is not of the type bool."),
        ({"bridges": [{"name": ["br9"]}]}, "name: ['br9'] is not of the type str."),
        ({"bridges": [{"name": "br9", "ports_mode": "all"}]}, "ports_mode: 'all' is none of append, exact."),
        ({"bridges": [{"name": "br9", "mtu": 1}]}, "The MTU of the bridge br9 can be 68 to 65535"),
        ({"bridges": [{"name": "lo"}]}, "lo"),
        ({"bridges": [{"name": "br9", "ports": "no-link"}]}, "br9 is without its port no-link"),
        ({"bridges": [], "taps": [{"name": "tap9", "stp": True}]}, "item 0 of taps: there is no option stp."),
        ({"bridges": [], "taps": [{"name": "lo"}]}, "lo exists and is no tap"),
        ({"bridges": [], "taps": [{"name": "tap9", "bridge": "br9"}]}, "tap9 is not made without its bridge br9"),
        (
            {"bridges": [{"name": "br9", "ports": ["tap9"]}], "taps": [{"name": "tap9", "owner": "no-user"}]},
            "the tap tap9 is not made, because there is no user 'no-user' so early in the start of the host",
        ),
        (
            {"bridges": [{"name": "br9", "mtu": 1}], "taps": [{"name": "tap9", "bridge": "br9"}, {"name": "tap8"}]},
            "So its taps are not made either: tap9.",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(restorer: Path, state: object, text: str) -> None:
    if isinstance(state, dict) and isinstance(state.get("bridges"), list):
        state["bridges"].append({"name": "br0"})
        if isinstance(state.get("taps"), list):
            state["taps"].append({"name": "tap0", "bridge": "br0"})
    done = restore(restorer, state)
    assert done.returncode == 1
    assert text in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    # One failure does not keep the rest away.
    if "are not" not in text:
        assert isinstance(state, dict)
        assert links() >= ({"br0", "tap0"} if "taps" in state else {"br0"})


def test_a_fault_keeps_no_other_link_away(restorer: Path) -> None:
    """What fails among many is found, and the others are as they would be without it."""
    ip("link", "add", "lan", "up", "type", "veth", "peer", "name", "other")
    ip("link", "add", "br-of-others", "type", "bridge")
    ip("link", "set", "other", "master", "br-of-others")
    taps: list[dict[str, Any]] = [{"name": f"tap{number}", "bridge": "br0"} for number in range(40)]
    # In the way of one is a link of its name, of another the limit of the kernel.
    ip("link", "add", "tap7", "type", "bridge")
    taps[23]["mtu"] = 69000
    # On br1 because that lists it, which is there although it can't be all that is asked for; on none; not any more.
    ip("link", "add", "br1", "type", "bridge")
    taps += [{"name": "tap40", "isolated": True}, {"name": "tap41"}, {"name": "tap42", "state": "absent"}]
    ip("tuntap", "add", "dev", "tap42", "mode", "tap")
    state = {
        "bridges": [
            {"name": "br0", "ports": ["lan", "tap3"], "ports_mode": "exact", "addresses": ["192.0.2.1/24"]},
            {"name": "br1", "ports": ["other", "tap40"]},
        ],
        "taps": taps,
    }
    reached = {"lan", *(f"tap{number}" for number in range(40))} - {"tap7", "tap23"}
    for again in range(2):
        done = restore(restorer, state)
        assert done.returncode == 1
        # In the order of the bridges, and of the taps of each.
        tap7, tap23, br1 = done.stderr.splitlines()
        assert "tap7 exists and is no tap" in tap7
        assert "The MTU of the tap tap23 can be 68 to 65521" in tap23
        assert "other can't become a port of the bridge br1" in br1
        assert set(os.listdir("/sys/class/net/br0/brif")) == reached
        assert bridge("br0")["addresses"] == ["192.0.2.1"]
        assert "tap41" in links()
        assert "tap42" not in links()
        assert os.listdir("/sys/class/net/br1/brif") == ["tap40"]
        assert tap("tap40")["isolated"]
        # Nothing comes and goes.
        assert again == 0 or done.stdout == ""


@pytest.mark.kernel_feature("vlan_filtering")
@pytest.mark.parametrize("fault", [False, True])
def test_vlans_come_again(restorer: Path, fault: bool) -> None:
    """Also where a fault keeps the bridge from being planned with its taps."""
    state: dict[str, Any] = {
        "bridges": [{"name": "br0", "vlan_filtering": "yes", "vlans": [100, "110-112"], "ports": ["tap0"]}],
        "taps": [{"name": "tap0", "pvid": "100", "tagged": "200-202,300"}, {"name": "tap1", "bridge": "br0"}],
    }
    if fault:
        state["taps"].append({"name": "tap2", "bridge": "br0", "mtu": 69000})
    done = restore(restorer, state)
    assert (done.returncode, done.stderr.count("\n")) == (int(fault), int(fault)), done.stderr
    (br0,) = json.loads(ip("-json", "-details", "link", "show", "type", "bridge"))
    assert br0["linkinfo"]["info_data"]["vlan_filtering"] == 1
    vlans = subprocess.run(["bridge", "-json", "vlan"], capture_output=True, check=True, text=True).stdout
    members = {
        link["ifname"]: {
            number for each in link["vlans"] for number in range(each["vlan"], each.get("vlanEnd", each["vlan"]) + 1)
        }
        for link in json.loads(vlans)
    }
    assert members == {"br0": {1, 100, 110, 111, 112}, "tap0": {100, 200, 201, 202, 300}, "tap1": {1}}
    assert restore(restorer, state).stdout == ""


def test_a_name_that_the_locale_lacks_is_no_failure(restorer: Path) -> None:
    asked = command(restorer, {"bridges": [{"name": "brücke", "ports": ["tür"]}]}, 0)
    done = subprocess.run(asked, capture_output=True, encoding="utf-8", check=False, env={"LC_ALL": "C"})
    assert "ip link add name brücke type bridge" in done.stdout
    assert "brücke is without its port tür" in done.stderr


def test_a_broken_installation_is_said_in_one_line(restorer: Path) -> None:
    (restorer / "hostnet_qemu/links/plan.py").unlink()
    done = restore(restorer, {"bridges": []})
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Run the role qemu_bridge again" in done.stderr


def test_a_late_port_is_waited_for(restorer: Path) -> None:
    state = {
        "bridges": [{"name": "br0", "ports": ["late", "tap1"], "ports_mode": "exact"}],
        "taps": [{"name": "tap0", "bridge": "br0"}, {"name": "tap1"}, {"name": "tap2", "bridge": "br-of-others"}],
    }
    with subprocess.Popen(command(restorer, state, 60), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        # Neither the bridge nor its tap waits for the port.
        assert "ip link add name br0" in process.stdout.readline()
        assert "ip tuntap add dev tap0" in process.stdout.readline()
        # Under another name first, as the kernel has it before udev.
        ip("link", "add", "eth7", "type", "veth")
        ip("link", "set", "eth7", "name", "late")
        ip("link", "add", "br-of-others", "type", "bridge")
        process.communicate()
    assert process.returncode == 0
    assert sorted(os.listdir("/sys/class/net/br0/brif")) == ["late", "tap0", "tap1"]
    assert os.listdir("/sys/class/net/br-of-others/brif") == ["tap2"]


def test_a_host_without_a_machine_id_has_its_bridge(host: Sandbox, restorer: Path) -> None:
    Path("/etc/machine-id").write_text("uninitialized\n")
    host.overlay("/var/lib")
    Path("/var/lib/dbus/machine-id").unlink(missing_ok=True)
    done = restore(restorer, {"bridges": [{"name": "br0", "mac": "stable"}]})
    assert (done.returncode, done.stderr) == (0, "")
    assert "br0 takes the lowest MAC address of its ports" in done.stdout
    assert "br0" in links()
