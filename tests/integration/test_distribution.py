# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role beside the distribution's packages: what it tells them, what it takes back, what they do meanwhile."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.install import LAUNCHER
from support.namespaces import MS_RDONLY, MS_REMOUNT, Sandbox, ip, mount
from support.packages import allow_dpkg, dpkg, fetch, fetch_all, unpack
from support.playbook import Playbook
from support.qemu import BRIDGE_HELPER, QEMU, Debian, lay
from support.user import User, take_tap

ASIDE = Path(f"{BRIDGE_HELPER}.before-hostnet-qemu")
APPARMOR = Path("/etc/apparmor.d")
# What a shell would make something else of.
ODD_BRIDGE = "b'$r\u00e9"
UNMANAGED = Path("/etc/NetworkManager/conf.d/90-hostnet-qemu.conf")
IFUP, IFDOWN = Path("/etc/qemu-ifup"), Path("/etc/qemu-ifdown")
# Seconds: an emulator that starts on a machine that does other things besides.
PATIENCE = 60


@pytest.fixture(scope="session")
def qemu_package() -> Path:
    """The package that has QEMU's own bridge helper, asked for before any sandbox."""
    return fetch("qemu-system-common")["qemu-system-common"]


@pytest.fixture
def dpkg_host(host: Sandbox) -> Sandbox:
    """A host whose dpkg works, and whose /usr/lib can be written to; without QEMU."""
    host.overlay("/usr/lib")
    allow_dpkg(host)
    return host


@pytest.fixture
def qemu_host(debian: Debian, qemu_package: Path, host: Sandbox) -> Sandbox:
    """A host with QEMU, whose helper dpkg has laid."""
    lay(host, debian)
    allow_dpkg(host)
    dpkg("--install", qemu_package)
    assert os.listxattr(BRIDGE_HELPER) == []
    return host


@pytest.fixture
def user() -> Iterator[User]:
    user = User(60001)
    yield user
    user.close()


def start(helper: str) -> int:
    """Take a tap on br0 by the helper at this path and give it back; the helper's exit status."""
    answer = take_tap(Path(helper), b"br0")
    if answer.tap is not None:
        os.close(answer.tap)
    return answer.status


def diversions() -> str:
    """Those of local administrators."""
    done = subprocess.run(["dpkg-divert", "--list"], capture_output=True, text=True, check=True)
    return "".join(line for line in done.stdout.splitlines(keepends=True) if line.startswith("local "))


def state() -> tuple[Any, ...]:
    """QEMU's own path, and what dpkg was told of it."""
    link = BRIDGE_HELPER.readlink() if BRIDGE_HELPER.is_symlink() else None
    content = [path.read_bytes() if path.is_file() else None for path in (BRIDGE_HELPER, ASIDE)]
    return link, content, diversions(), sorted(os.listdir(BRIDGE_HELPER.parent))


def qemu(*arguments: str | Path) -> list[str | Path]:
    """The command line of a QEMU with a guest that never runs."""
    command: list[str | Path] = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"]
    return [*command, "-m", "32", "-S", *arguments]


def wait_for_port(machine: subprocess.Popen[bytes], bridge: str) -> list[dict[str, Any]]:
    """The ports of a bridge that are up, as soon as there is one, or QEMU has ended."""
    deadline = time.monotonic() + PATIENCE
    ports: list[dict[str, Any]] = []
    while machine.poll() is None and not ports and time.monotonic() < deadline:
        ports = [port for port in json.loads(ip("-json", "link", "show", "master", bridge)) if "UP" in port["flags"]]
        time.sleep(0.05)
    return ports


def qemu_is_on_the_bridge() -> bool:
    """Start QEMU by the shortest line there is, as a user who is not root; whether it gets a tap on br0."""
    command = qemu("-net", "bridge", "-net", "nic,model=virtio")
    with subprocess.Popen(command, cwd="/", user=60001, group=60001, extra_groups=[]) as machine:
        ports = wait_for_port(machine, "br0")
        machine.terminate()
    return bool(ports)


