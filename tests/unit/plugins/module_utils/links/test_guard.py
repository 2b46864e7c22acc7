# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection of Ansible: found where it is, and spared in the real kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.links import guard
from ansible_collections.hostnet.qemu.plugins.module_utils.links.kernel import Kernel, Outcome
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import Bridge
from ansible_collections.hostnet.qemu.plugins.module_utils.links.plan import Refused
from support.namespaces import Sandbox, ip

SERVER, CLIENT = "198.51.100.1", "203.0.113.9"


def apply(name: str = "br0", **arguments: Any) -> Outcome:
    """What the module does."""
    bridge = Bridge.from_arguments({"name": name, **arguments}, lambda: "0" * 32)
    with Kernel() as links:
        return links.reconcile([bridge], spare_connection=True)


@pytest.fixture
def host(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reached over `card`, which has the server's address and the route to the client; `spare` has nothing."""
    for name in ("card", "spare"):
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        ip("link", "set", name, "up")
        ip("link", "set", f"{name}-far", "up")
    ip("address", "add", f"{SERVER}/24", "dev", "card")
    ip("route", "add", "203.0.113.0/24", "via", "198.51.100.254")
    monkeypatch.setattr(guard, "connection", lambda: guard.Connection(CLIENT, SERVER))


@pytest.mark.parametrize(
    "variable",
    [f"{CLIENT} 50000 {SERVER} 22", f"::ffff:{CLIENT} 50000 ::ffff:{SERVER} 22"],
)
def test_connection_of_an_ancestor(variable: str) -> None:
    """sudo takes the variable from the environment of the module, not from that of its ancestors."""
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}; "
        "from ansible_collections.hostnet.qemu.plugins.module_utils.links import guard; print(*guard.connection())"
    )
    middle = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}], env={{}}, check=True)"
    done = subprocess.run(
        [sys.executable, "-c", middle],
        env={"SSH_CONNECTION": variable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{CLIENT} {SERVER}\n"


def test_connection_of_link_local_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """sshd names the link in them."""
    process = tmp_path / str(os.getpid())
    process.mkdir()
    (process / "environ").write_bytes(b"A=b\0SSH_CONNECTION=fe80::2%eth0 50000 fe80::1%eth0 22\0")
    (process / "stat").write_text(f"{os.getpid()} (a) name) S 0 1", encoding="ascii")
    monkeypatch.setattr(guard, "_PROC", tmp_path)
    assert guard.connection() == guard.Connection("fe80::2", "fe80::1")
    (process / "environ").write_bytes(b"A=b\0")
    assert guard.connection() is None


def test_card_of_the_connection_stays_off_a_bridge(host: None) -> None:
    with pytest.raises(Refused, match=rf"card carries the connection from {CLIENT} to {SERVER}, and to put card on"):
        apply(ports=["card"])
    assert "br0" not in ip("link")
    assert apply(ports=["spare"]).after["spare"].master == "br0"
    assert apply(ports=["card"], force=True).after["card"].master == "br0"


@pytest.fixture
def bridged(host: None) -> None:
    """The connection goes over br0 and its port."""
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "set", "br0", "up")
    ip("link", "set", "card", "master", "br0")
    ip("address", "flush", "dev", "card")
    ip("address", "add", f"{SERVER}/24", "dev", "br0")
    ip("route", "replace", "203.0.113.0/24", "via", "198.51.100.254")


def settings() -> list[str]:
    """Links, addresses and routes, less the addresses that come by themselves after a link is up."""
    addresses = [line for line in ip("-o", "address").splitlines() if " scope link " not in line]
    return [ip("-o", "link"), *addresses, ip("route")]


@pytest.mark.parametrize(
    ("arguments", "purpose"),
    [
        ({"state": "absent"}, "delete br0"),
        ({"up": False}, "take br0 down"),
        ({"mtu": 1400}, "set mtu of br0 to 1400"),
        ({"mac": "02:00:00:00:00:99"}, "set mac of br0"),
        ({"addresses": [], "addresses_mode": "exact"}, f"remove the address {SERVER}/24 from br0"),
        ({"ports": [], "ports_mode": "exact"}, "take card off its bridge"),
    ],
)
def test_bridge_of_the_connection_is_spared(bridged: None, arguments: dict[str, Any], purpose: str) -> None:
    before = settings()
    with pytest.raises(Refused) as caught:
        apply(**arguments)
    assert f"and to {purpose}" in str(caught.value)
    assert "Say force: true if there is another way to the host" in str(caught.value)
    assert settings() == before
    assert apply(force=True, **arguments).plan.steps


def test_what_lies_below_is_spared(host: None) -> None:
    """The server's address is on one end of a veth pair, whose other end is a port of br0, which the card is on too."""
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "add", "top", "type", "veth", "peer", "name", "low")
    for name in ("low", "card"):
        ip("link", "set", name, "master", "br0")
    for name in ("br0", "top", "low"):
        ip("link", "set", name, "up")
    ip("address", "flush", "dev", "card")
    ip("address", "add", f"{SERVER}/24", "dev", "top")
    ip("route", "replace", "203.0.113.0/24", "via", "198.51.100.254")
    for arguments, name in (({"ports": ["card"], "ports_mode": "exact"}, "low"), ({"up": False}, "br0")):
        with pytest.raises(Refused, match=f"{name} carries the connection .*, under "):
            apply(**arguments)
    with pytest.raises(Refused, match=r"card carries the connection .*, as a port of br0"):
        apply(ports=["low"], ports_mode="exact")
    assert apply(ports=["low"], ports_mode="exact", force=True).plan.steps


