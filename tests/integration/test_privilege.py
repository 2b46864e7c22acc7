# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installed helper against a caller who wants more: never more than a tap that the ACL grants, never a tap left
behind, and a sentence on stderr whenever our code got to run.

A start goes from system call to system call under our hand, so that "at every step" is meant literally. The tracer is
root, before whom the kernel grants file capabilities as if there were none.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.install import LAUNCHER, LIBRARY, PYTHON, install, write_policy
from support.launcher import (
    CAP_NET_ADMIN,
    CAP_SETPCAP,
    CHANNEL,
    NET_ADMIN,
    PR_SET_NO_NEW_PRIVS,
    UID,
    Outcome,
    ask_to_be_traced,
    capabilities,
    close,
    drop_from_bounding_set,
    fields,
    hostile_environment,
    launch,
    plant,
    prctl,
    set_hard_limit,
    spoil_everything,
    stepwise,
)
from support.namespaces import MS_BIND, MS_NOSUID, MS_REMOUNT, Sandbox, ip, mount
from support.user import User

COMMAND = [str(LAUNCHER), "--use-vnet", f"--fd={CHANNEL}", "--br=br0"]
DENIED = [str(LAUNCHER), "--use-vnet", f"--fd={CHANNEL}", "--br=br1"]

# <linux/if_tun.h>
TUNGETIFF = 0x800454D2
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000


@pytest.fixture(autouse=True)
def host(sandbox: Sandbox) -> None:
    """The helper is installed; everyone may have a tap on br0 and nobody on br1."""
    install(sandbox, "allow all\ndeny br1\n")
    add_bridge("br0")
    add_bridge("br1")


@pytest.fixture
def user() -> Iterator[User]:
    """Another process of the caller's."""
    user = User(UID)
    yield user
    user.close()


@pytest.fixture
def trap(sandbox: Sandbox) -> Path:
    """A directory of the user's, full of planted modules."""
    directory = sandbox.scratch / "trap"
    plant(directory)
    return directory


def add_bridge(name: str) -> None:
    ip("link", "add", name, "type", "bridge")
    # Not above: an MTU given there is forgotten when the first port leaves.
    ip("link", "set", name, "mtu", "1400", "up")


def links() -> set[str]:
    """The devices of the sandbox."""
    return set(os.listdir("/sys/class/net"))


def check_refused(outcome: Outcome) -> str:
    """Nothing was handed over or left behind, and a sentence says why. Returns the sentence."""
    sentence = outcome.sentence
    assert links() == {"lo", "br0", "br1"}
    return sentence


def check_granted(outcome: Outcome) -> None:
    """One tap came, as asked for and on br0; when it is closed nothing is left."""
    assert (outcome.status, outcome.sent, outcome.stdout) == (0, b"\0", "")
    check_taps(outcome)
    assert outcome.descriptors


def check_taps(outcome: Outcome) -> None:
    """If anything was handed over, it is one tap on br0. It is closed then, and nothing is left."""
    assert len(outcome.descriptors) <= 1
    for tap in outcome.descriptors:
        name, flags = struct.unpack("16sH22x", fcntl.ioctl(tap, TUNGETIFF, bytes(40)))
        device = Path("/sys/class/net") / name.rstrip(b"\0").decode()
        assert flags == IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        assert (device / "master").resolve().name == "br0"
        assert (device / "mtu").read_text() == "1400\n"
        assert links() == {"lo", "br0", "br1", device.name}
        os.close(tap)
    assert links() == {"lo", "br0", "br1"}


def lay_nested_deny() -> None:
    """A policy that grants br0 to whoever gets by with not reading all of it."""
    write_policy("allow br0\ninclude /etc/qemu/one.conf\n")
    write_policy("include /etc/qemu/two.conf\n", Path("/etc/qemu/one.conf"))
    write_policy("deny br0\n", Path("/etc/qemu/two.conf"))


