#!/usr/bin/python
# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make, change or remove a persistent tap of the running kernel."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tap
short_description: Make, change or remove a persistent tap for a guest
version_added: 0.1.0
author:
  - The hostnet.qemu authors (@hostnet)
description:
  - Brings a persistent tap of the running kernel into the state asked for. Its owner can run a guest on it without any
    privilege and without a helper, in QEMU with C(-netdev tap,ifname=tap0,script=no,downscript=no).
  - An option that is not given is left as it is. The exceptions are O(up), and O(ipv6) of a tap with O(bridge).
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
requirements:
  - pyroute2 >= 0.5.14 on the host. Where the Python that Ansible uses lacks it, the module runs under the host's own
    Python that has it. Debian, Ubuntu, Fedora and EPEL call the package C(python3-pyroute2).
  - The device C(/dev/net/tun), to make a tap or to change its owner or group.
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
      - The name of the tap, 1 to 15 bytes, without blanks, control bytes, V(/), V(:) and V(%).
      - A link of this name that is not a tap is never touched. The task fails.
    type: str
    required: true
  state:
    description:
      - With V(present), the tap exists, is persistent, and is as the other options say.
      - With V(absent), it does not exist. Of the other options, only O(force) and O(netns) have a meaning then.
    type: str
    choices:
      - present
      - absent
    default: present
  force:
    description:
      - Do what cuts off the guest that holds the tap. Remove it, take it down, take it off its bridge.
      - Also do so with a tap that carries the connection of Ansible, and change its MAC address or MTU. See the option
        O(hostnet.qemu.bridge#module:force).
    type: bool
    default: false
  up:
    description:
      - Whether the tap is up. An unprivileged guest can't bring it up itself.
      - A tap that is taken down loses its IPv6 addresses.
    type: bool
    default: true
  owner:
    description:
      - The user who may attach to the tap, a name or an id (C(TUNSETOWNER)). A tap with neither an owner nor a group is
        open to CAP_NET_ADMIN only. One with both needs a user who is the owner and in the group.
      - An empty string asks for none. The kernel can't take an owner away, so this fails if there is one.
      - It can't be changed while a guest holds the tap.
    type: str
  group:
    description:
      - The group whose members may attach to the tap, a name or an id (C(TUNSETGROUP)). See O(owner).
    type: str
  multi_queue:
    description:
      - Whether the tap can have more than one queue (C(IFF_MULTI_QUEUE)), for C(queues=N) in QEMU. A new one can't if
        this is not given.
      - The kernel can't change it. If the tap exists otherwise, the task fails.
    type: bool
  vnet_hdr:
    description:
      - Whether a new tap has headers for checksum and segmentation offload (C(IFF_VNET_HDR)).
      - Whoever attaches to the tap says this anew, as QEMU does, so it is not compared with an existing one.
    type: bool
    default: false
  packet_info:
    description:
      - Whether frames of a new tap are preceded by four bytes with flags and protocol (C(IFF_NO_PI) is not set). No
        virtual machine wants that.
      - Whoever attaches to the tap says this anew, so it is not compared with an existing one.
    type: bool
    default: false
  bridge:
    description:
      - The bridge to have the tap on. It must exist.
      - An empty string takes the tap off its bridge.
    type: str
  mtu:
    description:
      - The MTU of the tap in bytes, 68 to 65521 (C(MAX_MTU) in the kernel's C(tun.c), less the Ethernet header).
      - If it is not given, a new tap gets the MTU of O(bridge).
      - One below 1280 takes IPv6 off the tap.
    type: int
  mac:
    description:
      - The MAC address of the host's end, a unicast address as six pairs of hexadecimal digits. Put it in quotes. The
        guest has one of its own, which must differ.
      - A bridge without an address of its own takes the lowest one of its ports. One that begins with V(fe) stays out
        of that.
    type: str
  alias:
    description:
      - A text for people to read, up to 254 bytes of UTF-8 without control characters (C(IFLA_IFALIAS)). C(ip link)
        shows it.
      - An empty string removes it.
    type: str
  txqueuelen:
    description:
      - How many packets to the guest wait in the queue, 0 to 4294967295 (C(IFLA_TXQLEN)). A new tap has 1000. The
        kernel takes memory for all of them.
    type: int
  ipv6:
    description:
      - Whether the kernel gives the host's end an IPv6 link-local address when it comes up
        (C(IFLA_INET6_ADDR_GEN_MODE)). One that is there stays until the tap is taken down.
      - If it is not given and O(bridge) is, it is false, since a port of a bridge has no use for an address.
    type: bool
  isolated:
    description:
      - Whether the tap exchanges no frames with other isolated ports of the bridge (C(IFLA_BRPORT_ISOLATED)). A new
        port is not isolated.
      - This option and the others of ports need the tap to be on a bridge.
    type: bool
  learning:
    description:
      - Whether the bridge learns the MAC addresses behind the tap (C(IFLA_BRPORT_LEARNING)). On a new port it does.
    type: bool
  unicast_flood:
    description:
      - Whether frames to addresses that the bridge does not know go to the tap (C(IFLA_BRPORT_UNICAST_FLOOD)). On a new
        port they do.
    type: bool
  multicast_flood:
    description:
      - Whether frames to multicast groups that the bridge does not know go to the tap (C(IFLA_BRPORT_MCAST_FLOOD)). On
        a new port they do.
    type: bool
  hairpin:
    description:
      - Whether a frame can leave through the tap that it came from (C(IFLA_BRPORT_MODE)). On a new port it can't.
    type: bool
  guard:
    description:
      - Whether the tap is disabled when a message of the Spanning Tree Protocol comes from it (C(IFLA_BRPORT_GUARD)). A
        new port is not.
    type: bool
  locked:
    description:
      - Whether only frames from addresses that the bridge knows on this tap are let in (C(IFLA_BRPORT_LOCKED), Linux
        5.18). On a new port all are.
    type: bool
  cost:
    description:
      - The path cost of the tap in the Spanning Tree Protocol, 1 to 65535 (C(IFLA_BRPORT_COST)). If nobody sets one, it
        follows from the speed.
    type: int
  priority:
    description:
      - The priority of the tap among the ports in the Spanning Tree Protocol, 0 to 63 (C(IFLA_BRPORT_PRIORITY)). A new
        port has 32.
    type: int
  netns:
    description:
      - The network namespace to work in, a name that C(ip netns list) shows. The default is that of the module's
        process.
      - A missing one fails the task. In check mode it is only warned about, as an earlier task would have made it, and
        the task reports what it would make in one that holds O(bridge).
    type: str
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
    require_pyroute2,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={**tap_argument_spec(), **TASK_OPTIONS}, supports_check_mode=True)
    require_pyroute2(module)
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
