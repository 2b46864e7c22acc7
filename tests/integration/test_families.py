# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role asks of a distribution: no package unless something needs it, and then by that distribution's name.

Other distributions than this machine's are simulated: by the files that Ansible takes its facts from, and by a stub of
their package manager, which tells what it was asked. The host below, its kernel and its Python are real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pyroute2
import pytest
from support.install import LAUNCHER, ROOT
from support.namespaces import MS_BIND, Sandbox, ip, mount
from support.playbook import Playbook
from support.pythons import find
from support.user import User, take_tap

PYTHON = "/usr/bin/python3"
PACKAGES = "/usr/lib/python3/dist-packages"
STUBS = Path("/usr/local/sbin")
ASKED = Path("/etc/asked")
BRIDGES = {"bridges": [{"name": "br0", "addresses": ["192.0.2.1/24"]}]}
ADDRESSED = {"qemu_bridge_bridges": BRIDGES["bridges"]}


class Family(NamedTuple):
    """A distribution: files that tell it, the question to its package manager, and QEMU's own path to a helper."""

    files: dict[str, str]
    question: str
    helper: str


FAMILIES = {
    "fedora": Family(
        {
            "os-release": 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=44\n',
            "redhat-release": "Fedora release 44 (Forty Four)\n",
        },
        "dnf --quiet list python3-pyroute2",
        "/usr/libexec/qemu-bridge-helper",
    ),
    "rocky": Family(
        {
            "os-release": 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\n',
            "redhat-release": "Rocky Linux release 9.6 (Blue Onyx)\n",
        },
        "dnf --quiet list python3-pyroute2",
        "/usr/libexec/qemu-bridge-helper",
    ),
    "leap": Family(
        {"os-release": 'NAME="openSUSE Leap"\nID="opensuse-leap"\nID_LIKE="suse opensuse"\nVERSION_ID="15.6"\n'},
        "zypper --non-interactive --quiet install --dry-run python3-pyroute2",
        "/usr/lib/qemu-bridge-helper",
    ),
    "tumbleweed": Family(
        {"os-release": 'NAME="openSUSE Tumbleweed"\nID="opensuse-tumbleweed"\nID_LIKE=suse\nVERSION_ID="20261101"\n'},
        "zypper --non-interactive --quiet install --dry-run python3-pyroute2",
        "/usr/libexec/qemu-bridge-helper",
    ),
    "arch": Family(
        {"os-release": 'NAME="Arch Linux"\nID=arch\nBUILD_ID=rolling\n', "arch-release": ""},
        "pacman --sync --print python-pyroute2",
        "/usr/lib/qemu/qemu-bridge-helper",
    ),
    "alpine": Family(
        {"os-release": 'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.23.6\n', "alpine-release": "3.23.6\n"},
        "apk add --simulate py3-pyroute2",
        "/usr/lib/qemu/qemu-bridge-helper",
    ),
}


def be(files: dict[str, str]) -> None:
    """Have Ansible take this host for another distribution."""
    for path in (*Path("/etc").glob("*-release"), *Path("/etc").glob("*_version")):
        path.unlink()
    for name, text in files.items():
        Path("/etc", name).write_text(text, encoding="utf-8")


def stub(name: str, status: int, says: str = "") -> None:
    """A package manager that notes what it is asked, and answers so."""
    path = STUBS / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> {ASKED}\necho "{says}"\nexit {status}\n', encoding="utf-8")
    path.chmod(0o755)


def without_pyroute2() -> None:
    """As on a host whose Python came without any package."""
    mount("tmpfs", PACKAGES, "tmpfs")


def hand_over(bridge: bytes) -> int:
    answer = take_tap(LAUNCHER, bridge)
    if answer.tap is not None:
        os.close(answer.tap)
    return answer.status


@pytest.mark.parametrize("name", FAMILIES)
def test_a_package_has_the_name_that_the_distribution_gives_it(host: Sandbox, playbook: Playbook, name: str) -> None:
    family = FAMILIES[name]
    be(family.files)
    without_pyroute2()
    manager, *_arguments, package = family.question.split()
    stub(manager, 0)
    helper = Path(family.helper)
    host.overlay("/usr/lib")
    if helper.parent.name == "libexec":
        host.overlay("/usr/libexec")
    helper.unlink(missing_ok=True)

    variables = {**ADDRESSED, "qemu_bridge_default_helper": True}
    check = playbook.run(variables, "--check", "--diff", interpreter=PYTHON)
    assert check.status == 0, check.output
    assert f"Would install {package}." in check.output
    assert ASKED.read_text() == f"{family.question}\n"
    assert f'"path": "{helper}"' in check.output


