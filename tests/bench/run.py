# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qemu-bridge-run costs: the time from its start until its command runs, with 1, 2 and 8 bridges.

Beside it stands what the same would take step by step: a bare interpreter, a hand-over for each bridge one after the
other, and the command by itself. All in one run, by turns, so that what else the machine does meets all of them. Where
processors are idle, helpers that run at the same time may bring the elapsed time below that. Times are for people to
judge, so the exit status tells only that all of it ran.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / ".collections")]

from support.install import COMMAND, LAUNCHER, PYTHON, install  # noqa: E402
from support.namespaces import Sandbox, ip  # noqa: E402
from support.user import User  # noqa: E402

from tests.bench.hand_over import BRIDGE, UID, Sample, bare_interpreter, hand_over, tenth  # noqa: E402

COUNTS = (1, 2, 8)


def first_word(command: Sequence[str]) -> list[Sample]:
    """From the start of a command until it writes; its processor time is that until it is reaped."""
    ours, theirs = os.pipe()
    began = time.perf_counter()
    child = os.posix_spawn(command[0], command, {}, file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 1)])
    os.close(theirs)
    said = os.read(ours, 4096)
    seconds = time.perf_counter() - began
    _pid, status, usage = os.wait4(child, 0)
    os.close(ours)
    if not said or status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return [Sample(seconds, usage.ru_utime + usage.ru_stime)]


def start() -> list[Sample]:
    """Start of the interpreter that runs qemu-bridge-run, with nothing to do."""
    return [bare_interpreter()]


def hand_overs() -> list[Sample]:
    """Hand-overs, one after the other: what each of `COUNTS` takes."""
    single = [hand_over(LAUNCHER)[0] for _number in range(max(COUNTS))]
    return [Sample(*map(sum, zip(*single[:count]))) for count in COUNTS]


def report(user: User, rounds: int) -> None:
    """Measure and print."""
    echo = shutil.which("echo")
    if echo is None:
        raise RuntimeError("there is no program echo, which is the command here")
    contenders: dict[str, Callable[[], list[Sample]]] = {
        "bare interpreter, -I -S -B -c pass": lambda: user.call(start),
        "hand-overs": lambda: user.call(hand_overs),
        "the command by itself": lambda: user.call(first_word, [echo, "3"]),
    }
    for count in COUNTS:
        words = [f"--br={BRIDGE.decode()}"] * count
        places = "".join(f"{{fd{place}}}" for place in range(count))
        command = [str(COMMAND), *words, "--", echo, places]
        contenders[named("qemu-bridge-run", count)] = functools.partial(user.call, first_word, command)
    for warm_up in contenders.values():
        warm_up()
    samples: dict[str, list[list[Sample]]] = {what: [] for what in contenders}
    for turn in range(rounds):
        # Each goes first as often as last.
        for place in range(len(contenders)):
            what = list(contenders)[(turn + place) % len(contenders)]
            samples[what].append(contenders[what]())

    bare, one_by_one, alone, *ours = samples.values()
    rows = {"bare interpreter, -I -S -B -c pass": first(bare), "the command by itself": first(alone)}
    for place, count in enumerate(COUNTS):
        rows[named("hand-overs one by one,", count)] = [taken[place] for taken in one_by_one]
    for count, taken in zip(COUNTS, ours):
        rows[named("qemu-bridge-run,", count)] = first(taken)
    load = " ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"Linux {platform.release()} {platform.machine()}, {os.cpu_count()} processors, load {load}, {PYTHON}")
    print(f"{rounds} rounds with all of these in each; milliseconds\n")
    print(f"{'':<44}{'elapsed':>18}{'processor':>18}")
    print(f"{'':<44}{'median':>9}{'p90':>9}{'median':>9}{'p90':>9}")
    for what, taken in rows.items():
        columns = [f"{statistics.median(column) * 1e3:9.2f}{tenth(column) * 1e3:9.2f}" for column in zip(*taken)]
        print(f"{what:<44}{''.join(columns)}")
    print("\nqemu-bridge-run / (bare interpreter + hand-overs one by one + command), median of the rounds:")
    for count in COUNTS:
        steps = [first(bare), first(alone), rows[named("hand-overs one by one,", count)]]
        elapsed, processor = (
            statistics.median(
                whole[column] / sum(part[column] for part in parts)
                for whole, *parts in zip(rows[named("qemu-bridge-run,", count)], *steps)
            )
            for column in range(2)
        )
        print(f"  {named('with', count)}: elapsed time {elapsed:.2f}, processor time {processor:.2f}")


def named(what: str, count: int) -> str:
    """Of how many bridges a row tells."""
    return f"{what} {count} {'bridge' if count == 1 else 'bridges'}"


def first(samples: list[list[Sample]]) -> list[Sample]:
    """The only value of each."""
    return [value for (value,) in samples]


def main(given: Sequence[str]) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="tests.bench run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="rounds of measurement (%(default)s)")
    options = parser.parse_args(given)
    sandbox = Sandbox()
    try:
        install(sandbox, f"allow {BRIDGE.decode()}\n")
        ip("link", "add", BRIDGE.decode(), "up", "type", "bridge")
        user = User(UID)
        try:
            report(user, options.rounds)
        finally:
            user.close()
    finally:
        sandbox.close()
    return 0
