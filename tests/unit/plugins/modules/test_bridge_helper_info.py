# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module bridge_helper_info: with the installed helper and real taps, and with helpers that go wrong."""

from __future__ import annotations

import ctypes
import grp
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.modules import bridge_helper_info
from support.install import LAUNCHER, install
from support.modules import for_users, run_module
from support.namespaces import Sandbox, ip
from support.user import User

NOBODY = 65534
# <linux/if_tun.h>: IFF_TAP | IFF_NO_PI, and with IFF_VNET_HDR.
PLAIN = 0x1002
WITH_HEADER = 0x5002
# <linux/prctl.h>, <linux/securebits.h>
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2


def ask(*, check: bool = False, **options: Any) -> dict[str, Any]:
    return run_module(bridge_helper_info.main, options, check=check)


def links() -> set[str]:
    return {link["ifname"] for link in json.loads(ip("-json", "link", "show"))}


@pytest.fixture
def bridge(sandbox: Sandbox) -> str:
    """The installed helper, and the bridge br0 with an MTU of its own; the ACL grants br0 and br9 (not there)."""
    install(sandbox, "allow br0\nallow br9\n")
    ip("link", "add", "br0", "mtu", "1400", "type", "bridge")
    return "br0"


HelperMaker = Callable[[str], str]


@pytest.fixture
def helper(sandbox: Sandbox) -> HelperMaker:
    """Makes a helper of a few lines of Python, which have `sys.argv`, `os`, `socket`, `time`, and `fd`, the socket."""

    def make(code: str) -> str:
        path = sandbox.scratch / "helper"
        path.write_text(
            "#!/usr/bin/python3 -IS\nimport os, socket, sys, time\n"
            'fd = int([word for word in sys.argv if word.startswith("--fd=")][0][5:])\n' + code
        )
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("vnet_hdr", [False, True])
def test_reports_the_tap_that_nobody_is_given(bridge: str, vnet_hdr: bool, check: bool) -> None:
    before = links()
    result = ask(vnet_hdr=vnet_hdr, check=check)
    assert result.pop("seconds") > 0
    mac = result.pop("mac")
    assert mac.startswith("fe:")
    assert len(bytes.fromhex(mac.replace(":", ""))) == 6
    # What Ansible adds, up to 2.20.
    result.pop("invocation", None)
    assert result == {
        "changed": False,
        "granted": True,
        "name": "tap0",
        "flags": WITH_HEADER if vnet_hdr else PLAIN,
        "vnet_hdr": vnet_hdr,
        "mtu": 1400,
        "master": bridge,
        "up": True,
    }
    assert links() == before


def test_a_refusal_is_an_answer_with_its_reason(bridge: str) -> None:
    before = links()
    ip("link", "add", "br1", "type", "bridge")
    for name, why in (("br1", "access denied by acl file"), ("br9", "br9")):
        result = ask(bridge=name)
        assert result["granted"] is False
        assert result["changed"] is False
        assert "failed" not in result
        assert why in result["stderr"]
        assert result["stderr"] in result["reason"]
        assert not result.keys() & {"name", "flags", "mtu", "mac", "master", "up"}
    assert links() == before | {"br1"}


def test_a_helper_that_is_not_there_is_a_refusal(sandbox: Sandbox) -> None:
    missing = sandbox.scratch / "missing"
    result = ask(helper=str(missing))
    assert result["granted"] is False
    assert str(missing) in result["reason"]
    assert "ENOENT" in result["reason"]


def test_a_helper_with_arguments(bridge: str) -> None:
    """As users write it for QEMU's helper=: its own bridge counts, and no shell has a say."""
    assert ask(helper=f"{LAUNCHER} --br=br0", bridge="br1")["master"] == "br0"
    refused = ask(helper=f"{LAUNCHER} --br=br0; touch /etc/mark")
    assert "no shell runs a helper here" in refused["reason"]
    assert not Path("/etc/mark").exists()


# A tap as the kernel makes it, on no bridge and down.
BARE_TAP = """
import array, fcntl, struct
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"bare", 0x1002))  # TUNSETIFF, IFF_TAP | IFF_NO_PI
rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tun]))
socket.socket(fileno=fd).sendmsg([b"\\0"], [rights])
"""


def test_reports_what_a_tap_lacks(helper: HelperMaker) -> None:
    before = links()
    result = ask(helper=helper(BARE_TAP), user="root")
    expected = {"granted": True, "name": "bare", "flags": PLAIN, "mtu": 1500, "master": None, "up": False}
    assert {key: result[key] for key in expected} == expected
    assert links() == before


WHO = "print(os.getresuid(), os.getresgid(), sorted(os.getgroups()), os.getcwd(), file=sys.stderr); sys.exit(1)"


def test_the_helper_runs_as_the_user_with_its_groups(helper: HelperMaker, sandbox: Sandbox) -> None:
    sandbox.add_user("alice", 4001, {"vms": 4100, "more": 4101})
    for user in ("alice", "4001"):
        result = ask(helper=helper(WHO), user=user)
        assert result["stderr"] == f"{(4001,) * 3} {(4001,) * 3} [4001, 4100, 4101] /"


