# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against helpers that do what they should not: a precise exception each, and nothing left over."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import client
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.namespaces import Sandbox, ip

# <signal.h>
SA_NOCLDWAIT = 2
# Since Linux 6.15 it keeps the status of a process that somebody else has reaped.
KEEPS_STATUS = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) >= (6, 15)

# What a false helper has at hand: the socket of --fd, and how to send over it.
PRELUDE = f"""\
#!{sys.executable} -IS
import array, fcntl, os, signal, socket, struct, sys, time
number = int([word for word in sys.argv if word.startswith("--fd=")][0][5:])
channel = socket.socket(fileno=number)
def tap(flags=0x5002, name=b"tap%d"):
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name, flags))
    return tun
def send(*descriptors, data=b"\\0"):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([data], rights)
"""

Helper = Callable[[str], str]


@pytest.fixture
def helper(sandbox: Sandbox, tmp_path: Path) -> Helper:
    """Makes a helper of the body of a script."""

    def make(body: str) -> str:
        path = tmp_path / "helper"
        path.write_text(PRELUDE + body + "\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture(autouse=True)
def nothing_left(sandbox: Sandbox) -> Iterator[None]:
    """After each test no more descriptors, no child, no interface but those of before, and the same signal mask."""
    before = state()
    yield
    assert state() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def state() -> tuple[Any, ...]:
    """What nothing may be left in."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return os.listdir("/proc/self/fd"), os.listdir("/sys/class/net"), mask


def test_takes_a_tap(helper: Helper) -> None:
    with client.run_helper(helper("send(tap())"), "br0") as tap:
        assert (tap.name, tap.flags, tap.vnet_hdr) == ("tap0", 0x5002, True)
        assert not os.get_inheritable(tap.fd)
        assert not os.get_blocking(tap.fd)
        assert "tap0" in ip("link")
    assert tap.fd == -1
    tap.close()


@pytest.mark.parametrize(("vnet_hdr", "expected"), [(True, "--use-vnet --fd=N --br=br0"), (False, "--fd=N --br=br0")])
def test_calls_as_qemu_does(helper: Helper, vnet_hdr: bool, expected: str) -> None:
    """Its order of arguments, no other descriptor than 0-2 and the socket, and the caller's signal mask."""
    path = helper(
        'words = " ".join(sys.argv[1:]).replace(str(number), "N")\n'
        'descriptors = sorted(int(name) for name in os.listdir("/proc/self/fd"))\n'
        "mask = [number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]\n"
        'sys.exit(f"{sys.argv[0]} {words} {descriptors[:3]} {number in descriptors} {len(descriptors)} {mask}")'
    )
    spare = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(spare, True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with pytest.raises(client.HelperFailed) as caught:
            client.run_helper(path, "br0", vnet_hdr=vnet_hdr)
        assert signal.pthread_sigmask(signal.SIG_SETMASK, mask) == mask | {signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.close(spare)
    # The fifth, beside 0-2 and the socket, is listdir()'s own.
    assert caught.value.stderr == f"{path} {expected} [0, 1, 2] True 5 ['SIGUSR1']"


def words_of(helper: str, bridge: str) -> list[str]:
    """The arguments with which a helper that prints them as JSON was called, the socket's number aside."""
    with pytest.raises(client.HelperFailed) as caught:
        client.run_helper(helper, bridge)
    words: list[str] = json.loads(caught.value.stderr)
    return ["--fd=N" if word.startswith("--fd=") else word for word in words]


PRINTS_ITS_WORDS = "sys.exit(json.dumps(sys.argv))"


def test_arguments_in_the_string(helper: Helper, tmp_path: Path) -> None:
    """A blank makes it a path and arguments, in the order of QEMU; quotes and backslashes are the shell's."""
    path = helper("import json; " + PRINTS_ITS_WORDS)
    ours = ["--use-vnet", "--fd=N", "--br=br0"]
    assert words_of(f"{path} --verbose\t-x", "br0") == [path, "--verbose", "-x", *ours]
    assert words_of(f"  {path}  ", "br0") == [path, *ours]
    spaced = tmp_path / "a directory"
    spaced.mkdir()
    os.rename(path, spaced / "helper")
    quoted = f"'{spaced}'/helper \"two words\" a\\ blank it\\'s ''"
    assert words_of(quoted, "br0") == [f"{spaced}/helper", "two words", "a blank", "it's", "", *ours]


@pytest.mark.parametrize("own", ["--br=br1", "--bridges --br=br1 --br=br2", "--note=--br="])
def test_a_bridge_in_the_string_is_not_given_again(helper: Helper, own: str) -> None:
    """Like QEMU, which looks for `--br=` anywhere in the text; then nothing is said about the other bridge."""
    path = helper("import json; " + PRINTS_ITS_WORDS)
    assert words_of(f"{path} {own}", "br0") == [path, *own.split(), "--use-vnet", "--fd=N"]
    with pytest.raises(client.HelperNotStarted, match=r"^bridge helper `/nonexistent --br=br1' cannot be executed"):
        client.run_helper("/nonexistent --br=br1", "br0")


@pytest.mark.parametrize(
    "bridge", ["br0;touch {mark}", "br0 --br=br1", "br0\t--fd=0", "$(touch {mark})", "`touch {mark}`", "br0\n", "'", ""]
)
@pytest.mark.parametrize("arguments", ["", " --verbose"])
def test_a_bridge_is_one_word(helper: Helper, tmp_path: Path, bridge: str, arguments: str) -> None:
    """Never a command, as in QEMU, and never two arguments: the helper judges the name."""
    mark = tmp_path / "mark"
    path = helper("import json; " + PRINTS_ITS_WORDS)
    name = bridge.format(mark=mark)
    assert words_of(path + arguments, name) == [path, *arguments.split(), "--use-vnet", "--fd=N", f"--br={name}"]
    assert not mark.exists()


@pytest.mark.parametrize(
    "syntax",
    [
        *("; touch {mark}", "$(touch {mark})", "`touch {mark}`", "| touch {mark}", "& touch {mark}", "> {mark}"),
        *(
            "(touch {mark})",
            "\ntouch {mark}",
            "< {mark}",
            "$HOME",
            "~",
            "*",
            "?",
            "[a-z]",
            "# no more",
            "\r",
            "\x1b[0m",
        ),
    ],
)
@pytest.mark.parametrize("form", ["{path} {syntax}", "{path}{syntax}", "{path} '{syntax}'"])
def test_shell_syntax_is_refused(helper: Helper, tmp_path: Path, syntax: str, form: str) -> None:
    """Quoted or not, with a blank or without: neither run nor handed on."""
    started, mark = tmp_path / "started", tmp_path / "mark"
    path = helper(f"open({str(started)!r}, 'w').close(); send(tap())")
    with pytest.raises(client.HelperNotStarted, match="no shell runs a helper here") as caught:
        client.run_helper(form.format(path=path, syntax=syntax.format(mark=mark)), "br0")
    assert (caught.value.status, started.exists(), mark.exists()) == (None, False, False)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/bin/true 'open", "can't be split into words: No closing quotation"),
        ("/bin/true \\", "can't be split into words: No escaped character"),
        ("qemu-bridge-helper", "does not begin with a path"),
        ("true --br=br0", "does not begin with a path"),
        ("", "does not begin with a path"),
        (" \t", "does not begin with a path"),
    ],
)
def test_no_command(text: str, words: str) -> None:
    with pytest.raises(client.HelperNotStarted, match=words):
        client.run_helper(text, "br0")


def test_refusal_carries_what_the_helper_says(helper: Helper) -> None:
    with pytest.raises(client.HelperFailed) as caught:
        client.run_helper(helper('print("to stdout", flush=True); sys.exit("access denied by acl file")'), "br0")
    assert (caught.value.status, caught.value.stderr) == (1, "to stdout\naccess denied by acl file")
    assert str(caught.value).endswith(
        "asked for a tap on `br0', ended with status 1: to stdout\naccess denied by acl file"
    )


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ("", client.NoDescriptor, 0),
        ("channel.close()", client.NoDescriptor, 0),
        ("send()", client.NoDescriptor, 0),
        ("send(); send(tap())", client.NoDescriptor, 0),
        ("send(tap()); send(tap())", client.SurplusDescriptors, 0),
        ("send(tap(), data=b'x' * 5000); send(); send(0)", client.SurplusDescriptors, 0),
        ("send(tap(), tap())", client.SurplusDescriptors, 0),
        ("send(*[0] * 20)", client.SurplusDescriptors, 0),
        ("send(os.pipe()[0])", client.NotATap, 0),
        ("send(0)", client.NotATap, 0),
        ("send(tap(0x1001, b'tun%d'))", client.NotATap, 0),
        ("send(os.open('/dev/net/tun', os.O_RDWR))", client.NotATap, 0),
        ("send(tap()); sys.exit(5)", client.HelperFailed, 5),
        ("sys.exit(1)", client.HelperFailed, 1),
        ("send(tap()); os.kill(os.getpid(), signal.SIGKILL)", client.HelperFailed, -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", client.HelperFailed, -signal.SIGRTMIN - 1),
    ],
)
def test_misbehaviour(helper: Helper, body: str, kind: type[client.HelperError], status: int) -> None:
    """Every failure of which QEMU makes garbage, or a leak."""
    with pytest.raises(client.HelperError) as caught:
        client.run_helper(helper(body), "br0")
    assert (type(caught.value), caught.value.status) == (kind, status)
    assert "asked for a tap on `br0'" in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        "send(tap()); time.sleep(60)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "while True: send(data=b'x' * 65536)",
        "os.closerange(0, 100); time.sleep(60)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "while True: os.write(1, b'x' * 65536)",
    ],
)
def test_hang(helper: Helper, body: str) -> None:
    """A helper that does not end is killed at the time limit, sent tap or not."""
    with pytest.raises(client.HelperTimeout, match=r"had not ended after 0\.3 seconds and was killed"):
        client.run_helper(helper(body), "br0", timeout=0.3)


