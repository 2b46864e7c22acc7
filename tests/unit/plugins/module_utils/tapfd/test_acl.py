# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ACL: every input whose treatment by QEMU's helper is known, and what we make of it."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import acl
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd.errors import Refusal
from support.install import POLICY, write_policy
from support.namespaces import Sandbox
from support.user import User

# `kvm` is a group of alice's and not of bob's.
ALICE, BOB, KVM = 4001, 4002, 4100
GRANTED, DENIED = "granted", "denied"


class Case(NamedTuple):
    """A policy, what QEMU's helper makes of a request for a bridge, and what ours makes of it."""

    policy: bytes
    qemu: str
    ours: str
    bridge: bytes = b"br0"


def compatible(policy: bytes, outcome: str, bridge: bytes = b"br0") -> Case:
    """Both decide alike; a refusal of ours is a part of the sentence it gives."""
    return Case(policy, outcome, outcome, bridge)


def stricter(policy: bytes, qemu: str, ours: str, bridge: bytes = b"br0") -> Case:
    """QEMU's helper reads on, ours refuses the policy, in a sentence that holds `ours`."""
    return Case(policy, qemu, ours, bridge)


# What QEMU's helper does is measured with Debian 12's (7.2); `tests/integration/test_differential.py` runs it again.
CASES = {
    "plain": compatible(b"allow br0\n", GRANTED),
    "indented and spaced": compatible(b"  allow    br0   \n", GRANTED),
    "CRLF": compatible(b"allow br0\r\n", GRANTED),
    "no final newline": compatible(b"allow br0", GRANTED),
    "tab": compatible(b"allow\tbr0\n", GRANTED),
    "form feed before the name": compatible(b"allow \fbr0\n", GRANTED),
    "comment": compatible(b"  # allow br9\nallow br0\n", GRANTED),
    "no line ends at CR": compatible(b"# by hand\rallow br0\n", DENIED),
    "blank lines": compatible(b"\n \t\n\f\r\nallow br0\n\n", GRANTED),
    "15 bytes": compatible(b"allow fifteen-bytes-x\n", GRANTED, b"fifteen-bytes-x"),
    "all": compatible(b"allow all\n", GRANTED),
    "other bridge": compatible(b"allow br1\n", DENIED),
    "no glob": compatible(b"allow br*\n", DENIED),
    "part of a name": compatible(b"allow br\nallow br00\n", DENIED),
    "empty file": compatible(b"", DENIED),
    "deny wins before": compatible(b"deny br0\nallow br0\n", DENIED),
    "deny wins after": compatible(b"allow br0\ndeny br0\n", DENIED),
    "deny all wins": compatible(b"deny all\nallow br0\n", DENIED),
    "deny of another": compatible(b"deny br1\nallow all\n", GRANTED),
    "a bridge named all": compatible(b"allow all\n", GRANTED, b"all"),
    "high bytes": compatible(b"allow br\xc3\xa9\n", GRANTED, b"br\xc3\xa9"),
    "tab, then a space": compatible(b"allow\tbr0 # c\n", ":1: unknown command `allow\\x09br0'"),
    "tab, space at the end": compatible(b"allow\tbr0 \n", ":1: unknown command `allow\\x09br0'"),
    "tab, then space": compatible(b"allow\t br0\n", ":1: unknown command `allow\\x09'"),
    "form feed as separator": compatible(b"allow\fbr0\n", ":1: unknown command `allow\\x0cbr0'"),
    "no name": compatible(b"allow br0\nallow\n", ":2: `allow' with nothing after it"),
    "capital": compatible(b"Allow br0\n", ":1: unknown command `Allow'"),
    "permit": compatible(b"permit br0\n", ":1: unknown command `permit'"),
    "BOM": compatible(b"\xef\xbb\xbfallow br0\n", ":1: unknown command `\\xef\\xbb\\xbfallow'"),
    "leading vertical tab": compatible(b"\vallow br0\n", ":1: unknown command `\\x0ballow'"),
    "leading 0x1c": compatible(b"\x1callow br0\n", ":1: unknown command `\\x1callow'"),
    "leading 0x85": compatible(b"\x85allow br0\n", ":1: unknown command `\\x85allow'"),
    "16 bytes": compatible(b"allow br0\nallow sixteen-bytes-xx\n", ":2: `sixteen-bytes-xx' is no bridge name"),
    "trailing comment": stricter(b"allow br0 # comment\n", DENIED, ":1: `br0 # comment' is no bridge name"),
    "empty name": stricter(b"allow br0\nallow \n", GRANTED, ":2: `allow' with nothing after it"),
    "NUL cuts": stricter(b"allow br0\0junk\n", GRANTED, ":1: the line holds a NUL byte"),
    "NUL in a comment": stricter(b"# a\0\nallow br0\n", GRANTED, ":1: the line holds a NUL byte"),
    "longest line": compatible(b"#" + b"x" * 4093 + b"\nallow br0\n", GRANTED),
    "rule in a long comment": stricter(b"#" + b"x" * 4094 + b"allow br0\n", GRANTED, ":1: the line has 4104 bytes"),
    "colon": stricter(b"allow all\ndeny br0:\n", GRANTED, ":2: `br0:' is no bridge name: it holds `:'"),
    "percent": stricter(b"allow br0\nallow br%d\n", GRANTED, ":2: `br%d' is no bridge name: it holds `%'"),
    "slash": stricter(b"allow br0\nallow a/b\n", GRANTED, ":2: `a/b' is no bridge name: it holds `/'"),
    "dot": stricter(b"allow br0\nallow .\n", GRANTED, ":2: `.' is no bridge name"),
    "dots": stricter(b"allow br0\nallow ..\n", GRANTED, ":2: `..' is no bridge name"),
    "vertical tab after the name": stricter(b"allow br0\v\n", DENIED, "is no bridge name: it holds a blank or control"),
    "included": compatible(b"include /etc/qemu/allow\n", GRANTED),
    "included, path with spaces around": compatible(b"include   /etc/qemu/allow \r\n", GRANTED),
    "included deny": compatible(b"allow br0\ninclude /etc/qemu/deny\n", DENIED),
    "included two deep": compatible(b"include /etc/qemu/nested\n", GRANTED),
    "include that is closed": compatible(b"include /etc/qemu/closed\nallow br0\n", GRANTED),
    "include in a closed directory": compatible(b"include /etc/qemu/closed.d/x\nallow br0\n", GRANTED),
    "include missing": stricter(b"allow br0\ninclude /etc/qemu/none\n", GRANTED, "/none': No such file or directory"),
    "include relative": stricter(b"include allow\nallow br0\n", GRANTED, ":1: `include allow' is no absolute path"),
    "include broken": stricter(b"include /etc/qemu/broken\nallow br0\n", GRANTED, "/broken:2: unknown command `bogus'"),
    "include a directory": stricter(b"include /etc/qemu\nallow br0\n", GRANTED, "`/etc/qemu' is no regular file"),
    "include a fifo": stricter(b"include /etc/qemu/fifo\nallow br0\n", "", "`/etc/qemu/fifo' is no regular file"),
    "include a device": stricter(b"include /dev/zero\nallow br0\n", "", "`/dev/zero' is no regular file"),
    "include through a file": stricter(b"include /etc/qemu/allow/x\nallow br0\n", GRANTED, "Not a directory (ENOTDIR)"),
    "include circle": stricter(b"include /etc/qemu/bridge.conf\nallow br0\n", "", "includes go more than 8 files deep"),
    "include of a user's file": stricter(b"include /etc/qemu/alices\nallow br0\n", GRANTED, "belongs to uid 4001"),
    "include open to a group": stricter(
        b"include /etc/qemu/shared\nallow br0\n", GRANTED, "writable by group or others"
    ),
    "include in an open directory": stricter(
        b"include /etc/qemu/open.d/x\nallow br0\n", GRANTED, "/open.d' is writable"
    ),
    "include by a user's link": stricter(b"include /etc/qemu/alices-link\nallow br0\n", GRANTED, "belongs to uid 4001"),
    "include by root's link": compatible(b"include /etc/qemu/link\n", GRANTED),
    "include by a relative link": compatible(b"include /etc/qemu/../qemu/./relative\n", GRANTED),
    "include by a circle of links": stricter(b"include /etc/qemu/loop\nallow br0\n", GRANTED, "(ELOOP)"),
    "include in a sticky directory": compatible(b"include /etc/qemu/sticky.d/x\n", GRANTED),
}


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    """A sandbox with an /etc/qemu of everything that a policy can include."""
    etc = POLICY.parent
    write_policy("", POLICY)
    write_policy("allow br0\n", etc / "allow")
    write_policy("deny br0\n", etc / "deny")
    write_policy("include /etc/qemu/allow\n", etc / "nested")
    write_policy("deny br0\n", etc / "closed", mode=0o600)
    write_policy("allow br0\nbogus\ndeny br0\n", etc / "broken")
    write_policy("allow br0\n", etc / "shared", mode=0o664)
    write_policy("allow br0\n", etc / "alices")
    os.chown(etc / "alices", ALICE, ALICE)
    for name, mode in (("closed.d", 0o700), ("open.d", 0o777), ("sticky.d", 0o1777)):
        write_policy("allow br0\n", etc / name / "x")
        (etc / name).chmod(mode)
    os.mkfifo(etc / "fifo", 0o644)
    (etc / "link").symlink_to("/etc/qemu/allow")
    (etc / "relative").symlink_to("../qemu/allow")
    (etc / "loop").symlink_to("loop")
    (etc / "alices-link").symlink_to("/etc/qemu/allow")
    os.chown(etc / "alices-link", ALICE, ALICE, follow_symlinks=False)
    return sandbox


