# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages on the page docs/errors.md."""

from __future__ import annotations

import re

from support.install import ROOT


def messages() -> dict[str, list[str]]:
    """The messages by the section that they stand in."""
    text = (ROOT / "docs/errors.md").read_text("utf-8")
    sections = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return {
        heading: re.findall(r"^### `` (.+) ``$", body, re.MULTILINE)
        for heading, body in zip(sections[::2], sections[1::2])
    }


def matches(message: str, text: str) -> bool:
    """Whether a message of the page, with `…` for any words, stands in a text."""
    return bool(re.search(".*?".join(map(re.escape, message.split("…"))), text, re.DOTALL))