def test_flood_of_output(helper: Helper) -> None:
    """It neither fills our memory nor blocks the helper."""
    with client.run_helper(helper("send(tap()); os.write(2, b'x' * 1000000)"), "br0") as tap:
        assert tap.name == "tap0"


def test_grandchild_that_keeps_everything(helper: Helper) -> None:
    """The helper's end counts, not that of the pipes that a process of its own holds on to."""
    path = helper("send(tap())\nif not os.fork():\n    time.sleep(1.5)\n    os._exit(0)")
    began = time.monotonic()
    with client.run_helper(path, "br0", timeout=60) as tap:
        assert tap.name == "tap0"
    assert time.monotonic() - began < 60
    # Its descriptors are not ours to wait for, its interface is: let it go before the fixture looks.
    while "tap0" in os.listdir("/sys/class/net"):
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nonexistent/helper", "No such file or directory (ENOENT); is it installed?"),
        ("/dev/null", "Permission denied (EACCES)"),
        ("/nonexistent/helper --verbose", "No such file or directory (ENOENT); is it installed?"),
    ],
)
def test_not_started(sandbox: Sandbox, path: str, words: str) -> None:
    with pytest.raises(client.HelperNotStarted) as caught:
        client.run_helper(path, "br0")
    assert words in str(caught.value)
    with pytest.raises(client.HelperNotStarted, match="Invalid argument \\(EINVAL\\)"):
        client.run_helper("/bin/true", "a\0b")


