# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that need more than the running kernel has, in an emulated guest with the distribution's kernel.

A test says so by `@pytest.mark.kernel_feature("vlan_filtering")`. Where the running kernel has all that it names, it is
a test like others. Where it lacks something, the test is collected here and run there: one guest is booted for all
such tests of a session, pytest runs them in it, and its reports are given out as if they had been run here.

The guest's root is the machine's own, read through virtiofs, with what is written kept in the guest's memory. So it has
the same interpreter, packages and checkout, and nothing has to be built or installed for it. It has no network.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from support.qemu import Debian, fetch, initramfs

# By the name of a feature, what only a kernel that has it accepts from `ip`, in an empty network namespace.
FEATURES = {
    "vlan_filtering": "link add name br0 type bridge vlan_filtering 1",
    "bond": "link add name bond0 type bond",
}

# What the guest's root takes of its kernel, then what the tests use.
_MODULES = ["virtio_pci", "virtiofs", "overlay", "8021q", "bridge", "tun", "veth", "bonding"]
# MiB; the largest test takes a third of it.
_MEMORY = 1024
# Set in the guest.
_INSIDE = "HOSTNET_QEMU_GUEST"
# The guest's second serial port, which the reports leave by.
_PORT = "/dev/ttyS1"
# Of the console and of error messages that explain a failure.
_TAIL = 4000

_INIT = """\
#!/bin/busybox sh
set -e
/bin/busybox --install -s /bin
mount -t proc proc /proc
for module in /modules/*.ko; do insmod "$module"; done
mkdir -p /machine /memory /root
mount -t virtiofs -o ro machine /machine
mount -t tmpfs tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/machine,upperdir=/memory/upper,workdir=/memory/work overlay /root
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t devtmpfs devtmpfs /root/dev
mount -t tmpfs tmpfs /root/run
umount /proc
exec switch_root /root /bin/sh -c {command}
"""


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and who runs what has it."""
    config.addinivalue_line("markers", "kernel_feature(name, ...): run in a guest if the running kernel lacks one")
    config.pluginmanager.register(_Inside(config) if _INSIDE in os.environ else _Outside(config))


@functools.cache
def kernel_has(feature: str) -> bool:
    """Whether the running kernel has one of FEATURES."""
    command = ["unshare", "--net", "ip", *FEATURES[feature].split()]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class _Inside:
    """Of the pytest in the guest: sends its reports out."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._port = open(_PORT, "w", encoding="ascii", buffering=1)  # noqa: SIM115  # for the whole session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._send({"test": report.nodeid, "report": data})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._send({"test": nodeid})

    def _send(self, message: dict[str, Any]) -> None:
        # JSON leaves the line's end the one control character, so that it does not matter what the tty makes of it.
        self._port.write(json.dumps(message) + "\n")


