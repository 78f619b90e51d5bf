"""Figures of a run and its evaluation, drawn without a display or any global state."""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from agejax.metrics import DECADES, decades

# Of Okabe & Ito, told apart by everybody; and two greys for what is not data.
BLUE, ORANGE = "#0072b2", "#d55e00"
TEXT, GRID = "#444444", "#dddddd"
SHOWN_CURVES = ("loss", "/mae", "/accuracy", "learning_rate")  # how their names end


class Chart(NamedTuple):
    """A PNG, what it shows in one line, and in words for who cannot see it."""

    png: bytes
    caption: str
    alt: str

    @classmethod
    def of(cls, figure: Figure, caption: str, alt: str) -> Chart:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
        return cls(file.getvalue(), caption, alt)


def save_age_figure(
    true: np.ndarray, predicted: np.ndarray, path: pathlib.Path, *, title: str
) -> None:
    """Predicted against true age, and the error of each decade, as one PNG.

    Args:
      true, predicted: years, [N]; where either is not finite the image is left out.
    """
    known = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[known].astype(float), predicted[known].astype(float)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    mae = f", MAE {np.abs(predicted - true).mean():.2f} years" if true.size else ""
    figure.suptitle(f"{title}: n = {true.size:,}{mae}", color=TEXT)
    _plot_predicted(left, true, predicted)
    _plot_error(right, true, predicted)
    figure.savefig(path, dpi=130)


def _plot_predicted(axes: Axes, true: np.ndarray, predicted: np.ndarray) -> None:
    """A density of (true, predicted) in cells of two years, with the median of each decade."""
    low = min(0.0, np.floor(predicted.min(initial=0)))
    high = max(true.max(initial=0), predicted.max(initial=0)) + 3
    edges = np.linspace(low, high, max(int((high - low) / 2), 10))
    counts, *_ = np.histogram2d(true, predicted, bins=(edges, edges))
    image = axes.pcolormesh(
        edges,
        edges,
        np.ma.masked_equal(counts.T, 0),
        cmap="Blues",
        norm=LogNorm(0.4, max(counts.max(), 2)),  # one image is pale, but not white
        rasterized=True,
    )
    bar = axes.figure.colorbar(image, ax=axes, label="images a cell", shrink=0.85)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    bar.ax.yaxis.set_minor_formatter("")
    bar.ax.set_ylim(bottom=1)
    axes.plot([low, high], [low, high], "--", color=TEXT, linewidth=1, label="exact")
    centres = np.array(
        [(true[m].mean(), np.median(predicted[m])) for _, m in decades(true) if m.sum() >= 5]
    ).reshape(-1, 2)
    axes.plot(*centres.T, "o-", color=ORANGE, markersize=4.5, label="median of a decade")
    axes.set(
        xlabel="true age (years)",
        ylabel="predicted age (years)",
        aspect="equal",
        xlim=(low, high),
        ylim=(low, high),
    )
    axes.legend(loc="upper left", frameon=False, labelcolor=TEXT)
    tidy(axes)


def _plot_error(axes: Axes, true: np.ndarray, predicted: np.ndarray) -> None:
    """Mean absolute error (bars, 95 % normal interval, n) and bias (diamonds) of each decade."""
    error = predicted - true
    parts = [(i, error[mask]) for i, (_, mask) in enumerate(decades(true)) if mask.any()]
    x = [i for i, _ in parts]
    mae = np.array([np.abs(e).mean() for _, e in parts])
    half = np.array([_half_width(np.abs(e)) for _, e in parts])
    axes.bar(x, mae, width=0.72, color=BLUE, zorder=2, label="MAE, 95 % interval, number of images")
    axes.errorbar(x, mae, np.minimum(half, mae), fmt="none", color=TEXT, capsize=3, zorder=3)
    axes.plot(
        x, [e.mean() for _, e in parts], "D", color=ORANGE, mec="white", zorder=4,
        label="bias (predicted − true)",
    )  # fmt: skip
    for (i, e), top in zip(parts, mae + half, strict=True):
        axes.annotate(
            f"{len(e):,}", (i, top), (0, 4), textcoords="offset points", ha="center", fontsize=8,
            color=TEXT, zorder=5, bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.5},
        )  # fmt: skip
    axes.axhline(0, color=TEXT, linewidth=0.8, zorder=3)
    if error.size:
        axes.axhline(np.abs(error).mean(), color=BLUE, linestyle=":", zorder=1, label="MAE of all")
    axes.set_xticks(range(len(DECADES)), DECADES, fontsize=8.5)
    axes.set(xlabel="true age (years)", ylabel="error (years)", xlim=(-0.6, len(DECADES) - 0.4))
    axes.margins(y=0.12)
    axes.legend(loc="upper left", frameon=False, labelcolor=TEXT, fontsize=8.5)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.25)  # room for the legend above the bars
    axes.grid(axis="y", color=GRID, zorder=0)
    tidy(axes)