class Stop(NamedTuple):
    """What is seen of a start between two system calls."""

    program: str
    files: set[str]
    """Base names of the files that are open."""
    permitted: int
    effective: int


def survey(**state: Any) -> list[Stop]:
    """All stops of one start. Every other start like it makes the same system calls."""
    stops = []

    def visit(pid: int, _number: int) -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        sets = capabilities(status)
        files = {file.readlink().name for file in Path(f"/proc/{pid}/fd").iterdir()}
        stops.append(Stop(fields(status)["Name"], files, sets["CapPrm"], sets["CapEff"]))
        return True

    then = state.pop("prepare", None)

    def prepare() -> None:
        ask_to_be_traced()
        if then:
            then()

    close(launch(COMMAND, prepare=prepare, attend=stepwise(visit), **state).descriptors)
    assert links() == {"lo", "br0", "br1"}
    return stops


def where(stops: list[Stop], file: str) -> list[int]:
    """The numbers of the stops at which a file is open."""
    numbers = [number for number, stop in enumerate(stops) if file in stop.files]
    assert numbers
    return numbers


def steps(stops: list[Stop]) -> list[int]:
    """Each system call from the reading of the policy on, and some of those by which our code is loaded.

    Of the two stops at a system call one will do.
    """
    # Before, the interpreter has words of its own.
    loading = where(stops, "qemu-bridge-helper.py")[-1]
    reading = where(stops, "bridge.conf")[0] - 2
    return [*range(loading, reading, 10), *range(reading, len(stops) - 1, 2)]


def interfere(acts: Mapping[int, Callable[[int], object]]) -> Outcome:
    """Start the helper, stop it at these stops, do something to it, and let it go on."""

    def visit(pid: int, number: int) -> bool:
        if number in acts:
            acts[number](pid)
        return number < max(acts)

    return launch(COMMAND, prepare=ask_to_be_traced, attend=stepwise(visit))


# Surroundings


def test_hands_over_in_hostile_surroundings(trap: Path) -> None:
    check_granted(launch(COMMAND, environment=hostile_environment(trap), directory=trap, spoil=spoil_everything))


def test_refuses_in_hostile_surroundings(trap: Path) -> None:
    refusal = check_refused(launch(DENIED, environment=hostile_environment(trap), directory=trap))
    assert refusal.startswith("access denied by acl file")
    assert "/etc/qemu/bridge.conf:2" in refusal
    silent = launch(DENIED, environment=hostile_environment(trap), directory=trap, spoil=spoil_everything)
    assert (silent.status, silent.descriptors, links()) == (1, [], {"lo", "br0", "br1"})


@pytest.mark.parametrize("number", [0, 1])
def test_closed_descriptor_as_the_channel(number: int) -> None:
    """The launcher puts /dev/null there: no file that the helper opens is taken for the caller's socket."""
    outcome = launch([LAUNCHER, "--br=br0", f"--fd={number}"], spoil=lambda: close([number]))
    assert check_refused(outcome).startswith(f"file descriptor {number} cannot take a tap: ")


@pytest.mark.parametrize("hard", range(3, 11))
def test_few_descriptors_lose_no_deny(hard: int) -> None:
    lay_nested_deny()
    outcome = launch(COMMAND, spoil=lambda: set_hard_limit(resource.RLIMIT_NOFILE, hard))
    # With one more than the four that are open python3 starts.
    if hard > 4:
        assert check_refused(outcome).startswith("access denied by acl file")
    else:
        assert (outcome.status, outcome.descriptors) == (127, [])
        assert outcome.stderr


@pytest.mark.parametrize("hard", range(3, 11))
def test_few_descriptors_end_in_a_tap_or_a_sentence(hard: int) -> None:
    outcome = launch(COMMAND, spoil=lambda: set_hard_limit(resource.RLIMIT_NOFILE, hard))
    if hard > 5:
        check_granted(outcome)
    elif hard > 4:
        assert "Too many open files" in check_refused(outcome)