def test_other_groups_replace_those_of_the_user(helper: HelperMaker, sandbox: Sandbox) -> None:
    sandbox.add_user("alice", 4001, {"vms": 4100, "more": 4101})
    daemon = grp.getgrnam("daemon").gr_gid
    for groups, numbers in ((["vms", str(daemon)], [daemon, 4100]), ([], [])):
        result = ask(helper=helper(WHO), user="alice", groups=groups)
        assert result["stderr"] == f"{(4001,) * 3} {(4001,) * 3} {numbers} /"


def test_the_helper_gets_no_capability_of_the_task(helper: HelperMaker) -> None:
    status = "sys.exit(next(line for line in open('/proc/self/status') if line.startswith('CapPrm')))"
    assert ask(helper=helper(status))["stderr"].split() == ["CapPrm:", "0" * 16]


@for_users
def test_asks_as_itself_without_root(helper: HelperMaker) -> None:
    path = helper(WHO)
    user = User(NOBODY, [NOBODY])
    try:
        own = user.call(run_module, bridge_helper_info.main, {"helper": path})
        foreign = user.call(run_module, bridge_helper_info.main, {"helper": path, "user": "daemon"})
        with_groups = user.call(run_module, bridge_helper_info.main, {"helper": path, "groups": ["daemon"]})
    finally:
        user.close()
    assert own["stderr"].startswith(f"{(NOBODY,) * 3}")
    assert foreign["failed"] is with_groups["failed"] is True
    assert foreign["msg"] == "Becoming the user daemon is not permitted (EPERM); run the task with become: true."


# A client that ends only what it started would leave the sleeper.
LEAVES_A_CHILD = """
child = os.fork()
if child == 0:
    time.sleep(600)
with open({path!r}, "w") as note:
    note.write(str(child))
"""


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ("time.sleep(600)", "seconds and was killed"),
        ("sys.exit('no tap today')", "ended with status 1: no tap today"),
        ("socket.socket(fileno=fd).send(b'\\0')", "sent no descriptor"),
    ],
)
def test_leaves_no_process_behind(helper: HelperMaker, sandbox: Sandbox, ending: str, why: str) -> None:
    notes = sandbox.scratch / "notes"
    notes.mkdir()
    notes.chmod(0o777)
    note = notes / "child"
    path = helper(LEAVES_A_CHILD.format(path=str(note)) + ending)
    # The helper needs time to come as far as its note, and how much it gets depends on what else the machine does.
    for timeout in (0.5, 8, 64):
        result = ask(helper=path, timeout=timeout)
        if note.exists() and note.read_text():
            break
    assert result["granted"] is False
    assert why in result["reason"]
    # It was killed before the module ended; the end itself may take a moment.
    while alive(note.read_text()):
        time.sleep(0.01)


def alive(pid: str) -> bool:
    try:
        return "\nState:\tZ" not in Path("/proc", pid, "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_says_what_a_helper_wrote_whatever_it_wrote(helper: HelperMaker) -> None:
    result = ask(helper=helper("os.write(2, b'not \\xff UTF-8\\n'); sys.exit(1)"))
    assert result["stderr"] == "not \\xff UTF-8"


def test_a_user_who_kills_the_asking_process_gets_a_failure(helper: HelperMaker) -> None:
    result = ask(helper=helper("os.kill(os.getppid(), 9)"))
    assert result["failed"] is True
    assert result["msg"] == "The process that asked as the user nobody was killed before it answered."


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"user": "no-such-user"}, "user: there is no user 'no-such-user' on this host."),
        ({"user": "4294967296"}, "user: there is no user '4294967296'"),
        ({"user": "-1"}, "user: there is no user '-1'"),
        ({"user": " 65534"}, "user: there is no user ' 65534'"),
        ({"groups": ["+1"]}, "groups: there is no group '+1'"),
        ({"user": ""}, "user: there is no user ''"),
        ({"groups": ["no-such-group"]}, "groups: there is no group 'no-such-group' on this host."),
        ({"groups": ["a\0b"]}, "groups: there is no group 'a\\x00b'"),
        ({"bridge": ""}, "bridge: '' is no name of a bridge: it is empty."),
        ({"bridge": "sixteen-bytes-16"}, "16 bytes"),
        ({"bridge": "br0:"}, "bridge: 'br0:' is no name"),
        ({"bridge": "br0\n"}, "blank or control byte"),
        ({"helper": "qemu-bridge-helper"}, "helper: 'qemu-bridge-helper' is not an absolute path."),
        ({"helper": "/a\0b"}, "is not an absolute path."),
        ({"timeout": 0}, "timeout: 0.0 is not a number of seconds up to 3600."),
        ({"timeout": float("nan")}, "timeout: nan"),
        ({"timeout": 1e9}, "timeout: 1000000000.0"),
    ],
)
def test_bad_options_are_failures(options: dict[str, Any], why: str) -> None:
    result = ask(**options)
    assert result["failed"] is True
    assert why in result["msg"]


@pytest.mark.parametrize(
    ("operation", "value", "why"),
    [
        (PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, "could become root again"),
        (PR_SET_KEEPCAPS, 1, "keeps capabilities (CapPrm "),
    ],
)
def test_refuses_to_ask_where_a_change_of_user_leaves_rights(
    helper: HelperMaker, operation: int, value: int, why: str
) -> None:
    def main() -> None:
        assert ctypes.CDLL(None).prctl(operation, value, 0, 0, 0) == 0
        bridge_helper_info.main()

    result = run_module(main, {"helper": helper("pass")})
    assert result["failed"] is True
    assert why in result["msg"]
