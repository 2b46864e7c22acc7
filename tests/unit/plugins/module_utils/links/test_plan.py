# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner, which is pure: which operations, in which order, what undoes them, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import (
    ADDRESS,
    ALIAS,
    BRIDGE_OPTIONS,
    COMPARED_TUN_OPTIONS,
    FORWARD_DELAY,
    IPV6,
    MAX_PORTS,
    MTU,
    NOBODY,
    PORT_OPTIONS,
    STP,
    TAP_LINK_OPTIONS,
    TAP_PORT_OPTIONS,
    TUN_OPTIONS,
    UP,
    VLAN_DEFAULT_PVID,
    Address,
    Bridge,
    Link,
    Network,
    Tap,
    Value,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links.plan import (
    AddAddress,
    AddVlans,
    ChangeVlans,
    CreateBridge,
    CreateTap,
    DeleteLink,
    GiveTap,
    Plan,
    Refused,
    RemoveAddress,
    RemoveVlans,
    Set,
    SetMaster,
    given,
    given_tap,
    make_plan,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links.vlans import Vlans
from hypothesis import assume, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

PORT_DEFAULTS: dict[str, Value] = {
    **{option.name: option.default for option in PORT_OPTIONS if option.default is not None},
    "cost": 2,
}
MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


def bridge_link(name: str = "br0", *addresses: str, pinned: bool = True, **settings: Value) -> Link:
    plain: dict[str, Value] = {
        "up": True,
        "mtu": 1500,
        "mac": MAC,
        "alias": "",
        **{option.name: option.default for option in BRIDGE_OPTIONS if option.default is not None},
    }
    parsed = tuple(Address.parse(address, "") for address in addresses)
    return Link(name, "bridge", {**plain, **settings}, mac_pinned=pinned, addresses=parsed)


def port_link(name: str, master: str = "", **settings: Value) -> Link:
    of_port = PORT_DEFAULTS if master else {}
    return Link(
        name, "veth", {"up": True, "mtu": 1500, "mac": OTHER_MAC, "alias": "", **of_port, **settings}, master=master
    )


def tap_link(name: str, master: str = "", holder: str = "", persistent: bool = True, **settings: Value) -> Link:
    tun = {option.name: option.default for option in (*TUN_OPTIONS, *TAP_LINK_OPTIONS) if option.default is not None}
    link = port_link(name, master)
    settings = {**tun, **link.settings, **settings}
    return replace(link, kind="tun", holder=holder, persistent=persistent, settings=settings)


def bridge(name: str = "br0", **arguments: Any) -> Bridge:
    return Bridge.from_arguments({"name": name, "up": True, **arguments}, lambda: "0" * 32)


def tap(name: str = "tap0", **arguments: Any) -> Tap:
    users = {"alice": 1000, "bob": 1001}
    return Tap.from_arguments({"name": name, "up": True, **arguments}, users.__getitem__, {"kvm": 107}.__getitem__)


def tap_operations(*taps: Tap, on: list[Link], bridges: tuple[Bridge, ...] = ()) -> list[str]:
    return make_plan(bridges, Network(on), taps).operations


def operations(*bridges: Bridge, on: list[Link]) -> list[str]:
    return make_plan(bridges, Network(on)).operations


def undo(plan: Plan) -> Network:
    network = plan.after.copy()
    for step in reversed(plan.steps):
        for operation in step.inverse:
            operation.apply(network)
    return network


# ---------------------------------------------------------------------------------------------------------------------
# One rule at a time


def test_a_new_bridge_gets_its_options_in_one_message_and_comes_up_last() -> None:
    desired = bridge(
        mac=MAC, mtu=1400, stp=True, forward_delay=2.5, ageing_time=60, ports=["eth1"], addresses=["192.0.2.1/24"]
    )
    assert operations(desired, on=[port_link("eth1", up=False)]) == [
        f"ip link add name br0 address {MAC} type bridge stp_state 1 forward_delay 250 ageing_time 6000",
        "ip link set dev eth1 master br0",
        "ip link set dev eth1 up",
        "ip link set dev br0 mtu 1400",
        "ip address replace 192.0.2.1/24 broadcast 192.0.2.255 dev br0",
        "ip link set dev br0 up",
    ]


def test_what_is_not_given_is_left_alone() -> None:
    odd = bridge_link("br0", "192.0.2.1/24", mtu=9000, stp=True, forward_delay=300, ageing_time=0, pinned=False)
    assert operations(bridge(), on=[odd, port_link("eth1", "br0")]) == []


def test_up_is_the_one_default() -> None:
    assert operations(bridge(), on=[bridge_link(up=False)]) == ["ip link set dev br0 up"]
    assert operations(bridge(up=None), on=[bridge_link(up=False)]) == []
    assert operations(bridge(up=False), on=[bridge_link(up=False)]) == []


def test_timers_move_while_stp_is_off() -> None:
    assert operations(bridge(stp=False, forward_delay=0), on=[bridge_link(stp=True)]) == [
        "ip link set dev br0 type bridge stp_state 0",
        "ip link set dev br0 type bridge forward_delay 0",
    ]
    assert operations(bridge(stp=True, forward_delay=2), on=[bridge_link(forward_delay=0)]) == [
        "ip link set dev br0 type bridge forward_delay 200",
        "ip link set dev br0 type bridge stp_state 1",
    ]


def test_an_alias_is_quoted_for_the_shell() -> None:
    """The kernel passes over an alias at creation."""
    assert operations(bridge(alias="guests of the lab"), on=[])[:2] == [
        "ip link add name br0 type bridge",
        "ip link set dev br0 alias 'guests of the lab'",
    ]
    assert operations(bridge(alias=""), on=[bridge_link(alias="old")]) == ["ip link set dev br0 alias ''"]


def test_timers_within_a_centisecond_are_left() -> None:
    assert operations(bridge(ageing_time=123.45), on=[bridge_link(ageing_time=12344)]) == []
    assert len(operations(bridge(ageing_time=123.46), on=[bridge_link(ageing_time=12344)])) == 1


@pytest.mark.parametrize(
    ("arguments", "current"),
    [
        ({"stp": True, "forward_delay": 1.99}, {}),
        ({"stp": True, "forward_delay": 30.01}, {}),
        ({"stp": True}, {"forward_delay": 0}),
        ({"forward_delay": 0}, {"stp": True}),
    ],
)
def test_a_forward_delay_that_the_kernel_would_refuse_or_clamp(
    arguments: dict[str, Any], current: dict[str, Value]
) -> None:
    with pytest.raises(Refused, match="2 to 30 s"):
        operations(bridge(**arguments), on=[bridge_link(**current)])
    if not current:
        with pytest.raises(Refused, match="2 to 30 s"):
            operations(bridge(**arguments), on=[])


def test_a_mac_that_is_equal_but_not_pinned_is_set() -> None:
    desired = bridge(mac=MAC)
    assert operations(desired, on=[bridge_link(pinned=False)]) == [f"ip link set dev br0 address {MAC}"]
    assert operations(desired, on=[bridge_link()]) == []
    # Where sysfs can't be read, a run must not change something each time.
    assert operations(desired, on=[replace(bridge_link(), mac_pinned=None)]) == []
    plan = make_plan([desired], Network([bridge_link(pinned=False)]))
    assert given(desired, plan.before)["mac_pinned"] is False
    assert given(desired, plan.after)["mac_pinned"] is True


def test_an_mtu_is_set_after_ports_that_would_move_it() -> None:
    small, plain = port_link("small", mtu=1300), port_link("plain")
    assert (
        operations(bridge(mtu=1500, ports=["small"]), on=[bridge_link(), small])[-1] == "ip link set dev br0 mtu 1500"
    )
    assert operations(bridge(mtu=1500, ports=["small"]), on=[small])[-2:-1] == ["ip link set dev br0 mtu 1500"]
    assert operations(bridge(mtu=1500, ports=["plain"]), on=[bridge_link(), plain]) == [
        "ip link set dev plain master br0"
    ]
    leaving = [bridge_link(mtu=1300), port_link("small", "br0", mtu=1300)]
    assert operations(bridge(mtu=1300, ports=[], ports_mode="exact"), on=leaving) == [
        "ip link set dev small nomaster",
        "ip link set dev br0 mtu 1300",
    ]


@pytest.mark.parametrize("mtu", [0, 67, 65536, -1])
def test_an_mtu_out_of_range(mtu: int) -> None:
    with pytest.raises(Refused, match="68 to 65535 bytes"):
        operations(bridge(mtu=mtu), on=[])
    with pytest.raises(Refused, match="68 to 9000 bytes"):
        operations(bridge(mtu=mtu if mtu < 68 else 9001), on=[replace(bridge_link(), mtu_range=(68, 9000))])


def test_an_mtu_too_small_for_the_ipv6_addresses() -> None:
    with pytest.raises(Refused, match="1280"):
        operations(bridge(mtu=1279, addresses=["2001:db8::1/64"]), on=[])
    with pytest.raises(Refused, match="1280"):
        operations(bridge(mtu=1279), on=[bridge_link("br0", "2001:db8::1/64")])
    with pytest.raises(Refused, match="1280"):
        operations(bridge(addresses=["2001:db8::1/64"]), on=[bridge_link(mtu=1279)])
    assert operations(bridge(mtu=1280), on=[bridge_link("br0", "2001:db8::1/64")])


def test_ports_are_appended_or_exact() -> None:
    links = [bridge_link(), port_link("a", "br0"), port_link("b", "br0"), port_link("c")]
    assert operations(bridge(ports=["c"]), on=links) == ["ip link set dev c master br0"]
    assert operations(bridge(ports=["c", "a"], ports_mode="exact"), on=links) == [
        "ip link set dev c master br0",
        "ip link set dev b nomaster",
    ]
    assert operations(bridge(ports=["a", "b"], ports_mode="exact"), on=links) == []


def test_exact_ports_spare_taps_that_a_guest_holds() -> None:
    links = [
        bridge_link(),
        tap_link("guest", "br0", "a tap that ends with its user", persistent=False),
        tap_link("busy", "br0", "a tap with a carrier"),
        tap_link("idle", "br0"),
    ]
    assert operations(bridge(ports=[], ports_mode="exact"), on=links) == ["ip link set dev idle nomaster"]


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (None, "there is no link of that name"),
        (bridge_link("x"), "it is a bridge"),
        (replace(port_link("x"), loopback=True), "no Ethernet link"),
        (replace(port_link("x"), ethernet=False), "no Ethernet link"),
        (port_link("x", "br1"), "on the bridge br1; .*force: true"),
        (port_link("x", "bond0"), "it belongs to bond0, which is no bridge"),
        (port_link("x", "unseen"), "it belongs to unseen"),
    ],
)
def test_a_link_that_can_not_become_a_port(link: Link | None, why: str) -> None:
    others = [bridge_link("br1"), Link("bond0", "bond")]
    with pytest.raises(Refused, match=f"^x can't become a port of the bridge br0: .*{why}"):
        operations(bridge(ports=["x"]), on=[link, *others] if link else others)


