# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role qemu_bridge, by real runs of site.yml, and the real helper that it installs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible_collections.hostnet.qemu.plugins.module_utils.links.model import bridge_argument_spec, tap_argument_spec
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import tuntap
from support.install import (
    COMMAND,
    LAUNCHER,
    LIBRARY,
    NET_ADMIN_PERMITTED,
    POLICY,
    ROOT,
    install_launcher,
    install_library,
    write_policy,
)
from support.namespaces import MS_BIND, MS_NOSUID, MS_REMOUNT, Sandbox, ip, mount, unmount
from support.playbook import Playbook
from support.user import HandOver, User, take_tap

VERSIONS = LIBRARY.with_suffix(".d")
INCLUDES = POLICY.with_suffix(".d")
TUN_RULES = (Path("/etc/udev/rules.d/99-hostnet-qemu.rules"), Path("/etc/tmpfiles.d/hostnet-qemu.conf"))
TUN_MODULE = Path("/etc/modules-load.d/hostnet-qemu.conf")
TAPFD = ROOT / "plugins/module_utils/tapfd"

NOBODY = 65534


@pytest.fixture
def nobody() -> Iterator[User]:
    user = User(NOBODY)
    yield user
    user.close()


def tree(*roots: str) -> dict[str, tuple[Any, ...]]:
    """Everything below these directories that an installation could leave or change."""
    found: dict[str, tuple[Any, ...]] = {}
    for root in roots:
        for parent, directories, files in os.walk(root):
            for name in directories + files:
                path = Path(parent, name)
                status = path.lstat()
                content: str | bytes = b""
                if stat.S_ISLNK(status.st_mode):
                    content = os.readlink(path)
                elif stat.S_ISREG(status.st_mode):
                    content = path.read_bytes()
                attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in own_attributes(path)}
                found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, content, attributes)
    return found


def own_attributes(path: Path) -> list[str]:
    return [key for key in os.listxattr(path, follow_symlinks=False) if not key.startswith("trusted.overlay.")]


def versions() -> list[Path]:
    return sorted(path for path in VERSIONS.iterdir() if path.is_dir())


def links() -> list[str]:
    return sorted(os.listdir("/sys/class/net"))


def hand_over(bridge: bytes) -> HandOver:
    """Take a tap and give it back at once."""
    answer = take_tap(LAUNCHER, bridge)
    if answer.tap is not None:
        os.close(answer.tap)
    return answer


