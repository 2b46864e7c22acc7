# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules on `links` share: the library on the host, the namespace, check mode, the words of the result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Callable, TypeVar

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common import respawn

from .links.host import Holder, NoNamespace, tap_holders
from .links.kernel import Inspection, Kernel, NoLibrary, Outcome, imagine
from .links.model import TAP, ArgumentSpec, Bridge, Tap
from .links.plan import make_plan

Result = TypeVar("Result")

# Options of a task, beside those of its bridges and taps.
TASK_OPTIONS: ArgumentSpec = {"netns": {"type": "str"}}
# Those of a module that tells of links.
INFO_OPTIONS: ArgumentSpec = {"name": {"type": "list", "elements": "str"}, **TASK_OPTIONS}

# Where distributions install Python packages for: EL's own Python, then everybody's.
_SYSTEM_PYTHONS = ("/usr/libexec/platform-python", "/usr/bin/python3")


def reconcile(
    module: AnsibleModule, bridges: Sequence[Bridge], taps: Sequence[Tap] = (), *, all_addresses: bool = False
) -> Outcome:
    """Bring the bridges and taps of a task into their state, or say how in check mode; raises LinksError."""

    def bring_about(links: Kernel) -> Outcome:
        return links.reconcile(
            bridges, taps, check=module.check_mode, spare_connection=True, all_addresses=all_addresses
        )

    outcome = _in_namespace(module, bring_about, "an empty one, but for the links to build on")
    if outcome is None:
        plan = make_plan(bridges, imagine(bridges, taps), taps)
        outcome = Outcome(plan, plan.after)
    return outcome


def inspect(module: AnsibleModule, kind: str) -> tuple[Inspection, dict[str, list[Holder]]]:
    """What is to be known of the bridges or taps that a task asks for, and who holds taps; raises LinksError."""

    def look(links: Kernel) -> tuple[Inspection, dict[str, list[Holder]]]:
        inspection = links.inspect(kind, module.params["name"])
        return inspection, tap_holders() if kind == TAP and inspection.names else {}

    return _in_namespace(module, look, "an empty one") or (Inspection(), {})


def _in_namespace(module: AnsibleModule, work: Callable[[Kernel], Result], assumed: str) -> Result | None:
    """What `work` returns for the links of the task's namespace; raises LinksError.

    In check mode a missing namespace is warned about, with what is `assumed` of it instead, and gives None. Where this
    Python lacks pyroute2 and it is needed, the module starts again under one that has it.
    """
    try:
        with Kernel(module.params["netns"]) as links:
            return work(links)
    except NoLibrary:
        _respawn()
        raise
    except NoNamespace as error:
        if not module.check_mode:
            raise
        module.warn(f"{error} Check mode assumes {assumed}.")
        return None


def _respawn() -> None:
    """Start the module again under another Python that has pyroute2; return if there is none."""
    if not respawn.has_respawned():
        others = [path for path in _SYSTEM_PYTHONS if path != sys.executable]
        interpreter = respawn.probe_interpreters_for_module(others, "pyroute2")
        if interpreter:
            respawn.respawn_module(interpreter)


def commands(module: AnsibleModule, outcome: Outcome) -> list[str]:
    """The operations of a task as commands of iproute2, in the task's namespace."""
    netns = module.params["netns"]
    # Each begins with the program, `ip` or `bridge`, which both take this option.
    return [
        f"{program} -n {netns} {words}" if netns else f"{program} {words}"
        for program, _blank, words in (operation.partition(" ") for operation in outcome.plan.operations)
    ]
