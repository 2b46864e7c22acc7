# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the links' code needs of the host besides rtnetlink: its machine id, network namespaces, processes, sysfs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import grp
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .model import LinksError

# <linux/netdevice.h>
NET_ADDR_SET = 3
# <sched.h>
CLONE_NEWNET = 0x40000000
# <asm-generic/unistd.h>, since Linux 5.2, 5.3 and 5.6; x86, Arm, POWER, s390 and RISC-V share the numbers
_NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT = 430, 431, 432
_NR_PIDFD_OPEN, _NR_PIDFD_GETFD = 434, 438
# <linux/if_tun.h>: _IO('T', 227), since Linux 5.8; <asm/ioctl.h> of POWER numbers directions in its own way
TUNGETDEVNETNS = (1 << 29 if os.uname().machine.startswith("ppc") else 0) | 0x54 << 8 | 227
# <linux/mount.h>
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_CMD_CREATE = 6

NETNS_DIRECTORY = Path("/run/netns")
MACHINE_ID = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))

_libc = ctypes.CDLL(None, use_errno=True)


class NoNamespace(LinksError):
    """There is no network namespace of the name that was given."""


def errno_words(number: int) -> str:
    """An errno as its name and its meaning."""
    return f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"


def machine_id() -> str:
    """The machine id of the host, see machine-id(5); raises LinksError where there is none."""
    for path in MACHINE_ID:
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="ascii", errors="replace").strip()
            if len(text) == 32 and all(character in "0123456789abcdef" for character in text):
                return text
    raise LinksError(
        f"mac: stable needs the machine id, and {MACHINE_ID[0]} holds none. "
        "Make it with systemd-machine-id-setup or dbus-uuidgen --ensure=/etc/machine-id, or give mac an address."
    )


def user_id(name: str) -> int:
    """The id of a user of this host; raises KeyError."""
    return pwd.getpwnam(name).pw_uid


def group_id(name: str) -> int:
    """The id of a group of this host; raises KeyError."""
    return grp.getgrnam(name).gr_gid


def user_name(uid: int) -> str | None:
    """The name of a user of this host; None if the id has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


def group_name(gid: int) -> str | None:
    """The name of a group of this host; None if the id has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return None


class Holder(NamedTuple):
    """A process that is attached to a tap: its id, its name, and the user that it runs as, by name or else by id."""

    pid: int
    command: str
    user: str


def tap_holders() -> dict[str, list[Holder]]:
    """The processes that are attached to taps of the network namespace that we are in, by the taps' names.

    The kernel tells in /proc/PID/fdinfo/FD which device a descriptor of /dev/net/tun is attached to
    (tun_chr_show_fdinfo() in drivers/net/tun.c). Processes that we may not look into are passed over.
    """
    found: dict[str, list[Holder]] = {}
    home = os.stat("/proc/thread-self/ns/net")
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        # It may end at any time.
        with contextlib.suppress(OSError):
            names = _attached(pid, home)
            if names:
                holder = _holder(pid)
                for name in names:
                    found.setdefault(name, []).append(holder)
    return found


def _attached(pid: int, home: os.stat_result) -> set[str]:
    """The devices of the network namespace `home` that a process is attached to."""
    names = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            # The target is not looked at: a file system that hangs must not stop us.
            if "/tun" not in os.readlink(f"/proc/{pid}/fd/{descriptor}"):
                continue
            information = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_bytes()
            device = re.search(rb"^iff:\t(.+)$", information, re.MULTILINE)
            if device and os.path.samestat(_namespace_of(pid, int(descriptor)), home):
                names.add(os.fsdecode(device[1]))
    return names


def _namespace_of(pid: int, descriptor: int) -> os.stat_result:
    """The network namespace of the tap behind a descriptor of a process, which may be in another one itself.

    Where the kernel can't tell, or not to us, the one that the process is in.
    """
    process = duplicate = network = -1
    try:
        process = _libc.syscall(_NR_PIDFD_OPEN, pid, 0)
        if process >= 0:
            duplicate = _libc.syscall(_NR_PIDFD_GETFD, process, descriptor, 0)
        if duplicate >= 0:
            with contextlib.suppress(OSError):
                network = fcntl.ioctl(duplicate, TUNGETDEVNETNS)
        return os.stat(f"/proc/{pid}/ns/net") if network < 0 else os.fstat(network)
    finally:
        for each in (process, duplicate, network):
            if each >= 0:
                os.close(each)


def _holder(pid: int) -> Holder:
    command = Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n")
    # Real, effective, saved and file system's. The directory's owner is root's for some of a user's processes.
    uid = int(re.findall(rb"^Uid:\t([0-9]+)", Path(f"/proc/{pid}/status").read_bytes(), re.MULTILINE)[0])
    return Holder(pid, command.decode("utf-8", "backslashreplace"), user_name(uid) or str(uid))


class Sysfs:
    """The attributes of links in the sysfs of the network namespace that the process is in.

    /sys shows the namespace of whoever mounted it, so a sysfs of our own is opened, attached nowhere (fsmount(2), Linux
    5.2; it needs CAP_SYS_ADMIN). Without that /sys is read, if it shows the very link.
    """

    def __init__(self) -> None:
        self._root = self._mount()

    def close(self) -> None:
        """Let go of the sysfs."""
        if self._root >= 0:
            os.close(self._root)

    @staticmethod
    def _mount() -> int:
        context = _libc.syscall(_NR_FSOPEN, b"sysfs", FSOPEN_CLOEXEC)
        if context < 0:
            return -1
        try:
            if _libc.syscall(_NR_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
                return -1
            return int(_libc.syscall(_NR_FSMOUNT, context, FSMOUNT_CLOEXEC, 0))
        finally:
            os.close(context)

    def mac_pinned(self, name: str, index: int) -> bool | None:
        """Whether somebody set the MAC address of the link; None if it can't be told."""
        try:
            if self._read(name, "ifindex") == index:
                return self._read(name, "addr_assign_type") == NET_ADDR_SET
        except OSError:
            pass
        return None

    def _read(self, name: str, attribute: str) -> int:
        path = f"class/net/{name}/{attribute}"
        descriptor = (
            os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
            if self._root >= 0
            else os.open(f"/sys/{path}", os.O_RDONLY | os.O_CLOEXEC)
        )
        try:
            return int(os.read(descriptor, 32))
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def namespace(name: str | None) -> Iterator[None]:
    """Be in the network namespace `name` of ip-netns(8), for None where we are."""
    if name is None:
        yield
        return
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise LinksError(f"netns: {name!r} can't be the name of a network namespace.")
    path = NETNS_DIRECTORY / name
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NoNamespace(
                f"There is no network namespace {name!r} ({path} is missing). Make it first: ip netns add {name}."
            ) from None
        except (OSError, ValueError) as error:
            raise LinksError(f"Can't open the network namespace {path}: {error}.") from None
        try:
            _enter(target, path)
        finally:
            os.close(target)
        try:
            yield
        finally:
            _enter(home, Path("/proc/thread-self/ns/net"))
    finally:
        os.close(home)


def _enter(descriptor: int, path: Path) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        way_out = (
            "it is a file, but no namespace is mounted on it; remove it and make the namespace again"
            if number == errno.EINVAL
            else "this needs CAP_SYS_ADMIN; run the task with become: true"
        )
        raise LinksError(f"Can't enter the network namespace {path}: {errno_words(number)}; {way_out}.")
