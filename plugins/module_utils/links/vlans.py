# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The VLANs of a port of a bridge as values: what the kernel has of them, what an administrator asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

# <linux/if_vlan.h>: 0 stands for no VLAN, and VLAN_VID_MASK (4095) is reserved.
MIN_VLAN, MAX_VLAN = 1, 4094

_NONE: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Vlans:
    """The VLANs that a port is a member of, by how their frames leave it. A bridge is a port of itself: the host's.

    `pvid` is the member that frames without a tag belong to when they come in; 0 if such frames are dropped.
    """

    pvid: int = 0
    untagged: frozenset[int] = _NONE
    tagged: frozenset[int] = _NONE

    @classmethod
    def of_new_port(cls, default: int) -> Vlans:
        """Those of a port that joins a bridge with this default PVID: nbp_vlan_init() in net/bridge/br_vlan.c."""
        return cls(default, frozenset((default,))) if default else cls()

    @property
    def members(self) -> frozenset[int]:
        """All of them."""
        return self.untagged | self.tagged

    def plus(self, vlans: Iterable[int], *, untagged: bool, pvid: bool = False) -> Vlans:
        """These with `vlans`, which become `untagged`, or tagged, and `pvid`, or not: __vlan_flags_update()."""
        added = frozenset(vlans)
        if pvid:
            (own,) = added
        else:
            own = 0 if self.pvid in added else self.pvid
        if untagged:
            return Vlans(own, self.untagged | added, self.tagged - added)
        return Vlans(own, self.untagged - added, self.tagged | added)

    def minus(self, vlans: Iterable[int]) -> Vlans:
        """These without `vlans`."""
        gone = frozenset(vlans)
        return Vlans(0 if self.pvid in gone else self.pvid, self.untagged - gone, self.tagged - gone)

    def after_default(self, old: int, new: int) -> Vlans:
        """Those of a port whose bridge changes its default PVID from `old` to `new`; 0 stands for none.

        A port that has `old` as its PVID, untagged, gets `new` instead, unless it is a member of that already. If `old`
        is none, all others get `new` as their PVID. Fact: __br_vlan_set_default_pvid() in net/bridge/br_vlan.c.
        """
        by_default = bool(old) and self.pvid == old and old in self.untagged
        if not new:
            return self.minus((old,)) if by_default else self
        if (old and not by_default) or new in self.members:
            return self
        return self.plus((new,), untagged=True, pvid=True).minus((old,))


@dataclass(frozen=True)
class VlanWish:
    """The VLANs that a port is to have. What is None stays as it is, but for what the others leave of it."""

    pvid: int | None = None
    untagged: frozenset[int] | None = None
    tagged: frozenset[int] | None = None

    def applied_to(self, present: Vlans) -> Vlans:
        """The VLANs of a port that has `present`. The PVID need not be a member, which is for the caller to refuse."""
        untagged, tagged = self.untagged, self.tagged
        if untagged is None:
            untagged = present.untagged - (tagged or _NONE)
        if tagged is None:
            tagged = present.tagged - untagged
        return replace(present, pvid=present.pvid if self.pvid is None else self.pvid, untagged=untagged, tagged=tagged)


def ranges(vlans: Iterable[int]) -> list[tuple[int, int]]:
    """The fewest ranges that hold just these VLANs, each as its first and last, in order."""
    found: list[tuple[int, int]] = []
    for vlan in sorted(vlans):
        if found and found[-1][1] == vlan - 1:
            found[-1] = found[-1][0], vlan
        else:
            found.append((vlan, vlan))
    return found


def write_range(first: int, last: int) -> str:
    """A range as options and commands have it: 10, or 10-12."""
    return str(first) if first == last else f"{first}-{last}"


def write_vlans(vlans: Iterable[int]) -> list[str]:
    """VLANs as the administrator would write them, shortest."""
    return [write_range(first, last) for first, last in ranges(vlans)]
