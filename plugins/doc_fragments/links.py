# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a bridge and of a tap: for the modules of one, and as those of the elements of a list."""

from __future__ import annotations

import re
import textwrap


def _elements(option: str, kind: str, options: str) -> str:
    """The documentation of a list `option`, whose elements have `options`."""
    names = re.findall(r"^  (\w+):$", options, re.MULTILINE)
    # What refers to another option means that of the same element.
    referring = re.sub(rf"O\(({'|'.join(names)})(?=[=)])", rf"O({option}[].\1", options)
    head = f"""
{option}:
  description:
    - The {kind}s, each as M(hostnet.qemu.{kind}) has it. An option that is not given is left as it is.
    - Each can be listed once.
  type: list
  elements: dict
  default: []
  suboptions:
"""
    return textwrap.indent(head, "  ") + textwrap.indent(referring, "    ")


_BRIDGE = r"""
  name:
    description:
      - The name of the bridge (C(IFLA_IFNAME)), 1 to 15 bytes, without blanks, control bytes, V(/), V(:) and V(%).
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
        away from another bridge. Change O(vlan_default_pvid) of a bridge that filters VLANs and has ports.
      - A guest holds a tap which is not persistent, or has a carrier, or has a queue in use.
      - Also put links that carry the connection of Ansible on or off a bridge, delete them, take them down, or change
        their MAC address, MTU or addresses, or filter VLANs on a bridge among them so that the host's frames without a
        tag do not reach its ports. Those are the link with the server's address of E(SSH_CONNECTION), the one that
        leads to its client, what these lie on, such as the bridge below a VLAN link, and the ports of those that are
        bridges; without an SSH connection it begins with the links of the default routes. It is looked for in the
        namespace of the connection only.
    type: bool
    default: false
  up:
    description:
      - Whether the bridge is up (C(IFF_UP)). A bridge that is taken down keeps its addresses.
      - If true, a link that the task puts on the bridge is brought up as well, since it would carry nothing otherwise.
    type: bool
    default: true
  ports:
    description:
      - Links to have on the bridge (C(IFLA_MASTER)). They must exist, be Ethernet links, and must not be bridges
        themselves.
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
      - The MTU of the bridge in bytes, 68 to 65535 (C(IFLA_MTU)).
      - As long as nobody has changed it, the MTU of a bridge follows the smallest one of its ports.
      - One below 1280 is refused for a bridge with IPv6 addresses, because the kernel would remove them.
    type: int
  mac:
    description:
      - The MAC address of the bridge (C(IFLA_ADDRESS)), a unicast address as six pairs of hexadecimal digits. Put it in
        quotes.
      - An address that is given is pinned. The bridge keeps it whatever ports come and go. Without that, a bridge takes
        the lowest address of its ports, so that it changes with the guests that start and stop, and zeros when the
        last port leaves. An address that is the current one by chance gets pinned too.
      - V(stable) is a locally administered address made from the machine id of the host, the name of the bridge and
        O(netns). It is the same after every reboot, and differs between hosts. It needs C(/etc/machine-id).
      - A change costs those who talk with an address of the bridge itself some packets, until they have asked for its
        MAC address anew. Guests lose nothing of what goes through the bridge.
    type: str
  alias:
    description:
      - A text for people to read, up to 255 bytes of UTF-8 without control characters (C(IFLA_IFALIAS)). C(ip link)
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
  vlan_filtering:
    description:
      - Whether the bridge keeps VLANs (IEEE 802.1Q) apart, so that a frame comes from and goes to only those ports that
        are members of its VLAN (C(IFLA_BR_VLAN_FILTERING)). A fresh bridge forwards everything to everybody.
      - A port that nobody gave VLANs is a member of O(vlan_default_pvid), so turning this on leaves the ports together.
        Those of a tap are options of M(hostnet.qemu.tap). Other ports keep what they have.
      - It is turned on when all else is done, so that the ports have their VLANs when it begins to matter.
      - The kernel needs C(CONFIG_BRIDGE_VLAN_FILTERING), which distributions have.
    type: bool
  vlan_default_pvid:
    description:
      - The VLAN of ports that nobody gave one, for frames without a tag, 1 to 4094 (C(IFLA_BR_VLAN_DEFAULT_PVID)). A
        fresh bridge has 1. With 0, new ports are members of no VLAN, and carry nothing while the bridge filters.
      - The bridge itself is one of these ports, so this is also the VLAN of the host's own frames without a tag.
      - A port that has the old value as its VLAN for such frames gets the new one instead, unless it is a member of
        that already. If the old value is 0, all those do that are no members of it yet.
      - The kernel changes it only while O(vlan_filtering) is off. On a bridge that filters and has ports, the task
        fails unless O(force=true). Filtering is then off for a moment, in which the ports reach each other across all
        VLANs.
    type: int
  vlans:
    description:
      - The VLANs that the host itself is a member of with a tag (C(IFLA_BRIDGE_VLAN_INFO)), as VLAN links such as
        C(br0.100) on top of the bridge need it. Numbers and ranges, such as V(100) and V(110-120), 1 to 4094.
      - The list is the whole list. A VLAN that it does not name is taken away. An empty list takes them all.
      - The VLAN that the host has without a tag, see O(vlan_default_pvid), is not touched, listed or not.
      - It is refused for a bridge that does not filter VLANs, because it would do nothing there.
    type: list
    elements: str
  addresses:
    description:
      - IPv4 and IPv6 addresses of the bridge (C(IFA_LOCAL)) with their prefix lengths, such as V(192.0.2.1/24) and
        V(2001:db8::1/64). One with a peer is written as V(10.0.0.1 peer 10.0.0.2/32).
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
"""

