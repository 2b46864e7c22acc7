# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other Pythons than the one of the tests, with packages for them, as hosts have them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.qemu import CACHE, ArtefactError


def find(version: str) -> Path | None:
    """The interpreter of a version such as `3.9` that this machine has, on the search path or in a version manager."""
    return next((path for path in _candidates(version) if _is(path, version)), None)


def _candidates(version: str) -> Iterator[Path]:
    yield Path(sys.executable)
    found = shutil.which(f"python{version}")
    if found:
        yield Path(found)
    home = Path.home()
    managed = (Path(os.environ.get("PYENV_ROOT", home / ".pyenv"), "versions"), home / ".local/share/uv/python")
    for directory in managed:
        yield from sorted(directory.glob(f"*/bin/python{version}"))


def _is(python: Path, version: str) -> bool:
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip() == version


def with_packages(python: Path, *packages: str) -> Path:
    """A directory for PYTHONPATH with these packages and what they need, installed once for each Python.

    Must be called in the machine's own network namespace. Raises ArtefactError.
    """
    CACHE.mkdir(exist_ok=True)
    name = "-".join([python.name, *packages]).replace("==", "-")
    directory = CACHE / "packages" / name
    if not directory.exists():
        directory.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            command = [python, "-m", "pip", "install", "--target", f"{scratch}/packages"]
            done = subprocess.run(
                [*command, "--quiet", "--disable-pip-version-check", *packages],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise ArtefactError(f"pip can't install {', '.join(packages)} for {python}:\n{done.stderr}")
            os.rename(f"{scratch}/packages", directory)
    return directory
