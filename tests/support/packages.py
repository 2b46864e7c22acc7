# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real packages of the distribution, as archives and as what is in them, without installing them on the machine."""

from __future__ import annotations

import fcntl
import platform
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
    directory = _directory()
    with open(CACHE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return {name: _archive(name, directory) for name in names}


def fetch_all(*names: str) -> list[Path]:
    """Return the archives of these packages, and of all that they depend on and this machine lacks.

    Must be called in the machine's own network namespace. Raises ArtefactError.
    """
    directory = _directory() / "-".join(names)
    with open(CACHE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                archives = Path(scratch, "archives")
                (archives / "partial").mkdir(parents=True)
                install = ["install", "--yes", "--download-only", "--no-install-recommends", "--reinstall"]
                _apt_get(archives, *install, "-o", f"Dir::Cache::archives={archives}", *names)
                archives.rename(directory)
    return sorted(directory.glob("*.deb"))


def _directory() -> Path:
    """Where the archives of this machine's release are."""
    directory = CACHE / "archives" / platform.freedesktop_os_release().get("VERSION_CODENAME", "unknown")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _archive(name: str, directory: Path) -> Path:
    found = sorted(directory.glob(f"{name}_*.deb"))
    if found:
        return found[0]
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        _apt_get(Path(scratch), "download", name)
        (archive,) = Path(scratch).glob("*.deb")
        return archive.rename(directory / archive.name)


def _apt_get(directory: Path, *arguments: str) -> None:
    # As root: apt's own user need not have a way into this checkout.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "DPkg::Lock::Timeout=300", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # New machines come with old lists of packages, or with none.
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ArtefactError(
            f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()}\n"
            "This test needs these packages once: run it again with a package mirror within reach."
        )


def unpack(directory: Path, *archives: Path) -> Path:
    """Unpack what these archives would install below a new directory, and return that."""
    directory.mkdir()
    for archive in archives:
        subprocess.run(["dpkg-deb", "--extract", archive, directory], check=True)
    return directory


def allow_dpkg(sandbox: Sandbox) -> None:
    """Let `dpkg` and the like work in the sandbox, on a data base that ends with it; /usr is for the caller to lay."""
    for directory in _DPKG:
        sandbox.overlay(directory)


def dpkg(*arguments: str | Path) -> str:
    """Run dpkg, whatever a package depends on and whatever conffiles were changed; return what it said."""
    done = subprocess.run(
        ["dpkg", "--force-depends", "--force-confold", "--force-confmiss", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
