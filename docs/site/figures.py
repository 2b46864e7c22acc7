# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An extension of Sphinx: the figures of the pages, drawn when the site is built.

A diagram is a block of Mermaid in its page. A plot stands where its page has `<!-- plot: NAME -->`, which viewers of
repositories leave out, and shows numbers of that very page: it is read from the tables, and knows none by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import matplotlib as mpl
import mermaidx
from docutils import nodes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

mpl.rcParams.update(
    {
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 10,
        "grid.color": "#dddddd",
        "legend.frameon": False,
        # The same bytes at each build.
        "svg.hashsalt": "hostnet.qemu",
    }
)
# Apart for people who are colour-blind, too (Okabe and Ito).
BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#999999"


class Mermaid(SphinxDirective):
    """A block of Mermaid as the picture that viewers of repositories show; what Mermaid refuses ends the build."""

    has_content = True
    # The actors stand above their lines only, not below, too.
    config: ClassVar = {"sequence": {"mirrorActors": False}}

    def run(self) -> list[nodes.Node]:
        picture = mermaidx.render("\n".join(self.content), config=self.config).svg()
        return [nodes.raw("", f'<div class="diagram">{picture}</div>', format="html")]


def timings(page: str) -> dict[str, tuple[float, float]]:
    """Median and 90th percentile of the elapsed time, in milliseconds, by what was measured."""
    rows = re.findall(r"^(\S.*?) {2,}([\d.]+) +([\d.]+) +[\d.]+ +[\d.]+$", page, re.MULTILINE)
    return {what: (float(median), float(ninetieth)) for what, median, ninetieth in rows}


def bars(axes: Axes, rows: dict[str, tuple[float, float]], colours: list[str]) -> str:
    """A bar for each median, with a line to the 90th percentile; return the same in words."""
    positions = range(len(rows))
    medians = [median for median, _ninetieth in rows.values()]
    above = [ninetieth - median for median, ninetieth in rows.values()]
    axes.barh(positions, medians, xerr=[[0] * len(rows), above], color=colours, ecolor="#444444", capsize=3)
    axes.set_yticks(positions, rows)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("elapsed time in milliseconds: median, and a line to the 90th percentile")
    for position, (median, ninetieth) in enumerate(rows.values()):
        axes.annotate(f"{median:g}", (ninetieth, position), (6, 0), textcoords="offset points", va="center")
    return "; ".join(f"{what}: {median:g}, 90th percentile {ninetieth:g}" for what, (median, ninetieth) in rows.items())


def taps(page: str) -> tuple[Figure, str]:
    """What many taps take, by the number of taps and the way to make them."""
    rows = re.findall(r"^\| ([\d,]+) \| (.+?) \| (-?[\d.]+) s \|[^|]*\| (?:(-?[\d.]+) s|fails) \|", page, re.MULTILINE)
    ways: dict[str, list[tuple[int, float, float | None]]] = {}
    for count, way, first, second in rows:
        point = (int(count.replace(",", "")), float(first), float(second) if second else None)
        ways.setdefault(way.replace("`", ""), []).append(point)
    figure = Figure(figsize=(9, 4), layout="constrained")
    words = []
    for axes, title, column in zip(figure.subplots(1, 2, sharey=True), ("first run", "second run"), (1, 2)):
        for (way, points), colour, marker in zip(ways.items(), (BLUE, ORANGE, GREEN, PINK), "osD^"):
            # A time that came out below 0, see the notes at the table, has no place on this scale.
            shown = [(point[0], point[column]) for point in points if point[column] is not None and point[column] > 0]
            if shown:
                axes.plot(*zip(*shown), color=colour, marker=marker, label=way)
                words.append(f"{title}, {way}: " + ", ".join(f"{count:,} taps {time:g} s" for count, time in shown))
        axes.set(title=title, xscale="log", yscale="log", xlabel="taps")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_tick_params(labelleft=True)
        axes.legend()
    figure.axes[0].set_ylabel("seconds, without Ansible's start")
    return figure, f"Seconds by the number of taps, on logarithmic scales. {'; '.join(words)}."


def hand_over(page: str) -> tuple[Figure, str]:
    """What one hand-over takes, beside what it could not do without."""
    measured = timings(page.partition("\n## qemu-bridge-run\n")[0])
    rows = {what: row for what, row in measured.items() if "closing" not in what}
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    words = bars(figure.subplots(), rows, [BLUE if "hostnet.qemu" in what else GREY for what in rows])
    return figure, f"Elapsed time in milliseconds, medians. {words}."


def run(page: str) -> tuple[Figure, str]:
    """What qemu-bridge-run takes for one and for several bridges, beside one hand-over after the other."""
    measured = timings(page.partition("\n## qemu-bridge-run\n")[2])
    rows = {what: row for what, row in measured.items() if "bridge" in what}
    # Pairs, with the same number of bridges.
    rows = dict(sorted(rows.items(), key=lambda item: int(re.findall(r"(\d+) bridge", item[0])[0])))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    words = bars(figure.subplots(), rows, [BLUE if what.startswith("qemu-bridge-run") else GREY for what in rows])
    return figure, f"Elapsed time in milliseconds, medians. {words}."


PLOTS: dict[str, Callable[[str], tuple[Figure, str]]] = {"taps": taps, "hand-over": hand_over, "run": run}


def draw_plots(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the plots into a page; they lie beside it."""
    (text,) = source

    def draw(match: re.Match[str]) -> str:
        figure, words = PLOTS[match[1]](text)
        if not re.search(r"\d", words):
            raise ValueError(f"{page}: there is no number for the plot {match[1]}")
        name = f"plot-{match[1]}.svg"
        # Without a date, which would differ at each build.
        figure.savefig(Path(app.srcdir, page).parent / name, metadata={"Date": None})
        return f"```{{image}} {name}\n:alt: {words}\n:class: plot\n```"

    source[:] = [re.sub(r"<!-- plot: ([\w-]+) -->", draw, text)]


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", draw_plots)
    return {"version": "1", "parallel_read_safe": True}
