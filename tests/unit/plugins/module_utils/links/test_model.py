# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, MAC addresses, IP addresses and timers: what is taken, in which form, and what is refused in which words."""

from __future__ import annotations

import math

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.links import model
from ansible_collections.hostnet.qemu.plugins.module_utils.links.kernel import Kernel
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import (
    AGEING_TIME,
    FORWARD_DELAY,
    MTU,
    NOBODY,
    STP,
    Address,
    BadValue,
    Bridge,
    Link,
    Network,
    Value,
    bridge_argument_spec,
    describe,
    link_name,
    settable,
    settable_tap,
    stable_mac,
    unicast_mac,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links.plan import CreateBridge
from ansible_collections.hostnet.qemu.plugins.module_utils.links.vlans import write_vlans
from hypothesis import given
from hypothesis import strategies as st

MACHINE = "0123456789abcdef0123456789abcdef"
MAC = "02:00:00:00:00:01"


def parse(**arguments: object) -> Bridge:
    return Bridge.from_arguments({"name": "br0", **arguments}, lambda: MACHINE)


@pytest.mark.parametrize("name", ["br0", "a", "fifteen-bytes-x", "...", "br0.100", "brücke", "-"])
def test_name(name: str) -> None:
    assert link_name(name, "name") == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("sixteen-bytes-xx", "16 bytes"),
        ("ääääääää", "16 bytes"),
        (".", "directory"),
        ("..", "directory"),
        ("a b", "blank"),
        ("a\tb", "blank"),
        ("a\nb", "blank"),
        ("a\0b", "control"),
        ("a\x7fb", "control"),
        ("à", "blank"),
        ("a/b", "/ : %"),
        ("br0:1", "/ : %"),
        ("tap%d", "/ : %"),
        ("\udcff", "UTF-8"),
    ],
)
def test_bad_name(name: str, why: str) -> None:
    with pytest.raises(BadValue, match="name: .*" + why):
        link_name(name, "name")


@pytest.mark.usefixtures("sandbox")
def test_names_are_what_the_kernel_takes() -> None:
    """Every character of Latin-1 that is let through makes a link: refusing is done before any change."""
    with Kernel() as links:
        for character in map(chr, range(1, 0x100)):
            name = f"a{character}b"
            try:
                link_name(name, "name")
            except BadValue:
                continue
            links.perform(CreateBridge(name))


@pytest.mark.parametrize("text", ["02:AB:cd:00:11:22", "02-ab-cd-00-11-22"])
def test_mac(text: str) -> None:
    assert unicast_mac(text, "mac") == "02:ab:cd:00:11:22"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a MAC"),
        ("02:ab:cd:00:11", "not a MAC"),
        ("02:ab-cd:00:11:22", "not a MAC"),
        ("02:ab:cd:00:11:22\n", "not a MAC"),
        ("02abcd001122", "not a MAC"),
        # What YAML makes of 52:54:00:12:34:56 without quotes.
        (40906425296, "in quotes"),
        ("01:00:5e:00:00:01", "not a unicast"),
        ("ff:ff:ff:ff:ff:ff", "not a unicast"),
        ("00:00:00:00:00:00", "not a unicast"),
    ],
)
def test_bad_mac(text: object, why: str) -> None:
    with pytest.raises(BadValue, match=why):
        unicast_mac(text, "mac")


def test_stable_mac_is_of_machine_name_and_namespace() -> None:
    """The value is fixed for good: another one would change the MAC address of every host's bridges."""
    assert stable_mac(MACHINE, "br0") == "5e:6b:fb:f4:84:1f"
    others = {stable_mac(MACHINE, "br1"), stable_mac(MACHINE[::-1], "br0"), stable_mac(MACHINE, "br0", "lab")}
    assert len(others | {stable_mac(MACHINE, "br0")}) == 4
    assert parse(mac="stable").settings["mac"] == stable_mac(MACHINE, "br0")


