#!/usr/bin/python
# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tell of the taps of the running kernel, and of who holds them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tap_info
short_description: Tell of the taps of a host and of who holds them
version_added: 1.0.0
author:
  - The hostnet.qemu authors (@hostnet)
description:
  - Returns all persistent taps of the running kernel, whoever made them, in the options of M(hostnet.qemu.tap). Given
    to M(hostnet.qemu.links), they change nothing on the same host, and make the same taps on another one.
  - Besides, returns facts on every tap, also on those that end with the guest that made them, such as the processes
    that hold it, its owner's name, and its counters.
  - Changes nothing. It attaches to no tap.
requirements:
  - The capability CAP_SYS_PTRACE, to see the processes of other users.
extends_documentation_fragment:
  - hostnet.qemu.attributes
  - hostnet.qemu.attributes.info_module
  - hostnet.qemu.links.info
attributes:
  check_mode:
    details:
      - A missing O(netns) is only warned about, as an earlier task would have made it, and nothing is returned.
seealso:
  - module: hostnet.qemu.tap
  - module: hostnet.qemu.links
  - module: hostnet.qemu.bridge_info
"""

EXAMPLES = r"""
- name: Look at all taps
  hostnet.qemu.tap_info:
  register: taps

- name: Remove the taps that nobody holds
  hostnet.qemu.links:
    taps: "{{ taps.taps | selectattr('name', 'in', idle) | map('combine', {'state': 'absent'}) }}"
  vars:
    idle: "{{ taps.facts | dict2items | selectattr('value.held', 'eq', '') | map(attribute='key') }}"

- name: Look at the tap of a guest
  hostnet.qemu.tap_info:
    name: tap0
  register: tap0

- name: Say who holds it
  ansible.builtin.debug:
    msg: "{{ tap0.facts.tap0.holders | map(attribute='command') | join(', ') }}"
  when: "'tap0' in tap0.facts"
"""

RETURN = r"""
taps:
  description:
    - The persistent taps, by name, each as a dictionary of the options of M(hostnet.qemu.tap), in the same units.
    - Only what can be set is there. V(mac) is left out unless it was set. V(owner) and V(group) are ids, or empty
      strings for a tap that was given to nobody. V(bridge) is empty for a tap that is alone, and left out if it belongs
      to something else than a bridge, such as a bond or Open vSwitch. V(pvid), V(untagged) and V(tagged) are there if
      the bridge filters VLANs. Values are left out that M(hostnet.qemu.tap) refuses, and options that this kernel does
      not have.
    - A tap whose name M(hostnet.qemu.tap) refuses is in RV(facts) only.
  returned: success
  type: list
  elements: dict
  sample:
    - name: tap0
      up: true
      mtu: 1500
      alias: ""
      txqueuelen: 1000
      ipv6: false
      owner: "1000"
      group: ""
      multi_queue: false
      vnet_hdr: false
      packet_info: false
      bridge: br0
      cost: 100
      priority: 32
      hairpin: false
      guard: false
      learning: true
      unicast_flood: true
      multicast_flood: true
      isolated: false
      locked: false
      pvid: 10
      untagged: ["10"]
      tagged: ["20", "30-39"]