_TAP = r"""
  name:
    description:
      - The name of the tap (C(IFLA_IFNAME)), 1 to 15 bytes, without blanks, control bytes, V(/), V(:) and V(%).
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
      - Whether the tap is up (C(IFF_UP)). An unprivileged guest can't bring it up itself.
      - A tap that is taken down loses its IPv6 addresses.
    type: bool
    default: true
  owner:
    description:
      - The user who may attach to the tap, a name or an id (C(TUNSETOWNER)). If the tap has a group as well, the
        user must also be in that. Who has CAP_NET_ADMIN may attach in any case.
      - A new tap belongs to root if neither O(owner) nor O(group) is given.
      - An empty string asks for no owner. With neither owner nor group, every user of the host who can open
        C(/dev/net/tun) may attach, and so be on the bridge (C(tun_not_capable) in the kernel).
      - The kernel can't take an owner away, so an empty string fails if there is one.
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
      - The bridge to have the tap on (C(IFLA_MASTER)). It must exist.
      - An empty string takes the tap off its bridge.
    type: str
  mtu:
    description:
      - The MTU of the tap in bytes (C(IFLA_MTU)), 68 to 65521 (C(MAX_MTU) in the kernel's C(tun.c), less the Ethernet
        header).
      - If it is not given, a new tap gets the MTU of O(bridge).
      - One below 1280 takes IPv6 off the tap.
    type: int
  mac:
    description:
      - The MAC address of the host's end (C(IFLA_ADDRESS)), a unicast address as six pairs of hexadecimal digits. Put
        it in quotes. The guest has one of its own, which must differ.
      - A bridge without an address of its own takes the lowest one of its ports. One that begins with V(fe) stays out
        of that.
    type: str
  alias:
    description:
      - A text for people to read, up to 255 bytes of UTF-8 without control characters (C(IFLA_IFALIAS)). C(ip link)
        shows it.
      - An empty string removes it.
    type: str
  txqueuelen:
    description:
      - How many packets to the guest wait in the queue, 0 to 4294967295 (C(IFLA_TXQLEN)). A new tap has 1000. The
        kernel takes memory for all of them.
      - A change costs a running guest the packets that come in that moment (C(dev_qdisc_change_tx_queue_len)).
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
  pvid:
    description:
      - The VLAN of frames that come from the tap without a tag, 1 to 4094 (C(BRIDGE_VLAN_INFO_PVID)). With 0, such
        frames are dropped.
      - On a new port it is the C(vlan_default_pvid) of the bridge.
      - With O(pvid) alone, O(untagged) is this VLAN and no other, unless O(tagged) lists it. So the guest is in this
        VLAN, without knowing of it, and leaves what it was in without a tag before.
      - This option, O(untagged) and O(tagged) need a bridge that filters VLANs. On another one they would do nothing,
        and are refused. See O(hostnet.qemu.bridge#module:vlan_filtering).
    type: int
  untagged:
    description:
      - The VLANs whose frames go to the tap without a tag (C(BRIDGE_VLAN_INFO_UNTAGGED)). Numbers and ranges, such as
        V(100) and V(110-120), 1 to 4094.
      - The list is the whole list. A VLAN that it does not name is taken from the tap, or moves to O(tagged) if that
        lists it. An empty list takes them all.
      - The tap must be a member of its O(pvid), untagged or tagged, so give both where one changes.
    type: list
    elements: str
  tagged:
    description:
      - The VLANs whose frames go to the tap with their tag (C(IFLA_BRIDGE_VLAN_INFO)), for a guest that tells them
        apart. Numbers and ranges as in O(untagged), in which they can't be as well.
      - The list is the whole list. A VLAN that it does not name is taken from the tap, or moves to O(untagged) if that
        lists it. An empty list takes them all.
    type: list
    elements: str
"""


