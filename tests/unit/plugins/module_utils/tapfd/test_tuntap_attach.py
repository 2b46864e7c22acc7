# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taps made, inspected and put on bridges, in the real kernel; iproute2 as the witness."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import attach, tuntap
from support.namespaces import Sandbox, ip
from support.user import User

TAP = tuntap.IFF_TAP | tuntap.IFF_NO_PI


def shown(name: str) -> dict[str, Any]:
    """What `ip` shows of an interface."""
    (link,) = json.loads(ip("-json", "-details", "link", "show", "dev", name))
    return dict(link)


@pytest.fixture
def bridge(sandbox: Sandbox) -> attach.Link:
    """br0, up, with an MTU of its own and an alternative name."""
    ip("link", "add", "br0", "mtu", "9000", "type", "bridge")
    ip("link", "set", "br0", "up", "addrgenmode", "none")
    ip("link", "property", "add", "dev", "br0", "altname", "uplink")
    return attach.get_link(b"br0")


@pytest.fixture
def tap(bridge: attach.Link) -> Iterator[int]:
    """The descriptor of a new tap, tap0."""
    tun = tuntap.open_tun()
    assert tuntap.create(tun, b"tap%d", TAP) == b"tap0"
    yield tun
    os.close(tun)


@pytest.fixture
def rtnetlink(sandbox: Sandbox) -> Iterator[attach.Rtnetlink]:
    connection = attach.Rtnetlink()
    yield connection
    connection.close()


@pytest.mark.parametrize("vnet_hdr", [False, True])
def test_create_and_query(sandbox: Sandbox, vnet_hdr: bool) -> None:
    """0x1002 and 0x5002 are what QEMU's helper makes; the device goes with its descriptor."""
    flags = TAP | (tuntap.IFF_VNET_HDR if vnet_hdr else 0)
    tun = tuntap.open_tun()
    assert tuntap.features(tun) & flags == flags
    assert tuntap.create(tun, b"tap%d", flags) == b"tap0"
    assert tuntap.query(tun) == (b"tap0", flags)
    assert flags == (0x5002 if vnet_hdr else 0x1002)
    data = shown("tap0")["linkinfo"]["info_data"]
    assert (data["type"], data["pi"], data["vnet_hdr"], data["persist"]) == ("tap", False, vnet_hdr, False)
    os.close(tun)
    assert "tap0" not in os.listdir("/sys/class/net")


def test_descriptor_is_not_inherited(sandbox: Sandbox) -> None:
    tun = tuntap.open_tun()
    assert not os.get_inheritable(tun)
    os.close(tun)


def test_lowest_free_number(tap: int) -> None:
    second = tuntap.open_tun()
    assert tuntap.create(second, b"tap%d", TAP) == b"tap1"
    os.close(second)


def test_name_that_does_not_fit(sandbox: Sandbox) -> None:
    """The kernel would cut it (research: pyroute2 lets it)."""
    tun = tuntap.open_tun()
    with pytest.raises(ValueError, match="16 bytes, 15 at most"):
        tuntap.create(tun, b"x" * 16, TAP)
    assert tuntap.create(tun, b"x" * 15, TAP) == b"x" * 15
    os.close(tun)


@pytest.mark.parametrize("number", [0, 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE])
def test_a_persistent_tap_with_owner_and_group(sandbox: Sandbox, number: int) -> None:
    tun = tuntap.open_tun()
    tuntap.create(tun, b"tap0", tuntap.IFF_TAP | tuntap.IFF_NO_PI | tuntap.IFF_TUN_EXCL | tuntap.IFF_MULTI_QUEUE)
    tuntap.set_owner(tun, number)
    tuntap.set_group(tun, number)
    tuntap.set_persistent(tun)
    os.close(tun)
    shown = {name: int(Path(f"/sys/class/net/tap0/{name}").read_text(), 0) for name in ("owner", "group", "tun_flags")}
    assert {shown["owner"] & 0xFFFFFFFF, shown["group"] & 0xFFFFFFFF} == {number}
    # <linux/if_tun.h>: IFF_PERSIST is 0x0800
    assert shown["tun_flags"] & 0x0800 and shown["tun_flags"] & tuntap.IFF_MULTI_QUEUE
    # EXCL: an existing one is never attached to.
    tun = tuntap.open_tun()
    with pytest.raises(OSError) as caught:
        tuntap.create(tun, b"tap0", tuntap.IFF_TAP | tuntap.IFF_TUN_EXCL | tuntap.IFF_MULTI_QUEUE)
    os.close(tun)
    assert caught.value.errno == errno.EBUSY


def test_no_tun(sandbox: Sandbox) -> None:
    sandbox.make_tun(None)
    with pytest.raises(OSError) as caught:
        tuntap.open_tun()
    assert caught.value.errno == errno.ENOENT


