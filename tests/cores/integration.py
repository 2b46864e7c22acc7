# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ansible-test integration`: the targets below tests/integration/targets, in namespaces of their own."""

from __future__ import annotations

import re
import sys

from support.namespaces import Sandbox
from support.playbook import prepare

from tests.cores.environment import Core, ansible_test, copy_tracked


def run(core: Core, arguments: list[str]) -> tuple[str, str]:
    """The outcome, and what was tested; all output is printed where a target failed."""
    copy = copy_tracked("integration", core)
    sandbox = Sandbox()
    try:
        prepare(sandbox)
        # The targets change what they run on, which is the sandbox alone.
        options = ["--local", "--allow-destructive", "--continue-on-error", "--color", "no"]
        done = ansible_test(core, copy, "integration", *options, *arguments)
    finally:
        sandbox.close()
    if done.returncode:
        print(done.stdout, end="", file=sys.stderr, flush=True)
    ran = re.findall(r"^Running (\S+) integration test role$", done.stdout, re.MULTILINE)
    failed = re.findall(r'^ERROR: Command "ansible-playbook (\w+)-\w+\.yml', done.stdout, re.MULTILINE)
    notes = [f"{len(ran) - len(failed)} of {len(ran)} targets"]
    if failed:
        notes.append(f"failed: {', '.join(failed)}")
    notes += sorted(set(re.findall(r"^WARNING: (Excluding .*|Skipping .*)$", done.stdout, re.MULTILINE)))
    return "failed" if done.returncode else "ok", "; ".join(notes)
