# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each way to give a guest a network, in each QEMU: what docs/invocations.md says works is what is seen here.

With `--all-qemus` the QEMUs of later releases of Debian are run besides that of this machine, and with `--write-docs`
the table in the page is written instead of compared.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible_collections.hostnet.qemu.plugins.filter.netdev import netdev
from ansible_collections.hostnet.qemu.plugins.modules import tap as tap_module
from support.hosts import RELEASES, Host, release_host, this_host
from support.install import LAUNCHER, ROOT
from support.machine import UID, Machine, ports, wait_for
from support.modules import run_module
from support.namespaces import Sandbox, ip
from support.qemu import Debian, initramfs

PAGE = ROOT / "docs/invocations.md"
BRIDGES = ["br0", "br1", "qemubr0"]
HELPER = str(LAUNCHER)
IFUP = Path("/etc/qemu-ifup")
# QEMU gives it the name of the tap.
SCRIPT = b"""#!/bin/sh
ip link set dev "$1" master br0 up
"""


class Invocation(NamedTuple):
    """One line of the table."""

    option: str
    """-net or -netdev"""
    backend: dict[str, Any]
    """What the filter gets."""
    bridge: str = "br0"
    """Where the tap is to be."""
    tap: dict[str, Any] | None = None
    """The tap that the module makes first."""
    user: int = UID
    queues: int = 1

    def arguments(self) -> list[str]:
        """What QEMU gets, without the disk."""
        if self.option == "-net":
            return ["-net", netdev(self.backend, legacy=True), "-net", "nic,model=virtio"]
        device = "virtio-net-pci,netdev=hn0,id=nic1"
        if self.queues > 1:
            # One vector for each direction of each queue, one for control, one for the configuration.
            device += f",mq=on,vectors={2 * self.queues + 2}"
        return ["-netdev", netdev({**self.backend, "id": "hn0"}), "-device", device]

    @property
    def words(self) -> str:
        """As it is typed, and as the table has it."""
        words = " ".join(f'"{word}"' if " " in word else word for word in self.arguments())
        return f"qemu-bridge-run --br=br0 -- … {words}" if "fd" in self.backend else words


HELPER_OF_BR1 = f"{HELPER} --br=br1"
# `Machine` has qemu-bridge-run start a QEMU with this placeholder, and ask for a tap on br0.
GIVEN = {"type": "tap", "fd": "{fd}"}
TAP = {"type": "tap", "ifname": "tap0", "script": "no", "downscript": "no"}
OWNED = {"name": "tap0", "owner": str(UID), "bridge": "br0", "up": True}
INVOCATIONS = [
    *(
        Invocation(option, {**backend, **bridge}, bridge.get("br", "br0"))
        for bridge in ({}, {"br": "qemubr0"})
        for option in ("-net", "-netdev")
        for backend in ({"type": "bridge"}, {"type": "tap", "helper": HELPER}, {"type": "bridge", "helper": HELPER})
    ),
    Invocation("-net", {"type": "tap", "helper": HELPER_OF_BR1}, "br1"),
    Invocation("-netdev", {"type": "tap", "helper": HELPER_OF_BR1}, "br1"),
    Invocation("-net", GIVEN),
    Invocation("-netdev", GIVEN),
    Invocation("-net", TAP, tap=OWNED),
    Invocation("-netdev", TAP, tap=OWNED),
    Invocation("-netdev", {**TAP, "queues": 4}, tap={**OWNED, "multi_queue": True}, queues=4),
    Invocation("-net", {"type": "tap", "script": str(IFUP), "downscript": "no"}, user=0),
    Invocation("-netdev", {"type": "tap", "script": str(IFUP), "downscript": "no"}, user=0),
]


def starter(invocation: Invocation) -> str:
    """Who starts QEMU."""
    return "root" if invocation.user == 0 else "the owner of the tap" if invocation.tap else "a user"


@pytest.fixture
def host(release: tuple[str, Path | None], debian: Debian, sandbox: Sandbox) -> Host:
    """A host of that release with our helper, also at QEMU's default path, and bridges that are granted to all."""
    _suite, tree = release
    acl = "allow all\n"
    host = release_host(sandbox, tree, acl) if tree else this_host(sandbox, debian, acl)
    for bridge in BRIDGES:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
    host.put(IFUP, SCRIPT, 0o755)
    return host


