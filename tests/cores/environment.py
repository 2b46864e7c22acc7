# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-test asks for, made below build/cores: releases of ansible-core, a git tree, Pythons, a home directory.

It wants the collection in ansible_collections/hostnet/qemu and without anything that tools have made, the Pythons of
hosts on the search path, and get-pip.py from a server of its own. Nothing is written outside of the checkout, and
nothing but packages is downloaded.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support import pythons

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build/cores"
HOME = BUILD / "home"
BIN = BUILD / "bin"

# The releases of ansible-core with the Pythons that each runs on, the one that is taken if it is here first.
CORES = {
    "2.19": ("3.11", "3.12", "3.13"),
    "2.20": ("3.12", "3.13", "3.14"),
    "2.21": ("3.13", "3.12", "3.14"),
}
# Those of controllers and hosts, from tests/config.yml's on. ansible-test leaves out what a release does not know.
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")

# What ansible-test runs in a virtual environment that has no pip yet, with the packages that it wants there: pip alone.
# The wheel is the whole of it, and is unpacked in a tenth of the time that get-pip.py takes to install it.
GET_PIP = """\
import sys
import sysconfig
import zipfile
from pathlib import Path

wanted = [word for word in sys.argv[1:] if not word.startswith("--")]
if wanted != ["pip=={version}"]:
    sys.exit(f"pip {version} is all that there is instead of get-pip.py: {{wanted}}")
(wheel,) = Path(__file__).parent.glob("pip-{version}-*.whl")
zipfile.ZipFile(wheel).extractall(sysconfig.get_path("purelib"))
"""


class Core(NamedTuple):
    """A release of ansible-core in an environment of its own."""

    name: str
    python: str
    venv: Path

    @property
    def on(self) -> str:
        """What it is, for people."""
        return f"ansible-core {self.name}, Python {self.python}"


class MissingPythonError(Exception):
    """The machine has no Python that this release of ansible-core runs on."""


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Have another run of this name in the checkout wait: both would write to the same places."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_core(name: str, python: str | None = None) -> Core:
    """The release by this name, such as 2.21, installed if it was not; `python` is one of those that it runs on.

    Raises MissingPythonError.
    """
    wanted = (python,) if python else CORES[name]
    version, interpreter = next(((each, found) for each in wanted if (found := pythons.find(each))), (None, None))
    if version is None or interpreter is None:
        raise MissingPythonError(f"ansible-core {name} runs on Python {', '.join(wanted)}, which this machine lacks")
    venv = BUILD / f"{name}-{version}"
    requirements = ROOT / f"requirements/core-{name}.txt"
    # The marker is what was installed.
    marker = venv / "installed.txt"
    with lock("venv"):
        if not marker.exists() or marker.read_text("utf-8") != requirements.read_text("utf-8"):
            shutil.rmtree(venv, ignore_errors=True)
            subprocess.run([interpreter, "-m", "venv", venv], check=True)
            _pip(venv, "install", "--requirement", requirements)
            shutil.copyfile(requirements, marker)
        _make_home(venv)
        _show_pythons()
    return Core(name, version, venv)


def copy_tracked(command: str, core: Core) -> Path:
    """The files that git knows, as they are now, where a command of ansible-test is run with this release."""
    copy = BUILD / command / f"{core.name}-{core.python}" / "ansible_collections/hostnet/qemu"
    # All but the environments for unit tests, and what git and ansible-test ignore with them.
    for path in [*copy.glob("tests/*"), *copy.glob("*")]:
        if path not in (copy / "tests", copy / "tests/output"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        source = ROOT / name
        # What has been removed, but not from the index.
        if source.is_symlink() or source.exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name, follow_symlinks=False)
    # Else it were a part of the checkout's repository, which ignores it, and so would ansible-test.
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    return copy


def ansible_test(core: Core, copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ansible-test of this release in a copy of the checkout, where it finds the Pythons; its output is one."""
    return subprocess.run(
        [core.venv / "bin/ansible-test", *arguments],
        cwd=copy,
        env={**os.environ, "HOME": str(HOME), "PATH": f"{BIN}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _show_pythons() -> None:
    """Fill BIN with links to the machine's Pythons, wherever they are, by the names that ansible-test looks for."""
    BIN.mkdir(exist_ok=True)
    for version in PYTHONS:
        python, link = pythons.find(version), BIN / f"python{version}"
        # Another command may be running with those of before.
        if not python or not link.is_symlink() or link.readlink() != python:
            link.unlink(missing_ok=True)
            if python:
                link.symlink_to(python)


def _make_home(venv: Path) -> None:
    """Make HOME, where ansible-test finds the user's way to packages, and what installs pip already there."""
    (HOME / ".config").mkdir(parents=True, exist_ok=True)
    config = HOME / ".config/pip"
    config.unlink(missing_ok=True)
    config.symlink_to(Path.home() / ".config/pip")
    cache = HOME / ".ansible/test/cache"
    cache.mkdir(parents=True, exist_ok=True)
    # Each release of ansible-core pins a pip, and asks by its version.
    (source,) = venv.glob("lib/python3*/site-packages/ansible_test/_internal/python_requirements.py")
    for version in re.findall(r"\bpip='([0-9.]+)'", source.read_text("utf-8")):
        if not list(cache.glob(f"pip-{version}-*.whl")):
            _pip(venv, "download", "--no-deps", "--dest", cache, f"pip=={version}")
        script = cache / f"get_pip_{version.replace('.', '_')}.py"
        script.write_text(GET_PIP.format(version=version), encoding="utf-8")


def _pip(venv: Path, *arguments: str | Path) -> None:
    pip = [venv / "bin/python", "-m", "pip", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, *arguments], check=True)