def test_a_bridge_is_not_its_own_port() -> None:
    with pytest.raises(Refused, match="the bridge itself"):
        operations(bridge(ports=["br0"]), on=[])


def test_force_moves_a_port_from_another_bridge_only() -> None:
    links = [bridge_link(), bridge_link("br1"), port_link("x", "br1", isolated=True, cost=7)]
    plan = make_plan([bridge(ports=["x"], force=True)], Network(links))
    assert plan.operations == ["ip link set dev x master br0"]
    # The settings of a port are lost with its place, and come back with it.
    assert undo(plan) == Network(links)
    with pytest.raises(Refused, match="take it out of there first"):
        operations(bridge(ports=["x"], force=True), on=[Link("bond0", "bond"), port_link("x", "bond0")])


def test_a_link_is_not_taken_for_two_bridges() -> None:
    with pytest.raises(Refused, match="port of both br0 and br1"):
        operations(bridge(ports=["x"]), bridge("br1", ports=["x"]), on=[port_link("x")])


def test_ports_beyond_what_a_bridge_holds() -> None:
    links = [bridge_link(), *(port_link(f"p{number}", "br0") for number in range(MAX_PORTS)), port_link("last")]
    with pytest.raises(Refused, match="1024 ports"):
        operations(bridge(ports=["last"]), on=links)
    assert operations(bridge(ports=["p0"]), on=links) == []


def test_going_down_keeps_the_addresses() -> None:
    link = bridge_link("br0", "192.0.2.1/24", "2001:db8::1/64")
    assert operations(bridge(up=False), on=[link]) == [
        "ip link set dev br0 down",
        "ip address replace 2001:db8::1/64 dev br0",
    ]


