# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as users install it: from the tarball of `make dist` and from git, and its playbook run from there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.container import Container, fetch_host
from support.install import COMMAND, LAUNCHER, LIBRARY, ROOT
from support.namespaces import Sandbox, mount
from support.playbook import Playbook

# All that the collection consists of. What else git knows is left out by galaxy.yml.
SHIPPED = re.compile(
    r"""
      LICENSE | (CHANGELOG|CONTRIBUTING|README)\.md
    | changelogs/(changelog|config)\.yaml | changelogs/fragments/[\w.-]+\.yml
    | docs/\w+\.md
    | files/[\w-]+\.py
    | files/launcher/(README\.md|build|launcher\.c) | files/launcher/bin/(SHA256SUMS|qemu-bridge-helper\.\w+)
    | meta/runtime\.yml
    | playbooks/\w+\.yml
    | plugins/(doc_fragments|filter|modules)/\w+\.py | plugins/module_utils/(\w+/)?\w+\.py
    | requirements/launchers\.txt
    | roles/\w+/(README\.md|(defaults|meta|tasks|vars)/\w+\.yml|files/\w+\.py|templates/[\w.-]+\.j2)
    """,
    re.VERBOSE,
)
# What ansible-galaxy writes besides.
MANIFESTS = {"FILES.json", "MANIFEST.json"}
# What may lie about in a checkout, where ansible-galaxy by itself would take it for a part of the collection.
STRAY = ("notes.txt", "plugins/modules/bridge.py.orig", "roles/qemu_bridge/tasks/mine.yml")

# This machine's launcher.
OWN = f"{LAUNCHER.name}.{platform.machine()}"