def attach(tap: str, flags: int = 0) -> int:
    """Be the guest of a tap, as QEMU is with `-netdev tap,ifname=TAP`; return the descriptor."""
    descriptor = tuntap.open_tun()
    try:
        tuntap.create(descriptor, tap.encode(), tuntap.IFF_TAP | tuntap.IFF_NO_PI | tuntap.IFF_VNET_HDR | flags)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def start_with_a_tap() -> str:
    """Start a command by qemu-bridge-run, and have it say which tap it was given."""
    command = ["qemu-bridge-run", "--br=br0", "--", "cat", "/proc/self/fdinfo/{fd}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_granted(bridge: str) -> bool:
    """Ask the installed helper what the ACL says about this process; PermissionError where it can't be started."""
    done = subprocess.run([LAUNCHER, "--check", f"--br={bridge}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode == 0


def decisions(uid: int, groups: list[int], *bridges: str) -> list[bool]:
    user = User(uid, groups)
    try:
        return [user.call(is_granted, bridge) for bridge in bridges]
    finally:
        user.close()


def test_a_host_from_nothing_to_a_tap_and_back(host: Sandbox, playbook: Playbook, nobody: User) -> None:
    host.make_tun(None)
    TUN_MODULE.parent.mkdir(exist_ok=True)
    before = tree("/usr/local", "/etc"), links()

    # As on a fresh host: neither pyroute2 nor python3-apt, without which Ansible's own module fails in check mode.
    mount("tmpfs", "/usr/lib/python3/dist-packages", "tmpfs")
    variables = {
        "qemu_bridge_bridges": [{"name": "br0", "mac": "stable", "addresses": ["198.51.100.1/24"]}],
        "qemu_bridge_taps": [
            {"name": "guest0", "owner": "nobody", "bridge": "br0", "isolated": "yes", "mtu": "1400"},
            {"name": "guest1", "group": 65534},
        ],
    }
    check = playbook.run(variables, "--check", "--diff", interpreter="/usr/bin/python3")
    unmount("/usr/lib/python3/dist-packages")
    assert check.status == 0, check.output
    assert (tree("/usr/local", "/etc"), links()) == before
    for announced in (
        "Would install python3-pyroute2.",
        f"{LAUNCHER}: missing",
        "+allow br0",
        "Would make or change br0, guest0, guest1: what",
        "so there is nothing to verify",
    ):
        assert announced in check.output

    first = playbook.converge(variables)
    # A port of another MTU takes that of the bridge along.
    assert "nobody got tap0 on br0 (MTU 1400)" in first.output
    assert nobody.call(hand_over, b"br0").status == 0
    for tap, group in (("guest0", []), ("guest1", [65534])):
        owner = User(NOBODY if tap == "guest0" else 4001, group)
        owner.call(attach, tap)
        owner.close()
    (guest0,) = json.loads(ip("-details", "-json", "link", "show", "dev", "guest0"))
    assert (guest0["master"], guest0["mtu"], "UP" in guest0["flags"]) == ("br0", 1400, True)
    assert guest0["linkinfo"]["info_slave_data"]["isolated"]
    assert os.getxattr(LAUNCHER, "security.capability") == NET_ADMIN_PERMITTED
    assert "iff:\ttap0\n" in nobody.call(start_with_a_tap)
    device = os.stat("/dev/net/tun")
    assert (stat.filemode(device.st_mode), device.st_rdev) == ("crw-rw-rw-", os.makedev(10, 200))
    assert any(rule.exists() for rule in TUN_RULES)
    assert TUN_MODULE.read_text().endswith("\ntun\n")
    (version,) = versions()
    assert LIBRARY.readlink() == version
    assert f'LIBRARY = "{version}"' in (version / "qemu-bridge-helper.py").read_text()
    assert {path.name for path in (version / "tapfd").glob("*.py")} == {path.name for path in TAPFD.glob("*.py")}
    converged = tree("/usr/local", "/etc")

    second = playbook.converge(variables)
    assert second.changed == 0, second.output

    # What an administrator, a package or an accident may do.
    os.removexattr(LAUNCHER, "security.capability")
    LAUNCHER.chmod(0o4755)
    helper = version / "tapfd/helper.py"
    status = helper.stat()
    helper.write_bytes(b"#" * status.st_size)
    os.utime(helper, ns=(status.st_atime_ns, status.st_mtime_ns))
    (version / "tapfd/__init__.py").chmod(0o666)
    (version / "tapfd/socket.py").touch()
    shutil.rmtree(version / "tapfd/__pycache__")
    (version / "python3").unlink()
    (version / "qemu-bridge-run").chmod(0o644)
    COMMAND.unlink()
    (VERSIONS / ".new-interrupted").mkdir()
    POLICY.write_text("allow all\n")
    Path("/dev/net/tun").chmod(0o600)
    ip("link", "set", "br0", "down")
    ip("link", "set", "guest0", "nomaster")
    mended = playbook.converge(variables)
    assert f"{LAUNCHER}: mode 4755, without cap_net_admin=p" in mended.output
    assert nobody.call(hand_over, b"br0").status == 0
    assert os.path.exists("/sys/class/net/br0/brif/guest0")
    saved = str(POLICY) + ".before-hostnet-qemu"
    assert tree("/usr/local", "/etc") == converged | {saved: tree("/etc")[saved]}
    os.unlink(saved)

    # A bridge or a tap in use is not taken away, all else is.
    for bridge in ("used", "own", "port"):
        ip("link", "add", bridge, "up", "type", "bridge")
    ip("address", "add", "192.0.2.1/24", "dev", "used")
    ip("address", "add", "2001:db8::1/64", "dev", "used")
    ip("address", "add", "2001:db8:1::1/64", "dev", "own")
    ip("tuntap", "add", "dev", "tap9", "mode", "tap")
    ip("link", "set", "tap9", "master", "port")
    bridges = [
        *variables["qemu_bridge_bridges"],
        {"name": "used"},
        {"name": "port"},
        {"name": "own", "addresses": ["2001:DB8:1::1/64"]},
    ]
    guest = attach("guest1")
    gone = playbook.converge({**variables, "qemu_bridge_state": "absent", "qemu_bridge_bridges": bridges})
    os.close(guest)
    assert "used stays, it has the addresses 192.0.2.1, 2001:db8::1." in gone.output
    assert "port stays, it has the ports tap9." in gone.output
    assert "guest1 stays, a guest holds it." in gone.output
    assert (tree("/usr/local", "/etc"), links()) == (before[0], sorted([*before[1], "used", "port", "tap9", "guest1"]))


def test_an_upgrade_is_never_in_the_way_of_a_start(host: Sandbox, playbook: Playbook, nobody: User) -> None:
    host.overlay(str(TAPFD))
    host.overlay(str(ROOT / "files"))
    sources = {path: path.read_text() for path in (ROOT / "files/qemu-bridge-helper.py", TAPFD / "errors.py")}
    launcher = ROOT / f"files/launcher/bin/qemu-bridge-helper.{os.uname().machine}"
    sums = launcher.with_name("SHA256SUMS")
    hold = Path("/usr/local/lib/hold")
    latecomer = User(4001)

    def release(number: int) -> None:
        """A collection with another launcher, whose stub fails with the library of another release.

        In the latecomer's starts it waits, while `hold` exists, before it imports the library.
        """
        stub, errors = sources
        entry = "    from tapfd.helper import main\n"
        assert sources[stub].count(entry) == 1
        wait = f"    while posix.getuid() == 4001 and posix.access('{hold}', 0):\n        time.sleep(0.01)\n"
        mark = f"    from tapfd.errors import RELEASE\n    assert RELEASE == {number}\n"
        stub.write_text(sources[stub].replace(entry, "    import time\n" + wait + mark + entry))
        errors.write_text(sources[errors] + f"\nRELEASE = {number}\n")
        old = hashlib.sha256(launcher.read_bytes()).hexdigest()
        with launcher.open("ab") as file:
            file.write(b"%d" % number)
        sums.write_text(sums.read_text().replace(old, hashlib.sha256(launcher.read_bytes()).hexdigest()))

    release(1)
    (VERSIONS / "older").mkdir(parents=True)
    install_library(VERSIONS / "old")
    LIBRARY.symlink_to(VERSIONS / "old")
    install_launcher()
    write_policy("allow br0\n")
    ip("link", "add", "br0", "type", "bridge")
    laid = [LIBRARY.readlink()]
    answers: list[HandOver] = []
    for number in (2, 3):
        release(number)
        hold.touch()
        late = threading.Thread(target=lambda: answers.append(latecomer.call(hand_over, b"br0")))
        late.start()
        run = playbook.start({})
        while run.poll() is None:
            answers.append(nobody.call(hand_over, b"br0"))
            if LIBRARY.readlink() != laid[-1]:
                hold.unlink(missing_ok=True)
        done = playbook.finish(run)
        hold.unlink(missing_ok=True)
        late.join()
        assert done.status == 0, done.output
        laid.append(LIBRARY.readlink())
    latecomer.close()
    assert len(answers) > 20
    assert {(answer.status, answer.stderr) for answer in answers} == {(0, b"")}
    assert len(set(laid)) == 3
    # The previous one stays, for starts that are on their way.
    assert versions() == sorted(laid[1:])
    assert LAUNCHER.read_bytes().endswith(b"123")


def test_grants_to_users_and_groups(host: Sandbox, playbook: Playbook) -> None:
    assert shutil.which("setfacl"), "this needs the package acl, which `make test` installs"
    host.add_user("alice", 4001)
    host.add_user("bob", 4002)
    host.add_user("carol", 4003, {"bob": 4002, "lab": 4100, "launch": 4200})
    host.add_user("dave", 4004, {"lab": 4100})
    # What was there before stays, even an empty directory.
    LAUNCHER.parent.mkdir(exist_ok=True)
    POLICY.parent.mkdir()
    POLICY.write_text("allow virbr0\n")
    POLICY.chmod(0o640)
    # As in images that never booted: there is nothing to make a stable address from.
    Path("/etc/machine-id").write_text("uninitialized\n", encoding="ascii")
    before = tree("/usr/local", "/etc")
    bridges = [{"name": "br0", "mac": "stable"}, {"name": "br1", "mtu": 1400}]

    variables: dict[str, Any] = {
        "qemu_bridge_bridges": bridges,
        "qemu_bridge_acl": [
            {"bridge": "br0", "action": "allow", "users": ["alice"], "groups": ["lab"]},
            {"bridge": "br0", "action": "allow", "users": ["bob"]},
            {"bridge": "br1", "action": "allow", "users": ["alice"]},
            {"bridge": "br2", "action": "allow"},
            {"bridge": "br2", "action": "deny"},
        ],
    }
    first = playbook.converge(variables)
    assert "/etc/machine-id holds no machine id" in first.output
    # Nobody by himself is granted nothing: as a member of the group he is.
    assert "nobody got tap0 on br0" in first.output
    asked = ("br0", "br1", "br2", "virbr0")
    alice, bob, carol, dave, eve = (
        (4001, [4001]),
        (4002, [4002]),
        (4003, [4003, 4002]),
        (4004, [4004, 4100]),
        (4005, []),
    )
    assert decisions(*alice, *asked) == [True, True, False, False]
    assert decisions(*bob, *asked) == [True, False, False, False]
    # In bob's primary group, which must not give her what is bob's.
    assert decisions(*carol, *asked) == [False, False, False, False]
    assert decisions(*dave, *asked) == [True, False, False, False]
    assert decisions(*eve, *asked) == [False, False, False, False]
    files = {path.name: path.stat() for path in INCLUDES.iterdir()}
    assert {name: (file.st_uid, file.st_gid) for name, file in files.items()} == {
        "user-alice.conf": (0, 4001),
        "user-bob.conf": (0, 0),
        "group-lab.conf": (0, 4100),
    }
    again = playbook.converge(variables)
    assert again.changed == 0, again.output

    variables["qemu_bridge_helper_group"] = "launch"
    variables["qemu_bridge_acl"] = [
        {"bridge": "all", "action": "allow", "users": ["carol"]},
        {"bridge": "br1", "action": "deny"},
        {"bridge": "br0", "action": "allow", "groups": ["bob"]},
    ]
    playbook.converge(variables)
    assert sorted(path.name for path in INCLUDES.iterdir()) == ["group-bob.conf", "user-carol.conf"]
    assert (LAUNCHER.stat().st_gid, stat.S_IMODE(LAUNCHER.stat().st_mode)) == (4200, 0o750)
    assert os.getxattr(LAUNCHER, "security.capability") == NET_ADMIN_PERMITTED
    assert decisions(4003, [4003, 4200], *asked) == [True, False, True, True]
    assert decisions(4002, [4002, 4200], *asked) == [True, False, False, False]
    with pytest.raises(AssertionError, match="PermissionError"):
        decisions(*alice, "br0")

    playbook.converge({**variables, "qemu_bridge_state": "absent"})
    assert tree("/usr/local", "/etc") == before
    assert links() == ["lo"]


def test_wrong_variables_are_refused_before_anything_is_changed(host: Sandbox, playbook: Playbook) -> None:
    host.add_user("alice", 4001)
    before = tree("/usr/local", "/etc"), links()
    shape = playbook.run(
        {
            "qemu_bridge_state": "there",
            "qemu_bridge_bridges": [{"nam": "br0"}, {"name": "br1", "mtu": "big"}],
            "qemu_bridge_taps": [{"name": "tap0", "netns": "lab", "up": "perhaps"}],
            "qemu_bridge_acl": [{"bridge": "br0"}, {"bridge": "br0", "action": "permit", "user": ["alice"]}],
            "qemu_bridge_manage_tun": "perhaps",
        }
    )
    meaning = playbook.run(
        {
            "qemu_bridge_bridges": [
                *({"name": name} for name in ("br0", "br0", "all", "sixteen-bytes-xy", "br:0", "lo")),
                {"name": "br1", "mac": "01:00:5e:00:00:01", "mtu": 67, "ageing_time": -1, "ports": ["no-link"]},
                {"name": "br2", "mac": "52:54:00:12:34", "addresses": ["192.0.2.1", "2001:db8::/129", "192.0.2.2/24"]},
                {"name": "br3", "mac": "52:54:00:12:34:56", "mtu": 65535, "ports": ["lo"], "forward_delay": 0},
                {"name": "br4", "hello_time": 0.5, "max_age": 41, "priority": 65536, "group_fwd_mask": 5},
                {"name": "br5", "ports": ["tap4"]},
                {"name": "br7", "vlans": ["5000"], "ports": ["a:b"], "alias": "x" * 256},
                {"name": "br8", "addresses": ["2001:db8::1/64", "2001:db8::1/65"]},
                {"name": "br9", "addresses": "192.0.2.9", "ports": "lo,no-other"},
            ],
            "qemu_bridge_taps": [
                *({"name": name} for name in ("tap1", "tap1", "tap:0", "lo", "br5")),
                {"name": "tap2", "mac": "stable", "mtu": 65535, "txqueuelen": -1, "cost": 0, "priority": 64},
                {"name": "tap3", "owner": "no-user", "group": "no group", "bridge": "br6"},
                {"name": "tap4", "owner": 12345678, "group": "", "bridge": "br5"},
                {"name": "tap5", "owner": "no-user", "bridge": "br6", "state": "absent"},
                {"name": "tap6", "pvid": 4095, "tagged": ["7", "x"], "untagged": ["9-8"]},
                {"name": "tap7", "bridge": "br5", "tagged": ["7"], "untagged": ["7"]},
            ],
            "qemu_bridge_acl": [
                {"bridge": "br%d", "action": "allow"},
                {"bridge": "br0", "action": "deny", "users": ["alice"]},
                {"bridge": "br0", "action": "allow", "users": []},
                {"bridge": "br0", "action": "allow", "users": ["no-user", 12345678], "groups": ["no group"]},
            ],
            "qemu_bridge_helper_group": "no-gate",
            "qemu_bridge_python": "bin/python3",
            "qemu_bridge_verify_user": "root",
        }
    )
    assert (tree("/usr/local", "/etc"), links()) == before
    for run in (shape, meaning):
        assert run.status != 0
        assert run.changed == 0
    shapes = (
        "value of qemu_bridge_state must be one of",
        "missing required arguments: name found in qemu_bridge_bridges",
        "qemu_bridge_bridges.nam",
        "argument 'mtu'",
        "qemu_bridge_taps.netns",
        "argument 'up'",
        "missing required arguments: action found in qemu_bridge_acl",
        "value of action must be one of",
        "qemu_bridge_acl.user",
        "argument 'qemu_bridge_manage_tun'",
    )
    assert [text for text in shapes if text not in shape.output] == [], shape.output
    reasons = (
        "- qemu_bridge_bridges: br0 stands there 2 times",
        "- qemu_bridge_bridges: `all` is no name for a bridge",
        "- qemu_bridge_bridges: `sixteen-bytes-xy` is no name for a bridge: it has 16 bytes",
        "- qemu_bridge_bridges: `br:0` is no name for a bridge: it holds",
        "- qemu_bridge_bridges: the interface lo exists and is no bridge",
        "- qemu_bridge_bridges: mac of bridge br1: 01:00:5e:00:00:01 is not a unicast address",
        "- qemu_bridge_bridges: mtu of bridge br1: 67 is out of range; the kernel takes 68 to 65535.",
        "- qemu_bridge_bridges: ageing_time of bridge br1: -1.0 seconds are out of range",
        "- qemu_bridge_bridges: ports of bridge br1: there is no link no-link.",
        "- qemu_bridge_bridges: mac of bridge br2: '52:54:00:12:34' is not a MAC address",
        "- qemu_bridge_bridges: addresses of bridge br2: '192.0.2.1' is not an address with prefix length",
        "- qemu_bridge_bridges: addresses of bridge br2: '2001:db8::/129' is not an address with prefix length",
        "- qemu_bridge_bridges: hello_time of bridge br4: 0.5 is out of range; the kernel takes 1 to 10.",
        "- qemu_bridge_bridges: max_age of bridge br4: 41.0 is out of range; the kernel takes 6 to 40.",
        "- qemu_bridge_bridges: priority of bridge br4: 65536 is out of range; the kernel takes 0 to 65535.",
        "- qemu_bridge_bridges: group_fwd_mask of bridge br4: 5 has one of the bits 0, 1 and 2",
        "- qemu_bridge_bridges: vlans of bridge br7: 5000 is out of range",
        "- qemu_bridge_bridges: ports of bridge br7: 'a:b' can't be the name of a link",
        "- qemu_bridge_bridges: alias of bridge br7: it has 256 bytes, and 255 are possible",
        "- qemu_bridge_bridges: addresses of bridge br8: an IPv6 address can be there once",
        "- qemu_bridge_bridges: addresses of bridge br9: '192.0.2.9' is not an address with prefix length",
        "- qemu_bridge_bridges: ports of bridge br9: there is no link no-other.",
        "- qemu_bridge_taps: tap1 stands there 2 times",
        "- qemu_bridge_taps: `tap:0` is no name for a tap: it holds",
        "- qemu_bridge_taps: the interface lo exists and is no tap",
        "- qemu_bridge_taps: br5 stands in qemu_bridge_bridges too",
        "- qemu_bridge_taps: lo stands in qemu_bridge_bridges too",
        "- qemu_bridge_taps: mac of tap tap2: 'stable' is not a MAC address",
        "- qemu_bridge_taps: mtu of tap tap2: 65535 is out of range; the kernel takes 68 to 65521.",
        "- qemu_bridge_taps: txqueuelen of tap tap2: -1 is out of range; the kernel takes 0 to 4294967295.",
        "- qemu_bridge_taps: cost of tap tap2: 0 is out of range; the kernel takes 1 to 65535.",
        "- qemu_bridge_taps: priority of tap tap2: 64 is out of range; the kernel takes 0 to 63.",
        "- qemu_bridge_taps: owner of tap tap3: there is no user 'no-user' on this host",
        "- qemu_bridge_taps: group of tap tap3: there is no group 'no group' on this host",
        "- qemu_bridge_taps: bridge of tap tap3: there is no bridge br6.",
        "- qemu_bridge_taps: pvid of tap tap6: 4095 is out of range",
        "- qemu_bridge_taps: tagged of tap tap6: 'x' is not a VLAN",
        "- qemu_bridge_taps: untagged of tap tap6: 9-8 is out of range",
        "- qemu_bridge_taps: untagged and tagged of tap tap7: 7 is in both lists",
        "- qemu_bridge_acl: `br%d` is no name of a bridge: it holds",
        "- qemu_bridge_acl: the deny of br0 names users or groups",
        "- qemu_bridge_acl: the allow of br0 has no users and groups in its lists",
        "- qemu_bridge_acl: there is no user `no-user`",
        "- qemu_bridge_acl: there is no user `12345678`",
        "- qemu_bridge_acl: there is no group `no group`",
        "- qemu_bridge_helper_group: there is no group `no-gate`",
        "- qemu_bridge_python (bin/python3) is no file",
        "- qemu_bridge_verify_user: root is root",
    )
    lines = meaning.output.splitlines()
    assert [text for text in reasons if not any(line.startswith(text) for line in lines)] == [], meaning.output
    assert len([line for line in lines if line.startswith("- ")]) == len(reasons), meaning.output


@pytest.mark.parametrize(
    ("variable", "spec", "left_out"),
    [
        ("qemu_bridge_bridges", bridge_argument_spec(), {"state"}),
        ("qemu_bridge_taps", tap_argument_spec(), set[str]()),
    ],
)
def test_a_variable_takes_what_the_module_takes(variable: str, spec: dict[str, Any], left_out: set[str]) -> None:
    told = yaml.safe_load((ROOT / "roles/qemu_bridge/meta/argument_specs.yml").read_text())
    options = told["argument_specs"]["main"]["options"][variable]["options"]
    assert set(options) == set(spec) - left_out
    for name, rules in options.items():
        kinds = {key: rules.get(key) for key in ("type", "elements", "choices", "required")}
        assert kinds == {key: spec[name].get(key) for key in kinds}, name


# What `survey` finds on a host is tested by itself: a playbook for each would take minutes.


def no_problem(host: Sandbox, request: dict[str, Any]) -> None:
    pass


def writable_directory(host: Sandbox, request: dict[str, Any]) -> None:
    os.chown("/usr/local/lib", 0, 50)
    Path("/usr/local/lib").chmod(0o2775)


def foreign_directory(host: Sandbox, request: dict[str, Any]) -> None:
    POLICY.parent.mkdir()
    os.chown(POLICY.parent, NOBODY, 0)


def closed_directory(host: Sandbox, request: dict[str, Any]) -> None:
    LAUNCHER.parent.mkdir(exist_ok=True)
    LAUNCHER.parent.chmod(0o700)


def foreign_link(host: Sandbox, request: dict[str, Any]) -> None:
    POLICY.parent.symlink_to("/etc/elsewhere")
    os.chown(POLICY.parent, NOBODY, 0, follow_symlinks=False)


def circle(host: Sandbox, request: dict[str, Any]) -> None:
    POLICY.parent.symlink_to("qemu")


def environment_file(host: Sandbox, request: dict[str, Any]) -> None:
    Path("/usr/local/lib/pyvenv.cfg").touch()


def shim(host: Sandbox, request: dict[str, Any]) -> None:
    request["python"] = "/usr/local/bin/python3"
    Path(request["python"]).write_text('#!/bin/sh\nexec /usr/bin/python3 "$@"\n')


def virtual_environment(host: Sandbox, request: dict[str, Any]) -> None:
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", "--copies", "/usr/local/lib/venv"], check=True)
    request["python"] = "/usr/local/lib/venv/bin/python3"


def foreign_interpreter(host: Sandbox, request: dict[str, Any]) -> None:
    request["python"] = shutil.copy("/usr/bin/python3", "/usr/local/bin/python3")
    os.chown(request["python"], NOBODY, 0)


def no_python(host: Sandbox, request: dict[str, Any]) -> None:
    request["python"] = "/bin/true"


def writable_module(host: Sandbox, request: dict[str, Any]) -> None:
    library = next(path for path in sys_path_of("/usr/bin/python3") if Path(path, "encodings").is_dir())
    host.overlay(f"{library}/encodings")
    Path(library, "encodings/utf_8.py").chmod(0o664)


def no_tun(host: Sandbox, request: dict[str, Any]) -> None:
    host.make_tun(None)
    request["manage_tun"] = False


def closed_tun(host: Sandbox, request: dict[str, Any]) -> None:
    host.make_tun(0o600)
    request["manage_tun"] = False


def false_tun(host: Sandbox, request: dict[str, Any]) -> None:
    host.make_tun(None)
    Path("/dev/net/tun").touch(0o666)


def nosuid(host: Sandbox, request: dict[str, Any]) -> None:
    mount("none", "/usr/local", None, MS_REMOUNT | MS_BIND | MS_NOSUID)


def foreign_helper(host: Sandbox, request: dict[str, Any]) -> None:
    LAUNCHER.parent.mkdir(exist_ok=True)
    LAUNCHER.touch(0o4755)


def library_in_the_way(host: Sandbox, request: dict[str, Any]) -> None:
    LIBRARY.mkdir()


def command_in_the_way(host: Sandbox, request: dict[str, Any]) -> None:
    COMMAND.parent.mkdir(exist_ok=True)
    COMMAND.symlink_to("/usr/local/lib/another/qemu-bridge-run")


def policy_in_the_way(host: Sandbox, request: dict[str, Any]) -> None:
    POLICY.parent.mkdir()
    POLICY.symlink_to("/etc/passwd")


def other_machine(host: Sandbox, request: dict[str, Any]) -> None:
    request["launchers"] = request["launchers"].replace(os.uname().machine, "sparc")


def no_verify_user(host: Sandbox, request: dict[str, Any]) -> None:
    request["verify_user"] = "no-user"


def too_many(host: Sandbox, request: dict[str, Any]) -> None:
    users = [f"user{number}" for number in range(64)]
    for number, user in enumerate(users):
        host.add_user(user, 5000 + number)
    request["acl"] = [{"bridge": "br0", "action": "allow", "users": users}]


def sys_path_of(python: str) -> list[str]:
    done = subprocess.run([python, "-ISBc", "import sys; print(*sys.path)"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_addresses_in_one_string_are_no_reason_to_stay(
    host: Sandbox, program: ModuleType, request_of_role: dict[str, Any]
) -> None:
    """Where a list is wanted, Ansible takes words with commas between them, too."""
    ip("link", "add", "br0", "type", "bridge")
    ip("address", "add", "192.0.2.1/24", "dev", "br0")
    ip("address", "add", "2001:db8::1/64", "dev", "br0")
    for given, removable in (("192.0.2.1/24,2001:db8::1/64", ["br0"]), ("192.0.2.1/24", [])):
        request = {**request_of_role, "state": "absent", "bridges": [{"name": "br0", "addresses": given}]}
        assert program.survey(request)["leftovers"]["links"]["removable"] == removable


def test_what_an_interrupted_run_left_goes(host: Sandbox, program: ModuleType, request_of_role: dict[str, Any]) -> None:
    LIBRARY.symlink_to(VERSIONS / "some")
    install_launcher()
    staged = Path(request_of_role["paths"]["staged_launcher"])
    shutil.copy(LAUNCHER, staged)
    launcher = program.survey(request_of_role)["launcher"]
    assert (launcher["drift"], launcher["stale"]) == ([], [str(staged)])
    # It is replaced then, and takes the place of the launcher.
    LAUNCHER.chmod(0o700)
    launcher = program.survey(request_of_role)["launcher"]
    assert (launcher["drift"], launcher["stale"]) == (["mode 0700"], [])


def test_a_tap_is_removed_unless_a_guest_holds_it(
    host: Sandbox, program: ModuleType, request_of_role: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    queues = {"many": ["multi_queue"], "idle": [], "down": [], "one": []}
    for tap, words in queues.items():
        ip("tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr", *words)
        ip("link", "set", "dev", tap, "up")
    guests = [attach(tap, tuntap.IFF_MULTI_QUEUE if words else 0) for tap, words in queues.items() if tap != "idle"]
    ip("link", "set", "dev", "down", "down")
    descriptor = tuntap.open_tun()
    tuntap.create(descriptor, b"own", tuntap.IFF_TAP | tuntap.IFF_NO_PI)
    ip("tuntap", "add", "dev", "packets", "mode", "tun")
    request_of_role.update(state="absent", taps=[{"name": name} for name in (*queues, "own", "packets", "none")])
    links = program.survey(request_of_role)["leftovers"]["links"]
    assert links["removable"] == ["idle"]
    assert links["staying"] == [f"{name} stays, a guest holds it." for name in ("many", "down", "one", "own")]
    for guest in guests:
        os.close(guest)
    # What has changed since the survey counts.
    ip("link", "add", "br0", "type", "bridge")
    program.unmake_links({"bridges": [{"name": "br0"}], "taps": request_of_role["taps"]})
    assert capsys.readouterr().out.split() == [*queues, "br0"]
    assert set(os.listdir("/sys/class/net")) == {"lo", "own", "packets"}
    os.close(descriptor)


def test_a_command_of_others_stays(host: Sandbox, program: ModuleType, request_of_role: dict[str, Any]) -> None:
    request_of_role["state"] = "absent"
    COMMAND.parent.mkdir(exist_ok=True)
    COMMAND.touch()
    assert program.survey(request_of_role)["leftovers"]["files"] == []
    COMMAND.unlink()
    COMMAND.symlink_to(LIBRARY / COMMAND.name)
    assert program.survey(request_of_role)["leftovers"]["files"] == [str(COMMAND)]


@pytest.mark.parametrize(
    ("prepare", "texts"),
    [
        (no_problem, []),
        (writable_directory, ["/usr/local/lib is writable by its group", "`chmod go-w /usr/local/lib`"]),
        (foreign_directory, ["/etc/qemu belongs to nobody", "`chown root /etc/qemu`"]),
        (closed_directory, ["/usr/local/libexec lets no users through (mode 0700)", "`chmod o+x /usr/local/libexec`"]),
        (foreign_link, ["/etc/qemu belongs to nobody"]),
        (circle, ["/etc/qemu leads through symbolic links in a circle"]),
        (environment_file, ["/usr/local/lib/pyvenv.cfg would send the helper's interpreter to another library"]),
        (shim, ["qemu_bridge_python (/usr/local/bin/python3) is no ELF program"]),
        (virtual_environment, ["(/usr/local/lib/venv/bin/python3) belongs to a virtual environment"]),
        (foreign_interpreter, ["/usr/local/bin/python3 belongs to nobody"]),
        (no_python, ["(/bin/true, that is /usr/bin/true) can't run the helper: it is no Python"]),
        (writable_module, ["encodings/utf_8.py is writable by its group"]),
        (no_tun, ["/dev/net/tun is missing, and qemu_bridge_manage_tun is false"]),
        (closed_tun, ["/dev/net/tun is closed to users, mode 0600, and qemu_bridge_manage_tun is false"]),
        (false_tun, ["/dev/net/tun is not the character device 10:200"]),
        (nosuid, ["is mounted nosuid"]),
        (foreign_helper, [f"{LAUNCHER} is in the way and not the role's"]),
        (library_in_the_way, [f"{LIBRARY} is in the way and not the role's"]),
        (command_in_the_way, [f"{COMMAND} is in the way and not the role's"]),
        (policy_in_the_way, [f"{POLICY} is not a regular file"]),
        (other_machine, [f"no launcher for {os.uname().machine}"]),
        (no_verify_user, ["qemu_bridge_verify_user: there is no user no-user"]),
        (too_many, ["grants to 64 users and groups one by one"]),
    ],
)
def test_a_host_is_refused_in_words(
    host: Sandbox, program: ModuleType, request_of_role: dict[str, Any], prepare: Any, texts: list[str]
) -> None:
    prepare(host, request_of_role)
    before = tree("/usr/local", "/etc")
    problems = program.survey(request_of_role)["problems"]
    assert tree("/usr/local", "/etc") == before
    assert bool(problems) == bool(texts), problems
    assert [text for text in texts if not any(text in problem for problem in problems)] == [], problems
