# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real runs of the playbook `site` against the sandbox that the test is in, or against another host."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from support.install import ROOT
from support.namespaces import Sandbox


def prepare(sandbox: Sandbox) -> None:
    """Make the sandbox a host that never had the role, and that no init system runs."""
    sandbox.overlay("/run")
    # And no bus by which the machine's own services could be told something.
    for directory in ("/run/systemd", "/run/openrc", "/run/dbus"):
        shutil.rmtree(directory, ignore_errors=True)
    # Where the rules for /dev/net/tun go; a container without udev and systemd has neither.
    Path("/etc/udev/rules.d").mkdir(parents=True, exist_ok=True)
    Path("/etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n", encoding="ascii")
    Path("/usr/local/lib").chmod(0o755)


class Run(NamedTuple):
    """What a playbook came to."""

    status: int
    changed: int
    output: str


class Playbook:
    """The playbook with this sandbox as its one host: the checkout's `site.yml`, or that of an installed collection.

    The modules run under the interpreter of the tests, which has pyroute2, so that the role installs no package. The
    helper gets the host's own interpreter, as everywhere. The variables of a run may name another connection.
    """

    def __init__(self, scratch: Path, collections: Path | None = None) -> None:
        """`scratch` is for files of this object.

        If given, `collections` is where hostnet.qemu is installed, and all that Ansible gets to know.
        """
        self._directory = scratch / "ansible"
        self._directory.mkdir(mode=0o700)
        if collections is None:
            self._name, self._home = "site.yml", ROOT
            self._settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        else:
            self._name, self._home = "hostnet.qemu.site", self._directory
            # Nor this machine's settings. Pipelining, as in the checkout's, halves the time.
            (self._directory / "ansible.cfg").write_text("[connection]\npipelining = true\n", encoding="ascii")
            self._settings = {"ANSIBLE_COLLECTIONS_PATH": str(collections)}

    def start(
        self, variables: dict[str, Any], *options: str, interpreter: str = sys.executable
    ) -> subprocess.Popen[str]:
        """Start a run with these variables of the role and options of ansible-playbook."""
        host = {"ansible_connection": "local", "ansible_python_interpreter": interpreter}
        inventory = self._directory / "inventory.json"
        inventory.write_text(json.dumps({"all": {"hosts": {"localhost": {**host, **variables}}}}), encoding="utf-8")
        environment = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "HOME": str(self._directory),
            "ANSIBLE_NOCOLOR": "1",
            **self._settings,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "ansible", "playbook", "-i", inventory, *options, self._name],
            cwd=self._home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, variables: dict[str, Any], *options: str, interpreter: str = sys.executable) -> Run:
        """Do a whole run; its failure is for the test to judge."""
        return self.finish(self.start(variables, *options, interpreter=interpreter))

    def finish(self, process: subprocess.Popen[str]) -> Run:
        """Wait for a run that was started."""
        output, _stderr = process.communicate()
        recap = re.search(r"^localhost +:.* changed=(\d+) ", output, re.MULTILINE)
        assert recap, f"the playbook did not run:\n{output}"
        return Run(process.returncode, int(recap[1]), output)

    def converge(self, variables: dict[str, Any], *options: str) -> Run:
        """A run that must not fail."""
        run = self.run(variables, *options)
        assert run.status == 0, run.output
        return run
