"""Charts of an evaluation: who a model fails, how far, and how sure it may be.

Each is drawn without a display, at most 7.5 inches wide so that a phone shows it, and says in its
alternative text what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from agejax.metrics import SMALLEST_GROUP, decades
from agejax.reporting.plots import BLUE, GRID, ORANGE, TEXT, Chart, tidy

Rows = Sequence[Mapping[str, Any]]
WIDTH = 7.2  # inches
PALE = "#b9c4cc"
SMALL = 9  # points


def _figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


# --------------------------------------------------------------------------------------------- ages


def predicted_against_true(true: np.ndarray, predicted: np.ndarray) -> Chart:
    """The density of (true, predicted), years [N], and the median of each decade."""
    figure, axes = _figure(5.6, 6.4)
    low = min(0.0, float(np.floor(predicted.min(initial=0))))
    high = float(max(true.max(initial=0), predicted.max(initial=0))) + 3
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
    bar = figure.colorbar(image, ax=axes, label="images a cell of 2 x 2 years", shrink=0.8)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    bar.ax.yaxis.set_minor_formatter("")
    bar.ax.set_ylim(bottom=1)
    axes.plot([low, high], [low, high], "--", color=TEXT, linewidth=1, label="exact")
    medians = [
        (name, float(true[part].mean()), float(np.median(predicted[part])))
        for name, part in decades(true)
        if part.sum() >= 5
    ]
    points = np.array([(x, y) for _, x, y in medians]).reshape(-1, 2)
    axes.plot(*points.T, "o-", color=ORANGE, markersize=5, label="median of a decade")
    axes.set(xlabel="true age (years)", ylabel="predicted age (years)", aspect="equal",
             xlim=(low, high), ylim=(low, high))  # fmt: skip
    figure.legend(loc="outside upper left", frameon=False, labelcolor=TEXT, ncols=2)
    tidy(axes)
    words = "; ".join(f"{name}: {y:.0f} for a mean of {x:.0f}" for name, x, y in medians)
    alt = f"Density of predicted against true age of {len(true):,} images. Median predictions by "
    return Chart.of(figure, "Predicted against true age", f"{alt}decade: {words}.")


def bias_by_decade(rows: Rows) -> Chart:
    """Bars of predicted - true; rows {"name", "n", "bias"}."""
    figure, axes = _figure(3.2)
    x = np.arange(len(rows))
    bias = np.array([row["bias"] for row in rows])
    colours = [_pale(row, BLUE if row["bias"] >= 0 else ORANGE) for row in rows]
    axes.bar(x, bias, 0.7, color=colours)
    axes.axhline(0, color=TEXT, linewidth=1)
    reach = max(float(np.abs(bias).max(initial=0)), 1.0)
    for i, row in enumerate(rows):
        above = row["bias"] >= 0
        axes.annotate(
            f"{row['bias']:+.1f}", (i, row["bias"]), (0, 3 if above else -3),
            textcoords="offset points", ha="center", va="bottom" if above else "top",
            fontsize=SMALL, color=TEXT,
        )  # fmt: skip
    axes.set_xticks(x, [row["name"] for row in rows], fontsize=SMALL)
    axes.set(xlabel="true age (years)", ylabel="predicted − true (years)",
             ylim=(-1.25 * reach, 1.25 * reach))  # fmt: skip
    tidy(axes)
    words = ", ".join(f"{row['name']} {row['bias']:+.1f}" for row in rows)
    caption = "Who is taken for older (up) or younger (down)"
    return Chart.of(figure, caption, f"Bar chart. Bias in years by decade: {words}.")


def cumulative_score(errors: Mapping[str, np.ndarray]) -> Chart:
    """The share of images whose error, years [N] of each group, is k at most."""
    figure, axes = _figure(3.8)
    years = np.arange(0, 15.01, 0.25)
    styles = (("-", BLUE), ("--", ORANGE), (":", TEXT), ("-.", BLUE), ("--", TEXT))
    ends = []
    for i, (name, values) in enumerate(errors.items()):
        curve = (np.abs(values)[:, None] <= years).mean(axis=0)
        line, colour = styles[i % len(styles)]
        label = f"{name} (n = {len(values):,})"
        axes.plot(years, 100 * curve, line, color=colour, linewidth=2, label=label)
        ends.append(f"{name} {curve[years == 3][0]:.0%}, {curve[years == 5][0]:.0%} and "
                    f"{curve[years == 10][0]:.0%}")  # fmt: skip
    axes.set(xlabel="error of k years at most", xlim=(0, 15), ylim=(0, 100))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.grid(color=GRID, linewidth=0.6)
    axes.legend(loc="lower right", frameon=False, labelcolor=TEXT, fontsize=SMALL)
    tidy(axes)
    alt = f"Line chart. Share within 3, 5 and 10 years: {'; '.join(ends)}."
    return Chart.of(figure, "CS@k: the share of images within k years", alt)


# ------------------------------------------------------------------------------------------- groups


def error_by_group(title: str, rows: Rows, key: str, everybody: float) -> Chart:
    """A row a group: its mean with a 95 % interval, against that of all.

    Args:
      rows: {"name", "n", KEY, f"{KEY}_ci95"}.
      key: "mae", in years, or "accuracy", a share; what a row's figure is called.
      everybody: the same figure of all images.
    """
    scale, unit = (1, "MAE (years)") if key == "mae" else (100, "accuracy (%)")
    figure, axes = _figure(0.95 + 0.3 * len(rows))
    worse = max if key == "mae" else min
    large = [row for row in rows if row["n"] >= SMALLEST_GROUP]
    worst = worse(large, key=lambda row: row[key])["name"] if len(large) > 1 else None
    axes.axvline(scale * everybody, color=TEXT, linewidth=1, linestyle="--", zorder=1)
    for y, row in enumerate(rows):
        colour = _pale(row, ORANGE if row["name"] == worst else BLUE)
        low, high = (scale * bound for bound in row[f"{key}_ci95"])
        axes.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(scale * row[key], y, "o", color=colour, markersize=7, mec="white", zorder=3)
        axes.annotate(
            f"{scale * row[key]:.{2 if scale == 1 else 1}f}   n = {row['n']:,}", (1.01, y),
            xycoords=("axes fraction", "data"), va="center", fontsize=SMALL, color=TEXT,
            annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=SMALL)
    axes.set(xlabel=unit, ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.annotate(
        "all", (scale * everybody, 1), xycoords=("data", "axes fraction"), ha="center",
        va="bottom", fontsize=SMALL, color=TEXT,
    )  # fmt: skip
    tidy(axes)
    words = "; ".join(f"{row['name']} {scale * row[key]:.1f} (n = {row['n']:,})" for row in rows)
    mark = f" Worst of {SMALLEST_GROUP} images or more: {worst}." if worst else ""
    alt = f"Dot plot of {unit}, all images {scale * everybody:.1f}. {words}.{mark}"
    return Chart.of(figure, _capital(f"{title}: {unit}"), alt)


def paired_differences(target: str, rows: Rows, unit: str) -> Chart:
    """A row a group: the difference of two models' errors, below 0 where this one is better.

    Args:
      rows: {"name", "n", "difference", "difference_ci95"}.
    """
    figure, axes = _figure(0.9 + 0.3 * len(rows))
    axes.axvline(0, color=TEXT, linewidth=1)
    words = []
    for y, row in enumerate(rows):
        low, high = row["difference_ci95"]
        better, worse = high < 0, low > 0
        colour = BLUE if better else ORANGE if worse else PALE
        axes.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(row["difference"], y, "o", color=colour, markersize=7, mec="white", zorder=3)
        verdict = "better" if better else "worse" if worse else "no difference shown"
        words.append(f"{row['name']} {row['difference']:+.3f}, {verdict}")
    axes.set_yticks(range(len(rows)), [f"{r['name']} ({r['n']:,})" for r in rows], fontsize=SMALL)
    axes.set(xlabel=f"difference of errors ({unit}); below 0 this run is better",
             ylim=(len(rows) - 0.4, -0.6))  # fmt: skip
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    tidy(axes)
    caption = f"{_capital(target)}: paired differences, blue better, orange worse, pale neither"
    return Chart.of(figure, caption, f"Forest plot in {unit}, {target}. {'; '.join(words)}.")


def confusion(label: str, true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Chart:
    """Of each true class [N], what it was taken for [N]."""
    k = len(names)
    counts = np.zeros((k, k), int)
    np.add.at(counts, (true.astype(int), predicted.astype(int)), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(1.6 + 0.62 * k, min(WIDTH, 2.6 + 0.95 * k))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i in range(k):
        for j in range(k):
            axes.text(
                j, i, f"{share[i, j]:.0%}\n{counts[i, j]:,}", ha="center", va="center",
                fontsize=SMALL, color="white" if share[i, j] > 0.55 else "#222222",
            )  # fmt: skip
    axes.set_xticks(range(k), names, fontsize=SMALL)
    axes.set_yticks(range(k), names, fontsize=SMALL)
    axes.set(xlabel="taken for", ylabel="labelled as")
    tidy(axes)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    words = "; ".join(
        f"{name}: right {share[i, i]:.0%} of {counts[i].sum():,}" for i, name in enumerate(names)
    )
    alt = f"Confusion matrix of {label}, shares of each row. {words}."
    return Chart.of(figure, f"{_capital(label)}: what each class was taken for", alt)


# --------------------------------------------------------------------------------------- being sure


def reliability(label: str, before: Rows, after: Rows) -> Chart:
    """How often the first guess was right against how sure it was; `uncertainty.reliability`."""
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    top.plot([0, 100], [0, 100], "--", color=TEXT, linewidth=1, label="exactly as sure as right")
    kinds = (("as the model says", before, "s:", ORANGE), ("temperature scaled", after, "o-", BLUE))
    for name, rows, style, colour in kinds:
        sure = [100 * row["confidence"] for row in rows]
        right = [100 * row["accuracy"] for row in rows]
        top.plot(sure, right, style, color=colour, markersize=6, label=name)
        for x, row in zip(sure, rows, strict=True):
            bounds = [100 * bound for bound in row["accuracy_ci95"]]
            top.plot([x, x], bounds, color=colour, linewidth=1, alpha=0.5)
    bins = [(row["low"] + row["high"]) * 50 for row in after]
    width = [(row["high"] - row["low"]) * 92 for row in after]
    below.bar(bins, [row["n"] for row in after], width, color=BLUE)
    low = 100 * min([row["low"] for row in (*before, *after)], default=0)
    top.set(ylabel="right (%)", xlim=(low, 100), ylim=(0, 102))
    below.set(xlabel="how sure it was (%)", ylabel="images")
    top.legend(loc="lower right", frameon=False, labelcolor=TEXT, fontsize=SMALL)
    for axes in (top, below):
        axes.grid(color=GRID, linewidth=0.6)
        tidy(axes)
    words = "; ".join(
        f"{row['n']:,} images {row['confidence']:.0%} sure, {row['accuracy']:.0%} right"
        for row in after
    )
    alt = f"Reliability diagram of {label}, after temperature scaling: {words}."
    return Chart.of(figure, f"{_capital(label)}: as sure as it is right?", alt)


def interval_coverage(rows: Rows, claimed: float) -> Chart:
    """A row a group: how often its intervals held the truth, over the band that chance allows.

    Args:
      rows: {"name", "n", "coverage", "band95", "width"}, of `uncertainty.coverage`.
    """
    figure, axes = _figure(0.95 + 0.3 * len(rows))
    axes.axvline(100 * claimed, color=TEXT, linewidth=1, linestyle="--")
    for y, row in enumerate(rows):
        low, high = (100 * bound for bound in row["band95"])
        axes.barh(y, high - low, 0.62, left=low, color=GRID, zorder=1)
        held = 100 * row["coverage"]
        colour = _pale(row, BLUE if low <= held else ORANGE)
        axes.plot(held, y, "o", color=colour, markersize=7, mec="white", zorder=3)
        axes.annotate(
            f"{held:.0f} %   {row['width']:.0f} years wide", (1.01, y),
            xycoords=("axes fraction", "data"), va="center", fontsize=SMALL, color=TEXT,
            annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{r['name']} ({r['n']:,})" for r in rows], fontsize=SMALL)
    least = min([100 * min(row["coverage"], row["band95"][0]) for row in rows], default=0)
    axes.set(xlabel="intervals that held the truth (%)", ylim=(len(rows) - 0.4, -0.6),
             xlim=(min(least - 3, 100 * claimed - 15), 101.5))  # fmt: skip
    axes.grid(axis="x", color=GRID, linewidth=0.6, zorder=0)
    tidy(axes)
    words = "; ".join(
        f"{row['name']} {row['coverage']:.0%}, {row['width']:.0f} years wide" for row in rows
    )
    caption = f"Intervals that claim {claimed:.0%}; grey is what chance allows"
    return Chart.of(figure, caption, f"Dot plot of coverage by group: {words}.")


def risk_coverage(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Chart:
    """The mean error, years, of the share that is kept; curve -> (share [n], error [n])."""
    figure, axes = _figure(3.6)
    words = []
    for (name, (share, risk)), (style, colour) in zip(
        curves.items(), (("-", BLUE), ("--", TEXT), (":", ORANGE)), strict=False
    ):
        shown = share >= min(0.02, share[-1])  # the mean of a handful is noise
        axes.plot(100 * share[shown], risk[shown], style, color=colour, linewidth=2, label=name)
        half = risk[np.searchsorted(share, 0.5)]
        words.append(f"{name}: {half:.2f} years of the surest half, {risk[-1]:.2f} of all")
    axes.set(xlabel="images kept, the surest first (%)", ylabel="MAE of these (years)")
    axes.set(xlim=(0, 100), ylim=(0, None))
    axes.grid(color=GRID, linewidth=0.6)
    axes.legend(loc="lower right", frameon=False, labelcolor=TEXT, fontsize=SMALL)
    tidy(axes)
    caption = "The error of what is kept when the least sure are left out"
    return Chart.of(figure, caption, f"Line chart. {'; '.join(words)}.")


def challenge(rows: Rows) -> Chart:
    """Who looks T years or older, of minors and of adults; rows of `uncertainty.challenge`."""
    figure, axes = _figure(3.8)
    x = [row["threshold"] for row in rows]
    words = []
    for key, name, colour, style in (
        ("tpr", "18 and more", BLUE, "o-"),
        ("fpr", "14 to 17", ORANGE, "s-"),
    ):
        rates = [row[key] for row in rows]
        n = rates[0]["n"]
        share = np.array([rate["rate"] for rate in rates], float) * 100
        low, high = 100 * np.array([rate["ci95"] for rate in rates], float).T
        axes.plot(x, share, style, color=colour, markersize=5, label=f"{name} (n = {n:,})")
        if n:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            at = {t: s for t, s in zip(x, share, strict=True) if t in (18, 25, 30)}
            words.append(f"{name}: " + ", ".join(f"{s:.0f} % at {t}" for t, s in at.items()))
    axes.axvline(25, color=TEXT, linewidth=1, linestyle="--")
    axes.annotate("Challenge-25", (25, 1.0), xycoords=("data", "axes fraction"), ha="center",
                  va="bottom", fontsize=SMALL, color=TEXT)  # fmt: skip
    axes.set(xlabel="let in who looks so many years old", ylabel="let in (%)", ylim=(0, 102))
    axes.grid(color=GRID, linewidth=0.6)
    axes.legend(loc="best", frameon=False, labelcolor=TEXT, fontsize=SMALL)
    tidy(axes)
    caption = "Who an age gate would let in without a document, with 95 % intervals"
    alt = f"Line chart against the threshold. {'; '.join(words) or 'No image of these ages'}."
    return Chart.of(figure, caption, alt)


def error_by_quality(tables: Mapping[str, Rows], everybody: float) -> Chart:
    """A panel a measure: the MAE, years, in each bin of it; rows {"name", "n", "mae"}."""
    figure = Figure(figsize=(WIDTH, 0.4 + 2.1 * len(tables)), layout="constrained")
    panels = figure.subplots(max(len(tables), 1), 1, squeeze=False).ravel()
    words = []
    for axes, (measure, rows) in zip(panels, tables.items(), strict=False):
        x = np.arange(len(rows))
        mae = np.array([row["mae"] for row in rows])
        axes.bar(x, mae, 0.7, color=[_pale(row, BLUE) for row in rows])
        axes.axhline(everybody, color=TEXT, linewidth=1, linestyle="--")
        axes.set_xticks(x, [f"{r['name']}\nn = {r['n']:,}" for r in rows], fontsize=SMALL)
        axes.set_title(QUALITY.get(measure, measure), loc="left", fontsize=10, color=TEXT)
        axes.set(ylabel="MAE (years)", ylim=(0, 1.15 * max(mae.max(initial=0), everybody)))
        tidy(axes)
        some = ", ".join(f"{row['name']} {row['mae']:.1f}" for row in rows)
        words.append(f"{measure}: {some}")
    alt = f"Bar charts of MAE in years, all images {everybody:.1f}. {'; '.join(words)}."
    return Chart.of(figure, "The error by how good an image is; dashed: of all", alt)


QUALITY = {
    "luminance": "luminance (mean grey, 0 to 255)",
    "laplacian": "sharpness (variance of the Laplacian)",
    "fft": "sharpness (high frequencies, dB)",
    "brisque": "BRISQUE (the lower the better)",
}


# -------------------------------------------------------------------------------------------- faces


def faces(kind: str, images: np.ndarray, captions: Sequence[str], columns: int = 4) -> Chart:
    """A grid of faces, uint8 [N, S, S, 3], each with its lines."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(WIDTH, 2.25 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, image, caption in zip(panels, images, captions, strict=False):
        axes.imshow(image)
        axes.set_title(caption, fontsize=8, color=TEXT)
    words = "; ".join(caption.replace("\n", ", ") for caption in captions)
    return Chart.of(figure, f"{_capital(kind)}, n = {len(images)}", f"Photos. {kind}: {words}.")


