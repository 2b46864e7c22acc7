# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What .ci/run starts: make targets in two lanes at the same time, and a table of all that ran.

There are two lanes for two processors, each about as long as the other. All steps run, whichever fail. What a step
writes goes to build/ci/NAME.log, and is printed if the step fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from support import summary

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build/ci"


class Step(NamedTuple):
    """One call of make; what it records about itself stands in the table, or else a row by its name."""

    name: str
    arguments: tuple[str, ...]


# Alone, since packages can't be installed by two at once.
FIRST = Step("ready", ("ready",))
LANES = (
    (Step("tests", ("test", "ARGS=--all-qemus")),),
    (
        Step("molecule-default", ("molecule", "SCENARIO=default")),
        Step("molecule-others", ("molecule", "SCENARIO=acl,links,uninstall,upgrade", "MOLECULE_PLATFORMS=trixie")),
        Step("sanity", ("sanity", "ARGS=--quick")),
        # The oldest Python of hosts, which lacks the most; the step `tests` has the controller's.
        Step("units", ("units", "CORE=2.21", "ARGS=--python 3.9")),
        Step("integration", ("integration", "CORE=2.21")),
        Step("lint", ("lint",)),
        Step("docs", ("docs",)),
    ),
)


def run(step: Step, entries: list[summary.Entry]) -> None:
    """Run one step and append what it did to the entries."""
    log, recorded = LOGS / f"{step.name}.log", LOGS / f"{step.name}.jsonl"
    started = time.monotonic()
    with open(log, "wb") as output:
        done = subprocess.run(
            ["make", "--no-print-directory", *step.arguments],
            cwd=ROOT,
            env=os.environ | {"CI": "true", summary.VARIABLE: str(recorded)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    entry = summary.Entry(
        what=f"make {' '.join(step.arguments)}",
        on="",
        seconds=time.monotonic() - started,
        outcome="failed" if done.returncode else "ok",
        note=f"exit status {done.returncode}" if done.returncode else "",
    )
    found = summary.read(recorded)
    # One that ended before it could tell has failed all the same.
    told = found and (not done.returncode or any(other.outcome == "failed" for other in found))
    entries.extend(found if told else [*found, entry])
    if done.returncode:
        entry_log = log.read_text(encoding="utf-8", errors="replace")
        print(f"--- {entry.what}: all that it wrote\n{entry_log}--- {entry.what}: end", flush=True)
    print(summary.table([entry]).splitlines()[-1], flush=True)


def main() -> int:
    """Run everything, print the table and return the exit status."""
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    started = time.monotonic()
    entries: list[summary.Entry] = []
    run(FIRST, entries)

    def follow(lane: tuple[Step, ...]) -> None:
        for step in lane:
            run(step, entries)

    threads = [threading.Thread(target=follow, args=[lane]) for lane in LANES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    failed = any(entry.outcome == "failed" for entry in entries)
    whole = summary.Entry("all", "", time.monotonic() - started, "failed" if failed else "ok")
    text = summary.table([*entries, whole])
    (LOGS / "summary.md").write_text(text, encoding="utf-8")
    print(text, end="", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
