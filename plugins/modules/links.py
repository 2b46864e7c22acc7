#!/usr/bin/python
# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make, change or remove bridges and taps of the running kernel, many at once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: links
short_description: Make, change or remove many bridges and taps at once
version_added: 1.0.0
author:
  - The hostnet.qemu authors (@hostnet)
description:
  - Brings bridges and persistent taps of the running kernel into the state asked for, as M(hostnet.qemu.bridge) and
    M(hostnet.qemu.tap) do for one.
  - It is one plan. All values are checked before the first change, in the light of what else the task does. The bridges
    of the task are made before its taps join them, whatever the order of the lists.
  - If an operation fails, all those before it are undone, in reverse. Removals come last, since they can't be undone.
    At the end the state is read back, and the task fails if the kernel did not take a value.
  - A tap that the task puts on a bridge need not be among its O(bridges[].ports), even where they are exact.
  - The state lasts until the host is shut down.
extends_documentation_fragment:
  - hostnet.qemu.attributes
  - hostnet.qemu.links.both
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - The diff holds the options that were given, before and after, of the bridges and taps that change. Of more than
        100 it holds the first 100, and its header says of how many.
seealso:
  - module: hostnet.qemu.bridge
  - module: hostnet.qemu.tap
"""

EXAMPLES = r"""
- name: Make two bridges, and a tap for each guest
  hostnet.qemu.links:
    bridges:
      - name: br0
        mac: stable
        stp: false
      - name: br-lab
        mac: stable
        addresses:
          - 192.0.2.1/24
    taps:
      - name: tap0
        owner: alice
        bridge: br0
      - name: tap1
        group: kvm
        bridge: br-lab
        isolated: true

- name: Move the guests of one bridge to another, and remove it
  hostnet.qemu.links:
    bridges:
      - name: br-new
      - name: br-old
        state: absent
    taps: "{{ guests | map('combine', {'bridge': 'br-new', 'force': true}) }}"
"""

RETURN = r"""
operations:
  description:
    - What was done, or in check mode would be done, in order, each as the command of iproute2 that does the same.
    - Empty if there was nothing to do. Of more than 200 it holds the first 200; see RV(operations_count).
  returned: success
  type: list
  elements: str
  sample:
    - ip link add name br0 type bridge
    - ip tuntap add dev tap0 mode tap user 1000
operations_count:
  description: The number of all operations.
  returned: success
  type: int
  sample: 2
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hostnet.qemu.plugins.module_utils.links.host import group_id, machine_id, user_id
from ansible_collections.hostnet.qemu.plugins.module_utils.links.kernel import Outcome
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import (
    BRIDGE_REQUIRED_IF,
    ArgumentSpec,
    Bridge,
    LinksError,
    Tap,
    bridge_argument_spec,
    tap_argument_spec,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links.plan import given, given_tap
from ansible_collections.hostnet.qemu.plugins.module_utils.links_module import (
    TASK_OPTIONS,
    commands,
    reconcile,
)

# So many operations, and links in a diff, can be read; thousands are a burden for the controller and its log.
MAX_OPERATIONS = 200
MAX_DIFF = 100


def links_argument_spec() -> ArgumentSpec:
    """The options of the module."""
    return {
        "bridges": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": bridge_argument_spec(),
            "required_if": BRIDGE_REQUIRED_IF,
        },
        "taps": {"type": "list", "elements": "dict", "default": [], "options": tap_argument_spec()},
        **TASK_OPTIONS,
    }


def difference(outcome: Outcome) -> dict[str, Any]:
    """The given options of the links that change, before and after."""
    plan = outcome.plan
    bridges = [("bridges", given(each, plan.before), given(each, outcome.after)) for each in plan.bridges]
    taps = [("taps", given_tap(each, plan.before), given_tap(each, outcome.after)) for each in plan.taps]
    changing = [change for change in bridges + taps if change[1] != change[2]]
    shown = changing[:MAX_DIFF]
    diff: dict[str, Any] = {
        side: {kind: [change[index] for change in shown if change[0] == kind] for kind in ("bridges", "taps")}
        for index, side in ((1, "before"), (2, "after"))
    }
    if len(shown) < len(changing):
        header = f"the first {len(shown)} of {len(changing)} links that change"
        diff.update(before_header=header, after_header=header)
    return diff


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=links_argument_spec(), supports_check_mode=True)
    try:
        bridges = [Bridge.from_arguments(each, machine_id, module.params["netns"]) for each in module.params["bridges"]]
        taps = [Tap.from_arguments(each, user_id, group_id) for each in module.params["taps"]]
        outcome = reconcile(module, bridges, taps)
    except LinksError as error:
        module.fail_json(msg=str(error))
    operations = commands(module, outcome)
    module.exit_json(
        changed=bool(operations),
        operations=operations[:MAX_OPERATIONS],
        operations_count=len(operations),
        diff=difference(outcome),
    )


if __name__ == "__main__":
    main()