class Table:
    """The table of the page: what became of each invocation in each QEMU."""

    HEAD = ("started by", "invocation")

    def __init__(self) -> None:
        self._before, rows, self._after = re.split(r"((?:^\|.*\n)+)", PAGE.read_text("utf-8"), flags=re.MULTILINE)
        head, _line, *body = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines())
        self._headings = {suite: heading for heading in head for suite, name in RELEASES.items() if name in heading}
        self._cells = {(row[1].strip("`"), key): cell for row in body for key, cell in zip(head, row, strict=True)}
        self.rows = [(row[0], row[1].strip("`")) for row in body]

    def version(self, suite: str) -> str:
        """The version of QEMU in the heading of a release."""
        return re.sub(r"QEMU (\S+) .*", r"\1", self._headings.get(suite, ""))

    def cell(self, invocation: Invocation, suite: str) -> str | None:
        """What the page says of an invocation in the QEMU of a release."""
        return self._cells.get((invocation.words, self._headings.get(suite, "")))

    def write(self, versions: dict[str, str], seen: dict[tuple[str, str], str]) -> None:
        """Write what was seen of the invocations; of a release that was not run, what the page says already."""
        headings = {
            suite: f"QEMU {versions[suite]} ({name})" if suite in versions else self._headings.get(suite)
            for suite, name in RELEASES.items()
        }
        columns = {suite: heading for suite, heading in headings.items() if heading}
        lines = [[*self.HEAD, *columns.values()], ["---"] * (len(self.HEAD) + len(columns))]
        for invocation in INVOCATIONS:
            cells = [seen.get((invocation.words, suite)) or self.cell(invocation, suite) or "" for suite in columns]
            lines.append([starter(invocation), f"`{invocation.words}`", *cells])
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        PAGE.write_text(self._before + table + self._after, encoding="utf-8")


@pytest.fixture(scope="session")
def table() -> Table:
    return Table()


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest, table: Table) -> Iterator[tuple[dict[str, str], dict[tuple[str, str], str]]]:
    """What this run has seen: versions by suite, outcomes by invocation and suite."""
    versions: dict[str, str] = {}
    seen: dict[tuple[str, str], str] = {}
    yield versions, seen
    if request.config.getoption("--write-docs"):
        table.write(versions, seen)


def attempt(host: Host, invocation: Invocation) -> str:
    """Start QEMU on a disk, paused, and see where its tap is and what it has behind its card."""
    if invocation.tap:
        result = run_module(tap_module.main, invocation.tap)
        assert not result.get("failed"), result
    disk = host.scratch / "linux.img"
    host.put(disk, bytes(1 << 20), 0o666)
    machine = Machine(
        host.scratch,
        "qemu",
        *("-accel", "tcg", "-m", "64", "-S", "-monitor", "stdio", "-global", "virtio-net-pci.romfile="),
        *("-drive", f"file={disk},format=raw", *invocation.arguments()),
        user=invocation.user,
        root=host.root,
    )
    try:
        machine.say("info network")
        wait_for("the card in the monitor", lambda: "type=nic" in machine.console, [machine])
        held = [port for port in ports(invocation.bridge) if machine.holds(port["ifname"])]
        assert len(held) == 1, ports(invocation.bridge)
        port = held[0]
        assert "UP" in port["flags"]
        # One that has no queue stands for the card as a whole.
        cards = set(re.findall(r"index=(\d+),type=nic", machine.console))
        backends = re.findall(r"type=tap,", machine.console)
        assert len(cards) == len(backends) == invocation.queues, machine.console
        tap = port["linkinfo"]["info_data"]
        assert (tap["multi_queue"], tap["persist"]) == (invocation.queues > 1, invocation.tap is not None)
    finally:
        machine.end(signal.SIGKILL)
    left = ["tap0"] if invocation.tap else []
    wait_for("the tap to go", lambda: [port["ifname"] for port in ports(invocation.bridge)] == left)
    return "works"


