# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real QEMU, the distribution's own bridge helper, and a guest to boot, without installing any of them.

Debian's packages are downloaded once by apt into `.cache/` and unpacked there; `lay` puts the programs into a sandbox,
at the paths where an installed package would have them. The machine itself keeps the packages that it has.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import platform
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from support.namespaces import MS_BIND, Sandbox, mount

CACHE = Path(__file__).resolve().parent.parent.parent / ".cache"

# Where Debian's packages install them.
QEMU = Path("/usr/bin/qemu-system-x86_64")
BRIDGE_HELPER = Path("/usr/lib/qemu/qemu-bridge-helper")

# Debian 12 has it among QEMU's own programs, later releases have it in a package of its name.
_VIRTIOFSD = (Path("usr/lib/qemu/virtiofsd"), Path("usr/libexec/virtiofsd"))

# struct vfs_cap_data, <linux/capability.h>: VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE, then permitted and
# inheritable, low words first. 12 is CAP_NET_ADMIN.
_CAP_NET_ADMIN_EP = struct.pack("<5I", 0x02000000 | 1, 1 << 12, 0, 0, 0)


class ArtefactError(RuntimeError):
    """Something the tests need could not be had; the message says what and what to do about it."""


class Debian(NamedTuple):
    """What `fetch` unpacked."""

    programs: Path
    """A tree to lay over the machine's /usr: QEMU, its bridge helper, and the libraries that the machine lacks."""
    libraries: Path
    """The directory of these libraries, for programs that are started where the tree lies."""
    virtiofsd: Path
    """The program in the tree that serves files to a guest."""
    kernel: Path
    """The distribution's kernel for virtual machines."""
    modules: Path
    """That kernel's modules."""
    busybox: Path
    """A static busybox."""


def fetch() -> Debian:
    """Return the unpacked packages, after downloading them if this checkout has none yet.

    Must be called in the machine's own network namespace. Raises ArtefactError.
    """
    unpacked = _fetch("debian", _packages)
    machine = platform.machine()
    programs = unpacked / "programs"
    (virtiofsd,) = (programs / path for path in _VIRTIOFSD if (programs / path).exists())
    (kernel,) = unpacked.glob("guest/boot/vmlinuz-*")
    (modules,) = unpacked.glob("guest/usr/lib/modules/*")
    busybox = unpacked / "guest/usr/bin/busybox"
    return Debian(programs, programs / f"usr/lib/{machine}-linux-gnu", virtiofsd, kernel, modules, busybox)


def fetch_libvirt() -> Path:
    """Return a tree to lay over the machine's /usr besides QEMU's: libvirt's daemon and client, and their libraries.

    Must be called in the machine's own network namespace. Raises ArtefactError.
    """
    return _fetch("libvirt", _packages_of_libvirt) / "programs"


