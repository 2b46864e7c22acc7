# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module bridge_helper_info with the bridge helper that the distribution ships."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.modules import bridge_helper_info
from support.install import write_policy
from support.modules import run_module
from support.namespaces import Sandbox, ip
from support.qemu import BRIDGE_HELPER, Debian, lay


@pytest.fixture
def helper(debian: Debian, sandbox: Sandbox) -> str:
    lay(sandbox, debian)
    return str(BRIDGE_HELPER)


def ask(helper: str, **options: Any) -> dict[str, Any]:
    return run_module(bridge_helper_info.main, {"helper": helper, **options})


def test_reports_what_the_distributions_helper_gives_and_refuses(helper: str) -> None:
    ip("link", "add", "br0", "mtu", "1400", "type", "bridge")
    write_policy("allow br0\n")
    granted = ask(helper)
    assert granted["granted"] is True
    assert {key: granted[key] for key in ("name", "flags", "vnet_hdr", "mtu", "master", "up")} == {
        "name": "tap0",
        "flags": 0x5002,
        "vnet_hdr": True,
        "mtu": 1400,
        "master": "br0",
        "up": True,
    }
    assert granted["mac"].startswith("fe:")
    refused = ask(helper, bridge="br1")
    assert (refused["granted"], refused["stderr"]) == (False, "access denied by acl file")


def test_groups_decide_where_the_policy_is_kept_for_one(helper: str) -> None:
    ip("link", "add", "br0", "type", "bridge")
    write_policy("allow br0\n", mode=0o640, group=1)
    assert ask(helper, groups=["1"])["granted"] is True
    refused = ask(helper, groups=[])
    assert refused["granted"] is False
    assert "failed to parse default acl file" in refused["stderr"]