def test_query_of_what_is_no_tap(sandbox: Sandbox) -> None:
    with open("/dev/null", "rb") as file, pytest.raises(OSError) as caught:
        tuntap.query(file.fileno())
    assert caught.value.errno == errno.ENOTTY


def test_query_of_a_tun(sandbox: Sandbox) -> None:
    tun = tuntap.open_tun()
    tuntap.create(tun, b"tun%d", tuntap.IFF_TUN)
    name, flags = tuntap.query(tun)
    assert (name, flags & tuntap.IFF_TAP) == (b"tun0", 0)
    os.close(tun)


def test_link(bridge: attach.Link) -> None:
    seen = shown("br0")
    assert (bridge.name, bridge.kind, bridge.mtu, bridge.up) == (b"br0", b"bridge", 9000, True)
    assert (bridge.index, bridge.address.hex(":"), bridge.master) == (seen["ifindex"], seen["address"], 0)


def test_link_without_kind(sandbox: Sandbox) -> None:
    link = attach.get_link(b"lo")
    assert (link.name, link.kind, link.mtu) == (b"lo", None, 65536)


def test_missing_link(sandbox: Sandbox) -> None:
    with pytest.raises(OSError) as caught:
        attach.get_link(b"br9")
    assert caught.value.errno == errno.ENODEV


def test_altname_finds_the_link_under_its_name(bridge: attach.Link) -> None:
    """The fact for which the helper compares names: the kernel answers a question for an alternative name."""
    assert attach.get_link(b"uplink").name == b"br0"


def test_attach(bridge: attach.Link, tap: int, rtnetlink: attach.Rtnetlink) -> None:
    index = rtnetlink.index_of(tap)
    rtnetlink.prepare(index, bytes.fromhex("fe0102030405"), bridge.mtu)
    rtnetlink.enslave(index, bridge.index)
    seen = shown("tap0")
    assert (seen["ifindex"], seen["address"], seen["mtu"]) == (index, "fe:01:02:03:04:05", 9000)
    assert (seen["master"], "UP" in seen["flags"], seen["inet6_addr_gen_mode"]) == ("br0", True, "none")
    assert attach.get_link(b"tap0").master == bridge.index
    assert shown("br0")["mtu"] == 9000
    assert json.loads(ip("-json", "-6", "address", "show", "dev", "tap0")) in ([], [{}])


def test_prepare_where_ipv6_is_off(bridge: attach.Link, tap: int, rtnetlink: attach.Rtnetlink) -> None:
    """Below 1280 bytes of MTU a device has no IPv6, and the kernel refuses every message that speaks of it."""
    ip("link", "set", "tap0", "mtu", "1000", "up")
    rtnetlink.prepare(rtnetlink.index_of(tap), bytes.fromhex("fe0102030405"), 1000)
    assert (shown("tap0")["address"], shown("tap0")["mtu"]) == ("fe:01:02:03:04:05", 1000)


def test_index_of_a_renamed_tap(bridge: attach.Link, tap: int, rtnetlink: attach.Rtnetlink) -> None:
    """The descriptor leads to the index, whatever the device is called by now and whoever has its old name."""
    ip("link", "set", "tap0", "name", "other")
    ip("link", "add", "tap0", "type", "bridge")
    assert rtnetlink.index_of(tap) == shown("other")["ifindex"]


def test_kernel_sentence(bridge: attach.Link, tap: int, rtnetlink: attach.Rtnetlink) -> None:
    """An error carries the kernel's own words (NETLINK_EXT_ACK) beside the errno."""
    with pytest.raises(OSError) as caught:
        rtnetlink.prepare(rtnetlink.index_of(tap), bytes.fromhex("fe0102030405"), 70000)
    assert (caught.value.errno, caught.value.strerror) == (errno.EINVAL, "mtu greater than device maximum")


def test_enslave_to_what_is_no_bridge(bridge: attach.Link, tap: int, rtnetlink: attach.Rtnetlink) -> None:
    with pytest.raises(OSError) as caught:
        rtnetlink.enslave(rtnetlink.index_of(tap), attach.get_link(b"lo").index)
    assert caught.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)


def test_without_capability(bridge: attach.Link, tap: int, rtnetlink: attach.Rtnetlink) -> None:
    """Looking is open to everybody, changing is not."""
    user = User(4001)
    assert user.call(_denied_errno) == errno.EPERM
    user.close()


def _denied_errno() -> int | None:
    assert attach.get_link(b"br0").kind == b"bridge"
    connection = attach.Rtnetlink()
    try:
        connection.enslave(attach.get_link(b"tap0").index, attach.get_link(b"br0").index)
    except OSError as error:
        return error.errno
    finally:
        connection.close()
    return None
