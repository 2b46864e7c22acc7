# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper behind its launcher: argument forms, refusals, and what is there before the descriptor arrives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from support.install import LIBRARY, POLICY, install_without_launcher, write_policy
from support.namespaces import Sandbox, ip

# As the launcher starts it; as root, the capability is there without one.
COMMAND = [f"{LIBRARY}/python3", "-I", "-S", "-B", f"{LIBRARY}/qemu-bridge-helper.py"]
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
USAGE = """\
Usage: qemu-bridge-helper [--use-vnet] --br=bridge --fd=unixfd
       qemu-bridge-helper [--use-vnet] bridge unixfd
       qemu-bridge-helper --check --br=bridge
"""


class Result(NamedTuple):
    """What a start of the helper came to."""

    status: int
    stdout: str
    stderr: str
    link: dict[str, Any] | None
    """What `ip` showed of the tap that was handed over."""


@pytest.fixture
def host(sandbox: Sandbox) -> Iterator[Sandbox]:
    """The library installed, br0 up, and at the end no tap left."""
    install_without_launcher(sandbox)
    ip("link", "add", "br0", "address", "02:00:00:00:00:01", "type", "bridge")
    ip("link", "set", "br0", "up")
    yield sandbox
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith("tap")]


def start(*words: str | bytes, kind: int = socket.SOCK_STREAM) -> Result:
    """Start the helper with these arguments, `FD` in them standing for the socket, and take what it sends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    number = str(theirs.fileno()).encode()
    arguments = [(word.encode() if isinstance(word, str) else word).replace(b"FD", number) for word in words]
    with ours, theirs:
        done = subprocess.run(
            [*COMMAND, *arguments], env=ENVIRONMENT, pass_fds=[theirs.fileno()], capture_output=True, check=False
        )
        theirs.close()
        ours.setblocking(False)
        link = None
        try:
            data, descriptors, _flags, _address = socket.recv_fds(ours, 16, 4)
        except BlockingIOError:
            data, descriptors = b"", []
        if descriptors:
            assert (data, len(descriptors)) == (b"\0", 1)
            (link,) = json.loads(ip("-json", "-details", "link", "show", "master", "br0"))
            os.close(descriptors[0])
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode(), link)


@pytest.mark.parametrize(
    ("words", "vnet_hdr"),
    [
        (["--use-vnet", "--fd=FD", "--br=br0"], True),  # QEMU
        (["--use-vnet", "--br=br0", "--fd=FD"], True),  # libvirt
        (["--br=br0", "--fd=FD"], False),  # libvirt, a model without vnet headers
        (["--br=br0", "--fd=FD", "--vnet-hdr"], True),
        (["--use-vnet", "br0", "FD"], True),  # 2011
        (["br0", "FD"], False),
        (["br0", "--use-vnet", "FD"], True),
        (["--br=br9", "--fd=0", "--fd=FD", "--br=br0"], False),  # QEMU's helper: the last one counts
    ],
)
def test_argument_forms(host: Sandbox, words: list[str], vnet_hdr: bool) -> None:
    result = start(*words)
    assert result[:3] == (0, "", "")
    assert result.link
    assert result.link["linkinfo"]["info_data"]["vnet_hdr"] is vnet_hdr


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_tap(host: Sandbox, kind: int) -> None:
    """What QEMU finds: attached, up, not persistent, a MAC that the bridge does not take over; and no IPv6."""
    ip("link", "set", "br0", "mtu", "1400")
    link = start("--fd=FD", "--br=br0", kind=kind).link
    assert link
    assert (link["ifname"], link["mtu"], link["master"]) == ("tap0", 1400, "br0")
    assert "UP" in link["flags"]
    assert link["address"].startswith("fe:")
    assert link["inet6_addr_gen_mode"] == "none"
    assert link["linkinfo"]["info_data"]["persist"] is False
    assert link["linkinfo"]["info_data"]["pi"] is False
    (bridge,) = json.loads(ip("-json", "link", "show", "dev", "br0"))
    assert (bridge["address"], bridge["mtu"]) == ("02:00:00:00:00:01", 1400)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "no bridge is given, `--br=bridge' is missing"),
        (["--help"], "unknown argument `--help'"),
        (["--br", "br0"], "unknown argument `--br'"),
        (["--br=br0"], "no socket is given, `--fd=unixfd' is missing"),
        (["--fd=FD"], "no bridge is given, `--br=bridge' is missing"),
        (["br0"], "unknown argument `br0'"),
        (["br0", "FD", "more"], "unknown argument `br0'"),
        (["--br=br0", "FD"], "unknown argument"),
        (["--br=br0", "--fd=abc"], "`abc' is no file descriptor, a decimal number is needed"),
        (["--br=br0", "--fd="], "`' is no file descriptor"),
        (["--br=br0", "--fd=-1"], "`-1' is no file descriptor"),
        (["--br=br0", "--fd= 3"], "` 3' is no file descriptor"),
        (["--br=br0", "--fd=3_0"], "`3_0' is no file descriptor"),
        (["--br=br0", "--fd=99999999999999999999"], "is no file descriptor"),
        (["--check", "--br=br0", "--fd=FD"], "`--check' makes no tap, so `--fd=' has no use beside it"),
        (["--\x1b[2J"], "unknown argument `--\\x1b[2J'"),
        ([b"--\xff"], "unknown argument `--\\xff'"),
    ],
)
def test_unusable_arguments(host: Sandbox, words: list[str | bytes], why: str) -> None:
    result = start(*words)
    assert (result.status, result.stdout, result.link) == (1, "", None)
    assert result.stderr.startswith("qemu-bridge-helper: ")
    assert why in result.stderr.splitlines()[0]
    assert result.stderr.endswith(USAGE)


def refusal(*words: str | bytes) -> str:
    """The one line by which a start is refused."""
    result = start(*words)
    assert (result.status, result.stdout, result.link) == (1, "", None)
    (line,) = result.stderr.splitlines()
    assert line.startswith("qemu-bridge-helper: ")
    return line


@pytest.mark.parametrize("name", [b"", b"br0:", b"br%d", b"a/b", b".", b"..", b"br 0", b"br0\n", b"x" * 16, b"br0\x7f"])
def test_what_is_no_name(host: Sandbox, name: bytes) -> None:
    """QEMU's helper grants `br0:` under `deny br0` and cuts it to br0 in the kernel."""
    write_policy("allow all\ndeny br0\n")
    assert "is no bridge name: it" in refusal(b"--br=" + name, "--fd=FD")