def _half_width(values: np.ndarray) -> float:
    """Of the mean's 95 % normal interval; 0 where one value says nothing about it."""
    n = len(values)
    return float(1.96 * values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def training_curves(metrics_jsonl: pathlib.Path) -> Chart:
    """A run's metrics.jsonl: a panel for each quantity named in `SHOWN_CURVES`."""
    entries = []
    for line in metrics_jsonl.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:  # the last line of a run that is going on, or was killed
            continue
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for entry in entries for name in entry):
        quantity = name.removeprefix("val/")
        if quantity.endswith(SHOWN_CURVES):
            panels.setdefault(quantity, []).append(name)
    order = sorted(panels, key=lambda q: next(i for i, s in enumerate(SHOWN_CURVES) if s in q))
    columns = min(2, max(len(order), 1))
    rows = max(-(-len(order) // columns), 1)
    figure = Figure(figsize=(3.75 * columns, 2.6 * rows), layout="constrained")
    words = []
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, quantity in zip(grid, order, strict=False):
        for name in panels[quantity]:
            points = [(e["step"], e[name]) for e in entries if e.get(name) is not None]
            if points:
                words.append(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}")
            if name.startswith("val/"):
                axes.plot(*zip(*points, strict=True), "o-", color=ORANGE, ms=4, label="validation")
            else:
                axes.plot(*zip(*points, strict=True), color=BLUE, lw=1.2, label="training")
        axes.set_title(quantity.replace("_", " "), fontsize=10, color=TEXT)
        axes.grid(color=GRID)
        tidy(axes)
        if len(panels[quantity]) > 1:
            axes.legend(frameon=False, labelcolor=TEXT, fontsize=8.5)
    for axes in grid[len(order) :]:
        axes.set_visible(False)
    figure.supxlabel("step", color=TEXT, fontsize=10)
    steps = max((entry["step"] for entry in entries), default=0)
    alt = f"Line charts over {steps:,} steps: {'; '.join(words) or 'no entry yet'}."
    return Chart.of(figure, f"Training over {steps:,} steps", alt)


def save_distribution_figure(
    measured: Mapping[str, Any], path: pathlib.Path, *, title: str
) -> None:
    """Each group's share of the data, of the expected draws and of those made, as one PNG.

    Args:
      measured: as `agejax.data.distribution.measure` gives it; a panel for each of its tables.
    """
    tables = measured["tables"]
    lines = [max(len(table), 3) for table in tables.values()]
    figure = Figure(figsize=(8.5, 1 + 0.27 * sum(lines) + 0.55 * len(lines)), layout="constrained")
    figure.suptitle(
        f"{title}: {measured['rows']:,} images, {measured['draws']:,} draws an epoch", color=TEXT
    )
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=lines).ravel()
    for axes, (label, table) in zip(panels, tables.items(), strict=True):
        y = np.arange(len(table))
        share, expected, drawn = (
            [100 * row[key] for row in table.values()] for key in ("share", "expected", "drawn")
        )
        axes.barh(y, share, 0.75, color=GRID, zorder=1, label="images")
        axes.barh(y, expected, 0.4, color=BLUE, zorder=2, label="expected draws")
        axes.plot(drawn, y, "D", ms=4.5, color=ORANGE, mec="white", zorder=3, label="draws made")
        axes.set_yticks(y, list(table), fontsize=8.5)
        axes.set(ylim=(len(table) - 0.4, -0.6), xlim=(0, None))
        axes.set_title(label, loc="left", fontsize=10, color=TEXT)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} %"))
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        tidy(axes)
    panels[0].legend(
        frameon=False, labelcolor=TEXT, fontsize=8.5, ncols=3, loc="lower right",
        bbox_to_anchor=(1, 1), borderaxespad=0,
    )  # fmt: skip
    figure.savefig(path, dpi=130)


def tidy(axes: Axes) -> None:
    """The look that all charts share."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(TEXT)
    axes.tick_params(colors=TEXT)
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    axes.set_axisbelow(True)
