# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options outside of a module mean what they mean in it, at boot and before anything is changed."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.hostnet.qemu.plugins.module_utils.links.arguments import (
    bridge_faults,
    read_arguments,
    tap_faults,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import (
    ArgumentSpec,
    BadValue,
    bridge_argument_spec,
    tap_argument_spec,
)
from hypothesis import given
from hypothesis import strategies as st

SPEC = bridge_argument_spec()
TAP_SPEC = tap_argument_spec()
# fmt: off
WORDS = [
    "yes", "No", "on", "OFF", "1", "0", "t", "true", "1400", "-1", "1e3", "2.5", "2.0", "nan", " 12 ", "br0", "a,b",
    "a, b", "exact", "",
]
# fmt: on
SCALARS = st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS)
VALUES = (
    SCALARS | st.lists(SCALARS | st.none(), max_size=3) | st.dictionaries(st.sampled_from(WORDS), SCALARS, max_size=2)
)


@pytest.mark.parametrize(
    ("option", "spec"), [*((option, SPEC) for option in SPEC), *((option, TAP_SPEC) for option in TAP_SPEC)]
)
@given(value=VALUES)
def test_what_is_read_is_what_ansible_reads(option: str, spec: ArgumentSpec, value: Any) -> None:
    item = {"name": "br0", option: value}
    # It may refuse more, but never take a value for another one.
    with contextlib.suppress(BadValue):
        values = read_arguments(item, spec)
        ansible = ArgumentSpecValidator(spec).validate(item)
        assert not ansible.error_messages
        assert values == ansible.validated_parameters


@pytest.mark.parametrize(
    ("given_", "read"),
    [
        ({"mtu": "1400"}, {"mtu": 1400}),
        ({"up": "no", "stp": 1}, {"up": False, "stp": True}),
        ({"forward_delay": "2.5", "ageing_time": 60}, {"forward_delay": 2.5, "ageing_time": 60.0}),
        ({"ports": "eth1,eth2"}, {"ports": ["eth1", "eth2"]}),
        ({"name": 7}, {"name": "7"}),
        ({"ports": [1], "ports_mode": "exact"}, {"ports": ["1"], "ports_mode": "exact"}),
        ({"mtu": None}, {"mtu": None, "up": True, "state": "present", "addresses": None}),
    ],
)
def test_what_is_common_is_read(given_: dict[str, Any], read: dict[str, Any]) -> None:
    values = read_arguments({"name": "br0", **given_}, SPEC)
    assert {name: values[name] for name in read} == read


@pytest.mark.parametrize(
    ("item", "reasons"),
    [
        ({"name": "br0", "mtu": "1400", "ports": "eth1,eth2", "addresses": ["192.0.2.1/24"]}, []),
        ({"name": "br0", "mtu": "big"}, ["mtu: 'big' is not of the type int"]),
        ({"name": "br0", "nam": "br1"}, ["there is no option nam"]),
        ({"mtu": 1400}, ["the option name is missing"]),
        ("br0", ["'br0' is not an object"]),
        # All of them, of a list too.
        (
            {"name": "br0", "priority": -1, "addresses": ["192.0.2.1", "192.0.2.2/24", "x/24"]},
            ["priority of bridge br0: -1 is", "bridge br0: '192.0.2.1' is not", "bridge br0: 'x/24' is not"],
        ),
        # Each of them is fine.
        ({"name": "br0", "addresses": ["2001:db8::1/64", "2001:db8::1/65"]}, ["an IPv6 address can be there once"]),
    ],
)
def test_faults_of_a_bridge(item: Any, reasons: list[str]) -> None:
    faults = bridge_faults(item)
    assert [reason in fault for reason, fault in zip(reasons, faults)] == [True] * len(faults)
    assert len(faults) == len(reasons)


def test_faults_of_a_tap() -> None:
    tap = {"name": "tap0", "owner": "no such user", "group": "no such group", "untagged": ["7"], "tagged": ["8"]}
    owner, group = tap_faults(tap)
    assert owner.startswith("owner of tap tap0: there is no user 'no such user' on this host.")
    assert group.startswith("group of tap tap0: there is no group 'no such group' on this host.")
    # Who it belonged to may have gone before.
    assert tap_faults({**tap, "state": "absent"}) == []
