# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it is all for: an unprivileged user starts QEMU, and is on the bridge."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from support.install import LAUNCHER, install
from support.machine import PATIENCE, UID, Machine, guest_arguments, lay_guest, ports, wait_for
from support.namespaces import Sandbox, ip
from support.qemu import Debian, lay

HOST = "10.99.0.1"
GUESTS = ["10.99.0.11", "10.99.0.12"]


def others(guest: str) -> list[str]:
    """Whom a guest is to reach."""
    return [HOST, *(peer for peer in GUESTS if peer != guest)]


@pytest.fixture
def host(debian: Debian, sandbox: Sandbox) -> Sandbox:
    """A host with the helper, installed, and a bridge br0 that is granted to all; br1 is granted to nobody."""
    install(sandbox, "allow br0\n")
    lay(sandbox, debian)
    ip("link", "add", "br0", "mtu", "1400", "type", "bridge")
    ip("address", "add", f"{HOST}/24", "dev", "br0")
    ip("link", "set", "br0", "up")
    ip("link", "add", "br1", "type", "bridge")
    return sandbox


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    "netdev",
    [
        f"bridge,id=hn0,br=br0,helper={LAUNCHER}",
        f"tap,id=hn0,br=br0,helper={LAUNCHER}",
        # A helper with blanks goes through a shell, which has its own idea of descriptors and environment.
        f"tap,id=hn0,helper={LAUNCHER} --br=br0",
        # The same by qemu-bridge-run, before QEMU starts.
        "tap,id=hn0,fd={fd}",
    ],
)
def test_a_tap_lives_as_long_as_qemu(host: Sandbox, machines: list[Machine], netdev: str, how: signal.Signals) -> None:
    """QEMU has a tap on br0 that is up, like its bridge, and takes offloads; it goes with QEMU, however that ends."""
    machine = Machine(host.scratch, "qemu", "-machine", "none", "-netdev", netdev)
    machines.append(machine)
    wait_for("QEMU holding a port of br0", lambda: any(machine.holds(port["ifname"]) for port in ports()), machines)

    (port,) = ports()
    assert "UP" in port["flags"]
    assert port["mtu"] == 1400
    assert port["address"].startswith("fe:")
    assert port["linkinfo"]["info_kind"] == "tun"
    expected = {"type": "tap", "pi": False, "vnet_hdr": True, "multi_queue": False, "persist": False}
    assert expected.items() <= port["linkinfo"]["info_data"].items()
    status = Path(f"/proc/{machine.process.pid}/status").read_text()
    assert all(f"Cap{kind}:\t0000000000000000\n" in status for kind in ("Inh", "Prm", "Eff", "Amb"))

    machine.end(how)
    wait_for("the tap to go", lambda: ports() == [])
    # Of QEMU alone, which misses the device for its -netdev and mentions a signal that ends it.
    assert all(line.startswith("qemu-system-x86_64: ") for line in machine.errors.splitlines()), machine.errors


def test_a_bridge_that_is_not_granted(host: Sandbox, machines: list[Machine]) -> None:
    """QEMU ends, after our reason has come before its own; no tap was made."""
    machine = Machine(host.scratch, "qemu", "-machine", "none", "-netdev", f"bridge,id=hn0,br=br1,helper={LAUNCHER}")
    machines.append(machine)
    assert machine.process.wait(PATIENCE) == 1, machine.errors
    ours, qemus = machine.errors.splitlines()
    assert "access denied by acl file" in ours
    assert "`br1'" in ours
    assert f"uid {UID}" in ours
    assert qemus.endswith("bridge helper failed")
    assert not [link for link in os.listdir("/sys/class/net") if link.startswith("tap")]


def test_a_qemu_that_may_start_nothing(host: Sandbox, machines: list[Machine]) -> None:
    """In QEMU's own sandbox no helper can be started; a tap that is open already needs none."""
    arguments = ["-machine", "none", "-sandbox", "on,spawn=deny", "-netdev"]
    asks = Machine(host.scratch, "asks", *arguments, f"bridge,id=hn0,br=br0,helper={LAUNCHER}")
    given = Machine(host.scratch, "given", *arguments, "tap,id=hn0,fd={fd}")
    machines += [asks, given]
    assert asks.process.wait(PATIENCE) == -signal.SIGSYS, asks.errors
    wait_for("QEMU holding a port of br0", lambda: any(given.holds(port["ifname"]) for port in ports()), [given])
    (port,) = ports()
    assert "UP" in port["flags"]


def test_two_guests_reach_each_other_and_the_host(host: Sandbox, debian: Debian, machines: list[Machine]) -> None:
    """Two Linux guests and their host talk over br0, in small frames and in those that offloads make large.

    One has a tap that its QEMU asked the helper for, the other one that qemu-bridge-run gave to its QEMU.
    """
    image = lay_guest(debian, host.scratch)
    files = host.scratch / "files"
    files.mkdir()
    content = random.Random(0).randbytes(1 << 20)
    (files / "content").write_bytes(content)
    guests: dict[str, Machine] = {}
    with subprocess.Popen([debian.busybox, "httpd", "-f", "-p", f"{HOST}:80", "-h", files]) as server:
        try:
            netdevs = [f"bridge,id=hn0,br=br0,helper={LAUNCHER}", "tap,id=hn0,fd={fd}"]
            for number, (address, netdev) in enumerate(zip(GUESTS, netdevs)):
                words = f"address={address} reach={','.join(others(address))} fetch=http://{HOST}/content"
                arguments = guest_arguments(debian, image, number, netdev, words)
                guests[address] = Machine(host.scratch, address, *arguments)
                machines.append(guests[address])
            fetched = f"fetched {hashlib.sha256(content).hexdigest()}"
            wait_for(fetched, lambda: all(fetched in machine.console for machine in machines), machines)
            for address, guest in guests.items():
                reached = [line for line in guest.console.splitlines() if line.startswith("reached ")]
                assert reached == [f"reached {peer}" for peer in others(address)]
                subprocess.run([debian.busybox, "ping", "-c", "1", "-W", "10", address], check=True)
            assert len(ports()) == len(guests)
            for guest in machines:
                guest.end()
            wait_for("the taps to go", lambda: ports() == [])
        finally:
            server.terminate()