def test_addresses_are_appended_or_exact() -> None:
    link = bridge_link("br0", "192.0.2.1/24", "198.51.100.1/24", "fe80::1/64")
    link = replace(link, addresses=(*link.addresses, Address("203.0.113.9", 24, dynamic=True)))
    assert operations(bridge(addresses=["203.0.113.1/32"]), on=[link]) == [
        "ip address replace 203.0.113.1/32 dev br0",
    ]
    assert operations(bridge(addresses=["192.0.2.1/24"], addresses_mode="exact"), on=[link]) == [
        "ip address delete 198.51.100.1/24 dev br0",
    ]
    assert operations(bridge(addresses=["192.0.2.1/24"]), on=[link]) == []


def test_a_renewed_address_survives_the_removal_of_the_first_one_of_its_subnet() -> None:
    link = bridge_link("br0", "192.0.2.1/24")
    renewed = Address("192.0.2.9", 24, valid=600, preferred=300, dynamic=True)
    link = replace(link, addresses=(*link.addresses, renewed))
    plan = make_plan([bridge(addresses=[], addresses_mode="exact")], Network([link]))
    assert plan.operations == [
        "ip address delete 192.0.2.1/24 dev br0",
        "ip address replace 192.0.2.9/24 dev br0 valid_lft 600 preferred_lft 300",
    ]
    assert plan.after["br0"].addresses == (renewed,)


def test_an_ipv4_address_survives_the_removal_of_the_first_one_of_its_subnet() -> None:
    link = bridge_link("br0", "192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24")
    plan = make_plan([bridge(addresses=["192.0.2.3/24"], addresses_mode="exact")], Network([link]))
    assert plan.operations == [
        "ip address delete 192.0.2.1/24 dev br0",
        "ip address replace 192.0.2.3/24 broadcast 192.0.2.255 dev br0",
    ]
    assert undo(plan) == Network([link])


def test_an_ipv6_address_changes_its_prefix_length() -> None:
    link = bridge_link("br0", "2001:db8::1/64", "192.0.2.1/24")
    assert operations(bridge(addresses=["2001:db8::1/48", "192.0.2.1/16"]), on=[link]) == [
        "ip address delete 2001:db8::1/64 dev br0",
        "ip address replace 2001:db8::1/48 dev br0",
        "ip address replace 192.0.2.1/16 broadcast 192.0.255.255 dev br0",
    ]


def test_an_ipv6_address_changes_its_prefix_length_whoever_gave_it() -> None:
    link = replace(bridge_link(), addresses=(Address("2001:db8::1", 64, dynamic=True), Address("fe80::1", 10)))
    assert operations(bridge(addresses=["2001:db8::1/48", "fe80::1/64"]), on=[link]) == [
        "ip address delete 2001:db8::1/64 dev br0",
        "ip address delete fe80::1/10 dev br0",
        "ip address replace 2001:db8::1/48 dev br0",
        "ip address replace fe80::1/64 dev br0",
    ]


def test_a_link_that_is_no_bridge_is_not_touched() -> None:
    for state in ("present", "absent"):
        with pytest.raises(Refused, match="x exists and is no bridge but a link of kind veth"):
            operations(bridge("x", state=state, force=True), on=[port_link("x")])


def test_a_bridge_with_guests_is_removed_by_force_only() -> None:
    links = [bridge_link(), tap_link("tap0", "br0", "a tap with a carrier"), tap_link("tap1", "br0")]
    with pytest.raises(Refused, match=r"not removed: tap0 \(a tap with a carrier\)\. .*force: true"):
        operations(bridge(state="absent"), on=links)
    assert operations(bridge(state="absent", force=True), on=links) == ["ip link delete dev br0"]
    assert operations(bridge(state="absent"), on=links[:1]) == ["ip link delete dev br0"]
    assert operations(bridge(state="absent"), on=[]) == []


def test_a_last_port_that_is_undone_gives_the_bridge_its_address_back() -> None:
    """Fact: a bridge whose last port leaves has the address of zeros, unless it is pinned."""
    links = [bridge_link(pinned=False), port_link("x")]
    (step,) = make_plan([bridge(ports=["x"])], Network(links)).steps
    assert [str(operation) for operation in step.inverse] == [
        "ip link set dev x nomaster",
        f"ip link set dev br0 address {MAC}",
    ]


def test_a_listed_link_local_address_is_in_the_diff() -> None:
    desired = bridge(addresses=["fe80::1/64"])
    plan = make_plan([desired], Network([bridge_link()]))
    assert given(desired, plan.before)["addresses"] == []
    assert given(desired, plan.after)["addresses"] == ["fe80::1/64"]


# ---------------------------------------------------------------------------------------------------------------------
# Taps


def test_a_new_tap_is_ready_before_it_is_up() -> None:
    desired = tap(owner="alice", group="kvm", multi_queue=True, vnet_hdr=True, bridge="br0", isolated=True, alias="a b")
    assert tap_operations(desired, on=[bridge_link(mtu=9000)]) == [
        "ip tuntap add dev tap0 mode tap user 1000 group 107 multi_queue vnet_hdr",
        "ip link set dev tap0 mtu 9000",
        "ip link set dev tap0 alias 'a b'",
        "ip link set dev tap0 addrgenmode none",
        "ip link set dev tap0 master br0",
        "ip link set dev tap0 type bridge_slave isolated on",
        "ip link set dev tap0 up",
    ]


def test_a_new_tap_is_not_open_to_everybody_by_default() -> None:
    assert tap_operations(tap(up=None), on=[]) == ["ip tuntap add dev tap0 mode tap user 0"]
    assert tap_operations(tap(up=None, group="kvm"), on=[]) == ["ip tuntap add dev tap0 mode tap group 107"]
    assert tap_operations(tap(up=None, owner=""), on=[]) == ["ip tuntap add dev tap0 mode tap"]
    assert tap_operations(tap(up=None), on=[tap_link("tap0")]) == []


def test_what_is_not_given_of_a_tap_is_left_alone() -> None:
    odd = tap_link("tap0", "br0", owner=7, group=8, multi_queue=True, vnet_hdr=True, packet_info=True, isolated=True)
    assert tap_operations(tap(), on=[bridge_link(), odd]) == []
    # Whoever attaches writes these anew.
    assert tap_operations(tap(vnet_hdr=False, packet_info=False), on=[bridge_link(), odd]) == []