@pytest.mark.parametrize("megabytes", range(4, 36, 4))
def test_little_memory_ends_in_a_tap_or_words(megabytes: int) -> None:
    outcome = launch(COMMAND, spoil=lambda: set_hard_limit(resource.RLIMIT_AS, megabytes << 20))
    if outcome.status == 0:
        check_granted(outcome)
    else:
        assert outcome.stderr or outcome.status < 0
        assert not outcome.descriptors
        check_taps(outcome)


# Without the capability


def test_without_the_capability() -> None:
    """Its sentences have their tests beside the launcher's; here none of the ways to lose it ends in a tap."""
    check_granted(launch(COMMAND))
    check_refused(launch(COMMAND, prepare=lambda: prctl(PR_SET_NO_NEW_PRIVS, 1)))
    for uid in (UID, 0):
        check_refused(launch(COMMAND, uid=uid, prepare=lambda: drop_from_bounding_set(CAP_NET_ADMIN)))
    mount(str(LAUNCHER.parent), LAUNCHER.parent, None, MS_BIND)
    mount("none", LAUNCHER.parent, None, MS_REMOUNT | MS_BIND | MS_NOSUID)
    check_refused(launch(COMMAND))
    mount("none", LAUNCHER.parent, None, MS_REMOUNT | MS_BIND)
    check_granted(launch(COMMAND))
    os.removexattr(LAUNCHER, "security.capability")
    check_refused(launch(COMMAND))


def test_tun_device_that_is_closed_to_the_user(sandbox: Sandbox) -> None:
    """CAP_NET_ADMIN does not open it: its mode has to."""
    sandbox.make_tun(0o600)
    sentence = check_refused(launch(COMMAND))
    assert "failed to open /dev/net/tun: Permission denied (EACCES); it is closed to this user, an admin" in sentence


def test_helper_without_the_launcher() -> None:
    """Its files are nobody's secret and start for everyone, without the capability."""
    outcome = launch([PYTHON, "-I", "-S", LIBRARY / "qemu-bridge-helper.py", *COMMAND[1:]])
    refusal = check_refused(outcome)
    assert refusal.startswith("failed to create tun device: Operation not permitted")


def test_false_files_in_a_namespace_of_the_users(sandbox: Sandbox) -> None:
    """There users can lay a policy, even a helper, over ours: the host gives them nothing for it."""
    false = sandbox.scratch / "false"
    (false / "etc").mkdir(parents=True)
    (false / "etc/bridge.conf").write_text("allow all\n")
    library = LIBRARY.resolve()
    shutil.copytree(library, false / "library", symlinks=True)
    with (false / "library/tapfd/acl.py").open("a") as file:
        file.write("def decide(*_):\n    return Decision(True, 'it is mine')\n")
    for path in (false, *false.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)

    def start(flags: str, *preparations: str) -> Outcome:
        script = " && ".join([*preparations, 'exec "$@"'])
        return launch(["/usr/bin/unshare", flags, "/bin/sh", "-c", script, "sh", *DENIED])

    policy = f"mount --bind {false}/etc /etc/qemu"
    # The root directory is nobody's in there, so the policy is not even read.
    assert check_refused(start("-Urm", policy)).startswith("failed to parse default acl file")
    helper = f"mount --bind {false}/library {library}"
    assert check_refused(start("-Urm", helper)).startswith("failed to create tun device: Operation not permitted")
    # The control: in a network namespace of their own it hands over.
    outcome = start("-Urmn", helper, "ip link add br1 type bridge")
    assert (outcome.status, len(outcome.descriptors)) == (0, 1)
    close(outcome.descriptors)


# Root


@pytest.mark.parametrize("setpcap", [True, False], ids=["with CAP_SETPCAP", "without CAP_SETPCAP"])
def test_root_gets_what_the_acl_grants(setpcap: bool) -> None:
    def prepare() -> None:
        if not setpcap:
            drop_from_bounding_set(CAP_SETPCAP)

    check_granted(launch(COMMAND, uid=0, prepare=prepare))
    assert check_refused(launch(DENIED, uid=0, prepare=prepare)).startswith("access denied by acl file")