def outcome(bridge: bytes) -> str:
    """What ours makes of a request: granted, denied, or the sentence of the refusal."""
    try:
        decision = acl.decide(bridge)
    except Refusal as refusal:
        return str(refusal)
    return GRANTED if decision.granted else DENIED


@pytest.fixture
def alice(box: Sandbox) -> Iterator[User]:
    user = User(ALICE, [KVM])
    yield user
    user.close()


def test_known_inputs(alice: User) -> None:
    """Each row of the table, asked by an unprivileged user."""
    wrong = {}
    for name, case in CASES.items():
        write_policy(case.policy)
        found = alice.call(outcome, case.bridge)
        if found != case.ours and (case.ours in (GRANTED, DENIED) or case.ours not in found):
            wrong[name] = found
    assert wrong == {}


def test_stricter_rows_never_grant() -> None:
    """A row marked stricter refuses in words; one marked compatible says what QEMU's helper says."""
    for name, case in CASES.items():
        if case.ours == GRANTED:
            assert case.qemu == GRANTED, name


def test_reason_names_file_and_line(alice: User) -> None:
    write_policy("# by hand\n\nallow br1\ninclude /etc/qemu/nested\n")
    decision = alice.call(acl.decide, b"br0")
    assert decision.granted
    assert decision.reason == "allowed by /etc/qemu/allow:1 (`allow br0')"
    write_policy("allow br0\ndeny all\n")
    assert alice.call(acl.decide, b"br0").reason == "denied by /etc/qemu/bridge.conf:2 (`deny all')"


