# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open, make and inspect tap devices by the ioctls of `<linux/if_tun.h>`."""

import posix
from _struct import pack_into, unpack_from
from fcntl import ioctl

# <linux/if.h>: the bytes of an interface name, its final NUL included
IFNAMSIZ = 16
# sizeof(struct ifreq): the name and a union whose largest member, struct ifmap, has two longs and eight bytes
IFREQ_SIZE = IFNAMSIZ + (24 if posix.sysconf("SC_LONG_BIT") == 64 else 16)

# <linux/if_tun.h>: flags of TUNSETIFF
IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

# <asm-generic/ioctl.h> against <uapi/asm/ioctl.h> of these four: direction bits lie elsewhere
_ODD_IOCTLS = posix.uname().machine.startswith(("alpha", "mips", "ppc", "sparc"))
_IOC_WRITE = 0x80000000 if _ODD_IOCTLS else 0x40000000
_IOC_READ = 0x40000000 if _ODD_IOCTLS else 0x80000000
_INT = 4 << 16
_T = 0x54 << 8
TUNSETIFF = _IOC_WRITE | _INT | _T | 202
TUNSETPERSIST = _IOC_WRITE | _INT | _T | 203
TUNSETOWNER = _IOC_WRITE | _INT | _T | 204
TUNSETGROUP = _IOC_WRITE | _INT | _T | 206
TUNGETFEATURES = _IOC_READ | _INT | _T | 207
TUNGETIFF = _IOC_READ | _INT | _T | 210


def open_tun() -> int:
    """Open /dev/net/tun and return the descriptor; OSError where there is none or it is closed to the caller."""
    return posix.open("/dev/net/tun", posix.O_RDWR | posix.O_CLOEXEC)


def features(tun: int) -> int:
    """The IFF_* flags that this kernel offers to TUNSETIFF (TUNGETFEATURES)."""
    buffer = bytearray(4)
    ioctl(tun, TUNGETFEATURES, buffer)
    (flags,) = unpack_from("=I", buffer)
    return int(flags)


def create(tun: int, template: bytes, flags: int) -> bytes:
    """Make a device behind the descriptor `tun` and return its name.

    `template` is a name, or holds one `%d` for which the kernel puts the lowest free number; `flags` are IFF_* values.
    The device is not persistent: it goes when the last descriptor of it is closed. OSError: EPERM without
    CAP_NET_ADMIN, EBUSY where the name is taken.
    """
    if len(template) >= IFNAMSIZ:
        raise ValueError(f"device name template of {len(template)} bytes, {IFNAMSIZ - 1} at most")
    request = bytearray(IFREQ_SIZE)
    pack_into(f"={IFNAMSIZ}sH", request, 0, template, flags)
    ioctl(tun, TUNSETIFF, request)
    return _name(request)


def set_owner(tap: int, uid: int) -> None:
    """Let the user `uid` attach to the device behind `tap` (TUNSETOWNER); it can't be taken back, only given anew."""
    ioctl(tap, TUNSETOWNER, _signed(uid))


def set_group(tap: int, gid: int) -> None:
    """Let the members of the group `gid` attach to the device behind `tap` (TUNSETGROUP)."""
    ioctl(tap, TUNSETGROUP, _signed(gid))


def set_persistent(tap: int) -> None:
    """Make the device behind `tap` outlive its last descriptor (TUNSETPERSIST)."""
    ioctl(tap, TUNSETPERSIST, 1)


def _signed(number: int) -> int:
    """An id, which has 32 bits without a sign, as ioctl takes it: a C int."""
    return number - (1 << 32) if number >= 1 << 31 else number


def query(tap: int) -> tuple[bytes, int]:
    """Name and IFF_* flags of the device behind `tap` (TUNGETIFF); OSError where it is no tun or tap device."""
    request = bytearray(IFREQ_SIZE)
    ioctl(tap, TUNGETIFF, request)
    (flags,) = unpack_from("=H", request, IFNAMSIZ)
    return _name(request), int(flags)


def _name(request: bytearray) -> bytes:
    return bytes(request[:IFNAMSIZ]).split(b"\0", 1)[0]
