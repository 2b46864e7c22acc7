# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter hostnet.qemu.netdev: a dictionary of options to the argument of QEMU's -netdev or -net.

Options and their rules are those of NetdevTapOptions and NetdevBridgeOptions (qapi/net.json) and of net_init_tap()
(net/tap.c), the same from QEMU 7.2 to 10.0. The sentences of the rules are QEMU's, so that a search for one finds both.
QEMU 11 has the same options, other sentences, and a few things more that go together.
"""

from __future__ import annotations

DOCUMENTATION = r"""
name: netdev
short_description: The argument of QEMU's -netdev or -net for a bridge or a tap
version_added: 1.0.0
author:
  - The hostnet.qemu authors (@hostnet)
description:
  - Renders the options of a network backend as one argument of QEMU's C(-netdev), or of C(-net) with O(legacy=true).
  - Commas in values are doubled, as QEMU wants them. The result is one argument of a command. In the text of a shell
    script it needs P(ansible.builtin.quote#filter) besides.
  - What QEMU would refuse is refused here, in QEMU's own words where it has some. An option whose value is V(null)
    counts as not given.
  - Some mistakes that QEMU lets pass are refused, too. They are an O(_input.br) that has no effect, an
    O(_input.ifname) that QEMU would cut to 15 bytes, and an O(_input.br) that the shell of an O(_input.helper) with
    arguments would not take as a plain word.
  - The rules are those of QEMU 7.2 to 10.0. What goes together only from QEMU 11 on, such as O(_input.queues) with
    O(_input.vhostfds), is refused.
  - Whether the files, the bridge and the descriptors exist is for the host to say when QEMU starts.
positional: _input
options:
  _input:
    description:
      - The options of the backend, with QEMU's own names.
    type: dict
    required: true
    suboptions:
      type:
        description:
          - V(bridge) takes a tap on a bridge from a bridge helper.
          - V(tap) opens a tap by its name, takes descriptors that are open already, or asks a helper as well.
        type: str
        choices: [bridge, tap]
        required: true
      id:
        description:
          - The name by which a C(-device) refers to the backend.
          - It starts with a letter, and goes on with letters, digits, C(-), C(.) and C(_).
          - Required unless O(legacy=true).
        type: str
      br:
        description:
          - The bridge, which QEMU takes for C(br0) if it is not given. With O(_input.type=tap) it needs
            O(_input.helper).
        type: str
      helper:
        description:
          - The path of the bridge helper, or a command with arguments, which QEMU gives to a shell.
          - With O(_input.type=bridge) QEMU has a default, the helper of its own package. With O(_input.type=tap) there
            is no helper unless it is given.
        type: str
      ifname:
        description:
          - The tap to open or to make. It may hold one C(%d), for which the kernel chooses a number.
        type: str
      script:
        description:
          - The program that QEMU runs with the name of the tap after opening it. V(no) stands for none, and
            C(/etc/qemu-ifup) is what it runs if the option is not given.
        type: str
      downscript:
        description:
          - Like O(_input.script), at the end. C(/etc/qemu-ifdown) is what it runs if the option is not given.
        type: str
      fd:
        description:
          - The number of the descriptor of an open tap.
          - It may be C({fd}), or C({fd) with a number and C(}), which C(qemu-bridge-run) replaces by numbers.
        type: int
      fds:
        description:
          - The numbers of the descriptors of an open tap with several queues. A string with colons between them, as
            QEMU takes it, is accepted as well.
        type: list
        elements: int
      sndbuf:
        description:
          - How many bytes that the guest has sent may be under way in the host at the same time. A number, or a string
            with one of the suffixes C(k), C(M), C(G), C(T). V(0) is no limit.
        type: str
      vnet_hdr:
        description:
          - Whether the tap carries virtio-net headers. QEMU uses them wherever the kernel has them if this is not
            given, and fails with V(true) where it has none.
        type: bool
      vhost:
        description:
          - Whether the kernel's vhost-net moves the packets. The user needs access to C(/dev/vhost-net).
        type: bool
      vhostfd:
        description:
          - The number of the descriptor of an open C(/dev/vhost-net), for a tap with one queue.
        type: int
      vhostfds:
        description:
          - Like O(_input.vhostfd), one for each of O(_input.fds).
        type: list
        elements: int
      vhostforce:
        description:
          - Use vhost-net for guests without MSI-X too, and let QEMU 7.2 fail where it can't be had.
        type: bool
      queues:
        description:
          - How many queues to open of the tap, 1 to 256. 256 is the kernel's limit.
        type: int
      poll_us:
        description:
          - For at most how many microseconds vhost-net may poll the tap.
        type: int
        aliases: [poll-us]
  legacy:
    description:
      - Render the argument of C(-net) instead. There O(_input.id) may be missing, and O(_input.queues),
        O(_input.fds) and O(_input.vhostfds) can't be had, since C(-net) puts the backend on a hub.
      - C(vlan) and C(name), which old instructions give to C(-net), are refused. QEMU has dropped the first in 3.0 and
        the second in 5.1, in favour of O(_input.id).
    type: bool
    default: false
notes:
  - Booleans may be given as V(true) and V(false), or as a string that QEMU knows, such as V(on) and V(off).
seealso:
  - module: hostnet.qemu.tap
  - name: QEMU's invocation
    description: What QEMU says of C(-netdev) and C(-net).
    link: https://www.qemu.org/docs/master/system/invocation.html
"""

EXAMPLES = r"""
- name: Start a guest on br0 by the bridge helper
  ansible.builtin.command:
    argv:
      - qemu-system-x86_64
      - -netdev
      - "{{ {'type': 'bridge', 'id': 'hn0', 'br': 'br0', 'helper': helper} | hostnet.qemu.netdev }}"
      - -device
      - virtio-net-pci,netdev=hn0
      - /srv/guests/a.qcow2
  vars:
    helper: /usr/local/libexec/qemu-bridge-helper

- name: Show the argument for four queues of a tap that the tap module has made
  ansible.builtin.debug:
    # tap,id=hn0,ifname=tap0,script=no,downscript=no,vhost=on,queues=4
    msg: "{{ nic | hostnet.qemu.netdev }}"
  vars:
    nic:
      type: tap
      id: hn0
      ifname: tap0
      script: "no"
      downscript: "no"
      vhost: true
      queues: 4

- name: Show the argument of the oldest and shortest form
  ansible.builtin.debug:
    # bridge,br=br1
    msg: "-net {{ {'type': 'bridge', 'br': 'br1'} | hostnet.qemu.netdev(legacy=true) }}"
"""

RETURN = r"""
_value:
  description:
    - The argument, without the C(-netdev) or C(-net) before it.
  type: str
  sample: tap,id=hn0,br=br0,helper=/usr/local/libexec/qemu-bridge-helper
"""

import re
import shlex
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Callable, NoReturn

from ansible.errors import AnsibleFilterError
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd.acl import name_fault

# MAX_TAP_QUEUES of drivers/net/tun.c; QEMU's own limit is 1024.
MAX_QUEUES = 256
INT_MAX = (1 << 31) - 1
UINT32_MAX = (1 << 32) - 1
# qapi_bool_parse() of QEMU takes these words.
WORDS = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}
# suffix_mul() of QEMU's util/cutils.c: powers of 1024.
SUFFIXES = "bkmgtpe"

# The rules of net_init_tap() and its sentences: the option that asks for another way, what does not go with it.
EXCLUSIONS = {
    "fd": (
        ("ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "fds", "vhostfds"),
        "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd=",
    ),
    "fds": (
        ("ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "vhostfd"),
        "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, and vhostfd= are invalid with fds=",
    ),
    "helper": (
        ("ifname", "script", "downscript", "vnet_hdr", "queues", "vhostfds"),
        "ifname=, script=, downscript=, vnet_hdr=, queues=, and vhostfds= are invalid with helper=",
    ),
}


def _boolean(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str) and value.lower() in WORDS:
        return "on" if WORDS[value.lower()] else "off"
    raise ValueError(f"must be true or false, and is {_shown(value)}")


def _number(least: int, most: int) -> Callable[[Any], str]:
    def render(value: Any) -> str:
        # Of strings the digits alone: QEMU takes 010 for an octal number, and people don't.
        if isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,9}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}, and is {_shown(value)}")
        return str(value)

    return render


def _size(value: Any) -> str:
    """A size as do_strtosz() of QEMU's util/cutils.c takes it, but for hexadecimal ones."""
    match = re.fullmatch(rf"([0-9]{{1,20}})(\.[0-9]{{1,20}})?([{SUFFIXES}]?)", str(value), re.IGNORECASE)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not match:
        raise ValueError(f"must be a number of bytes, or a string like 64k or 1.5M, and is {_shown(value)}")
    whole, fraction, suffix = match.groups()
    scale = 1024 ** SUFFIXES.index(suffix.lower() or "b")
    if scale == 1 and fraction and fraction.strip(".0"):
        raise ValueError(f"must be a whole number of bytes, and is {_shown(value)}")
    if Fraction(whole + (fraction or "")) * scale >= 1 << 64:
        raise ValueError(f"must be less than 16E, and is {_shown(value)}")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, and is {_shown(value)}")
    try:
        encoded = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"{_shown(value)} can't be encoded in UTF-8") from error
    if b"\0" in encoded:
        raise ValueError(f"{_shown(value)} holds a NUL, which no argument of a program can")
    return value