def test_passed_over_files_are_named(alice: User) -> None:
    write_policy("include /etc/qemu/closed\n")
    assert "closed to this user, so passed over: /etc/qemu/closed" in alice.call(acl.decide, b"br0").reason


def test_included_for_a_group_only(box: Sandbox, alice: User) -> None:
    """A file that only a group may read grants to its members: the use that includes are for."""
    write_policy("allow br0\n", POLICY.parent / "kvm", mode=0o640, group=KVM)
    write_policy("include /etc/qemu/kvm\n")
    bob = User(BOB)
    assert alice.call(outcome, b"br0") == GRANTED
    assert bob.call(outcome, b"br0") == DENIED
    bob.close()


@pytest.mark.parametrize(
    ("mode", "sentence"), [(0o600, "Permission denied (EACCES)"), (0o666, "`chmod go-w' it"), (None, "(ENOENT)")]
)
def test_unusable_policy_is_refused(alice: User, mode: int | None, sentence: str) -> None:
    """The file itself gets no leave: unreadable, writable by others or missing, nobody is granted anything."""
    if mode is None:
        POLICY.unlink()
    else:
        write_policy("allow br0\n", mode=mode)
    assert sentence in alice.call(outcome, b"br0")


def test_limits(alice: User) -> None:
    etc = POLICY.parent
    for number in range(1, 9):
        write_policy(f"include /etc/qemu/deep{number + 1}\n", etc / f"deep{number}")
    write_policy("allow br0\n", etc / "deep8")
    write_policy("include /etc/qemu/deep2\n")
    assert alice.call(outcome, b"br0") == GRANTED
    write_policy("include /etc/qemu/deep1\n")
    assert alice.call(outcome, b"br0").startswith("/etc/qemu/deep7:1: includes go more than 8 files deep")
    write_policy("include /etc/qemu/allow\n" * 63)
    assert alice.call(outcome, b"br0") == GRANTED
    write_policy("include /etc/qemu/allow\n" * 64)
    assert alice.call(outcome, b"br0").startswith("/etc/qemu/bridge.conf:64: the policy has more than 64 files")
    write_policy(b"#\n" * (1 << 19))
    assert alice.call(outcome, b"br0") == DENIED
    write_policy(b"#\n" * (1 << 19) + b"\n")
    assert alice.call(outcome, b"br0") == "`/etc/qemu/bridge.conf' has 1048577 bytes, 1048576 at most"


