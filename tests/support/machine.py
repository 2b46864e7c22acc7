# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running QEMUs: what their user, their guests and the kernel say of them."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from support.install import COMMAND
from support.namespaces import ip
from support.qemu import QEMU, Debian, initramfs

# Seconds: emulated guests on a machine that does other things besides.
PATIENCE = 120
# An unprivileged user, who needs no entry in /etc/passwd.
UID = 60001


_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do insmod "$module"; done
for word in $(cat /proc/cmdline); do
    case $word in
        address=*) address=${word#*=} ;;
        reach=*) reach=${word#*=} ;;
        fetch=*) fetch=${word#*=} ;;
    esac
done
ip link set lo up
ip address add "$address/24" dev eth0
ip link set eth0 up
for peer in $(echo "$reach" | tr , ' '); do
    until ping -c 1 -W 1 "$peer" >/dev/null; do sleep 0.2; done
    echo "reached $peer"
done
[ -n "$fetch" ] && echo "fetched $(wget -q -O - "$fetch" | sha256sum)"
while :; do sleep 60; done
"""


# What starts QEMU with a tap, where the command line has the place for its descriptor.
_RUN = [str(COMMAND), "--br=br0", "--"]


class Machine:
    """A QEMU, of an unprivileged user if no other is named; what it and its guest say goes to files.

    `root` is the directory that QEMU takes for `/`. `stdin` is open for a monitor there.
    """

    def __init__(self, directory: Path, name: str, *arguments: str, user: int = UID, root: Path = Path("/")) -> None:
        self._console, self._errors = directory / f"{name}.console", directory / f"{name}.stderr"
        become = ["chroot", f"--userspec={user}:{user}", "--groups=", str(root)]
        start = _RUN if any("{fd}" in argument for argument in arguments) else []
        with open(self._console, "wb") as console, open(self._errors, "wb") as errors:
            self.process = subprocess.Popen(
                [*become, *start, QEMU, "-nodefaults", "-no-user-config", "-display", "none", *arguments],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=errors,
            )

    @property
    def console(self) -> str:
        """What the guest has written to its serial port."""
        return self._console.read_text(errors="replace")

    @property
    def errors(self) -> str:
        """What QEMU and the bridge helper have written to stderr."""
        return self._errors.read_text(errors="replace")

    def say(self, command: str) -> None:
        """Give a command to the monitor, which is `-monitor stdio`."""
        assert self.process.stdin
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End QEMU and wait for it."""
        self.process.send_signal(how)
        self.process.wait(PATIENCE)

    def holds(self, tap: str) -> bool:
        """Whether the process has this tap open."""
        for info in Path(f"/proc/{self.process.pid}/fdinfo").iterdir():
            # QEMU opens and closes others while we look.
            with contextlib.suppress(FileNotFoundError):
                if f"iff:\t{tap}\n" in info.read_text():
                    return True
        return False


class Running(Protocol):
    """Something whose end is a failure, as a `Machine`'s is."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """What must not end."""

    @property
    def console(self) -> str:
        """What a guest has written."""

    @property
    def errors(self) -> str:
        """What the process has written to stderr."""


def wait_for(what: str, condition: Callable[[], bool], machines: Sequence[Running] = ()) -> None:
    """Wait until the condition holds; fail with all that is known when it doesn't, or when a machine has ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        ended = [machine.process.returncode for machine in machines if machine.process.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = "".join(f"\n--- console\n{machine.console}\n--- stderr\n{machine.errors}" for machine in machines)
            links = ip("-details", "link", "show")
            pytest.fail(f"waited for: {what}; ended with status: {ended}{logs}\n--- links\n{links}")
        time.sleep(0.05)


def ports(bridge: str = "br0") -> list[dict[str, Any]]:
    """The ports of a bridge, as `ip -details` describes them."""
    return json.loads(ip("-json", "-details", "link", "show", "master", bridge))  # type: ignore[no-any-return]


def lay_guest(debian: Debian, directory: Path) -> Path:
    """Write the root file system of a guest into `directory` and return its path.

    The words that its kernel is started with say what the guest does. `address=` is its own. Each of the addresses with
    commas in `reach=` is pinged until it answers; then the console says `reached ADDRESS`. Of what is at the URL
    `fetch=` the console gets the SHA-256: `fetched ...`.
    """
    image = directory / "initramfs"
    image.write_bytes(initramfs(debian, _INIT, ["virtio_pci", "virtio_net"]))
    return image


def guest_arguments(debian: Debian, image: Path, number: int, netdev: str, words: str) -> list[str]:
    """The arguments of QEMU for guest `number` with one network card on `netdev`, whose id is hn0."""
    return [
        # Never KVM: on machines that are guests themselves it may start and then hang.
        *("-accel", "tcg", "-m", "192", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(debian.kernel), "-initrd", str(image)),
        *("-append", f"console=ttyS0 quiet panic=-1 {words}"),
        *("-netdev", netdev),
        *("-device", f"virtio-net-pci,netdev=hn0,mac={guest_mac(number)},romfile="),
    ]


def guest_mac(number: int) -> str:
    """The MAC address of guest `number`."""
    return f"52:54:00:00:00:{number:02x}"
