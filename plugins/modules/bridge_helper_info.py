#!/usr/bin/python
# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module hostnet.qemu.bridge_helper_info: does a bridge helper grant this user a tap, and what kind of tap."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bridge_helper_info
short_description: Ask a QEMU bridge helper for a tap, as a user
version_added: 1.0.0
description:
  - Starts a bridge helper as QEMU does, with the user and the groups of the one who would start QEMU, and reports what
    came of it. Either the properties of the tap that was handed over, or the reason of the refusal.
  - A refusal is an answer and not a failure, so assert on RV(granted) where a tap is expected.
  - The tap is closed again at once, and so vanishes. Nothing else is made.
extends_documentation_fragment:
  - hostnet.qemu.attributes
  - hostnet.qemu.attributes.info_module
attributes:
  check_mode:
    details:
      - The helper is asked in check mode too.
options:
  helper:
    description:
      - The bridge helper, the collection's own or any that speaks the protocol of QEMU's.
      - With a blank in it, it is a path and arguments, as in QEMU's C(helper=). QEMU has a shell run these. Here quotes
        and backslashes have the meaning that they have to a shell, and other shell syntax is a refusal.
      - If C(--br=) is among the arguments, O(bridge) has no meaning.
      - It is a refusal, and no failure, if it can't be started.
    type: path
    default: /usr/local/libexec/qemu-bridge-helper
  bridge:
    description:
      - The bridge on which a tap is asked for.
    type: str
    default: br0
  user:
    description:
      - The user who asks, by name or number. A process of the module takes on this user and gives up all privileges
        before it starts the helper.
      - Any user but the task's own needs root, such as by C(become).
    type: str
    default: nobody
  groups:
    description:
      - The supplementary groups of the one who asks, by name or number, in place of those of O(user).
    type: list
    elements: str
  vnet_hdr:
    description:
      - Ask for a tap with virtio-net headers (C(--use-vnet)), as QEMU does.
    type: bool
    default: true
  timeout:
    description:
      - Seconds after which a helper that has not ended is killed, which counts as a refusal.
    type: float
    default: 10
seealso:
  - module: hostnet.qemu.file_capabilities
author:
  - The hostnet.qemu authors (@hostnet)
"""

EXAMPLES = r"""
- name: Ask for a tap on br0 as an ordinary user
  hostnet.qemu.bridge_helper_info:
    user: alice
  register: helper

- name: See that it is a tap on br0
  ansible.builtin.assert:
    that:
      - helper.granted
      - helper.master == "br0"
    fail_msg: "{{ helper.reason | default('the tap is not on br0') }}"

- name: Ask the helper of the distribution, as a member of group kvm
  hostnet.qemu.bridge_helper_info:
    helper: /usr/lib/qemu/qemu-bridge-helper
    bridge: br1
    user: nobody
    groups: [kvm]
"""

RETURN = r"""
granted:
  description: Whether the helper handed over a tap.
  returned: success
  type: bool
  sample: true
seconds:
  description: How long the helper took, from its start to its end.
  returned: success
  type: float
  sample: 0.0149
name:
  description: The name of the tap.
  returned: when RV(granted=true)
  type: str
  sample: tap0
flags:
  description: The flags of the tap as C(TUNGETIFF) reports them, the C(IFF_*) values of C(linux/if_tun.h).
  returned: when RV(granted=true)
  type: int
  sample: 20482
vnet_hdr:
  description: Whether the tap carries virtio-net headers.
  returned: when RV(granted=true)
  type: bool
  sample: true
mtu:
  description: The MTU of the tap, in bytes.
  returned: when RV(granted=true)
  type: int
  sample: 1500
mac:
  description: The MAC address of the host's end of the tap.
  returned: when RV(granted=true)
  type: str
  sample: fe:9b:0c:4a:5d:11
master:
  description: The bridge that the tap is a port of, null for none.
  returned: when RV(granted=true)
  type: str
  sample: br0
up:
  description: Whether the tap is set up.
  returned: when RV(granted=true)
  type: bool
  sample: true
reason:
  description: Why there was no tap, in a sentence that holds what the helper said.
  returned: when RV(granted=false)
  type: str
stderr:
  description: What the helper said by itself.
  returned: when RV(granted=false)
  type: str
