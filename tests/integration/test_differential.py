# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our helper beside the one of QEMU that the distribution ships: same policies, same names, same kernel.

One law: what ours grants, QEMU's grants. On well-formed policies and names both decide alike, and as the rules say;
what is well-formed is told here by a grammar that writes such files, not by a parser that reads them.

QEMU's helper opens /dev/net/tun right after the ACL's decision. Where that node is missing, its complaint about it is a
grant, seen without the 15 ms in which the kernel closes a tap: so go the thousands of cases, ours in process. Some
hundreds go all the way to a tap, through both programs as they are installed.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import acl
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd.errors import Refusal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.install import LAUNCHER, POLICY, install
from support.namespaces import Sandbox, ip
from support.qemu import BRIDGE_HELPER, Debian, lay
from support.user import User, take_tap

UID = 60001
# A group that the user is in, and one that the user is not in.
MEMBER = 60100
STRANGER = 60101

# Devices of these names exist where taps are handed over. The last has no bytes to spare.
BRIDGES = [b"br0", b"br1", b"br-lan.100", b"br\xe9", b"a23456789012345"]
# `none` has no device; `all` can't have one (the kernel keeps it for sysctl).
NAMES = [*BRIDGES, b"all", b"none"]
# What a caller may ask for and an administrator may write, none of it the name of a bridge.
HOSTILE_NAMES = [
    b"",
    b".",
    b"..",
    b"br0:",
    b"br0:1",
    b":br0",
    b"br%d",
    b"br0%",
    b"br0/",
    b"/br0",
    b"../br0",
    b"br0 ",
    b" br0",
    b"br0\t",
    b"br0\r",
    b"br0\v",
    b"br0\x1f",
    b"br0\x85",
    b"br0\xa0",
    b"\xef\xbb\xbfbr0",
    b"br0 # comment",
    b"br*",
    b"BR0",
    b"br0,br1",
    b"uplink",  # alternative name of br0
    b"alternative-name-of-br1",
    b"a23456789012345x",
    b"ve0",  # a device that is no bridge
    b"lo",
    b"x" * 300,
]

# What QEMU's helper takes for blank inside a line: no vertical tab.
BLANKS = b" \t\r\f"
# Bytes that the kernel, a shell, bytes.strip(), str.isspace() or str.splitlines() treat in a way of their own.
HOSTILE_BYTES = [
    *(bytes([byte]) for byte in b"\0\t\n\v\f\r\x1c\x1d\x1e\x1f \x7f\x85\xa0#%/:.\\"),
    b"\xef\xbb\xbf",
    b"\xc2\x85",
    b"\xc2\xa0",
    b"\xe2\x80\xa8",
    b"\r\n",
]
# fgets(line, 4096) takes no more of a line than this.
LONGEST_LINE = 4094

# Readable by the user or not; mode, group, directory. The directory `closed` is root's alone.
ACCESS = [
    (True, 0o644, 0, "open"),
    (True, 0o640, MEMBER, "open"),
    (False, 0o640, STRANGER, "open"),
    (False, 0o600, 0, "open"),
    (False, 0o644, 0, "closed"),
]
# Of lines, by how often a generated file has them.
KINDS = ["rule", "rule", "rule", "comment", "blank", "include"]
# What a hostile policy includes: some files that exist, some that don't, one that is no file, and itself.
INCLUDES = [
    b"/etc/qemu/open/a.conf",
    b"/etc/qemu/open/b.conf",
    b"/etc/qemu/open/secret.conf",
    b"/etc/qemu/closed/c.conf",
    b"/etc/qemu/open/../open/a.conf",
    b"//etc//qemu/./open/b.conf",
    b"/etc/qemu/open/link.conf",
    b"/etc/qemu/open/loop.conf",
    b"/etc/qemu/open/a.conf/",
    b"/etc/qemu/open/a.conf\xa0",
    b"/etc/qemu/open/missing.conf",
    b"/etc/qemu/open",
    b"/etc/qemu/bridge.conf",
    b"open/a.conf",
    b"./bridge.conf",
    b"/dev/null",
    b"",
]


