"""Charts of an evaluation: errors, by group too, and how far predictions can be trusted.

Each is drawn without a display, is narrow enough to be readable 360 pixels wide on a phone, and
describes in its alternative text what it shows.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from agejax.evaluation.metrics import SMALLEST_GROUP, decades
from agejax.reporting.plots import BLUE, GRID, ORANGE, TEXT, WIDTH, Chart, shaded_table, tidy

Rows = Sequence[Mapping[str, Any]]
PALE = "#b9c4cc"
SMALL = 10  # points, of text within a chart
NAME = 18  # characters of a group's name per line
CHARACTER = 0.68 * SMALL  # points, the average width of one, a little generous
SHOWN_AGES = (-20.0, 140.0)  # years; predictions outside are drawn at the border
MISSING = "–"
# Figure of a group -> the heading of its column, and the label of its axis.
UNITS = {
    "mae": ("MAE", "MAE (years)"),
    "sd": ("SD", "standard deviation (years)"),
    "accuracy": ("%", "accuracy (%)"),
}


# --------------------------------------------------------------------------------------------- ages


def predicted_against_true(true: np.ndarray, predicted: np.ndarray) -> Chart:
    """The density of (true, predicted), years [N], and the median of each decade."""
    figure, axes = _figure(4.6)
    shown = np.clip(predicted, *SHOWN_AGES)  # else a diverged model would need a million cells
    low = 2 * math.floor(min(0.0, float(shown.min(initial=0))) / 2)
    edges = np.arange(low, max(true.max(initial=18), shown.max(initial=18)) + 4, 2.0)
    counts, *_ = np.histogram2d(true, shown, bins=(edges, edges))
    most = max(counts.max(initial=0), 2)
    image = axes.pcolormesh(
        edges,
        edges,
        np.ma.masked_equal(counts.T, 0),
        cmap="Blues",
        norm=LogNorm(0.4, most),  # one image is pale, not white
        rasterized=True,
    )
    bar = figure.colorbar(image, ax=axes, label="images in 2 x 2 years", shrink=0.7, pad=0.03)
    bar.outline.set_visible(False)
    ticks = [t * 10**e for e in range(6) for t in (1, 2, 5) if t * 10**e <= most]
    bar.set_ticks(ticks, labels=[f"{t:,}" for t in ticks], fontsize=SMALL, color=TEXT)
    bar.ax.yaxis.set_minor_formatter("")
    bar.ax.yaxis.label.set_color(TEXT)
    bar.ax.set_ylim(bottom=1)
    axes.plot(edges[[0, -1]], edges[[0, -1]], "--", color=TEXT, linewidth=1, label="exact")
    medians = [
        (name, float(true[part].mean()), float(np.median(predicted[part])))
        for name, part in decades(true)
        if part.sum() >= 5
    ]
    points = np.array([(x, y) for _, x, y in medians]).reshape(-1, 2)
    axes.plot(*points.T, "o-", color=ORANGE, markersize=5, label="median by decade")
    axes.set(xlabel="true age (years)", ylabel="predicted age (years)", aspect="equal",
             xlim=edges[[0, -1]], ylim=edges[[0, -1]])  # fmt: skip
    _legend(figure, 2)
    tidy(axes)
    words = "; ".join(f"{name}: {y:.0f} for a mean of {x:.0f}" for name, x, y in medians)
    alt = (
        f"Density of predicted against true age, n = {len(true):,}. Median predictions by decade: "
        f"{words or 'no decade has five images'}."
    )
    return Chart.of(figure, "Predicted against true age", alt)


def bias_by_decade(rows: Rows) -> Chart:
    """Bars of predicted - true, years; rows {"name", "n", "bias"}."""
    known = _known(rows, "bias")
    figure, axes = _lines(
        rows,
        {
            "years": [f"{row['bias']:+.1f}" for row in rows],
            "n": [f"{row['n']:,}" for row in rows],
        },
    )
    for y in known:
        axes.barh(y, rows[y]["bias"], 0.7, color=_pale(rows[y], BLUE))
    axes.axvline(0, color=TEXT, linewidth=1)
    reach = 1.1 * max([1.0, *(abs(rows[y]["bias"]) for y in known)])
    axes.set(xlabel="predicted − true (years)", xlim=(-reach, reach))
    axes.set_title("← predicted too young", loc="left", fontsize=SMALL, color=TEXT)
    axes.set_title("too old →", loc="right", fontsize=SMALL, color=TEXT)
    words = ", ".join(
        f"{row['name']} {row['bias']:+.1f}" if y in known else f"{row['name']} no image"
        for y, row in enumerate(rows)
    )
    caption = "Bias by decade: the mean of predicted − true age"
    return Chart.of(figure, caption, f"Bar chart. Bias in years by decade: {words}.")


def cumulative_score(errors: Mapping[str, np.ndarray]) -> Chart:
    """The share of images with an error of at most x years; group -> errors, years [N]."""
    figure, axes = _figure(3.8)
    years = np.arange(0, 15.01, 0.25)
    styles = itertools.cycle(
        [("-", BLUE), ("--", ORANGE), (":", TEXT), ("-.", BLUE), ((0, (1, 1, 4, 1)), ORANGE)]
    )
    lines, ends, words = [], [], []
    for (name, values), (style, colour) in zip(errors.items(), styles, strict=False):
        if not len(values):
            words.append(f"{name} no image")
            continue
        curve = 100 * (np.abs(values)[:, None] <= years).mean(axis=0)
        axes.plot(years, curve, linestyle=style, color=colour, linewidth=2)
        lines.append((_wrapped(f"{name} ({len(values):,})", 14), style, colour))
        ends.append(float(curve[-1]))
        words.append(f"{name} {curve[years == 3][0]:.0f}%, {curve[years == 5][0]:.0f}% and "
                     f"{curve[years == 10][0]:.0f}%")  # fmt: skip
    axes.set(xlabel="x, the largest error counted (years)", xlim=(0, 15), ylim=(0, 100))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.grid(color=GRID, linewidth=0.6)
    # Each label beside the end of its line, or as near as the other labels allow.
    gaps = [7.0 * (1 + text.count("\n")) for text, *_ in lines]
    for (text, style, colour), end, y in zip(lines, ends, _apart(ends, gaps), strict=True):
        axes.annotate(
            text, (15, end), (15.9, y), va="center", fontsize=SMALL, color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "linestyle": style, "color": colour, "shrinkA": 1,
                        "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip
    tidy(axes)
    alt = f"Line chart. Share within 3, 5 and 10 years: {'; '.join(words)}."
    caption = "Acc(x), or CS@x: the share of images with an error of at most x years"
    return Chart.of(figure, caption, alt)


# ------------------------------------------------------------------------------------------- groups


def error_by_group(
    title: str, rows: Rows, key: str, everybody: float, called: str = "all images"
) -> Chart:
    """A row per group: its mean with a 95 % interval, against that of all images.

    Args:
      rows: {"name", "n", KEY, f"{KEY}_ci95"}.
      key: of `UNITS`: years, or "accuracy", a share.
      everybody: the figure that the others are held against, drawn as a line.
      called: what that is the figure of.
    """
    years = key != "accuracy"
    scale, (heading, unit) = 1 if years else 100, UNITS[key]
    known = _known(rows, key)
    large = [y for y in known if rows[y]["n"] >= SMALLEST_GROUP]
    worst = (max if years else min)(large, key=lambda y: rows[y][key]) if len(large) > 1 else None
    figure, axes = _lines(
        rows,
        {
            heading: [f"{scale * row[key]:.{2 if years else 1}f}" for row in rows],
            "n": [f"{row['n']:,}" for row in rows],
        },
    )
    axes.axvline(scale * everybody, color=TEXT, linewidth=1, linestyle="--", zorder=1)
    ends = [scale * everybody]
    for y in known:
        low, high = (scale * bound for bound in rows[y][f"{key}_ci95"])
        colour = _pale(rows[y], ORANGE if y == worst else BLUE)
        _dot(axes, y, scale * rows[y][key], (low, high), colour)
        ends += [scale * rows[y][key], *(end for end in (low, high) if math.isfinite(end))]
    # Errors start at 0, so that lengths compare; shares do not: 80 and 90 % would look alike.
    limits = (0, 1.06 * max(ends) or 1) if years else (min([*ends, 90]) - 2, min(max(ends), 99) + 2)
    axes.set(xlabel=unit, xlim=limits)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.annotate(
        called.removesuffix(" images"), (scale * everybody, 1),
        xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=SMALL, color=TEXT,
    )  # fmt: skip
    words = "; ".join(
        f"{row['name']} {scale * row[key]:.1f} (n = {row['n']:,})"
        if y in known
        else f"{row['name']} no image"
        for y, row in enumerate(rows)
    )
    mark = ""
    if worst is not None:
        mark = f" Worst of {SMALLEST_GROUP} images or more: {rows[worst]['name']}."
    alt = f"Dot plot of {unit}, {called} {scale * everybody:.1f}. {words}.{mark}"
    return Chart.of(figure, _capital(f"{title}: {unit}"), alt)


def paired_differences(target: str, rows: Rows, unit: str) -> Chart:
    """A row per group: the difference of two models' errors, below 0 where this one is better.

    Args:
      rows: {"name", "n", "difference", "difference_ci95"}.
    """
    known = _known(rows, "difference")
    figure, axes = _lines(
        rows,
        {
            "diff.": [f"{row['difference']:+.3f}" for row in rows],
            "n": [f"{row['n']:,}" for row in rows],
        },
    )
    axes.axvline(0, color=TEXT, linewidth=1)
    words = []
    for y, row in enumerate(rows):
        if y not in known:
            words.append(f"{row['name']} no image")
            continue
        low, high = row["difference_ci95"]
        better, worse = high < 0, low > 0
        colour = BLUE if better else ORANGE if worse else PALE
        _dot(axes, y, row["difference"], (low, high), colour)
        verdict = "better" if better else "worse" if worse else "no difference shown"
        words.append(f"{row['name']} {row['difference']:+.3f}, {verdict}")
    low, high = axes.get_xlim()
    least = 0.3 * max(-low, high)  # both sides stay visible
    axes.set(xlabel=f"difference ({unit})", xlim=(min(low, -least), max(high, least)))
    axes.set_title("← better", loc="left", fontsize=SMALL, color=BLUE)
    axes.set_title("worse →", loc="right", fontsize=SMALL, color=ORANGE)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    caption = f"{_capital(target)}: differences between the runs, image by image"
    return Chart.of(figure, caption, f"Forest plot in {unit}, {target}. {'; '.join(words)}.")


def confusion(label: str, true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Chart:
    """The confusion matrix of true [N] and predicted [N] classes."""
    k = len(names)
    counts = np.zeros((k, k), int)
    np.add.at(counts, (true.astype(int), predicted.astype(int)), 1)
    labelled = counts.sum(axis=1)
    share = counts / np.maximum(labelled, 1)[:, None]
    figure, axes = _figure(1.2 + 0.62 * k, min(WIDTH, 2 + 0.95 * k))
    texts = [
        [f"{share[i, j]:.0%}\n{counts[i, j]:,}" if labelled[i] else MISSING for j in range(k)]
        for i in range(k)
    ]
    shaded_table(axes, share, texts, SMALL)
    wrapped = [_wrapped(name, 9) for name in names]
    axes.set_xticks(range(k), wrapped, fontsize=SMALL)
    axes.set_yticks(range(k), wrapped, fontsize=SMALL)
    axes.set(xlabel="predicted", ylabel="label")
    words = "; ".join(
        f"{name}: right {share[i, i]:.0%} of {labelled[i]:,}" if labelled[i] else f"{name} no image"
        for i, name in enumerate(names)
    )
    alt = f"Confusion matrix of {label}, shares of each row. {words}."
    return Chart.of(figure, f"{_capital(label)}: what the model predicts for each class", alt)


# --------------------------------------------------------------------------------------- being sure


def reliability(label: str, before: Rows, after: Rows) -> Chart:
    """Accuracy against confidence, before and after scaling; rows of `uncertainty.reliability`."""
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    top.plot([0, 100], [0, 100], "--", color=TEXT, linewidth=1, label="perfectly calibrated")
    kinds = (("without scaling", before, "s:", ORANGE), ("temperature scaled", after, "o-", BLUE))
    for name, rows, style, colour in kinds:
        shown = [rows[y] for y in _known(rows, "accuracy")]
        sure = [100 * row["confidence"] for row in shown]
        right = [100 * row["accuracy"] for row in shown]
        top.plot(sure, right, style, color=colour, markersize=6, label=name)
        for x, row in zip(sure, shown, strict=True):
            bounds = [100 * bound for bound in row["accuracy_ci95"]]
            top.plot([x, x], bounds, color=colour, linewidth=1, alpha=0.5)
    bins = [(row["low"] + row["high"]) * 50 for row in after]
    width = [(row["high"] - row["low"]) * 92 for row in after]
    below.bar(bins, [row["n"] for row in after], width, color=BLUE)
    low = 100 * min([row["low"] for row in (*before, *after)], default=0)
    top.set(ylabel="accuracy (%)", xlim=(low, 101), ylim=(0, 102))
    below.set(xlabel="confidence: the largest probability (%)", ylabel="images")
    _legend(figure, 1)
    for axes in (top, below):
        axes.grid(color=GRID, linewidth=0.6)
        tidy(axes)
    words = "; ".join(
        f"{row['n']:,} images: confidence {row['confidence']:.0%}, accuracy {row['accuracy']:.0%}"
        for row in (after[y] for y in _known(after, "accuracy"))
    )
    alt = f"Reliability diagram of {label}, after temperature scaling: {words or 'no image'}."
    return Chart.of(figure, f"{_capital(label)}: confidence against accuracy", alt)


def interval_coverage(rows: Rows, claimed: float) -> Chart:
    """A row per group: how often its intervals held the truth, and the band that chance allows.

    Args:
      rows: {"name", "n", "coverage", "band95", "width"}, from `uncertainty.coverage`.
    """
    known = _known(rows, "coverage")
    figure, axes = _lines(
        rows,
        {
            "covered": [f"{row['coverage']:.0%}" for row in rows],
            "width": [f"{row['width']:.0f}" for row in rows],
            "n": [f"{row['n']:,}" for row in rows],
        },
    )
    axes.axvline(100 * claimed, color=TEXT, linewidth=1, linestyle="--")
    words = []
    for y, row in enumerate(rows):
        if y not in known:
            words.append(f"{row['name']} no image")
            continue
        low, high = (100 * bound for bound in row["band95"])
        axes.barh(y, high - low, 0.62, left=low, color=GRID, zorder=1)
        held = 100 * row["coverage"]
        colour = _pale(row, BLUE if low <= held else ORANGE)
        axes.plot(held, y, "o", color=colour, markersize=7, mec="white", zorder=3)
        words.append(f"{row['name']} {row['coverage']:.0%}, {row['width']:.0f} years wide"
                     + (", less often than chance allows" if held < low else ""))  # fmt: skip
    least = [100 * min(rows[y]["coverage"], rows[y]["band95"][0]) - 3 for y in known]
    axes.set(xlabel="intervals that contain the true age (%)",
             xlim=(min([*least, 100 * claimed - 15]), 102))  # fmt: skip
    axes.grid(axis="x", color=GRID, linewidth=0.6, zorder=0)
    caption = f"Coverage of the {claimed:.0%} intervals, and their mean width in years"
    return Chart.of(figure, caption, f"Dot plot of coverage by group: {'; '.join(words)}.")


def risk_coverage(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Chart:
    """The mean error, years, of the share of images kept; curve -> (share [n], error [n])."""
    figure, axes = _figure(3.8)
    styles = itertools.cycle([("-", BLUE), ("--", TEXT), (":", ORANGE)])
    words = []
    for (name, (share, risk)), (style, colour) in zip(curves.items(), styles, strict=False):
        if not len(share):
            words.append(f"{name}: no image")
            continue
        shown = share >= min(0.02, share[-1])  # the mean of a few images is noise
        axes.plot(100 * share[shown], risk[shown], style, color=colour, linewidth=2, label=name)
        half = risk[np.searchsorted(share, 0.5)]
        words.append(f"{name}: {half:.2f} years for the most certain half, {risk[-1]:.2f} for all")
    axes.set(xlabel="images kept, the most certain first (%)", ylabel="MAE of these (years)")
    axes.set(xlim=(0, 100), ylim=(0, None))
    axes.grid(color=GRID, linewidth=0.6)
    _legend(figure, 1)
    tidy(axes)
    caption = "The error when the least certain predictions are left out"
    return Chart.of(figure, caption, f"Line chart. {'; '.join(words)}.")


def challenge(rows: Rows) -> Chart:
    """The shares of minors and adults who look T or older; rows of `gates.challenge`."""
    figure, axes = _figure(3.9)
    x = [row["threshold"] for row in rows]
    words = []
    for key, name, colour, style in (
        ("tpr", "18 and older", BLUE, "o-"),
        ("fpr", "14 to 17", ORANGE, "s-"),
    ):
        rates = [row[key] for row in rows]
        n = max([rate["n"] for rate in rates], default=0)
        label = f"{name} (n = {n:,})"
        share = 100 * np.array([rate["rate"] for rate in rates], float)
        axes.plot(x, share, style, color=colour, markersize=5, label=label)
        if not n:
            words.append(f"{name}: no image")
            continue
        low, high = 100 * np.array([rate["ci95"] for rate in rates], float).T
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        at = {t: s for t, s in zip(x, share, strict=True) if t in (18, 25, 30)}
        words.append(f"{name}: " + ", ".join(f"{s:.0f} % at {t}" for t, s in at.items()))
    axes.axvline(25, color=TEXT, linewidth=1, linestyle="--")
    axes.annotate("Challenge-25", (25, 1.0), xycoords=("data", "axes fraction"), ha="center",
                  va="bottom", fontsize=SMALL, color=TEXT)  # fmt: skip
    axes.set(
        xlabel="age gate: the smallest predicted age let in (years)",
        ylabel="let in (%)",
        ylim=(0, 102),
    )
    axes.grid(color=GRID, linewidth=0.6)
    _legend(figure, 2)
    tidy(axes)
    caption = "The share let in without a document, with 95 % intervals"
    return Chart.of(figure, caption, f"Line chart against the threshold. {'; '.join(words)}.")


def let_in(title: str, rows: Rows, colours: Sequence[str]) -> Chart:
    """A row per group: the share that a gate lets in, with its 95 % interval.

    Args:
      rows: {"name", "n", "rate": None for n = 0, "ci95"}.
      colours: of each row; rows of few images are pale.
    """
    known = [y for y, row in enumerate(rows) if row["n"]]
    figure, axes = _lines(
        rows,
        {
            "%": [f"{100 * row['rate']:.0f}" if row["n"] else MISSING for row in rows],
            "n": [f"{row['n']:,}" for row in rows],
        },
    )
    for y in known:
        low, high = (100 * bound for bound in rows[y]["ci95"])
        _dot(axes, y, 100 * rows[y]["rate"], (low, high), _pale(rows[y], colours[y]))
    axes.set(xlabel="let in (%)", xlim=(-2, 102))
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    words = "; ".join(
        f"{row['name']} {row['rate']:.0%} of {row['n']:,}"
        if row["n"]
        else f"{row['name']} no image"
        for row in rows
    )
    return Chart.of(figure, title, f"Dot plot of the share let in. {words or 'No group'}.")


def error_by_quality(tables: Mapping[str, Rows], everybody: float) -> Chart:
    """A panel per quality measure: the MAE, years, in each bin; rows {"name", "n", "mae"}."""
    heights = [_height(rows) for rows in tables.values()] or [1.0]
    figure = Figure(figsize=(WIDTH, 0.6 + sum(heights) + 0.45 * len(heights)), layout="constrained")
    panels = figure.subplots(
        len(heights), 1, squeeze=False, sharex=True, height_ratios=heights
    ).ravel()
    words = []
    for axes, (measure, rows) in zip(panels, tables.items(), strict=False):
        known = _known(rows, "mae")
        _label(
            axes,
            rows,
            {
                "MAE": [f"{row['mae']:.1f}" for row in rows],
                "n": [f"{row['n']:,}" for row in rows],
            },
        )
        for y in known:
            axes.barh(y, rows[y]["mae"], 0.7, color=_pale(rows[y], BLUE))
        axes.axvline(everybody, color=TEXT, linewidth=1, linestyle="--")
        axes.set_title(QUALITY.get(measure, measure), loc="left", fontsize=SMALL, color=TEXT)
        some = ", ".join(f"{rows[y]['name']} {rows[y]['mae']:.1f}" for y in known)
        words.append(f"{measure}: {some or 'no image'}")
    panels[-1].set(xlabel="MAE (years)", xlim=(0, None))
    alt = f"Bar charts of MAE in years, all images {everybody:.1f}. {'; '.join(words)}."
    return Chart.of(figure, "Error by image quality; the dashed line is the MAE of all images", alt)


QUALITY = {
    "luminance": "luminance (mean grey, 0 to 255)",
    "laplacian": "sharpness (Laplacian's variance)",
    "fft": "sharpness (high frequencies, dB)",
    "brisque": "BRISQUE (lower is better)",
}


# -------------------------------------------------------------------------------------------- faces


def faces(kind: str, images: np.ndarray, captions: Sequence[str], columns: int = 3) -> Chart:
    """A grid of faces, uint8 [N, S, S, 3], each with its caption."""
    titles = [_lines_of(caption, WIDTH / columns) for caption in captions]
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    rows = max(-(-len(images) // columns), 1)
    height = rows * (WIDTH / columns + 0.16 * lines + 0.2)
    figure = Figure(figsize=(WIDTH, height), layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, image, title in zip(panels, images, titles, strict=False):
        axes.imshow(image)
        axes.set_title(title, fontsize=9, color=TEXT)
    words = "; ".join(caption.replace("\n", ", ") for caption in captions)
    alt = f"Photos. {kind}: {words or 'no image'}."
    return Chart.of(figure, f"{_capital(kind)}, n = {len(images)}", alt)


def saliency(images: np.ndarray, heats: np.ndarray, captions: Sequence[str]) -> Chart:
    """Each face beside itself in grey under its heat map; uint8 [N, S, S, 3], f32 [N, S, S]."""
    rows = max(-(-len(images) // 2), 1)
    figure = Figure(figsize=(WIDTH, 0.55 + 1.7 * rows), layout="constrained")
    panels = figure.subplots(rows, 4, squeeze=False)
    for axes in panels.ravel():
        axes.set_axis_off()
    # Each map has its own scale: next to one strong map, the others would look empty.
    scale = Normalize(-1, 1)
    largest = np.abs(heats).max(axis=(1, 2), keepdims=True, initial=0)
    heats = heats / np.where(largest, largest, 1)
    pairs = panels.reshape(-1, 2)
    for pair, image, heat, caption in zip(pairs, images, heats, captions, strict=False):
        pair[0].imshow(image)
        # Over both images, from the left.
        pair[0].set_title(_lines_of(caption, WIDTH / 2), fontsize=9, color=TEXT, loc="left")
        pair[1].imshow(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cmap="gray", vmin=0, vmax=255)
        # Transparent where the heat is 0, so that the face is visible.
        pair[1].imshow(heat, cmap="RdBu_r", norm=scale, alpha=0.8 * np.sqrt(np.abs(heat)))
    bar = figure.colorbar(
        ScalarMappable(scale, "RdBu_r"), ax=panels, location="bottom", aspect=40, shrink=0.9,
        ticks=[-1, 0, 1],
    )  # fmt: skip
    takes, _, adds = bar.ax.set_xticklabels(
        ["takes years off", "nothing", "adds years"], fontsize=9, color=TEXT
    )
    takes.set_horizontalalignment("left")  # within the bar
    adds.set_horizontalalignment("right")
    bar.outline.set_visible(False)
    words = "; ".join(caption.replace("\n", ", ") for caption in captions)
    caption = "What the worst rest on: red adds years, blue takes years off, each on its own scale"
    return Chart.of(figure, caption, f"Photos and heat maps. {words or 'No image'}.")


def _lines_of(caption: str, inches: float) -> str:
    """The caption, in 9 points, with its lines wrapped to a width."""
    at_most = max(int(inches * 72 / 5.6), 8)
    return "\n".join(_wrapped(line, at_most) for line in caption.split("\n"))


# ------------------------------------------------------------------------------------ shared


def _figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, columns: int) -> None:
    """Puts the legend above the axes, where it covers no data."""
    if any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
        figure.legend(loc="outside upper left", frameon=False, labelcolor=TEXT, ncols=columns,
                      fontsize=SMALL)  # fmt: skip


def _lines(rows: Rows, columns: Mapping[str, Sequence[str]]) -> tuple[Figure, Axes]:
    """A figure as high as its rows need, with axes labelled by `_label`."""
    figure, axes = _figure(0.95 + _height(rows))
    _label(axes, rows, columns)
    return figure, axes


def _height(rows: Rows) -> float:
    """The height of the rows, inches: all are as high as the one with the most lines of name."""
    lines = 1 + max((_wrapped(row["name"], NAME).count("\n") for row in rows), default=0)
    return (0.11 + 0.17 * lines) * max(len(rows), 1)


def _label(axes: Axes, rows: Rows, columns: Mapping[str, Sequence[str]]) -> None:
    """Labels a row per group, top down: its name, and at its right the columns.

    Args:
      columns: heading -> the text of each row; left out for groups without images.
    """
    axes.set_yticks(range(len(rows)), [_wrapped(row["name"], NAME) for row in rows], fontsize=SMALL)
    axes.set(ylim=(max(len(rows), 1) - 0.4, -0.6))
    right = 0.0
    for heading, cells in columns.items():
        shown = [
            cell if row["n"] or heading == "n" else MISSING
            for row, cell in zip(rows, cells, strict=True)
        ]
        right += CHARACTER * (1.5 + max(map(len, (heading, *shown))))
        for y, text in ((1, heading), *enumerate(shown)):
            top = text is heading
            axes.annotate(
                text, (1, y), (right, 3 if top else 0), textcoords="offset points", ha="right",
                xycoords="axes fraction" if top else ("axes fraction", "data"),
                va="bottom" if top else "center", fontsize=SMALL, color=TEXT,
                annotation_clip=False,
            )  # fmt: skip
    axes.locator_params(axis="x", nbins=6)
    tidy(axes)


def _dot(axes: Axes, y: int, value: float, bounds: tuple[float, float], colour: str) -> None:
    axes.plot(bounds, [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
    axes.plot(value, y, "o", color=colour, markersize=7, mec="white", zorder=3)


def _known(rows: Rows, key: str) -> list[int]:
    """The indices of rows that have a figure; a group without images has none."""
    return [y for y, row in enumerate(rows) if row["n"] and math.isfinite(row[key])]


def _apart(centres: Sequence[float], sizes: Sequence[float], top: float = 100.0) -> list[float]:
    """Places labels of these sizes near their centres: below `top`, without overlap."""
    placed = list(centres)
    ceiling = top + max(sizes, default=0) / 2
    for i in sorted(range(len(placed)), key=lambda i: -centres[i]):
        placed[i] = min(placed[i], ceiling - sizes[i] / 2)
        ceiling = placed[i] - sizes[i] / 2
    return placed


def _wrapped(text: str, characters: int) -> str:
    return textwrap.fill(text, characters)


def _pale(row: Mapping[str, Any], colour: str) -> str:
    """The colour of a row, paler where the group has few images."""
    return colour if row["n"] >= SMALLEST_GROUP else PALE


def _percent(value: float, _: Any) -> str:
    return f"{value:g} %"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
