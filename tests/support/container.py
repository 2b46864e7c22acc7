# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of its own: Debian with systemd and Python in a container of podman, and nothing else that the role needs.

It has no network. What the role installs comes from an archive in the container, so that apt's part of it is real.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from support.install import ROOT
from support.qemu import CACHE, ArtefactError, mirror

# All that the host has besides Debian's essential packages: an init, and the Python that Ansible wants.
_PACKAGES = "python3,systemd-sysv"
# What the archive must be able to install: what the role names, and what Ansible's own module for apt takes along.
_ARCHIVED = "acl python3-apt python3-pyroute2"
_ARCHIVE = "/srv/archive"
_WITHOUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")

# Seconds: systemd starts on a machine that does other things besides.
_PATIENCE = 120


def fetch_host(release: str) -> Path:
    """Return a directory with the root file system `root` of a host and its `archive`, made once into `.cache/`.

    Must be called in the machine's own network namespace. Raises ArtefactError.
    """
    CACHE.mkdir(exist_ok=True)
    directory = CACHE / f"host-{release}"
    with open(CACHE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                made = Path(scratch, "made")
                made.mkdir()
                _make_host(release, made, mirror(Path(scratch)))
                made.rename(directory)
    return directory


def _make_host(release: str, directory: Path, source: str) -> None:
    apt = "APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get"
    hooks = [
        f"{apt} clean",
        f"{apt} install --yes --download-only --no-install-recommends {_ARCHIVED}",
        f"copy-out /var/cache/apt/archives {shlex.quote(str(directory))}",
    ]
    command = [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={_PACKAGES}"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _WITHOUT),
        *(f"--customize-hook={hook}" for hook in hooks),
        *(release, directory / "root", source),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise ArtefactError(
            f"mmdebstrap: exit status {done.returncode}:\n{done.stdout}"
            "This test needs Debian's packages once: run it again with a package mirror within reach."
        )
    archive = (directory / "archives").rename(directory / "archive")
    (archive / "Packages").write_text("\n".join(map(_entry, sorted(archive.glob("*.deb")))), encoding="utf-8")
    # Without a signature, since nobody but this test has made it.
    (directory / "root/etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{_ARCHIVE} ./\n", encoding="ascii")


def _entry(package: Path) -> str:
    """What the index of an archive says of a package."""
    about = subprocess.run(["dpkg-deb", "--field", package], check=True, capture_output=True, text=True).stdout
    content = package.read_bytes()
    return f"{about}Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"


class Container:
    """Such a host, with systemd running, until `close`. What is written in there ends with it."""

    def __init__(self, host: Path, directory: Path) -> None:
        """Start it from what `fetch_host` returned; `directory` is for files of this object."""
        self.name = f"hostnet-qemu-{os.getpid()}"
        self._environment = {**os.environ, "CONTAINERS_CONF": str(ROOT / "molecule/shared/containers.conf")}
        # Where both versions of cgroups are mounted, podman would give a systemd the first, and the newest wants the
        # second.
        unified = Path("/sys/fs/cgroup/unified")
        cgroups = (
            ("--systemd=false", "--tmpfs=/run", "--env=container=podman", f"--volume={unified}:/sys/fs/cgroup:rw")
            if unified.is_dir()
            else ("--systemd=always",)
        )
        self._podman(
            *("run", "--detach", "--rm", f"--name={self.name}", "--privileged", "--network=none", *cgroups),
            *(f"--volume={host}/archive:{_ARCHIVE}:ro", "--rootfs", f"{host}/root:O", "/sbin/init"),
        )
        try:
            pid = self._podman("inspect", "--format={{.State.Pid}}", self.name).strip()
            namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
            # As `podman exec` would, at a tenth of its cost, and from whatever sandbox.
            self._enter = [
                "env",
                "-i",
                "HOME=/root",
                f"PATH={os.environ['PATH']}",
                "nsenter",
                f"--target={pid}",
                *namespaces,
            ]
            self._wait()
        except BaseException:
            self.close()
            raise
        # What Ansible takes for `ssh`: it gets the command as the last word and leaves it to a shell, as sshd does.
        ssh = directory / "ssh"
        ssh.write_text(
            f'#!/bin/sh\nfor command; do :; done\nexec {shlex.join(self._enter)} /bin/sh -c "cd; $command"\n',
            encoding="ascii",
        )
        ssh.chmod(0o755)
        self.variables = {
            "ansible_connection": "ssh",
            "ansible_ssh_executable": str(ssh),
            "ansible_ssh_transfer_method": "piped",
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        """How Ansible gets there."""

    def _podman(self, *arguments: str) -> str:
        return _run(["podman", *arguments], self._environment)

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        # A console that it lacks, or a failed service of the machine's, does not make it unfit.
        while (state := self.run("systemctl is-system-running || :").strip()) not in ("running", "degraded"):
            assert time.monotonic() < deadline, f"systemd in the container is {state}"
            time.sleep(0.2)

    def run(self, script: str, uid: int = 0) -> str:
        """Run a script for the shell in there, which must not fail; return what it printed."""
        return _run([*self._enter, f"--setuid={uid}", f"--setgid={uid}", "/bin/sh", "-euc", script])

    def close(self) -> None:
        """End it; nothing of it is left."""
        self._podman("rm", "--force", "--ignore", "--time=0", self.name)


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout
