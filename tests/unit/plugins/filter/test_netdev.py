# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter netdev by itself: what it writes, and in which words it refuses.

That QEMU agrees is shown in tests/integration/test_netdev.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.hostnet.qemu.plugins.filter import netdev as plugin
from hypothesis import given
from hypothesis import strategies as st
from support.install import ROOT

netdev = plugin.netdev
TAP = {"type": "tap", "id": "hn0"}
BRIDGE = {"type": "bridge", "id": "hn0"}
HELPER = "/usr/local/libexec/qemu-bridge-helper"


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        (BRIDGE, "bridge,id=hn0"),
        ({**BRIDGE, "helper": HELPER, "br": "br1"}, f"bridge,id=hn0,br=br1,helper={HELPER}"),
        ({**TAP, "br": "br0", "helper": HELPER}, f"tap,id=hn0,br=br0,helper={HELPER}"),
        ({**TAP, "helper": "/h --br=br1"}, "tap,id=hn0,helper=/h --br=br1"),
        ({**TAP, "helper": "/a,b,,c,", "sndbuf": 0}, "tap,id=hn0,helper=/a,,b,,,,c,,,sndbuf=0"),
        ({**TAP, "ifname": "tap0", "script": "no", "downscript": ""}, "tap,id=hn0,ifname=tap0,script=no,downscript="),
        ({**TAP, "ifname": "vm%d"}, "tap,id=hn0,ifname=vm%d"),
        ({**TAP, "fd": 3, "vhost": True, "vhostfd": "4"}, "tap,id=hn0,fd=3,vhost=on,vhostfd=4"),
        ({**TAP, "fd": "{fd}"}, "tap,id=hn0,fd={fd}"),
        ({**TAP, "fd": "{fd1}"}, "tap,id=hn0,fd={fd1}"),
        ({**TAP, "fds": [3, "4"], "vhostfds": "5:6"}, "tap,id=hn0,fds=3:4,vhostfds=5:6"),
        (
            {**TAP, "vnet_hdr": "no", "vhost": "On", "vhostforce": "False"},
            "tap,id=hn0,vnet_hdr=off,vhost=on,vhostforce=off",
        ),
        ({**TAP, "queues": 256, "poll_us": 4294967295}, "tap,id=hn0,queues=256,poll-us=4294967295"),
        ({**TAP, "poll-us": "0"}, "tap,id=hn0,poll-us=0"),
        ({**TAP, "sndbuf": "1.5M"}, "tap,id=hn0,sndbuf=1.5M"),
        ({**TAP, "ifname": None, "queues": None}, "tap,id=hn0"),
    ],
)
def test_netdev(options: dict[str, Any], argument: str) -> None:
    assert netdev(options) == argument


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"type": "bridge"}, "bridge"),
        ({"type": "bridge", "br": "br1"}, "bridge,br=br1"),
        ({"type": "tap", "helper": HELPER}, f"tap,helper={HELPER}"),
        ({**TAP, "fd": 3}, "tap,id=hn0,fd=3"),
    ],
)
def test_net(options: dict[str, Any], argument: str) -> None:
    """With -net, the id may be missing."""
    assert netdev(options, legacy=True) == argument
    assert netdev(options, legacy="on") == argument


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # QEMU's sentences, net/tap.c.
        (
            {**TAP, "fd": 3, "ifname": "tap0", "queues": 2},
            "netdev hn0: ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid "
            "with fd=; given: ifname, queues",
        ),
        (
            {**TAP, "fds": [3], "vhostfd": 4},
            "netdev hn0: ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, and vhostfd= are invalid with "
            "fds=; given: vhostfd",
        ),
        (
            {**TAP, "helper": HELPER, "script": "no"},
            "netdev hn0: ifname=, script=, downscript=, vnet_hdr=, queues=, and vhostfds= are invalid with helper=; "
            "given: script",
        ),
        ({**TAP, "vhostfds": [4]}, "netdev hn0: vhostfds= is invalid if fds= wasn't specified"),
        (
            {**TAP, "fds": [3, 4], "vhostfds": [5]},
            "netdev hn0: The number of fds passed does not match the number of vhostfds passed",
        ),
        ({**TAP, "fd": 3, "vhost": False, "vhostfd": 4}, "netdev hn0: vhostfd(s)= is not valid without vhost"),
        ({**TAP, "fds": [3], "vhost": "off", "vhostfds": [4]}, "netdev hn0: vhostfd(s)= is not valid without vhost"),
        (
            {**TAP, "queues": 2, "vhostfd": 4},
            "netdev hn0: expected 2 socket fds, got 1: vhostfd= is for a tap",
        ),
        # The sentence of the first -net bridge.
        ({**TAP, "br": "br0"}, "netdev hn0: br= is invalid with script=; only a helper puts the tap on a bridge"),
        ({**TAP, "br": "br0", "fd": 3}, "netdev hn0: br= is invalid with fd=; only a helper puts"),
        ({**TAP, "br": "br0", "fds": [3]}, "netdev hn0: br= is invalid with fds=; only a helper puts"),
        # What would be a command of a shell.
        ({**BRIDGE, "br": "a;b", "helper": "/h -v"}, "netdev hn0: br 'a;b' (a string) would be read by a shell"),
        # Keys.
        ({}, "netdev: type is missing; it is one of bridge, tap"),
        ({"type": "user", "id": "a"}, "netdev a: type must be one of bridge, tap, and is 'user' (a string)"),
        ({"type": "tap"}, "netdev: id is missing; only -net (legacy=true) goes without"),
        ({**BRIDGE, "ifname": "a"}, "netdev hn0: ifname is no option of type bridge; known are type, id, br, helper"),
        ({**TAP, "bridge": "a"}, "netdev hn0: bridge is no option of type tap; known are type, id, ifname, fd, fds, "),
        ({**TAP, 7: "a"}, "netdev hn0: 7 (an integer) is no option of type tap"),
        ({**TAP, "poll_us": 1, "poll-us": 1}, "netdev hn0: poll-us is given twice"),
        # Values.
        ({"type": "tap", "id": "1a"}, "netdev 1a: id expects an identifier"),
        ({"type": "tap", "id": ""}, "netdev : id expects an identifier"),
        ({"type": "tap", "id": "a\n"}, "id expects an identifier"),
        ({"type": "tap", "id": "\u00e4"}, "id expects an identifier"),
        (
            {**TAP, "ifname": "a234567890123456"},
            "netdev hn0: ifname 'a234567890123456' (a string) can't be the name of",
        ),
        ({**TAP, "ifname": "a%d%d"}, "ifname 'a00%d' (a string) can't be the name of a link: it holds `%'"),
        ({**BRIDGE, "br": ""}, "netdev hn0: br '' (a string) can't be the name of a link: it is empty"),
        ({**BRIDGE, "br": "br/0"}, "br 'br/0' (a string) can't be the name of a link: it holds `/'"),
        ({**BRIDGE, "helper": ""}, "netdev hn0: helper is empty"),
        ({**TAP, "script": "a\0b"}, "holds a NUL, which no argument of a program can"),
        ({**TAP, "script": "\ud800"}, "can't be encoded in UTF-8"),
        ({**TAP, "queues": 0}, "netdev hn0: queues must be a whole number from 1 to 256, and is 0 (an integer)"),
        ({**TAP, "queues": 257}, "queues must be a whole number from 1 to 256"),
        ({**TAP, "queues": "010"}, "queues must be a whole number from 1 to 256, and is '010' (a string)"),
        ({**TAP, "poll_us": -1}, "poll_us must be a whole number from 0 to 4294967295"),
        ({**TAP, "fd": "tap"}, "fd must be a whole number from 0 to 2147483647, and is 'tap' (a string)"),
        ({**TAP, "vhostfd": "{fd}"}, "vhostfd must be a whole number"),
        ({**TAP, "fds": []}, "fds must be a list of 1 to 256 numbers of descriptors, and is [] (a list)"),
        ({**TAP, "fds": ""}, "fds must be a whole number"),
        ({**TAP, "fds": "3:"}, "fds must be a whole number"),
        ({**TAP, "sndbuf": "1.5"}, "sndbuf must be a whole number of bytes"),
        ({**TAP, "sndbuf": "16E"}, "sndbuf must be less than 16E"),
        ({**TAP, "sndbuf": "9" * 5000}, "sndbuf must be a number of bytes"),
        (
            {**TAP, "sndbuf": -1},
            "sndbuf must be a number of bytes, or a string like 64k or 1.5M, and is -1 (an integer)",
        ),
        # Types.
        ({**TAP, "queues": True}, "queues must be a whole number from 1 to 256, and is True (a boolean)"),
        ({**TAP, "queues": 1.0}, "queues must be a whole number from 1 to 256, and is 1.0 (a float)"),
        ({**TAP, "sndbuf": True}, "sndbuf must be a number of bytes"),
        ({**TAP, "sndbuf": 1.5}, "sndbuf must be a number of bytes"),
        ({**TAP, "vhost": 1}, "vhost must be true or false, and is 1 (an integer)"),
        ({**TAP, "vhost": "maybe"}, "vhost must be true or false, and is 'maybe' (a string)"),
        ({**TAP, "ifname": 0}, "ifname must be a string, and is 0 (an integer)"),
        ({**TAP, "script": False}, "script must be a string, and is False (a boolean)"),
        ({**TAP, "fds": 3}, "fds must be a list of 1 to 256 numbers of descriptors, and is 3 (an integer)"),
        ({**TAP, "fds": [[3]]}, "fds must be a whole number from 0 to 2147483647, and is [3] (a list)"),
        ({"type": "tap", "id": 7}, "netdev: id must be a string, and is 7 (an integer)"),
        ({"type": ["tap"], "id": "a"}, "netdev a: type must be one of bridge, tap, and is ['tap'] (a list)"),
    ],
)
def test_refused(options: dict[Any, Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=re.escape(message)):
        netdev(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {**TAP, "queues": 1},
            "netdev hn0: Multiqueue tap cannot be used with hubs, which is what -net uses; given: queues",
        ),
        ({**TAP, "fds": [3], "vhostfds": [4], "fd": 5}, "Multiqueue tap cannot be used with hubs"),
        ({"type": "tap", "vlan": 0}, "netdev: vlan is no option of type tap; QEMU 3.0 has dropped it"),
        ({"type": "bridge", "name": "a"}, "netdev: name is no option of type bridge; QEMU 5.1 has dropped it"),
    ],
)
def test_refused_of_net(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=re.escape(message)):
        netdev(options, legacy=True)


