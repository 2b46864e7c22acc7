# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user's own libvirt, `qemu:///session`: its daemon, its configuration, and the domains in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from support.machine import PATIENCE, UID, wait_for
from support.namespaces import Sandbox

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Session:
    """libvirtd of the unprivileged user `UID`, with these lines in their qemu.conf, until `close`.

    libvirt is to be laid in the sandbox. Neither D-Bus nor systemd is needed, nor any other daemon.
    """

    def __init__(self, sandbox: Sandbox, *configuration: str) -> None:
        sandbox.add_user("guest", UID)
        # A short name: libvirt's sockets have theirs below, and a socket's is of 107 bytes at most.
        self.home = Path(tempfile.mkdtemp(prefix="u", dir=sandbox.scratch))
        self._runtime = self.home / "run"
        self._errors, self._console = self.home / "libvirtd.stderr", self.home / "console"
        settings = self.home / ".config/libvirt"
        for directory in (self.home, self._runtime, settings.parent, settings):
            directory.mkdir(mode=0o700, exist_ok=True)
            os.chown(directory, UID, UID)
        # Else libvirtd starts virtlogd to write QEMU's log, and leaves it behind.
        text = "".join(f"{line}\n" for line in ('stdio_handler = "file"', *configuration))
        (settings / "qemu.conf").write_text(text, encoding="utf-8")
        self._environment = {
            "HOME": str(self.home),
            "LC_ALL": "C",
            "PATH": _PATH,
            "XDG_RUNTIME_DIR": str(self._runtime),
        }
        with open(self._errors, "wb") as errors:
            self.process = subprocess.Popen(
                ["libvirtd"],
                cwd="/",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                user=UID,
                group=UID,
                extra_groups=[],
            )
        try:
            wait_for("libvirtd", (self._runtime / "libvirt/libvirt-sock").exists, [self])
        except BaseException:
            self.close()
            raise

    @property
    def console(self) -> str:
        """What the guest of the domain with a console has written to it."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    @property
    def errors(self) -> str:
        """What libvirtd has logged."""
        return self._errors.read_text(errors="replace")

    def virsh(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run virsh as the user. What it prints need not be text: libvirt 9.0 may quote its memory after a helper."""
        return subprocess.run(
            ["virsh", "--quiet", "--connect", "qemu:///session", *words],
            cwd="/",
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            user=UID,
            group=UID,
            extra_groups=[],
        )

    def done(self, *words: str) -> str:
        """What virsh has printed, which must succeed."""
        result = self.virsh(*words)
        assert result.returncode == 0, f"virsh {' '.join(words)}: {result.stderr}\n--- libvirtd\n{self.errors}"
        return result.stdout

    def file(self, xml: str) -> str:
        """The path of a file for virsh with this in it."""
        with tempfile.NamedTemporaryFile("w", dir=self.home, suffix=".xml", delete=False) as file:
            file.write(xml)
        os.chown(file.name, UID, UID)
        return file.name

    def domain(self, name: str, interface: str, boot: str = "") -> str:
        """The path of a domain's description with one card; `boot` are the elements of a kernel."""
        return self.file(f"""<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>192</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <devices>
    {interface}
    <serial type='file'><source path='{self._console}'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
""")

    def taps(self, domain: str) -> dict[str | None, str | None]:
        """The bridges of a running domain by the names of its taps, as libvirt knows them."""
        found = {}
        for interface in ElementTree.fromstring(self.done("dumpxml", domain)).iterfind("devices/interface"):
            target, source = interface.find("target"), interface.find("source")
            assert target is not None
            assert source is not None
            found[target.get("dev")] = source.get("bridge")
        return found

    def close(self) -> None:
        """End the daemon and all else that the user has running in the sandbox, such as domains of a failed test."""
        self.process.kill()
        self.process.wait()
        here = Path("/proc/self/ns/net").readlink()
        for process in Path("/proc").glob("[0-9]*"):
            # Others end while we look.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if process.stat().st_uid == UID and (process / "ns/net").readlink() == here:
                    os.kill(int(process.name), signal.SIGKILL)


def card(number: int, bridge: str, more: str = "") -> str:
    """The description of a network card on a bridge; the number makes its address, `more` are further elements."""
    return (
        f"<interface type='bridge'><mac address='52:54:00:00:00:{number:02x}'/><source bridge='{bridge}'/>"
        f"<model type='virtio'/><rom enabled='no'/>{more}</interface>"
    )