def test_a_port_has_no_ipv6_unless_asked_for() -> None:
    links = [bridge_link(), tap_link("tap0", "br0")]
    assert tap_operations(tap(bridge="br0"), on=links) == ["ip link set dev tap0 addrgenmode none"]
    assert tap_operations(tap(bridge="br0", ipv6=True), on=links) == []
    assert tap_operations(tap(), on=links) == []
    # 3 is IN6_ADDR_GEN_MODE_RANDOM, another way to make an address up.
    assert tap_operations(tap(ipv6=True), on=[bridge_link(), tap_link("tap0", "br0", ipv6=3)]) == []
    no_ipv6 = tap_link("tap0", "br0")
    no_ipv6 = replace(no_ipv6, settings={key: value for key, value in no_ipv6.settings.items() if key != IPV6.name})
    assert tap_operations(tap(bridge="br0"), on=[bridge_link(), no_ipv6]) == []
    with pytest.raises(Refused, match="has no IPv6"):
        tap_operations(tap(ipv6=True), on=[bridge_link(), no_ipv6])
    with pytest.raises(Refused, match="has no IPv6"):
        tap_operations(tap(ipv6=True, mtu=1279), on=[])


def test_an_owner_is_given_last_with_the_flags_that_the_tap_has() -> None:
    link = tap_link("tap0", owner=7, vnet_hdr=True, packet_info=True)
    plan = make_plan([], Network([link]), [tap(owner="alice", group="kvm", mtu=1400)])
    assert plan.operations == [
        "ip link set dev tap0 mtu 1400",
        "ip tuntap add dev tap0 mode tap user 1000 vnet_hdr pi",
        "ip tuntap add dev tap0 mode tap group 107 vnet_hdr pi",
    ]
    assert [str(each) for each in plan.steps[1].inverse] == ["ip tuntap add dev tap0 mode tap user 7 vnet_hdr pi"]
    assert plan.steps[2].inverse == ()


HOLDER = "a tap with a carrier"


@pytest.mark.parametrize(
    ("arguments", "link", "why"),
    [
        ({"multi_queue": True}, tap_link("tap0"), "can't turn multi_queue of the existing tap tap0 on.*state: absent"),
        ({"multi_queue": False}, tap_link("tap0", multi_queue=True), "off.*state: absent"),
        ({"owner": ""}, tap_link("tap0", owner=0), "can't take the owner 0 away from the tap tap0.*state: absent"),
        ({"owner": "bob"}, tap_link("tap0", "", HOLDER, owner=0), "owner of the tap tap0 can't be changed while"),
        ({"group": "kvm", "force": True}, tap_link("tap0", "", HOLDER), "group of the tap tap0 can't be changed"),
        ({}, tap_link("tap0", "", HOLDER, persistent=False), "ends with the program"),
        ({"force": True}, tap_link("tap0", "", HOLDER, persistent=False), "ends with the program"),
        ({}, port_link("tap0"), "no tap but a link of kind veth"),
        ({}, replace(tap_link("tap0"), ethernet=False), "no tap but a link of kind tun"),
        ({"state": "absent", "force": True}, port_link("tap0"), "no tap but a link of kind veth"),
        ({"state": "absent"}, tap_link("tap0", "", HOLDER), "not removed.*force: true"),
        ({"up": False}, tap_link("tap0", "", HOLDER), "not taken down.*force: true"),
        ({"bridge": ""}, tap_link("tap0", "br0", HOLDER), "not taken off br0.*force: true"),
        ({"bridge": "br1"}, tap_link("tap0", "br0", HOLDER), "not taken off br0.*force: true"),
        ({"bridge": "br0"}, tap_link("tap0", "bond0"), "belongs to bond0, which is no bridge"),
        ({"bridge": "br9"}, None, "there is no link of that name"),
        ({"bridge": "eth1"}, None, "it is no bridge but a link of kind veth"),
        ({"isolated": True}, None, "isolated of the tap tap0 need it to be a port"),
        ({"cost": 5, "bridge": ""}, tap_link("tap0", "br0"), "cost of the tap tap0 need"),
        ({"mtu": 65522}, None, "68 to 65521 bytes"),
    ],
)
def test_taps_that_are_refused(arguments: dict[str, Any], link: Link | None, why: str) -> None:
    others = [bridge_link(), bridge_link("br1"), port_link("eth1"), Link("bond0", "bond")]
    with pytest.raises(Refused, match=why):
        tap_operations(tap(**arguments), on=[link, *others] if link else others)


def test_force_cuts_a_guest_off() -> None:
    links = [bridge_link(), bridge_link("br1"), tap_link("tap0", "br0", HOLDER, ipv6=1)]
    assert tap_operations(tap(bridge="br1", force=True), on=links) == ["ip link set dev tap0 master br1"]
    assert tap_operations(tap(up=False, force=True), on=links) == ["ip link set dev tap0 down"]
    assert tap_operations(tap(state="absent", force=True), on=links) == ["ip link delete dev tap0"]


def test_a_held_tap_takes_the_options_that_cut_nobody_off() -> None:
    links = [bridge_link(), tap_link("tap0", "br0", HOLDER, ipv6=1)]
    assert tap_operations(tap(bridge="br0", isolated=True, txqueuelen=9), on=links) == [
        "ip link set dev tap0 txqueuelen 9",
        "ip link set dev tap0 type bridge_slave isolated on",
    ]


def test_bridges_and_taps_of_one_task_know_each_other() -> None:
    both = bridge(ports=["tap1"], ports_mode="exact"), bridge("br1", state="absent")
    made = tap(bridge="br0"), tap("tap1")
    assert tap_operations(*made, bridges=both, on=[bridge_link("br1"), tap_link("tap2", "br1")]) == [
        "ip link add name br0 type bridge",
        "ip tuntap add dev tap0 mode tap user 0",
        "ip link set dev tap0 addrgenmode none",
        "ip tuntap add dev tap1 mode tap user 0",
        "ip link set dev tap1 master br0",
        "ip link set dev tap1 up",
        "ip link set dev tap0 master br0",
        "ip link set dev tap0 up",
        "ip link set dev br0 up",
        "ip link delete dev br1",
    ]
    # A tap that the task puts there is not sent away by an exact list of ports.
    links = [bridge_link(), tap_link("tap0", "br0", ipv6=1)]
    assert tap_operations(made[0], bridges=(bridge(ports=[], ports_mode="exact"),), on=links) == []


@pytest.mark.parametrize(
    ("bridges", "taps", "why"),
    [
        ((bridge(state="absent"),), (tap(bridge="br0"),), "tap0 can't be put on br0: the same task removes it"),
        ((bridge(ports=["tap0"]),), (tap(state="absent"),), "tap0 can't become a port .*: the same task removes it"),
        ((bridge(ports=["tap0"]),), (tap(bridge=""),), "the same task takes it off every bridge"),
        ((bridge(ports=["tap0"]), bridge("br1")), (tap(bridge="br1"),), "a port of both br1 and br0"),
        ((bridge("x"),), (tap("x"),), "x is listed as a bridge and as a tap"),
        ((), (tap(), tap()), "tap tap0 is listed 2 times"),
        ((bridge(), bridge()), (), "bridge br0 is listed 2 times"),
    ],
)
def test_a_task_that_contradicts_itself(bridges: tuple[Bridge, ...], taps: tuple[Tap, ...], why: str) -> None:
    with pytest.raises(Refused, match=why):
        tap_operations(*taps, bridges=bridges, on=[])


