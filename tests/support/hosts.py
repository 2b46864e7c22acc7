# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of several releases of Debian, each with its own QEMU and Python, and with our helper."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from support.install import COMMAND, LAUNCHER, LIBRARY, POLICY, install
from support.namespaces import MS_BIND, Sandbox, mount
from support.qemu import BRIDGE_HELPER, QEMU, ArtefactError, Debian, lay

# The suites of Debian whose QEMU is run, by what people call them.
RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13", "testing": "Debian testing"}

# Those of mem(4) and null(4), by their numbers in the kernel's Documentation/admin-guide/devices.txt.
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}


class Host(NamedTuple):
    """A host in the sandbox: links and /dev/net/tun are those of the sandbox."""

    root: Path
    """The directory that programs of this host take for `/`."""
    scratch: Path
    """A directory for files of the host, by its path on the host."""

    def put(self, path: Path, content: bytes, mode: int = 0o644) -> None:
        """Write a file of the host."""
        outside = self.outside(path)
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_bytes(content)
        outside.chmod(mode)

    def outside(self, path: Path) -> Path:
        """Where a file of the host is for us."""
        return self.root / path.relative_to("/")

    def command(self, program: Path, *arguments: str, user: int = 0) -> list[str]:
        """What starts a program of the host as a user, whose only group has the same number."""
        return ["chroot", f"--userspec={user}:{user}", "--groups=", str(self.root), str(program), *arguments]

    def version(self) -> str:
        """The version of QEMU, such as 7.2."""
        done = subprocess.run(self.command(QEMU, "--version"), capture_output=True, text=True, check=False)
        found = re.match(r"QEMU emulator version (\d+\.\d+)", done.stdout)
        if not found:
            raise ArtefactError(f"{QEMU} does not start in {self.root}: {done.stderr.strip()}")
        return found[1]


def this_host(sandbox: Sandbox, debian: Debian, acl: str) -> Host:
    """The machine's own release."""
    install(sandbox, acl)
    lay(sandbox, debian)
    _default_helper(Path("/"))
    return Host(Path("/"), sandbox.scratch)


def release_host(sandbox: Sandbox, tree: Path, acl: str) -> Host:
    """A host whose programs are those of `tree`, which `fetch_release` has unpacked."""
    install(sandbox, acl)
    # The interpreter is the one of that release. Its own name has the version in it.
    (LIBRARY.resolve() / "python3").unlink()
    (LIBRARY.resolve() / "python3").symlink_to("/usr/bin/python3")
    # Not under the name of the tree: one that holds a colon or a comma can't be given to overlayfs.
    lower, root = sandbox.scratch / "release", sandbox.scratch / "root"
    for directory in (lower, root):
        directory.mkdir()
    mount(str(tree), lower, None, MS_BIND)
    layers = Path(tempfile.mkdtemp(dir=sandbox.scratch))
    for layer in ("upper", "work"):
        (layers / layer).mkdir(mode=0o755)
    mount("overlay", root, "overlay", 0, f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work")
    for name in ("dev", "proc", "sys", "tmp", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    mount("proc", root / "proc", "proc")
    mount("sysfs", root / "sys", "sysfs")
    mount("tmpfs", root / "dev", "tmpfs", 0, "mode=0755")
    for name, numbers in _DEVICES.items():
        os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(*numbers))
        (root / "dev" / name).chmod(0o666)
    for directory in (Path("/dev/net"), LAUNCHER.parent, COMMAND.parent, LIBRARY.parent, POLICY.parent):
        inside = root / directory.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        mount(str(directory), inside, None, MS_BIND)
    _default_helper(root)
    return Host(root, sandbox.scratch)


def _default_helper(root: Path) -> None:
    """Have QEMU's compiled-in path lead to ours, as the role does on request."""
    path = root / BRIDGE_HELPER.relative_to("/")
    path.unlink()
    path.symlink_to(LAUNCHER)