facts:
  description:
    - What is known of each tap, by its name, persistent or not. Bytes of a name that are not UTF-8 are written as
      V(\\xNN).
    - Each has the options of M(hostnet.qemu.tap) with their present values, V(bridge) apart, V(null) for
      what it or this kernel does not have, and what is listed here.
  returned: success
  type: dict
  contains:
    index:
      description: The index of the link.
      type: int
      returned: success
      sample: 7
    persistent:
      description: Whether it stays when its user ends. A tap that does not is a running guest's own.
      type: bool
      returned: success
      sample: true
    held:
      description: How a guest holds it; an empty string if none does.
      type: str
      returned: success
      sample: a tap with a carrier
    holders:
      description:
        - The processes that are attached to it, as far as the user of the task may see them.
      type: list
      elements: dict
      returned: success
      contains:
        pid:
          description: The id of the process.
          type: int
          returned: success
          sample: 4711
        command:
          description: The name of the process, up to 15 bytes (C(/proc/PID/comm)).
          type: str
          returned: success
          sample: qemu-system-x86
        user:
          description: The user that it belongs to, by name, or by id if that has none.
          type: str
          returned: success
          sample: alice
    queues:
      description:
        - The queues in use. The kernel counts those of a tap with several; another one has 1 if a process is attached.
      type: int
      returned: success
      sample: 1
    disabled_queues:
      description: The queues of a tap with several that are attached, but turned off by their user.
      type: int
      returned: success
      sample: 0
    carrier:
      description: Whether it has a carrier, which it has while somebody is attached, unless that one turned it off.
      type: bool
      returned: success
      sample: true
    owner:
      description: The id of the user who may attach; V(null) if it was never given.
      type: int
      returned: success
      sample: 1000
    owner_name:
      description: The name of that user; V(null) if there is none.
      type: str
      returned: success
      sample: alice
    group:
      description: The id of the group whose members may attach; V(null) if it was never given.
      type: int
      returned: success
      sample: null
    group_name:
      description: The name of that group; V(null) if there is none.
      type: str
      returned: success
      sample: null
    mac:
      description: The MAC address of the host's end in use.
      type: str
      returned: success
      sample: fe:54:00:12:34:56
    mac_pinned:
      description:
        - Whether the MAC address was set, and is not one that the kernel drew.
        - V(null) if it can't be found out, because sysfs can't be read.
      type: bool
      returned: success
      sample: false
    master:
      description: What it belongs to, a bridge or another link; an empty string if it is alone.
      type: str
      returned: success
      sample: br0
    master_kind:
      description: The kind of what it belongs to, as C(ip -d link) shows it; an empty string if it is alone.
      type: str
      returned: success
      sample: bridge
    port_state:
      description:
        - On a bridge V(disabled), V(listening), V(learning), V(forwarding) or V(blocking); else an empty string.
      type: str
      returned: success
      sample: forwarding
    learned:
      description:
        - The addresses that the bridge has learned from frames of the tap and not yet forgotten, in their order.
        - Of more than 100 it holds the first 100; see RV(facts.learned_count).
      type: list
      elements: dict
      returned: success
      contains:
        mac:
          description: The MAC address.
          type: str
          returned: success
          sample: "52:54:00:12:34:56"
        port:
          description: The port that it is behind, which is the tap.
          type: str
          returned: success
          sample: tap0
        vlan:
          description: The VLAN that it is in; 0 if the bridge does not filter VLANs.
          type: int
          returned: success
          sample: 0
    learned_count:
      description: The number of all learned addresses.
      type: int
      returned: success
      sample: 1
    statistics:
      description:
        - What the host received from the guest (C(rx)) and sent to it (C(tx)) since the tap was made, in 64-bit
          counters.
      type: dict
      returned: success
      contains:
        rx_packets:
          description: Packets received from the guest.
          type: int
          returned: success
          sample: 1234
        tx_packets:
          description: Packets sent to the guest.
          type: int
          returned: success
          sample: 1200
        rx_bytes:
          description: Bytes received from the guest.
          type: int
          returned: success
          sample: 104857
        tx_bytes:
          description: Bytes sent to the guest.
          type: int
          returned: success
          sample: 99120
        rx_errors:
          description: Bad packets from the guest.
          type: int
          returned: success
          sample: 0
        tx_errors:
          description: Packets that could not be sent to the guest.
          type: int
          returned: success
          sample: 0
        rx_dropped:
          description: Packets from the guest that were dropped, for lack of memory or because nobody wanted them.
          type: int
          returned: success
          sample: 0
        tx_dropped:
          description: Packets to the guest that were dropped, because nobody is attached or the queue is full.
          type: int
          returned: success
          sample: 0
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hostnet.qemu.plugins.module_utils.links.facts import readable, tap_facts
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import TAP, LinksError, settable_tap
from ansible_collections.hostnet.qemu.plugins.module_utils.links_module import INFO_OPTIONS, inspect


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=INFO_OPTIONS, supports_check_mode=True)
    try:
        inspection, holders = inspect(module, TAP)
    except LinksError as error:
        module.fail_json(msg=str(error))
    network, details = inspection.network, inspection.details
    taps = (settable_tap(network, name) for name in inspection.names)
    module.exit_json(
        changed=False,
        taps=[tap for tap in taps if tap],
        facts={readable(name): tap_facts(network, details, holders, name) for name in inspection.names},
    )


if __name__ == "__main__":
    main()