@given(st.text("0123456789abcdef", min_size=32, max_size=32), st.text(min_size=1, max_size=15))
def test_stable_mac_is_unicast_and_locally_administered(machine_id: str, name: str) -> None:
    mac = stable_mac(machine_id, name)
    assert unicast_mac(mac, "mac") == mac
    assert int(mac[:2], 16) & 2


@pytest.mark.parametrize(
    ("text", "normal", "broadcast"),
    [
        ("192.0.2.1/24", "192.0.2.1/24", "192.0.2.255"),
        ("192.0.2.1/255.255.255.0", "192.0.2.1/24", "192.0.2.255"),
        ("192.0.2.0/31", "192.0.2.0/31", ""),
        ("192.0.2.1/32", "192.0.2.1/32", ""),
        ("2001:DB8:0::1/64", "2001:db8::1/64", ""),
        ("fe80::1/64", "fe80::1/64", ""),
        ("10.0.0.1 peer 10.0.0.2/32", "10.0.0.1 peer 10.0.0.2/32", ""),
        ("fd00::1 peer fd00::2/128", "fd00::1 peer fd00::2/128", ""),
    ],
)
def test_address(text: str, normal: str, broadcast: str) -> None:
    address = Address.parse(text, "addresses")
    assert (str(address), address.broadcast) == (normal, broadcast)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "192.0.2.1",
        "2001:db8::1",
        "192.0.2.1/33",
        "192.0.2.256/24",
        "host/24",
        "fe80::1%br0/64",
        "10/8",
        None,
        "10.0.0.1 peer 10.0.0.2",
        "10.0.0.1/24 peer 10.0.0.2/32",
        "10.0.0.1 peer fd00::1/64",
    ],
)
def test_bad_address(text: object) -> None:
    with pytest.raises(BadValue, match="with prefix length"):
        Address.parse(text, "addresses")


@pytest.mark.parametrize("text", ["224.0.0.1/4", "0.0.0.0/0", "ff02::1/64", "::/0"])
def test_address_of_no_link(text: str) -> None:
    with pytest.raises(BadValue, match="not an address that a link can have"):
        Address.parse(text, "addresses")


@pytest.mark.parametrize(
    ("seconds", "raw"), [(0, 0), (2.5, 250), (15, 1500), (0.004, 0), (0.29, 29), (42949672.95, 2**32 - 1)]
)
def test_seconds(seconds: float, raw: int) -> None:
    assert FORWARD_DELAY.parse(seconds, "br0") == raw
    assert abs(FORWARD_DELAY.report(raw) - seconds) <= 0.01


@pytest.mark.parametrize("seconds", [-0.01, math.nan, math.inf, -math.inf, 42949672.96, 1e300, "soon", None])
def test_bad_seconds(seconds: object) -> None:
    with pytest.raises(BadValue, match="forward_delay of br0: "):
        FORWARD_DELAY.parse(seconds, "br0")


def test_timers_are_equal_within_a_centisecond_and_nothing_else_is() -> None:
    assert AGEING_TIME.same(12345, 12344)
    assert not AGEING_TIME.same(12345, 12343)
    assert not MTU.same(1500, 1499)
    assert not AGEING_TIME.same(None, 0)


@pytest.mark.parametrize(("option", "value"), [(MTU, True), (MTU, 1.5), (MTU, "1500"), (STP, 1), (STP, "yes")])
def test_bad_scalar(option: model.Option, value: object) -> None:
    with pytest.raises(BadValue, match=f"{option.name} of br0: "):
        option.parse(value, "br0")


@pytest.mark.parametrize(
    ("option", "lowest", "highest", "step"),
    [(model.HELLO_TIME, 1, 10, 0.01), (model.MAX_AGE, 6, 40, 0.01), (model.PRIORITY, 0, 65535, 1)],
)
def test_what_the_kernel_never_takes(option: model.Option, lowest: int, highest: int, step: float) -> None:
    """Facts: br_set_hello_time() and br_set_max_age() answer ERANGE, with STP off too; the priority is a __u16."""
    for value in (lowest, highest):
        assert option.report(option.parse(value, "br0")) == value
    for value in (lowest - step, highest + step):
        with pytest.raises(BadValue, match=f"^{option.name} of br0: .* the kernel takes {lowest} to {highest}"):
            option.parse(value, "br0")