# ---------------------------------------------------------------------------------------------------------------------
# VLANs


def vlans(pvid: int = 0, untagged: tuple[int, ...] = (), tagged: tuple[int, ...] = ()) -> Vlans:
    return Vlans(pvid, frozenset(untagged), frozenset(tagged))


def filtering(*ports: Link, own: Vlans | None = None) -> list[Link]:
    """A bridge that filters, its ports, and their VLANs: those of a new port where they have none."""
    links = replace(bridge_link(vlan_filtering=True), vlans=own), *ports
    return [link if link.vlans else replace(link, vlans=Vlans.of_new_port(1)) for link in links]


def test_a_new_bridge_filters_when_everybody_has_his_vlans() -> None:
    desired = bridge(vlan_filtering=True, vlan_default_pvid=0, vlans=["100-110", "5"], ports=["eth1"])
    guest = tap(bridge="br0", pvid=10, ipv6=True)
    assert tap_operations(guest, bridges=(desired,), on=[port_link("eth1")]) == [
        "ip link add name br0 type bridge vlan_default_pvid 0",
        "ip tuntap add dev tap0 mode tap user 0",
        "bridge vlan add dev br0 vid 5 self",
        "bridge vlan add dev br0 vid 100-110 self",
        "ip link set dev eth1 master br0",
        "ip link set dev tap0 master br0",
        "bridge vlan add dev tap0 vid 10 pvid untagged",
        "ip link set dev tap0 up",
        "ip link set dev br0 type bridge vlan_filtering 1",
        "ip link set dev br0 up",
    ]


def test_a_bridge_keeps_what_it_has_untagged() -> None:
    links = filtering(own=vlans(1, (1,), (100, 200)))
    assert operations(bridge(), on=links) == []
    assert operations(bridge(vlans=["200", "300", "1"]), on=links) == [
        "bridge vlan add dev br0 vid 300 self",
        "bridge vlan del dev br0 vid 100 self",
    ]
    assert operations(bridge(vlans=[]), on=links) == [
        "bridge vlan del dev br0 vid 100 self",
        "bridge vlan del dev br0 vid 200 self",
    ]


@pytest.mark.parametrize(
    ("present", "arguments", "expected"),
    [
        # A port of one VLAN: out of that which it had.
        (vlans(1, (1,)), {"pvid": 10}, ["add dev tap0 vid 10 pvid untagged", "del dev tap0 vid 1"]),
        (vlans(10, (10,)), {"pvid": 10}, []),
        (vlans(1, (1,), (20, 21)), {"pvid": 10}, ["add dev tap0 vid 10 pvid untagged", "del dev tap0 vid 1"]),
        (vlans(1, (1,), (10,)), {"pvid": 10}, ["add dev tap0 vid 10 pvid untagged", "del dev tap0 vid 1"]),
        (vlans(1, (1,)), {"pvid": 0}, ["del dev tap0 vid 1"]),
        # More VLANs beside its own.
        (vlans(1, (1,)), {"tagged": ["20-22", 30]}, ["add dev tap0 vid 20-22", "add dev tap0 vid 30"]),
        (vlans(1, (1,), (20, 21, 23)), {"tagged": ["20", "22-23"]}, ["add dev tap0 vid 22", "del dev tap0 vid 21"]),
        (vlans(1, (1,), (20,)), {"tagged": []}, ["del dev tap0 vid 20"]),
        (vlans(1, (1,), (20,)), {"untagged": ["1", "20"]}, ["add dev tap0 vid 20 untagged"]),
        # A PVID whose frames leave with a tag, and one that is a VLAN like others.
        (vlans(1, (1,)), {"tagged": ["1"]}, ["add dev tap0 vid 1 pvid"]),
        (vlans(1, (1,)), {"pvid": 7, "tagged": ["7"]}, ["add dev tap0 vid 7 pvid", "del dev tap0 vid 1"]),
        (vlans(1, (1,)), {"pvid": 7, "untagged": [1, 7]}, ["add dev tap0 vid 7 pvid untagged"]),
        (vlans(1, (1,)), {"pvid": 0, "untagged": [1]}, ["add dev tap0 vid 1 untagged"]),
        (vlans(1, (1,)), {"pvid": 0, "tagged": [1]}, ["add dev tap0 vid 1"]),
    ],
)
def test_vlans_of_a_tap(present: Vlans, arguments: dict[str, Any], expected: list[str]) -> None:
    links = filtering(replace(tap_link("tap0", "br0"), vlans=present))
    plan = make_plan([], Network(links), [tap(**arguments)])
    assert plan.operations == [f"bridge vlan {words}" for words in expected]
    assert undo(plan) == plan.before
    assert make_plan([], plan.after, [tap(**arguments)]).operations == []


def test_the_diff_shows_the_vlans_that_follow() -> None:
    desired = tap(pvid=10)
    plan = make_plan([], Network(filtering(tap_link("tap0", "br0"))), [desired])
    assert given_tap(desired, plan.before).items() >= {"pvid": 1, "untagged": ["1"]}.items()
    assert given_tap(desired, plan.after).items() >= {"pvid": 10, "untagged": ["10"]}.items()
    assert "tagged" not in given_tap(desired, plan.after)


def test_a_port_that_leaves_and_comes_back_has_its_vlans() -> None:
    port = replace(tap_link("tap0", "br0"), vlans=vlans(7, (7,), (8, 9)))
    plan = make_plan([], Network(filtering(port)), [tap(bridge="")])
    assert plan.operations == ["ip link set dev tap0 nomaster"]
    assert plan.after["tap0"].vlans is None
    assert [str(operation) for operation in plan.steps[0].inverse] == [
        "ip link set dev tap0 master br0",
        "ip link set dev tap0 type bridge_slave cost 2",
        "bridge vlan add dev tap0 vid 7 pvid untagged",
        "bridge vlan add dev tap0 vid 8-9",
        "bridge vlan del dev tap0 vid 1",
    ]