@pytest.mark.parametrize("options", [None, "tap", 7, ["tap"], True])
def test_no_dictionary(options: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="netdev: the options must be a dictionary, and are "):
        netdev(options)


def test_legacy_is_a_boolean() -> None:
    with pytest.raises(AnsibleFilterError, match="netdev: legacy must be true or false, and is 2"):
        netdev(BRIDGE, legacy=2)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["type", "poll_us", *plugin.TAP]) | st.text() | st.integers(), anything),
    st.sampled_from([{}, BRIDGE, TAP]),
    st.booleans() | anything,
)
def test_whatever_is_given_one_sentence_answers(options: dict[Any, Any], base: dict[str, Any], legacy: Any) -> None:
    """Never a traceback."""
    try:
        netdev({**options, **base}, legacy=legacy)
    except AnsibleFilterError as error:
        assert str(error)


def test_documentation() -> None:
    """What is documented is what the filter knows."""
    told = yaml.safe_load(plugin.DOCUMENTATION)
    options = told["options"]["_input"]["suboptions"]
    names = {alias for name, option in options.items() for alias in [name, *option.get("aliases", [])]}
    assert names == {"type", *plugin.TAP, *plugin.ALIASES}
    assert set(plugin.BRIDGE) < set(plugin.TAP)
    assert options["type"]["choices"] == list(plugin.TYPES)