class File(NamedTuple):
    """One policy file."""

    content: bytes
    mode: int = 0o644
    group: int = 0


class Policy(NamedTuple):
    """Files by their path below /etc/qemu and, of a well-formed policy, the rules that count for the user."""

    files: dict[str, File]
    rules: frozenset[tuple[bytes, bytes]] | None = None

    def grants(self, name: bytes) -> bool:
        """What the rules mean: there is an allow that matches, and no such deny."""
        assert self.rules is not None
        return {command for command, subject in self.rules if subject in (name, b"all")} == {b"allow"}

    def write(self) -> None:
        """Make these the only files of /etc/qemu."""
        for directory in ("open", "closed"):
            for path in (POLICY.parent / directory).iterdir():
                path.unlink()
        for name, file in self.files.items():
            path = POLICY.parent / name
            path.write_bytes(file.content)
            os.chown(path, 0, file.group)
            path.chmod(file.mode)
        (POLICY.parent / "open/link.conf").symlink_to("../open/b.conf")
        (POLICY.parent / "open/loop.conf").symlink_to("loop.conf")


def blanks(space: bool = True) -> st.SearchStrategy[bytes]:
    """A few blanks, or none."""
    some = [byte.to_bytes(1, "big") for byte in BLANKS if space or byte != 0x20]
    return st.sampled_from([b"", b"", *some, *(first + second for first in some for second in some)])


def names() -> st.SearchStrategy[bytes]:
    """Names that the kernel takes: mostly those above, so that rules and questions meet."""
    letters = st.lists(st.sampled_from(b"abrxyzABZ0189._-@+#~!\xa1\xc3\xff"), min_size=1, max_size=15)
    free = letters.map(bytes).filter(lambda name: name not in (b".", b".."))
    return st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(BRIDGES[:2]), free)


def openings() -> st.SearchStrategy[bytes]:
    """What a policy allows to begin with: where nothing is granted, nothing is compared."""
    return st.sampled_from([b"all", b"all", b"br0", b"none", b"none"])


@st.composite
def rule_lines(draw: st.DrawFn, command: bytes, argument: bytes) -> bytes:
    """A command and its argument, parted by a space, or by a tab where no space follows in the line."""
    lead = draw(blanks())
    space = draw(st.sampled_from([True, True, True, False]))
    return lead + command + (b" " if space else b"\t") + draw(blanks(space)) + argument + draw(blanks(space))


def comments() -> st.SearchStrategy[bytes]:
    """A comment: anything but a line's end and NUL."""
    harmless = [stray for stray in HOSTILE_BYTES if stray not in (b"\0", b"\n", b"\r\n")]
    text = st.lists(st.sampled_from([*harmless, b"allow br0", b"deny all"]), max_size=3).map(b"".join)
    return st.one_of(text, text, st.just(b"x" * LONGEST_LINE)).map(lambda text: b"#" + text)


@st.composite
def well_formed(draw: st.DrawFn) -> Policy:
    """A policy as a careful administrator writes it, with included files, some of them closed to the user."""
    files: dict[str, File] = {}
    opening = draw(openings())
    rules = {(b"allow", opening)}

    def fill(path: str, depth: int, counts: bool) -> bytes:
        end = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
        lines = [b"allow " + opening] if depth == 1 else []
        for kind in draw(st.lists(st.sampled_from(KINDS), max_size=5)):
            if kind == "rule":
                command = draw(st.sampled_from([b"allow", b"allow", b"deny"]))
                subject = draw(names())
                lines.append(draw(rule_lines(command, subject)))
                if counts:
                    rules.add((command, subject))
            elif kind == "comment":
                # To a helper, the carriage return belongs to the line.
                lines.append((draw(blanks()) + draw(comments()))[: LONGEST_LINE + 1 - len(end)])
            elif kind == "blank":
                lines.append(draw(blanks()))
            elif depth < 4 and len(files) < 8:
                readable, mode, group, directory = draw(st.sampled_from(ACCESS))
                included = f"{directory}/{len(files)}.conf"
                # Before its content: the number is taken.
                files[included] = File(b"")
                files[included] = File(fill(included, depth + 1, counts and readable), mode, group)
                lines.append(draw(rule_lines(b"include", os.fsencode(POLICY.parent / included))))
        return end.join(lines) + draw(st.sampled_from([b"", end]))

    files[POLICY.name] = File(fill(POLICY.name, 1, True))
    return Policy(files, frozenset(rules))


