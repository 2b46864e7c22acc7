# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the saved links again after the host has started: what the role's unit runs, without Ansible.

The saved state is a JSON object, `{"bridges": [...]}`. Each item has the options of the module `bridge` as the
administrator wrote them; they are read here as Ansible reads them for the module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable

from .host import machine_id
from .kernel import Kernel, library_fault
from .model import ADDRESS, STABLE, Arguments, ArgumentSpec, BadValue, Bridge, LinksError, bridge_argument_spec

# <linux/rtnetlink.h>
RTMGRP_LINK = 1
# A message on one link; what is longer is cut, and only that it came matters.
_RECEIVE = 1 << 15

_WORDS = {
    **dict.fromkeys(("y", "yes", "on", "1", "true", "t"), True),
    **dict.fromkeys(("n", "no", "off", "0", "false", "f"), False),
}


def main(arguments: Sequence[str]) -> int:
    """Make the links of the file `arguments[0]`, waiting up to `arguments[1]` seconds for ports; the exit status.

    What was done goes to standard output, each operation as a command of iproute2. What failed goes to standard error,
    one line for each failure, and the rest is done nevertheless.
    """
    path, patience = Path(arguments[0]), float(arguments[1])
    faults: list[str] = []
    try:
        fault = library_fault()
        if fault:
            raise LinksError(fault)
        bridges, faults = read_bridges(path)
        with Kernel() as kernel:
            faults += restore(kernel, bridges, patience)
    except (LinksError, OSError) as error:
        faults.append(str(error))
    sys.stderr.writelines(f"{_one_line(fault)}\n" for fault in faults)
    return 1 if faults else 0


def read_bridges(path: Path) -> tuple[list[Bridge], list[str]]:
    """The bridges that the file describes, and for each one that it doesn't describe well a sentence.

    Raises LinksError where the file as a whole can't be read.
    """
    way_out = "Run the role qemu_bridge again: it writes the file anew."
    try:
        state = json.loads(path.read_bytes())
    except OSError as error:
        raise LinksError(f"Can't read the saved links in {path}: {error.strerror}. {way_out}") from None
    except (ValueError, RecursionError) as error:
        raise LinksError(f"The saved links in {path} are not valid JSON: {error}. {way_out}") from None
    if not isinstance(state, dict) or set(state) != {"bridges"} or not isinstance(state["bridges"], list):
        raise LinksError(f'The saved links in {path} are not of the form {{"bridges": [...]}}. {way_out}')
    bridges, faults = [], []
    for number, item in enumerate(state["bridges"]):
        try:
            bridges.append(_read_bridge(item))
        except BadValue as error:
            faults.append(f"{path}, item {number} of bridges: {error}")
    return bridges, faults


def _read_bridge(item: Any) -> Bridge:
    arguments = read_arguments(item, bridge_argument_spec())
    if arguments.get(ADDRESS.name) == STABLE:
        # As the role has it: a host without a machine id still gets its bridge.
        try:
            machine_id()
        except LinksError as error:
            sys.stdout.write(f"{arguments['name']} takes the lowest MAC address of its ports: {_one_line(error)}\n")
            arguments = {**arguments, ADDRESS.name: None}
    return Bridge.from_arguments(arguments, machine_id)


def read_arguments(item: Any, spec: ArgumentSpec) -> Arguments:
    """`item` with the types and defaults of the argument specification `spec`, null for what is not given.

    Strings stand for other types as they do in Ansible, so that a variable means the same to both. Raises BadValue.
    """
    if not isinstance(item, dict):
        raise BadValue(f"{item!r} is not an object with options.")
    unknown = sorted(set(item) - set(spec))
    if unknown:
        raise BadValue(f"there is no option {', '.join(unknown)}.")
    missing = [name for name, option in spec.items() if option.get("required") and item.get(name) is None]
    if missing:
        raise BadValue(f"the option {', '.join(missing)} is missing.")
    values = {}
    for name, option in spec.items():
        value = item.get(name)
        values[name] = option.get("default") if value is None else _typed(value, option, name)
        if values[name] is not None and "choices" in option and values[name] not in option["choices"]:
            raise BadValue(f"{name}: {value!r} is none of {', '.join(map(str, option['choices']))}.")
    return values


def _typed(value: Any, option: dict[str, Any], name: str) -> Any:
    kind = option.get("type", "str")
    if kind == "list":
        values = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        element = {"type": option.get("elements", "str"), "options": option.get("options")}
        return [_typed(each, element, name) for each in values]
    if kind == "dict":
        return read_arguments(value, option["options"])
    try:
        return _READERS[kind](value)
    except (TypeError, ValueError, OverflowError):
        raise BadValue(f"{name}: {value!r} is not of the type {kind}.") from None


def _boolean(value: Any) -> bool:
    if isinstance(value, (bool, int, float, str)) and str(value).strip().lower() in _WORDS:
        return _WORDS[str(value).strip().lower()]
    raise ValueError


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _real(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _string(value: Any) -> str:
    if value is None or isinstance(value, (dict, list)):
        raise TypeError
    return str(value)


_READERS: dict[str, Callable[[Any], Any]] = {"bool": _boolean, "int": _integer, "float": _real, "str": _string}


def restore(kernel: Kernel, bridges: Sequence[Bridge], patience: float) -> list[str]:
    """Bring each bridge into its state, whatever becomes of the others; return a sentence for each failure.

    Ports that are not there yet are waited for `patience` seconds in all; what does not need them comes first. Of a
    port that stays away its bridge is made without it.
    """
    ports = {port for bridge in bridges for port in bridge.ports or ()}
    late = ports - _present()
    if late:
        # What fails here fails again below, and is reported then.
        _reconcile(kernel, (_without(bridge, late) for bridge in bridges))
        sys.stdout.flush()
        late = wait_for(late, patience)
    faults = _reconcile(kernel, (_without(bridge, late) for bridge in bridges))
    for bridge in bridges:
        for port in bridge.ports or ():
            if port in late:
                faults.append(
                    f"{bridge.name} is without its port {port}: no link of this name came within {patience:g} s. "
                    "Start this service again once it is there."
                )
    return faults


def _without(bridge: Bridge, late: set[str]) -> Bridge:
    if bridge.ports is None:
        return bridge
    return dataclasses.replace(bridge, ports=tuple(port for port in bridge.ports if port not in late))


def _reconcile(kernel: Kernel, bridges: Iterable[Bridge]) -> list[str]:
    faults = []
    for bridge in bridges:
        try:
            outcome = kernel.reconcile([bridge])
        except LinksError as error:
            faults.append(str(error))
        else:
            sys.stdout.writelines(f"{operation}\n" for operation in outcome.plan.operations)
    return faults


def wait_for(names: set[str], patience: float) -> set[str]:
    """Wait until there are links of all these names, `patience` seconds at most; return those that are missing still.

    The kernel announces new links and new names to the group RTMGRP_LINK of rtnetlink(7).
    """
    deadline = time.monotonic() + patience
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as news:
        # Before the first look, so that nothing is missed between the two.
        news.bind((0, RTMGRP_LINK))
        while True:
            missing = names - _present()
            left = deadline - time.monotonic()
            if not missing or left <= 0:
                return missing
            news.settimeout(left)
            # Time is up, or more came than the socket holds (ENOBUFS): either way the next look tells.
            with contextlib.suppress(OSError):
                news.recv(_RECEIVE)


def _present() -> set[str]:
    return {name for _index, name in socket.if_nameindex()}


def _one_line(fault: object) -> str:
    return " ".join(str(fault).split())