def run(workspace: Path, *command: str | Path) -> str:
    """Run a command in the workspace, with none of the caller's settings; return its output."""
    done = subprocess.run(
        command,
        cwd=workspace,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(workspace), "GIT_CONFIG_NOSYSTEM": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def install(workspace: Path, name: str, source: str | Path, *options: str) -> Path:
    """Have ansible-galaxy install `source` into a path, at first an empty one; return that."""
    collections = workspace / name
    command = ("-m", "ansible", "galaxy", "collection", "install", "--offline", "--collections-path", collections)
    run(workspace, sys.executable, *command, *options, source)
    return collections


def build(workspace: Path, checkout: Path) -> Path:
    """Have `make dist` build a tarball; return that."""
    environment = Path(sys.prefix)
    # The environment of the tests will do, however old it is.
    ready = environment / f"site-{sys.version_info[0]}.{sys.version_info[1]}"
    settings = (f"--old-file={ready}", f"VENV={environment}", f"PYTHON={sys.executable}")
    shutil.rmtree(checkout / "build", ignore_errors=True)
    run(workspace, "make", f"--directory={checkout}", *settings, "dist")
    (tarball,) = (checkout / "build").iterdir()
    return tarball


def known(workspace: Path, repository: Path) -> list[str]:
    """The files of a repository that git knows."""
    return run(workspace, "git", "-C", repository, "ls-files", "-z").rstrip("\0").split("\0")


def files(collections: Path) -> dict[str, Path]:
    """The files of the installed collection by their names in it."""
    top = collections / "ansible_collections/hostnet/qemu"
    return {str(path.relative_to(top)): path for path in top.rglob("*") if not path.is_dir()}


def content(path: Path) -> tuple[bool, bytes]:
    return os.access(path, os.X_OK), path.read_bytes()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything here is built and installed, with settings for git and none for Ansible."""
    path = tmp_path_factory.mktemp("dist")
    # The checkout may belong to somebody else than root.
    (path / ".gitconfig").write_text("[safe]\ndirectory = *\n[user]\nname = Somebody\nemail = somebody@localhost\n")
    (path / "ansible.cfg").touch()
    return path


@pytest.fixture(scope="module")
def checkout(workspace: Path) -> Path:
    """A repository that has in one commit what this checkout would, were all changes of tracked files committed."""
    path = workspace / "checkout"
    for name in known(workspace, ROOT):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path / name, follow_symlinks=False)
    for words in (["init", "--quiet"], ["add", "--all", "--force"], ["commit", "--quiet", "--message=All of it"]):
        run(workspace, "git", "-C", path, *words)
    for name in STRAY:
        (path / name).write_text("- none of this belongs to the collection\n")
    return path


@pytest.fixture(scope="module")
def installed(workspace: Path, checkout: Path) -> Path:
    """Where the tarball of `make dist` was installed."""
    return install(workspace, "from-tarball", build(workspace, checkout))


def test_the_tarball_is_what_belongs_to_the_collection(workspace: Path, checkout: Path, installed: Path) -> None:
    belongs = {name for name in known(workspace, checkout) if SHIPPED.fullmatch(name)}
    found = files(installed)
    assert found.keys() ^ (belongs | MANIFESTS) == set()
    for name in belongs:
        assert content(found[name]) == content(checkout / name), name
    about = json.loads(found["MANIFEST.json"].read_text())["collection_info"]
    assert (about["namespace"], about["name"]) == ("hostnet", "qemu")


def test_git_gives_the_same_as_the_tarball(workspace: Path, checkout: Path, installed: Path) -> None:
    cloned = files(install(workspace, "from-git", f"git+file://{checkout}"))
    unpacked = files(installed)
    assert cloned.keys() ^ unpacked.keys() == set()
    for name in cloned.keys() - MANIFESTS:
        assert content(cloned[name]) == content(unpacked[name]), name


# The first time, compiler and C libraries are fetched and built.
@pytest.mark.timeout(3600)
def test_launchers_come_with_all_that_they_are_made_from(
    installed: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    found = files(installed)
    sums = found["files/launcher/bin/SHA256SUMS"]
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", sums], cwd=sums.parent, capture_output=True, text=True, check=True
    )
    binaries = {path.name for name, path in found.items() if name.startswith("files/launcher/bin/")} - {sums.name}
    assert len(binaries) == 7
    assert {f"{name}: OK" for name in binaries} <= set(checked.stdout.splitlines())

    for name in ("files", "requirements"):
        shutil.copytree(installed / "ansible_collections/hostnet/qemu" / name, tmp_path / name)
    # The compiler, which takes long to download, is that of the checkout.
    (ROOT / "build").mkdir(exist_ok=True)
    (tmp_path / "build").symlink_to(ROOT / "build")
    names = binaries if pytestconfig.getoption("--all-launchers") else {OWN}
    subprocess.run(
        [tmp_path / "files/launcher/build", tmp_path / "out", *(name.rpartition(".")[2] for name in names)],
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (sums.parent / name).read_bytes(), name


def test_pages_refer_to_nothing_that_is_left_out(installed: Path) -> None:
    pages = [path for path in files(installed).values() if path.suffix == ".md"]
    dead = [
        f"{page}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
        if not re.match(r"https?://", target) and not (page.parent / target).exists()
    ]
    assert dead == []


# Where the role puts things, and what of it the kernel has.
LAID = "find /etc /usr/local /sys/class/net | sort"
# As the user of a guest does it: a tap by the helper, and what it is.
TAKE = f"{COMMAND} --br=br0 -- readlink /proc/self/fd/{{fd}}"
NOBODY = 65534
# So that every package is needed that the role knows.
WISHES = {
    "qemu_bridge_bridges": [{"name": "br0", "addresses": ["192.0.2.1/24"]}],
    "qemu_bridge_acl": [{"bridge": "br0", "action": "allow", "users": ["nobody"]}],
}


@pytest.fixture
def bare_host(tmp_path: Path) -> Iterator[Container]:
    """A host of Debian 12 with Python and without anything that the role needs."""
    container = Container(fetch_host("bookworm"), tmp_path)
    try:
        yield container
    finally:
        container.close()


# It makes the host first, of packages that it downloads. The sandbox, which must come after that, is Ansible's side.
@pytest.mark.timeout(900)
def test_a_bare_host_gets_all_of_it_and_a_newer_version_and_is_bare_again(
    workspace: Path, checkout: Path, bare_host: Container, sandbox: Sandbox, tmp_path: Path
) -> None:
    collections = install(workspace, "for-a-bare-host", build(workspace, checkout))
    # The checkout is no part of this.
    for name in ("files", "playbooks", "plugins", "roles"):
        mount("tmpfs", ROOT / name, "tmpfs")
    playbook = Playbook(sandbox.scratch, collections=collections)
    wishes = {**bare_host.variables, **WISHES}
    before = bare_host.run(LAID)

    check = playbook.converge(wishes, "--check", "--diff")
    assert re.search(r"Would install (python3-pyroute2, acl|acl, python3-pyroute2)\.", check.output), check.output
    assert bare_host.run(LAID) == before

    first = playbook.converge(wishes)
    assert "nobody got tap0 on br0" in first.output
    launcher = files(collections)[f"files/launcher/bin/{OWN}"].read_bytes()
    assert bare_host.run(f"sha256sum <{LAUNCHER}").split()[0] == hashlib.sha256(launcher).hexdigest()
    assert bare_host.run(TAKE, NOBODY) == "/dev/net/tun\n"

    second = playbook.converge(wishes)
    assert second.changed == 0, second.output

    newer = tmp_path / "newer"
    run(workspace, "git", "clone", "--quiet", checkout, newer)
    about = (newer / "galaxy.yml").read_text()
    (newer / "galaxy.yml").write_text(re.sub(r"^version: .*", "version: 9.0.0", about, flags=re.MULTILINE))
    with (newer / "plugins/module_utils/tapfd/run.py").open("a") as module:
        module.write("\n# Of the newer version.\n")
    install(workspace, "for-a-bare-host", build(workspace, newer), "--upgrade")
    playbook.converge(wishes)
    assert "# Of the newer version." in bare_host.run(f"cat {LIBRARY}/tapfd/run.py")
    assert bare_host.run(TAKE, NOBODY) == "/dev/net/tun\n"

    playbook.converge(wishes, "--extra-vars=qemu_bridge_state=absent")
    assert bare_host.run(LAID) == before
