# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts for the role, and the role's own program that looks at them."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest
import yaml
from support.install import LAUNCHER, ROOT, STUBS
from support.namespaces import Sandbox
from support.playbook import Playbook, prepare

MODULE_UTILS = ROOT / "plugins/module_utils"


@pytest.fixture
def host(sandbox: Sandbox) -> Sandbox:
    """A host that never had the role, and that no init system runs."""
    prepare(sandbox)
    return sandbox


@pytest.fixture
def playbook(host: Sandbox) -> Playbook:
    return Playbook(host.scratch)


@pytest.fixture(scope="session")
def program() -> ModuleType:
    """The role's program for hosts."""
    spec = importlib.util.spec_from_file_location("host", ROOT / "roles/qemu_bridge/files/host.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources(prefix: str, package: str) -> dict[str, str]:
    """The files of a package of module_utils, by their names below `prefix`."""
    return {f"{prefix}{package}/{path.name}": path.read_text() for path in (MODULE_UTILS / package).glob("*.py")}


@pytest.fixture
def links_sources() -> dict[str, str]:
    """What the role lays to make the links again at boot."""
    return {
        "restore-links.py": (ROOT / "files/restore-links.py").read_text(),
        "hostnet_qemu/__init__.py": "",
        **sources("hostnet_qemu/", "links"),
        **sources("hostnet_qemu/", "tapfd"),
    }


@pytest.fixture
def request_of_role(links_sources: dict[str, str]) -> dict[str, Any]:
    """What the role asks `survey` with its defaults."""
    defaults = yaml.safe_load((ROOT / "roles/qemu_bridge/defaults/main.yml").read_text())
    variables = yaml.safe_load((ROOT / "roles/qemu_bridge/vars/main.yml").read_text())
    distribution = yaml.safe_load((ROOT / "roles/qemu_bridge/vars/debian.yml").read_text())
    return {
        **{name.removeprefix("qemu_bridge_"): value for name, value in defaults.items()},
        "default_helper": {**distribution["qemu_bridge__default_helper"], "wanted": False},
        "ifup": {"wanted": False, "bridge": "br0"},
        "apparmor": {
            **variables["qemu_bridge__apparmor"],
            "block": f"# BEGIN of what Ansible manages (role hostnet.qemu.qemu_bridge)\n{LAUNCHER} PUx,\n"
            "# END of what Ansible manages (role hostnet.qemu.qemu_bridge)",
        },
        "header": variables["qemu_bridge__header"],
        "paths": variables["qemu_bridge__paths"],
        "packages": {
            "names": distribution["qemu_bridge__packages"],
            "offered": [],
            "elsewhere": "",
            "distribution": "Debian",
        },
        "well": variables["qemu_bridge__well"],
        "interpreters": [],
        "sources": {**sources("", "tapfd"), **{name: (ROOT / "files" / name).read_text() for name in STUBS}},
        "links_sources": links_sources,
        "launchers": (ROOT / "files/launcher/bin/SHA256SUMS").read_text(),
    }