def test_what_no_repository_offers_is_refused_with_the_ways_out(host: Sandbox, playbook: Playbook) -> None:
    be(FAMILIES["rocky"].files)
    without_pyroute2()
    stub("dnf", 1, "Error: No matching Packages to list")
    refused = playbook.run(ADDRESSED, interpreter=PYTHON)
    assert (refused.status, refused.changed) == (2, 0)
    for words in (
        "Nothing was changed on localhost",
        "takes pyroute2 0.5.14 or newer",
        "(`dnf --quiet list python3-pyroute2`: Error: No matching Packages to list)",
        "enable EPEL yourself",
        "ansible_python_interpreter and as qemu_bridge_python",
    ):
        assert words in refused.output


@pytest.mark.timeout(900)  # Many runs of the role.
def test_the_defaults_need_no_package_on_any_distribution(host: Sandbox, playbook: Playbook) -> None:
    """With Python alone, on one that the role has never heard of: it works, also after a start, and goes again."""
    be({"os-release": 'NAME="Plan 9 from User Space"\nID=plan9\nVERSION_ID=4\n'})
    without_pyroute2()
    Path("/run/openrc").mkdir()
    before = sorted(os.listdir("/sys/class/net"))
    first = playbook.run({}, interpreter=PYTHON)
    assert first.status == 0, first.output
    assert "nobody got tap0 on br0" in first.output
    second = playbook.run({}, interpreter=PYTHON)
    assert (second.status, second.changed) == (0, 0), second.output
    ip("link", "delete", "br0")
    service = "ebegin() { :; }; eend() { return $1; }; . /etc/init.d/hostnet-qemu-links; start"
    started = subprocess.run(["sh", "-c", service], capture_output=True, text=True, check=False)
    assert (started.returncode, started.stderr) == (0, "")
    nobody = User(65534)
    assert nobody.call(hand_over, b"br0") == 0
    nobody.close()

    # What has to be put right may need more than what has to be made.
    ip("link", "set", "br0", "down")
    refused = playbook.run({}, interpreter=PYTHON)
    assert refused.status != 0
    assert "takes pyroute2" in refused.output
    assert "the role does not know which package of Plan 9 from User Space has it" in refused.output
    gone = playbook.run({"qemu_bridge_state": "absent"}, interpreter=PYTHON)
    assert gone.status == 0, gone.output
    assert sorted(os.listdir("/sys/class/net")) == before


NEEDS = [
    (False, [{"name": "br0", "mac": "stable", "stp": True, "ageing_time": "60", "ports": ["tap0"]}], []),
    (False, [{"name": "br0"}], [{"name": "tap0", "bridge": "br0", "owner": "nobody", "mtu": 1400}]),
    (False, [], [{"name": "tap0", "up": False}, {"name": "tap1", "state": "absent"}]),
    (True, [{"name": "br0", "addresses": ["192.0.2.1/24"]}], []),
    # The read-back would miss it.
    (True, [{"name": "br0", "addresses": []}], []),
    (True, [{"name": "br0", "mtu": 1400}], []),
    (True, [{"name": "br0", "up": False}], []),
    (True, [], [{"name": "tap0", "mtu": 1000}]),
    (True, [{"name": "br0", "ports": ["uplink"]}], []),
]


