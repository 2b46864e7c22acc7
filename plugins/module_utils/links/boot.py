# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the saved links again after the host has started: what the role's unit runs, without Ansible.

The saved state is a JSON object, `{"bridges": [...], "taps": [...]}`, of which `taps` may be missing. Each item has the
options of the module `bridge` or `tap` as the administrator wrote them, and they are read as Ansible reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import sys
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Callable, TypeVar

from .arguments import read_arguments
from .host import group_id, machine_id, user_id
from .kernel import Kernel, NoLibrary, imagine, takes_library
from .model import (
    ADDRESS,
    STABLE,
    BadValue,
    Bridge,
    LinksError,
    Tap,
    bridge_argument_spec,
    tap_argument_spec,
)
from .plan import make_plan

Wanted = TypeVar("Wanted", Bridge, Tap)

# <linux/rtnetlink.h>
RTMGRP_LINK = 1
# A message on one link; what is longer is cut, and only that it came matters.
_RECEIVE = 1 << 15


def main(arguments: Sequence[str]) -> int:
    """Make the links of the file `arguments[0]`, waiting up to `arguments[1]` seconds for others; the exit status.

    What was done goes to standard output, each operation as a command of iproute2. What failed goes to standard error,
    one line for each failure, and the rest is done nevertheless.
    """
    path, patience = Path(arguments[0]), float(arguments[1])
    faults: list[str] = []
    try:
        saved = read_links(path)
        faults = list(saved.faults)
        with Kernel() as kernel:
            faults += restore(kernel, saved, patience)
    except (LinksError, OSError) as error:
        faults.append(str(error))
    sys.stderr.writelines(f"{_one_line(fault)}\n" for fault in faults)
    return 1 if faults else 0


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a file describes. Of links that it doesn't describe well, `faults` has a sentence, `unclear` the name."""

    bridges: Sequence[Bridge]
    taps: Sequence[Tap] = ()
    faults: Sequence[str] = ()
    unclear: frozenset[str] = frozenset()


def read_links(path: Path) -> Saved:
    """The links that the file describes; raises LinksError where it can't be read as a whole."""
    way_out = "Run the role qemu_bridge again: it writes the file anew."
    try:
        state = json.loads(path.read_bytes())
    except OSError as error:
        raise LinksError(f"Can't read the saved links in {path}: {error.strerror}. {way_out}") from None
    except (ValueError, RecursionError) as error:
        raise LinksError(f"The saved links in {path} are not valid JSON: {error}. {way_out}") from None
    # The first version of the role saved bridges only.
    forms: tuple[set[str], ...] = ({"bridges"}, {"bridges", "taps"})
    if not isinstance(state, dict) or set(state) not in forms or not all(isinstance(x, list) for x in state.values()):
        raise LinksError(
            f'The saved links in {path} are not of the form {{"bridges": [...], "taps": [...]}}. {way_out}'
        )
    faults: list[str] = []
    unclear: set[str] = set()

    def read(kind: str, read_item: Callable[[Any], Wanted]) -> list[Wanted]:
        wanted = []
        for number, item in enumerate(state.get(kind, [])):
            try:
                wanted.append(read_item(item))
            except BadValue as error:
                faults.append(f"{path}, item {number} of {kind}: {error}")
                if isinstance(item, dict):
                    unclear.add(str(item.get("name")))
        return wanted

    return Saved(read("bridges", _read_bridge), read("taps", _read_tap), faults, frozenset(unclear))


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


def _read_tap(item: Any) -> Tap:
    arguments = read_arguments(item, tap_argument_spec())

    def early(look_up: Callable[[str], int], kind: str) -> Callable[[str], int]:
        def find(name: str) -> int:
            try:
                return look_up(name)
            except (KeyError, ValueError):
                raise BadValue(
                    f"the tap {arguments['name']} is not made, because there is no {kind} {name!r} so early in the "
                    "start of the host. Give the id instead if the name comes from the network (LDAP and the like), "
                    "or start this service again."
                ) from None

        return find

    return Tap.from_arguments(arguments, early(user_id, "user"), early(group_id, "group"))


def needs_library(state: Mapping[str, Sequence[Any]], *, at_start: bool) -> bool:
    """Whether pyroute2 is needed to make the links of a state: from what is here now, or `at_start` of the host.

    What can't be made anyway needs nothing.
    """
    try:
        bridges, taps = list(map(_read_bridge, state["bridges"])), list(map(_read_tap, state["taps"]))
        if at_start:
            plan = make_plan(bridges, imagine(bridges, taps), taps)
            # What others make may still be down, and a link that is brought up may have addresses to lose.
            ours = {bridge.name for bridge in bridges} | {tap.name for tap in taps}
            if any(port not in ours for bridge in bridges for port in bridge.ports or ()):
                return True
        else:
            with Kernel() as kernel:
                plan = kernel.reconcile(bridges, taps, check=True, spare_connection=True, all_addresses=False).plan
    except NoLibrary:
        return True
    except LinksError:
        return False
    return takes_library(plan, all_addresses=False)


