# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hand-over costs: ours, that of QEMU's own helper, and the floor that neither can go below.

All in one run and one private network namespace, the contenders by turns, so that what else the machine does meets
all of them. The exit status tells only whether hand-overs were lost: times are for people to judge.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / ".collections")]

from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import attach, tuntap  # noqa: E402
from support.install import LAUNCHER, PYTHON, install  # noqa: E402
from support.namespaces import Sandbox, ip  # noqa: E402
from support.qemu import BRIDGE_HELPER, fetch, lay  # noqa: E402
from support.user import User, arguments, receive, start, take_tap  # noqa: E402

UID = 60001
BRIDGE = b"br0"
# ARCHITECTURE.md, "Budgets"
TIME_BUDGET = 1.2
MEMORY_BUDGET = 12.0  # MiB


class Sample(NamedTuple):
    """What one thing took once, in seconds."""

    elapsed: float
    processor: float
    """Processor time, which other work on the machine hardly touches."""


def ports() -> list[str]:
    """The ports of the bridge."""
    return os.listdir(f"/sys/class/net/{BRIDGE.decode()}/brif")


def hand_over(helper: Path) -> tuple[Sample, Sample]:
    """From before the helper's start until its tap is here and the helper reaped; and the close of that tap."""
    attempt = take_tap(helper, BRIDGE)
    if attempt.tap is None or attempt.status != 0:
        raise RuntimeError(f"{helper} handed nothing over: {attempt}")
    began, spent = time.perf_counter(), time.process_time()
    os.close(attempt.tap)
    close = Sample(time.perf_counter() - began, time.process_time() - spent)
    return Sample(attempt.seconds, attempt.processor), close


def bare_interpreter() -> Sample:
    """Start of the interpreter that runs the helper, with nothing to do, until it is reaped."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        began = time.perf_counter()
        child = start([PYTHON, "-I", "-S", "-B", "-c", "pass"], theirs, 2)
        _pid, _status, usage = os.wait4(child, 0)
        return Sample(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)


def kernel_work() -> Sample:
    """What the kernel does for one hand-over: the helper's own calls, one after the other in a running interpreter.

    From the look at the bridge to the tap that is up and on it. Not in it is closing the tap, for which the kernel
    waits until no processor can still be looking at it (RCU): that time comes later, when QEMU ends.
    """
    began, spent = time.perf_counter(), time.process_time()
    rtnetlink = attach.Rtnetlink()
    bridge = rtnetlink.link(BRIDGE)
    tap = tuntap.open_tun()
    tuntap.create(tap, b"tap%d", tuntap.IFF_TAP | tuntap.IFF_NO_PI | tuntap.features(tap) & tuntap.IFF_VNET_HDR)
    index = rtnetlink.index_of(tap)
    rtnetlink.prepare(index, b"\xfe" + os.urandom(5), bridge.mtu)
    rtnetlink.enslave(index, bridge.index)
    work = Sample(time.perf_counter() - began, time.process_time() - spent)
    rtnetlink.close()
    os.close(tap)
    return work


def peak_memory(helper: Path) -> float:
    """Largest resident set of the helper, in MiB, as it stands with all of its work done but the last call.

    Not wait4(2)'s: that counts the memory of whoever started the program, too. A socket with no room left holds the
    helper at its send while we read what the kernel has noted.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            with contextlib.suppress(BlockingIOError):
                while True:
                    theirs.send(bytes(4096), socket.MSG_DONTWAIT)
            child = start([helper, *arguments(BRIDGE)], theirs, 2)
        while not ports():
            time.sleep(0.01)
        # From the port to the send there is nothing left that takes memory, but a moment of time.
        time.sleep(0.1)
        status = Path(f"/proc/{child}/status").read_text()
        # The tap is let go with the rest.
        while ours.recv(1 << 16):
            pass
        os.waitpid(child, 0)
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


class Crowd(NamedTuple):
    """What came of many hand-overs at once."""

    arrived: int
    seconds: float
    complaints: list[str]


