# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user's own libvirt takes its taps from the helper, and says why it gets none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.modules import tap
from support.install import LAUNCHER, install
from support.libvirt import Session, card
from support.machine import UID, lay_guest, ports, wait_for
from support.modules import run_module
from support.namespaces import Sandbox, ip
from support.qemu import BRIDGE_HELPER, Debian, fetch_libvirt, lay

HOST, GUEST = "10.99.0.1", "10.99.0.11"
OWN_TAP = (
    "<interface type='ethernet'><target dev='guest0' managed='no'/>"
    "<model type='virtio'/><driver queues='2'/></interface>"
)
CONFIGURED = f'bridge_helper = "{LAUNCHER}"'


@pytest.fixture(scope="session")
def libvirt() -> Path:
    """The distribution's libvirt; asked for before any sandbox, which has no network."""
    return fetch_libvirt()


@pytest.fixture
def host(debian: Debian, libvirt: Path, sandbox: Sandbox) -> Sandbox:
    """A host with libvirt, the helper, and a bridge br0 that is granted to all; br1 is granted to nobody."""
    install(sandbox, "allow br0\n")
    lay(sandbox, debian, libvirt)
    for bridge in ("br0", "br1"):
        ip("link", "add", bridge, "up", "type", "bridge")
    ip("address", "add", f"{HOST}/24", "dev", "br0")
    return sandbox


@pytest.fixture
def session(host: Sandbox) -> Iterator[Callable[..., Session]]:
    """Starts a user's libvirt that ends with the test."""
    started: list[Session] = []

    def start(*configuration: str) -> Session:
        started.append(Session(host, *configuration))
        return started[-1]

    yield start
    for each in started:
        each.close()


def is_served(port: dict[str, Any]) -> bool:
    """Whether a port is a tap for a guest: up, with headers for offloads, and gone when its owner ends."""
    data = port["linkinfo"]["info_data"]
    return "UP" in port["flags"] and data["type"] == "tap" and data["vnet_hdr"] and not data["persist"]


def test_a_domain_comes_and_goes(host: Sandbox, debian: Debian, session: Callable[..., Session]) -> None:
    """Its guest reaches the host; a second card is plugged in and out while it runs; with the domain its tap goes."""
    user = session(CONFIGURED)
    kernel = (
        f"<kernel>{debian.kernel}</kernel><initrd>{lay_guest(debian, host.scratch)}</initrd>"
        f"<cmdline>console=ttyS0 quiet panic=-1 address={GUEST} reach={HOST}</cmdline>"
    )
    user.done("create", user.domain("one", card(1, "br0"), kernel))
    (first,) = ports()
    assert is_served(first)
    assert user.taps("one") == {first["ifname"]: "br0"}
    wait_for("the guest", lambda: f"reached {HOST}" in user.console, [user])

    second = user.file(card(2, "br0"))
    user.done("attach-device", "one", second)
    assert len(ports()) == 2
    assert all(map(is_served, ports()))
    assert user.taps("one") == {port["ifname"]: "br0" for port in ports()}

    # The guest has its say: it takes the card out.
    user.done("detach-device", "one", second)
    wait_for("the second tap to go", lambda: [port["ifname"] for port in ports()] == [first["ifname"]], [user])

    user.done("destroy", "one")
    wait_for("the tap to go", lambda: ports() == [], [user])


def test_default_helper(host: Sandbox, session: Callable[..., Session]) -> None:
    """With QEMU's own path leading to ours libvirt needs no setting."""
    BRIDGE_HELPER.unlink()
    BRIDGE_HELPER.symlink_to(LAUNCHER)
    user = session()
    user.done("create", "--paused", user.domain("one", card(1, "br0")))
    (port,) = ports()
    assert is_served(port)
    user.done("destroy", "one")
    wait_for("the tap to go", lambda: ports() == [], [user])


def test_denied_bridge(session: Callable[..., Session]) -> None:
    """The user reads in libvirt's error what the helper says, for a domain as for a card; and nothing is left of it."""
    user = session(CONFIGURED)
    why = f"access denied by acl file: bridge `br1' for uid {UID}, groups {UID}: no `allow br1' and no `allow all' in "

    def refused(*words: str) -> bool:
        result = user.virsh(*words)
        assert result.returncode == 1
        assert f"{LAUNCHER} --use-vnet --br=br1 --fd=" in result.stderr
        assert ports("br1") == []
        return why in result.stderr

    # libvirt does not wait for its thread that reads what the helper says: once in a while there is nothing of it.
    tries = range(3)
    domain = user.domain("two", card(1, "br1"))
    assert any(refused("create", "--paused", domain) for _try in tries), user.errors
    assert user.done("list", "--all", "--name").split() == []

    user.done("create", "--paused", user.domain("one", card(1, "br0")))
    interface = user.file(card(2, "br1"))
    assert any(refused("attach-device", "one", interface) for _try in tries), user.errors
    assert set(user.taps("one").values()) == {"br0"}


def test_what_a_session_leaves_out(session: Callable[..., Session]) -> None:
    """What docs/networks.md says of the elements that libvirt takes and ignores, and of those that it refuses."""
    user = session(CONFIGURED)
    user.done("create", "--paused", user.domain("one", card(1, "br0")))
    ignored = ("<driver queues='2'/>", "<port isolated='yes'/>", "<target dev='mine'/>")
    for number, element in enumerate(ignored, start=2):
        user.done("attach-device", "one", user.file(card(number, "br0", element)))
    assert [port["ifname"] for port in ports()] == ["tap0", "tap1", "tap2", "tap3"]
    assert not any(port["linkinfo"]["info_data"]["multi_queue"] for port in ports())
    assert not any(port["linkinfo"]["info_slave_data"]["isolated"] for port in ports())

    refused = {
        "<vlan><tag id='5'/></vlan>": "vlan tag not supported",
        "<mtu size='1300'/>": "Cannot set interface MTU on 'tap4': Operation not permitted",
        "<bandwidth><inbound average='1000'/></bandwidth>": "not available in session mode",
    }
    for element, why in refused.items():
        assert why in user.virsh("attach-device", "one", user.file(card(9, "br0", element))).stderr
    assert len(ports()) == len(user.taps("one")) == 4


def test_a_tap_of_the_role(session: Callable[..., Session]) -> None:
    """A session opens a tap that is its user's by its name, with several queues, and leaves it on its bridge."""
    made = {"name": "guest0", "owner": str(UID), "bridge": "br1", "up": True, "isolated": True, "multi_queue": True}
    result = run_module(tap.main, made)
    assert not result.get("failed"), result
    (before,) = ports("br1")
    assert "NO-CARRIER" in before["flags"]

    user = session()
    user.done("create", "--paused", user.domain("one", OWN_TAP))
    (port,) = ports("br1")
    assert "LOWER_UP" in port["flags"]
    # A guest that has not started yet has one of them on.
    assert sum(port["linkinfo"]["info_data"][queues] for queues in ("numqueues", "numdisabled")) == 2

    user.done("destroy", "one")
    wait_for("the tap to be let go", lambda: "NO-CARRIER" in ports("br1")[0]["flags"], [user])
    (after,) = ports("br1")
    assert "UP" in after["flags"]
    assert (after["address"], after["mtu"]) == (before["address"], before["mtu"])
    assert after["linkinfo"]["info_slave_data"]["isolated"]
    assert after["linkinfo"]["info_data"]["persist"]