def test_no_descriptors_left(helper: Helper) -> None:
    """At our own limit of open files: an error, and no half-made pipes."""
    path = helper("send(tap())")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(8):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
        try:
            with pytest.raises(client.HelperError):
                client.run_helper(path, "br0")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_started_without_descriptors_0_to_2(helper: Helper) -> None:
    """A caller that has closed them: its socket may well be number 0, and must not be overlaid."""
    path = helper("send(tap())")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.closerange(0, 3)
            with client.run_helper(path, "br0") as tap:
                status = 0 if tap.name == "tap0" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_many_at_once(helper: Helper) -> None:
    """All helpers are at work before one is waited for; each gives its own tap."""
    meet = (
        "import glob\nmark = os.path.join(os.path.dirname(sys.argv[0]), 'here-' + str(os.getpid()))\n"
        "open(mark, 'w').close()\n"
        "while len(glob.glob(os.path.dirname(mark) + '/here-*')) < 4: time.sleep(0.01)\n"
        "send(tap(name=sys.argv[-1][5:].encode()))"
    )
    bridges = ["one", "two", "three", "four"]
    taps = client.run_helpers(helper(meet), bridges, timeout=60)
    assert [tap.name for tap in taps] == bridges
    for tap in taps:
        tap.close()


def test_one_of_many_fails(helper: Helper) -> None:
    """The other taps go, and helpers that are still at work are ended."""
    path = helper(
        "bridge = sys.argv[-1][5:]\n"
        "if bridge == 'no': sys.exit('denied')\n"
        "send(tap())\n"
        "if bridge == 'slow': time.sleep(60)"
    )
    began = time.monotonic()
    with pytest.raises(client.HelperFailed, match="asked for a tap on `no', ended with status 1: denied"):
        client.run_helpers(path, ["yes", "no", "slow"], timeout=50)
    assert time.monotonic() - began < 50
    assert client.run_helpers(path, []) == []


