# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a module as Ansible does on a host, without the controller: parameters in, the module's JSON out."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import stat
import traceback
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from ansible.module_utils import _internal, basic
from ansible.module_utils.testing import patch_module_args


def _is_everybodys(path: str) -> bool:
    # The way by symbolic links, which may start in a closed directory, and the place where they lead.
    ways = Path(path).absolute(), Path(path).resolve()
    return all(parent.stat().st_mode & stat.S_IXOTH for way in ways for parent in way.parents)


# Both import some of themselves when it is first used.
for_users = pytest.mark.skipif(
    not (_is_everybodys(basic.__file__) and _is_everybodys(os.__file__)),
    reason="the Python or the Ansible of this run is in a directory of root's, and unprivileged users can't import it",
)


def run_module(
    main: Callable[[], None], parameters: dict[str, Any], *, check: bool = False, diff: bool = True
) -> dict[str, Any]:
    """Run the `main` of a module in a child process, in the namespaces of this moment, and return its result.

    A child, since a module keeps state (its warnings) and may change its process (user, namespaces) for good.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            # Where a test has imported what belongs to the controller, warnings would go to its terminal.
            _internal.is_controller = False
            with open(writer, "w", encoding="utf-8") as pipe:
                # Not to the syslog of the machine, which takes no NUL besides.
                internal = {"_ansible_check_mode": check, "_ansible_diff": diff, "_ansible_no_log": True}
                pipe.write(_output({**parameters, **internal}, main))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        output = pipe.read()
    os.waitpid(child, 0)
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        raise AssertionError(f"the module returned no JSON:\n{output}") from None
    return result


def documented_options(documentation: str) -> dict[str, Any]:
    """The options that a module's DOCUMENTATION and the fragments of this collection which it extends describe."""
    told = yaml.safe_load(documentation)
    options: dict[str, Any] = {}
    for fragment in told["extends_documentation_fragment"]:
        _namespace, _collection, file, *attribute = fragment.split(".")
        module = importlib.import_module(f"ansible_collections.hostnet.qemu.plugins.doc_fragments.{file}")
        text = getattr(module.ModuleDocFragment, attribute[0].upper() if attribute else "DOCUMENTATION")
        options.update(yaml.safe_load(text)["options"])
    return {**options, **told.get("options", {})}


def check_documented(documentation: str, spec: dict[str, Any]) -> None:
    """The options of a module's documentation are those of its argument specification, and say the same of each."""
    documented = documented_options(documentation)
    assert set(documented) == set(spec)
    for name, rules in spec.items():
        told = {key: documented[name].get(key) for key in ("type", "default", "choices", "elements", "required")}
        assert told == {key: rules.get(key) for key in told}, name


def _output(arguments: dict[str, Any], main: Callable[[], None]) -> str:
    printed = io.StringIO()
    try:
        with patch_module_args(arguments), contextlib.redirect_stdout(printed):
            main()
    except SystemExit:
        return printed.getvalue()
    except BaseException:
        return printed.getvalue() + traceback.format_exc()
    return printed.getvalue() + "main() returned, though a module ends by exit_json or fail_json"