# Of a task, whatever it makes.
_NETNS = r"""
  netns:
    description:
      - The network namespace to work in, a name that C(ip netns list) shows. The default is that of the module's
        process.
      - A missing one fails the task. In check mode it is only warned about, as an earlier task would have made it, and
        the task reports what it would make in one that has nothing but the links to build on.
    type: str
"""

_REQUIREMENTS = r"""
requirements:
  - pyroute2 >= 0.5.14 on the host, but for what touches neither addresses nor routes, as making a tap does. Where the
    Python that Ansible uses lacks it, the module runs under the host's own Python that has it. Debian, Ubuntu, Fedora
    and EPEL call the package C(python3-pyroute2).
  - The capability CAP_NET_ADMIN, and CAP_SYS_ADMIN to use O(netns).
"""
_TAP_REQUIREMENTS = f"""{_REQUIREMENTS.rstrip()}
  - The device C(/dev/net/tun), to make a tap or to change its owner or group.
"""


class ModuleDocFragment:
    """Options of one bridge, of one tap, and of lists of both, and of what tells of them."""

    # Annotated, since the yamllint of ansible-test takes what is assigned plainly for a literal.
    BRIDGE: str = f"options:{_BRIDGE}{_NETNS}{_REQUIREMENTS}"
    TAP: str = f"options:{_TAP}{_NETNS}{_TAP_REQUIREMENTS}"
    BOTH: str = (
        f"options:{_elements('bridges', 'bridge', _BRIDGE)}{_elements('taps', 'tap', _TAP)}{_NETNS}{_TAP_REQUIREMENTS}"
    )
    INFO = r"""
options:
  name:
    description:
      - What to tell of, a name or a list of names. If it is not given, all are told of.
      - A name that none has is passed over. It is missing from what is returned.
      - A name with a comma must be in a list, since Ansible takes one alone for several.
    type: list
    elements: str
  netns:
    description:
      - The network namespace to look into, a name that C(ip netns list) shows. The default is that of the module's
        process.
      - A missing one fails the task.
    type: str
requirements:
  - The capability CAP_SYS_ADMIN to use O(netns). Without it, V(mac) is told only if C(/sys) shows the namespace of the
    task.
"""
