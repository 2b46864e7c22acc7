# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter netdev beside QEMU's own parser.

One law: what the filter accepts, QEMU parses, and what the filter refuses, QEMU refuses. The second half has
exceptions, which are named here.

QEMU makes its network backends before its devices. So a device that does not exist ends it in some 50 ms, and QEMU's
complaint about the device says that it had no complaint about the backend.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.hostnet.qemu.plugins.filter.netdev import BRIDGE, TAP, netdev
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hosts import Host, release_host, this_host
from support.install import LAUNCHER
from support.namespaces import Sandbox, ip
from support.qemu import QEMU, Debian

# <linux/if_tun.h>
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_MULTI_QUEUE = 0x0100
# Where the test process has a tap's descriptors open: of a tap with one queue, and of one with two.
SINGLE = 40
QUEUES = [41, 42]
NO_TAP = 43

# What QEMU says after it has parsed the options, of a host that has not what they ask for.
LATER = re.compile(
    r": (bridge helper failed|could not configure /dev/net/tun.*|network script .* failed with status .*"
    r"|.*: Can't use file descriptor \d+: .*|Unable to query TUNGETIFF on FD \d+: .*|TUNSETSNDBUF ioctl failed: .*"
    r"|tap: open vhost char device failed: .*|vhost-net requested but could not be initialized"
    r"|Could not open '/dev/vhost-net': .*|Can't set file descriptor \d+ non-blocking: .*"
    r"|vnet_hdr not consistent across given tap fds)$",
    re.MULTILINE,
)
# QEMU 7.2 goes on without vhost-net where it can't be had, with -netdev as far as a failed assertion.
NO_VHOST = re.compile(r"warning: (tap: open vhost char device failed|vhost-net requested)|Can't use file descriptor")
# What the filter refuses, and QEMU lets pass.
STRICTER = re.compile(r"br= is invalid with |would be read by a shell|can't be the name of a link|helper is empty")


# Those of net_init_tap() up to QEMU 10; QEMU 11 has others, and lets pass what is in ALLOWED.
SENTENCES = re.compile(
    r"ifname=.* are invalid with (fd|fds|helper)=|vhostfds= is invalid if fds= wasn't specified"
    r"|The number of fds passed does not match the number of vhostfds passed|vhostfd\(s\)= is not valid without vhost"
    r"|Multiqueue tap cannot be used with hubs"
)
ALLOWED = re.compile(r"Multiqueue tap cannot be used with hubs|vhostfds= is invalid if|, and vhostfds= are invalid")


def ask(host: Host, option: str, argument: str) -> str:
    """What QEMU says of this argument, warnings too; an empty string if nothing."""
    command = host.command(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none")
    done = subprocess.run(
        [*command, option, argument, "-device", "no-such-device"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        pass_fds=[SINGLE, *QUEUES, NO_TAP],
        check=False,
    )
    said = done.stderr.decode(errors="replace")
    assert done.returncode != 0, said
    return re.split(r"^.*: 'no-such-device' is not a valid device model name$", said, maxsplit=1, flags=re.MULTILINE)[0]


def modern(host: Host) -> bool:
    """Whether QEMU has the rules of 11 and later."""
    return int(host.version().split(".")[0]) >= 11


def parsed(said: str) -> bool:
    """Whether QEMU has understood the option of which it says this."""
    return not said or bool(LATER.search(said) or NO_VHOST.search(said))


def written(options: dict[str, Any]) -> str:
    """The options as somebody writes them who knows no rules."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return "on" if value else "off"
        return ":".join(map(str, value)) if isinstance(value, list) else str(value).replace(",", ",,")

    kind = options["type"]
    return ",".join([kind, *(f"{key}={text(value)}" for key, value in options.items() if key != "type")])


def open_tap(name: bytes, flags: int, descriptor: int) -> None:
    """Have a tap, or one more queue of it, open as this descriptor."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags))
    os.dup2(tun, descriptor, inheritable=False)
    os.close(tun)


@pytest.fixture
def host(release: tuple[str, Path | None], debian: Debian, sandbox: Sandbox) -> Iterator[Host]:
    """A host with QEMU, our helper, br0, and taps that are open already."""
    _suite, tree = release
    acl = "allow br0\n"
    host = release_host(sandbox, tree, acl) if tree else this_host(sandbox, debian, acl)
    for script in (Path("/etc/qemu-ifup"), Path("/etc/qemu-ifdown")):
        host.put(script, b"#!/bin/sh\n", 0o755)
    ip("link", "add", "br0", "type", "bridge")
    open_tap(b"single", 0, SINGLE)
    for descriptor in QUEUES:
        open_tap(b"queues", IFF_MULTI_QUEUE, descriptor)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, NO_TAP, inheritable=False)
    os.close(null)
    yield host
    for descriptor in (SINGLE, *QUEUES, NO_TAP):
        os.close(descriptor)


numbers = st.sampled_from([SINGLE, QUEUES[0], NO_TAP, 99])
lists = st.sampled_from([QUEUES, [SINGLE], [99, 98], [NO_TAP]])
words = st.booleans() | st.sampled_from(["on", "off", "yes", "no", "true", "n", "1", "", "enable"])
scripts = st.sampled_from(["no", "no", "", "/bin/true", "/no/such, script", "/bin/false"])
# Mostly what works, so that most of the examples tell something of the rest of the options.
values: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["hn0", "hn0", "A", "a-b.c_d", "", "0a", "-a", "a b", "a,b", "ä", "#a"]),
    "br": st.sampled_from(["br0", "br0", "br0", "br1", "br,0", "br0;true"]),
    "helper": st.sampled_from([str(LAUNCHER), f"{LAUNCHER} --br=br0", "/bin/true", "/no/such,helper", f"{LAUNCHER} "]),
    "ifname": st.sampled_from(["tap0", "vm%d", "a,b", "a234567890123456", "br0"]),
    "script": scripts,
    "downscript": scripts,
    "fd": numbers | st.sampled_from([-1, "tap", "", "0x28", 1 << 31]),
    "fds": lists,
    "vhostfd": numbers | st.sampled_from([-1, "vhost"]),
    "vhostfds": lists,
    "sndbuf": st.integers(0, 1 << 70)
    | st.from_regex(r"\A[0-9]{1,3}(\.[0-9]{1,3})?[bBkKmMgGtTpPeExX]?\Z")
    | st.sampled_from(["", "k", "-1", "1.5", "1e3", "1 k", "16E", "15.9E"]),
    "vnet_hdr": words,
    "vhost": words,
    "vhostforce": words,
    "queues": st.integers(0, 5) | st.sampled_from([257, -1, 1 << 32, "", "two"]),
    "poll-us": st.integers(0, 1 << 33) | st.sampled_from([-1, "ten", ""]),
}


