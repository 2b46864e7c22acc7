# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints what a platform consists of, as JSON; run on it by its own Python."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

release = re.search(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE)
systemd = None
if shutil.which("systemctl"):
    systemd = subprocess.run(["systemctl", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[
        1
    ]
print(
    json.dumps(
        {
            "distribution": release and release[1],
            "kernel": platform.release(),
            "machine": platform.machine(),
            "pyroute2": metadata.version("pyroute2"),
            "python": platform.python_version(),
            "systemd": systemd,
        }
    )
)
