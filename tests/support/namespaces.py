# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private network and mount namespace for a test: the real kernel, and nothing of the machine touched."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

# <sched.h>
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
# <sys/mount.h>
MS_RDONLY = 1
MS_NOSUID = 2
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# What the role lays on a host.
_INSTALLED = (
    "etc/qemu",
    "etc/*/*hostnet-qemu*",
    "etc/*/*/*hostnet-qemu*",
    "etc/qemu-if*",
    "etc/systemd/system/*/*hostnet-qemu*",
    "usr/local/bin/qemu-bridge-run",
    "usr/local/lib*/*qemu*",
    "usr/local/lib*/.qemu-bridge-helper*",
)

# What it adds to files of others.
_ADDED = ("etc/apparmor.d/local/*", re.compile(r"# BEGIN (.* hostnet\.qemu\..*)\n(?:.*\n)*?# END \1\n"))
# What it has dpkg set aside.
_DIVERTED = Path("/usr/lib/qemu/qemu-bridge-helper")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}{args}: {os.strerror(error)}")


def mount(source: str, target: str | os.PathLike[str], fstype: str | None, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _call(
        "mount",
        source.encode(),
        os.fsencode(target),
        fstype.encode() if fstype else None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )


def unmount(target: str | os.PathLike[str]) -> None:
    """umount2(2) with MNT_DETACH: what still uses the tree does not stop us."""
    _call("umount2", os.fsencode(target), MNT_DETACH)


class Sandbox:
    """Private network and mount namespaces of this process and its children until `close`.

    Inside: `lo` is up, `/sys` shows this network namespace, `/run/netns` is private and `/dev/net/tun` has mode 0666.
    /etc and /usr/local can be written to, and hold nothing that the role has installed on the machine; there is a
    machine id. `overlay` makes other directories of the machine writable without writing to them.
    """

    def __init__(self) -> None:
        self._home = os.getcwd()
        self._saved = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "mnt")]
        # Not under /tmp: tests give directories of their own to users, who must be able to walk here.
        self.scratch = Path(tempfile.mkdtemp(prefix="hostnet-qemu-", dir="/var/tmp"))
        _call("unshare", CLONE_NEWNET | CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        mount("tmpfs", self.scratch, "tmpfs", 0, "mode=0755")
        mount("sysfs", "/sys", "sysfs")
        os.makedirs("/run/netns", exist_ok=True)
        mount("tmpfs", "/run/netns", "tmpfs", 0, "mode=0755")
        self.make_tun(0o666)
        self._overlaid: set[str] = set()
        for directory in ("/etc", "/usr/local"):
            self.overlay(directory)
        for path in _INSTALLED:
            for found in Path("/").glob(path):
                if found.is_dir() and not found.is_symlink():
                    shutil.rmtree(found)
                else:
                    found.unlink()
        files, added = _ADDED
        for path in filter(Path.is_file, Path("/").glob(files)):
            text = path.read_text("utf-8", "surrogateescape")
            if added.search(text):
                path.write_text(added.sub("", text), "utf-8", "surrogateescape")
        self._give_back_diverted()
        machine_id = Path("/etc/machine-id")
        if not machine_id.exists() or len(machine_id.read_bytes()) < 32:
            machine_id.write_text("0123456789abcdef0123456789abcdef\n", encoding="ascii")
        ip("link", "set", "lo", "up")

    def _give_back_diverted(self) -> None:
        """Have QEMU's own path to a helper as the machine has it without the role."""
        diversions = Path("/var/lib/dpkg/diversions")
        aside = f"{_DIVERTED}.before-hostnet-qemu"
        if not diversions.exists() or aside not in diversions.read_text("utf-8", "surrogateescape").splitlines():
            return
        for directory in ("/usr/lib", "/var/lib/dpkg"):
            self.overlay(directory)
        _DIVERTED.unlink(missing_ok=True)
        subprocess.run(["dpkg-divert", "--quiet", "--local", "--rename", "--remove", _DIVERTED], check=True)

    def make_tun(self, mode: int | None) -> None:
        """Lay a /dev/net of our own, with a `tun` node of this mode, or without one for None."""
        mount("tmpfs", "/dev/net", "tmpfs", 0, "mode=0755")
        if mode is not None:
            os.mknod("/dev/net/tun", stat.S_IFCHR | 0o600, os.makedev(10, 200))
            os.chmod("/dev/net/tun", mode)

    def overlay(self, directory: str) -> None:
        """Make `directory` writable in here only: changes go to memory and end with the sandbox."""
        if directory in self._overlaid:
            return
        self._overlaid.add(directory)
        layers = Path(tempfile.mkdtemp(dir=self.scratch))
        for layer in ("upper", "work"):
            (layers / layer).mkdir()
        info = os.stat(directory)
        os.chmod(layers / "upper", stat.S_IMODE(info.st_mode))
        os.chown(layers / "upper", info.st_uid, info.st_gid)
        mount(
            "overlay",
            directory,
            "overlay",
            0,
            f"lowerdir={directory},upperdir={layers}/upper,workdir={layers}/work",
        )

    def add_user(self, name: str, uid: int, groups: dict[str, int] | None = None) -> None:
        """Add a user with a primary group of the same name and number, a member of `groups` (made where missing)."""
        _append("/etc/passwd", f"{name}:x:{uid}:{uid}::/:/bin/sh\n")
        _append("/etc/group", f"{name}:x:{uid}:\n")
        for group, gid in (groups or {}).items():
            lines = Path("/etc/group").read_text().splitlines()
            for number, line in enumerate(lines):
                if line.startswith(f"{group}:"):
                    lines[number] += f",{name}" if not line.endswith(":") else name
                    break
            else:
                lines.append(f"{group}:x:{gid}:{name}")
            Path("/etc/group").write_text("\n".join(lines) + "\n")

    def close(self) -> None:
        """Go back to the namespaces of before; the private ones end with their last process."""
        # Who shares root and working directory with another thread can't (setns(2)), and a thread that was joined is
        # one for the kernel for another moment.
        _call("unshare", CLONE_FS)
        for descriptor in self._saved:
            _call("setns", descriptor, 0)
            os.close(descriptor)
        os.chdir(self._home)
        shutil.rmtree(self.scratch, ignore_errors=True)


def _append(path: str, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def ip(*args: str) -> str:
    """Run iproute2's `ip` in the namespace we are in and return what it printed."""
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout
