# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pages for users say exists: links, options of QEMU, messages."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.hostnet.qemu.plugins.filter.netdev import netdev
from support.install import ROOT
from support.pages import matches, messages

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def anchors(page: Path) -> set[str]:
    """The names by which the headings of a page are linked to, as GitHub makes them."""
    # Code between two backticks has one blank more on each side than is shown.
    text = re.sub(r"`` (.+) ``", r"\1", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _hash, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_options_on_the_page_are_right() -> None:
    """What stands in the blocks of commands is what the filter writes, which QEMU is known to take."""
    seen = 0
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs/networks.md").read_text("utf-8"), re.DOTALL):
        words = shlex.split(block)
        for option, value in zip(words, words[1:]):
            kind, *fields = value.split(",")
            if option not in ("-net", "-netdev") or kind == "nic":
                continue
            options = {"type": kind, **dict(field.split("=", 1) for field in fields)}
            written = netdev(options, legacy=option == "-net")
            assert sorted(written.split(",")) == sorted(value.split(",")), value
            seen += 1
    assert seen >= 8


# Where the messages under a heading of the page come from; those of QEMU are printed in tests/e2e/test_errors.py.
SOURCES = {
    "The bridge helper": ["plugins/module_utils/tapfd/helper.py", "plugins/module_utils/tapfd/acl.py"],
    "Its launcher": ["files/launcher/launcher.c"],
    "qemu-bridge-run and bridge_helper_info": [
        "plugins/module_utils/tapfd/client.py",
        "plugins/module_utils/tapfd/run.py",
        "plugins/modules/bridge_helper_info.py",
    ],
    "The filter netdev": ["plugins/filter/netdev.py"],
    "The modules bridge, tap and links": ["plugins/module_utils/links/*.py"],
    "The module file_capabilities": ["plugins/modules/file_capabilities.py"],
    "The role qemu_bridge": ["roles/qemu_bridge/files/host.py", "roles/qemu_bridge/tasks/*.yml"],
}
# These sections have every message there is.
COMPLETE = ["The bridge helper", "Its launcher"]


def python_text(node: ast.AST) -> str | None:
    """A string of a module as it is put together, with `…` for what is computed."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def python_texts(text: str) -> Iterator[str]:
    """The strings of a module."""
    yield from filter(None, map(python_text, ast.walk(ast.parse(text))))


def c_texts(text: str) -> Iterator[str]:
    """The strings of a program in C, with macros that are strings in their places; what errno means comes after."""
    macros: dict[str, str] = {}

    def joined(pieces: str) -> str:
        words = re.findall(r'"((?:[^"\\]|\\.)*)"|([A-Z_]+)', pieces)
        return "".join(string or macros.get(name, "") for string, name in words)

    for name, pieces in re.findall(r'^#define (\w+) ((?:"[^"\n]*"|[A-Z_]+| )+)$', text, re.MULTILINE):
        macros[name] = joined(pieces)
    for pieces in re.findall(r'refuse\([^,]+,\s*((?:"[^"]*"|[A-Z_]+|\s)+),', text):
        yield joined(pieces)


def texts(patterns: list[str]) -> list[str]:
    """All that the files of these patterns may print."""
    found: list[str] = []
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        text = path.read_text("utf-8")
        if path.suffix == ".py":
            found += python_texts(text)
        elif path.suffix == ".c":
            found += (f"{message}: …" for message in c_texts(text))
        else:
            found.append(" ".join(re.sub(r"\{\{.*?\}\}", "…", text, flags=re.DOTALL).split()))
    return found


@pytest.mark.parametrize("section", SOURCES)
def test_every_message_on_the_page_is_in_the_code(section: str) -> None:
    known = texts(SOURCES[section])
    assert messages()[section]
    for message in messages()[section]:
        assert any(matches(message, text) for text in known), message


@pytest.mark.parametrize("section", COMPLETE)
def test_every_message_of_the_helper_is_on_the_page(section: str) -> None:
    """Whoever is refused by what runs with a capability finds out why."""
    raised: list[str] = []
    for path in map(ROOT.joinpath, SOURCES[section]):
        text = path.read_text("utf-8")
        if path.suffix == ".c":
            raised += (f"{message}: …" for message in c_texts(text))
            # The function itself besides.
            assert len(raised) == len(re.findall(r"\brefuse\(", text)) - 1
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Refusal", "Usage"):
                raised.append(python_text(node.args[0]) or "")
    # Some of the acl's only add a place to the message of another.
    told = {text for text in raised if re.search(r"[a-z]{3} ", text)}
    assert len(told) > 10
    for text in told:
        assert any(matches(message, text) for message in messages()[section]), text
