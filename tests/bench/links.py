# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What many taps cost: one `links` task beside a loop of `tap` tasks, `ip -batch`, and a loop of `ip` commands.

Each way makes the same bridges and taps in a private network namespace of its own, and then finds them made. The ways
take turns, so that what else the machine does meets all of them. A `links` task without any bridge and tap is measured
as well, and taken off: it is what Ansible takes to start, and to bring a module to the host. Times are for people to
judge, so the exit status tells only that all of it ran.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / ".collections")]

from support.namespaces import Sandbox  # noqa: E402

BRIDGES = [f"br{number}" for number in range(5)]
OWNER = 1000
COUNTS = (1, 20, 500, 4000)
# A loop starts a module for each tap: what more of them would take is known from these.
LOOP_LIMIT = 20
# ARCHITECTURE.md, "Budgets": at this number of taps one `links` task may take so many times what `ip -batch` takes.
BUDGET_COUNT, BUDGET = 500, 3.0

LINKS, TAPS, BATCH, COMMANDS = "one `links` task", "`tap` in a loop", "`ip -batch`", "`ip` in a loop"
NOTHING = "an empty `links` task"


class Run(NamedTuple):
    """The same way twice, in seconds: making everything, and finding it made."""

    first: float
    second: float


class Peak(NamedTuple):
    """The largest resident sets of the first run, in MiB."""

    controller: float
    host: float


def taps(count: int) -> list[tuple[str, str]]:
    """The taps, and the bridge of each."""
    return [(f"tap{number}", BRIDGES[number % len(BRIDGES)]) for number in range(count)]


def batch(count: int) -> str:
    """The same for `ip -batch`: what a `links` task says that it does."""
    lines = [f"link add {bridge} type bridge\nlink set {bridge} up" for bridge in BRIDGES]
    for tap, bridge in taps(count):
        lines += [
            f"tuntap add dev {tap} mode tap user {OWNER}",
            f"link set {tap} addrgenmode none",
            f"link set {tap} master {bridge}",
            f"link set {tap} up",
        ]
    return "\n".join(lines) + "\n"


def play(way: str, count: int) -> list[dict[str, Any]]:
    """A playbook that makes the bridges and taps one way."""
    bridges = [{"name": bridge} for bridge in BRIDGES]
    members = [{"name": tap, "owner": str(OWNER), "bridge": bridge} for tap, bridge in taps(count)]
    tasks: dict[str, list[dict[str, Any]]] = {
        NOTHING: [{"hostnet.qemu.links": {}}],
        LINKS: [{"hostnet.qemu.links": {"bridges": bridges, "taps": members}}],
        TAPS: [
            {"hostnet.qemu.links": {"bridges": bridges}},
            {
                "hostnet.qemu.tap": {"name": "{{ item.name }}", "owner": str(OWNER), "bridge": "{{ item.bridge }}"},
                "loop": members,
            },
        ],
        # As playbooks do it that know no better: what is there already is left out by `creates`.
        COMMANDS: [
            {
                "ansible.builtin.command": {
                    "cmd": "ip link add {{ item }} up type bridge",
                    "creates": "/sys/class/net/{{ item }}",
                },
                "loop": BRIDGES,
            },
            {
                "ansible.builtin.command": {
                    "cmd": f"ip tuntap add dev {{{{ item.name }}}} mode tap user {OWNER}",
                    "creates": "/sys/class/net/{{ item.name }}",
                },
                "loop": members,
            },
            {
                "ansible.builtin.command": {"cmd": "ip link set {{ item.name }} master {{ item.bridge }} up"},
                "loop": members,
            },
        ],
    }
    return [{"hosts": "localhost", "gather_facts": False, "tasks": tasks[way]}]


