# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was run, on what, how long and with what outcome: one line of JSON each, from which .ci/run makes its table.

Standard library alone, since .ci/run reads them before any environment is made.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

# The variable that names the file; where it is not set, nothing is recorded.
VARIABLE = "CI_SUMMARY"


class Entry(NamedTuple):
    """One row: `outcome` is ok, failed or skipped; `note` has counts, and what was skipped and why."""

    what: str
    on: str
    seconds: float
    outcome: str
    note: str = ""


def record(entry: Entry, path: str | None = os.environ.get(VARIABLE)) -> None:
    """Append the entry to a file, which is that of `CI_SUMMARY`; without one nothing is recorded."""
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry._asdict()) + "\n")


def read(path: Path) -> list[Entry]:
    """The entries of such a file, which need not exist."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Entry(**json.loads(line)) for line in lines]


def table(entries: list[Entry]) -> str:
    """The entries as a table in Markdown, their columns as wide as they must be."""
    rows = [["what", "on", "time", "outcome", "note"]]
    for entry in entries:
        minutes, seconds = divmod(round(entry.seconds), 60)
        rows.append([entry.what, entry.on, f"{minutes}:{seconds:02}", entry.outcome, entry.note])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    # The last column is the longest, and nothing follows it.
    widths[-1] = 0
    return "".join("| " + " | ".join(map(str.ljust, row, widths)) + " |\n" for row in rows)