@pytest.mark.kernel_feature("vlan_filtering")
def test_the_bridge_below_a_vlan_is_spared(host: None) -> None:
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "add", "link", "br0", "name", "br0.5", "type", "vlan", "id", "5")
    for name in ("br0", "br0.5"):
        ip("link", "set", name, "up")
    ip("address", "flush", "dev", "card")
    ip("address", "add", f"{SERVER}/24", "dev", "br0.5")
    ip("route", "replace", "203.0.113.0/24", "via", "198.51.100.254")
    with pytest.raises(Refused, match=r"br0 carries the connection .*, under br0\.5, and to delete br0"):
        apply(state="absent")


def test_what_does_no_harm_is_done(bridged: None) -> None:
    with Kernel() as links:
        mac = links.read([Bridge.from_arguments({"name": "br0"}, str)])["br0"].settings["mac"]
    apply(ports=["spare"], stp=True, forward_delay=4, addresses=["192.0.2.1/24"], mac=mac)
    assert "192.0.2.1/24" in ip("address", "show", "dev", "br0")


@pytest.mark.kernel_feature("vlan_filtering")
def test_vlans_that_would_part_the_bridge_from_its_card(bridged: None) -> None:
    apply(vlan_filtering=True)
    apply(vlan_filtering=False, vlan_default_pvid=7)
    subprocess.run(["bridge", "vlan", "add", "dev", "card", "vid", "8", "pvid", "untagged"], check=True)
    with pytest.raises(Refused, match=r"br0 carries .*to set vlan_filtering of br0 to True may cut it"):
        apply(vlan_filtering=True)
    assert apply(vlan_filtering=True, force=True).plan.steps


@pytest.mark.parametrize(
    "route",
    [["default", "via", "198.51.100.254"], ["-6", "default", "dev", "card"], ["default", "nexthop", "dev", "card"]],
)
def test_default_routes_without_a_connection(host: None, monkeypatch: pytest.MonkeyPatch, route: list[str]) -> None:
    monkeypatch.setattr(guard, "connection", lambda: None)
    assert apply("br1", ports=["spare"]).plan.steps
    family = [route.pop(0)] if route[0] == "-6" else []
    ip(*family, "route", "add", *route)
    with pytest.raises(Refused, match="card carries a default route, over which the host may be reached"):
        apply(ports=["card"])


def test_client_without_a_route(host: None) -> None:
    """The server's address is enough to know its link."""
    ip("route", "delete", "203.0.113.0/24")
    with pytest.raises(Refused, match="card carries the connection"):
        apply(ports=["card"])


def test_another_namespace_is_not_that_of_the_connection(host: None) -> None:
    ip("netns", "add", "lab")
    ip("link", "set", "spare", "netns", "lab", "name", "card")
    bridge = Bridge.from_arguments({"name": "br0", "ports": ["card"]}, str)
    with Kernel("lab") as links:
        assert links.reconcile([bridge], spare_connection=True).after["card"].master == "br0"