# What else in this process looks after children


class Sigaction(ctypes.Structure):
    """struct sigaction of the C library; Python's own calls know no flags."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


@contextlib.contextmanager
def ignoring() -> Iterator[None]:
    """SIGCHLD is ignored: the kernel reaps every child, and no status is left to wait for."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextlib.contextmanager
def not_waiting() -> Iterator[None]:
    """The same by SA_NOCLDWAIT."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = Sigaction()
    assert libc.sigaction(signal.SIGCHLD, None, ctypes.byref(before)) == 0
    action = Sigaction(before.handler, before.mask, SA_NOCLDWAIT, None)
    assert libc.sigaction(signal.SIGCHLD, ctypes.byref(action), None) == 0
    try:
        yield
    finally:
        assert libc.sigaction(signal.SIGCHLD, ctypes.byref(before), None) == 0


@contextlib.contextmanager
def reaping() -> Iterator[None]:
    """Another thread waits for all children, as some event loops do."""
    over = threading.Event()

    def reap() -> None:
        while not over.wait(0.0005):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("others", [ignoring, not_waiting, reaping])
def test_children_are_reaped_by_others(helper: Helper, others: Callable[[], Any]) -> None:
    """A tap is taken and a refusal reported where the helper's exit status never comes to us."""
    path = helper(
        "what = sys.argv[-1]\n"
        "if what != '--br=no': send(tap())\n"
        "if what == '--br=slow': time.sleep(60)\n"
        "sys.exit('denied' if what != '--br=yes' else 0)"
    )
    with others():
        for _turn in range(5):
            with client.run_helper(path, "yes") as tap:
                assert tap.name == "tap0"
            with pytest.raises((client.HelperFailed, client.NoDescriptor), match=r"`no',.*: denied$") as refused:
                client.run_helper(path, "no")
            assert refused.value.status == 1 or not KEEPS_STATUS
            if KEEPS_STATUS:
                with pytest.raises(client.HelperFailed, match="ended with status 1: denied"):
                    client.run_helper(path, "sent and failed")
        with pytest.raises(client.HelperNotStarted, match="ENOENT"):
            client.run_helper("/nonexistent/helper", "br0")
        with pytest.raises(client.HelperTimeout):
            client.run_helper(path, "slow", timeout=0.5)


@pytest.mark.parametrize("others", [contextlib.nullcontext, ignoring])
def test_without_a_descriptor_of_the_helper(
    helper: Helper, monkeypatch: pytest.MonkeyPatch, others: Callable[[], Any]
) -> None:
    """An interpreter that was built for an old kernel knows no pidfd_open(2): then a lost status stays lost."""
    monkeypatch.delattr("posix.pidfd_open")
    path = helper("if sys.argv[-1] == '--br=slow': time.sleep(60)\nif sys.argv[-1] == '--br=yes': send(tap())")
    with others():
        with client.run_helper(path, "yes") as tap:
            assert tap.name == "tap0"
        with pytest.raises(client.NoDescriptor) as caught:
            client.run_helper(path, "no")
        assert caught.value.status == (0 if others is contextlib.nullcontext else None)
        with pytest.raises(client.HelperTimeout):
            client.run_helper(path, "slow", timeout=0.5)


def test_a_handler_of_the_caller_does_not_reap_the_helper(helper: Helper) -> None:
    """SIGCHLD waits until the helper is reaped, and then is handled as ever."""
    path = helper("send(tap()); sys.exit(5)")
    reaped = []

    def reap(_number: int, _frame: object) -> None:
        with contextlib.suppress(ChildProcessError):
            reaped.append(os.waitpid(-1, os.WNOHANG))
        reaped.append((0, 0))

    before = signal.signal(signal.SIGCHLD, reap)
    try:
        with pytest.raises(client.HelperFailed) as caught:
            client.run_helper(path, "br0")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert caught.value.status == 5
    assert reaped == [(0, 0)]


