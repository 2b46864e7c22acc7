# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to know of bridges and taps beyond what can be set: `Details`, and the facts that are made of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .host import Holder, group_name, user_name
from .model import (
    FOREVER,
    GROUP,
    MULTI_QUEUE,
    NOBODY,
    OWNER,
    PACKET_INFO,
    VNET_HDR,
    Address,
    Network,
    describe,
    describe_tap,
)

# So many learned addresses of a link can be read; a bridge may have thousands.
MAX_LEARNED = 100


class Learned(NamedTuple):
    """An address that a bridge has learned, the port that it is behind, and its VLAN (0: none)."""

    mac: str
    port: str
    vlan: int


@dataclass(frozen=True)
class Details:
    """What the kernel tells of a link besides its options.

    `port_state` is the state of a port of a bridge in STP, `bridge_id` and `root_id` are those of a bridge. `queues`
    are those of a multi_queue tap that are in use, `disabled_queues` those that are attached and were turned off.
    """

    index: int
    carrier: bool
    statistics: Mapping[str, int]
    port_state: str = ""
    bridge_id: str = ""
    root_id: str = ""
    queues: int = 0
    disabled_queues: int = 0
    learned: tuple[Learned, ...] = ()


def bridge_facts(network: Network, details: Mapping[str, Details], name: str) -> dict[str, Any]:
    """What is known of a bridge; `network` and `details` hold it and its ports."""
    facts = describe(network, name)
    for of_task in ("state", "held_ports"):
        del facts[of_task]
    detail = details[name]
    facts["ports"] = [
        {
            "name": port.name,
            "kind": port.kind,
            "state": details[port.name].port_state,
            "persistent": port.persistent,
            "held": port.holder,
        }
        for port in network.ports(name)
    ]
    facts["addresses"] = [_address(address) for address in network[name].addresses]
    facts["bridge_id"] = detail.bridge_id
    facts["root_id"] = detail.root_id
    facts.update(_common(detail))
    return {key: _readable(value) for key, value in facts.items()}


def tap_facts(
    network: Network, details: Mapping[str, Details], holders: Mapping[str, Sequence[Holder]], name: str
) -> dict[str, Any]:
    """What is known of a tap; `network` holds it and what it belongs to, `holders` the processes of all taps."""
    tap, detail, attached = network[name], details[name], holders.get(name, ())
    facts = describe_tap(network, name)
    for of_task in ("state", "bridge"):
        del facts[of_task]
    for option in (VNET_HDR, PACKET_INFO):
        facts[option.name] = tap.settings.get(option.name)
    for option, look_up in ((OWNER, user_name), (GROUP, group_name)):
        number = int(tap.settings.get(option.name, NOBODY))
        facts[f"{option.name}_name"] = None if number == NOBODY else look_up(number)
    master = network.get(tap.master)
    facts["master"] = tap.master
    facts["master_kind"] = master.kind if master else ""
    facts["port_state"] = detail.port_state
    facts["mac_pinned"] = tap.mac_pinned
    facts["persistent"] = tap.persistent
    facts["holders"] = [holder._asdict() for holder in attached]
    # The kernel counts those of multi_queue taps only. Another one has a carrier while somebody is attached, unless
    # that one has turned it off.
    counted = tap.settings.get(MULTI_QUEUE.name)
    facts["queues"] = detail.queues if counted else int(bool(attached) or detail.carrier)
    facts["disabled_queues"] = detail.disabled_queues
    facts.update(_common(detail))
    return {key: _readable(value) for key, value in facts.items()}


def _common(detail: Details) -> dict[str, Any]:
    return {
        "index": detail.index,
        "carrier": detail.carrier,
        "learned": [address._asdict() for address in detail.learned[:MAX_LEARNED]],
        "learned_count": len(detail.learned),
        "statistics": dict(detail.statistics),
    }


def _address(address: Address) -> dict[str, Any]:
    return {
        "address": str(address),
        "dynamic": address.dynamic,
        "valid_seconds": None if address.valid == FOREVER else address.valid,
    }


def readable(text: str) -> str:
    """A name or a text of the kernel as JSON can carry it: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {key: _readable(each) for key, each in value.items()}
    return [_readable(each) for each in value] if isinstance(value, list) else value