def test_the_page_has_every_invocation(table: Table, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-docs"):
        pytest.skip("the table is being written")
    assert table.rows == [(starter(invocation), invocation.words) for invocation in INVOCATIONS]


@pytest.mark.parametrize("invocation", INVOCATIONS, ids=lambda invocation: invocation.words)
def test_invocation(
    host: Host,
    release: tuple[str, Path | None],
    table: Table,
    record: tuple[dict[str, str], dict[tuple[str, str], str]],
    request: pytest.FixtureRequest,
    invocation: Invocation,
) -> None:
    """The seed's lines, and the other ways, each in its own QEMU: what is seen is what the page says."""
    suite = release[0]
    versions, seen = record
    versions[suite] = host.version()
    try:
        outcome = attempt(host, invocation)
    except (AssertionError, pytest.fail.Exception):
        seen[invocation.words, suite] = "fails"
        if table.cell(invocation, suite) != "fails":
            raise
        return
    seen[invocation.words, suite] = outcome
    if not request.config.getoption("--write-docs"):
        assert table.cell(invocation, suite) == outcome, "run `make invocations` and look at the difference"
        # Testing moves on, and its version with it.
        assert suite == "testing" or table.version(suite) == versions[suite]


# It has a card for each subnet, and the last byte of the card's address is the number of the subnet.
INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do insmod "$module"; done
for card in /sys/class/net/eth*; do
    number=$(sed 's/.*:0*//' $card/address)
    ip address add "10.99.$number.2/24" dev "${card##*/}"
    ip link set "${card##*/}" up
    until ping -c 1 -W 1 "10.99.$number.1" >/dev/null; do sleep 0.2; done
    echo "reached $number"
done
while :; do sleep 60; done
"""
# Of a guest, the ways to its bridges, each a bridge of its own. There can only be one -net in a guest.
GUESTS: dict[str, list[Invocation]] = {
    "bridge": [
        Invocation("-net", {"type": "bridge", "br": "ping1"}, "ping1"),
        Invocation("-netdev", {"type": "bridge", "br": "ping2"}, "ping2"),
        Invocation("-netdev", {"type": "tap", "br": "ping3", "helper": HELPER}, "ping3"),
        Invocation("-netdev", {"type": "tap", "helper": f"{HELPER} --br=ping4"}, "ping4"),
        Invocation("-netdev", GIVEN),
        Invocation("-netdev", {**TAP, "ifname": "tap6"}, "ping6", tap={**OWNED, "name": "tap6", "bridge": "ping6"}),
        Invocation(
            "-netdev",
            {**TAP, "ifname": "tap7", "queues": 4},
            "ping7",
            tap={**OWNED, "name": "tap7", "bridge": "ping7", "multi_queue": True},
            queues=4,
        ),
    ],
    "tap": [Invocation("-net", {"type": "tap", "br": "ping1", "helper": HELPER}, "ping1")],
    "script": [Invocation("-netdev", {"type": "tap", "script": str(IFUP), "downscript": "no"}, user=0)],
}


def card(number: int, invocation: Invocation) -> list[str]:
    """The arguments of an invocation for the card of this number, which are otherwise those of the table."""
    *arguments, last = invocation.arguments()
    unique = [argument.replace("hn0", f"hn{number}") for argument in arguments]
    device = last.replace("hn0", f"hn{number}").replace("nic1", f"nic{number}")
    return [*unique, f"{device},mac{'addr' if invocation.option == '-net' else ''}=52:54:00:00:00:{number:02x}"]


@pytest.mark.parametrize("kind", GUESTS)
def test_a_guest_reaches_its_host(host: Host, debian: Debian, kind: str) -> None:
    """Frames go both ways through a tap of each kind."""
    invocations = dict(enumerate(GUESTS[kind], start=1))
    for number, invocation in invocations.items():
        if invocation.bridge not in BRIDGES:
            ip("link", "add", invocation.bridge, "type", "bridge")
            ip("link", "set", invocation.bridge, "up")
        ip("address", "add", f"10.99.{number}.1/24", "dev", invocation.bridge)
    for invocation in invocations.values():
        if invocation.tap:
            result = run_module(tap_module.main, invocation.tap)
            assert not result.get("failed"), result
    files = {"kernel": debian.kernel.read_bytes(), "initrd": initramfs(debian, INIT, ["virtio_pci", "virtio_net"])}
    for name, content in files.items():
        host.put(host.scratch / name, content)
    machine = Machine(
        host.scratch,
        "qemu",
        *("-accel", "tcg", "-m", "192", "-no-reboot", "-serial", "stdio", "-global", "virtio-net-pci.romfile="),
        *("-kernel", str(host.scratch / "kernel"), "-initrd", str(host.scratch / "initrd")),
        *("-append", "console=ttyS0 quiet panic=-1"),
        *(argument for number, invocation in invocations.items() for argument in card(number, invocation)),
        user=next(iter(invocations.values())).user,
        root=host.root,
    )
    try:
        reached = {f"reached {number}" for number in invocations}
        wait_for(", ".join(sorted(reached)), lambda: reached <= set(machine.console.splitlines()), [machine])
    finally:
        machine.end(signal.SIGKILL)