def _command(value: Any) -> str:
    if not _text(value):
        raise ValueError("is empty; leave it out for no helper of your own")
    return _text(value)


def _link_name(value: Any) -> str:
    fault = name_fault(_text(value).encode("utf-8", "surrogateescape"))
    if fault:
        raise ValueError(f"{_shown(value)} can't be the name of a link: {fault}")
    return _text(value)


def _tap_name(value: Any) -> str:
    # One %d is the kernel's to replace (dev_alloc_name()), and no longer than what it stands for.
    _link_name(_text(value).replace("%d", "00", 1))
    return _text(value)


def _identifier(value: Any) -> str:
    # id_wellformed() of QEMU's util/id.c.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", _text(value)):
        raise ValueError(
            f"expects an identifier, which starts with a letter and goes on with letters, digits, '-', '.' and '_', "
            f"and is {_shown(value)}"
        )
    return _text(value)


_descriptor = _number(0, INT_MAX)


def _tap_descriptor(value: Any) -> str:
    # What qemu-bridge-run replaces by the number.
    if isinstance(value, str) and re.fullmatch(r"\{fd[0-9]*\}", value):
        return value
    return _descriptor(value)


def _descriptors(value: Any) -> str:
    numbers = value.split(":") if isinstance(value, str) else value
    if not isinstance(numbers, (list, tuple)) or not 1 <= len(numbers) <= MAX_QUEUES:
        raise ValueError(f"must be a list of 1 to {MAX_QUEUES} numbers of descriptors, and is {_shown(value)}")
    return ":".join(_descriptor(number) for number in numbers)