@pytest.mark.timeout(900)  # Many runs of the role.
def test_qemu_finds_the_helper_by_itself(
    qemu_host: Sandbox, qemu_package: Path, playbook: Playbook, user: User
) -> None:
    before = state()
    variables = {"qemu_bridge_default_helper": True}
    check = playbook.converge(variables, "--check")
    assert "Set the distribution's helper aside" in check.output
    assert state() == before

    playbook.converge(variables)
    link, content, diverted, _names = state()
    assert link == LAUNCHER
    assert content[1] == before[1][0]
    assert diverted == f"local diversion of {BRIDGE_HELPER} to {ASIDE}\n"
    assert user.call(start, str(BRIDGE_HELPER)) == 0
    assert qemu_is_on_the_bridge()

    # An upgrade lays the files as installing the package once more does.
    with ASIDE.open("ab") as file:
        file.write(b"older")
    dpkg("--install", qemu_package)
    assert state()[:2] == (link, content)
    again = playbook.converge(variables)
    assert again.changed == 0, again.output

    # QEMU goes and comes, and somebody removes the link.
    dpkg("--remove", "qemu-system-common")
    assert state()[0] == link
    assert not ASIDE.exists()
    BRIDGE_HELPER.unlink()
    mended = playbook.converge(variables)
    assert mended.changed == 1, mended.output
    dpkg("--install", qemu_package)
    assert state()[:2] == (link, content)

    variables = {"qemu_bridge_default_helper": False}
    back = playbook.converge(variables, "--check")
    assert back.changed == 2, back.output
    assert state()[:2] == (link, content)
    playbook.converge(variables)
    assert state() == before


def test_the_path_is_led_before_qemu_is_installed(dpkg_host: Sandbox, playbook: Playbook) -> None:
    directory = BRIDGE_HELPER.parent
    assert not directory.exists(), "this test is for machines without QEMU"
    variables = {"qemu_bridge_default_helper": True}
    playbook.converge(variables, "--check")
    assert not directory.exists()
    playbook.converge(variables)
    assert BRIDGE_HELPER.readlink() == LAUNCHER
    assert str(ASIDE) in diversions()
    playbook.converge({**variables, "qemu_bridge_state": "absent"})
    assert not directory.exists()
    assert diversions() == ""


def shipped(mode: int = 0o755) -> None:
    """Lay what stands for the helper of a package."""
    BRIDGE_HELPER.parent.mkdir(exist_ok=True)
    BRIDGE_HELPER.write_bytes(b"\x7fELF")
    BRIDGE_HELPER.chmod(mode)


def divert(target: Path | str) -> None:
    subprocess.run(
        ["dpkg-divert", "--quiet", "--local", "--rename", "--divert", target, "--add", BRIDGE_HELPER], check=True
    )


def as_it_comes(_request: dict[str, Any]) -> None:
    shipped()


def setuid(_request: dict[str, Any]) -> None:
    shipped(0o4755)


def capable(_request: dict[str, Any]) -> None:
    shipped()
    os.setxattr(BRIDGE_HELPER, "security.capability", bytes.fromhex("01000002 00100000 00000000 00000000 00000000"))


def overridden(_request: dict[str, Any]) -> None:
    subprocess.run(["dpkg-statoverride", "--add", "root", "root", "4750", BRIDGE_HELPER], check=True)


def overridden_later(_request: dict[str, Any]) -> None:
    shipped()
    divert(ASIDE)
    ASIDE.chmod(0o4755)
    BRIDGE_HELPER.symlink_to(LAUNCHER)


def diverted_elsewhere(_request: dict[str, Any]) -> None:
    shipped()
    divert(f"{BRIDGE_HELPER}.distrib")


def linked_by_hand(_request: dict[str, Any]) -> None:
    BRIDGE_HELPER.parent.mkdir()
    BRIDGE_HELPER.symlink_to(LAUNCHER)


def replaced(_request: dict[str, Any]) -> None:
    shipped()
    divert(ASIDE)
    shipped()


def no_file(_request: dict[str, Any]) -> None:
    BRIDGE_HELPER.mkdir(parents=True)


def aside_in_the_way(_request: dict[str, Any]) -> None:
    shipped()
    ASIDE.touch()


def writable(_request: dict[str, Any]) -> None:
    BRIDGE_HELPER.parent.mkdir()
    BRIDGE_HELPER.parent.chmod(0o777)


def not_debian(request: dict[str, Any]) -> None:
    shipped()
    request["default_helper"]["diverts"] = False