def restore(kernel: Kernel, saved: Saved, patience: float) -> list[str]:
    """Bring each bridge and tap into its state, whatever becomes of the others; return a sentence for each failure.

    Ports, and bridges of taps, that others make and that are not there yet are waited for `patience` seconds in all;
    what does not need them comes first. Of a port that stays away its bridge is made without it.
    """
    # Nobody else makes what the file describes, however badly.
    unmade = saved.unclear - _present()
    bridges, taps = [_less(bridge, unmade) for bridge in saved.bridges], saved.taps
    ours = saved.unclear | {bridge.name for bridge in bridges} | {tap.name for tap in taps}
    theirs = {port for bridge in bridges for port in bridge.ports or ()} | {tap.bridge for tap in taps if tap.bridge}
    late = theirs - ours - _present()
    if late:
        # What fails here fails again below, and is reported then.
        _reconcile(kernel, *_without(late, bridges, taps))
        sys.stdout.flush()
        late = wait_for(late, patience)
    faults = _reconcile(kernel, *_without(late, bridges, taps))
    missed = [
        f"{each.name} is without its port {port}" for each in bridges for port in each.ports or () if port in late
    ]
    missed += [f"The tap {tap.name} is not made without its bridge {tap.bridge}" for tap in taps if tap.bridge in late]
    ending = f"no link of this name came within {patience:g} s. Start this service again once it is there."
    return [*faults, *(f"{fault}: {ending}" for fault in missed)]


def _without(late: set[str], bridges: Sequence[Bridge], taps: Sequence[Tap]) -> tuple[list[Bridge], list[Tap]]:
    """The links less what needs one that is `late`."""
    return [_less(bridge, late) for bridge in bridges], [tap for tap in taps if tap.bridge not in late]


def _less(bridge: Bridge, absent: Set[str]) -> Bridge:
    """`bridge` without the ports that are `absent`."""
    if bridge.ports is None:
        return bridge
    return dataclasses.replace(bridge, ports=tuple(port for port in bridge.ports if port not in absent))


def _reconcile(kernel: Kernel, bridges: Sequence[Bridge], taps: Sequence[Tap]) -> list[str]:
    """Make what can be made; return a sentence for each link that can't.

    One plan for everything is much faster than one for each of thousands of taps, but a fault in it undoes all of it.
    So where there is one, what is planned together gets smaller: a bridge with its taps, half of the taps, one.
    """
    fault = _attempt(kernel, bridges, taps)
    if not fault:
        return []
    if len(bridges) + len(taps) == 1:
        return [fault]
    faults: list[str] = []
    # A tap without a bridge of its own is on the one that lists it.
    listed = {port: bridge.name for bridge in bridges for port in bridge.ports or ()}
    placed = [
        dataclasses.replace(tap, bridge=listed[tap.name]) if tap.bridge is None and tap.name in listed else tap
        for tap in taps
    ]
    for bridge in bridges:
        faults += _reconcile_bridge(kernel, bridge, [tap for tap in placed if _joins(tap, bridge)])
    return faults + _reconcile_taps(kernel, [tap for tap in placed if not any(_joins(tap, each) for each in bridges)])


def _joins(tap: Tap, bridge: Bridge) -> bool:
    return tap.present and bridge.present and tap.bridge == bridge.name


def _reconcile_bridge(kernel: Kernel, bridge: Bridge, taps: Sequence[Tap]) -> list[str]:
    """The same for one bridge and the taps that join it."""
    fault = _attempt(kernel, [bridge], taps)
    if not fault:
        return []
    if not taps:
        return [fault]
    # Alone it knows nothing of its taps: they join by themselves, and none of them is a port too many.
    alone = dataclasses.replace(_less(bridge, {tap.name for tap in taps}), ports_exact=False)
    fault = _attempt(kernel, [alone], [])
    if fault and bridge.name not in _present():
        return [f"{fault} So its taps are not made either: {', '.join(tap.name for tap in taps)}."]
    return [*([fault] if fault else []), *_reconcile_taps(kernel, taps)]


def _reconcile_taps(kernel: Kernel, taps: Sequence[Tap]) -> list[str]:
    """The same for taps whose bridges are there."""
    fault = _attempt(kernel, [], taps) if taps else ""
    if not fault:
        return []
    if len(taps) == 1:
        return [fault]
    middle = len(taps) // 2
    return _reconcile_taps(kernel, taps[:middle]) + _reconcile_taps(kernel, taps[middle:])


def _attempt(kernel: Kernel, bridges: Sequence[Bridge], taps: Sequence[Tap]) -> str:
    """Make these links as one plan. Return why it failed, so that nothing was changed, or an empty string."""
    try:
        outcome = kernel.reconcile(bridges, taps, all_addresses=False)
    except LinksError as error:
        return str(error)
    sys.stdout.writelines(f"{operation}\n" for operation in outcome.plan.operations)
    return ""


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