def test_in_a_playbook(tmp_path: Path) -> None:
    """Ansible finds the filter by its name; the examples print what their comments say, a mistake its sentence."""
    # `ansible-test units` has Ansible as a directory, without what its commands are found by.
    if not any(found.entry_points for found in metadata.distributions(name="ansible-core")):
        pytest.skip("the commands of ansible-core are not installed for this Python")
    tasks = yaml.safe_load(plugin.EXAMPLES)
    told = re.findall(r"^    # (.+)$", plugin.EXAMPLES, re.MULTILINE)
    shown = [task for task in tasks if "ansible.builtin.debug" in task]
    wrong = {"ansible.builtin.debug": {"msg": "{{ nic | hostnet.qemu.netdev }}"}, "vars": {"nic": {**TAP, "queues": 0}}}
    plays = [{"hosts": "localhost", "gather_facts": False, "tasks": [*shown, wrong]}]
    playbook = tmp_path / "playbook.yml"
    playbook.write_text(yaml.safe_dump(plays))
    settings = {"HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "ANSIBLE_COLLECTIONS_PATH": ".collections"}
    run = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", playbook],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = [text.removeprefix("-net ") for text in re.findall(r'^    "msg": "(.+)"$', run.stdout, re.MULTILINE)]
    assert len(told) == len(shown) == 2
    assert printed[:2] == told, run.stdout + run.stderr
    assert "netdev hn0: queues must be a whole number from 1 to 256, and is 0 (an integer)" in run.stdout + run.stderr
    assert run.returncode == 2