# In the order in which they are written; that of qapi/net.json.
BRIDGE: dict[str, Callable[[Any], str]] = {"id": _identifier, "br": _link_name, "helper": _command}
TAP: dict[str, Callable[[Any], str]] = {
    "id": _identifier,
    "ifname": _tap_name,
    "fd": _tap_descriptor,
    "fds": _descriptors,
    "script": _text,
    "downscript": _text,
    "br": _link_name,
    "helper": _command,
    "sndbuf": _size,
    "vnet_hdr": _boolean,
    "vhost": _boolean,
    "vhostfd": _descriptor,
    "vhostfds": _descriptors,
    "vhostforce": _boolean,
    "queues": _number(1, MAX_QUEUES),
    "poll-us": _number(0, UINT32_MAX),
}
TYPES = {"bridge": BRIDGE, "tap": TAP}
ALIASES = {"poll_us": "poll-us"}
# What -net has had and has no more.
DROPPED = {
    "vlan": "QEMU 3.0 has dropped it; use -netdev, where each backend has a device of its own",
    "name": "QEMU 5.1 has dropped it in favour of id",
}


def netdev(options: Any, legacy: Any = False) -> str:
    """The argument of -netdev for these options, or that of -net. Raises AnsibleFilterError."""
    try:
        hub = _boolean(legacy) == "on"
    except ValueError as error:
        _refuse("netdev", f"legacy {error}")
    if not isinstance(options, Mapping):
        _refuse("netdev", f"the options must be a dictionary, and are {_shown(options)}")
    given = {key: value for key, value in options.items() if value is not None}
    what = f"netdev {given['id']}" if isinstance(given.get("id"), str) else "netdev"

    kind = given.pop("type", None)
    if kind is None:
        _refuse(what, f"type is missing; it is one of {', '.join(TYPES)}")
    if not isinstance(kind, str) or kind not in TYPES:
        _refuse(what, f"type must be one of {', '.join(TYPES)}, and is {_shown(kind)}")
    known = TYPES[kind]

    rendered: dict[str, str] = {}
    for key, value in given.items():
        name = ALIASES.get(key, key)
        if name not in known:
            dropped = DROPPED.get(key) if hub else None
            way_out = dropped or f"known are {', '.join(['type', *known])}"
            _refuse(what, f"{key if isinstance(key, str) else _shown(key)} is no option of type {kind}; {way_out}")
        if name in rendered:
            _refuse(what, f"{name} is given twice, as {name} and by its other spelling")
        try:
            rendered[name] = known[name](value)
        except ValueError as error:
            _refuse(what, f"{key} {error}")
    if "id" not in rendered and not hub:
        _refuse(what, "id is missing; only -net (legacy=true) goes without")
    if kind == "tap":
        _check_tap(what, rendered, hub)
    _check_shell(what, rendered)

    written = (f"{key}={rendered[key].replace(',', ',,')}" for key in known if key in rendered)
    return ",".join([kind, *written])