def saliency(images: np.ndarray, heats: np.ndarray, captions: Sequence[str]) -> Chart:
    """Each face beside itself in grey under its heat map; uint8 [N, S, S, 3], f32 [N, S, S]."""
    columns = 2
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(WIDTH, 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    limit = float(np.abs(heats).max(initial=0)) or 1.0
    for i, (image, heat, caption) in enumerate(zip(images, heats, captions, strict=True)):
        face, map_ = panels[2 * i : 2 * i + 2]
        face.imshow(image)
        face.set_title(caption, fontsize=8, color=TEXT)
        map_.imshow(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cmap="gray", vmin=0, vmax=255)
        # Clear where the heat is nothing, so that the face is seen.
        map_.imshow(heat, cmap="RdBu_r", norm=Normalize(-limit, limit),
                    alpha=0.8 * np.sqrt(np.abs(heat) / limit))  # fmt: skip
    words = "; ".join(caption.replace("\n", ", ") for caption in captions)
    caption = "What the predicted age rests on: red adds years, blue takes years off"
    return Chart.of(figure, caption, f"Photos and heat maps. {words}.")


def _pale(row: Mapping[str, Any], colour: str) -> str:
    """The colour of a row: few images have measured little."""
    return colour if row["n"] >= SMALLEST_GROUP else PALE


def _percent(value: float, _: Any) -> str:
    return f"{value:g} %"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