def unknown(request: dict[str, Any]) -> None:
    request["default_helper"]["path"] = ""


@pytest.mark.parametrize(
    ("prepare", "texts"),
    [
        (as_it_comes, []),
        (setuid, ["was given privileges", f"`chmod u-s,g-s {BRIDGE_HELPER}`"]),
        (capable, ["was given privileges", f"`setcap -r {BRIDGE_HELPER}`"]),
        (overridden, [f"(`root root 4750 {BRIDGE_HELPER}`)", f"`dpkg-statoverride --remove {BRIDGE_HELPER}`"]),
        (overridden_later, [f"`chmod u-s,g-s {ASIDE}`"]),
        (diverted_elsewhere, [f"somebody has diverted {BRIDGE_HELPER} to {BRIDGE_HELPER}.distrib"]),
        (linked_by_hand, [f"is a symbolic link to {LAUNCHER} that somebody has made by hand"]),
        (replaced, [f"{BRIDGE_HELPER} is not the role's link any more"]),
        (no_file, [f"{BRIDGE_HELPER} is not a regular file"]),
        (aside_in_the_way, [f"{ASIDE} is in the way"]),
        (writable, [f"`chmod go-w {BRIDGE_HELPER.parent}`"]),
        (not_debian, ["no way to keep another one in its place"]),
        (unknown, ["does not know where QEMU of this distribution looks for a helper"]),
    ],
)
def test_a_path_that_is_not_led_to_ours(
    dpkg_host: Sandbox,
    program: ModuleType,
    request_of_role: dict[str, Any],
    prepare: Callable[[dict[str, Any]], None],
    texts: list[str],
) -> None:
    prepare(request_of_role)
    request_of_role["default_helper"]["wanted"] = True
    problems = program.survey(request_of_role)["problems"]
    assert len(problems) == bool(texts), problems
    assert [text for text in texts if not any(text in problem for problem in problems)] == [], problems


@pytest.mark.parametrize("prepare", [as_it_comes, setuid, overridden, diverted_elsewhere, linked_by_hand, no_file])
def test_a_path_that_is_nobodys_business(
    dpkg_host: Sandbox,
    program: ModuleType,
    request_of_role: dict[str, Any],
    prepare: Callable[[dict[str, Any]], None],
) -> None:
    """If it is not wanted, and when the role goes, what others did there is neither judged nor undone."""
    prepare(request_of_role)
    for state in ("present", "absent"):
        request_of_role["state"] = state
        found = program.survey(request_of_role)
        assert (found["problems"], found["distribution"]) == ([], {})


def test_a_path_without_diversions(dpkg_host: Sandbox, program: ModuleType, request_of_role: dict[str, Any]) -> None:
    """Where the package manager has none, the path is led to ours only while nothing is there."""
    request_of_role["default_helper"].update(diverts=False, wanted=True)
    change = {"path": str(BRIDGE_HELPER), "aside": str(ASIDE)}
    nothing = {"divert": False, "link": False, "unlink": False, "undivert": False}
    assert program.survey(request_of_role)["distribution"] == {"default_helper": {**change, **nothing, "link": True}}
    BRIDGE_HELPER.parent.mkdir()
    BRIDGE_HELPER.symlink_to(LAUNCHER)
    assert program.survey(request_of_role)["distribution"] == {}
    request_of_role["default_helper"]["wanted"] = False
    assert program.survey(request_of_role)["distribution"] == {"default_helper": {**change, **nothing, "unlink": True}}


@pytest.mark.parametrize("state", ["present", "absent"])
def test_what_took_the_place_of_the_link_is_not_removed(
    dpkg_host: Sandbox, program: ModuleType, request_of_role: dict[str, Any], state: str
) -> None:
    replaced(request_of_role)
    request_of_role["state"] = state
    (problem,) = program.survey(request_of_role)["problems"]
    assert f"{BRIDGE_HELPER} is not the role's link any more" in problem


@pytest.fixture(scope="session")
def apparmor_packages() -> dict[str, Path]:
    """AppArmor, and the profile of libvirtd, asked for before any sandbox."""
    return fetch("apparmor", "libvirt-daemon-system")


