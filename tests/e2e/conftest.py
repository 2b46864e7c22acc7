# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines for the tests with a real QEMU."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from support.machine import Machine


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Machines that are to end with the test."""
    started: list[Machine] = []
    yield started
    for machine in started:
        if machine.process.poll() is None:
            machine.end(signal.SIGKILL)
