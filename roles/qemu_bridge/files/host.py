# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role runs on a host: `survey` looks at everything in one go, `lay` makes a version of the helper's library,
`lay_links` one of the program that makes the links again when the host starts, `unmake_links` removes unused links.

The role sends this program over standard input with a call of one of them as its last line. It needs the standard
library only, as it comes before any package.

One look instead of a task for each question: a task costs half a second of every host, and problems that are found
together can be mended together. `survey` changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import ipaddress
import json
import os
import pwd
import py_compile
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

# What users start: in a version directory its stub has this name, without `.py`, and begins with its interpreter.
COMMAND = "qemu-bridge-run"
# As it stands, once, in each stub of the collection.
LIBRARY = '"/usr/local/lib/qemu-bridge-helper"'
# What is set aside for something of the role gets this name behind its own.
SET_ASIDE = ".before-hostnet-qemu"

# The numbers of <linux/capability.h>.
CAP_NET_ADMIN = 12
CAP_SETFCAP = 31
# struct vfs_cap_data of <linux/capability.h>, revision 2: cap_net_admin permitted, the effective bit clear.
NET_ADMIN_PERMITTED = struct.pack("<5I", 0x02000000, 1 << CAP_NET_ADMIN, 0, 0, 0)

# /dev/net/tun: Documentation/admin-guide/devices.txt of the kernel.
TUN_DEVICE = os.makedev(10, 200)

# <linux/netlink.h>, <linux/rtnetlink.h>, <linux/if_addr.h>, <linux/if_link.h>
NETLINK_ROUTE = 0
NLM_F_REQUEST = 0x001
NLM_F_MULTI = 0x002
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_ACK = 0x004
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_GETADDR = 22
RT_SCOPE_LINK = 253
IFA_ADDRESS = 1
IFA_LOCAL = 2
IFLA_IFNAME = 3
IFLA_LINKINFO = 18
IFLA_CARRIER = 33
IFLA_INFO_DATA = 2
IFLA_TUN_PERSIST = 6
IFLA_TUN_NUM_QUEUES = 8
IFLA_TUN_NUM_DISABLED_QUEUES = 9

# <linux/if_tun.h>
IFF_TAP = 0x0002

# <linux/if.h>: IFNAMSIZ less the final NUL.
MAX_NAME = 15
# tapfd/acl.py reads at most this many files, bridge.conf among them.
MAX_FILES = 64

# Machines (uname -m) that run the launcher of another.
COMPATIBLE = {"i386": "i686", "i586": "i686", "armv8l": "armv7l"}

# Asked of the interpreter with the launcher's flags. The imports are those of the helper and of `lay`.
QUESTION = """
import sys
import _socket, _struct, fcntl, posix
import json, py_compile
print(json.dumps({
    "name": sys.implementation.name,
    "version": sys.version_info[:3],
    "tag": sys.implementation.cache_tag,
    "path": sys.path,
}))
"""

# The oldest pyroute2 that the modules take, see links/kernel.py.
MIN_PYROUTE2 = (0, 5, 14)
# Asked of an interpreter, which the modules need 3.9 of: its pyroute2, a blank for one that does not know its version.
PYROUTE2 = """
import importlib.util, sys
if sys.version_info < (3, 9):
    raise SystemExit(1)
if importlib.util.find_spec("pyroute2"):
    import importlib.metadata
    try:
        print(importlib.metadata.version("pyroute2"))
    except importlib.metadata.PackageNotFoundError:
        print(" ")
"""


def survey(request: dict[str, Any]) -> dict[str, Any]:
    """Return what the role must know of this host; `problems` holds, as sentences, why it should not go on."""
    if os.geteuid() != 0:
        return {"problems": ["The role has to be root on the host: run it with `become: true`."]}
    if request["state"] == "absent":
        problems: list[str] = []
        distribution = Distribution(request, problems).found()
        return {"problems": problems, "distribution": distribution, "leftovers": _leftovers(request, distribution)}
    # The modules' code, which is used below, needs that, and nobody has looked yet whether it is there.
    if sys.version_info < (3, 9):  # noqa: UP036
        version = ".".join(map(str, sys.version_info[:3]))
        fault = (
            f"Ansible runs modules here with {sys.executable}, which is Python {version}, and they need 3.9 or newer"
        )
        return {"problems": [f"{fault}: set ansible_python_interpreter to another one."]}
    look = Survey(request)
    found = {}
    try:
        found = look.found()
    except OSError as error:
        look.problems.append(f"Cannot look at {error.filename or 'the host'}: {_because(error)}.")
    # Names of files may hold bytes that no JSON can.
    return {**found, "problems": [text.encode("utf-8", "backslashreplace").decode() for text in look.problems]}