@pytest.mark.parametrize(("needed", "bridges", "taps"), NEEDS)
def test_pyroute2_is_asked_for_where_it_would_be_missed(
    host: Sandbox,
    request_of_role: dict[str, Any],
    needed: bool,
    bridges: list[dict[str, Any]],
    taps: list[dict[str, Any]],
) -> None:
    without_pyroute2()
    Path("/run/openrc").mkdir()
    ip("link", "add", "uplink", "type", "veth", "peer", "name", "switch")
    if any("tap0" in bridge.get("ports", []) for bridge in bridges):
        taps = [{"name": "tap0"}]
    request = {**request_of_role, "bridges": bridges, "taps": taps, "interpreters": [PYTHON]}
    found = survey(request)
    assert found["problems"] == []
    assert found["missing"] == (["pyroute2"] if needed else [])

    # The word of the program itself, after a start of the host.
    program = Path("/usr/local/lib/program")
    for name, text in request["links_sources"].items():
        (program / name).parent.mkdir(parents=True, exist_ok=True)
        (program / name).write_text(text, encoding="utf-8")
    state = Path("/etc/state.json")
    state.write_text(json.dumps({"bridges": bridges, "taps": taps}), encoding="utf-8")
    command = [PYTHON, "-I", "-B", program / "restore-links.py", state, "0"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ("pyroute2 0.5.14 or newer is needed" in made.stderr) is needed, made.stderr
    assert (made.returncode == 0) is not needed
    # It is missed before anything is changed.
    assert "undone" not in made.stderr
    if not needed:
        assert survey(request)["missing"] == []


def test_a_start_of_the_host_may_need_more_than_what_is_here(host: Sandbox, request_of_role: dict[str, Any]) -> None:
    without_pyroute2()
    Path("/run/openrc").mkdir()
    ip("link", "add", "br0", "up", "type", "bridge")
    ip("link", "add", "uplink", "up", "master", "br0", "type", "veth", "peer", "name", "switch")
    request = {**request_of_role, "bridges": [{"name": "br0", "ports": ["uplink"]}], "interpreters": [PYTHON]}
    assert survey(request)["missing"] == ["pyroute2"]
    assert survey({**request, "boot": False})["missing"] == []


def survey(request: dict[str, Any], python: str = PYTHON) -> dict[str, Any]:
    """What the role's program says, run as the role runs it."""
    program = (ROOT / "roles/qemu_bridge/files/host.py").read_text()
    call = f"print(json.dumps(survey(json.loads({json.dumps(json.dumps(request))}))))"
    done = subprocess.run(
        [python, "-I", "-"], input=f"{program}\n{call}\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("version", "says"),
    [("0.5.10", "has 0.5.10, which is too old"), ("0.5.14", ""), ("0.9.7rc1", ""), ("", "")],
)
def test_a_pyroute2_that_is_too_old_is_no_pyroute2(
    host: Sandbox, request_of_role: dict[str, Any], version: str, says: str
) -> None:
    without_pyroute2()
    Path(PACKAGES, "pyroute2").mkdir()
    Path(PACKAGES, "pyroute2/__init__.py").write_text("", encoding="ascii")
    if version:
        metadata = Path(PACKAGES, f"pyroute2-{version}.dist-info/METADATA")
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: pyroute2\nVersion: {version}\n", encoding="ascii")
    request = {**request_of_role, **BRIDGES, "interpreters": [PYTHON]}
    problems = survey(request)["problems"]
    assert len(problems) == bool(says)
    assert says in "".join(problems)


def test_a_python_of_ones_own_with_pyroute2_is_a_way_out(host: Sandbox, request_of_role: dict[str, Any]) -> None:
    without_pyroute2()
    Path("/run/openrc").mkdir()
    name = Path(os.path.realpath(PYTHON)).name
    home = Path("/usr/local/own")
    own = home / "bin" / name
    own.parent.mkdir(parents=True)
    shutil.copy(PYTHON, own)
    # Beside the standard library, by which the interpreter knows its home, it has what pip would have installed.
    library = home / "lib" / name
    library.mkdir(parents=True)
    mount(f"/usr/lib/{name}", library, None, MS_BIND)
    packages = home / "lib/python3/dist-packages"
    packages.mkdir(parents=True)
    (packages / "pyroute2").symlink_to(Path(pyroute2.__file__).parent)
    request = {**request_of_role, **BRIDGES, "interpreters": [PYTHON]}
    assert survey(request)["missing"] == ["pyroute2"]

    request["python"] = str(own)
    found = survey(request, str(own))
    assert found["problems"] == []
    assert found["missing"] == []
    assert found["boot"]["install"]["python"] == str(own)
    assert found["python"]["path"] == str(own)


@pytest.mark.parametrize("version", ["3.9", "3.13"])
def test_the_look_at_a_host_runs_under_its_python(host: Sandbox, request_of_role: dict[str, Any], version: str) -> None:
    python = find(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}")
    without_pyroute2()
    # Not that of the environment that the tests run in, which has the library.
    own = os.path.realpath(python)
    request = {**request_of_role, "interpreters": [own]}
    assert survey(request, own)["missing"] == []
    assert survey({**request, **BRIDGES}, own)["missing"] == ["pyroute2"]


def test_a_python_that_is_too_old_for_the_modules_is_refused(host: Sandbox, request_of_role: dict[str, Any]) -> None:
    old = find("3.8")
    if old is None:
        pytest.skip("this machine has no Python 3.8")
    (problem,) = survey({**request_of_role, **BRIDGES}, str(old))["problems"]
    assert problem.startswith(f"Ansible runs modules here with {old}, which is Python 3.8.")
    assert problem.endswith("and they need 3.9 or newer: set ansible_python_interpreter to another one.")
    # What is removed takes no module.
    assert survey({**request_of_role, "state": "absent"}, str(old))["problems"] == []


def test_the_packages_of_an_old_distribution_are_of_no_use(host: Sandbox, request_of_role: dict[str, Any]) -> None:
    """As on RHEL 8, whose own Python is 3.6, with a newer one for Ansible beside it."""
    old = find("3.8")
    if old is None:
        pytest.skip("this machine has no Python 3.8")
    without_pyroute2()
    Path("/run/openrc").mkdir()
    request = {**request_of_role, "interpreters": [str(old)]}
    found = survey(request)
    assert (found["problems"], found["missing"]) == ([], [])
    assert found["boot"]["install"]["python"] == PYTHON
    (problem,) = survey({**request, **BRIDGES})["problems"]
    assert "own Python, which its packages are for, is missing or older than 3.9" in problem