@st.composite
def hostile_lines(draw: st.DrawFn) -> bytes:
    """A line as an attacker, an editor on another system or a tired administrator writes it."""
    if draw(st.booleans()):
        command = draw(st.sampled_from([b"allow", b"deny", b"include"]))
        return draw(rule_lines(command, draw(st.sampled_from(INCLUDES[:4]) if command == b"include" else names())))
    stray = st.one_of(st.just(b""), st.just(b""), st.just(b""), st.sampled_from(HOSTILE_BYTES))
    command = draw(st.sampled_from([b"allow", b"allow", b"deny", b"include", b"Allow", b"permit", b"#", b""]))
    separator = draw(st.one_of(st.just(b" "), st.just(b" "), st.just(b"\t"), st.sampled_from(HOSTILE_BYTES)))
    argument = draw(st.sampled_from(INCLUDES if command == b"include" else [*NAMES, *NAMES, *HOSTILE_NAMES]))
    line = draw(stray) + command + draw(stray) + separator + draw(stray) + argument + draw(stray)
    if draw(st.integers(0, 7)) == 0:
        # Around the length where QEMU's helper cuts a line and takes the rest of it for another one.
        filler = draw(st.sampled_from([b"#", b" ", b"allow br0"]))
        line = filler.ljust(draw(st.integers(LONGEST_LINE - 2, LONGEST_LINE + 3)), b" ") + line
    return line


@st.composite
def damaged(draw: st.DrawFn) -> Policy:
    """A well-formed policy with a byte or two put where they may not belong."""
    files = dict(draw(well_formed()).files)
    path = draw(st.sampled_from(sorted(files)))
    content = files[path].content
    for _number in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.sampled_from(HOSTILE_BYTES)) + content[at + draw(st.integers(0, 1)) :]
    files[path] = files[path]._replace(content=content)
    return Policy(files)


@st.composite
def hostile(draw: st.DrawFn) -> Policy:
    """A policy of hostile lines, in files that anyone might have written."""
    end = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\0\n"]))
    modes = st.sampled_from([*[0o644] * 7, 0o664, 0o646, 0o4755])
    texts = [end.join(draw(st.lists(hostile_lines(), max_size=most))) for most in (3, 2, 2)]
    return Policy(
        {
            POLICY.name: File(b"allow " + draw(openings()) + b"\n" + texts[0], draw(modes)),
            "open/a.conf": File(texts[1], draw(modes)),
            "open/b.conf": File(texts[2]),
            "open/secret.conf": File(b"allow all\n", 0o640, STRANGER),
            "closed/c.conf": File(b"allow all\ndeny br0\n"),
        }
    )


def questions() -> st.SearchStrategy[list[bytes]]:
    """Names to ask for."""
    return st.lists(st.one_of(names(), names(), st.sampled_from(HOSTILE_NAMES)), min_size=5, max_size=6, unique=True)


def examples(number: int) -> settings:
    """The same examples at every run of the same test: a change that fails here has broken something."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Answer(NamedTuple):
    """What a helper says to one question."""

    granted: bool
    text: str


def ask(asked: list[bytes]) -> list[tuple[Answer, Answer]]:
    """For each name, the decision of ours in process and that of QEMU's helper; there is no /dev/net/tun."""
    return [(_our_decision(name), _their_decision(name)) for name in asked]


def _our_decision(name: bytes) -> Answer:
    fault = acl.name_fault(name)
    if fault:
        return Answer(False, fault)
    try:
        decision = acl.decide(name)
    except (Refusal, OSError) as error:
        return Answer(False, str(error))
    return Answer(decision.granted, decision.reason)


