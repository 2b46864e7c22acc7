#!/usr/bin/python
# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tell of the bridges of the running kernel."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bridge_info
short_description: Tell of the network bridges of a host
version_added: 1.0.0
author:
  - The hostnet.qemu authors (@hostnet)
description:
  - Returns all bridges of the running kernel, whoever made them, in the options of M(hostnet.qemu.bridge). Given to
    M(hostnet.qemu.links), they change nothing on the same host, and make the same bridges on another one.
  - Besides, returns facts on each, such as its ports, the addresses that it has learned, and its counters.
  - Changes nothing.
requirements:
  - pyroute2 >= 0.5.14 on the host, if there is a bridge. Where the Python that Ansible uses lacks it, the module runs
    under the host's own Python that has it. Debian, Ubuntu, Fedora and EPEL call the package C(python3-pyroute2).
extends_documentation_fragment:
  - hostnet.qemu.attributes
  - hostnet.qemu.attributes.info_module
  - hostnet.qemu.links.info
attributes:
  check_mode:
    details:
      - A missing O(netns) is only warned about, as an earlier task would have made it, and nothing is returned.
seealso:
  - module: hostnet.qemu.bridge
  - module: hostnet.qemu.links
  - module: hostnet.qemu.tap_info
"""

EXAMPLES = r"""
- name: Look at all bridges
  hostnet.qemu.bridge_info:
  register: bridges

- name: Look at all taps
  hostnet.qemu.tap_info:
  register: taps

- name: Make the same on other hosts
  hostnet.qemu.links:
    bridges: "{{ bridges.bridges }}"
    taps: "{{ taps.taps }}"
  delegate_to: "{{ item }}"
  loop: "{{ groups['spare'] }}"

- name: Look at one bridge
  hostnet.qemu.bridge_info:
    name: br0
  register: br0

- name: See that the bridge is there and forwards to its uplink
  ansible.builtin.assert:
    that:
      - "'br0' in br0.facts"
      - br0.facts.br0.ports | selectattr('name', 'eq', 'eth1') | map(attribute='state') | list == ['forwarding']

- name: Turn STP on wherever it is off
  hostnet.qemu.links:
    bridges: "{{ bridges.bridges | rejectattr('stp') | map('combine', {'stp': true, 'forward_delay': 2}) }}"
"""

RETURN = r"""
bridges:
  description:
    - The bridges, by name, each as a dictionary of the options of M(hostnet.qemu.bridge), in the same units.
    - Only what can be set is there. V(mac) is left out unless it was set, and V(mtu) if it is the one that follows from
      the ports, since to give them would pin them. V(ports) has no taps that end with their guest, V(addresses) none
      that are link-local or that somebody renews. V(vlans) is there if the bridge filters VLANs. Values are left out
      that M(hostnet.qemu.bridge) refuses, and options that this kernel does not have.
    - A bridge whose name M(hostnet.qemu.bridge) refuses is in RV(facts) only.
    - V(forward_delay), V(hello_time) and V(max_age) are those in use. With STP on, the root bridge dictates them.
  returned: success
  type: list
  elements: dict
  sample:
    - name: br0
      up: true
      mac: 02:5b:1f:87:c2:0e
      alias: ""
      stp: false
      priority: 32768
      forward_delay: 15.0
      hello_time: 2.0
      max_age: 20.0
      ageing_time: 300.0
      multicast_snooping: true
      multicast_querier: false
      group_fwd_mask: 0
      vlan_filtering: true
      vlan_default_pvid: 1
      vlans: ["100", "110-120"]
      ports: [eth1]
      addresses: [192.0.2.10/24]