def test_a_new_default_pvid_moves_the_ports_that_have_the_old_one() -> None:
    """Fact: __br_vlan_set_default_pvid() in net/bridge/br_vlan.c."""
    states = {
        "default": vlans(1, (1,), (20,)),
        "other": vlans(7, (7,)),
        "tagged": vlans(1, (), (1,)),
        "member": vlans(1, (1,), (5,)),
        "none": vlans(),
    }
    ports = [replace(port_link(name, "br0"), vlans=state) for name, state in states.items()]
    links = [replace(bridge_link(), vlans=Vlans.of_new_port(1)), *ports]
    plan = make_plan([bridge(vlan_default_pvid=5)], Network(links))
    assert plan.operations == ["ip link set dev br0 type bridge vlan_default_pvid 5"]
    assert {name: plan.after[name].vlans for name in ("br0", *states)} == {
        **states,
        "br0": vlans(5, (5,)),
        "default": vlans(5, (5,), (20,)),
    }
    assert undo(plan) == Network(links)
    gone = make_plan([bridge(vlan_default_pvid=0)], Network(links))
    assert gone.after["br0"].vlans == vlans()
    assert gone.after["default"].vlans == vlans(0, (), (20,))
    assert gone.after["other"] == plan.before["other"]
    assert undo(gone) == Network(links)
    # Where there was none, everybody who is no member of it gets it.
    back = make_plan([bridge(vlan_default_pvid=5)], gone.after)
    assert back.after["other"].vlans == vlans(5, (5, 7))
    assert undo(back) == gone.after


def test_a_default_pvid_changes_while_the_bridge_does_not_filter() -> None:
    """Fact: br_vlan_set_default_pvid() answers EPERM to a bridge that filters."""
    desired = bridge(vlan_default_pvid=5)
    switched = [
        "ip link set dev br0 type bridge vlan_filtering 0",
        "ip link set dev br0 type bridge vlan_default_pvid 5",
        "ip link set dev br0 type bridge vlan_filtering 1",
    ]
    used = filtering(port_link("eth1", "br0"))
    with pytest.raises(Refused, match=r"only while it does not filter.*force: true"):
        operations(desired, on=used)
    assert operations(replace(desired, force=True), on=used) == switched
    assert operations(desired, on=filtering()) == switched
    assert operations(bridge(vlan_default_pvid=1, vlan_filtering=True), on=used) == []
    assert operations(bridge(vlan_default_pvid=5, vlan_filtering=False), on=used) == switched[:2]


@pytest.mark.parametrize(
    ("desired", "guest", "why"),
    [
        (bridge(vlans=["10"]), None, "vlans of the bridge br0 would do nothing.*vlan_filtering: true"),
        (bridge(vlans=[]), None, "vlans of the bridge br0 would do nothing"),
        (bridge(vlan_filtering=False), tap(bridge="br0", pvid=10), "VLANs of the tap tap0 would do nothing"),
        (bridge(), tap(bridge="br0", tagged=["10"]), "because its bridge br0 does not filter"),
        (bridge(ports=["tap0"]), tap(tagged=["10"]), "because its bridge br0 does not filter"),
        (bridge(), tap(pvid=10), "VLANs of the tap tap0 need it to be a port"),
        (bridge(), tap(bridge="", untagged=[]), "VLANs of the tap tap0 need it to be a port"),
        (bridge(vlan_filtering=True), tap(bridge="br0", untagged=[2]), "not be a member of VLAN 1, its pvid.*0 stands"),
        (bridge(vlan_filtering=True), tap(bridge="br0", pvid=3, untagged=[2]), "not be a member of VLAN 3, its pvid"),
    ],
)
def test_vlans_that_are_refused(desired: Bridge, guest: Tap | None, why: str) -> None:
    for links in ([], [replace(bridge_link(), vlans=Vlans.of_new_port(1))]):
        with pytest.raises(Refused, match=why):
            make_plan([desired], Network(links), [guest] if guest else [])


def test_a_bridge_without_an_address_gets_no_vlans() -> None:
    """Fact: fdb_add_local() in net/bridge/br_fdb.c; removing them could not be undone."""
    bare = filtering()[0]
    bare = replace(bare, settings={**bare.settings, "mac": "00:00:00:00:00:00"}, mac_pinned=False)
    for arguments in ({"vlans": [5]}, {"vlan_default_pvid": 0}, {"vlan_default_pvid": 5}):
        with pytest.raises(Refused, match="no MAC address since its last port left"):
            operations(bridge(**arguments, vlan_filtering=True), on=[bare])
    assert operations(bridge(vlans=[1], vlan_default_pvid=1), on=[bare]) == []


def test_a_kernel_without_vlans() -> None:
    link = bridge_link()
    link = replace(link, settings={name: link.settings[name] for name in link.settings if name != "vlan_default_pvid"})
    assert operations(bridge(vlan_filtering=False), on=[link]) == []
    for arguments in ({"vlan_filtering": True}, {"vlan_default_pvid": 1}, {"vlan_filtering": True, "vlans": [1]}):
        with pytest.raises(Refused, match="CONFIG_BRIDGE_VLAN_FILTERING"):
            operations(bridge(**arguments), on=[link])


def test_vlans_that_were_not_read_are_left_alone() -> None:
    """Where no bridge filters and no task asks for VLANs."""
    links = [bridge_link(), bridge_link("br1"), tap_link("tap0", "br0", ipv6=1)]
    plan = make_plan([], Network(links), [tap(bridge="br1")])
    assert plan.operations == ["ip link set dev tap0 master br1"]
    assert plan.after["tap0"].vlans is None
    assert undo(plan) == Network(links)


# ---------------------------------------------------------------------------------------------------------------------
# Properties

BRIDGES = ("br0", "br1", "br2")
PORTS = ("p0", "p1", "p2", "p3", "p4")
ADDRESSES = (
    "192.0.2.1/24",
    "192.0.2.2/24",
    "192.0.2.3/24",
    "192.0.2.1/16",
    "198.51.100.1/32",
    "2001:db8::1/64",
    "2001:db8::1/48",
    "2001:db8::2/64",
    "fe80::1/64",
    "10.0.0.1 peer 10.0.0.2/32",
)
VLANS = st.sets(st.sampled_from([1, 2, 3, 4, 5, 4094]))
VLAN_LISTS = st.lists(st.sampled_from(["1", "2", "2-4", "5", "4093-4094"]), unique=True, max_size=3)
DELAYS = st.sampled_from([0, 1, 2, 2.5, 15, 30, 31])
MTUS = st.sampled_from([68, 1279, 1280, 1400, 1500, 9000])


