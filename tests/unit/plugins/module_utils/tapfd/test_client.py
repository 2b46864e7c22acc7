# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against helpers that do what they should not: a precise exception each, and nothing left over."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import client
from support.namespaces import Sandbox, ip

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
    """After each test no more descriptors, no child, no interface but those of before."""
    before = os.listdir("/proc/self/fd"), os.listdir("/sys/class/net")
    yield
    assert (os.listdir("/proc/self/fd"), os.listdir("/sys/class/net")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_takes_a_tap(helper: Helper) -> None:
    with client.run_helper(helper("send(tap())"), "br0") as tap:
        assert (tap.name, tap.flags, tap.vnet_hdr) == ("tap0", 0x5002, True)
        assert not os.get_inheritable(tap.fd)
        assert "tap0" in ip("link")
    assert tap.fd == -1
    tap.close()


@pytest.mark.parametrize(("vnet_hdr", "expected"), [(True, "--use-vnet --fd=N --br=br0"), (False, "--fd=N --br=br0")])
def test_calls_as_qemu_does(helper: Helper, vnet_hdr: bool, expected: str) -> None:
    """Its order of arguments, and no other descriptor than 0-2 and the socket."""
    path = helper(
        'words = " ".join(sys.argv[1:]).replace(str(number), "N")\n'
        'descriptors = sorted(int(name) for name in os.listdir("/proc/self/fd"))\n'
        "mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        'sys.exit(f"{sys.argv[0]} {words} {descriptors[:3]} {number in descriptors} {len(descriptors)} {mask}")'
    )
    spare = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(spare, True)
    with pytest.raises(client.HelperFailed) as caught:
        client.run_helper(path, "br0", vnet_hdr=vnet_hdr)
    os.close(spare)
    # The fifth, beside 0-2 and the socket, is listdir()'s own.
    assert caught.value.stderr == f"{path} {expected} [0, 1, 2] True 5 set()"


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
        ("/a\0b", "Invalid argument (EINVAL)"),
    ],
)
def test_not_started(sandbox: Sandbox, path: str, words: str) -> None:
    with pytest.raises(client.HelperNotStarted) as caught:
        client.run_helper(path, "br0")
    assert words in str(caught.value)


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