facts:
  description:
    - What is known of each bridge, by its name. Bytes of a name that are not UTF-8 are written as V(\\xNN).
    - Each has the options of M(hostnet.qemu.bridge) with their present values, V(null) for what this kernel does not
      have, and what is listed here.
  returned: success
  type: dict
  contains:
    index:
      description: The index of the link.
      type: int
      returned: success
      sample: 3
    carrier:
      description: Whether it has a carrier, which it has while it is up and a port forwards.
      type: bool
      returned: success
      sample: true
    mac:
      description: The MAC address in use.
      type: str
      returned: success
      sample: 02:5b:1f:87:c2:0e
    mac_pinned:
      description: Whether the MAC address was set. V(null) if it can't be found out, because sysfs can't be read.
      type: bool
      returned: success
      sample: true
    bridge_id:
      description: The bridge's id in STP, its priority in hexadecimal and its MAC address.
      type: str
      returned: success
      sample: 8000.02:5b:1f:87:c2:0e
    root_id:
      description: The id of the root bridge in STP, which is that of the bridge if it is the root.
      type: str
      returned: success
      sample: 8000.02:5b:1f:87:c2:0e
    ports:
      description: All ports, by name.
      type: list
      elements: dict
      returned: success
      contains:
        name:
          description: The name of the port.
          type: str
          returned: success
          sample: tap0
        kind:
          description: The kind of link, as C(ip -d link) shows it; an empty string for a network card.
          type: str
          returned: success
          sample: tun
        state:
          description: V(disabled), V(listening), V(learning), V(forwarding) or V(blocking).
          type: str
          returned: success
          sample: forwarding
        persistent:
          description: Whether it stays when its user ends; V(false) for the tap of a guest that made it.
          type: bool
          returned: success
          sample: true
        held:
          description: How a guest holds it; an empty string if none does.
          type: str
          returned: success
          sample: a tap with a carrier
    addresses:
      description: All IP addresses.
      type: list
      elements: dict
      returned: success
      contains:
        address:
          description: The address with its prefix length, and its peer if it has one.
          type: str
          returned: success
          sample: 192.0.2.10/24
        dynamic:
          description: Whether somebody has to renew it, such as a DHCP client.
          type: bool
          returned: success
          sample: false
        valid_seconds:
          description: The seconds for which it stays; V(null) for ever.
          type: int
          returned: success
          sample: null
    learned:
      description:
        - The addresses that the bridge has learned from frames and not yet forgotten, in their order.
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
          description: The port that it is behind.
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
        - What the host received from the bridge (C(rx)) and sent into it (C(tx)) since the bridge was made, in 64-bit
          counters. Frames from port to port are not counted here.
      type: dict
      returned: success
      contains:
        rx_packets:
          description: Packets received.
          type: int
          returned: success
          sample: 1234
        tx_packets:
          description: Packets sent.
          type: int
          returned: success
          sample: 1200
        rx_bytes:
          description: Bytes received.
          type: int
          returned: success
          sample: 104857
        tx_bytes:
          description: Bytes sent.
          type: int
          returned: success
          sample: 99120
        rx_errors:
          description: Bad packets received.
          type: int
          returned: success
          sample: 0
        tx_errors:
          description: Packets that could not be sent.
          type: int
          returned: success
          sample: 0
        rx_dropped:
          description: Packets that were received and dropped, for lack of memory or because nobody wanted them.
          type: int
          returned: success
          sample: 0
        tx_dropped:
          description: Packets that were dropped before they were sent.
          type: int
          returned: success
          sample: 0
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hostnet.qemu.plugins.module_utils.links.facts import bridge_facts, readable
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import BRIDGE, LinksError, settable
from ansible_collections.hostnet.qemu.plugins.module_utils.links_module import INFO_OPTIONS, inspect


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=INFO_OPTIONS, supports_check_mode=True)
    try:
        inspection, _holders = inspect(module, BRIDGE)
    except LinksError as error:
        module.fail_json(msg=str(error))
    network, details = inspection.network, inspection.details
    bridges = (settable(network, name) for name in inspection.names)
    module.exit_json(
        changed=False,
        bridges=[bridge for bridge in bridges if bridge],
        facts={readable(name): bridge_facts(network, details, name) for name in inspection.names},
    )


if __name__ == "__main__":
    main()
