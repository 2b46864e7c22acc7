# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to containers of podman: one `podman exec` for each task.

The one of containers.podman can't pipe a module into the interpreter, needs five of them instead, and is to be had only
with the collections of the whole community.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: podman_exec
short_description: Run tasks in a container of podman
description:
  - Runs what Ansible asks for as root of a container that runs on this machine.
options:
  container:
    description: The name of the container.
    required: true
    type: str
    vars:
      - name: container
"""


class Connection(ConnectionBase):
    transport = "podman_exec"
    has_pipelining = True

    def _connect(self) -> Connection:
        return self

    def close(self) -> None:
        pass

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        done = subprocess.run(
            ["podman", "exec", "--interactive", self.get_option("container"), "/bin/sh", "-c", cmd],
            input=in_data or b"",
            capture_output=True,
            check=False,
        )
        # Its own failures, of which 126 and 127 may be the command's as well.
        if done.returncode == 125:
            raise AnsibleConnectionFailure(done.stderr.decode(errors="replace").strip())
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        self._copy(f"cat > {shlex.quote(out_path)}", Path(in_path).read_bytes())

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        Path(out_path).write_bytes(self._copy(f"cat {shlex.quote(in_path)}"))

    def _copy(self, command: str, content: bytes = b"") -> bytes:
        status, stdout, stderr = self.exec_command(command, content)
        if status:
            raise AnsibleConnectionFailure(
                f"{command}: exit status {status}: {stderr.decode(errors='replace').strip()}"
            )
        return stdout