def test_bridge_that_is_missing(host: Sandbox) -> None:
    write_policy("allow all\n")
    assert "bridge `br9' does not exist here: No such device (ENODEV); an admin" in refusal("--br=br9", "--fd=FD")


def test_what_is_no_bridge(host: Sandbox) -> None:
    write_policy("allow all\n")
    ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    assert "`lo' is no bridge but a device without a kind" in refusal("--br=lo", "--fd=FD")
    assert "`veth0' is no bridge but of kind `veth'" in refusal("--br=veth0", "--fd=FD")


def test_alternative_name(host: Sandbox) -> None:
    """QEMU's helper takes it under `deny br0`."""
    write_policy("allow all\ndeny br0\n")
    ip("link", "property", "add", "dev", "br0", "altname", "uplink")
    assert "`uplink' is an alternative name of `br0'" in refusal("--br=uplink", "--fd=FD")


def test_acl_refusals(host: Sandbox) -> None:
    """The words that users search for, then why."""
    assert (
        "access denied by acl file: bridge `br1' for uid 0, groups 0: no `allow br1' and no `allow all' in "
        "/etc/qemu/bridge.conf or what it includes; an administrator can grant it in /etc/qemu/bridge.conf"
    ) in refusal("--br=br1", "--fd=FD")
    write_policy("allow br0\npermit br1\n")
    assert (
        "failed to parse default acl file `/etc/qemu/bridge.conf': /etc/qemu/bridge.conf:2: unknown command `permit'"
    ) in refusal("--br=br0", "--fd=FD")
    POLICY.unlink()
    assert "cannot read `/etc/qemu/bridge.conf': No such file or directory (ENOENT)" in refusal("--br=br0", "--fd=FD")


def test_denied_before_the_kernel_hears_the_name(host: Sandbox) -> None:
    """Who may not have a bridge does not learn whether it exists."""
    assert "access denied by acl file" in refusal("--br=lo", "--fd=FD")
    assert "access denied by acl file" in refusal("--br=br9", "--fd=FD")


