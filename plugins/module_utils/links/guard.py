# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep a plan from cutting the connection over which Ansible works on the host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .model import ADDRESS, MTU, UP, VLAN_DEFAULT_PVID, VLAN_FILTERING
from .plan import DeleteLink, Operation, Plan, Refused, RemoveAddress, Set, SetMaster

_PROC = Path("/proc")


class Connection(NamedTuple):
    """The two ends of an SSH connection, as sshd(8) gives them in SSH_CONNECTION."""

    client: str
    server: str


def connection() -> Connection | None:
    """The connection that this process serves: of its own environment or the nearest ancestor's that has one.

    sudo and su drop the variable, the shell above them has it still. None where no process has it, as on a console.
    """
    pid = os.getpid()
    while pid > 0:
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
            # proc_pid_stat(5): the name, in parentheses, may hold anything; state and parent follow it.
            parent = int((_PROC / str(pid) / "stat").read_text(encoding="latin-1").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None
        for variable in environment.split(b"\0"):
            name, _equals, value = variable.partition(b"=")
            ends = value.decode("ascii", "replace").split()
            if name == b"SSH_CONNECTION" and len(ends) == 4:
                # Link-local addresses come with the link, fe80::1%eth0, which the kernel does not take.
                return Connection(*(end.partition("%")[0].removeprefix("::ffff:") for end in (ends[0], ends[2])))
        pid = parent
    return None


def suspicious(plan: Plan) -> bool:
    """Whether the plan takes anything from a link that is there already, and so may carry a connection."""
    return any(step.operation.name in plan.before and _harms(step.operation, plan) for step in plan.steps)


def spare(plan: Plan, carriers: Mapping[str, str]) -> None:
    """Raise Refused if the plan takes from a link of `carriers` (its name, and what it carries) what that needs.

    A bridge that carries does so over its ports, so those are spared too, but for the taps of guests. What a task
    says `force` about is let through.
    """
    carried = dict(carriers)
    for name, what in carriers.items():
        for port in plan.before.ports(name):
            if port.kind != "tun":
                carried.setdefault(port.name, f"{what}, as a port of {name}")
    forced = {tap.name for tap in plan.taps if tap.force}
    for bridge in plan.bridges:
        if bridge.force:
            forced |= {bridge.name, *(bridge.ports or ()), *(port.name for port in plan.before.ports(bridge.name))}
    for step in plan.steps:
        operation = step.operation
        if operation.name in carried and operation.name not in forced and _harms(operation, plan):
            raise Refused(
                f"{operation.name} carries {carried[operation.name]}, and to {operation.purpose} may cut it. "
                "Nothing was changed. Say force: true if there is another way to the host, such as a console."
            )


def _harms(operation: Operation, plan: Plan) -> bool:
    if isinstance(operation, Set):
        link = plan.before.get(operation.name)
        # Pinning the address that it has does no harm.
        same = link is not None and link.settings.get(operation.option.name) == operation.value
        if operation.option in (VLAN_FILTERING, VLAN_DEFAULT_PVID):
            return _parted(operation.name, plan)
        return not same and (operation.option in (MTU, ADDRESS) or (operation.option is UP and not operation.value))
    return isinstance(operation, (DeleteLink, RemoveAddress, SetMaster))


def _parted(name: str, plan: Plan) -> bool:
    """Whether at the end the bridge keeps what the host sends without a tag from a port that is no tap."""
    bridge = plan.after[name]
    if not bridge.filters_vlans or bridge.vlans is None:
        return False
    ports = [port.vlans for port in plan.after.ports(name) if port.kind != "tun" and port.vlans is not None]
    own = bridge.vlans.pvid
    return any(not own or vlans.pvid != own or own not in vlans.untagged for vlans in (bridge.vlans, *ports))
