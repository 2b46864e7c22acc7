#!/usr/bin/python
# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make, change or remove a persistent tap of the running kernel."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tap
short_description: Make, change or remove a persistent tap for a guest
version_added: 1.0.0
author:
  - The hostnet.qemu authors (@hostnet)
description:
  - Brings a persistent tap of the running kernel into the state asked for. Its owner can run a guest on it without any
    privilege and without a helper, in QEMU with C(-netdev tap,ifname=tap0,script=no,downscript=no).
  - An option that is not given is left as it is. The exceptions are O(up), and O(ipv6) of a tap with O(bridge). A new
    tap without an owner and a group belongs to root.
  - A tap is never removed and made again in order to change it. What the kernel can't change fails, with the way out.
  - A guest holds a tap if it has a carrier or a queue in use. Such a tap is never attached to, since that would take
    packets from the guest. What would cut the guest off needs O(force=true).
  - A tap that is not persistent belongs to the program that made it. It is not taken over.
  - All values are checked before the first change. If an operation fails, those before it are undone. At the end the
    state is read back, and the task fails if the kernel did not take a value.
  - The state lasts until the host is shut down.
notes:
  - An owner or a group that was given to a tap without one can't be taken away again when a later operation fails. So
    they are given at the end.
extends_documentation_fragment:
  - hostnet.qemu.attributes
  - hostnet.qemu.links.tap
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - The diff holds the options that were given, before and after.
seealso:
  - module: hostnet.qemu.bridge
  - name: ip-tuntap(8)
    description: Some of the commands that O(ignore:operations) are written in.
    link: https://man7.org/linux/man-pages/man8/ip-tuntap.8.html
"""

EXAMPLES = r"""
- name: Make a tap for the guest of a user
  hostnet.qemu.tap:
    name: tap0
    owner: alice
    bridge: br0

- name: Make a tap with several queues for a group, apart from other guests
  hostnet.qemu.tap:
    name: tap1
    group: kvm
    multi_queue: true
    bridge: br0
    isolated: true
    guard: true

- name: Put a guest into VLAN 10, which it sees as its network without tags
  hostnet.qemu.tap:
    name: tap0
    bridge: br0
    pvid: 10

- name: Give a router's guest the tags of many VLANs, and none without a tag
  hostnet.qemu.tap:
    name: tap2
    bridge: br0
    pvid: 0
    tagged:
      - 10
      - 100-199

- name: Take a tap off its bridge
  hostnet.qemu.tap:
    name: tap1
    bridge: ""

- name: Remove a tap, but not from under a guest
  hostnet.qemu.tap:
    name: tap0
    state: absent
"""

RETURN = r"""
tap:
  description:
    - The tap as it is after the task, or in check mode as it would be, in the words of the options.
    - V(null) stands for what the kernel does not have, such as options of ports without a bridge, or in check mode for
      what the kernel would choose.
  returned: success
  type: dict
  contains:
    name:
      description: The name of the tap.
      type: str
      returned: always
      sample: tap0
    state:
      description: V(present) or V(absent).
      type: str
      returned: always
      sample: present
    up:
      description: Whether the tap is up.
      type: bool
      returned: when the tap is present
      sample: true
    held:
      description: How a guest holds the tap; an empty string if none does.
      type: str
      returned: when the tap is present
      sample: a tap with a carrier
    owner:
      description: The id of the user who may attach; V(null) if it was never given.
      type: int
      returned: when the tap is present
      sample: 1000
    group:
      description: The id of the group whose members may attach; V(null) if it was never given.
      type: int
      returned: when the tap is present
      sample: 107
    multi_queue:
      description: Whether it can have more than one queue.
      type: bool
      returned: when the tap is present
      sample: false
    bridge:
      description: The bridge that the tap is on; an empty string if it is on none.
      type: str
      returned: when the tap is present
      sample: br0
    mtu:
      description: The MTU in bytes.
      type: int
      returned: when the tap is present
      sample: 1500
    mac:
      description: The MAC address of the host's end.
      type: str
      returned: when the tap is present
      sample: fe:54:00:12:34:56
    alias:
      description: The text for people; an empty string if there is none.
      type: str
      returned: when the tap is present
      sample: alice's guest
    txqueuelen:
      description: How many packets to the guest wait.
      type: int
      returned: when the tap is present
      sample: 1000
    ipv6:
      description: Whether the kernel gives it an IPv6 link-local address; V(null) without IPv6.
      type: bool
      returned: when the tap is present
      sample: false
    isolated:
      description: Whether it exchanges no frames with other isolated ports.
      type: bool
      returned: when the tap is present
      sample: false
    learning:
      description: Whether the bridge learns addresses behind it.
      type: bool
      returned: when the tap is present
      sample: true
    unicast_flood:
      description: Whether frames to unknown addresses go there.
      type: bool
      returned: when the tap is present
      sample: true
    multicast_flood:
      description: Whether frames to unknown multicast groups go there.
      type: bool
      returned: when the tap is present
      sample: true
    hairpin:
      description: Whether a frame can leave where it came from.
      type: bool
      returned: when the tap is present
      sample: false
    guard:
      description: Whether a message of STP disables it.
      type: bool
      returned: when the tap is present
      sample: false
    locked:
      description: Whether only known addresses are let in.
      type: bool
      returned: when the tap is present
      sample: false
    cost:
      description: The path cost in STP.
      type: int
      returned: when the tap is present
      sample: 100
    priority:
      description: The priority among the ports in STP.
      type: int
      returned: when the tap is present
      sample: 32
    pvid:
      description:
        - The VLAN of frames from the tap without a tag, 0 for none.
        - V(null) if it is not on a bridge that filters VLANs, like RV(tap.untagged) and RV(tap.tagged).
      type: int
      returned: when the tap is present
      sample: 10
    untagged:
      description: The VLANs whose frames go there without a tag, as the shortest list.
      type: list
      elements: str
      returned: when the tap is present
      sample: ["10"]
    tagged:
      description: The VLANs whose frames go there with a tag, as the shortest list.
      type: list
      elements: str
      returned: when the tap is present
      sample: ["20", "30-39"]
operations:
  description:
    - What was done, or in check mode would be done, in order, each as the command of iproute2 that does the same.
    - Empty if there was nothing to do.
  returned: success
  type: list
  elements: str
  sample:
    - ip tuntap add dev tap0 mode tap user 1000
    - ip link set dev tap0 addrgenmode none
    - ip link set dev tap0 master br0
    - ip link set dev tap0 up
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hostnet.qemu.plugins.module_utils.links.host import group_id, user_id
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import (
    LinksError,
    Tap,
    describe_tap,
    tap_argument_spec,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links.plan import given_tap
from ansible_collections.hostnet.qemu.plugins.module_utils.links_module import (
    TASK_OPTIONS,
    commands,
    reconcile,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={**tap_argument_spec(), **TASK_OPTIONS}, supports_check_mode=True)
    try:
        tap = Tap.from_arguments(module.params, user_id, group_id)
        outcome = reconcile(module, [], [tap])
    except LinksError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(outcome.plan.steps),
        operations=commands(module, outcome),
        tap=describe_tap(outcome.after, tap.name),
        diff={"before": given_tap(tap, outcome.plan.before), "after": given_tap(tap, outcome.after)},
    )


if __name__ == "__main__":
    main()