@pytest.mark.parametrize(
    ("descriptor", "why"),
    [("0", "(ENOTSOCK)"), ("3", "(EBADF)"), ("4", "(EBADF)"), ("99", "(EBADF)"), ("999999999", "(EBADF)")],
)
def test_descriptors_that_are_none(host: Sandbox, descriptor: str, why: str) -> None:
    """3 and 4 are the first that the helper itself would open: QEMU's writes to its own control socket."""
    done = subprocess.run(
        [*COMMAND, "--br=br0", f"--fd={descriptor}"],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"file descriptor {descriptor} cannot take a tap: " in done.stderr
    assert why in done.stderr


def test_peer_that_is_gone(host: Sandbox) -> None:
    """QEMU's helper dies of SIGPIPE without a word."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        words = ["--br=br0", f"--fd={theirs.fileno()}"]
        done = subprocess.run([*COMMAND, *words], pass_fds=[theirs.fileno()], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"cannot take a tap: Broken pipe (EPIPE)" in done.stderr


@pytest.mark.parametrize(("mode", "why"), [(None, "No such file or directory (ENOENT); the kernel's tun module")])
def test_no_tun_device(host: Sandbox, mode: int | None, why: str) -> None:
    host.make_tun(mode)
    assert f"failed to open /dev/net/tun: {why}" in refusal("--br=br0", "--fd=FD")


def test_bridge_that_is_full(host: Sandbox) -> None:
    """A bridge takes 1023 ports (BR_MAX_PORTS)."""
    batch = "".join(f"link add v{n} type veth peer name w{n}\nlink set v{n} master br0\n" for n in range(1, 1024))
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    line = refusal("--br=br0", "--fd=FD")
    assert "failed to add interface `tap0' to bridge `br0': Exchange full (EXFULL)" in line
    assert "the bridge has all its 1023 ports" in line


def full_pipe() -> tuple[int, int]:
    """A pipe that holds whoever writes to it until it is read."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    return read, write


def test_stderr_that_nobody_reads(host: Sandbox) -> None:
    """The tap is closed before the sentence: a full pipe holds the helper, and no tap with it."""
    read, write = full_pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        # The peer of a datagram socket may go unseen until the send.
        ours.close()
        helper = subprocess.Popen(
            [*COMMAND, "--br=br0", f"--fd={theirs.fileno()}"], pass_fds=[theirs.fileno()], stderr=write
        )
    os.close(write)
    with pytest.raises(subprocess.TimeoutExpired):
        helper.wait(1)
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith("tap")]
    with open(read, "rb") as pipe:
        assert b"cannot" in pipe.read()
    assert helper.wait() == 1


def test_socket_stays_open_until_the_sentence_is_out(host: Sandbox) -> None:
    """libvirt kills a helper whose end of the socket is closed, and shows what it has said by then."""
    read, write = full_pipe()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            helper = subprocess.Popen(
                [*COMMAND, "--br=br1", f"--fd={theirs.fileno()}"], pass_fds=[theirs.fileno()], stderr=write
            )
        os.close(write)
        with pytest.raises(subprocess.TimeoutExpired):
            helper.wait(1)
        with pytest.raises(BlockingIOError):
            ours.recv(1, socket.MSG_DONTWAIT)
        with open(read, "rb") as pipe:
            assert b"access denied by acl file" in pipe.read()
        assert ours.recv(1) == b""
    assert helper.wait() == 1


def test_check(host: Sandbox) -> None:
    """The decision on stdout, with file and line, whichever it is; a broken ACL on stderr."""
    assert start("--check", "--br=br0")[:3] == (
        0,
        "granted: bridge `br0' for uid 0, groups 0: allowed by /etc/qemu/bridge.conf:1 (`allow br0')\n",
        "",
    )
    write_policy("allow all\ndeny br0\n")
    assert start("--br=br0", "--check")[:3] == (
        1,
        "denied: bridge `br0' for uid 0, groups 0: denied by /etc/qemu/bridge.conf:2 (`deny br0')\n",
        "",
    )
    write_policy("bogus\n")
    assert "failed to parse default acl file" in refusal("--check", "--br=br0")


def test_broken_installation(host: Sandbox) -> None:
    """A library that does not load ends in a sentence and 1, without a traceback."""
    for path in (LIBRARY / "tapfd/helper.py", *(LIBRARY / "tapfd/__pycache__").glob("helper.*")):
        path.unlink()
    line = refusal("--br=br0", "--fd=FD")
    assert "cannot run: ModuleNotFoundError(\"No module named 'tapfd.helper'\"); the caller's limits must" in line


def test_start_is_lean(host: Sandbox) -> None:
    """Start-up is the product: nothing of the standard library that the interpreter does not load by itself."""
    lean = "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import tapfd.helper; "
    done = subprocess.run(
        [*COMMAND[:4], "-c", lean + "print(*sorted(set(sys.modules) - before))", LIBRARY],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    foreign = {name for name in done.stdout.split() if not name.startswith("tapfd")}
    assert foreign <= {"_socket", "_struct", "errno", "fcntl", "select"}


def test_byte_code_is_used_and_checked(host: Sandbox) -> None:
    """An edit that keeps time and size is still seen; a file that is as it was is not compiled at each start."""
    source = LIBRARY / "tapfd/errors.py"
    text = source.read_text(encoding="utf-8")
    status = source.stat()
    verbose = [COMMAND[0], "-v", *COMMAND[1:], "--check", "--br=br0"]
    done = subprocess.run(verbose, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    loaded = [line for line in done.stderr.splitlines() if line.startswith("# code object from ") and "/tapfd/" in line]
    assert len(loaded) > 5
    assert all(line.endswith(".pyc'") for line in loaded)
    source.write_text(text.replace("0x20 <= byte", "0x30 <= byte"), encoding="utf-8")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.stat().st_size == status.st_size
    assert "unknown argument `\\x2d\\x2dx'" in start("--x").stderr
