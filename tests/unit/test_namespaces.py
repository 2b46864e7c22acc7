# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sandbox of the tests."""

from __future__ import annotations

import os
import threading

from support.namespaces import Sandbox


def test_is_left_beside_threads() -> None:
    """setns(2) refuses a mount namespace to who shares root and working directory with another thread."""
    before = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt"), os.getcwd()
    sandbox = Sandbox()
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        sandbox.close()
        assert (os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt"), os.getcwd()) == before
    finally:
        over.set()
        thread.join()