def _check_tap(what: str, options: dict[str, str], hub: bool) -> None:
    """The rules of net_init_tap(), in its order, and those of the first -net bridge."""
    several = [key for key in ("queues", "fds", "vhostfds") if key in options]
    if hub and several:
        _refuse(what, f"Multiqueue tap cannot be used with hubs, which is what -net uses; given: {', '.join(several)}")
    for way, (others, sentence) in EXCLUSIONS.items():
        if way in options:
            wrong = [key for key in others if key in options]
            if wrong:
                _refuse(what, f"{sentence}; given: {', '.join(wrong)}")
            break
    else:
        if "vhostfds" in options:
            _refuse(what, "vhostfds= is invalid if fds= wasn't specified")
        way = "script"
    if "vhostfds" in options and options["fds"].count(":") != options["vhostfds"].count(":"):
        _refuse(what, "The number of fds passed does not match the number of vhostfds passed")
    if options.get("vhost") == "off" and ("vhostfd" in options or "vhostfds" in options):
        _refuse(what, "vhostfd(s)= is not valid without vhost")
    # QEMU 11 says so; those before give the one descriptor to each queue, which the kernel refuses.
    if "vhostfd" in options and options.get("queues", "1") != "1":
        _refuse(what, f"expected {options['queues']} socket fds, got 1: vhostfd= is for a tap with one queue")
    # QEMU takes it and does nothing with it. The first version of -net bridge refused it, in these words.
    if "br" in options and way != "helper":
        _refuse(what, f"br= is invalid with {way}=; only a helper puts the tap on a bridge: give helper=, or drop br=")


def _check_shell(what: str, options: dict[str, str]) -> None:
    """QEMU writes the bridge into the command line of a helper with arguments, unquoted (net_bridge_run_helper())."""
    helper, bridge = options.get("helper", ""), options.get("br", "")
    if re.search("[ \t]", helper) and "--br=" not in helper and bridge and shlex.quote(bridge) != bridge:
        _refuse(
            what,
            f"br {_shown(bridge)} would be read by a shell, since helper has arguments; use a helper without any, or "
            "a bridge of letters, digits, '-', '_' and '.'",
        )


def _refuse(what: str, reason: str) -> NoReturn:
    raise AnsibleFilterError(f"{what}: {reason}")


def _shown(value: Any) -> str:
    """A value and its type, short enough for one sentence."""
    text = repr(str(value) if isinstance(value, str) else value)
    names = {bool: "a boolean", int: "an integer", str: "a string", float: "a float"}
    kind = next((name for known, name in names.items() if isinstance(value, known)), f"a {type(value).__name__}")
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind})"


class FilterModule:
    """What Ansible looks for in this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by their names."""
        return {"netdev": netdev}
