# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the checkout importable as the collection and gives every test that asks a sandbox of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A change is judged by examples that depend on nothing but itself; who works on it sees new ones at every run.
settings.register_profile("ci", derandomize=True)
if "CI" in os.environ:
    settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / ".collections"))

from support import guest  # noqa: E402
from support.namespaces import Sandbox  # noqa: E402
from support.qemu import Debian, fetch  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Run the tests that this kernel can't in a guest."""
    config.pluginmanager.register(guest)


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> None:
    """A search path without a version manager's shims, and a umask that lays files as an administrator would."""
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.umask(0o022)


@pytest.fixture(scope="session")
def debian() -> Debian:
    """The distribution's own programs and a guest's kernel; asked for before any sandbox, which has no network."""
    return fetch()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Private network and mount namespaces for one test."""
    box = Sandbox()
    try:
        yield box
    finally:
        box.close()
