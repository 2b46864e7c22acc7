# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pages for users say exists: links, options of QEMU."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from ansible_collections.hostnet.qemu.plugins.filter.netdev import netdev
from support.install import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def anchors(page: Path) -> set[str]:
    """The names by which the headings of a page are linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
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
