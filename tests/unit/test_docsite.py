# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make docs` finds wrong with a site that is not whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from docsite import problems


def found(site: Path, first: str, **others: str) -> list[str]:
    """The problems of a site with this first page and these others."""
    for name, text in {"index": first, **others}.items():
        (site / f"{name}.html").write_text(f"<!doctype html><title>{name}</title>{text}")
    return list(problems(site))


def test_a_whole_site_has_none(tmp_path: Path) -> None:
    (tmp_path / "style.css").write_text("a { background: url(data:image/png;base64,AAAA) }")
    (tmp_path / "a plot.svg").write_text("<svg/>")
    first = """
        <link rel="stylesheet" href="style.css?v=1"> <link rel="canonical" href="https://example.com/">
        <a href="other.html#caf%C3%A9">a place</a> <a href="#here" id="here">itself</a>
        <a href="https://example.com/nowhere">elsewhere</a> <form action="search.html"></form>
        <img src="a%20plot.svg" alt="Two bars">
    """
    assert found(tmp_path, first, other='<h1 id="café">A place</h1>', search="") == []


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        ('<a href="gone.html">a page</a>', "index.html: gone.html leads to no file"),
        ('<a href="#gone">a place</a>', "index.html: #gone leads to no place in its page"),
        ('<img src="gone.svg" alt="A picture">', "index.html: gone.svg leads to no file"),
        ('<img src="data:image/gif;base64,AAAA" alt=" ">', "does not say in words what data:image/gif"),
        ('<img src="https://example.com/a.png" alt="A">', "loads https://example.com/a.png, which is on another host"),
        ('<script src="//example.com/a.js"></script>', "loads //example.com/a.js, which is on another host"),
        ('<link rel="stylesheet" href="http://example.com/a.css">', "loads http://example.com/a.css"),
        ('<p style="background: url(https://example.com/a.png)">', "loads https://example.com/a.png"),
        ('<style>@import "https://example.com/a.css";</style>', "loads https://example.com/a.css"),
        ('<svg><image href="https://example.com/a.svg"/></svg>', "loads https://example.com/a.svg"),
    ],
)
def test_what_is_wrong_with_a_page_is_told(tmp_path: Path, first: str, problem: str) -> None:
    (told,) = found(tmp_path, first)
    assert problem in told


def test_pages_without_a_way_to_them_are_told(tmp_path: Path) -> None:
    # The two know of each other only.
    told = found(tmp_path, "", one='<a href="two.html">two</a>', two='<a href="one.html">one</a>')
    assert told == ["one.html: no link leads here", "two.html: no link leads here"]


def test_style_sheets_load_nothing_from_other_hosts(tmp_path: Path) -> None:
    (tmp_path / "style.css").write_text("@font-face { src: url('https://example.com/a.woff2') }")
    assert found(tmp_path, "") == ["style.css: loads https://example.com/a.woff2, which is on another host"]