def _their_decision(name: bytes) -> Answer:
    attempt = take_tap(BRIDGE_HELPER, name)
    text = attempt.stderr.decode("latin-1")
    last = text.splitlines()[-1] if text else ""
    assert attempt.status == 1 and attempt.tap is None, attempt
    if last == "failed to open /dev/net/tun: No such file or directory":
        return Answer(True, last)
    refusals = ("access denied by acl file", f"failed to parse default acl file `{POLICY}'")
    assert last in refusals or last.startswith("name `"), attempt
    return Answer(False, text)


class Taken(NamedTuple):
    """Where the tap is that a helper handed over."""

    bridge: bytes | None
    """The bridge that has it as a port; None where no tap came."""
    text: str


def take(asked: bytes) -> tuple[Taken, Taken]:
    """Ask ours and QEMU's helper, both as they are installed, for a tap on the bridge `asked`."""
    return _taken(LAUNCHER, asked), _taken(BRIDGE_HELPER, asked)


def _taken(helper: Path, asked: bytes) -> Taken:
    attempt = take_tap(helper, asked)
    text = attempt.stderr.decode("latin-1")
    if attempt.tap is None:
        assert attempt.status == 1 and text, attempt
        return Taken(None, text)
    assert attempt.status == 0 and not attempt.surplus, attempt
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{attempt.tap}").read_text().splitlines())
        master = os.readlink(os.fsencode(f"/sys/class/net/{fields['iff'].strip()}/master"))
        return Taken(os.path.basename(master), text)
    finally:
        os.close(attempt.tap)


@pytest.fixture
def user(debian: Debian, sandbox: Sandbox) -> Iterator[User]:
    """An unprivileged user on a machine with both helpers, and bridges of the names above."""
    install(sandbox)
    lay(sandbox, debian)
    for directory, mode in (("open", 0o755), ("closed", 0o700)):
        (POLICY.parent / directory).mkdir(mode=mode)
    for bridge in BRIDGES:
        ip("link", "add", os.fsdecode(bridge), "type", "bridge")
    ip("link", "property", "add", "dev", "br0", "altname", "uplink")
    ip("link", "property", "add", "dev", "br1", "altname", "alternative-name-of-br1")
    ip("link", "add", "ve0", "type", "veth", "peer", "name", "ve1")
    someone = User(UID, [MEMBER])
    # QEMU's helper follows a circle of includes until it has no descriptors left.
    someone.call(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))
    try:
        yield someone
    finally:
        someone.close()


def test_on_well_formed_input_both_decide_as_the_rules_say(user: User, sandbox: Sandbox) -> None:
    """Grammar, meaning, ours and theirs: four accounts of one decision."""
    sandbox.make_tun(None)
    seen: Counter[bool] = Counter()

    @examples(400)
    @given(well_formed(), st.lists(names(), min_size=5, max_size=6, unique=True))
    def compare(policy: Policy, asked: list[bytes]) -> None:
        policy.write()
        for name, (ours, theirs) in zip(asked, user.call(ask, asked), strict=True):
            meant = policy.grants(name)
            assert (ours.granted, theirs.granted) == (meant, meant), (name, ours, theirs)
            seen[meant] += 1

    compare()
    assert min(seen[True], seen[False]) > 300, seen


def test_what_ours_grants_qemus_grants(user: User, sandbox: Sandbox) -> None:
    """The law, on input that is broken, hostile or both."""
    sandbox.make_tun(None)
    seen: Counter[tuple[bool, bool]] = Counter()

    @examples(600)
    @given(st.one_of(damaged(), hostile()), questions())
    def compare(policy: Policy, asked: list[bytes]) -> None:
        policy.write()
        for name, (ours, theirs) in zip(asked, user.call(ask, asked), strict=True):
            assert theirs.granted or not ours.granted, (name, ours, theirs)
            seen[ours.granted, theirs.granted] += 1

    compare()
    # Neither a helper that grants nothing nor one that refuses nothing more than QEMU's would show the law.
    assert min(seen[True, True], seen[False, True], seen[False, False]) > 100, seen


