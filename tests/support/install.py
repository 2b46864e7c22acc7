# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper installed in a sandbox as the role installs it on a host: launcher with its capability, library, ACL."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from support.namespaces import Sandbox

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = Path("/usr/local/libexec/qemu-bridge-helper")
LIBRARY = Path("/usr/local/lib/qemu-bridge-helper")
COMMAND = Path("/usr/local/bin/qemu-bridge-run")
POLICY = Path("/etc/qemu/bridge.conf")
# Of files/; each has the path of the library in it, once.
STUBS = ("qemu-bridge-helper.py", "qemu-bridge-run.py")
# The host's own interpreter, never the one of a virtual environment.
PYTHON = Path("/usr/bin/python3").resolve()
# struct vfs_cap_data of <linux/capability.h>, revision 2: CAP_NET_ADMIN (12) permitted and not effective.
NET_ADMIN_PERMITTED = bytes.fromhex("00000002 00100000 00000000 00000000 00000000")


def install(sandbox: Sandbox, acl: str | bytes = "allow br0\n") -> None:
    """Lay launcher, library and this ACL below /usr/local and /etc.

    Of `sandbox` nothing is asked but that there is one: this must not happen to the machine itself.
    """
    install_without_launcher(sandbox, acl)
    install_launcher()


def install_without_launcher(sandbox: Sandbox, acl: str | bytes = "allow br0\n") -> None:
    """What `install` lays, but for the launcher: root needs none."""
    version = LIBRARY.with_suffix(".d") / "test"
    install_library(version)
    LIBRARY.symlink_to(version)
    COMMAND.parent.mkdir(exist_ok=True)
    COMMAND.symlink_to(LIBRARY / COMMAND.name)
    write_policy(acl)


def install_library(version: Path) -> None:
    """Lay the version directory `version`: stubs, package, byte code, link to the interpreter."""
    package = ROOT / "plugins/module_utils/tapfd"
    version.mkdir(parents=True)
    shutil.copytree(package, version / "tapfd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in STUBS:
        stub = (ROOT / "files" / name).read_text(encoding="utf-8").replace(f'"{LIBRARY}"', f'"{version}"')
        (version / name).write_text(stub, encoding="utf-8")
    # It begins with its interpreter, so that users can start it.
    command = (version / "qemu-bridge-run.py").rename(version / COMMAND.name)
    command.write_text(f"#!{version}/python3 -ISB\n{command.read_text(encoding='utf-8')}", encoding="utf-8")
    command.chmod(0o755)
    (version / "python3").symlink_to(PYTHON)
    for path in (version, *version.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
    subprocess.run(
        [PYTHON, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", version / "tapfd"], check=True
    )


def install_launcher(path: Path = LAUNCHER, capability: bytes | None = NET_ADMIN_PERMITTED) -> None:
    """Lay the launcher of this machine's architecture with this `security.capability`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / f"files/launcher/bin/qemu-bridge-helper.{platform.machine()}", path)
    os.chown(path, 0, 0)
    path.chmod(0o755)
    if capability is not None:
        os.setxattr(path, "security.capability", capability)


def write_policy(acl: str | bytes, path: Path = POLICY, mode: int = 0o644, group: int = 0) -> None:
    """Write a policy file, root's and of this group and mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(acl.encode() if isinstance(acl, str) else acl)
    os.chown(path, 0, group)
    path.chmod(mode)