class Survey:
    """One look at a host that shall have the helper."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.paths: dict[str, Any] = request["paths"]
        self.problems: list[str] = []
        # Paths that have been judged already, so that nothing is complained of twice.
        self._safe: dict[str, bool] = {}

    def found(self) -> dict[str, Any]:
        """Look at everything."""
        self._judge_kernel()
        self._judge_file_systems()
        self._judge_directories()
        self._judge_links()
        grants = Grants(self.request, self.problems)
        python = self._python()
        includes = self._includes(grants)
        boot = self._boot(python)
        distribution = Distribution(self.request, self.problems).found()
        result = {
            "python": python,
            "tun": self._tun(),
            "launcher": self._launcher(grants.helper_group),
            "policy": {
                "foreign": self._policy_is_foreign(),
                "deny": grants.denied,
                "allow": grants.everyone,
            },
            "includes": includes,
            "directories": self._directories(bool(includes["paths"]), boot, distribution),
            "has_machine_id": _has_machine_id(),
            "bridges": self._bridges(),
            "boot": boot,
            "distribution": distribution,
            "missing": self._missing_programs(includes["wrong"], boot),
            "verify": self._verify(grants),
        }
        if python is not None:
            result["library"] = self._library(python)
        result["command"] = self._command()
        return result

    # -- the host

    def _judge_kernel(self) -> None:
        effective = 0
        for line in _read("/proc/self/status").decode().splitlines():
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
        for number, name, use in (
            (CAP_NET_ADMIN, "NET_ADMIN", "make bridges and taps"),
            (CAP_SETFCAP, "SETFCAP", "give the launcher its capability"),
        ):
            if not effective >> number & 1:
                self.problems.append(
                    f"Root has no CAP_{name} here and so can't {use}: start this container with it "
                    f"(podman and docker: --cap-add {name})."
                )

    def _judge_file_systems(self) -> None:
        for place in ("launcher", "library", "policy"):
            directory = _existing(os.path.dirname(self.paths[place]))
            flags = os.statvfs(directory).f_flag
            if flags & os.ST_RDONLY:
                self.problems.append(f"{directory} is mounted read-only, and {self.paths[place]} belongs there.")
            if place != "launcher":
                continue
            if flags & os.ST_NOSUID:
                self.problems.append(
                    f"{directory} is mounted nosuid, where the kernel ignores the launcher's capability: "
                    "mount it without that option."
                )
            if flags & os.ST_NOEXEC:
                self.problems.append(
                    f"{directory} is mounted noexec, where the launcher can't run: mount it without that option."
                )
            if not _keeps(directory, "security.capability"):
                self.problems.append(
                    f"The file system of {directory} keeps no file capabilities, and the launcher needs one: "
                    "put the directory on ext4, XFS, Btrfs or tmpfs."
                )

    def _judge_directories(self) -> None:
        for place in ("launcher", "library", "policy"):
            self._is_roots_alone(os.path.dirname(self.paths[place]))
        for place in ("versions", "includes"):
            self._is_roots_alone(self.paths[place])
        if self.request["default_helper"]["wanted"]:
            self._is_roots_alone(os.path.dirname(self.request["default_helper"]["path"]))
        # The interpreter looks for it beside the path that it was started by, <library>/python3, and one level up.
        stray = os.path.join(os.path.dirname(self.paths["library"]), "pyvenv.cfg")
        if os.path.lexists(stray):
            self.problems.append(f"{stray} would send the helper's interpreter to another library: remove it.")

    def _is_roots_alone(self, path: str) -> bool:
        """Whether root alone decides what is at `path`, and everybody gets there; what does not exist yet is fine."""
        here, links = "/", 0
        safe = self._entry_is_roots(here, os.lstat(here))
        parts = path.split("/")[::-1]
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                here = os.path.dirname(here)
                continue
            entry = os.path.join(here, part)
            try:
                status = os.lstat(entry)
            except FileNotFoundError:
                return safe
            safe = self._entry_is_roots(entry, status) and safe
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > 40:
                    self.problems.append(f"{path} leads through symbolic links in a circle: remove them.")
                    return False
                target = os.readlink(entry)
                here = "/" if target.startswith("/") else here
                parts += target.split("/")[::-1]
            else:
                here = entry
        return safe

    def _entry_is_roots(self, path: str, status: os.stat_result) -> bool:
        if path in self._safe:
            return self._safe[path]
        mode = stat.S_IMODE(status.st_mode)
        faults, cures = [], []
        if status.st_uid != 0:
            faults.append(f"belongs to {_user_name(status.st_uid)}")
            cures.append(f"`chown root {path}`")
        if not stat.S_ISLNK(status.st_mode):
            if mode & 0o022:
                whose = "its group" if mode & 0o020 else ""
                whose += " and " if mode & 0o022 == 0o022 else ""
                whose += "others" if mode & 0o002 else ""
                group = _group_name(status.st_gid)
                faults.append(f"is writable by {whose} (group {group}, mode {mode:04o})")
                cures.append(f"`chmod go-w {path}`")
            if stat.S_ISDIR(status.st_mode) and not mode & 0o001:
                faults.append(f"lets no users through (mode {mode:04o})")
                cures.append(f"`chmod o+x {path}`")
        if faults:
            self.problems.append(
                f"{path} {' and '.join(faults)}. The helper has CAP_NET_ADMIN, so root alone may change what it is "
                f"made of, and users must get there: {' and '.join(cures)}."
            )
        self._safe[path] = not faults
        return not faults

    def _tree_is_roots(self, directory: str) -> bool:
        """The same of everything below `directory`, except the packages that `-S` leaves out."""
        safe = self._is_roots_alone(directory)
        for parent, directories, files in os.walk(directory):
            directories[:] = [name for name in directories if name not in ("site-packages", "dist-packages")]
            for name in directories + files:
                path = os.path.join(parent, name)
                status = os.lstat(path)
                # One look for most of them: only what catches the eye is examined.
                if stat.S_ISLNK(status.st_mode):
                    safe = self._is_roots_alone(path) and safe
                elif status.st_uid != 0 or status.st_mode & 0o022:
                    safe = self._entry_is_roots(path, status) and safe
        return safe

    def _python(self) -> dict[str, str] | None:
        """The interpreter that shall run the helper; None if it can't, which then is among the problems."""
        configured = self.request["python"]
        path = os.path.realpath(configured) if configured.startswith("/") else configured
        what = f"qemu_bridge_python ({configured}{', that is ' + path if path != configured else ''})"
        if not path.startswith("/") or not os.path.isfile(path):
            self.problems.append(f"{what} is no file: give the absolute path of a Python 3.9 or newer.")
            return None
        with open(path, "rb") as file:
            if file.read(4) != b"\x7fELF":
                self.problems.append(
                    f"{what} is no ELF program. A script, such as a version manager's shim, heeds the environment of "
                    "whoever starts the helper: give the interpreter that it leads to."
                )
                return None
        # Where Python itself looks for it; with -S, sys.prefix does not tell.
        home = os.path.dirname(path)
        if any(os.path.lexists(os.path.join(place, "pyvenv.cfg")) for place in (home, os.path.dirname(home))):
            self.problems.append(f"{what} belongs to a virtual environment: give the interpreter that it is made from.")
            return None
        # Before it is run as root, below.
        if not self._is_roots_alone(path):
            return None
        mode = os.stat(path).st_mode
        if not mode & 0o001:
            self.problems.append(f"{what} can't be executed by users: `chmod o+x {path}`.")
        done = subprocess.run(
            [path, "-I", "-S", "-B", "-c", QUESTION],
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0 or not done.stdout.startswith(b"{"):
            reason = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or "it is no Python"
            self.problems.append(
                f"{what} can't run the helper: {reason}. Give a Python with its whole standard library."
            )
            return None
        answer = json.loads(done.stdout)
        version = ".".join(map(str, answer["version"]))
        if answer["name"] != "cpython" or answer["version"] < [3, 9]:
            self.problems.append(f"{what} is {answer['name']} {version}; the helper needs CPython 3.9 or newer.")
            return None
        judgements = [self._tree_is_roots(entry) for entry in answer["path"]]
        return {"path": path, "version": version, "tag": answer["tag"]} if all(judgements) else None

    def _tun(self) -> dict[str, Any]:
        """What is wrong with /dev/net/tun, and whether the role has to see to it."""
        path = self.paths["tun"]
        fault = ""
        try:
            status = os.stat(path)
        except FileNotFoundError:
            fault = "is missing"
            if not _kernel_has_tun():
                self.problems.append(
                    f"{path} is missing and the kernel has no tun driver: install its modules; in a container, "
                    "`modprobe tun` on the machine below and hand the device in (podman and docker: --device "
                    f"{path})."
                )
        else:
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISCHR(status.st_mode) or status.st_rdev != TUN_DEVICE:
                self.problems.append(f"{path} is not the character device 10:200: remove it.")
            elif mode & 0o006 != 0o006:
                fault = f"is closed to users, mode {mode:04o}"
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            except OSError as error:
                self.problems.append(
                    f"{path} does not open: {_because(error)}. Load the kernel's tun driver (`modprobe tun`); "
                    f"in a container, allow the device (podman and docker: --device {path})."
                )
        if fault and not self.request["manage_tun"]:
            self.problems.append(
                f"{path} {fault}, and qemu_bridge_manage_tun is false: set it to true, or open the device to users "
                "(mode 0666, as the kernel has it) in another way."
            )
        missing = not os.path.exists(path)
        rules = {
            kind: rule
            for kind, rule in self.paths["tun_rules"].items()
            if os.path.isdir(os.path.dirname(rule)) and (kind != "module" or missing or os.path.exists(rule))
        }
        return {
            "fault": fault,
            "missing": missing,
            "manage": self.request["manage_tun"] and (any(map(os.path.exists, rules.values())) or bool(fault)),
            "rules": rules,
        }

    def _missing_programs(self, includes: list[dict[str, Any]], boot: dict[str, Any]) -> list[str]:
        """What a package has to bring; that none can do it is among the problems."""
        missing = []
        now = self._has_links() and not any(
            _is_usable(pyroute2_of(path)) for path in (sys.executable, *self.request["interpreters"])
        )
        # At boot there is no interpreter but the system's own.
        at_start = boot["install"] is not None and not boot["install"]["has_pyroute2"]
        if (now or at_start) and self._needs_pyroute2(now, at_start):
            missing.append("pyroute2")
            self._judge_pyroute2()
        if any(include["setfacl"] for include in includes) and shutil.which("setfacl") is None:
            missing.append("setfacl")
            fault = self._package_fault("setfacl")
            if fault:
                self.problems.append(
                    f"qemu_bridge_acl: the grants to users whose primary group has others in it need setfacl, and "
                    f"{fault} Install it in another way, or grant to groups."
                )
        return missing

    def _needs_pyroute2(self, now: bool, at_start: bool) -> bool:
        """Whether what is asked for takes pyroute2. Only the code that would use it knows."""
        boot = self._sent("boot")
        state = {"bridges": self._bridges(), "taps": self.request["taps"]}
        return (now and boot.needs_library(state, at_start=False)) or (
            at_start and boot.needs_library(state, at_start=True)
        )

    def _judge_pyroute2(self) -> None:
        found = {path: pyroute2_of(path) for path in self.request["interpreters"]}
        old = [f"{path} has {version}" for path, version in found.items() if version and not _is_usable(version)]
        if old:
            fault = f"{' and '.join(old)}, which is too old."
        elif all(version is None for version in found.values()):
            fault = "the distribution's own Python, which its packages are for, is missing or older than 3.9."
        else:
            fault = self._package_fault("pyroute2")
            if fault and self.request["packages"]["elsewhere"]:
                fault += f" {self.request['packages']['elsewhere']}"
        if fault:
            self.problems.append(
                "What qemu_bridge_bridges and qemu_bridge_taps ask for takes pyroute2 "
                f"{'.'.join(map(str, MIN_PYROUTE2))} or newer on the host, as addresses, MTUs and ports of bridges do "
                f"and most changes of links that are there; but {fault} Or install it for a Python of your own that "
                "root alone may change (`PYTHON -m pip install pyroute2`), and give that as ansible_python_interpreter "
                "and as qemu_bridge_python."
            )

    def _package_fault(self, program: str) -> str:
        """Why no package of this distribution can bring a program; empty if one can, as far as is known."""
        packages = self.request["packages"]
        name, offered = packages["names"].get(program), packages["offered"]
        if name is None:
            return f"the role does not know which package of {packages['distribution']} has it."
        if not offered:
            return ""
        try:
            done = subprocess.run(
                [*offered, name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C"},
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            return f"`{offered[0]}`, by which {packages['distribution']} installs it, can't be run: {_because(error)}."
        if done.returncode in self.request["well"]:
            return ""
        # Warnings come first.
        said = " ".join(" ".join(done.stdout.splitlines()[-3:]).split()) or f"exit status {done.returncode}"
        return f"the host's repositories do not offer {name} (`{' '.join([*offered, name])}`: {said[:300]})."

    def _directories(
        self, with_includes: bool, boot: dict[str, Any], distribution: dict[str, Any]
    ) -> dict[str, list[str]]:
        """The directories that each phase has to make, and all that the role will have made."""
        helper = [*map(os.path.dirname, (self.paths["launcher"], self.paths["command"])), self.paths["versions"]]
        acl = [os.path.dirname(self.paths["policy"]), *([self.paths["includes"]] if with_includes else [])]
        start = []
        if boot["install"]:
            service = self.paths["services"][boot["init"]]
            start = [*map(os.path.dirname, (service["path"], service["enabled"], self.paths["state"]))]
            start.append(self.paths["restorers"])
        theirs = [os.path.dirname(change["path"]) for change in distribution.values() if change.get("link")]
        missing = [path for path in dict.fromkeys(helper + acl + start + theirs) if not os.path.isdir(path)]
        return {
            "helper": [path for path in helper if path in missing],
            "acl": [path for path in acl if path in missing],
            "boot": [path for path in dict.fromkeys(start) if path in missing],
            "distribution": [path for path in theirs if path in missing],
            "made": sorted({*_read(self.paths["directories"]).decode().split(), *missing}),
        }

    # -- what is asked for

    def _sent(self, name: str) -> Any:
        """A module of the modules' own code for links."""
        if "hostnet_qemu" not in sys.modules:
            sys.meta_path.insert(0, Sent(self.request["links_sources"]))
        return importlib.import_module(f"hostnet_qemu.links.{name}")

    def _has_links(self) -> bool:
        return bool(self.request["bridges"] or self.request["taps"])

    def _bridges(self) -> list[dict[str, Any]]:
        """The bridges as this host can have them: without a machine id, no address is stable."""
        bridges: list[dict[str, Any]] = self.request["bridges"]
        if _has_machine_id():
            return bridges
        return [{**bridge, "mac": None} if bridge.get("mac") == "stable" else bridge for bridge in bridges]

    def _judge_links(self) -> None:
        for kind, is_one in (("bridge", _is_bridge), ("tap", _is_tap)):
            variable = f"qemu_bridge_{kind}s"
            for name, count in Counter(str(item["name"]) for item in self.request[f"{kind}s"]).items():
                fault = name_fault(name)
                if kind == "bridge" and name == "all":
                    fault = "`all` stands for every bridge in the ACL"
                if fault:
                    self.problems.append(f"{variable}: `{name}` is no name for a {kind}: {fault}.")
                elif count > 1:
                    self.problems.append(f"{variable}: {name} stands there {count} times.")
                elif os.path.exists(f"/sys/class/net/{name}") and not is_one(name):
                    self.problems.append(
                        f"{variable}: the interface {name} exists and is no {kind}: give another name."
                    )
        bridges = {str(bridge["name"]) for bridge in self.request["bridges"]}
        taps = {str(tap["name"]) for tap in self.request["taps"]}
        for name in sorted(bridges & taps):
            self.problems.append(f"qemu_bridge_taps: {name} stands in qemu_bridge_bridges too.")
        if not self._has_links():
            return
        options, model = self._sent("arguments"), self._sent("model")
        for bridge in self._bridges():
            if not name_fault(str(bridge["name"])):
                faults = [*options.bridge_faults(bridge), *_bridge_faults(bridge, taps, model)]
                self.problems += [f"qemu_bridge_bridges: {fault}" for fault in faults]
        for tap in self.request["taps"]:
            if not name_fault(str(tap["name"])):
                faults = [*options.tap_faults(tap), *_tap_faults(tap, bridges, model)]
                self.problems += [f"qemu_bridge_taps: {fault}" for fault in faults]

    # -- what is installed

    def _library(self, python: dict[str, str]) -> dict[str, Any]:
        """The version directory that there should be, what is wrong with it, and which others can go."""
        sources = self.request["sources"]
        digest = hashlib.sha256(json.dumps([sources, python], sort_keys=True).encode()).hexdigest()[:16]
        directory = os.path.join(self.paths["versions"], digest)
        link = self.paths["library"]
        current = os.readlink(link) if os.path.islink(link) else None
        if current is None and os.path.lexists(link):
            self.problems.append(f"{link} is in the way and not the role's: move it elsewhere.")
        return {
            "directory": directory,
            "drift": _tree_drift(directory, version_tree(directory, sources, python), python["tag"]),
            "linked": current == directory,
            "stale": self._stale_versions(directory, current),
        }

    def _command(self) -> dict[str, Any]:
        """Where the link to qemu-bridge-run has to lead, and whether it does."""
        path, target = self.paths["command"], _command_target(self.paths)
        linked = _leads_to(path, target)
        if os.path.lexists(path) and not linked:
            self.problems.append(f"{path} is in the way and not the role's: move it elsewhere.")
        return {"target": target, "linked": linked}

    def _boot(self, helpers: dict[str, str] | None) -> dict[str, Any]:
        """What has to be there to make the links again when the host starts, or what of it has to go."""
        init = _init_system()
        wanted = self.request["boot"] and self._has_links()
        if not wanted or not init:
            return {"init": init, "unable": wanted, "install": None, "remove": _boot_files(self.paths)}
        # That of the helper is only run once it has been judged.
        python, has_pyroute2 = self._system_python([self.request["python"]] if helpers else [])
        self._is_roots_alone(python)
        self._is_roots_alone(os.path.dirname(self.paths["restorers"]))
        self._is_roots_alone(self.paths["restorers"])
        sources = self.request["links_sources"]
        digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:16]
        directory = os.path.join(self.paths["restorers"], digest)
        tree = {name: text.encode() for name, text in sources.items()}
        service = self.paths["services"][init]
        others = [other for name, other in self.paths["services"].items() if name != init]
        foreign = [path for other in others for path in other.values() if os.path.lexists(path)]
        versions = [os.path.join(self.paths["restorers"], name) for name in _entries(self.paths["restorers"])]
        return {
            "init": init,
            "unable": False,
            "install": {
                **service,
                "python": python,
                "has_pyroute2": has_pyroute2,
                "directory": directory,
                "drift": _tree_drift(directory, tree, None),
            },
            # No start takes long enough to need the version before.
            "remove": foreign + sorted(path for path in versions if path != directory),
        }

    def _system_python(self, others: list[str]) -> tuple[str, bool]:
        """The interpreter to make the links with when the host starts, of `others` at last; whether it has pyroute2."""
        candidates = dict.fromkeys([*self.request["interpreters"], *others])
        # The first with pyroute2, else the first that is new enough to run the program.
        fit = {path: version for path, version in zip(candidates, map(pyroute2_of, candidates)) if version is not None}
        for path, version in fit.items():
            if _is_usable(version):
                return path, True
        return next(iter(fit), self.request["python"]), False

    def _stale_versions(self, wanted: str, current: str | None) -> list[str]:
        """All but the wanted version and the one before it, which may have starts on their way."""
        try:
            with os.scandir(self.paths["versions"]) as entries:
                times = {entry.path: entry.stat(follow_symlinks=False).st_mtime for entry in entries}
        except FileNotFoundError:
            return []
        # Before a swap the link leads to the previous one, after it that is the newest of the others. A name with a dot
        # in front is what an interrupted `lay` has left.
        others = sorted(times.keys() - {wanted, self.paths["directories"]}, key=times.__getitem__)
        previous = current
        if current == wanted:
            complete = [path for path in others if not os.path.basename(path).startswith(".")]
            previous = complete[-1] if complete else None
        return [path for path in others if path != previous]

    def _launcher(self, group: grp.struct_group | None) -> dict[str, Any]:
        """The launcher for this machine, and what is wrong with the one that is there."""
        machine = COMPATIBLE.get(os.uname().machine, os.uname().machine)
        path = self.paths["launcher"]
        gid, mode = (group.gr_gid, 0o750) if group else (0, 0o755)
        # The lines of `sha256sum`, one for each machine.
        lines = re.findall(r"^([0-9a-f]{64}) [ *]qemu-bridge-helper\.(\S+)$", self.request["launchers"], re.M)
        digests = {name: digest for digest, name in lines}
        digest = digests.get(machine)
        if digest is None:
            self.problems.append(
                f"The collection has no launcher for {machine}, but for {', '.join(sorted(digests))}: see "
                "files/launcher/ for how to build one."
            )
        drift = []
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            drift.append("missing")
        else:
            if not stat.S_ISREG(status.st_mode) or not os.path.islink(self.paths["library"]):
                self.problems.append(
                    f"{path} is in the way and not the role's (QEMU built from source installs a helper of its own "
                    "there): move it elsewhere."
                )
            else:
                if hashlib.sha256(_read(path)).hexdigest() != digest:
                    drift.append("other content")
                if (status.st_uid, status.st_gid) != (0, gid):
                    drift.append(f"of {_user_name(status.st_uid)}:{_group_name(status.st_gid)}")
                if stat.S_IMODE(status.st_mode) != mode:
                    drift.append(f"mode {stat.S_IMODE(status.st_mode):04o}")
                if _attribute(path, "security.capability") != NET_ADMIN_PERMITTED:
                    drift.append("without cap_net_admin=p")
        staged = self.paths["staged_launcher"]
        return {
            # One that an interrupted run has left may be open to more users than the one in its place.
            "stale": [staged] if os.path.lexists(staged) and not drift else [],
            "machine": machine,
            "group": group.gr_name if group else "root",
            "mode": f"{mode:04o}",
            "drift": drift,
        }

    def _policy_is_foreign(self) -> bool:
        path = self.paths["policy"]
        if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
            self.problems.append(f"{path} is not a regular file, and the role would replace it: move it elsewhere.")
            return False
        return os.path.exists(path) and not _is_ours(path, self.request["header"])

    def _includes(self, grants: Grants) -> dict[str, Any]:
        """The included files that there should be, those of them that are wrong, and those that can go."""
        wanted = (self._include(kind, name, bridges) for (kind, name), bridges in sorted(grants.included.items()))
        files = [file for file in wanted if file is not None]
        if len(files) >= MAX_FILES:
            self.problems.append(
                f"qemu_bridge_acl grants to {len(files)} users and groups one by one, and the helper reads at most "
                f"{MAX_FILES - 1} files for them: put users into a group and grant to that."
            )
        paths = [file["path"] for file in files]
        present = _our_includes(self.paths["includes"], self.request["header"])
        return {
            "paths": paths,
            "wrong": [file for file in files if file["drift"]],
            "stale": [path for path in present if path not in paths],
        }

    def _include(self, kind: str, name: str, bridges: list[str]) -> dict[str, Any] | None:
        """One file of rules that only this user, or only members of this group, can read."""
        entry = None
        if kind == "group":
            gid = grp.getgrnam(name).gr_gid
        else:
            user = pwd.getpwnam(name)
            gid = user.pw_gid
            if not _is_alone(user):
                entry, gid = posix_acl_of(user.pw_uid), 0
                directory = _existing(self.paths["includes"])
                if not _keeps(directory, "system.posix_acl_access"):
                    self.problems.append(
                        f"qemu_bridge_acl: a grant to user {name} needs a file that only {name} can read. The primary "
                        f"group {_group_name(user.pw_gid)} has, or may have, other members, and the file system of "
                        f"{directory} has no POSIX ACLs: mount it with them, or grant to a group of {name}'s own."
                    )
                    return None
        path = os.path.join(self.paths["includes"], f"{kind}-{urllib.parse.quote(name, safe='')}.conf")
        content = self.request["header"] + "\n" + "".join(f"allow {bridge}\n" for bridge in bridges)
        drift = []
        had = None
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            drift.append("missing")
        else:
            if not stat.S_ISREG(status.st_mode):
                self.problems.append(f"{path} is in the way and not a regular file: move it elsewhere.")
                return None
            had = _attribute(path, "system.posix_acl_access")
            if _read(path) != content.encode():
                drift.append("other content")
            if (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) != (0, gid, 0o640):
                drift.append("other owner, group or mode")
        if had != entry:
            drift.append("other access list")
        setfacl = []
        if entry is not None:
            setfacl = ["--set", f"u::rw-,u:{user.pw_uid}:r--,g::---,m::r--,o::---"]
        elif had is not None:
            setfacl = ["--remove-all"]
        return {"path": path, "content": content, "group": gid, "setfacl": setfacl, "drift": drift}

    # -- the proof

    def _verify(self, grants: Grants) -> dict[str, Any] | None:
        """A user, with groups, and a bridge that the ACL grants to that user, for `verify` to try."""
        name = self.request["verify_user"]
        try:
            uid = pwd.getpwnam(name).pw_uid
        except KeyError:
            if self.request["verify"]:
                self.problems.append(f"qemu_bridge_verify_user: there is no user {name} on this host.")
            return None
        if uid == 0:
            if self.request["verify"]:
                self.problems.append(f"qemu_bridge_verify_user: {name} is root, for whom nothing is proved.")
            return None
        bridges = [str(bridge["name"]) for bridge in self.request["bridges"]]
        bridges += [bridge for bridge in grants.named if _is_bridge(bridge)]
        gate = grants.helper_group
        launcher = [gate.gr_name] if gate else []
        # The user that was named, as anybody, then as a member of a group of the ACL; then a user of the ACL.
        candidates: list[tuple[str, str, str, list[str] | None]] = [("everyone", "", name, launcher)]
        for kind, principal in sorted(grants.included):
            if kind == "group":
                candidates.append((kind, principal, name, [*launcher, principal]))
                continue
            user = pwd.getpwnam(principal)
            if user.pw_uid != 0 and (gate is None or gate.gr_gid in os.getgrouplist(principal, user.pw_gid)):
                candidates.append((kind, principal, principal, None))
        for kind, principal, asking, groups in candidates:
            for bridge in bridges:
                if grants.allows(kind, principal, bridge):
                    return {"user": asking, "groups": groups, "bridge": bridge}
        return None


class Grants:
    """What qemu_bridge_acl says, and the users and groups that it names."""

    def __init__(self, request: dict[str, Any], problems: list[str]) -> None:
        self.problems = problems
        self.named: list[str] = []
        self.everyone: list[str] = []
        self.denied: list[str] = []
        # ("user" | "group", name) -> the bridges granted to that one, by a file that only they can read.
        self.included: dict[tuple[str, str], list[str]] = {}
        self.helper_group: grp.struct_group | None = None
        if request["helper_group"] and self._exists("group", request["helper_group"], "qemu_bridge_helper_group"):
            self.helper_group = grp.getgrnam(request["helper_group"])
        for rule in request["acl"]:
            self._take(rule)

    def _take(self, rule: dict[str, Any]) -> None:
        bridge = str(rule["bridge"])
        fault = name_fault(bridge)
        if fault:
            self.problems.append(f"qemu_bridge_acl: `{bridge}` is no name of a bridge: {fault}.")
            return
        self.named.append(bridge)
        restricted = "users" in rule or "groups" in rule
        if rule["action"] == "deny":
            if restricted:
                self.problems.append(
                    f"qemu_bridge_acl: the deny of {bridge} names users or groups. It would stand in a file that only "
                    "they can read, and what a caller can't read is passed over: a deny there could be escaped. Deny "
                    "the bridge to everyone, or leave those users out of what allows it."
                )
            self.denied.append(bridge)
        elif not restricted:
            self.everyone.append(bridge)
        elif not rule.get("users") and not rule.get("groups"):
            self.problems.append(
                f"qemu_bridge_acl: the allow of {bridge} has no users and groups in its lists and grants nothing: "
                "remove the rule, or the lists to grant to everyone."
            )
        for kind in ("user", "group") if rule["action"] == "allow" else ():
            for name in map(str, rule.get(f"{kind}s") or []):
                if self._exists(kind, name, "qemu_bridge_acl"):
                    granted = self.included.setdefault((kind, name), [])
                    if bridge not in granted:
                        granted.append(bridge)

    def _exists(self, kind: str, name: str, variable: str) -> bool:
        known = _is_known(kind, name)
        if not known:
            self.problems.append(f"{variable}: there is no {kind} `{name}` on this host.")
        return known

    def allows(self, kind: str, name: str, bridge: str) -> bool:
        """Whether the ACL grants `bridge` to everyone or, beyond that, to this user or group."""
        granted = {*self.everyone, *self.included.get((kind, name), [])}
        return bool({bridge, "all"} & granted) and not {bridge, "all"} & set(self.denied)


class Distribution:
    """What belongs to the distribution and has to know of the helper, or no longer has to."""

    def __init__(self, request: dict[str, Any], problems: list[str]) -> None:
        self.request = request
        self.present: bool = request["state"] == "present"
        self.problems = problems

    def found(self) -> dict[str, dict[str, Any]]:
        """What there is to do, by the files of tasks that do it; nothing for what is as it should be."""
        changes = {
            "default_helper": self._default_helper(),
            "ifup": self._ifup(),
            "apparmor": self._apparmor(),
            "networkmanager": self._networkmanager(),
            "selinux": self._selinux(),
        }
        return {name: change for name, change in changes.items() if change is not None}

    def _ifup(self) -> dict[str, Any] | None:
        """The scripts of `-net tap`: whether to write them, and what becomes of those that were there before."""
        paths: list[str] = [self.request["paths"]["ifup"], self.request["paths"]["ifdown"]]
        others = [path for path in paths if os.path.lexists(path) and not _is_our_script(path, self.request["header"])]
        if self.present and self.request["ifup"]["wanted"]:
            self._judge_ifup_bridge(self.request["ifup"]["bridge"])
            for path in others:
                if not os.path.isfile(path):
                    self.problems.append(f"qemu_bridge_ifup_scripts: {path} is not a regular file: move it elsewhere.")
            return {"write": True, "set_aside": others, "give_back": [], "remove": []}
        given_back = [path for path in paths if path not in others and os.path.lexists(path + SET_ASIDE)]
        removed = [path for path in paths if os.path.lexists(path) and path not in others + given_back]
        if not given_back + removed:
            return None
        return {"write": False, "set_aside": [], "give_back": given_back, "remove": removed}

    def _judge_ifup_bridge(self, bridge: str) -> None:
        if not bridge:
            self.problems.append(
                "qemu_bridge_ifup_scripts: there is no bridge for the taps: give one in qemu_bridge_bridges or "
                "qemu_bridge_ifup_bridge."
            )
        elif bridge not in [str(item["name"]) for item in self.request["bridges"]] and not _is_bridge(bridge):
            self.problems.append(f"qemu_bridge_ifup_bridge: there is no bridge `{bridge}`, neither here nor to make.")

    def _apparmor(self) -> dict[str, Any] | None:
        """The additions to the profiles of libvirt's daemons that are missing, wrong, or no longer needed."""
        apparmor = self.request["apparmor"]
        files = []
        for name, program in apparmor["profiles"].items():
            path = os.path.join(apparmor["directory"], "local", name)
            text = _read(path).decode("utf-8", "replace")
            profile = _read(os.path.join(apparmor["directory"], name)).decode("utf-8", "replace")
            # A profile is free to have no additions, and then they would do nothing.
            included = re.search(rf"^\s*#?include (if exists )?<local/{re.escape(name)}>", profile, re.M)
            wanted = self.present and included is not None
            if wanted and f"\n{apparmor['block']}\n" in f"\n{text}":
                continue
            if wanted or apparmor["block"].partition("\n")[0] in text.splitlines():
                files.append(
                    {
                        "path": path,
                        "profile": os.path.join(apparmor["directory"], name),
                        "state": "present" if wanted else "absent",
                        # The kernel's lines are `NAME (MODE)`; the name was a path in older profiles.
                        "loaded": bool(profile)
                        and re.search(rf"^(/usr/sbin/)?{program} \(", _loaded_profiles(apparmor["loaded"]), re.M)
                        is not None,
                    }
                )
        return {"files": files} if files else None

    def _default_helper(self) -> dict[str, Any] | None:
        """How QEMU's own path to a helper comes to lead to ours, or ceases to."""
        path, diverts = self.request["default_helper"]["path"], self.request["default_helper"]["diverts"]
        if not path:
            if self.present and self.request["default_helper"]["wanted"]:
                self.problems.append(
                    "qemu_bridge_default_helper: the role does not know where QEMU of this distribution looks for a "
                    "helper: set it to false, and give QEMU the path with helper=."
                )
            return None
        aside = path + SET_ASIDE
        target = _diverted(path) if diverts else path
        leads = _leads_to(path, self.request["paths"]["launcher"])
        diverted = target == aside
        wanted = self.present and self.request["default_helper"]["wanted"]
        if wanted:
            self._judge_default_helper(path, target, leads)
        elif diverted and os.path.lexists(path) and not leads:
            self.problems.append(
                f"{path} is not the role's link any more, and the distribution's helper, now {aside}, belongs there: "
                "move it elsewhere."
            )
        change = {
            "path": path,
            "aside": aside,
            "divert": wanted and diverts and not diverted,
            "link": wanted and not leads,
            # Without a diversion a link to the launcher is the role's: it would not have replaced one.
            "unlink": not wanted and leads and (diverted or not diverts),
            "undivert": not wanted and diverted,
        }
        return change if any(change[step] for step in ("divert", "link", "unlink", "undivert")) else None

    def _judge_default_helper(self, path: str, target: str, leads: bool) -> None:
        """Complain of what makes it wrong to lead `path` to ours; `target` is where dpkg lays the distribution's."""
        option, aside = "qemu_bridge_default_helper", path + SET_ASIDE
        way_out = f"or set {option} to false and give QEMU the path of the helper with helper="
        if not self.request["default_helper"]["diverts"]:
            if os.path.lexists(path) and not leads:
                self.problems.append(
                    f"{option}: {path} is there already, and this distribution's package manager has no way to keep "
                    "another one in its place: the next upgrade of QEMU would put its own back. Remove the package "
                    f"that has it, if it has nothing else, {way_out}."
                )
            return
        if target not in (path, aside):
            self.problems.append(
                f"{option}: somebody has diverted {path} to {target}: take that back (`dpkg-divert --rename "
                f"--remove {path}`), {way_out}."
            )
        elif target == aside:
            if os.path.lexists(path) and not leads:
                self.problems.append(
                    f"{option}: {path} is not the role's link any more, but something that no package has laid: move "
                    "it elsewhere."
                )
        elif os.path.islink(path):
            self.problems.append(
                f"{option}: {path} is a symbolic link to {os.readlink(path)} that somebody has made by hand, which "
                "the next upgrade of QEMU replaces. Remove it and, if QEMU is installed, let it have its own helper "
                f"again (`apt-get install --reinstall qemu-system-common`), {way_out}."
            )
        elif os.path.lexists(path) and not os.path.isfile(path):
            self.problems.append(f"{option}: {path} is not a regular file: move it elsewhere.")
        elif os.path.lexists(aside):
            self.problems.append(f"{option}: {aside} is in the way of the distribution's helper: move it elsewhere.")
        # dpkg would go on giving it to the helper that is set aside, and dpkg-statoverride to what the link leads to.
        override = _output("dpkg-statoverride", "--list", path).strip()
        if override:
            self.problems.append(
                f"{option}: somebody has told dpkg to give the distribution's helper another owner or mode "
                f"(`{override}`), and it would be a second way to the bridges, under another name: take that back "
                f"(`dpkg-statoverride --remove {path}`), {way_out}."
            )
        if os.path.isfile(target) and not os.path.islink(target):
            self._judge_privilege(target, way_out)

    def _judge_privilege(self, helper: str, way_out: str) -> None:
        cures = []
        if os.stat(helper).st_mode & (stat.S_ISUID | stat.S_ISGID):
            cures.append(f"`chmod u-s,g-s {helper}`")
        if _attribute(helper, "security.capability") is not None:
            cures.append(f"`setcap -r {helper}`")
        if cures:
            self.problems.append(
                f"qemu_bridge_default_helper: the distribution's helper, {helper}, was given privileges, and it would "
                f"be a second way to the bridges, under another name: take them back ({' and '.join(cures)}), "
                f"{way_out}."
            )

    def _selinux(self) -> dict[str, Any] | None:
        """Something to tell the administrator, where SELinux refuses what its policy does not know."""
        return {} if self.present and _read(self.request["paths"]["selinux"]).strip() == b"1" else None

    def _networkmanager(self) -> dict[str, Any] | None:
        """The file that keeps NetworkManager off the taps, if it is wrong or no longer needed."""
        path = self.request["paths"]["networkmanager"]
        content = f"{self.request['header']}\n{unmanaged(self.request['taps'])}" if self.present else ""
        if self.present:
            there = os.path.lexists(path) and _is_as_laid(path, content.encode(), False)
            right = there or not os.path.isdir(os.path.dirname(path))
        else:
            right = not _is_ours(path, self.request["header"])
        return None if right else {"content": content, "reload": _networkmanager_runs()}


def unmanaged(taps: list[dict[str, Any]]) -> str:
    """The section by which NetworkManager takes no notice of taps, in the device list format of NetworkManager.conf(5).

    That has no way to say `of the driver tun and named so`, and of patterns no more than `*` and `?`.
    """
    names = [str(tap["name"]) for tap in taps if tap.get("state") != "absent"]
    literal = [re.sub(r"([\\;,])", r"\\\1", name) for name in names if not name.startswith("tap")]
    devices = ["interface-name:tap*", *(f"interface-name:={name}" for name in literal)]
    return f"[keyfile]\nunmanaged-devices+={';'.join(devices)}\n"


def _networkmanager_runs() -> bool:
    if shutil.which("nmcli") is None:
        return False
    return _output("nmcli", "--terse", "--fields", "RUNNING", "general").strip() == "running"


def _diverted(path: str) -> str:
    """Where dpkg lays what packages have at `path`: there, unless it is diverted."""
    return _output("dpkg-divert", "--truename", path).rstrip("\n")


def _loaded_profiles(path: str) -> str:
    """The profiles that the kernel enforces; nothing where AppArmor is off, or the business of the host above."""
    try:
        return _read(path).decode("utf-8", "replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    """What a command says, whatever its exit status. Raises OSError if it can't be started."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout


def _leftovers(request: dict[str, Any], distribution: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the role has left on this host: files and trees in the order to remove them, then directories, bridges.

    `distribution` is what is undone before.
    """
    paths, header = request["paths"], request["header"]
    restore = os.path.exists(paths["saved_policy"]) and (
        _is_ours(paths["policy"], header) or not os.path.lexists(paths["policy"])
    )
    files = [paths["policy"]] if _is_ours(paths["policy"], header) and not restore else []
    files += _our_includes(paths["includes"], header)
    if os.path.islink(paths["library"]):
        files += [paths["launcher"], paths["staged_launcher"], paths["library"]]
    if _leads_to(paths["command"], _command_target(paths)):
        files.append(paths["command"])
    files += [paths["versions"], *paths["tun_rules"].values()]
    files = _boot_files(paths) + [path for path in files if os.path.lexists(path)]
    gone = {*files, *(change["path"] for change in distribution.values() if change.get("unlink"))}
    directories = []
    # What is in a directory comes before the directory itself.
    for path in sorted(_read(paths["directories"]).decode().split(), reverse=True):
        if path not in gone and all(os.path.join(path, name) in gone for name in _entries(path)):
            directories.append(path)
            gone.add(path)
    return {
        "init": _init_system(),
        "files": files,
        "directories": directories,
        "restore_policy": restore,
        "links": _leftover_links(request),
    }


def _leftover_links(request: dict[str, Any]) -> dict[str, list[str]]:
    """The names of the bridges and taps that nobody uses, in the order to remove them, and why others stay."""
    taps = {name: _is_held(name) for name in (str(tap["name"]) for tap in request["taps"]) if _is_tap(name)}
    staying = [f"{name} stays, a guest holds it." for name in taps if taps[name]]
    removable = [name for name in taps if not taps[name]]
    going = set(removable)
    for bridge in request["bridges"]:
        if not _is_bridge(str(bridge["name"])):
            continue
        needed_for = _needed_for(bridge, going)
        if needed_for:
            staying.append(f"{bridge['name']} stays, it has {needed_for}.")
        else:
            removable.append(str(bridge["name"]))
    return {"removable": removable, "staying": staying}


def unmake_links(request: dict[str, Any]) -> None:
    """Remove the bridges and taps that nobody uses, and print their names.

    The module would need pyroute2, by which it could make them again as they were. Here nothing of them is wanted.
    """
    for name in _leftover_links(request)["removable"]:
        try:
            # struct ifinfomsg
            index = socket.if_nametoindex(name)
            list(_rtnetlink(RTM_DELLINK, NLM_F_ACK, struct.pack("=BxHiII", 0, 0, index, 0, 0)))
        except OSError as error:
            raise SystemExit(f"Can't remove the link {name}: {_because(error)}. Run the role again.") from None
        print(name)


def _command_target(paths: dict[str, Any]) -> str:
    """Where the link to qemu-bridge-run leads: by the link to the version in use, so that it never has to change."""
    return os.path.join(paths["library"], COMMAND)


def _leads_to(path: str, target: str) -> bool:
    return os.path.islink(path) and os.readlink(path) == target


def _init_system() -> str:
    """What starts services on this host: `systemd`, `openrc`, or an empty string for anything else."""
    # sd_booted(3); OpenRC keeps its state in the other, see RC_SVCDIR.
    for name, directory in (("systemd", "/run/systemd/system"), ("openrc", "/run/openrc")):
        if os.path.isdir(directory):
            return name
    return ""


def _boot_files(paths: dict[str, Any]) -> list[str]:
    """What there is of the service that makes the links again, in the order to remove it."""
    files = [path for service in paths["services"].values() for path in (service["enabled"], service["path"])]
    return [path for path in (*files, paths["state"], paths["restorers"]) if os.path.lexists(path)]


def _needed_for(bridge: dict[str, Any], going: set[str]) -> str:
    """What hangs on a bridge beside what the role gave it and the ports that are going; an empty string for nothing."""
    name = str(bridge["name"])
    ports = sorted(set(os.listdir(f"/sys/class/net/{name}/brif")) - going)
    given = set()
    for address in _listed(bridge.get("addresses")):
        with contextlib.suppress(ValueError):
            given.add(str(ipaddress.ip_address(re.split("[/ ]", address)[0])))
    addresses = sorted(_addresses(name) - given)
    return " and ".join(
        f"the {what} {', '.join(names)}" for what, names in (("ports", ports), ("addresses", addresses)) if names
    )


def lay(request: dict[str, Any]) -> None:
    """Make the version directory as `version_tree` says, or mend it. Must run under the interpreter that it is for.

    A new one comes into being whole, by a rename. One that has to be mended may be in use: its files are replaced one
    after the other, each by a rename.
    """
    directory = request["directory"]
    _lay(directory, version_tree(directory, request["sources"], request["python"]), with_byte_code=True)


def lay_links(request: dict[str, Any]) -> None:
    """Make the directory of the program that makes the links again, or mend it, in the way of `lay`.

    It gets no byte code: it runs once for each start of the host, whichever version the interpreter then has.
    """
    tree = {name: text.encode() for name, text in request["sources"].items()}
    _lay(request["directory"], tree, with_byte_code=False)


def _lay(directory: str, tree: dict[str, bytes], with_byte_code: bool) -> None:
    os.umask(0o022)
    fresh = tempfile.mkdtemp(prefix=".new-", dir=os.path.dirname(directory))
    try:
        os.chmod(fresh, 0o755)
        for name, content in tree.items():
            path = os.path.join(fresh, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if name == "python3":
                os.symlink(content, path)
                continue
            with open(path, "xb") as file:
                file.write(content)
                os.fchmod(file.fileno(), _mode_of(content))
                os.fsync(file.fileno())
            if with_byte_code and "/" in name:
                # A checked hash and not the time: an edit that keeps time and size is seen too.
                py_compile.compile(
                    path,
                    dfile=os.path.join(directory, name),
                    doraise=True,
                    invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
                )
        if os.path.isdir(directory) and not os.path.islink(directory):
            _replace_entries(fresh, directory)
        else:
            os.rename(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace_entries(source: str, target: str) -> None:
    """Make the directory `target` hold what `source` holds and nothing else, moving it over entry by entry."""
    for name in set(os.listdir(target)) - set(os.listdir(source)):
        _remove(os.path.join(target, name))
    for name in os.listdir(source):
        new, old = os.path.join(source, name), os.path.join(target, name)
        both = [os.path.isdir(path) and not os.path.islink(path) for path in (new, old)]
        if all(both):
            _replace_entries(new, old)
            continue
        if any(both) and os.path.lexists(old):
            _remove(old)
        os.rename(new, old)
    os.chown(target, 0, 0)
    os.chmod(target, 0o755)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def version_tree(directory: str, sources: dict[str, str], python: dict[str, str]) -> dict[str, bytes]:
    """What the version directory `directory` holds, byte code aside: name -> content, of `python3` where it leads.

    The stubs must stay with their own version, so they get this directory instead of the link to the newest.
    """
    tree = {}
    for name, text in sources.items():
        if "/" in name:
            tree[name] = text.encode()
            continue
        if text.count(LIBRARY) != 1:
            raise ValueError(f"{name} has not exactly one {LIBRARY}")
        stub = text.replace(LIBRARY, f'"{directory}"')
        if name == f"{COMMAND}.py":
            tree[COMMAND] = f"#!{directory}/python3 -ISB\n{stub}".encode()
        else:
            tree[name] = stub.encode()
    tree["python3"] = os.fsencode(python["path"])
    return tree


def _tree_drift(directory: str, tree: dict[str, bytes], tag: str | None) -> list[str]:
    """How the version directory differs from `tree`; `tag` is that of the byte code, None if there shall be none."""
    if os.path.islink(directory) or not os.path.isdir(directory):
        return ["missing"]
    files = set(tree)
    if tag is not None:
        for package, _slash, name in (name.rpartition("/") for name in tree if "/" in name):
            files.add(f"{package}/__pycache__/{name[: -len('.py')]}.{tag}.pyc")
    folders = {""}
    for name in files:
        parts = name.split("/")[:-1]
        folders |= {"/".join(parts[: depth + 1]) for depth in range(len(parts))}
    expected = files | folders
    drift = []
    found = {""}
    for parent, below, beside in os.walk(directory):
        found |= {os.path.relpath(os.path.join(parent, name), directory) for name in below + beside}
    for name in sorted(expected | found):
        if name not in expected:
            drift.append(f"{name} does not belong there")
        elif name not in found:
            drift.append(f"{name} is missing")
        elif not _is_as_laid(os.path.join(directory, name), tree.get(name), name in folders):
            drift.append(f"{name or 'it'} has other content, owner or mode")
    return drift


def _is_as_laid(path: str, content: bytes | None, is_directory: bool) -> bool:
    """Whether an entry is as `lay` made it; content None is not compared (byte code: the interpreter does)."""
    status = os.lstat(path)
    if (status.st_uid, status.st_gid) != (0, 0):
        return False
    if stat.S_ISLNK(status.st_mode):
        return os.path.basename(path) == "python3" and os.fsencode(os.readlink(path)) == content
    if is_directory:
        return stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o755
    if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) != _mode_of(content):
        return False
    return content is None or _read(path) == content


def _mode_of(content: bytes | None) -> int:
    """The mode of a file that `lay` makes: what begins with its interpreter can be executed."""
    return 0o755 if (content or b"").startswith(b"#!") else 0o644


def name_fault(name: str) -> str:
    """Why this can't be the name of a bridge, or an empty string where it can. The helper's rule, see tapfd/acl.py."""
    encoded = name.encode("utf-8", "surrogateescape")
    if not encoded or len(encoded) > MAX_NAME:
        return f"it has {len(encoded)} bytes, and an interface name has 1 to {MAX_NAME}"
    if name in (".", ".."):
        return "it names a directory"
    if re.search(rb"[\x00-\x20\x7f/:%]", encoded):
        return "it holds a blank, a control byte, `/`, `:` or `%`"
    return ""


def _bridge_faults(bridge: dict[str, Any], taps: set[str], model: Any) -> Iterator[str]:
    """What this host lacks for a bridge, or has no room for."""
    what = f"bridge {bridge['name']}"
    yield from _mtu_faults(bridge, what, model.MIN_MTU, model.MAX_MTU)
    for port in _listed(bridge.get("ports")):
        if port not in taps and not name_fault(port) and not os.path.exists(f"/sys/class/net/{port}"):
            yield f"ports of {what}: there is no link {port}. Make it first, or leave it out."


def _tap_faults(tap: dict[str, Any], bridges: set[str], model: Any) -> Iterator[str]:
    """The same for a tap."""
    what = f"tap {tap['name']}"
    yield from _mtu_faults(tap, what, model.MIN_MTU, model.MAX_TAP_MTU)
    bridge = str(tap.get("bridge") or "")
    # That of a tap that goes may be gone already.
    wanted = bridge and tap.get("state") != "absent" and not name_fault(bridge)
    if wanted and bridge not in bridges and not _is_bridge(bridge):
        yield f"bridge of {what}: there is no bridge {bridge}. List it in qemu_bridge_bridges, or make it first."


def _listed(value: Any) -> list[str]:
    """A list as Ansible reads one, which may be words with commas between them."""
    return value.split(",") if isinstance(value, str) else list(map(str, value or []))


def _mtu_faults(item: dict[str, Any], what: str, lowest: int, highest: int) -> Iterator[str]:
    if item.get("mtu") is not None and not lowest <= int(item["mtu"]) <= highest:
        yield f"mtu of {what}: {item['mtu']} is out of range; the kernel takes {lowest} to {highest}."


def _is_known(kind: str, name: str) -> bool:
    try:
        pwd.getpwnam(name) if kind == "user" else grp.getgrnam(name)
    except (KeyError, ValueError):
        return False
    return True


def _is_bridge(name: str) -> bool:
    return not name_fault(name) and os.path.isdir(f"/sys/class/net/{name}/bridge")


def _is_tap(name: str) -> bool:
    # Other interfaces have no such file, and of tun devices there is one for packets instead of frames.
    flags = b"" if name_fault(name) else _read(f"/sys/class/net/{name}/tun_flags")
    return bool(flags) and bool(int(flags, 16) & IFF_TAP)


def _is_held(tap: str) -> bool:
    """Whether a guest holds a tap, by the signs that links/kernel.py goes by, too. One that has just gone is not."""
    attribute = struct.pack("=HH16s", 20, IFLA_IFNAME, os.fsencode(tap))
    with contextlib.suppress(OSError):
        for message in _rtnetlink(RTM_GETLINK, 0, bytes(16) + attribute):
            # struct ifinfomsg
            link = _attributes(message[16:])
            tun = _attributes(_attributes(link[IFLA_LINKINFO])[IFLA_INFO_DATA])
            # The kernel counts the queues of a tap that can have several.
            queues = tun.get(IFLA_TUN_NUM_QUEUES, b"") + tun.get(IFLA_TUN_NUM_DISABLED_QUEUES, b"")
            return not any(tun[IFLA_TUN_PERSIST]) or any(queues) or any(link[IFLA_CARRIER])
    return False


def _addresses(interface: str) -> set[str]:
    """The addresses of an interface, without the link-local ones that the kernel gives."""
    index = socket.if_nametoindex(interface)
    addresses: set[str] = set()
    # struct ifaddrmsg
    for message in _rtnetlink(RTM_GETADDR, NLM_F_DUMP, bytes(8)):
        family, scope, where = struct.unpack_from("=BxxBI", message)
        if where == index and scope != RT_SCOPE_LINK:
            address = _attributes(message[8:])[IFA_LOCAL if family == socket.AF_INET else IFA_ADDRESS]
            addresses.add(socket.inet_ntop(family, address))
    return addresses


def _rtnetlink(kind: int, flags: int, request: bytes) -> Iterator[bytes]:
    """The messages by which rtnetlink(7) answers a request, all without their headers; raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as rtnetlink:
        # struct nlmsghdr
        rtnetlink.send(struct.pack("=IHHII", 16 + len(request), kind, NLM_F_REQUEST | flags, 1, 0) + request)
        while True:
            answer = rtnetlink.recv(1 << 20)
            while answer:
                length, kind, flags = struct.unpack_from("=IHH", answer)
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    # An acknowledgement is an error of the number 0.
                    number = -struct.unpack_from("=i", answer, 16)[0] if length > 16 else 0
                    if number > 0:
                        raise OSError(number, os.strerror(number))
                    return
                yield answer[16:length]
                if not flags & NLM_F_MULTI:
                    return
                answer = answer[length + 3 & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    """The attributes (struct rtattr) that `data` is made of, by their types."""
    attributes = {}
    while data:
        size, kind = struct.unpack_from("=HH", data)
        attributes[kind] = data[4:size]
        data = data[size + 3 & ~3 :]
    return attributes


def posix_acl_of(uid: int) -> bytes:
    """The access list "its owner reads and writes, `uid` reads, nobody else", as in <linux/posix_acl_xattr.h>."""
    nobody = 0xFFFFFFFF
    entries = ((0x01, 6, nobody), (0x02, 4, uid), (0x04, 0, nobody), (0x10, 4, nobody), (0x20, 0, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _is_alone(user: pwd.struct_passwd) -> bool:
    """Whether nobody else is in the user's primary group. If the host may know users that it does not list: no."""
    for line in _read("/etc/nsswitch.conf").decode("utf-8", "replace").splitlines():
        database, _colon, services = line.partition("#")[0].partition(":")
        sources = set(re.sub(r"\[[^]]*\]", "", services).split())
        if database.strip() in ("passwd", "group") and sources - {"files", "systemd"}:
            return False
    others = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == user.pw_gid and entry.pw_uid != user.pw_uid}
    for group in grp.getgrall():
        if group.gr_gid == user.pw_gid:
            others.update(group.gr_mem)
    return not others - {user.pw_name}


@functools.lru_cache
def pyroute2_of(interpreter: str) -> str | None:
    """The version of an interpreter's pyroute2: empty if it has none, None where the modules can't run under it."""
    if not os.access(interpreter, os.X_OK):
        return None
    done = subprocess.run([interpreter, "-I", "-c", PYROUTE2], capture_output=True, text=True, check=False)
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def _is_usable(version: str | None) -> bool:
    """Whether the modules take this pyroute2. One of unknown version is given a try."""
    numbers = tuple(map(int, re.findall(r"\d+", version or "")[: len(MIN_PYROUTE2)]))
    return bool(version) and (not numbers or numbers >= MIN_PYROUTE2)


class Sent(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the code that the request brings along, so that nothing need be written for it."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module that is among the sources."""
        return importlib.util.spec_from_loader(fullname, self) if self._file(fullname) in self._sources else None

    def is_package(self, fullname: str) -> bool:
        """Whether the module is a package."""
        return self._file(fullname).endswith("/__init__.py")

    def get_source(self, fullname: str) -> str:
        """The text of a module."""
        return self._sources[self._file(fullname)]

    def _file(self, fullname: str) -> str:
        path = fullname.replace(".", "/")
        return f"{path}/__init__.py" if f"{path}/__init__.py" in self._sources else f"{path}.py"


def _kernel_has_tun() -> bool:
    # Built in or loaded; else a module, which opening the device loads.
    if b" tun\n" in _read("/proc/misc"):
        return True
    modules = os.path.join("/lib/modules", os.uname().release)
    return any(b"/tun.ko" in _read(os.path.join(modules, name)) for name in ("modules.dep", "modules.builtin"))


def _has_machine_id() -> bool:
    # machine-id(5): 32 hexadecimal digits; images hold nothing or `uninitialized` instead.
    return re.fullmatch(rb"[0-9a-f]{32}\n?", _read("/etc/machine-id")) is not None


def _our_includes(directory: str, header: str) -> list[str]:
    names = sorted(name for name in _entries(directory) if re.fullmatch(r"(user|group)-.+\.conf", name))
    return [path for path in (os.path.join(directory, name) for name in names) if _is_ours(path, header)]


def _entries(directory: str) -> list[str]:
    """The names in a directory, none if there is no such directory."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _is_ours(path: str, header: str) -> bool:
    return os.path.isfile(path) and _read(path).partition(b"\n")[0] == header.encode()


def _is_our_script(path: str, header: str) -> bool:
    """The same of a script, whose first line names its interpreter."""
    return os.path.isfile(path) and _read(path).split(b"\n")[1:2] == [header.encode()]


def _read(path: str) -> bytes:
    """The content of a file, empty if there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _existing(path: str) -> str:
    """The path itself or the nearest directory above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _attribute(path: str, name: str) -> bytes | None:
    """An extended attribute, None if the file has none of that name."""
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def _keeps(path: str, attribute: str) -> bool:
    """Whether the file system of `path` has extended attributes of this name."""
    try:
        os.getxattr(path, attribute)
    except OSError as error:
        return error.errno != errno.ENOTSUP
    return True


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _because(error: OSError) -> str:
    return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