@pytest.mark.parametrize("command", [b"allow", b"deny"])
def test_one_stray_byte_in_every_place(user: User, sandbox: Sandbox, command: bytes) -> None:
    """The law again, on the nearest neighbours of a good line, and of the beginnings of one."""
    sandbox.make_tun(None)
    lines = set()
    for words in ([command, b" ", b"br0"], [command, b"\t", b"br0"], [command, b" "], [command]):
        for place in range(len(words) + 1):
            for stray in (b"", *HOSTILE_BYTES, b" # and", b" br1"):
                line = b"".join([*words[:place], stray, *words[place:]])
                lines.update(line + end for end in (b"", b" ", b"\n"))
    seen: Counter[tuple[bool, bool]] = Counter()
    for line in sorted(lines):
        # A line of its own, and one after a grant that it may only take away.
        for opening in (b"", b"allow all\n"):
            Policy({POLICY.name: File(opening + line)}).write()
            ((ours, theirs),) = user.call(ask, [b"br0"])
            assert theirs.granted or not ours.granted, (opening + line, ours, theirs)
            seen[ours.granted, theirs.granted] += 1
    assert min(seen[True, True], seen[False, False]) > 20, seen


@pytest.mark.parametrize("filler", [b"#", b" ", b"allow br1"])
def test_around_the_longest_line(user: User, sandbox: Sandbox, filler: bytes) -> None:
    """QEMU's helper takes what is over 4095 bytes, the line's end included, for a line of its own."""
    sandbox.make_tun(None)
    for tail in (b"", b"allow br0", b"deny br0", b"\r"):
        for length in range(LONGEST_LINE - 12, LONGEST_LINE + 4):
            for opening in (b"", b"allow all\n"):
                Policy({POLICY.name: File(opening + filler.ljust(length, b" ") + tail + b"\nallow none\n")}).write()
                ((ours, theirs),) = user.call(ask, [b"br0"])
                assert theirs.granted or not ours.granted, (length, tail, ours, theirs)


def test_generated_policies_hand_over_alike(user: User) -> None:
    """Both programs, whole and installed, to a tap on a bridge."""
    seen: Counter[tuple[bool, bool]] = Counter()

    @examples(200)
    @given(
        st.one_of(well_formed(), well_formed(), damaged(), hostile()),
        st.one_of(st.sampled_from(BRIDGES), st.sampled_from(BRIDGES[:2]), st.sampled_from(HOSTILE_NAMES)),
    )
    def compare(policy: Policy, name: bytes) -> None:
        policy.write()
        ours, theirs = user.call(take, name)
        if ours.bridge is not None:
            assert ours.bridge == theirs.bridge == name, (ours, theirs)
        if policy.rules is not None and name in BRIDGES:
            meant = name if policy.grants(name) else None
            assert (ours.bridge, theirs.bridge) == (meant, meant), (ours, theirs)
        seen[ours.bridge is not None, theirs.bridge is not None] += 1

    compare()
    assert min(seen[True, True], seen[False, False]) > 20, seen


@pytest.mark.parametrize("denied", [None, b"br0", b"br1"])
def test_no_spelling_of_a_name_reaches_a_denied_bridge(user: User, denied: bytes | None) -> None:
    """Where all is allowed but one bridge, only the names of the other bridges get a tap, each its own."""
    rules = b"allow all\n" + (b"deny " + denied + b"\n" if denied else b"")
    Policy({POLICY.name: File(rules)}).write()
    reached = {name: user.call(take, name) for name in [*NAMES, *HOSTILE_NAMES]}
    for name, (ours, theirs) in reached.items():
        meant = name if name in BRIDGES and name != denied else None
        assert ours.bridge == meant, (name, ours)
        assert ours.bridge in (None, theirs.bridge), (name, ours, theirs)
    # That this can be seen at all: QEMU's helper takes these for other names than the kernel does.
    if denied == b"br0":
        assert {name for name, (_ours, theirs) in reached.items() if theirs.bridge == denied} >= {b"br0:", b"uplink"}