@st.composite
def memberships(draw: st.DrawFn) -> Vlans:
    untagged, tagged = draw(VLANS), draw(VLANS)
    pvid = draw(st.sampled_from([0, *sorted(untagged | tagged)]))
    return Vlans(pvid, frozenset(untagged), frozenset(tagged - untagged))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    links = []
    for name in draw(st.sets(st.sampled_from(BRIDGES))):
        stp = draw(st.booleans())
        delay = draw(st.integers(200, 3000) if stp else st.integers(0, 4000))
        mtu = draw(MTUS)
        texts = draw(st.lists(st.sampled_from(ADDRESSES), unique=True))
        addresses = [Address.parse(text, "") for text in texts]
        unique = {address.ip if address.ipv6 else str(address.key): address for address in addresses}
        kept = tuple(address for address in unique.values() if mtu >= 1280 or not address.ipv6)
        dynamic = draw(st.sets(st.integers(0, len(kept))))
        link = bridge_link(
            name,
            pinned=draw(st.booleans()),
            up=draw(st.booleans()),
            mtu=mtu,
            stp=stp,
            forward_delay=delay,
            ageing_time=draw(st.integers(0, 2**32 - 1)),
            hello_time=draw(st.integers(100, 1000)),
            priority=draw(st.sampled_from([0, 0x8000])),
            multicast_snooping=draw(st.booleans()),
            group_fwd_mask=draw(st.sampled_from([0, 0x4000])),
            alias=draw(st.sampled_from(["", "one"])),
            vlan_filtering=draw(st.booleans()),
            vlan_default_pvid=draw(st.sampled_from([0, 1, 5])),
        )
        marked = (replace(address, dynamic=index in dynamic) for index, address in enumerate(kept))
        # The kernel lists the addresses of one IPv4 subnet by age, like this.
        links.append(replace(link, addresses=tuple(marked), vlans=draw(memberships())))
    masters = ["", *(link.name for link in links)]
    for name in PORTS:
        master = draw(st.sampled_from(masters))
        kind = draw(st.sampled_from(["veth", "idle tap", "held tap", "guest's tap"]))
        link = port_link(name, master, up=draw(st.booleans()), mtu=draw(MTUS))
        if master:
            settings = {**link.settings, "isolated": draw(st.booleans()), "cost": 5}
            link = replace(link, settings=settings, vlans=draw(memberships()))
        if kind != "veth":
            holder = "" if kind == "idle tap" else kind
            tun: dict[str, Value] = {
                "owner": draw(st.sampled_from([NOBODY, 0, 1000])),
                "group": draw(st.sampled_from([NOBODY, 107])),
                "multi_queue": draw(st.booleans()),
                "vnet_hdr": draw(st.booleans()),
                "packet_info": False,
                "txqueuelen": 1000,
                "ipv6": draw(st.sampled_from([0, 1, 2])),
            }
            link = replace(
                link, kind="tun", persistent=kind != "guest's tap", holder=holder, settings={**link.settings, **tun}
            )
        links.append(link)
    return Network(links)


@st.composite
def desires(draw: st.DrawFn) -> list[Bridge]:
    free = list(PORTS)
    found = []
    for name in draw(st.lists(st.sampled_from(BRIDGES), unique=True, min_size=1)):
        arguments: dict[str, Any] = {
            "state": draw(st.sampled_from(["present"] * 4 + ["absent"])),
            "force": draw(st.booleans()),
            "up": draw(st.sampled_from([True, False, None])),
            "mtu": draw(st.none() | MTUS),
            "mac": draw(st.sampled_from([None, MAC, OTHER_MAC, "stable"])),
            "stp": draw(st.sampled_from([None, False, True])),
            "forward_delay": draw(st.none() | DELAYS),
            "ageing_time": draw(st.none() | DELAYS),
            "hello_time": draw(st.sampled_from([None, 1, 2.5, 10])),
            "max_age": draw(st.sampled_from([None, 6, 20, 40])),
            "priority": draw(st.sampled_from([None, 0, 0x8000, 0xFFFF])),
            "multicast_snooping": draw(st.sampled_from([None, False, True])),
            "multicast_querier": draw(st.sampled_from([None, False, True])),
            "group_fwd_mask": draw(st.sampled_from([None, 0, 8, 0xFFF8])),
            "alias": draw(st.sampled_from([None, "", "one", "two words"])),
            "vlan_filtering": draw(st.sampled_from([None, None, False, True])),
            "vlan_default_pvid": draw(st.sampled_from([None, None, 0, 1, 5])),
            "ports_mode": draw(st.sampled_from(["append", "exact"])),
            "addresses_mode": draw(st.sampled_from(["append", "exact"])),
        }
        if draw(st.booleans()):
            arguments["ports"] = draw(st.lists(st.sampled_from(free), unique=True)) if free else []
            free = [port for port in free if port not in arguments["ports"]]
        if draw(st.booleans()):
            texts = draw(st.lists(st.sampled_from(ADDRESSES), unique=True))
            # One IPv6 address with two prefix lengths can't be had at once.
            arguments["addresses"] = list(
                {text.split("/")[0] if ":" in text else text: text for text in texts}.values()
            )
        if arguments["vlan_filtering"]:
            arguments["vlans"] = draw(st.none() | VLAN_LISTS)
        found.append(bridge(name, **arguments))
    return found


@st.composite
def tap_desires(draw: st.DrawFn) -> list[Tap]:
    found = []
    for name in draw(st.lists(st.sampled_from(["p0", "p1", "t0", "t1"]), unique=True, max_size=2)):
        arguments: dict[str, Any] = {
            "state": draw(st.sampled_from(["present"] * 4 + ["absent"])),
            "force": draw(st.booleans()),
            "up": draw(st.sampled_from([True, False, None])),
            "mtu": draw(st.sampled_from([None, None, 1280, 9000])),
            "mac": draw(st.sampled_from([None, OTHER_MAC])),
            "alias": draw(st.sampled_from([None, "", "one"])),
            "txqueuelen": draw(st.sampled_from([None, 0, 1000])),
            "ipv6": draw(st.sampled_from([None, True, False])),
            "owner": draw(st.sampled_from([None, None, "alice", "0", ""])),
            "group": draw(st.sampled_from([None, "kvm"])),
            "multi_queue": draw(st.sampled_from([None, None, True])),
            "bridge": draw(st.sampled_from([None, "", *BRIDGES])),
        }
        if arguments["bridge"]:
            arguments["isolated"] = draw(st.sampled_from([None, True, False]))
            arguments["cost"] = draw(st.sampled_from([None, 5, 7]))
            if draw(st.booleans()):
                arguments["pvid"] = draw(st.sampled_from([None, 0, 1, 5]))
                arguments["tagged"] = draw(st.none() | VLAN_LISTS)
        found.append(tap(name, **arguments))
    return found