class _Outside:
    """Of the pytest here: has the guest run what this kernel can't, and passes its reports on."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._tests: list[str] = []
        self._guest: Guest | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Pick the guest's tests, and move them to the end: pytest sets up and takes down between those of here."""
        there = [item for item in items if not all(map(kernel_has, _features(item)))]
        if self._config.pluginmanager.hasplugin("ansible_forked"):
            # It runs each test in a process of its own, so that each would boot a guest.
            for item in there:
                lacking = ", ".join(feature for feature in _features(item) if not kernel_has(feature))
                item.add_marker(pytest.mark.skip(reason=f"the kernel lacks {lacking}, and ansible-test uses no guest"))
            return
        self._tests = [item.nodeid for item in there]
        for item in there:
            # Beyond that which the test has there, and the start of the guest.
            item.add_marker(pytest.mark.timeout(2 * float(self._config.getini("timeout"))))
        items[:] = [*(item for item in items if item not in there), *there]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Give out what the guest reports of a test; a guest that fails makes the test fail."""
        if item.nodeid not in self._tests:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        call = pytest.CallInfo.from_call(lambda: self._run(item.nodeid), "call", reraise=(KeyboardInterrupt,))
        reports = [item.ihook.pytest_runtest_makereport(item=item, call=call)] if call.excinfo else call.result
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _run(self, test: str) -> list[pytest.TestReport]:
        if self._guest is None:
            self._guest = Guest(fetch(), self._config.rootpath, self._tests)
        return [
            self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            for data in self._guest.reports(test)
        ]

    def pytest_sessionfinish(self) -> None:
        if self._guest is not None:
            self._guest.close()


def _features(item: pytest.Item) -> list[str]:
    return [feature for mark in item.iter_markers("kernel_feature") for feature in mark.args]


class Guest:
    """A guest that runs `tests`, which are named as pytest does, in the checkout `root`, and then ends."""

    def __init__(self, debian: Debian, root: Path, tests: Iterable[str]) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="hostnet-qemu-guest-"))
        self._reports: dict[str, list[Any]] = {}
        self._done: set[str] = set()
        self._explained = False
        image = self._directory / "initramfs"
        init = _INIT.format(command=shlex.quote(_command(root, tests)))
        image.write_bytes(initramfs(debian, init, _MODULES))
        environment = {**os.environ, "LD_LIBRARY_PATH": str(debian.libraries)}
        with open(self._directory / "errors", "wb") as errors:
            # A socket that listens before there is anybody on it, so that QEMU has not to wait for one.
            path = self._directory / "virtiofs"
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(path))
                listening.listen(1)
                descriptor = listening.fileno()
                # It ends with QEMU. Its own sandbox can't make `/` the root of one. A limit that is left as it is needs
                # no privilege. The guest's kernel alone looks at the files, so what it has seen stays true.
                self._files = subprocess.Popen(
                    [
                        *(debian.virtiofsd, f"--fd={descriptor}", "--rlimit-nofile=0"),
                        *("-o", "source=/,sandbox=chroot,cache=always,log_level=err"),
                    ],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=[descriptor],
                )
            self._qemu = subprocess.Popen(
                [
                    # A pytest that is killed takes it along.
                    *("setpriv", "--pdeathsig", "KILL", debian.programs / "usr/bin/qemu-system-x86_64"),
                    *("-L", debian.programs / "usr/share/qemu", "-L", debian.programs / "usr/share/seabios"),
                    *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                    # Never KVM: on machines that are guests themselves it may start and then hang.
                    *("-accel", "tcg", "-cpu", "max"),
                    # Memory that the one who serves the files has mapped as well.
                    *("-object", f"memory-backend-memfd,id=memory,size={_MEMORY}M,share=on"),
                    *("-m", f"{_MEMORY}", "-machine", "pc,memory-backend=memory"),
                    *("-chardev", f"socket,id=files,path={path}"),
                    *("-device", "vhost-user-fs-pci,chardev=files,tag=machine"),
                    *("-serial", f"file:{self._directory}/console", "-serial", "stdio"),
                    *("-kernel", debian.kernel, "-initrd", image, "-append", "console=ttyS0 quiet panic=-1"),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def reports(self, test: str) -> list[Any]:
        """Wait for a test to end; return its reports, serialised. Fails if the guest ends before that."""
        assert self._qemu.stdout is not None
        while test not in self._done:
            line = self._qemu.stdout.readline()
            if not line:
                pytest.fail(f"The guest has ended without this test. {self._explanation()}", pytrace=False)
            message = json.loads(line)
            if "report" in message:
                self._reports.setdefault(message["test"], []).append(message["report"])
            else:
                self._done.add(message["test"])
        return self._reports.get(test, [])

    def close(self) -> None:
        """End the guest."""
        self._qemu.kill()
        self._qemu.communicate()
        self._files.wait()
        shutil.rmtree(self._directory)

    def _explanation(self) -> str:
        """What it and QEMU said last; told once."""
        text = "".join(
            f"\n--- {path.name}\n{path.read_text(errors='replace')[-_TAIL:]}"
            for path in (self._directory / "console", self._directory / "errors")
            if path.exists() and not self._explained
        )
        self._explained = True
        return text or "See the first one of these failures."


def _command(root: Path, tests: Iterable[str]) -> str:
    """The shell command that runs tests in the guest and ends it."""
    kept = {name: os.environ[name] for name in ("CI", "LC_ALL", "PATH") if name in os.environ}
    words = [
        *("env", "-i", *(f"{name}={value}" for name, value in {**kept, "HOME": "/root", _INSIDE: "1"}.items())),
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *tests),
    ]
    # <linux/sysrq.h>: `o` turns the machine off.
    return f"cd {shlex.quote(str(root))} && {shlex.join(words)}; echo o >/proc/sysrq-trigger; sleep 60"