@pytest.mark.parametrize(("body", "number"), [("send(tap())", signal.SIGCHLD), ("time.sleep(60)", signal.SIGALRM)])
def test_a_handler_of_the_caller_raises(helper: Helper, body: str, number: signal.Signals) -> None:
    """After the tap has come, or while it is waited for: nothing stays."""

    def interrupt(_number: int, _frame: object) -> None:
        raise InterruptedError("by the handler")

    path = helper(body)
    before = signal.signal(number, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5 if number == signal.SIGALRM else 0)
        with pytest.raises(InterruptedError, match="by the handler"):
            client.run_helper(path, "br0", timeout=60)
    finally:
        signal.signal(number, before)


# Helpers that nobody would write

FUZZED = """\
import json
script = json.loads(bytes.fromhex(sys.argv[1]))
makers = {
    "tap": tap,
    "tun": lambda: tap(0x1001, b"tun%d"),
    "unset": lambda: os.open("/dev/net/tun", os.O_RDWR),
    "pipe": lambda: os.pipe()[0],
    "null": lambda: os.open("/dev/null", os.O_RDWR),
    "socket": lambda: socket.socketpair()[0].detach(),
    "itself": lambda: number,
}
os.write(2, bytes.fromhex(script["output"]))
for message in script["messages"]:
    ancillary = []
    if message["descriptors"]:
        rights = array.array("i", [makers[kind]() for kind in message["descriptors"]])
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
    for level, kind, payload in message["ancillary"]:
        ancillary.append((level, kind, bytes.fromhex(payload)))
    try:
        channel.sendmsg([bytes.fromhex(message["data"])], ancillary)
    except OSError:
        # What the kernel takes from nobody; then without it.
        channel.sendmsg([bytes.fromhex(message["data"])], ancillary[: bool(message["descriptors"])])
if script["signal"]:
    os.kill(os.getpid(), script["signal"])
os._exit(script["status"])
"""
KINDS = ["tap", "tun", "unset", "pipe", "null", "socket", "itself"]
MESSAGES = st.fixed_dictionaries(
    {
        "data": st.binary(min_size=1, max_size=300).map(bytes.hex),
        "descriptors": st.one_of(
            st.just(["tap"]),
            st.lists(st.sampled_from(KINDS), max_size=3),
            st.lists(st.sampled_from(KINDS), min_size=20, max_size=20),
        ),
        "ancillary": st.lists(
            st.tuples(st.sampled_from([0, 1, 41]), st.integers(0, 10), st.binary(max_size=24).map(bytes.hex)),
            max_size=2,
        ),
    }
)
SCRIPTS = st.fixed_dictionaries(
    {
        "output": st.binary(max_size=200).map(bytes.hex),
        "messages": st.lists(MESSAGES, max_size=3),
        "status": st.sampled_from([0, 0, 0, 1, 255]),
        "signal": st.sampled_from([0, 0, 0, 0, signal.SIGKILL, signal.SIGALRM]),
    }
)


def expected(script: dict[str, Any]) -> type[client.HelperError] | None:
    """What must come of a helper: an error, or None for a tap."""
    if script["status"] or script["signal"]:
        return client.HelperFailed
    sent = [message["descriptors"] for message in script["messages"]]
    if not sent or not sent[0]:
        return client.NoDescriptor
    if sum(map(len, sent)) > 1:
        return client.SurplusDescriptors
    return None if sent[0] == ["tap"] else client.NotATap


def sends(*kinds: str) -> dict[str, Any]:
    """A helper that sends these in one message, and ends well."""
    message = {"data": "00", "descriptors": list(kinds), "ancillary": []}
    return {"output": "", "messages": [message], "status": 0, "signal": 0}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(sends("tap"))
@example(sends(*["tap"] * 2))
@example(sends(*["tap"] * 3))
@example(sends(*["tap"] * 20))
@given(SCRIPTS)
def test_fuzzed(helper: Helper, script: dict[str, Any]) -> None:
    """Random bytes, descriptors and ancillary data in any number of messages, and any end."""
    path = helper(FUZZED)
    before = state()
    wanted = expected(script)
    command = f"{path} {json.dumps(script).encode().hex()}"
    if wanted is None:
        client.run_helper(command, "br0").close()
    else:
        with pytest.raises(client.HelperError) as caught:
            client.run_helper(command, "br0")
        assert caught.type is wanted, caught.value
        assert str(caught.value).isprintable() or script["output"]
    assert state() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
