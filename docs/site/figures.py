# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An extension of Sphinx: the figures of the pages, drawn when the site is built."""

from __future__ import annotations

from typing import ClassVar

import mermaidx
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata


class Mermaid(SphinxDirective):
    """A block of Mermaid as the picture that viewers of repositories show; what Mermaid refuses ends the build."""

    has_content = True
    # The actors stand above their lines only, not below, too.
    config: ClassVar = {"sequence": {"mirrorActors": False}}

    def run(self) -> list[nodes.Node]:
        picture = mermaidx.render("\n".join(self.content), config=self.config).svg()
        return [nodes.raw("", f'<div class="diagram">{picture}</div>', format="html")]


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("mermaid", Mermaid)
    return {"version": "1", "parallel_read_safe": True}