@pytest.mark.parametrize("mask", [1, 2, 4, 0xFFFF, -8, 0x10000, True, "8"])
def test_group_masks_that_the_kernel_refuses(mask: object) -> None:
    with pytest.raises(BadValue, match=r"^group_fwd_mask of br0: "):
        model.GROUP_FWD_MASK.parse(mask, "br0")
    assert model.GROUP_FWD_MASK.parse(0xFFF8, "br0") == 0xFFF8


@pytest.mark.parametrize("text", ["x" * 256, "ä" * 128, "two\nlines", "nul\0", "\x7f", "\udc80"])
def test_bad_alias(text: str) -> None:
    with pytest.raises(BadValue, match=r"^alias of br0: "):
        model.ALIAS.parse(text, "br0")
    assert model.ALIAS.parse("ä" * 127 + "x", "br0") == "ä" * 127 + "x"


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([], []),
        (["10", "12", "11"], ["10-12"]),
        ([1, "4094", "4090-4093", "7-7"], ["1", "7", "4090-4094"]),
        (["1-4094", "5"], ["1-4094"]),
        (["0010"], ["10"]),
    ],
)
def test_vlans(values: list[object], written: list[str]) -> None:
    parsed = parse(vlans=values).vlans
    assert parsed is not None and write_vlans(parsed) == written
    assert parse(vlans=written).vlans == parsed


@pytest.mark.parametrize(
    "value", ["", "0", "4095", "1-4095", "0-5", "5-4", "-5", "5-", "1-2-3", "ten", "5 ", True, 1.5]
)
def test_bad_vlans(value: object) -> None:
    with pytest.raises(BadValue, match=r"^vlans of bridge br0: "):
        parse(vlans=["10", value])


@given(st.sets(st.integers(1, 4094)))
def test_vlans_are_written_shortest(vlans: set[int]) -> None:
    written = write_vlans(vlans)
    assert parse(vlans=written).vlans == vlans
    assert len(written) == sum(vlan - 1 not in vlans for vlan in vlans)


def test_bridge_holds_what_was_given_and_nothing_else() -> None:
    assert parse() == Bridge("br0")
    bridge = parse(stp=False, mtu=None, ports=["a", "b", "a"], ports_mode="exact", addresses=["192.0.2.1/24"] * 2)
    assert bridge.settings == {"stp": False}
    assert (bridge.ports, bridge.ports_exact) == (("a", "b"), True)
    assert [str(address) for address in bridge.addresses or ()] == ["192.0.2.1/24"]
    assert not bridge.addresses_exact


def test_machine_id_is_read_only_where_it_is_needed() -> None:
    def absent() -> str:
        raise AssertionError

    Bridge.from_arguments({"name": "br0", "mac": "02:00:00:00:00:01"}, absent)


def test_faults_name_the_bridge_and_the_option() -> None:
    with pytest.raises(BadValue, match=r"^ports of bridge br0: 'a/b'"):
        parse(ports=["a/b"])
    with pytest.raises(BadValue, match=r"^mtu of bridge br0: "):
        parse(mtu=1.5)


def test_an_ipv6_address_is_listed_once() -> None:
    with pytest.raises(BadValue, match="one prefix length"):
        parse(addresses=["2001:db8::1/64", "2001:db8:0::1/48"])
    assert parse(addresses=["2001:db8::1/64", "2001:db8:0::1/64", "192.0.2.1/24", "192.0.2.1/16"])


def test_every_option_is_an_argument_without_a_default_except_up() -> None:
    spec = bridge_argument_spec()
    for option in (*model.LINK_OPTIONS, *model.BRIDGE_OPTIONS):
        assert spec[option.name].get("default") == (True if option is model.UP else None)