def _fetch(name: str, packages: Callable[[Path], dict[str, list[Path]]]) -> Path:
    """Return the directory of unpacked packages of this name, after `packages` has downloaded them if there is none."""
    release = platform.freedesktop_os_release()
    machine = platform.machine()
    if shutil.which("apt-get") is None or machine != "x86_64":
        raise ArtefactError(
            f"the tests with a real QEMU take it from Debian's packages for x86_64; this machine is "
            f"{release.get('PRETTY_NAME', 'unknown')} on {machine}. Run them on Debian 12 or later on x86_64."
        )
    CACHE.mkdir(exist_ok=True)
    unpacked = CACHE / f"{name}-{release.get('VERSION_CODENAME', 'unknown')}-{machine}"
    with open(CACHE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.exists():
            _download(unpacked, packages)
    return unpacked


def fetch_release(suite: str) -> Path:
    """Return a tree with all that QEMU and the helper need in this release of Debian, downloaded once into `.cache/`.

    QEMU there has the libraries of its own release, and the helper its interpreter. No package is configured. Must be
    called in the machine's own network namespace. Raises ArtefactError.
    """
    CACHE.mkdir(exist_ok=True)
    unpacked = CACHE / f"release-{suite}"
    with open(CACHE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as directory:
                archives = _packages_of(suite, Path(directory))
                _unpack(archives, Path(directory) / "result")
                (Path(directory) / "result").rename(unpacked)
    return unpacked


def mirror(scratch: Path) -> str:
    """Where this machine has Debian's packages from."""
    for attempt in range(2):
        if attempt:
            # Before its lists have been fetched once, apt does not know whose they are.
            _run(["apt-get", "update", *_AS_ROOT], scratch)
        known = _run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(SUITE) $(REPO_URI)"], scratch)
        for origin, *_words, uri in (words for words in map(str.split, known.splitlines()) if len(words) == 4):
            if origin == "Debian" and "security" not in uri:
                return uri
    raise ArtefactError("apt of this machine has no source of Debian's packages: add one to its sources.list.")


def _packages_of(suite: str, scratch: Path) -> list[Path]:
    """Download the packages of a release with all that they depend on, as if nothing was installed."""
    for directory in ("lists/partial", "archives/partial"):
        (scratch / directory).mkdir(parents=True)
    (scratch / "status").touch()
    source = mirror(scratch)
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (scratch / "sources.list").write_text(f"deb [signed-by={keys}] {source} {suite} main\n", encoding="ascii")
    places = {
        "Dir::State::status": "status",
        "Dir::State::lists": "lists",
        "Dir::Cache::archives": "archives",
        "Dir::Cache::pkgcache": "pkgcache.bin",
        "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
        "Dir::Etc::sourcelist": "sources.list",
        "Dir::Etc::sourceparts": "none",
        "Dir::Etc::preferences": "none",
        "Dir::Etc::preferencesparts": "none",
    }
    options = [*_AS_ROOT]
    for name, place in places.items():
        options += ["-o", f"{name}={scratch / place}"]
    _run(["apt-get", "update", *options], scratch)
    install = ["--yes", "--download-only", "--no-install-recommends"]
    _run(["apt-get", "install", *options, *install, "qemu-system-x86", "dash", "iproute2", "python3"], scratch)
    return sorted((scratch / "archives").glob("*.deb"))


def _download(destination: Path, packages: Callable[[Path], dict[str, list[Path]]]) -> None:
    """Download and unpack into `destination`, which comes into being complete or not at all."""
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        scratch = Path(directory)
        try:
            trees = packages(scratch)
        except ArtefactError:
            # New machines come with old lists of packages, or with none.
            _run(["apt-get", "update", "-q"], scratch)
            trees = packages(scratch)
        result = scratch / "result"
        for name, archives in trees.items():
            _unpack(archives, result / name)
        result.rename(destination)


# As root: apt's own user need not have a way into this checkout.
_AS_ROOT = ["-q", "-o", "APT::Sandbox::User=root"]


def _packages(scratch: Path) -> dict[str, list[Path]]:
    """Download QEMU and what a guest needs; return the archives by the tree that they belong to."""
    guest = scratch / "guest-archives"
    guest.mkdir(exist_ok=True)
    virtiofsd = _run(["apt-cache", "search", "--names-only", "^virtiofsd$"], scratch).split()[:1]
    programs = _with_libraries(scratch, "qemu-system-x86", "qemu-system-common", *virtiofsd)
    # linux-image-cloud-amd64 is empty and depends on the newest kernel.
    depends = _run(["apt-cache", "depends", "--important", "linux-image-cloud-amd64"], guest)
    kernels = [line.split()[1] for line in depends.splitlines() if line.split()[0] == "Depends:"]
    _run(["apt-get", "download", *_AS_ROOT, "busybox-static", *kernels], guest)
    return {"programs": programs, "guest": sorted(guest.glob("*.deb"))}


def _packages_of_libvirt(scratch: Path) -> dict[str, list[Path]]:
    """Download libvirt; return the archives by the tree that they belong to."""
    return {"programs": _with_libraries(scratch, "libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients")}


def _with_libraries(scratch: Path, *packages: str) -> list[Path]:
    """Download packages with all that they depend on and that the machine lacks; return the archives."""
    archives = scratch / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    install = [*_AS_ROOT, "--yes", "--download-only", "--no-install-recommends", "--reinstall"]
    install += ["-o", "DPkg::Lock::Timeout=300", "-o", f"Dir::Cache::archives={archives}"]
    _run(["apt-get", "install", *install, *packages], archives)
    return sorted(archives.glob("*.deb"))


def _unpack(archives: list[Path], tree: Path) -> None:
    for name in ("bin", "lib", "lib64", "sbin"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for archive in archives:
        # `dpkg-deb --extract` would replace the links by directories.
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as package:
            _run(["tar", "-x", "--keep-directory-symlink", "-C", str(tree)], tree, package.stdout)
        if package.returncode != 0:
            raise ArtefactError(f"dpkg-deb --fsys-tarfile {archive}: exit status {package.returncode}")


def _run(command: list[str], directory: Path, stdin: IO[bytes] | int | None = subprocess.DEVNULL) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=directory, env=environment, stdin=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ArtefactError(
            f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()}\n"
            "The tests with a real QEMU need Debian's packages once: run them again with a package mirror within reach."
        )
    return done.stdout


def lay(sandbox: Sandbox, debian: Debian, *others: Path) -> None:
    """Make `QEMU` and `BRIDGE_HELPER` exist in the sandbox, the latter with cap_net_admin=ep, and the trees `others`.

    Raises ArtefactError.
    """
    trees = []
    for tree in (debian.programs, *others):
        # A path of ours: one that holds a colon or a comma can't be given to overlayfs.
        programs = Path(tempfile.mkdtemp(dir=sandbox.scratch))
        mount(str(tree), programs, None, MS_BIND)
        trees.append(programs)
    # One by one, since a sandbox has other mounts in /usr/local.
    for directory in ("bin", "lib", "sbin", "share"):
        layers = Path(tempfile.mkdtemp(dir=sandbox.scratch))
        for layer in ("upper", "work"):
            (layers / layer).mkdir(mode=0o755)
        lower = ":".join(f"{tree}/usr/{directory}" for tree in (*trees, ""))
        data = f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work"
        mount("overlay", f"/usr/{directory}", "overlay", 0, data)
    os.setxattr(BRIDGE_HELPER, "security.capability", _CAP_NET_ADMIN_EP)
    for command, expected in (([str(QEMU), "--version"], "QEMU emulator"), ([str(BRIDGE_HELPER)], "Usage:")):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if expected not in done.stdout + done.stderr:
            raise ArtefactError(
                f"{' '.join(command)} does not start: {done.stderr.strip()}\n"
                f"The packages of this machine have changed since it was downloaded: remove {CACHE} and run again."
            )


def initramfs(debian: Debian, init: str, modules: list[str], path: str = "init") -> bytes:
    """Return a root file system for a guest: busybox, `init`, and `/modules/NN-NAME.ko` in the order to insert them.

    `modules` are brought with all that they depend on, unless the kernel has them built in. The kernel starts `/init`
    if its command line names no other `path`.
    """
    files = {
        "bin": (stat.S_IFDIR | 0o755, b""),
        "bin/busybox": (stat.S_IFREG | 0o755, debian.busybox.read_bytes()),
        path: (stat.S_IFREG | 0o755, init.encode()),
        "dev": (stat.S_IFDIR | 0o755, b""),
        "modules": (stat.S_IFDIR | 0o755, b""),
        "proc": (stat.S_IFDIR | 0o755, b""),
        "sys": (stat.S_IFDIR | 0o755, b""),
    }
    for number, (name, content) in enumerate(_with_dependencies(debian.modules, modules).items()):
        files[f"modules/{number:02}-{name}.ko"] = (stat.S_IFREG | 0o644, content)
    return b"".join(_cpio(files))


def _with_dependencies(tree: Path, names: list[str]) -> dict[str, bytes]:
    """Return the modules and what they depend on, each after its dependencies."""
    built_in = {_module_name(Path(line)) for line in (tree / "modules.builtin").read_text().splitlines()}
    available = {_module_name(path): path for path in tree.glob("kernel/**/*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name in built_in:
            return
        path = available[name]
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        # The .modinfo section holds `key=value` strings, each ended by a NUL.
        for field in content.split(b"\0"):
            if field.startswith(b"depends="):
                for dependency in field[len(b"depends=") :].decode().split(","):
                    if dependency:
                        add(dependency.replace("-", "_"))
        found[name] = content

    for name in names:
        add(name)
    return found


def _module_name(path: Path) -> str:
    return path.name.split(".")[0].replace("-", "_")


def _cpio(files: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield an archive in the "newc" format, the one that the kernel unpacks (cpio(5))."""
    for inode, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], start=1):
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        for part in (header, content):
            yield part + bytes(-len(part) % 4)
