# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File capabilities: the bytes of `security.capability` and the text of cap_from_text(3), without I/O.

The layout of the bytes is `struct vfs_cap_data` of <linux/capability.h>; what they mean is in capabilities(7).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

XATTR_NAME_CAPS = "security.capability"

# <linux/capability.h>
VFS_CAP_REVISION_MASK = 0xFF000000
VFS_CAP_FLAGS_EFFECTIVE = 0x000001
VFS_CAP_REVISION_1 = 0x01000000
VFS_CAP_REVISION_2 = 0x02000000
VFS_CAP_REVISION_3 = 0x03000000

# magic_etc, then pairs of permitted and inheritable words, the low ones first; revision 3 ends with rootid.
_LAYOUTS = {
    VFS_CAP_REVISION_1: struct.Struct("<3I"),
    VFS_CAP_REVISION_2: struct.Struct("<5I"),
    VFS_CAP_REVISION_3: struct.Struct("<6I"),
}

# Position in this list = CAP_* number of <linux/capability.h>.
NAMES = (
    "cap_chown",
    "cap_dac_override",
    "cap_dac_read_search",
    "cap_fowner",
    "cap_fsetid",
    "cap_kill",
    "cap_setgid",
    "cap_setuid",
    "cap_setpcap",
    "cap_linux_immutable",
    "cap_net_bind_service",
    "cap_net_broadcast",
    "cap_net_admin",
    "cap_net_raw",
    "cap_ipc_lock",
    "cap_ipc_owner",
    "cap_sys_module",
    "cap_sys_rawio",
    "cap_sys_chroot",
    "cap_sys_ptrace",
    "cap_sys_pacct",
    "cap_sys_admin",
    "cap_sys_boot",
    "cap_sys_nice",
    "cap_sys_resource",
    "cap_sys_time",
    "cap_sys_tty_config",
    "cap_mknod",
    "cap_lease",
    "cap_audit_write",
    "cap_audit_control",
    "cap_setfcap",
    "cap_mac_override",
    "cap_mac_admin",
    "cap_syslog",
    "cap_wake_alarm",
    "cap_block_suspend",
    "cap_audit_read",
    "cap_perfmon",
    "cap_bpf",
    "cap_checkpoint_restore",
)
_NUMBERS = {name: number for number, name in enumerate(NAMES)}

# The flags of one capability as bits, in the order in which libcap weighs them.
_FLAGS = {"e": 1, "p": 2, "i": 4}

# One clause: names, then `=` or `+` with flags, then more of `+` with flags.
_CLAUSE = re.compile(r"([^=+-]*)([=+])([eip]*)((?:\+[eip]+)*)")


@dataclass(frozen=True)
class FileCapabilities:
    """What a file lends to whoever executes it.

    `permitted` and `inheritable` are masks (bit n = capability number n). `effective` is one bit for the whole file:
    what was gained is also raised. `rootid` is the user who is root in the user namespace that they hold in, as seen
    from here; 0 is the root of this one.
    """

    permitted: int
    inheritable: int
    effective: bool
    rootid: int = 0

    @property
    def all(self) -> int:
        """The mask of the capabilities that the file names in either set."""
        return self.permitted | self.inheritable


def name_of(number: int) -> str:
    """The name of a capability, or its number where <linux/capability.h> had no name for it yet."""
    return NAMES[number] if number < len(NAMES) else str(number)


def decode(raw: bytes) -> FileCapabilities:
    """Read the value of `security.capability`; ValueError where it is none of the kernel's three revisions."""
    magic = struct.unpack_from("<I", raw)[0] if len(raw) >= struct.calcsize("<I") else 0
    revision = magic & VFS_CAP_REVISION_MASK
    flags = magic & ~VFS_CAP_REVISION_MASK
    layout = _LAYOUTS.get(revision)
    if layout is None or layout.size != len(raw) or flags & ~VFS_CAP_FLAGS_EFFECTIVE:
        raise ValueError(f"{len(raw)} bytes {raw.hex()} are no vfs_cap_data of revision 1, 2 or 3")
    words = layout.unpack(raw)[1:]
    permitted, inheritable = words[0], words[1]
    if revision != VFS_CAP_REVISION_1:
        permitted |= words[2] << 32
        inheritable |= words[3] << 32
    return FileCapabilities(
        permitted=permitted,
        inheritable=inheritable,
        # On empty sets the bit raises nothing and no notation shows it.
        effective=bool(flags & VFS_CAP_FLAGS_EFFECTIVE) and bool(permitted | inheritable),
        rootid=words[4] if revision == VFS_CAP_REVISION_3 else 0,
    )