def test_description_leaves_out_what_no_task_brings_about() -> None:
    network = Network(
        [
            Link(
                "br0",
                "bridge",
                {"up": True, "mtu": 1500, "mac": "02:00:00:00:00:01", "stp": False, "forward_delay": 1500},
                addresses=(
                    Address("192.0.2.1", 24),
                    Address("192.0.2.9", 24, dynamic=True),
                    Address("fe80::1", 64),
                    Address("10.0.0.1", 32, peer="10.0.0.2"),
                ),
            ),
            Link("tap1", "tun", master="br0", persistent=False, holder="a guest"),
            Link("tap0", "tun", master="br0", holder="a guest"),
            Link("eth1", master="br0"),
            Link("eth2"),
        ]
    )
    description = describe(network, "br0")
    assert description["ports"] == ["eth1", "tap0"]
    assert description["held_ports"] == ["tap0", "tap1"]
    assert description["addresses"] == ["10.0.0.1 peer 10.0.0.2/32", "192.0.2.1/24"]
    assert (description["forward_delay"], description["ageing_time"]) == (15.0, None)
    assert describe(network, "br1") == {"name": "br1", "state": "absent"}


def test_what_can_be_set_of_a_tap_of_a_bond() -> None:
    """The module tap leaves such a tap where it is, so nothing is said of a bridge and of ports."""
    has = {"up": True, "mtu": 1500, "owner": NOBODY, "group": 1000, "isolated": True}
    network = Network([Link("bond0", "bond"), Link("tap0", "tun", has, master="bond0")])
    assert settable_tap(network, "tap0") == {"name": "tap0", "up": True, "mtu": 1500, "owner": "", "group": "1000"}


@pytest.mark.parametrize(
    ("pinned", "mtu", "told"),
    [
        (True, 1500, {"mac": MAC, "mtu": 1500}),
        (False, 1400, {}),
        # Nobody can tell.
        (None, 1400, {}),
    ],
)
def test_what_follows_from_the_ports_can_not_be_set(pinned: bool | None, mtu: int, told: dict[str, object]) -> None:
    bridge = Link("br0", "bridge", {"mac": MAC, "mtu": mtu}, mac_pinned=pinned)
    network = Network([bridge, Link("p1", settings={"mtu": 1400}, master="br0"), Link("p2", settings={"mtu": 1300})])
    assert settable(network, "br0") == {"name": "br0", "ports": ["p1"], "addresses": [], **told}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stp": True, "forward_delay": 200}, {"stp": True, "forward_delay": 2.0}),
        # As the root of the tree dictates.
        ({"stp": True, "forward_delay": 199}, {}),
        ({"stp": False, "forward_delay": 0}, {"stp": False, "forward_delay": 0.0}),
        ({"hello_time": 99, "max_age": 4001}, {}),
        ({"alias": "two\nlines"}, {}),
        ({"alias": "not \udcff"}, {}),
        ({"group_fwd_mask": 7}, {}),
    ],
)
def test_what_the_modules_refuse_can_not_be_set(settings: dict[str, Value], told: dict[str, object]) -> None:
    network = Network([Link("br0", "bridge", settings)])
    assert settable(network, "br0") == {"name": "br0", "ports": [], "addresses": [], **told}


@pytest.mark.parametrize("name", ["br\x01", "br\udcff"])
def test_links_with_names_that_the_modules_refuse_can_not_be_set(name: str) -> None:
    network = Network([Link(name, "bridge"), Link("br0", "bridge"), Link("p\x01", master="br0", settings={"mtu": 9})])
    assert settable(network, name) is None
    assert settable(network, "br0") == {"name": "br0", "ports": [], "addresses": []}
    network = Network([Link(name, "bridge"), Link("tap0", "tun", master=name), Link(f"t{name}", "tun")])
    assert settable_tap(network, "tap0") == {"name": "tap0", "owner": "", "group": ""}
    assert settable_tap(network, f"t{name}") is None