@pytest.mark.parametrize("setpcap", [True, False], ids=["with CAP_SETPCAP", "without CAP_SETPCAP"])
@pytest.mark.parametrize("uid", [UID, 0], ids=["user", "root"])
def test_capability_at_every_step(uid: int, setpcap: bool) -> None:
    def prepare() -> None:
        if not setpcap:
            drop_from_bounding_set(CAP_SETPCAP)

    stops = survey(uid=uid, prepare=prepare)
    helper = [stop for stop in stops if stop.program == "python3"]
    assert where(helper, "tun")
    assert {(stop.permitted, stop.effective) for stop in helper} == {(NET_ADMIN, NET_ADMIN)}
    if uid:
        launcher = [stop for stop in stops if stop.program != "python3"]
        assert {(stop.permitted, stop.effective) for stop in launcher} == {(NET_ADMIN, 0)}


# At every step


def test_killed_at_every_step() -> None:
    stops = survey()
    own = where(stops, "qemu-bridge-helper.py")[0]
    with_tap = 0

    def kill(pid: int) -> None:
        nonlocal with_tap
        with_tap += len(links()) > 3
        os.kill(pid, signal.SIGKILL)

    for number in [*range(0, own, 25), *steps(stops)]:
        outcome = interfere({number: kill})
        assert outcome.status == -signal.SIGKILL
        check_taps(outcome)
    assert with_tap


def set_soft_limit_of(pid: int, value: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (value, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


@pytest.mark.parametrize("for_good", [False, True], ids=["for one system call", "for good"])
@pytest.mark.parametrize("granted", [True, False], ids=["granted", "denied in a nested include"])
def test_robbed_of_descriptors_at_every_step(user: User, granted: bool, for_good: bool) -> None:
    """Users may stop their helper and lower its limits: no deny is lost over a file that can't be opened just now."""
    if not granted:
        lay_nested_deny()

    def rob(pid: int) -> None:
        user.call(set_soft_limit_of, pid, CHANNEL + 1)

    def give_back(pid: int) -> None:
        user.call(set_soft_limit_of, pid, 1024)

    stops = survey()
    outcomes = set()
    for number in steps(stops):
        outcome = interfere({number: rob} if for_good else {number: rob, number + 2: give_back})
        outcomes.add(outcome.status)
        if granted and outcome.status == 0:
            check_granted(outcome)
        else:
            check_refused(outcome)
    assert outcomes == ({0, 1} if granted else {1})


def test_stopped_while_the_policy_changes() -> None:
    """The decision belongs to the moment of reading."""
    stops = survey()
    reading = where(stops, "bridge.conf")
    for number in (reading[0] - 2, reading[-1] + 1, len(stops) - 2):
        write_policy("allow all\ndeny br1\n")
        outcome = interfere({number: lambda _pid: write_policy("deny all\n")})
        if number < reading[0]:
            assert check_refused(outcome).startswith("access denied by acl file")
        else:
            check_granted(outcome)


def test_stopped_while_the_bridge_goes() -> None:
    stops = survey()
    for number in range(where(stops, "bridge.conf")[0], len(stops) - 1, 2):
        outcome = interfere({number: lambda _pid: ip("link", "del", "br0")})
        if outcome.status:
            assert outcome.sentence
        close(outcome.descriptors)
        assert links() == {"lo", "br1"}
        add_bridge("br0")


def test_stopped_and_continued() -> None:
    def attend(pid: int) -> int:
        os.kill(pid, signal.SIGSTOP)
        _pid, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        os.kill(pid, signal.SIGCONT)
        return os.waitpid(pid, 0)[1]

    check_granted(launch(COMMAND, attend=attend))