class Bench:
    """Runs of each way, all in sandboxes of their own."""

    def __init__(self) -> None:
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def command(self, sandbox: Sandbox, way: str, count: int) -> list[str]:
        """What to run for one way."""
        if way == BATCH:
            path = sandbox.scratch / "batch"
            path.write_text(batch(count))
            return ["ip", "-batch", str(path)]
        self._environment["HOME"] = str(sandbox.scratch)
        path = sandbox.scratch / "play.json"
        path.write_text(json.dumps(play(way, count)))
        host = f"localhost ansible_connection=local ansible_python_interpreter={sys.executable}\n"
        (sandbox.scratch / "inventory").write_text(host)
        return [sys.executable, "-m", "ansible", "playbook", "-i", str(sandbox.scratch / "inventory"), str(path)]

    def run(self, way: str, count: int) -> Run:
        """Both runs of one way."""
        sandbox = Sandbox()
        try:
            command = self.command(sandbox, way, count)
            first = self._time(command)
            expected = 1 if way == NOTHING else 1 + len(BRIDGES) + count
            found = len(os.listdir("/sys/class/net"))
            if found != expected:
                raise RuntimeError(f"{way}: {found} links instead of {expected}")
            # A second `ip -batch` fails at its first line: it has no idea of what is there.
            return Run(first, float("nan") if way == BATCH else self._time(command))
        finally:
            sandbox.close()

    def _time(self, command: list[str]) -> float:
        began = time.perf_counter()
        self._finish(self._start(command))
        return time.perf_counter() - began

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def _finish(process: subprocess.Popen[str]) -> None:
        output, _stderr = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{process.args} failed:\n{output[-4000:]}")

    def peak(self, way: str, count: int) -> Peak:
        """The memory of one way, seen from outside by its high-water marks: not timed."""
        sandbox = Sandbox()
        try:
            with self._start(self.command(sandbox, way, count)) as process:
                marks = {False: 0, True: 0}
                while process.poll() is None:
                    for on_host, mark in high_water_marks(process.pid):
                        marks[on_host or way == BATCH] = max(mark, marks[on_host or way == BATCH])
                    time.sleep(0.002)
            return Peak(marks[False] / 1024, marks[True] / 1024)
        finally:
            sandbox.close()


def high_water_marks(pid: int) -> Iterator[tuple[bool, int]]:
    """Of a process and its descendants: whether it is a module, and the most KiB that it had resident."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if "VmHWM" in status:
        yield b"AnsiballZ_" in command or command.startswith(b"ip\0"), int(status["VmHWM"].split()[0])
    for child in children:
        yield from high_water_marks(int(child))


def measure(bench: Bench, count: int, rounds: int) -> tuple[dict[str, list[Run]], dict[str, Peak]]:
    """All ways by turns."""
    ways = [NOTHING, BATCH, LINKS] + ([TAPS, COMMANDS] if count <= LOOP_LIMIT else [])
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for turn in range(rounds):
        for place in range(len(ways)):
            way = ways[(turn + place) % len(ways)]
            runs[way].append(bench.run(way, count))
    return runs, {way: bench.peak(way, count) for way in ways if way != NOTHING}


def table(count: int, runs: Mapping[str, list[Run]], peaks: Mapping[str, Peak]) -> list[str]:
    """The rows of one number of taps, in Markdown."""
    rows = []
    for way, peak in peaks.items():
        net = 0 if way == BATCH else 1
        columns = [f"{count:,}", way]
        for side in range(2):
            taken = [run[side] - net * idle[side] for run, idle in zip(runs[way], runs[NOTHING])]
            if taken[0] != taken[0]:
                columns += ["fails", ""]
                continue
            ratio = statistics.median(one / other.first for one, other in zip(taken, runs[BATCH]))
            columns += [f"{statistics.median(taken):.2f} s", "1" if way == BATCH else f"{ratio:.1f}"]
        columns += [f"{peak.host:.0f} MiB", f"{peak.controller:.0f} MiB" if peak.controller else ""]
        rows.append("| " + " | ".join(columns) + " |")
    return rows


def report(rounds: int, counts: list[int]) -> Iterator[str]:
    """The lines of the report."""
    bench = Bench()
    bench.run(LINKS, 1)
    load = " ".join(f"{average:.1f}" for average in os.getloadavg())
    yield (
        f"Linux {platform.release()} {platform.machine()}, {os.cpu_count()} processors, load {load}, "
        f"Python {platform.python_version()}; medians of {rounds} rounds"
    )
    yield ""
    heads = ["taps", "way", "first run", "times `ip -batch`", "second run", "times `ip -batch`", "on the host"]
    yield "| " + " | ".join([*heads, "on the controller"]) + " |"
    yield "|---:|---" + "|---:" * len(heads[1:]) + "|"
    idle: list[Run] = []
    for count in counts:
        runs, peaks = measure(bench, count, rounds)
        idle += runs[NOTHING]
        yield from table(count, runs, peaks)
        if count == BUDGET_COUNT:
            nets = (run.first - noop.first for run, noop in zip(runs[LINKS], runs[NOTHING]))
            ratio = statistics.median(net / other.first for net, other in zip(nets, runs[BATCH]))
    yield ""
    yield f"A playbook with {NOTHING}, which is taken off: {statistics.median(run.first for run in idle):.2f} s."
    if BUDGET_COUNT in counts:
        yield (
            f"{BUDGET_COUNT} taps in one `links` task: {ratio:.1f} times `ip -batch`, "
            f"budget {BUDGET:g} {'held' if ratio <= BUDGET else 'NOT HELD'}."
        )


def main(arguments: list[str]) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="tests.bench links", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of measurement (%(default)s)")
    parser.add_argument("--taps", type=int, nargs="+", default=list(COUNTS), help="numbers of taps (%(default)s)")
    options = parser.parse_args(arguments)
    for line in report(options.rounds, options.taps):
        print(line, flush=True)
    return 0
