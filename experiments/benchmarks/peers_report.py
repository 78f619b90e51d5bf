"""The table and the chart of `experiments.benchmarks.peers`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from agejax.reporting.plots import BLUE, GRID, ORANGE, TEXT, Chart, tidy

FIRST = "agejax"  # the others are compared with it
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", TEXT, "#56b4e9")
SMALL = 9  # points


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table per kind of row: the figures, and their ratios to agejax's.

    Args:
      rows: as `peers.summarise` gives them.
    """
    parts = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines = [
            f"### {kind.capitalize()}\n",
            f"| what | who | measured | over {FIRST}'s |",
            "|---|---|---|---|",
        ]
        for row in (row for row in rows if row["kind"] == kind):
            for who, figures in row["contestants"].items():
                lines.append(
                    f"| {row['what']} | {who} | {measured(row, figures)} | {over(figures)} |"
                )
            for who, reason in row["skipped"].items():
                lines.append(f"| {row['what']} | {who} | {reason.replace('|', '/')} | |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def measured(row: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The median in the row's unit, as a table's cell."""
    if row["unit"] == "bytes":
        return f"{figures['median'] / 2**20:,.0f} MiB"
    if row["unit"] == "arrays":
        if not figures["median"]:
            return f"the same bits in all {figures['of']} arrays"
        return (
            f"{figures['median']} of {figures['of']} arrays differ, by up to "
            f"{figures['largest']:.1e} of an array's largest value"
        )
    if row["images"] is None:
        return f"{figures['median']:.1f} s"
    speed = figures["images_per_second"]
    cell = f"{speed:,.0f} images/s" if speed >= 100 else f"{speed:.3g} images/s"
    if "flops_per_second" in figures:
        cell += f", {figures['flops_per_second'] / 1e9:,.1f} GFLOP/s"
    if "mfu" in figures:
        cell += f", MFU {figures['mfu']:.1%}"
    if "roofline" in figures:  # only where the bytes that a step moves are known
        cell += f", {figures['roofline']:.1%} of the roofline"
    if "host_milliseconds" in figures:
        cell += f", {figures['host_milliseconds']:.2f} ms of the host per step"
    if "device_bytes" in figures:
        cell += f", {figures['device_bytes'] / 2**20:,.0f} MiB of the device"
    return cell


def over(figures: Mapping[str, Any]) -> str:
    """The ratio to agejax and its range as a table's cell; "" for agejax itself."""
    if "ratio" not in figures:
        return ""
    ratio = figures["ratio"]
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def differences(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence for each contestant with another number of parameters than agejax."""
    return "".join(
        f"{who}'s {row['what'].split(',')[0]} has {figures['parameters']:,} parameters, "
        f"{FIRST}'s {row['contestants'][FIRST]['parameters']:,}. "
        for row in rows
        for who, figures in row["contestants"].items()
        if figures.get("parameters") != row["contestants"][FIRST].get("parameters")
    )


def chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """A panel per kind: each contestant's time or memory over agejax's, with the range of turns.

    Args:
      rows: as for `tables`.
    """
    compared = [
        {**row, "contestants": {k: v for k, v in row["contestants"].items() if "ratio" in v}}
        for row in rows
    ]
    kinds = {
        kind: [row for row in compared if row["kind"] == kind]
        for kind in dict.fromkeys(row["kind"] for row in compared if row["contestants"])
    }
    colours = dict(zip(
        dict.fromkeys(row["what"] for row in rows), itertools.cycle(COLOURS), strict=False
    ))  # fmt: skip
    heights = [1 + len(_names(of)) for of in kinds.values()] or [1]
    figure = Figure(figsize=(7.5, 1.0 + 0.36 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    words = []
    for axes, (kind, of) in zip(panels, kinds.items(), strict=False):
        _draw(axes, of, colours)
        axes.set_title(kind, loc="left", fontsize=SMALL + 1, color=TEXT)
        words += [
            f"{kind}, {row['what']}, {who}: {figures['ratio']['median']:.2f}"
            for row in of
            for who, figures in row["contestants"].items()
        ]
    for what, colour in colours.items():
        panels[0].plot([], [], "o", color=colour, markersize=5, label=what)
    panels[0].legend(
        frameon=False, labelcolor=TEXT, fontsize=SMALL, ncols=2, loc="lower right",
        bbox_to_anchor=(1, 1.1), borderaxespad=0,
    )  # fmt: skip
    caption = f"Time or memory over {FIRST}'s: right of the line, {FIRST} needs less"
    return Chart.of(figure, caption, f"{caption}. {'; '.join(words) or 'nobody to compare with'}.")


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(who for row in rows for who in row["contestants"]))


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Draws a line per contestant, with a mark per row."""
    names = _names(rows)
    for j, row in enumerate(rows):
        for who, figures in row["contestants"].items():
            ratio, y = figures["ratio"], names.index(who) + 0.24 * (j - len(rows) / 2 + 0.5)
            colour = colours[row["what"]]
            axes.plot([ratio["min"], ratio["max"]], [y, y], color=colour, linewidth=1.5)
            axes.plot(ratio["median"], y, "o", color=colour, markersize=5)
    axes.axvline(1, color=TEXT, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    tidy(axes)
