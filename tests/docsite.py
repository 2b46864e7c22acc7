# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of `make docs`, that is `python -m tests.docsite DIRECTORY`: whether the site is whole and enough for itself.

Every link within the site leads to a file and to a place in it, nothing is loaded from another host, every image says
in words what it shows, and every page of the checkout is there and can be found from the first one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
# What a browser gets without being asked, by the name of the element.
LOADED = {
    "audio": ["src"],
    "embed": ["src"],
    "iframe": ["src"],
    "image": ["href", "xlink:href"],
    "img": ["src", "srcset"],
    "input": ["src"],
    "link": ["href"],
    "object": ["data"],
    "script": ["src"],
    "source": ["src", "srcset"],
    "use": ["href", "xlink:href"],
    "video": ["src", "poster"],
}
# Where a click leads.
LED_TO = {"a": ["href"], "form": ["action"]}
# How a style sheet loads something.
STYLE_LOADS = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")


@dataclass
class Page(HTMLParser):
    """What a page is made of."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    loads: set[str] = field(default_factory=set)
    nameless: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        # A canonical address and the like are loaded by nobody.
        if tag != "link" or values.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon"):
            self.loads |= {values[name] for name in LOADED.get(tag, []) if values.get(name)}
        self.loads |= set(style_loads(values.get("style", "")))
        self.links |= {values[name] for name in LED_TO.get(tag, []) if values.get(name)}
        if tag == "img" and not values.get("alt", "").strip():
            self.nameless.add(values.get("src", ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.loads |= set(style_loads(data))


def style_loads(text: str) -> Iterator[str]:
    """What a style sheet, or a part of one, loads."""
    for match in STYLE_LOADS.finditer(text):
        yield match[1] or match[2]


def is_elsewhere(address: str) -> bool:
    """Whether an address leaves the site."""
    parts = urlsplit(address)
    return bool(parts.netloc or parts.scheme)


def is_loaded_from_elsewhere(address: str) -> bool:
    """Whether it takes another host to load an address."""
    return is_elsewhere(address) and not address.startswith("data:")


def problems(site: Path) -> Iterator[str]:
    """What is wrong with the site, one line each."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    reached, ahead = set(), {site / "index.html"} & pages.keys()
    links: dict[Path, set[Path]] = {}

    for path, page in pages.items():
        name = path.relative_to(site)
        for address in sorted(filter(is_loaded_from_elsewhere, page.loads)):
            yield f"{name}: loads {address}, which is on another host"
        for source in sorted(page.nameless):
            yield f"{name}: does not say in words what {source} shows"
        links[path] = set()
        for address in sorted(page.links | page.loads):
            if is_elsewhere(address):
                continue
            parts = urlsplit(address)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{name}: {address} leads to no file"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{name}: {address} leads to no place in its page"
            elif target in pages:
                links[path].add(target)

    while ahead:
        reached |= ahead
        ahead = set().union(*(links[path] for path in ahead)) - reached
    for path in sorted(pages.keys() - reached):
        yield f"{path.relative_to(site)}: no link leads here"

    for path in sorted(site.rglob("*.css")):
        for address in filter(is_loaded_from_elsewhere, style_loads(path.read_text("utf-8"))):
            yield f"{path.relative_to(site)}: loads {address}, which is on another host"


def expected() -> Iterator[str]:
    """The pages that the site has at the least: those that people have written, and one for each plugin and role."""
    for name in ("index", "README", "CONTRIBUTING", "CHANGELOG"):
        yield f"{name}.html"
    for pattern in ("docs/*.md", "roles/*/README.md", "files/launcher/README.md"):
        for path in ROOT.glob(pattern):
            yield str(path.relative_to(ROOT).with_suffix(".html"))
    for folder, kind in (("plugins/modules", "module"), ("plugins/filter", "filter")):
        for path in ROOT.joinpath(folder).glob("*.py"):
            yield f"collections/{path.stem}_{kind}.html"
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        yield f"collections/{path.parts[-3]}_role.html"


def main() -> int:
    site = Path(sys.argv[1]).resolve()
    found = [*problems(site), *(f"{name}: is missing" for name in expected() if not (site / name).is_file())]
    for problem in found:
        print(f"site: {problem}", file=sys.stderr)
    if not found:
        print(f"The site is whole: {sum(1 for _path in site.rglob('*.html'))} pages, {site}/index.html is the first.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
