# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's messages in docs/errors.md: each is had from the real QEMU, in the way that the page tells."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import tuntap
from ansible_collections.hostnet.qemu.plugins.modules import tap
from support.hosts import Host, this_host
from support.install import LAUNCHER
from support.machine import UID
from support.modules import run_module
from support.namespaces import Sandbox
from support.pages import matches, messages
from support.qemu import QEMU, Debian

NO_SCRIPT = "script=no,downscript=no"
# A message, and what a user gets it by.
PROVOKED = {
    "bridge helper failed": ["-netdev", "bridge,id=hn0,helper=/no/such/helper"],
    "Unable to query TUNGETIFF on FD …: Inappropriate ioctl for device": ["-netdev", "bridge,id=hn0,helper=/bin/true"],
    "Invalid file descriptor number '{fd}'": ["-netdev", "tap,id=hn0,fd={fd}"],
    "network script … failed with status …": ["-netdev", "tap,id=hn0,ifname=mine"],
    "could not configure /dev/net/tun (…): Operation not permitted": [
        "-netdev",
        f"tap,id=hn0,ifname=root,{NO_SCRIPT}",
    ],
    "could not configure /dev/net/tun (…): Device or resource busy": ["-netdev", f"tap,id=hn0,ifname=busy,{NO_SCRIPT}"],
    "could not configure /dev/net/tun (…): Invalid argument": ["-netdev", f"tap,id=hn0,ifname=several,{NO_SCRIPT}"],
    "could not open /dev/net/tun: …": ["-netdev", f"tap,id=hn0,{NO_SCRIPT}"],
    "Parameter 'id' is missing": ["-netdev", f"bridge,helper={LAUNCHER}"],
    "Invalid parameter '…'": ["-net", f"bridge,vlan=0,helper={LAUNCHER}"],
    "ifname=, script=, downscript=, vnet_hdr=, queues=, and vhostfds= are invalid with helper=": [
        "-netdev",
        f"tap,id=hn0,ifname=mine,helper={LAUNCHER}",
    ],
    "Multiqueue tap cannot be used with hubs": ["-net", f"tap,ifname=several,queues=2,{NO_SCRIPT}"],
}


def test_the_page_has_these_messages() -> None:
    assert messages()["QEMU"] == list(PROVOKED)


@pytest.fixture
def host(debian: Debian, sandbox: Sandbox) -> Host:
    """A host with taps of a user, and with one that is not."""
    for name, options in {"mine": {}, "several": {"multi_queue": True}, "busy": {}, "root": {"owner": "root"}}.items():
        result = run_module(tap.main, {"name": name, "owner": str(UID), **options})
        assert not result.get("failed"), result
    return this_host(sandbox, debian, "allow all\n")


@pytest.mark.parametrize("message", PROVOKED)
def test_qemu_says_so(host: Host, sandbox: Sandbox, message: str) -> None:
    command = host.command(QEMU, "-nodefaults", "-display", "none", "-machine", "none", *PROVOKED[message], user=UID)
    if message.startswith("could not open"):
        sandbox.make_tun(0o600)
    with contextlib.ExitStack() as held:
        if " busy" in message:
            holder = tuntap.open_tun()
            held.callback(os.close, holder)
            tuntap.create(holder, b"busy", tuntap.IFF_TAP | tuntap.IFF_NO_PI)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert any(matches(f": {message}", line) for line in done.stderr.splitlines()), done.stderr