"""

import grp
import json
import os
import pwd
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import acl, attach, client

# Seconds that the asking process gets beyond the helper's own time limit: to start, to kill it, to close the tap.
_GRACE = 30.0
_LONGEST = 3600.0


class Failure(Exception):
    """The question could not be asked; the message is a sentence for its reader."""


@dataclass(frozen=True)
class Identity:
    """Whom a process acts for: the numbers of a user, its primary group and its supplementary groups."""

    name: str
    uid: int
    gid: int
    groups: frozenset[int]

    def take_on(self) -> None:
        """Become this user, for good; Failure where that is not allowed or leaves a way back."""
        if not self._is_ours():
            try:
                os.setgroups(sorted(self.groups))
                os.setresgid(self.gid, self.gid, self.gid)
                os.setresuid(self.uid, self.uid, self.uid)
            except PermissionError as error:
                raise Failure(
                    f"Becoming the user {self.name} is not permitted (EPERM); run the task with become: true."
                ) from error
        if not self._is_ours():
            raise Failure(f"The kernel did not make this process one of the user {self.name}.")
        if self.uid != 0:
            self._require_no_way_back()

    def _is_ours(self) -> bool:
        # Whether getgroups(2) names the primary group too is not defined.
        ours = frozenset(os.getgroups()) | {self.gid}
        return (os.getresuid(), os.getresgid(), ours) == ((self.uid,) * 3, (self.gid,) * 3, self.groups | {self.gid})

    def _require_no_way_back(self) -> None:
        with suppress(PermissionError):
            os.setuid(0)
            raise Failure(f"As the user {self.name} this process could become root again.")
        # UTF-8 is there from the start. Another encoding were read from a library that this user may be kept out of.
        with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
            for line in status:
                name, _colon, value = line.partition(":")
                if name in ("CapPrm", "CapEff", "CapAmb") and int(value, 16):
                    raise Failure(
                        f"As the user {self.name} this process keeps capabilities ({name} {value.strip()}), with which "
                        "no helper would be asked as that user asks; run the task without ambient capabilities."
                    )


def identity(user: str, groups: list[str] | None) -> Identity:
    """Look up a user and, where they are given, other groups than its own; Failure where one is unknown."""
    try:
        account = pwd.getpwnam(user)
    except (KeyError, ValueError):
        try:
            account = pwd.getpwuid(_number(user))
        except (KeyError, ValueError, OverflowError):
            raise Failure(f"user: there is no user {user!r} on this host.") from None
    if groups is None:
        numbers = frozenset(os.getgrouplist(account.pw_name, account.pw_gid))
    else:
        numbers = frozenset(_group(group) for group in groups)
    return Identity(account.pw_name, account.pw_uid, account.pw_gid, numbers)


def _group(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        try:
            return grp.getgrgid(_number(group)).gr_gid
        except (KeyError, ValueError, OverflowError):
            raise Failure(f"groups: there is no group {group!r} on this host.") from None


def _number(text: str) -> int:
    # Not int() alone: it takes signs, blanks and underscores.
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


def answer(helper: str, bridge: str, vnet_hdr: bool, timeout: float) -> dict[str, Any]:
    """Ask the helper for a tap and return what the module returns; the tap is gone again by then."""
    began = time.monotonic()
    try:
        with client.run_helper(helper, bridge, vnet_hdr=vnet_hdr, timeout=timeout) as tap:
            seconds = time.monotonic() - began
            properties = describe(tap)
    except client.HelperError as error:
        seconds = time.monotonic() - began
        properties = {"granted": False, "reason": str(error), "stderr": error.stderr}
    return {**properties, "seconds": round(seconds, 6)}


def describe(tap: client.Tap) -> dict[str, Any]:
    """What the kernel says of a tap that was handed over; Failure if it is no interface of this network namespace."""
    try:
        link = attach.get_link(os.fsencode(tap.name))
        master = socket.if_indextoname(link.master) if link.master else None
    except OSError as error:
        raise Failure(f"The helper handed over the tap {tap.name}, which is no interface here: {error}.") from error
    return {
        "granted": True,
        "name": tap.name,
        "flags": tap.flags,
        "vnet_hdr": tap.vnet_hdr,
        "mtu": link.mtu,
        "mac": link.address.hex(":"),
        "master": master,
        "up": link.up,
    }


def ask_as(asker: Identity, timeout: float, *question: Any) -> dict[str, Any]:
    """Ask in a process of the user `asker`, and see that neither it nor anything that it started is left."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _be_asked(asker, writer, timeout, *question)
    os.close(writer)
    try:
        output = _read_all(reader, timeout + _GRACE)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        # And its group, whose number stays taken until the child is reaped: a helper may have left others in it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        raise Failure(f"The process that asked as the user {asker.name} was killed before it answered.") from None
    if "failure" in result:
        raise Failure(result["failure"])
    return result


def _be_asked(asker: Identity, writer: int, timeout: float, helper: str, bridge: str, vnet_hdr: bool) -> None:
    """Be the child of `ask_as`: answer through the pipe and end."""
    try:
        os.setsid()
        # Not a directory of the task, which the user may not enter.
        os.chdir("/")
        try:
            asker.take_on()
            result = answer(helper, bridge, vnet_hdr, timeout)
        except Failure as error:
            result = {"failure": str(error)}
        except Exception as error:  # The parent has the only way to tell anyone.
            result = {"failure": f"Asking as the user {asker.name} failed: {error!r}."}
        with open(writer, "wb") as pipe:
            pipe.write(json.dumps(result).encode())
    finally:
        os._exit(0)


def _read_all(reader: int, timeout: float) -> bytes:
    """Read until the end of file, or until `timeout` seconds are over: the asked user may stop the child for ever."""
    deadline = time.monotonic() + timeout
    output = b""
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        block = os.read(reader, 65536)
        if not block:
            break
        output += block
    return output


def run(module: AnsibleModule) -> dict[str, Any]:
    """Check the options, ask, and return the module's result."""
    parameters = module.params
    fault = acl.name_fault(os.fsencode(parameters["bridge"]))
    if fault:
        raise Failure(f"bridge: {parameters['bridge']!r} is no name of a bridge: {fault}.")
    if not os.path.isabs(parameters["helper"]) or "\0" in parameters["helper"]:
        raise Failure(f"helper: {parameters['helper']!r} is not an absolute path.")
    if not 0 < parameters["timeout"] <= _LONGEST:
        raise Failure(f"timeout: {parameters['timeout']} is not a number of seconds up to {_LONGEST:g}.")
    asker = identity(parameters["user"], parameters["groups"])
    question = parameters["helper"], parameters["bridge"], parameters["vnet_hdr"]
    return {"changed": False, **ask_as(asker, parameters["timeout"], *question)}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "helper": {"type": "path", "default": "/usr/local/libexec/qemu-bridge-helper"},
            "bridge": {"type": "str", "default": "br0"},
            "user": {"type": "str", "default": "nobody"},
            "groups": {"type": "list", "elements": "str"},
            "vnet_hdr": {"type": "bool", "default": True},
            "timeout": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except Failure as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
