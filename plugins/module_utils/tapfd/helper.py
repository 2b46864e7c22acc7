# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridge helper: give the caller a tap on a bridge that the ACL grants, as a descriptor over a unix socket.

It runs with the caller's user and groups and with CAP_NET_ADMIN, so its order is its safety: the caller's descriptor is
judged before any other is opened, the ACL before the kernel hears the bridge's name, the bridge before a tap is made.
The tap is not persistent: whatever fails, and whenever this process is killed, closing the descriptor removes it.
"""

import errno
import posix
from _socket import socket

from . import acl, attach, fdpass, tuntap
from .errors import Refusal, because, show, write

USAGE = """\
Usage: qemu-bridge-helper [--use-vnet] --br=bridge --fd=unixfd
       qemu-bridge-helper [--use-vnet] bridge unixfd
       qemu-bridge-helper --check --br=bridge
"""

# Seconds that the peer has to make room for one message; QEMU's socket is empty, so that it never waits.
_SEND_TIMEOUT = 10.0
# The kernel puts the lowest free number for %d.
_TEMPLATE = b"tap%d"
# A bridge without an address of its own takes the lowest one of its ports: 0xfe keeps a tap from giving it.
_FIRST_BYTE = b"\xfe"


class Usage(Exception):
    """The arguments are none of the accepted forms; the message says which one is wrong and why."""


class Arguments:
    """What the command line asks for."""

    def __init__(self, words: list[bytes]) -> None:
        """Read the forms of QEMU, of libvirt, and of the first version of 2011 (`--use-vnet BRIDGE FD`)."""
        self.vnet_hdr = False
        self.check = False
        bridge = channel = None
        positional: list[bytes] = []
        for word in words:
            if word in (b"--use-vnet", b"--vnet-hdr"):
                self.vnet_hdr = True
            elif word == b"--check":
                self.check = True
            elif word.startswith(b"--br="):
                bridge = word[len(b"--br=") :]
            elif word.startswith(b"--fd="):
                channel = word[len(b"--fd=") :]
            elif word.startswith(b"-"):
                raise Usage(f"unknown argument `{show(word)}'")
            else:
                positional.append(word)
        if positional:
            if bridge is not None or channel is not None or self.check or len(positional) != 2:
                raise Usage(f"unknown argument `{show(positional[0])}'")
            bridge, channel = positional
        if bridge is None:
            raise Usage("no bridge is given, `--br=bridge' is missing")
        if self.check and channel is not None:
            raise Usage("`--check' makes no tap, so `--fd=' has no use beside it")
        if not self.check and channel is None:
            raise Usage("no socket is given, `--fd=unixfd' is missing")
        self.bridge = bridge
        self.channel = -1 if channel is None else _descriptor(channel)


def _descriptor(word: bytes) -> int:
    # Not int(): it takes blanks, signs, underscores and digits of other scripts.
    if not word or word.strip(b"0123456789") or len(word) > 9:
        raise Usage(f"`{show(word)}' is no file descriptor, a decimal number is needed")
    return int(word)


def main(words: list[str]) -> int:
    """Run with the command line `words` (without the program's name) and return the exit status, 0 or 1.

    Refusals are one line on stderr. Only `--check` writes to stdout: the decision, whichever it is.
    """
    stream = 2
    message = ""
    status = 1
    try:
        arguments = Arguments([word.encode("utf-8", "surrogateescape") for word in words])
        fault = acl.name_fault(arguments.bridge)
        if fault:
            raise Refusal(f"`{show(arguments.bridge)}' is no bridge name: {fault}")
        if arguments.check:
            decision = _decide(arguments.bridge)
            message = f"{'granted' if decision.granted else 'denied'}: {_verdict(arguments.bridge, decision)}\n"
            stream = 1
            status = 0 if decision.granted else 1
        else:
            _hand_over(arguments)
            status = 0
    except Usage as usage:
        message = f"qemu-bridge-helper: {usage}\n{USAGE}"
    except Refusal as refusal:
        message = f"qemu-bridge-helper: {refusal}\n"
    except OSError as error:
        message = f"qemu-bridge-helper: unexpected error: {because(error)}; please report it with the command line\n"
    except (KeyboardInterrupt, MemoryError) as interruption:
        message = f"qemu-bridge-helper: ended by {type(interruption).__name__}, nothing was made\n"
    if message:
        _say(stream, message)
    return status


def _say(stream: int, message: str) -> None:
    try:
        # Only now, with every descriptor of a tap closed: the stream may be a full pipe that holds us.
        write(stream, message.encode("ascii", "backslashreplace"))
        # The stream ends before the socket does. At the socket's end libvirt shows what it has read, with rubbish
        # behind it where it had not come to the end of the stream.
        posix.close(stream)
    except OSError:
        # The caller gave no such stream.
        pass


def _hand_over(arguments: Arguments) -> None:
    """Decide, make the tap, attach it, send it; Refusal where any of it can't be, and then nothing is left of it."""
    channel = _channel(arguments.channel)
    try:
        _hand_over_by(channel, arguments)
    finally:
        # The kernel closes it after our last word: libvirt kills a helper whose end of the socket is closed.
        channel.detach()


def _hand_over_by(channel: socket, arguments: Arguments) -> None:
    decision = _decide(arguments.bridge)
    if not decision.granted:
        raise Refusal(
            f"access denied by acl file: {_verdict(arguments.bridge, decision)}; "
            f"an administrator can grant it in {show(acl.DEFAULT_POLICY)}"
        )
    rtnetlink = _rtnetlink()
    bridge = _bridge(rtnetlink, arguments.bridge)
    tap = _open_tun()
    try:
        name = _make_tap(tap, arguments.vnet_hdr)
        _attach(rtnetlink, tap, name, bridge)
        try:
            fdpass.send_descriptor(channel, tap, _SEND_TIMEOUT)
        except OSError as error:
            raise Refusal(
                f"cannot send the tap over file descriptor {arguments.channel}: {because(error)}; "
                "the program that started this helper must hold and read the other end of the socket"
            ) from None
    finally:
        posix.close(tap)


def _verdict(bridge: bytes, decision: acl.Decision) -> str:
    """What was decided about, for whom, and why."""
    return f"bridge `{show(bridge)}' for {_caller()}: {decision.reason}"


def _decide(bridge: bytes) -> acl.Decision:
    try:
        return acl.decide(bridge)
    except Refusal as refusal:
        raise Refusal(
            f"failed to parse default acl file `{show(acl.DEFAULT_POLICY)}': {refusal}; "
            "until an administrator mends this, nobody gets a tap"
        ) from None


def _caller() -> str:
    # No names: looking them up would run the host's name services with our capability.
    groups = sorted({posix.getegid(), *posix.getgroups()})
    return f"uid {posix.getuid()}, groups {' '.join(map(str, groups))}"


def _channel(descriptor: int) -> socket:
    try:
        return fdpass.unix_socket(descriptor)
    except OSError as error:
        raise Refusal(
            f"file descriptor {descriptor} cannot take a tap: {because(error)}; "
            "`--fd=' must be the number of an inherited, connected unix socket"
        ) from None


def _rtnetlink() -> attach.Rtnetlink:
    try:
        return attach.Rtnetlink()
    except OSError as error:
        raise Refusal(
            f"cannot open a netlink socket to ask about bridges: {because(error)}; "
            "the limits or the sandbox of the program that started this helper must leave room for one"
        ) from None


def _bridge(rtnetlink: attach.Rtnetlink, name: bytes) -> attach.Link:
    try:
        bridge = rtnetlink.link(name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise Refusal(f"cannot look up bridge `{show(name)}': {because(error)}") from None
        raise Refusal(
            f"bridge `{show(name)}' does not exist here: {because(error)}; "
            "an administrator can make it, or `--br=' can name another"
        ) from None
    if bridge.name != name:
        raise Refusal(f"`{show(name)}' is an alternative name of `{show(bridge.name)}', `--br=' needs the name itself")
    if bridge.kind != b"bridge":
        kind = f"of kind `{show(bridge.kind)}'" if bridge.kind else "a device without a kind"
        raise Refusal(f"`{show(name)}' is no bridge but {kind}, `--br=' must name a Linux bridge")
    return bridge


def _open_tun() -> int:
    try:
        return tuntap.open_tun()
    except OSError as error:
        way_out = {
            errno.ENOENT: "the kernel's tun module is not loaded or /dev lacks the node, `modprobe tun' as root",
            errno.ENODEV: "the kernel has no tun support, `modprobe tun' as root",
            errno.EACCES: "it is closed to this user, an administrator can `chmod 0666 /dev/net/tun'",
        }.get(error.errno or 0, "an administrator must look into it")
        raise Refusal(f"failed to open /dev/net/tun: {because(error)}; {way_out}") from None


def _make_tap(tun: int, vnet_hdr: bool) -> bytes:
    try:
        flags = tuntap.IFF_TAP | tuntap.IFF_NO_PI
        if vnet_hdr:
            flags |= tuntap.features(tun) & tuntap.IFF_VNET_HDR
        return tuntap.create(tun, _TEMPLATE, flags)
    except OSError as error:
        way_out = "an administrator must look into it"
        if error.errno == errno.EPERM:
            way_out = (
                "this process lacks CAP_NET_ADMIN over this network namespace; the helper must be started by its "
                "launcher, whose file capability is valid on the host and in no user namespace"
            )
        raise Refusal(f"failed to create tun device: {because(error)}; {way_out}") from None


def _attach(rtnetlink: attach.Rtnetlink, tap: int, name: bytes, bridge: attach.Link) -> None:
    what = f"tap `{show(name)}'"
    try:
        index = rtnetlink.index_of(tap)
        rtnetlink.prepare(index, _FIRST_BYTE + posix.urandom(5), bridge.mtu)
    except OSError as error:
        raise Refusal(f"cannot set address and MTU {bridge.mtu} of {what}: {_kernel_says(error)}") from None
    try:
        rtnetlink.enslave(index, bridge.index)
    except OSError as error:
        way_out = {
            errno.EXFULL: "the bridge has all its 1023 ports, end a guest or use another bridge",
            errno.ENODEV: "the bridge is gone since we looked, try again",
        }.get(error.errno or 0, "an administrator must look into it")
        raise Refusal(
            f"failed to add interface `{show(name)}' to bridge `{show(bridge.name)}': {_kernel_says(error)}; {way_out}"
        ) from None


def _kernel_says(error: OSError) -> str:
    """The errno, and the kernel's own sentence where it gave one."""
    text = str(error.strerror or "")
    return because(error) if text in ("", posix.strerror(error.errno or 0)) else f"{because(error)}, {text}"
