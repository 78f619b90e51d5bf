"""Charts of a comparison: the arms' errors by decade, confusion matrices and training curves."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from agejax.reporting.plots import BLUE, GRID, ORANGE, TEXT, Chart, shaded_table, tidy
from experiments.arms import Scores

SMALL = 9  # points
STYLES = [
    (style, colour)
    for style in ("-", "--", ":")
    for colour in (BLUE, ORANGE, "#009e73", "#cc79a7", TEXT)
]


def of_arms(scores: Mapping[str, Scores], runs: Mapping[str, pathlib.Path]) -> dict[str, Chart]:
    """Name -> chart: errors by decade, confusion matrices of each class label, training curves.

    Args:
      runs: arm -> the folder of the run whose curve is drawn; arms without one are left out.
    """
    drawn = {"decades": decades(scores)}
    base = next(iter(scores.values()))
    for label, names in base.runs[0]["facts"]["label_names"].items():
        having = {arm: of for arm, of in scores.items() if label in of.predicted}
        if having:
            drawn[f"confusion-{label}"] = confusions(label, names, having)
    logs = {arm: path / "metrics.jsonl" for arm, path in runs.items()}
    return drawn | {"curves": curves({arm: log for arm, log in logs.items() if log.exists()})}


def decades(scores: Mapping[str, Scores]) -> Chart:
    """A row per arm and a column per decade: the MAE over seeds, years."""
    table = {arm: of.by_decade("age") for arm, of in scores.items()}
    first = next(iter(table.values()))
    values = np.array([[row[name][0] for name in first] for row in table.values()])
    best = values.argmin(axis=0)
    figure = Figure(
        figsize=(2.6 + 0.62 * values.shape[1], 1.2 + 0.3 * len(values)), layout="constrained"
    )
    axes = figure.subplots()
    # Each column has its own scale of shades: arms are compared within a decade.
    low, high = values.min(axis=0), values.max(axis=0)
    share = (values - low) / np.maximum(high - low, 1e-9)
    shaded_table(axes, share, [[f"{value:.1f}" for value in row] for row in values], SMALL)
    for text in axes.texts:
        j, i = text.get_position()
        text.set_weight("bold" if best[int(j)] == i else "normal")
    axes.set_xticks(range(len(first)), [f"{k}\n{n:,}" for k, (_, n) in first.items()])
    axes.set_yticks(range(len(table)), list(table))
    axes.set(xlabel="decade, and its images")
    axes.tick_params(labelsize=SMALL)
    words = "; ".join(
        f"{name}: best {list(table)[best[j]]} {low[j]:.1f}, worst {high[j]:.1f}"
        for j, name in enumerate(first)
    )
    alt = f"Table of mean absolute errors in years, an arm a row, a decade a column. {words}."
    return Chart.of(figure, "MAE by decade, years; the best of each in bold", alt)


def confusions(label: str, names: list[str], scores: Mapping[str, Scores]) -> Chart:
    """A panel per arm: the confusion matrix over seeds, as shares of each true class."""
    k, columns = len(names), min(3, len(scores))
    rows = -(-len(scores) // columns)
    figure = Figure(
        figsize=(0.6 + columns * (0.9 + 0.5 * k), rows * (0.8 + 0.38 * k)), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    words = []
    for axes, (arm, of) in zip(grid.flat, scores.items(), strict=False):
        true = of.columns[label].astype(int)
        share = np.zeros((k, k))
        for said in of.predicted[label].astype(int):
            np.add.at(share, (true[true >= 0], said[true >= 0]), 1)
        share /= np.maximum(share.sum(axis=1, keepdims=True), 1)
        shaded_table(axes, share, [[f"{100 * x:.0f}" for x in row] for row in share], SMALL)
        axes.set_title(arm, fontsize=SMALL, color=TEXT)
        axes.set_xticks(range(k), names, rotation=45, ha="right")
        axes.set_yticks(range(k), names)
        axes.tick_params(labelsize=SMALL)
        words.append(
            f"{arm}: right "
            + ", ".join(f"{name} {share[i, i]:.0%}" for i, name in enumerate(names))
        )
    for axes in list(grid.flat)[len(scores) :]:
        axes.set_visible(False)
    alt = f"Confusion matrices of {label}, one an arm. {'; '.join(words)}."
    return Chart.of(figure, f"{label.capitalize()}: what the model predicts for each class, %", alt)


def curves(logs: Mapping[str, pathlib.Path]) -> Chart:
    """A line per arm: the val MAE of the age, years, against the steps."""
    figure = Figure(figsize=(6.4, 2.8 + 0.16 * len(logs)), layout="constrained")
    axes = figure.subplots()
    words = []
    for (arm, log), (style, colour) in zip(logs.items(), itertools.cycle(STYLES), strict=False):
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        points = [(e["step"], e["val/age/mae"]) for e in entries if "val/age/mae" in e]
        if not points:
            continue
        steps, errors = np.array(points).T
        axes.plot(steps, errors, linestyle=style, color=colour, marker=".", label=arm)
        words.append(f"{arm} {errors[0]:.1f} to {errors[-1]:.1f} in {steps[-1]:,.0f} steps")
    axes.set(xlabel="step", ylabel="val MAE (years)")
    axes.grid(color=GRID, linewidth=0.6)
    axes.legend(
        frameon=False, labelcolor=TEXT, fontsize=SMALL, ncols=2, loc="lower left",
        bbox_to_anchor=(0, 1.01),
    )  # fmt: skip
    tidy(axes)
    alt = f"Line chart of the validation MAE of the first seed. {'; '.join(words)}."
    return Chart.of(figure, "Validation MAE of the age while training, first seed", alt)
