#!/usr/bin/python
# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make, change or remove a bridge of the running kernel."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bridge
short_description: Make, change or remove a network bridge
version_added: 1.0.0
author:
  - The hostnet.qemu authors (@hostnet)
description:
  - Brings a bridge of the running kernel into the state asked for, over netlink.
  - An option that is not given is left as it is. The one exception is O(up), which is true by default.
  - A bridge is never removed and made again in order to change it, so guests on it keep their connection.
  - All values are checked before the first change. If an operation fails, those before it are undone. At the end the
    state is read back, and the task fails if the kernel did not take a value.
  - The state lasts until the host is shut down.
notes:
  - Some things can't be undone when a later operation fails. A MAC address or an MTU that was set, even to restore it,
    does not follow the ports again. Routes that the kernel dropped when the bridge was taken down do not come back.
extends_documentation_fragment:
  - hostnet.qemu.attributes
  - hostnet.qemu.links.bridge
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - The diff holds the options that were given, before and after.
seealso:
  - name: ip-link(8)
    description: The commands that O(ignore:operations) are written in.
    link: https://man7.org/linux/man-pages/man8/ip-link.8.html
"""

EXAMPLES = r"""
- name: Make a bridge for guests that keeps its MAC address and forwards at once
  hostnet.qemu.bridge:
    name: br0
    mac: stable
    stp: false

- name: Give the bridge an uplink and the address of the host
  hostnet.qemu.bridge:
    name: br0
    ports:
      - eth1
    addresses:
      - 192.0.2.10/24
      - 2001:db8::10/64

- name: Let the bridge have this uplink only, while guests keep their taps
  hostnet.qemu.bridge:
    name: br0
    ports:
      - eth1
    ports_mode: exact

- name: Run STP with a short delay
  hostnet.qemu.bridge:
    name: br0
    stp: true
    forward_delay: 2.5

- name: Let LLDP pass between guests, and keep multicast to those who want it
  hostnet.qemu.bridge:
    name: br0
    group_fwd_mask: 0x4000
    multicast_snooping: true
    multicast_querier: true
    alias: guests of the lab

- name: Keep VLANs apart, and be on two of them as a host, besides VLAN 1 without a tag
  hostnet.qemu.bridge:
    name: br0
    vlan_filtering: true
    vlans:
      - 100
      - 110

- name: Make a bridge in another network namespace
  hostnet.qemu.bridge:
    name: br0
    netns: lab

- name: Remove a bridge, but not from under guests
  hostnet.qemu.bridge:
    name: br0
    state: absent
"""

RETURN = r"""
bridge:
  description:
    - The bridge as it is after the task, or in check mode as it would be, in the words of the options.
  returned: success
  type: dict
  contains:
    name:
      description: The name of the bridge.
      type: str
      returned: always
      sample: br0
    state:
      description: V(present) or V(absent).
      type: str
      returned: always
      sample: present
    up:
      description: Whether the bridge is up.
      type: bool
      returned: when the bridge is present
      sample: true
    ports:
      description: The ports, except for taps that end with the guest that made them.
      type: list
      elements: str
      returned: when the bridge is present
      sample: [eth1]
    held_ports:
      description: The taps among the ports that a guest holds.
      type: list
      elements: str
      returned: when the bridge is present
      sample: [tap0]
    mtu:
      description: The MTU in bytes.
      type: int
      returned: when the bridge is present
      sample: 1500
    mac:
      description: The MAC address; V(null) in check mode where the kernel would choose one.
      type: str
      returned: when the bridge is present
      sample: 02:5b:1f:87:c2:0e
    mac_pinned:
      description:
        - Whether the MAC address was set, so that the bridge does not take one from its ports.
        - V(null) if it can't be found out, because sysfs can't be read.
      type: bool
      returned: when the bridge is present
      sample: true
    alias:
      description: The text for people; an empty string if there is none.
      type: str
      returned: when the bridge is present
      sample: guests of the lab
    stp:
      description: Whether the bridge runs STP.
      type: bool
      returned: when the bridge is present
      sample: false
    priority:
      description: The priority in STP.
      type: int
      returned: when the bridge is present
      sample: 32768
    forward_delay:
      description: The forward delay in seconds.
      type: float
      returned: when the bridge is present
      sample: 0.0
    hello_time:
      description: The hello time in seconds.
      type: float
      returned: when the bridge is present
      sample: 2.0
    max_age:
      description: The longest validity of a message of STP in seconds.
      type: float
      returned: when the bridge is present
      sample: 20.0
    ageing_time:
      description: The ageing time in seconds.
      type: float
      returned: when the bridge is present
      sample: 300.0
    multicast_snooping:
      description: Whether the bridge listens to IGMP and MLD; V(null) on a kernel without it.
      type: bool
      returned: when the bridge is present
      sample: true
    multicast_querier:
      description: Whether the bridge sends queries; V(null) on a kernel without multicast snooping.
      type: bool
      returned: when the bridge is present
      sample: false
    group_fwd_mask:
      description: The mask of the group addresses that are forwarded.
      type: int
      returned: when the bridge is present
      sample: 0
    vlan_filtering:
      description: Whether the bridge keeps VLANs apart.
      type: bool
      returned: when the bridge is present
      sample: true
    vlan_default_pvid:
      description: The VLAN of ports that nobody gave one; V(null) on a kernel without VLAN filtering.
      type: int
      returned: when the bridge is present
      sample: 1
    vlans:
      description: The VLANs of the host with a tag, as the shortest list; V(null) if the bridge does not filter VLANs.
      type: list
      elements: str
      returned: when the bridge is present
      sample: ["100", "110-120"]
    addresses:
      description: The addresses, except for link-local ones and those that somebody renews.
      type: list
      elements: str
      returned: when the bridge is present
      sample: [192.0.2.10/24]
operations:
  description:
    - What was done, or in check mode would be done, in order, each as the command of iproute2 that does the same.
    - Empty if there was nothing to do.
  returned: success
  type: list
  elements: str
  sample:
    - ip link add name br0 address 02:5b:1f:87:c2:0e type bridge stp_state 0
    - ip link set dev eth1 master br0
    - ip link set dev br0 up
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hostnet.qemu.plugins.module_utils.links.host import machine_id
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import (
    BRIDGE_REQUIRED_IF,
    Bridge,
    LinksError,
    bridge_argument_spec,
    describe,
)
from ansible_collections.hostnet.qemu.plugins.module_utils.links.plan import given
from ansible_collections.hostnet.qemu.plugins.module_utils.links_module import (
    TASK_OPTIONS,
    commands,
    reconcile,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**bridge_argument_spec(), **TASK_OPTIONS},
        required_if=BRIDGE_REQUIRED_IF,
        supports_check_mode=True,
    )
    try:
        bridge = Bridge.from_arguments(module.params, machine_id, module.params["netns"])
        outcome = reconcile(module, [bridge], all_addresses=True)
    except LinksError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(outcome.plan.steps),
        operations=commands(module, outcome),
        bridge=describe(outcome.after, bridge.name),
        diff={"before": given(bridge, outcome.plan.before), "after": given(bridge, outcome.after)},
    )


if __name__ == "__main__":
    main()