def at_once(helper: Path, number: int) -> Crowd:
    """Start that many helpers before looking at any."""
    stderr = os.memfd_create("stderr")
    waiting = []
    taps = []
    began = time.perf_counter()
    for _number in range(number):
        ours, theirs = socket.socketpair()
        with theirs:
            waiting.append((start([helper, *arguments(BRIDGE)], theirs, stderr), ours))
    for child, channel in waiting:
        tap = None
        with channel:
            try:
                tap, _surplus = receive(channel)
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
        _pid, status = os.waitpid(child, 0)
        if tap is not None and status == 0:
            taps.append(tap)
    seconds = time.perf_counter() - began
    if len(ports()) != len(taps):
        raise RuntimeError(f"{len(taps)} taps came from {helper} and {len(ports())} are ports of the bridge")
    for tap in taps:
        os.close(tap)
    complaints = os.pread(stderr, 1 << 20, 0).decode(errors="replace").splitlines()
    os.close(stderr)
    return Crowd(len(taps), seconds, complaints)


def report(user: User, rounds: int, crowd: int) -> bool:
    """Measure and print; return whether none of our hand-overs was lost."""
    contenders: dict[str, Callable[[], tuple[Sample, ...]]] = {
        "hand-over by hostnet.qemu": lambda: user.call(hand_over, LAUNCHER),
        "hand-over by the distribution's C helper": lambda: user.call(hand_over, BRIDGE_HELPER),
        "bare interpreter, -I -S -B -c pass": lambda: (user.call(bare_interpreter),),
        "the kernel's own work for one tap": lambda: (kernel_work(),),
    }
    for warm_up in contenders.values():
        warm_up()
    samples: dict[str, list[Sample]] = {what: [] for what in contenders}
    closes: list[Sample] = []
    for turn in range(rounds):
        # Each goes first as often as last.
        for place in range(len(contenders)):
            what = list(contenders)[(turn + place) % len(contenders)]
            sample, *close = contenders[what]()
            samples[what].append(sample)
            closes += close

    load = " ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"Linux {platform.release()} {platform.machine()}, {os.cpu_count()} processors, load {load}, {PYTHON}")
    print(f"{rounds} rounds with all of these in each; milliseconds\n")
    print(f"{'':<44}{'elapsed':>18}{'processor':>18}")
    print(f"{'':<44}{'median':>9}{'p90':>9}{'median':>9}{'p90':>9}")
    for what, taken in {**samples, "closing the tap, in none of the above": closes}.items():
        columns = [f"{statistics.median(column) * 1e3:9.2f}{tenth(column) * 1e3:9.2f}" for column in zip(*taken)]
        print(f"{what:<44}{''.join(columns)}")

    ours, _theirs, bare, kernel = samples.values()
    elapsed, processor = (
        statistics.median(
            sample[column] / (start_up[column] + work[column])
            for sample, start_up, work in zip(ours, bare, kernel, strict=True)
        )
        for column in range(2)
    )
    print("\nhand-over / (bare interpreter + kernel's own work), median of the rounds:")
    print(f"  elapsed time {elapsed:.2f}, {verdict(elapsed, TIME_BUDGET)}; processor time {processor:.2f}")
    memory, their_memory = (user.call(peak_memory, helper) for helper in (LAUNCHER, BRIDGE_HELPER))
    print(f"peak memory: {memory:.1f} MiB, {verdict(memory, MEMORY_BUDGET)} (C helper: {their_memory:.1f} MiB)")
    crowds = {helper: user.call(at_once, helper, crowd) for helper in (LAUNCHER, BRIDGE_HELPER)}
    for helper, result in crowds.items():
        print(f"{crowd} at once by {helper}: {crowd - result.arrived} lost, {result.seconds:.2f} s")
        for complaint in result.complaints:
            print(f"  {complaint}")
    return crowds[LAUNCHER].arrived == crowd


def tenth(values: Sequence[float]) -> float:
    """The value that one in ten is above."""
    return statistics.quantiles(values, n=10)[-1]


def verdict(value: float, budget: float) -> str:
    """A budget, and whether it was held."""
    return f"budget {budget:g} {'held' if value <= budget else 'NOT HELD'}"


def main(given: Sequence[str]) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="tests.bench hand-over", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="rounds of measurement (%(default)s)")
    parser.add_argument("--at-once", type=int, default=200, help="hand-overs at once (%(default)s)")
    options = parser.parse_args(given)
    debian = fetch()
    sandbox = Sandbox()
    try:
        install(sandbox, f"allow {BRIDGE.decode()}\n")
        lay(sandbox, debian)
        ip("link", "add", BRIDGE.decode(), "up", "type", "bridge")
        user = User(UID)
        try:
            complete = report(user, options.rounds, options.at_once)
        finally:
            user.close()
    finally:
        sandbox.close()
    return 0 if complete else 1
