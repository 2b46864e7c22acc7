# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of links and told of them, without Ansible; the tests of bridge_info and tap_info go further."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.links import host, kernel
from ansible_collections.hostnet.qemu.plugins.module_utils.links.facts import bridge_facts, readable, tap_facts
from ansible_collections.hostnet.qemu.plugins.module_utils.links.kernel import Inspection, Kernel
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import BRIDGE, TAP, settable, settable_tap
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import tuntap
from support.namespaces import Sandbox, ip


def inspect(kind: str, names: list[str] | None = None) -> Inspection:
    with Kernel() as links:
        return links.inspect(kind, names)


def facts_of(name: str) -> dict[str, Any]:
    if name.startswith("br"):
        found = inspect(BRIDGE)
        return bridge_facts(found.network, found.details, name)
    found = inspect(TAP)
    return tap_facts(found.network, found.details, host.tap_holders(), name)


def test_what_is_read(sandbox: Sandbox) -> None:
    ip("link", "add", "br0", "up", "type", "bridge")
    ip("address", "add", "192.0.2.1/24", "dev", "br0")
    ip("link", "add", "p1", "type", "veth", "peer", "name", "p1-far")
    ip("tuntap", "add", "dev", "tap0", "mode", "tap", "user", "0")
    for port in ("p1", "tap0"):
        ip("link", "set", port, "master", "br0")
    bridges, taps = inspect(BRIDGE), inspect(TAP)
    assert (bridges.names, taps.names) == (("br0",), ("tap0",))
    assert [link.name for link in bridges.network.ports("br0")] == ["p1", "tap0"]
    assert "p1" not in taps.network and "p1-far" not in bridges.network
    assert bridges.details["br0"].index == int(ip("-o", "link", "show", "br0").partition(":")[0])
    bridge, tap = settable(bridges.network, "br0"), settable_tap(taps.network, "tap0")
    assert bridge and tap
    assert (bridge["ports"], bridge["addresses"]) == (["p1", "tap0"], ["192.0.2.1/24"])
    assert (tap["owner"], tap["bridge"]) == ("0", "br0")
    assert [port["state"] for port in facts_of("br0")["ports"]] == ["disabled", "disabled"]
    assert facts_of("tap0")["owner_name"] == "root"


def test_links_of_another_kind_are_not_there(sandbox: Sandbox) -> None:
    ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    assert inspect(TAP, ["tun0", "lo", "missing", ""]) == inspect(BRIDGE) == Inspection()


def test_taps_are_read_without_the_library(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    ip("tuntap", "add", "dev", "tap0", "mode", "tap")
    kernel._library.cache_clear()
    # As Python has it: an import that finds None fails.
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    assert inspect(TAP).names == ("tap0",)
    assert inspect(BRIDGE).names == ()
    ip("link", "add", "br0", "type", "bridge")
    with pytest.raises(kernel.NoLibrary):
        inspect(BRIDGE)


def test_queues_and_holders(sandbox: Sandbox) -> None:
    taps = [tuntap.open_tun() for _tap in range(3)]
    try:
        several = tuntap.IFF_TAP | tuntap.IFF_NO_PI | tuntap.IFF_MULTI_QUEUE
        for tap in taps[:2]:
            tuntap.create(tap, b"tap0", several)
        tuntap.create(taps[2], b"tap1", tuntap.IFF_TAP | tuntap.IFF_NO_PI)
        one, other = facts_of("tap0"), facts_of("tap1")
    finally:
        for tap in taps:
            os.close(tap)
    assert (one["queues"], one["disabled_queues"], other["queues"]) == (2, 0, 1)
    assert (
        [holder["pid"] for holder in one["holders"]] == [holder["pid"] for holder in other["holders"]] == [os.getpid()]
    )
    assert host.tap_holders() == {}


def test_names_that_json_can_not_carry() -> None:
    assert readable("br\udcff") == "br\\xff"
    assert readable("brücke") == "brücke"
