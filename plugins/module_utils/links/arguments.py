# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a bridge or a tap as the administrator wrote them, outside of a module: read, and judged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Callable

from .host import group_id, machine_id, user_id
from .model import (
    Arguments,
    ArgumentSpec,
    BadValue,
    Bridge,
    Tap,
    bridge_argument_spec,
    tap_argument_spec,
)

_WORDS = {
    **dict.fromkeys(("y", "yes", "on", "1", "true", "t"), True),
    **dict.fromkeys(("n", "no", "off", "0", "false", "f"), False),
}


def bridge_faults(item: Any) -> list[str]:
    """Why no host takes these options of a bridge, a sentence for each reason.

    Raises LinksError where the address is to be the stable one and the host has no machine id.
    """
    return _faults(item, bridge_argument_spec(), lambda arguments: Bridge.from_arguments(arguments, machine_id))


def tap_faults(item: Any) -> list[str]:
    """Why this host, with its users and groups, does not take these options of a tap, a sentence for each reason."""
    return _faults(item, tap_argument_spec(), lambda arguments: Tap.from_arguments(arguments, user_id, group_id))


def _faults(item: Any, spec: ArgumentSpec, read: Callable[[Arguments], object]) -> list[str]:
    fault = _fault(item, spec, read)
    if not fault:
        return []
    # That is the first one. An option by itself can hold another, and what the options are together comes last.
    parts = _parts(item) if isinstance(item, dict) else iter(())
    return list(dict.fromkeys(filter(None, [*(_fault(part, spec, read) for part in parts), fault])))


def _fault(item: Any, spec: ArgumentSpec, read: Callable[[Arguments], object]) -> str:
    try:
        read(read_arguments(item, spec))
    except BadValue as error:
        return str(error)
    return ""


def _parts(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The item with each of its options alone, and of a list with each element alone."""
    whole: dict[str, Any] = {name: item[name] for name in ("name", "state") if name in item}
    for name, value in item.items():
        for each in [[element] for element in value] if isinstance(value, list) else [value]:
            yield {**whole, name: each}


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