@settings(max_examples=150, deadline=None)
@for_all(desires(), tap_desires(), networks())
def test_properties(desired: list[Bridge], taps: list[Tap], network: Network) -> None:
    """One test for all of them, because making up a network takes longer than planning for it."""
    before = network.copy()
    try:
        plan = make_plan(desired, network, taps)
    except Refused:
        assume(False)
        raise
    assert network == before
    a_reached_state_needs_nothing(plan)
    undoing_restores(plan)
    what_can_not_be_undone_comes_last(plan)
    what_is_not_asked_for_stays(plan)
    the_kernel_would_take_every_operation(plan)


def a_reached_state_needs_nothing(plan: Plan) -> None:
    assert make_plan(plan.bridges, plan.after, plan.taps).operations == []


def undoing_restores(plan: Plan) -> None:
    if any(isinstance(step.operation, DeleteLink) for step in plan.steps):
        return
    if any(isinstance(step.operation, GiveTap) and not step.inverse for step in plan.steps):
        return
    assert comparable(undo(plan)) == comparable(plan.before)


def comparable(network: Network) -> list[Any]:
    """A network without what no undoing restores, a MAC address that is not pinned, and without idle order.

    The order of addresses says something among those of one IPv4 subnet only: which is the first.
    """
    links = []
    for link in sorted(network, key=lambda link: link.name):
        subnets: dict[str, list[Address]] = {}
        for address in link.addresses:
            subnets.setdefault(str(address.key) if address.ipv6 else address.subnet, []).append(address)
        # Not the order of those behind the first: one that left the middle comes back at the end.
        ordered = {subnet: (each[0], {other.key: other for other in each[1:]}) for subnet, each in subnets.items()}
        links.append((replace(link, mac_pinned=None, addresses=()), ordered))
    return links


def what_can_not_be_undone_comes_last(plan: Plan) -> None:
    final = [2 * isinstance(step.operation, DeleteLink) or isinstance(step.operation, GiveTap) for step in plan.steps]
    assert final == sorted(final)


def what_is_not_asked_for_stays(plan: Plan) -> None:
    wishes = {each.name: each for each in plan.bridges}
    vlans_stay(plan)
    listed = {port for each in plan.bridges for port in each.ports or ()}
    taps = {each.name: each for each in plan.taps}
    for link in plan.before:
        wish, owner = wishes.get(link.name), wishes.get(link.master)
        if link.name in taps:
            wanted = taps[link.name]
            if not wanted.present:
                assert link.name not in plan.after
                continue
            after = plan.after[link.name]
            for option in (*TAP_LINK_OPTIONS, *COMPARED_TUN_OPTIONS):
                if option.name not in wanted.settings and (option is not UP or link.name not in listed):
                    assert after.settings[option.name] == link.settings[option.name]
            if after.master and after.master == link.master:
                for option in TAP_PORT_OPTIONS:
                    if option.name not in wanted.port_settings:
                        assert after.settings[option.name] == link.settings[option.name]
        elif wish is not None and not wish.present:
            assert link.name not in plan.after
        elif wish is not None:
            after = plan.after[link.name]
            for option in (UP, MTU, ADDRESS, ALIAS, *BRIDGE_OPTIONS):
                if option.name not in wish.settings:
                    assert after.settings[option.name] == link.settings[option.name]
            if wish.addresses is None:
                assert {each.key for each in after.static_addresses} == {each.key for each in link.static_addresses}
            ipv4 = {each.key for each in link.addresses if each.dynamic and not each.ipv6}
            assert ipv4 <= {each.key for each in after.addresses}
        elif link.name not in listed and (owner is None or (owner.present and (link.holder or not owner.ports_exact))):
            assert replace(plan.after[link.name], vlans=link.vlans) == link


def vlans_stay(plan: Plan) -> None:
    """Of a port that stays where it is, and of a bridge, but for what a new default PVID does to them."""
    asked = {each.name for each in (*plan.bridges, *plan.taps) if each.vlans is not None}
    for link in plan.before:
        after = plan.after.get(link.name)
        if link.vlans is None or after is None or after.master != link.master or link.name in asked:
            continue
        old, new = (network[link.master or link.name].settings for network in (plan.before, plan.after))
        pvids = int(old[VLAN_DEFAULT_PVID.name]), int(new[VLAN_DEFAULT_PVID.name])
        assert after.vlans == (link.vlans if pvids[0] == pvids[1] else link.vlans.after_default(*pvids))


def the_kernel_would_take_every_operation(plan: Plan) -> None:
    """Each operation, at its time, is one that the kernel neither refuses nor bends."""
    state = plan.before.copy()
    for step in plan.steps:
        operation = step.operation
        link = state.get(operation.name)
        if isinstance(operation, CreateBridge):
            assert link is None
            created: dict[str, Value] = {STP.name: False, FORWARD_DELAY.name: 1500, **operation.settings}
            assert not created[STP.name] or 200 <= int(created[FORWARD_DELAY.name]) <= 3000
        elif isinstance(operation, CreateTap):
            assert link is None
        else:
            assert link is not None
            if isinstance(operation, SetMaster):
                assert not operation.master or state[operation.master].is_bridge
                assert link.master != operation.master
            elif isinstance(operation, Set):
                changed = {**link.settings, operation.option.name: operation.value}
                if operation.option in (STP, FORWARD_DELAY):
                    assert not changed[STP.name] or 200 <= int(changed[FORWARD_DELAY.name]) <= 3000
                if operation.option is VLAN_DEFAULT_PVID:
                    assert not link.filters_vlans
                if operation.option is MTU:
                    assert 68 <= int(operation.value) <= 65535
            elif isinstance(operation, ChangeVlans):
                assert link.vlans is not None and operation.own is link.is_bridge
                members = set(range(operation.first, operation.last + 1))
                assert min(members) >= 1 and max(members) <= 4094
                if isinstance(operation, RemoveVlans):
                    assert members <= link.vlans.members
                if isinstance(operation, AddVlans) and operation.pvid:
                    assert len(members) == 1
            elif isinstance(operation, GiveTap):
                assert link.is_tap and link.persistent and not link.holder and operation.value != NOBODY
            elif isinstance(operation, AddAddress) and operation.address.ipv6:
                assert int(link.settings["mtu"]) >= 1280
                assert operation.address.ip not in {each.ip for each in link.addresses}
            elif isinstance(operation, RemoveAddress):
                assert operation.address.key in {each.key for each in link.addresses}
        operation.apply(state)
    assert state == plan.after
