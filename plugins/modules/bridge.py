#!/usr/bin/python
# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make, change or remove a bridge of the running kernel."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bridge
short_description: Make, change or remove a network bridge
version_added: 0.1.0
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
requirements:
  - pyroute2 >= 0.5.14 on the host. Where the Python that Ansible uses lacks it, the module runs under the host's own
    Python that has it. Debian, Ubuntu, Fedora and EPEL call the package C(python3-pyroute2).
  - The capability CAP_NET_ADMIN, and CAP_SYS_ADMIN to use O(netns).
extends_documentation_fragment:
  - hostnet.qemu.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - The diff holds the options that were given, before and after.
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
options:
  name:
    description:
      - The name of the bridge, 1 to 15 bytes, without blanks, control bytes, V(/), V(:) and V(%).
      - A link of this name that is not a bridge is never touched. The task fails.
    type: str
    required: true
  state:
    description:
      - With V(present), the bridge exists and is as the other options say.
      - With V(absent), it does not exist. Of the other options, only O(force) and O(netns) have a meaning then. Links
        that were its ports stay.
    type: str
    choices:
      - present
      - absent
    default: present
  force:
    description:
      - Do what cuts somebody off. Remove a bridge although guests hold taps on it, and take links that O(ports) lists
        away from another bridge.
      - A guest holds a tap which is not persistent, or has a carrier, or has a queue in use.
      - Also put links that carry the connection of Ansible on or off a bridge, delete them, take them down, or change
        their MAC address, MTU or addresses. Those are the link with the server's address of E(SSH_CONNECTION), the one
        that leads to its client, and the ports of these if they are bridges; without an SSH connection the links of the
        default routes. It is looked for in the namespace of the connection only.
    type: bool
    default: false
  up:
    description:
      - Whether the bridge is up. A bridge that is taken down keeps its addresses.
      - If true, a link that the task puts on the bridge is brought up as well, since it would carry nothing otherwise.
    type: bool
    default: true
  ports:
    description:
      - Links to have on the bridge. They must exist, be Ethernet links, and must not be bridges themselves.
      - A link that belongs to another bridge is refused unless O(force=true). One that belongs to anything else, such
        as a bond, is always refused.
      - An IP address on a port does not work any more. Move it to O(addresses) of the bridge.
      - Which ports the bridge loses is said by O(ports_mode).
    type: list
    elements: str
  ports_mode:
    description:
      - With V(append), ports that O(ports) does not list stay.
      - With V(exact), they leave the bridge, except for taps that a guest holds. It needs O(ports) to be given.
    type: str
    choices:
      - append
      - exact
    default: append
  mtu:
    description:
      - The MTU of the bridge in bytes, 68 to 65535 (C(dev_set_mtu) in the kernel).
      - As long as nobody has changed it, the MTU of a bridge follows the smallest one of its ports.
      - One below 1280 is refused for a bridge with IPv6 addresses, because the kernel would remove them.
    type: int
  mac:
    description:
      - The MAC address of the bridge, a unicast address as six pairs of hexadecimal digits. Put it in quotes.
      - An address that is given is pinned. The bridge keeps it whatever ports come and go. Without that, a bridge takes
        the lowest address of its ports, so that it changes with the guests that start and stop, and zeros when the
        last port leaves. An address that is the current one by chance gets pinned too.
      - V(stable) is a locally administered address made from the machine id of the host, the name of the bridge and
        O(netns). It is the same after every reboot, and differs between hosts. It needs C(/etc/machine-id).
    type: str
  alias:
    description:
      - A text for people to read, up to 254 bytes of UTF-8 without control characters (C(IFLA_IFALIAS)). C(ip link)
        shows it.
      - An empty string removes it.
    type: str
  stp:
    description:
      - Whether the bridge runs the Spanning Tree Protocol (C(IFLA_BR_STP_STATE)).
    type: bool
  priority:
    description:
      - The priority of the bridge in the Spanning Tree Protocol, 0 to 65535 (C(IFLA_BR_PRIORITY)). The bridge with the
        lowest one becomes the root. A fresh bridge has 32768.
    type: int
  forward_delay:
    description:
      - With STP on, how long a port listens, and then learns, before it forwards, in seconds
        (C(IFLA_BR_FORWARD_DELAY)). Without STP a port forwards at once. Fractions are allowed. Two values are equal if
        they differ by no more than 0.01 s.
      - With STP on, the kernel accepts 2 to 30 s. Another value is refused before any change, and so is turning on STP
        on a bridge that has one.
    type: float
  hello_time:
    description:
      - With STP on, how often the root sends its messages, in seconds, 1 to 10 (C(IFLA_BR_HELLO_TIME)). Fractions are
        allowed. Two values are equal if they differ by no more than 0.01 s.
    type: float
  max_age:
    description:
      - With STP on, how long a message of another bridge is valid, in seconds, 6 to 40 (C(IFLA_BR_MAX_AGE)). After
        that the bridge takes that one for lost. Fractions are allowed. Two values are equal if they differ by no more
        than 0.01 s.
    type: float
  ageing_time:
    description:
      - How long the bridge remembers a MAC address that it does not hear of, in seconds (C(IFLA_BR_AGEING_TIME)).
        Fractions are allowed. Two values are equal if they differ by no more than 0.01 s.
    type: float
  multicast_snooping:
    description:
      - Whether the bridge listens to IGMP and MLD, and forwards the frames of a group only to ports that asked for it
        (C(IFLA_BR_MCAST_SNOOPING)). A fresh bridge does.
      - Without a querier in the network, members are forgotten after some minutes. See O(multicast_querier).
    type: bool
  multicast_querier:
    description:
      - Whether the bridge sends IGMP and MLD queries itself if it hears no other querier (C(IFLA_BR_MCAST_QUERIER)).
        It has no effect as long as snooping is off.
    type: bool
  group_fwd_mask:
    description:
      - Which frames of protocols between neighbours the bridge forwards, a mask of 16 bits (C(IFLA_BR_GROUP_FWD_MASK)).
        Bit N stands for the group address C(01:80:C2:00:00:0N). A fresh bridge has 0 and forwards none.
      - V(0x4000), bit 14, forwards LLDP, and V(0x8), bit 3, 802.1X.
      - Bits 0, 1 and 2 are refused, because the kernel never forwards these.
    type: int
  addresses:
    description:
      - IPv4 and IPv6 addresses of the bridge with their prefix lengths, such as V(192.0.2.1/24) and V(2001:db8::1/64).
        One with a peer is written as V(10.0.0.1 peer 10.0.0.2/32).
      - An IPv6 address that the bridge has with another prefix length is removed and added, because the kernel
        can't change the length.
    type: list
    elements: str
  addresses_mode:
    description:
      - With V(append), addresses that O(addresses) does not list stay.
      - With V(exact), they are removed, except for link-local ones and those that a DHCP client or router
        advertisements renew. It needs O(addresses) to be given.
    type: str
    choices:
      - append
      - exact
    default: append
  netns:
    description:
      - The network namespace to work in, a name that C(ip netns list) shows. The default is that of the module's
        process.
      - A missing one fails the task. In check mode it is only warned about, as an earlier task would have made it, and
        the task reports what it would make in an empty one.
    type: str
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
    require_pyroute2,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**bridge_argument_spec(), **TASK_OPTIONS},
        required_if=BRIDGE_REQUIRED_IF,
        supports_check_mode=True,
    )
    require_pyroute2(module)
    try:
        bridge = Bridge.from_arguments(module.params, machine_id, module.params["netns"])
        outcome = reconcile(module, [bridge])
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
