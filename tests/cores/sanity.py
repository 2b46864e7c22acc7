# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `ansible-test sanity` says of the collection."""

from __future__ import annotations

import re
import sys

from tests.cores.environment import PYTHONS, Core, ansible_test, copy_tracked

# Those that judge by what is in this release of ansible-core, less pylint, which takes as long as all others.
QUICK = ("ansible-doc", "compile", "import", "validate-modules")


def run(core: Core, arguments: list[str]) -> tuple[str, str]:
    """The outcome, and what was tested and skipped; of the output, what the tests complain of is printed."""
    done = ansible_test(core, copy_tracked("sanity", core), "sanity", "--local", "--color", "no", *arguments)
    if done.returncode:
        # What the tests say, or where one could not be run, all that was done.
        ran = "sanity test(s) listed below" in done.stdout
        said = re.findall(r"^(?:ERROR: |See documentation).*\n", done.stdout, re.MULTILINE)
        print("".join(said) if ran else done.stdout, end="", file=sys.stderr, flush=True)
    tests = set(re.findall(r'^Running sanity test "([^"]+)"', done.stdout, re.MULTILINE))
    # Of one that tests/config.yml leaves out it is said, too, that it was run, though nothing was.
    versions = [
        version for version in PYTHONS if re.search(rf" on Python {re.escape(version)}$", done.stdout, re.MULTILINE)
    ]
    notes = [f"{len(tests)} tests" + (f", of hosts' Python {', '.join(versions)}" if versions else "")]
    warnings = set(re.findall(r"^WARNING: (Skipping .*|Required .*)$", done.stdout, re.MULTILINE))
    return "failed" if done.returncode else "ok", "; ".join([*notes, *sorted(warnings)])
