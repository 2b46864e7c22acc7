# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs on hosts, on the Pythons and with the releases of pyroute2 that hosts have.

What is run there are the unit tests of `links` and of `tapfd`, less those that Ansible is needed for: it asks for newer
Pythons.
"""

from __future__ import annotations

import os
import subprocess

import pytest
from support.install import ROOT
from support.pythons import find, with_packages

LINKS = "tests/unit/plugins/module_utils/links"
TAPFD = "tests/unit/plugins/module_utils/tapfd"

# Each supported Python, and each release of pyroute2 that changed what we use of it, on a Python that it can run on.
VERSIONS = [
    ("3.9", "0.5.14"),  # EL 9, Debian 11
    ("3.10", "0.6.4"),
    ("3.11", "0.7.2"),  # Debian 12
    ("3.12", "0.7.7"),
    ("3.13", "0.8.1"),  # Debian 13
    ("3.13", "0.9.7"),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("version", "pyroute2"), VERSIONS)
def test_links_on_other_hosts(version: str, pyroute2: str) -> None:
    run(version, [f"pyroute2=={pyroute2}"], LINKS, f"--ignore={LINKS}/test_arguments.py")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", ["3.9", "3.13"])
def test_tapfd_on_other_hosts(version: str) -> None:
    """The oldest and the newest: it has no package beside the standard library."""
    run(version, [], TAPFD)


def run(version: str, packages: list[str], *tests: str) -> None:
    """Run tests by this Python with these packages, and fail with what they say."""
    python = find(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}")
    directory = with_packages(python, "hypothesis", "pytest", "pytest-timeout", *packages)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    if "CI" in os.environ:
        environment["CI"] = os.environ["CI"]
    done = subprocess.run(
        [
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not kernel_feature", "--color=no"),
            *tests,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
