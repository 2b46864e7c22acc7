# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real packages of the distribution, as archives and as what is in them, without installing them on the machine."""

from __future__ import annotations

import fcntl
import subprocess
import tempfile
from pathlib import Path

from support.namespaces import Sandbox
from support.qemu import CACHE, ArtefactError

# What dpkg writes to beside the files of a package.
_DPKG = ("/var/lib/dpkg", "/var/cache", "/var/log")


def fetch(*names: str) -> dict[str, Path]:
    """Return the archives of these packages, after downloading those that this checkout lacks.

    Must be called in the machine's own network namespace. Raises ArtefactError.
    """
    CACHE.mkdir(exist_ok=True)
    directory = CACHE / "archives"
    with open(CACHE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        directory.mkdir(exist_ok=True)
        return {name: _archive(name, directory) for name in names}


def _archive(name: str, directory: Path) -> Path:
    found = sorted(directory.glob(f"{name}_*.deb"))
    if found:
        return found[0]
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        # As root: apt's own user need not have a way into this checkout.
        command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            # New machines come with old lists of packages, or with none.
            subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.deb"))
        if done.returncode != 0 or len(archives) != 1:
            raise ArtefactError(
                f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()}\n"
                "This test needs that package once: run it again with a package mirror within reach."
            )
        return archives[0].rename(directory / archives[0].name)


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack what an archive would install below a new directory, and return that."""
    directory.mkdir()
    subprocess.run(["dpkg-deb", "--extract", archive, directory], check=True)
    return directory


def allow_dpkg(sandbox: Sandbox) -> None:
    """Let `dpkg` and the like work in the sandbox, on a data base that ends with it; /usr is for the caller to lay."""
    for directory in _DPKG:
        sandbox.overlay(directory)


def dpkg(*arguments: str | Path) -> str:
    """Run dpkg, whatever a package depends on and whatever conffiles were changed; return what it said."""
    done = subprocess.run(
        ["dpkg", "--force-depends", "--force-confold", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