def _outcome_with_descriptors(bridge: bytes, free: int) -> str:
    """The outcome in a process that can open `free` more files."""
    spare = [os.dup(0) for _spare in range(free + 1)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare[-1], hard))
    for descriptor in spare:
        os.close(descriptor)
    try:
        return outcome(bridge)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_deny_is_not_lost_for_want_of_descriptors(alice: User) -> None:
    """QEMU's helper keeps each file open while it reads the included ones, and skips those that it can't open."""
    write_policy("allow br0\ninclude /etc/qemu/nested-deny\n")
    write_policy("include /etc/qemu/deny\n", POLICY.parent / "nested-deny")
    assert "Too many open files (EMFILE)" in alice.call(_outcome_with_descriptors, b"br0", 0)
    assert alice.call(_outcome_with_descriptors, b"br0", 1) == DENIED


@pytest.mark.parametrize("directory", ["/etc/qemu", "/etc"])
def test_unsafe_directory_above(alice: User, directory: str) -> None:
    write_policy("allow br0\n")
    assert alice.call(outcome, b"br0") == GRANTED
    os.chmod(directory, 0o775)
    assert alice.call(outcome, b"br0") == f"the directory `{directory}' is writable by group or others, `chmod go-w' it"
    os.chmod(directory, 0o755)
    os.chown(directory, BOB, 0)
    assert alice.call(outcome, b"br0") == f"`{directory}' belongs to uid {BOB} and not to root, `chown root' it"


@pytest.mark.parametrize(
    ("name", "valid"),
    [(b"br0", True), (b"x" * 15, True), (b"br\xc3\xa9", True), (b"-", True), (b"all", True)]
    + [(bytes([byte]) + b"r0", False) for byte in (0, 9, 10, 11, 12, 13, 0x1C, 0x1F, 0x20, 0x25, 0x2F, 0x3A, 0x7F)]
    + [(name, False) for name in (b"", b".", b"..", b"x" * 16, "é".encode() * 8)],
)
def test_name_fault(name: bytes, valid: bool) -> None:
    """What dev_valid_name() of the kernel refuses, and `%`, DEL and the control bytes besides."""
    assert (acl.name_fault(name) == "") is valid


def test_name_fault_against_the_kernel(sandbox: Sandbox) -> None:
    """Each byte within a name: what the kernel takes for a bridge is a name here, but for control bytes and `%`."""
    # <linux/sockios.h>
    siocbraddbr = 0x89A0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for byte in range(1, 256):
            name = b"a" + bytes([byte]) + b"c"
            try:
                fcntl.ioctl(control, siocbraddbr, name + b"\0")
                accepted = True
            except OSError:
                accepted = False
            # The kernel's isspace() knows Latin-1's no-break space: no bridge can have it, so no rule can hurt by it.
            expected = (accepted and byte > 0x20 and byte not in b"%\x7f") or byte == 0xA0
            assert (acl.name_fault(name) == "") is expected, hex(byte)
