# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Sphinx makes the site of the pages that `make docs` has put together."""

from __future__ import annotations

import re
import sys
from importlib.resources import files
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

HERE = Path(__file__).resolve().parent
# For the extension beside this file.
sys.path.insert(0, str(HERE))

galaxy = yaml.safe_load((HERE / "../../galaxy.yml").read_text("utf-8"))

project = f"{galaxy['namespace']}.{galaxy['name']}"
author = "the hostnet.qemu authors"
copyright = f"{author}, GNU GPL version 3 or later"
release = version = galaxy["version"]

extensions = ["myst_parser", "sphinx_antsibull_ext", "figures"]
# The page of the site's root stands there already, and no plugin here reads environment variables.
exclude_patterns = ["docs/site", "collections/environment_variables.rst"]

nitpicky = True
highlight_language = "text"
# The same names of headings as in viewers of repositories, so that links work in both.
myst_heading_anchors = 3
# Shown as a diagram by figures.py.
myst_fence_as_directive = {"mermaid"}

html_theme = "furo"
# Of their own accord the tables of options stay light where the page is dark.
dark = files("sphinx_antsibull_ext").joinpath("colors-default-dark.css").read_text("utf-8")
html_theme_options = {"dark_css_variables": dict(re.findall(r"--(antsibull-[\w-]+):([^;}]+)", dark))}
html_title = f"{project} {release}"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_use_index = False

# What the generated pages refer to in Ansible's own documentation, whose list of labels is not there without a network.
ANSIBLE = "https://docs.ansible.com/ansible/latest/"
ANSIBLE_LABELS = {
    "common_return_values": "reference_appendices/common_return_values.html#common-return-values",
    "ansible_collections.ansible.builtin.quote_filter": "collections/ansible/builtin/quote_filter.html",
}


def link_to_ansible(
    _app: Sphinx, _environment: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.reference | None:
    """A link to Ansible's documentation, if that is where a reference leads that no page here answers."""
    page = ANSIBLE_LABELS.get(node["reftarget"])
    return page and nodes.reference("", "", content, refuri=ANSIBLE + page, internal=False)


def fit_in(_app: Sphinx, page: str, source: list[str]) -> None:
    """Make a generated page a part of this site: no list of contents, which stands beside it, and short names."""
    if not page.startswith("collections/"):
        return
    (text,) = source
    text = re.sub(r"^\.\. contents::\n(?: +:.*\n)+", "", text, flags=re.MULTILINE)
    if page == "collections/index":
        title = "Modules, filter and role"
        text = text.replace(f"{project.title()}\n{'=' * len(project)}\n", f"{title}\n{'=' * len(title)}\n")
        text = re.sub(r"^    (\w+)_(module|filter|role)$", r"    \1 (\2) <\1_\2>", text, flags=re.MULTILINE)
    source[:] = [text]


def setup(app: Sphinx) -> None:
    app.connect("source-read", fit_in)
    app.connect("missing-reference", link_to_ansible)
