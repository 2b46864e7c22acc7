# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taps in use lose no frame while the VLANs of their bridge and their own change.

As tests/e2e/test_running_guest.py for the other options, but with this process as both guests: there is no QEMU where
this may have to run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import tuntap
from ansible_collections.hostnet.qemu.plugins.modules import links
from support.modules import run_module
from support.namespaces import Sandbox
from support.streams import Frames

GUESTS = {"guest0": bytes.fromhex("525400000000"), "guest1": bytes.fromhex("525400000001")}


def bridge(**options: Any) -> dict[str, Any]:
    return {"bridges": [{"name": "br0", **options}]}


def taps(**options: Any) -> dict[str, Any]:
    return {"taps": [{"name": name, **options} for name in GUESTS]}


TASKS = [
    # Both are in the VLAN 1, the default.
    bridge(vlan_filtering=True),
    bridge(vlans=["100", "110-120"]),
    taps(tagged=["200-210", "300"]),
    taps(tagged=["205"]),
    bridge(vlans=[]),
    bridge(vlan_filtering=False),
    bridge(vlan_default_pvid=5),
    # The filter comes after the VLANs of both.
    {**bridge(vlan_filtering=True), **taps(pvid=100)},
    bridge(vlan_filtering=False, vlan_default_pvid=1),
]


@pytest.fixture
def streams(sandbox: Sandbox) -> Iterator[list[Frames]]:
    """Frames in both directions between two taps on br0."""
    run({**bridge(mac="02:00:00:00:00:01"), **taps(bridge="br0")})
    guests = []
    for name, mac in GUESTS.items():
        descriptor = tuntap.open_tun()
        tuntap.create(descriptor, name.encode(), tuntap.IFF_TAP | tuntap.IFF_NO_PI)
        guests.append((descriptor, mac))
    frames = [Frames(guests[0], guests[1]), Frames(guests[1], guests[0])]
    yield frames
    for stream in frames:
        stream.close()
    for descriptor, _mac in guests:
        os.close(descriptor)


def run(task: dict[str, Any]) -> None:
    result = run_module(links.main, task)
    assert result.get("changed"), (task, result)


@pytest.mark.kernel_feature("vlan_filtering")
def test_vlans_cost_no_frame(streams: list[Frames]) -> None:
    assert [stream.lost() for stream in streams] == [[], []]
    for task in TASKS:
        run(task)
        assert [stream.lost() for stream in streams] == [[], []], task

    # To move one of them to another VLAN cuts them off from each other, and that does not escape this account.
    run(bridge(vlan_filtering=True))
    assert [stream.lost() for stream in streams] == [[], []]
    run({"taps": [{"name": "guest1", "pvid": 7}]})
    for stream in streams:
        stream.send_more(1)
    run({"taps": [{"name": "guest1", "pvid": 100}]})
    assert all(stream.lost() for stream in streams)
