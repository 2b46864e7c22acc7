# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments that nobody thought of, and what a module must answer to them."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Callable

from hypothesis import strategies as st

from support.modules import run_module
from support.namespaces import Sandbox

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
)


def garbage(options: Collection[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments for some of these options, as YAML could have them."""
    return st.dictionaries(st.sampled_from(list(options)), _VALUES, min_size=1, max_size=4)


def check_answer(main: Callable[[], None], arguments: dict[str, Any], returned: str, check: bool = True) -> None:
    """In an empty namespace, and in check mode if `check`, the module fails with a message or returns what it should.

    Some garbage makes sense by chance. A traceback is never an answer.
    """
    box = Sandbox()
    try:
        result = run_module(main, arguments, check=check)
    finally:
        box.close()
    assert "Traceback" not in json.dumps(result)
    assert result.get("msg") if result.get("failed") else returned in result
