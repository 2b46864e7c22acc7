# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ansible-test units`: tests/unit, of modules with no more of Ansible than hosts get, on the Pythons of hosts."""

from __future__ import annotations

import re
import sys

from tests.cores.environment import Core, ansible_test, copy_tracked


def run(core: Core, arguments: list[str]) -> tuple[str, str]:
    """The outcome, and what was tested and skipped; all output is printed where a test failed."""
    done = ansible_test(core, copy_tracked("units", core), "units", "--venv", "--color", "no", *arguments)
    if done.returncode:
        print(done.stdout, end="", file=sys.stderr, flush=True)
    # A run of pytest for each Python and for each of modules, module_utils and the rest.
    runs = re.split(r"^Unit test (\S+) with Python (\S+)\n", done.stdout, flags=re.MULTILINE)[1:]
    notes = []
    for kind, python, output in zip(*[iter(runs)] * 3):
        counts = re.findall(r"^=+ (.*) in [0-9.]+s.* =+$", output, re.MULTILINE)
        notes.append(f"{kind} on Python {python}: {', '.join(counts) or 'did not run'}")
    reasons = {f"skipped: {reason}" for reason in re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", done.stdout, re.MULTILINE)}
    warnings = set(re.findall(r"^WARNING: (Skipping .*)$", done.stdout, re.MULTILINE))
    return "failed" if done.returncode else "ok", "; ".join([*notes, *sorted(reasons), *sorted(warnings)])
