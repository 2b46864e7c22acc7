# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu-bridge-run's command line: where the numbers go, and what is refused before a helper starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils.tapfd import run
from support.install import PYTHON, install_library

FIRST, SECOND, THIRD = 7, 12, 9
ONE = ["--br=br0", "--"]
THREE = ["--br=br0", "--br=br1", "--br=br0", "--"]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([*ONE, "qemu", "-netdev", "tap,id=n0,fd={fd}"], ["qemu", "-netdev", "tap,id=n0,fd=7"]),
        ([*ONE, "a", "{fd0}"], ["a", "7"]),
        ([*ONE, "a", "{fd}{fd},{fd0}", "", "--", "--br=br9"], ["a", "77,7", "", "--", "--br=br9"]),
        ([*THREE, "a", "{fd2}-{fd0}", "x{fd1}y"], ["a", "9-7", "x12y"]),
        # Of JSON, of a shell, of a format: no placeholders.
        ([*ONE, "a", '{"fd": "{fd}"}'], ["a", '{"fd": "7"}']),
        ([*ONE, "a", "{fd}", "{}", "${x}", "{fd", "{fd-1}", "{fd }", "{ fd}", "{FD}"], None),
    ],
)
def test_numbers_take_the_places(words: list[str], command: list[str] | None) -> None:
    arguments = run.Arguments(words)
    expected = command or ["a", "7", *words[words.index("{fd}") + 1 :]]
    assert arguments.command([FIRST, SECOND, THIRD][: len(arguments.bridges)]) == expected


def test_options() -> None:
    arguments = run.Arguments(["--br=br1", "--helper=/a helper --fast", "--br=", "--", "a", "{fd0}", "{fd1}"])
    assert (arguments.bridges, arguments.helper) == (["br1", ""], "/a helper --fast")
    assert run.Arguments([*ONE, "a", "{fd}"]).helper == "/usr/local/libexec/qemu-bridge-helper"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no command is given: it comes after `--'"),
        (["--br=br0", "qemu", "{fd}"], "no command is given: it comes after `--'"),
        (["--br=br0", "--"], "no command is given after `--'"),
        (["--", "a", "{fd}"], "no bridge is given, `--br=bridge' is missing"),
        (["--br", "br0", "--", "a", "{fd}"], "unknown argument `--br'"),
        (["--br=br0", "-v", "--", "a", "{fd}"], "unknown argument `-v'"),
        (["--br=br0", "br1", "--", "a", "{fd}"], "unknown argument `br1'"),
        (["--br=br0", "--helper=/h --br=br1", "--", "a", "{fd}"], "`--helper=' has a `--br=' in it"),
        ([*ONE, "a"], "no word of the command has `{fd}' in it, the place for the tap on `br0'"),
        ([*ONE, "a", "{fd"], "no word of the command has `{fd}' in it"),
        ([*THREE, "a", "{fd0}{fd2}"], "no word of the command has `{fd1}' in it, the place for the tap on `br1'"),
        ([*ONE, "a", "{fd}", "x={fd1}"], "unknown placeholder `{fd1}' in `x={fd1}': here there is `{fd}', `{fd0}'"),
        ([*ONE, "a", "{fd}", "{fd00}"], "unknown placeholder `{fd00}'"),
        ([*ONE, "a", "{fd}", "{fds}"], "unknown placeholder `{fds}'"),
        ([*THREE, "a", "{fd}"], "unknown placeholder `{fd}' in `{fd}': here there is `{fd0}', `{fd1}', `{fd2}'"),
        ([*THREE, "a", "{fd0}{fd1}{fd2}{fd3}"], "unknown placeholder `{fd3}'"),
    ],
)
def test_what_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(run.Usage) as caught:
        run.Arguments(words)
    assert sentence in str(caught.value)


def test_start_is_lean(tmp_path: Path) -> None:
    """It is on the way of every start of a machine: nothing of the standard library but what is compiled in."""
    install_library(tmp_path / "version")
    lean = "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import tapfd.run; "
    done = subprocess.run(
        [PYTHON, "-ISB", "-c", lean + "print(*sorted(set(sys.modules) - before))", tmp_path / "version"],
        capture_output=True,
        text=True,
        check=True,
    )
    foreign = {name for name in done.stdout.split() if not name.startswith("tapfd")}
    assert foreign <= {"_socket", "_struct", "errno", "fcntl", "select"}
    assert "tapfd.helper" not in done.stdout
