# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make sanity`, `units` and `integration`, that is `python -m tests.cores sanity`: ansible-test of several releases.

Further arguments are those of ansible-test. What ran, on what, and what was skipped is printed at the end, and recorded
for the summary of continuous integration.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import summary

from tests.cores import integration, sanity, units
from tests.cores.environment import CORES, Core, MissingPythonError, lock, make_core

COMMANDS = {"sanity": sanity.run, "units": units.run, "integration": integration.run}


def release(value: str) -> tuple[str, str | None]:
    """What `2.21` or, with one of its Pythons, `2.21/3.12` stands for."""
    name, slash, python = value.partition("/")
    if name not in CORES or (slash and python not in CORES[name]):
        known = "; ".join(f"{core} on {', '.join(versions)}" for core, versions in CORES.items())
        raise argparse.ArgumentTypeError(f"there is no {value}, but {known}")
    return name, python or None


def main(words: list[str]) -> int:
    """Run a command by each release, say what ran, and return the exit status: 0 if something did and passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.cores", allow_abbrev=False)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--core", action="append", type=release, help="such as 2.21 or 2.21/3.12; without it all")
    parser.add_argument("--quick", action="store_true", help="sanity: all by the last release, else what depends on it")
    options, arguments = parser.parse_known_args(words)
    if options.quick and options.command != "sanity":
        parser.error("--quick is of sanity")

    entries: list[summary.Entry] = []
    cores: list[Core] = []
    for name, python in options.core or [(name, None) for name in CORES]:
        try:
            cores.append(make_core(name, python))
        except MissingPythonError as error:
            what = f"ansible-test {options.command}"
            entries.append(summary.Entry(what, f"ansible-core {name}", 0, "skipped", str(error)))
    with lock(options.command):
        for core in cores:
            started = time.monotonic()
            quick = [f"--test={test}" for test in sanity.QUICK] if options.quick and core is not cores[-1] else []
            outcome, note = COMMANDS[options.command](core, [*quick, *arguments])
            what = " ".join(["ansible-test", options.command, *quick, *arguments])
            entries.append(summary.Entry(what, core.on, time.monotonic() - started, outcome, note))
    for entry in entries:
        summary.record(entry)
    print(summary.table(entries), end="")
    if not cores:
        print("Nothing was run.", file=sys.stderr)
    return 0 if {entry.outcome for entry in entries} & {"ok", "failed"} == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