@st.composite
def backends(draw: st.DrawFn) -> dict[str, Any]:
    """The options of a backend, most of which are right, though they may not go together."""
    kind = draw(st.sampled_from(["tap", "tap", "bridge"]))
    way = draw(st.sampled_from([["ifname", "script", "downscript"], ["fd"], ["fds"], ["helper", "br"], ["helper"], []]))
    known = sorted(TAP if kind == "tap" else BRIDGE)
    more = draw(st.lists(st.sampled_from(known), max_size=2)) if kind == "tap" else ["br", "helper"]
    names = dict.fromkeys(
        key for key in [*draw(st.sampled_from([["id"], ["id"], ["id"], []])), *way, *more] if key in known
    )
    return {"type": kind, **{key: draw(values[key]) for key in names}}


def compare(host: Host, option: str, options: dict[str, Any]) -> str:
    """Have the filter and QEMU judge these options, fail unless they agree, and return how they did."""
    try:
        argument = netdev(options, legacy=option == "-net")
    except AnsibleFilterError as error:
        said = ask(host, option, written(options))
        if STRICTER.search(str(error)):
            return "stricter"
        if not said:
            assert ALLOWED.search(str(error)) and modern(host), (written(options), error)
            return "stricter"
        # The sentences of QEMU's rules. It comes to the one about vhost after it has opened the tap.
        sentence = SENTENCES.search(str(error))
        assert not sentence or sentence[0] in said or LATER.search(said) or modern(host), (error, said)
        return "rule" if sentence else "value"
    said = ask(host, option, argument)
    assert parsed(said), (argument, said)
    return "failed" if said else "made"


@pytest.mark.parametrize("option", ["-netdev", "-net"])
def test_generated_options(host: Host, option: str) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    @given(backends())
    def judge(options: dict[str, Any]) -> None:
        seen[compare(host, option, options)] += 1

    judge()
    assert min(seen["made"], seen["value"]) >= 3, seen


@pytest.mark.parametrize("option", ["-netdev", "-net"])
def test_every_pair_of_options(host: Host, option: str) -> None:
    """All that net_init_tap() excludes, and nothing else, with values that are right by themselves."""
    right: dict[str, Any] = {
        **{"ifname": "tap0", "fd": SINGLE, "fds": QUEUES, "script": "no", "downscript": "no", "br": "br0"},
        **{"helper": str(LAUNCHER), "sndbuf": 4096, "vnet_hdr": True, "vhost": False, "vhostfd": NO_TAP},
        **{"vhostfds": [NO_TAP, NO_TAP], "vhostforce": True, "queues": 2, "poll-us": 5},
    }
    assert {"id", *right} == set(TAP)
    seen = Counter(
        compare(host, option, {"type": "tap", "id": "hn0", **{key: right[key] for key in pair}})
        for pair in itertools.combinations(right, 2)
    )
    assert min(seen["made"], seen["rule"]) >= 20, seen


def test_a_value_arrives_as_it_was_given(host: Host) -> None:
    """Whatever is in the name of a script, and above all commas: QEMU finds exactly that file."""
    directory = host.scratch / "scripts"
    host.put(directory / "true", b"#!/bin/sh\n", 0o755)

    @settings(max_examples=30, deadline=None)
    @given(st.text(st.sampled_from(",,,=: .\"'\\;$%-\n\u00e9\u4e2dab"), min_size=1, max_size=20))
    def find(name: str) -> None:
        script = directory / f"script{name}"
        host.outside(script).symlink_to("true")
        try:
            options = {"type": "tap", "id": "hn0", "script": str(script), "downscript": "no", "vhost": False}
            assert ask(host, "-netdev", netdev(options)) == ""
        finally:
            host.outside(script).unlink()

    find()
