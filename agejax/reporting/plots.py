"""What charts share, and the charts of a run; drawn without a display or global state."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from agejax.errors import is_number

# Okabe & Ito's, safe for colour-blind readers; and two greys for everything but data.
BLUE, ORANGE = "#0072b2", "#d55e00"
TEXT, GRID = "#444444", "#dddddd"
WIDTH = 5.2  # inches: shown 360 pixels wide on a phone, 10 points are 9.6 pixels high
SHOWN_CURVES = ("loss", "/mae", "/accuracy", "learning_rate")  # ends of their names


class Chart(NamedTuple):
    """A PNG, its caption in one line, and its alternative text."""

    png: bytes
    caption: str
    alt: str

    @classmethod
    def of(cls, figure: Figure, caption: str, alt: str) -> Chart:
        file = io.BytesIO()
        save(figure, file, dpi=110, metadata={"Software": None})
        return cls(file.getvalue(), caption, alt)


def save(figure: Figure, file: BinaryIO, **options: Any) -> None:
    """Saves a figure as a PNG, with the options of `Figure.savefig`.

    Its texts are names of users' files, classes and folders, so no "$" in them begins a formula.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.savefig(file, format="png", **options)


def training_curves(metrics_jsonl: pathlib.Path) -> dict[str, Chart]:
    """Draws a run's metrics.jsonl: a chart for each quantity in `SHOWN_CURVES`, by its name."""
    entries = []
    for line in metrics_jsonl.read_text(encoding="utf-8", errors="replace").splitlines():
        # The last line of a running or killed run may be cut off; others may be damaged.
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and is_number(entry.get("step")):
                entries.append({k: v for k, v in entry.items() if is_number(v)})
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in dict.fromkeys(name for entry in entries for name in entry):
        quantity = name.removeprefix("val/")
        if quantity.endswith(SHOWN_CURVES):
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            curves.setdefault(quantity, {})[name] = points

    def place(quantity: str) -> tuple[int, int]:
        """That of its ending; before the quantities of single heads comes that of all."""
        ending = next(i for i, end in enumerate(SHOWN_CURVES) if quantity.endswith(end))
        return ending, quantity.count("/")

    order = sorted(curves, key=place)
    return {quantity: _curves(quantity, curves[quantity]) for quantity in order}


def _curves(quantity: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    """Draws a quantity's (step, value) in training and in validation, "val/..."."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    axes = figure.subplots()
    words = []
    for name, points in curves.items():
        words.append(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}")
        if name.startswith("val/"):
            axes.plot(*zip(*points, strict=True), "o-", color=ORANGE, ms=4, label="validation")
        else:
            axes.plot(*zip(*points, strict=True), color=BLUE, lw=1.2, label="training")
    axes.set(xlabel="step")
    axes.grid(color=GRID)
    tidy(axes)
    # Above the axes, where it covers no data.
    figure.legend(loc="outside upper left", frameon=False, labelcolor=TEXT, ncols=2, fontsize=10)
    what = quantity.replace("_", " ").replace("/", ", ").replace("mae", "MAE (years)")
    steps = max(step for points in curves.values() for step, _ in points)
    alt = f"Line chart over {steps:,} steps: {'; '.join(words)}."
    return Chart.of(figure, what[:1].upper() + what[1:], alt)


def save_distribution_figure(measured: Mapping[str, Any], file: BinaryIO, *, title: str) -> None:
    """Saves each group's share of the data, of the expected and of the actual draws, as one PNG.

    Args:
      measured: as `agejax.auditing.distribution.measure` gives it; a panel for each of its tables.
    """
    tables = measured["tables"]
    lines = [max(len(table), 3) for table in tables.values()]
    figure = Figure(figsize=(8.5, 1 + 0.27 * sum(lines) + 0.55 * len(lines)), layout="constrained")
    figure.suptitle(
        f"{title}: {measured['rows']:,} images, {measured['draws']:,} draws per epoch", color=TEXT
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
    save(figure, file, dpi=130)


def shaded_table(
    axes: Axes, shades: np.ndarray, texts: Sequence[Sequence[str]], size: float
) -> None:
    """Draws a table of cells, such as a confusion matrix; a larger shade is darker.

    Args:
      shades: [R, C], 0 to 1.
      texts: R rows of C cells.
      size: of the texts, points.
    """
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            colour = ink(shades[i, j])
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)
    tidy(axes)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def ink(shade: float) -> str:
    """Black or white, whichever is easier to read on this shade of blue, 0 to 1.

    Their contrasts are equal at a luminance of 0.18 (WCAG 2), which `Blues` has at 0.71.
    """
    return "white" if shade > 0.71 else "black"


def tidy(axes: Axes) -> None:
    """Applies the look that all charts share."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(TEXT)
    axes.tick_params(colors=TEXT)
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    axes.set_axisbelow(True)
