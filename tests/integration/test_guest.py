# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that need a kernel with more features than this one has get it, and their failures are seen."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.guest import FEATURES, kernel_has
from support.install import ROOT
from support.namespaces import Sandbox, ip


@pytest.mark.parametrize("feature", FEATURES)
def test_the_kernel_is_asked(feature: str) -> None:
    """What is tried is a command that `ip` understands, so that its failure says something of the kernel."""
    done = subprocess.run(["unshare", "--net", "ip", *FEATURES[feature].split()], capture_output=True, check=False)
    assert done.returncode in (0, 2), done
    assert kernel_has(feature) is (done.returncode == 0)


@pytest.mark.kernel_feature("vlan_filtering")
def test_a_bridge_filters_vlans(sandbox: Sandbox) -> None:
    ip(*FEATURES["vlan_filtering"].split())
    (bridge,) = json.loads(ip("-details", "-json", "link", "show", "dev", "br0"))
    assert bridge["linkinfo"]["info_data"]["vlan_filtering"] == 1


@pytest.mark.kernel_feature("vlan_filtering")
@pytest.mark.xfail(strict=True, raises=ZeroDivisionError)
def test_a_failure_is_seen() -> None:
    """It has to fail inside, in the way that is expected; that it does so is reported here."""
    raise ZeroDivisionError


@pytest.mark.kernel_feature("vlan_filtering")
@pytest.mark.parametrize("text", ["a b", "'\"$", "ä/[::]", "-x"])
def test_any_test_can_be_named(text: str) -> None:
    assert text and Path.cwd() == ROOT