@pytest.fixture
def compile_profile(apparmor_packages: dict[str, Path], host: Sandbox) -> Callable[[], str]:
    """Lay AppArmor's and libvirt's profiles, as installed, and return how to compile that of libvirtd.

    The answer has the rules of the whole profile as AppArmor's parser reads them. Syntax errors fail.
    """
    for name, archive in apparmor_packages.items():
        unpacked = unpack(host.scratch / name, archive)
        shutil.copytree(unpacked / "etc/apparmor.d", APPARMOR, dirs_exist_ok=True)
    # By libvirt's postinst.
    (APPARMOR / "local/usr.sbin.libvirtd").touch()
    parser = host.scratch / "apparmor/sbin/apparmor_parser"

    def compile_it() -> str:
        command = [parser, "--skip-kernel-load", "--skip-cache", "--dump", "rule-exprs", APPARMOR / "usr.sbin.libvirtd"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return compile_it


def test_libvirtd_may_run_the_helper(compile_profile: Callable[[], str], playbook: Playbook) -> None:
    local = APPARMOR / "local/usr.sbin.libvirtd"
    local.write_text("# Ours.\n/opt/hooks/** PUx,\n")
    before = local.read_text()
    assert str(LAUNCHER) not in compile_profile()
    check = playbook.converge({}, "--check")
    assert "Add a rule to libvirt's profiles" in check.output
    assert local.read_text() == before

    playbook.converge({})
    rules = [line.split()[1] for line in compile_profile().splitlines() if line.startswith("rule: ")]
    assert str(LAUNCHER) in rules
    assert "/opt/hooks/** PUx," in local.read_text()
    assert not (APPARMOR / "local/usr.sbin.virtqemud").exists()
    again = playbook.converge({})
    assert again.changed == 0, again.output

    with local.open("a", encoding="ascii") as file:
        file.write("/opt/more PUx,\n")
    playbook.converge({"qemu_bridge_state": "absent"})
    assert local.read_text() == before + "/opt/more PUx,\n"


def test_what_is_done_about_profiles(host: Sandbox, program: ModuleType, request_of_role: dict[str, Any]) -> None:
    """The additions of those that are there and have some; the kernel is told of those that it enforces."""
    apparmor = request_of_role["apparmor"]
    apparmor["loaded"] = str(host.scratch / "profiles")

    def found() -> list[tuple[str, str, bool]]:
        change = program.survey(request_of_role)["distribution"].get("apparmor", {"files": []})
        return [(Path(file["path"]).name, file["state"], file["loaded"]) for file in change["files"]]

    shutil.rmtree(APPARMOR, ignore_errors=True)
    assert found() == []
    (APPARMOR / "local").mkdir(parents=True)
    libvirtd, virtqemud = (APPARMOR / name for name in ("usr.sbin.libvirtd", "usr.sbin.virtqemud"))
    libvirtd.write_text("profile libvirtd /usr/sbin/libvirtd {\n  #include <local/usr.sbin.libvirtd>\n}\n")
    virtqemud.write_text("profile virtqemud /usr/sbin/virtqemud {\n  # without <local/usr.sbin.virtqemud>\n}\n")
    assert found() == [("usr.sbin.libvirtd", "present", False)]
    Path(apparmor["loaded"]).write_text("virtqemud (enforce)\nlibvirtd//qemu_bridge_helper (enforce)\n")
    virtqemud.write_text("profile virtqemud {\n  include if exists <local/usr.sbin.virtqemud>\n}\n")
    assert found() == [("usr.sbin.libvirtd", "present", False), ("usr.sbin.virtqemud", "present", True)]
    Path(apparmor["loaded"]).write_text("/usr/sbin/libvirtd (complain)\nvirtqemud-other (enforce)\n")
    assert found() == [("usr.sbin.libvirtd", "present", True), ("usr.sbin.virtqemud", "present", False)]

    block = apparmor["block"]
    (APPARMOR / "local/usr.sbin.libvirtd").write_text(f"# theirs\n{block}\n")
    (APPARMOR / "local/usr.sbin.virtqemud").write_text(block.replace("PUx", "ix") + "\n")
    assert found() == [("usr.sbin.virtqemud", "present", False)]
    # A profile that is gone with its package leaves what was added to it.
    virtqemud.unlink()
    request_of_role["state"] = "absent"
    assert found() == [("usr.sbin.libvirtd", "absent", True), ("usr.sbin.virtqemud", "absent", False)]


def etc() -> dict[str, tuple[str, int, bytes]]:
    """The scripts, and what lies beside them."""
    return {
        path.name: (str(path.owner()), path.stat().st_mode, path.read_bytes())
        for path in sorted(Path("/etc").glob("qemu-if*"))
    }


@pytest.fixture(scope="session")
def shellcheck() -> Path:
    """The archive of ShellCheck, asked for before any sandbox."""
    return fetch("shellcheck")["shellcheck"]


@pytest.mark.timeout(900)  # Many runs of the role.
def test_the_scripts_of_taps(
    shellcheck: Path, qemu_host: Sandbox, qemu_package: Path, playbook: Playbook, user: User
) -> None:
    assert IFUP.exists(), "the package of QEMU has lost its conffile"
    before = etc()
    variables = {
        "qemu_bridge_ifup_scripts": True,
        "qemu_bridge_bridges": [{"name": ODD_BRIDGE, "mtu": 1400}, {"name": "br0"}],
    }
    check = playbook.converge(variables, "--check", "--diff")
    assert "+bridge='b'" in check.output
    assert etc() == before
    playbook.converge(variables)
    scripts = etc()
    assert {name: (mode, path) for name, (_owner, mode, path) in scripts.items() if name.endswith("-qemu")} == {
        f"{name}.before-hostnet-qemu": (mode, path) for name, (_owner, mode, path) in before.items()
    }
    checker = unpack(qemu_host.scratch / "shellcheck", shellcheck) / "usr/bin/shellcheck"
    # SC2016 is about the dollar sign in the bridge's name.
    subprocess.run([checker, "--exclude=SC2016", IFUP, IFDOWN], check=True)

    # By default, as root: no script is named.
    with subprocess.Popen(qemu("-net", "nic,model=virtio", "-net", "tap"), cwd="/") as machine:
        ports = wait_for_port(machine, ODD_BRIDGE)
        assert [(port["mtu"], port["address"][:3], "UP" in port["flags"]) for port in ports] == [(1400, "fe:", True)]
        name = ports[0]["ifname"]
        assert Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode").read_text() == "1\n"
        machine.terminate()
    assert name not in os.listdir("/sys/class/net")

    # A tap that stays is off the bridge afterwards, unless it is on another one by then.
    ip("tuntap", "add", "dev", "stays", "mode", "tap", "user", "60001", "vnet_hdr")
    for other in (False, True):
        with subprocess.Popen(qemu("-netdev", "tap,id=hn0,ifname=stays"), cwd="/") as machine:
            assert wait_for_port(machine, ODD_BRIDGE)
            if other:
                ip("link", "set", "stays", "master", "br0")
            machine.terminate()
        (link,) = json.loads(ip("-json", "link", "show", "stays"))
        assert (link.get("master"), "UP" in link["flags"]) == (("br0", True) if other else (None, False))

    # Every reason not to, with QEMU's own word after it.
    for arguments, who, reason in (
        (["stays"], 60001, f"only root can put stays on {ODD_BRIDGE}"),
        (["lo"], 0, "there is no tap lo"),
        ([], 0, "give the name of a tap"),
    ):
        done = subprocess.run([IFUP, *arguments], user=who, capture_output=True, text=True, check=False)
        assert (done.returncode, reason in done.stderr) == (1, True), done.stderr
    ip("link", "delete", ODD_BRIDGE)
    done = subprocess.run(qemu("-net", "tap"), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"/etc/qemu-ifup: there is no bridge {ODD_BRIDGE} for tap0" in done.stderr
    assert "network script /etc/qemu-ifup failed" in done.stderr

    # dpkg asks about a conffile that both sides have changed; by default it leaves the administrator's.
    dpkg("--install", qemu_package)
    assert etc() == scripts
    back = playbook.converge({"qemu_bridge_state": "absent", "qemu_bridge_bridges": []})
    assert "Put the scripts of before back" in back.output
    assert etc() == before


def test_what_becomes_of_scripts_of_others(host: Sandbox, program: ModuleType, request_of_role: dict[str, Any]) -> None:
    """They are set aside, given back where ours are or were, and left alone where they have come back already."""
    asides = [Path(f"{script}.before-hostnet-qemu") for script in (IFUP, IFDOWN)]
    ours = f"#!/bin/sh\n{request_of_role['header']}\n"
    for path in (IFUP, IFDOWN, *asides):
        path.unlink(missing_ok=True)

    def found(wanted: bool) -> dict[str, Any] | None:
        request_of_role["ifup"]["wanted"] = wanted
        survey = program.survey(request_of_role)
        assert survey["problems"] == []
        change: dict[str, Any] | None = survey["distribution"].get("ifup")
        return change

    nothing: dict[str, Any] = {"write": True, "set_aside": [], "give_back": [], "remove": []}
    assert found(False) is None
    assert found(True) == nothing
    IFUP.write_text("#!/bin/sh\n# theirs\n")
    IFDOWN.write_text(ours)
    assert found(True) == {**nothing, "set_aside": [str(IFUP)]}
    assert found(False) == {**nothing, "write": False, "remove": [str(IFDOWN)]}
    for aside in asides:
        aside.write_text("before")
    assert found(False) == {**nothing, "write": False, "give_back": [str(IFDOWN)]}
    IFUP.unlink()
    IFDOWN.unlink()
    assert found(False) == {**nothing, "write": False, "give_back": [str(IFUP), str(IFDOWN)]}


@pytest.mark.parametrize(
    ("bridges", "bridge", "text"),
    [
        ([], "", "there is no bridge for the taps"),
        ([{"name": "br0"}], "br1", "there is no bridge `br1`, neither here nor to make"),
    ],
)
def test_scripts_without_a_bridge(
    host: Sandbox,
    program: ModuleType,
    request_of_role: dict[str, Any],
    bridges: list[dict[str, Any]],
    bridge: str,
    text: str,
) -> None:
    request_of_role.update(bridges=bridges, ifup={"wanted": True, "bridge": bridge}, acl=[], verify=False)
    (problem,) = program.survey(request_of_role)["problems"]
    assert text in problem


def test_a_directory_is_no_script(host: Sandbox, program: ModuleType, request_of_role: dict[str, Any]) -> None:
    IFUP.unlink(missing_ok=True)
    IFUP.mkdir()
    request_of_role["ifup"]["wanted"] = True
    (problem,) = program.survey(request_of_role)["problems"]
    assert "/etc/qemu-ifup is not a regular file" in problem


BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
    "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
"""


@pytest.fixture(scope="session")
def networkmanager_packages() -> list[Path]:
    """NetworkManager and the bus that it is spoken to by, asked for before any sandbox."""
    return fetch_all("network-manager", "dbus-daemon")


@pytest.fixture
def networkmanager(networkmanager_packages: list[Path], host: Sandbox) -> Iterator[None]:
    """A NetworkManager that runs in the sandbox; `nmcli` is on the search path."""
    programs = unpack(host.scratch / "programs", *networkmanager_packages)
    host.overlay("/var/lib")
    for directory in ("/run/dbus", "/run/NetworkManager", "/var/lib/NetworkManager", UNMANAGED.parent):
        Path(directory).mkdir(parents=True, exist_ok=True)
    # Where nothing can be written there, it does not wait for udev to have seen a device.
    mount("none", "/sys", None, MS_REMOUNT | MS_RDONLY)
    # It is to change nothing of the machine itself, such as its name.
    (UNMANAGED.parent.parent / "NetworkManager.conf").write_text(
        "[main]\nplugins=keyfile\nauth-polkit=false\ndns=none\nhostname-mode=none\n"
    )
    bus = host.scratch / "bus.conf"
    bus.write_text(BUS)
    libraries = [programs / f"{prefix}/{platform.machine()}-linux-gnu" for prefix in ("usr/lib", "lib")]
    environment = {**os.environ, "LC_ALL": "C", "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    nmcli = Path("/usr/local/bin/nmcli")
    nmcli.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH={environment["LD_LIBRARY_PATH"]} exec {programs}/usr/bin/nmcli "$@"\n'
    )
    nmcli.chmod(0o755)
    daemons = []
    try:
        for command in (["dbus-daemon", "--nofork", f"--config-file={bus}"], ["NetworkManager", "--no-daemon"]):
            (program,) = programs.glob(f"usr/*bin/{command[0]}")
            with open(host.scratch / f"{command[0]}.log", "wb") as log:
                daemons.append(subprocess.Popen([program, *command[1:]], env=environment, stdout=log, stderr=log))
            wait_until(lambda: Path("/run/dbus/system_bus_socket").exists())
        wait_until(lambda: nmcli_says("--fields", "RUNNING", "general") == ["running"])
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; whoever asked finds out if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def nmcli_says(*arguments: str) -> list[str]:
    done = subprocess.run(["nmcli", "--terse", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def is_managed(device: str) -> bool:
    """Whether NetworkManager has made a connection of a device that it did not make."""
    return f"{device}:connected (externally)" in nmcli_says("--fields", "DEVICE,STATE", "device")


@pytest.mark.usefixtures("networkmanager")
def test_networkmanager_leaves_taps_alone(playbook: Playbook) -> None:
    ip("link", "add", "br0", "up", "type", "bridge")
    for tap in ("tap0", "vpn0"):
        ip("tuntap", "add", "dev", tap, "mode", "tap")
        ip("link", "set", tap, "up", "master", "br0")
    wait_until(lambda: is_managed("tap0") and is_managed("vpn0"))
    assert is_managed("tap0")
    variables = {"qemu_bridge_taps": [{"name": "guest0", "bridge": "br0"}]}
    playbook.converge(variables, "--check")
    assert not UNMANAGED.exists()

    # It runs all the time: what it has to know it is told.
    playbook.converge(variables)
    wait_until(lambda: not is_managed("tap0"))
    assert {name: is_managed(name) for name in ("tap0", "guest0", "vpn0", "br0")} == {
        "tap0": False,
        "guest0": False,
        "vpn0": True,
        "br0": True,
    }
    assert all(os.path.exists(f"/sys/class/net/br0/brif/{tap}") for tap in ("tap0", "guest0", "vpn0"))
    again = playbook.converge(variables)
    assert again.changed == 0, again.output

    playbook.converge({**variables, "qemu_bridge_state": "absent"})
    assert not UNMANAGED.exists()
    wait_until(lambda: is_managed("tap0"))
    assert is_managed("tap0")


def test_what_networkmanager_is_told(host: Sandbox, program: ModuleType, request_of_role: dict[str, Any]) -> None:
    """Only where it is installed, and only what is not there; nothing of others is removed."""

    def found() -> str | None:
        change = program.survey(request_of_role)["distribution"].get("networkmanager")
        assert not change or not change["reload"]
        return change and str(change["content"])

    shutil.rmtree("/etc/NetworkManager", ignore_errors=True)
    assert found() is None
    UNMANAGED.parent.mkdir(parents=True)
    content = found()
    assert content is not None
    assert content.startswith(request_of_role["header"])
    assert content.endswith("\n[keyfile]\nunmanaged-devices+=interface-name:tap*\n")
    UNMANAGED.write_text(content)
    UNMANAGED.chmod(0o644)
    assert found() is None
    UNMANAGED.chmod(0o600)
    assert found() == content

    names = ("tap9", "a;b", "c,d", "e\\f", "gone")
    request_of_role["taps"] = [{"name": name} for name in names]
    request_of_role["taps"][-1]["state"] = "absent"
    told = found()
    assert told is not None
    assert told.splitlines()[-1] == (
        r"unmanaged-devices+=interface-name:tap*;interface-name:=a\;b;interface-name:=c\,d;interface-name:=e\\f"
    )
    request_of_role["state"] = "absent"
    assert found() == ""
    UNMANAGED.write_text("[keyfile]\n")
    assert found() is None


@pytest.mark.parametrize(("enforce", "told"), [("1", True), ("0", False), (None, False)])
def test_selinux_is_spoken_of_where_it_is_enforced(
    host: Sandbox, program: ModuleType, request_of_role: dict[str, Any], enforce: str | None, told: bool
) -> None:
    switch = host.scratch / "enforce"
    request_of_role["paths"]["selinux"] = str(switch)
    if enforce is not None:
        switch.write_text(enforce)
    assert ("selinux" in program.survey(request_of_role)["distribution"]) is told
    request_of_role["state"] = "absent"
    assert "selinux" not in program.survey(request_of_role)["distribution"]