def encode(capabilities: FileCapabilities) -> bytes:
    """The value to store in `security.capability`: revision 2, or 3 where there is a `rootid`.

    In a user namespace other than the first the kernel takes revision 2 too, and adds the rootid by itself.
    """
    revision = VFS_CAP_REVISION_3 if capabilities.rootid else VFS_CAP_REVISION_2
    words = [revision | (VFS_CAP_FLAGS_EFFECTIVE if capabilities.effective else 0)]
    for shift in (0, 32):
        words += [mask >> shift & 0xFFFFFFFF for mask in (capabilities.permitted, capabilities.inheritable)]
    if capabilities.rootid:
        words.append(capabilities.rootid)
    return _LAYOUTS[revision].pack(*words)


def parse(text: str) -> FileCapabilities:
    """Read the notation of cap_from_text(3) as far as it says one thing on every kernel; ValueError says what is wrong.

    Left out are numbers, `all` (and the empty list that means it) and `-`. Raising a capability only in the effective
    set, or not all of them, is refused: a file has one effective bit for all that it lends.
    """
    masks = {"e": 0, "p": 0, "i": 0}
    clauses = text.split()
    if not clauses:
        raise ValueError("no capabilities given; a set of none is written '='")
    for clause in clauses:
        if clause == "=":
            masks = {"e": 0, "p": 0, "i": 0}
            continue
        match = _CLAUSE.fullmatch(clause)
        if match is None or (match[2] == "+" and not match[3]):
            raise ValueError(f"{clause!r} is not of the form cap_net_admin=p or cap_net_admin,cap_net_raw=ep")
        named = _mask(match[1], clause)
        for flag in masks:
            if match[2] == "=":
                masks[flag] &= ~named
            if flag in match[3] + match[4]:
                masks[flag] |= named
    effective, lent = masks["e"], masks["p"] | masks["i"]
    if effective & ~lent:
        raise ValueError(
            f"{_list(effective & ~lent)}: on a file, effective (e) means nothing without permitted (p, or i)"
        )
    if effective and effective != lent:
        raise ValueError(
            f"effective (e) is one bit for the whole file: set for {_list(effective)}, not for "
            f"{_list(lent & ~effective)}; give it to all of them or to none"
        )
    return FileCapabilities(permitted=masks["p"], inheritable=masks["i"], effective=bool(effective))


def render(capabilities: FileCapabilities | None) -> str:
    """The text that `getcap -n` of libcap 2.41 and newer prints after the path; empty for a file that has none.

    (From half of all capabilities on, getcap prints a set by what it lacks; here it is always by what it has.)
    """
    if capabilities is None:
        return ""
    groups: dict[int, list[str]] = {}
    for number in range(64):
        bit = 1 << number
        if not capabilities.all & bit:
            continue
        flags = (
            (_FLAGS["p"] if capabilities.permitted & bit else 0)
            | (_FLAGS["i"] if capabilities.inheritable & bit else 0)
            | (_FLAGS["e"] if capabilities.effective else 0)
        )
        groups.setdefault(flags, []).append(name_of(number))
    text, operator = "", "="
    for flags, names in sorted(groups.items(), reverse=True):
        text += f"{' ' if text else ''}{','.join(names)}{operator}"
        text += "".join(letter for letter in "eip" if flags & _FLAGS[letter])
        operator = "+"
    return (text or "=") + (f" [rootid={capabilities.rootid}]" if capabilities.rootid else "")


def _mask(names: str, clause: str) -> int:
    if not names or "all" in names.split(","):
        raise ValueError(f"{clause!r}: name the capabilities; all of them are not the same on every kernel")
    mask = 0
    for name in names.split(","):
        number = _NUMBERS.get(name.lower())
        if number is None:
            raise ValueError(f"{clause!r}: unknown capability {name!r}; known are {', '.join(NAMES)}")
        mask |= 1 << number
    return mask


def _list(mask: int) -> str:
    return ", ".join(name_of(number) for number in range(64) if mask >> number & 1)
