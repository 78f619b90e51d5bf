"""Figures of an evaluation, drawn without a display or any global state."""

from __future__ import annotations

import pathlib

import numpy as np
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"  # Okabe & Ito: told apart by everybody


def save_age_figure(
    true: np.ndarray, predicted: np.ndarray, path: pathlib.Path, *, title: str
) -> None:
    """Predicted against true age, and the error of each decade, as one PNG.

    Args:
      true, predicted: years, [N].
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title)

    top = float(max(true.max(), predicted.max())) + 2
    bins = np.arange(0, top + 2, 2)
    counts, *_ = np.histogram2d(true, predicted, bins=(bins, bins))
    image = left.pcolormesh(
        bins, bins, np.where(counts > 0, counts, np.nan).T, cmap="viridis_r", norm="log"
    )
    figure.colorbar(image, ax=left, label="images")
    left.plot([0, top], [0, top], color=GREY, linewidth=1, label="exact")
    centres = [(true[m].mean(), np.median(predicted[m])) for m in _decades(true) if m.sum() >= 5]
    left.plot(*zip(*centres, strict=True), "o-", color=ORANGE, markersize=4, label="median")
    left.set(xlabel="true age (years)", ylabel="predicted age (years)", aspect="equal")
    left.legend(loc="upper left", frameon=False)

    error = predicted - true
    for decade, mask in enumerate(_decades(true)):
        n = int(mask.sum())
        if n == 0:
            continue
        size = np.abs(error[mask])
        half = 1.96 * size.std() / np.sqrt(n) if n > 1 else 0.0
        right.bar(decade, size.mean(), color=BLUE, yerr=half, capsize=3, ecolor=GREY)
        right.plot(decade, error[mask].mean(), "D", color=ORANGE, markersize=5)
        right.annotate(
            f"{n:,}", (decade, size.mean() + half), (0, 3), textcoords="offset points",
            ha="center", fontsize=8, color=GREY,
        )  # fmt: skip
    right.axhline(0, color=GREY, linewidth=0.8)
    right.axhline(np.abs(error).mean(), color=BLUE, linestyle=":", linewidth=1)
    right.set_xticks(range(10), [*(f"{10 * d}s" for d in range(9)), "90+"])
    right.set(xlabel="true age", ylabel="years")
    right.set_title(
        "bars: mean absolute error (95 % interval, n); diamonds: bias", fontsize=9, color=GREY
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _decades(true: np.ndarray) -> list[np.ndarray]:
    decade = np.minimum(true // 10, 9)
    return [decade == d for d in range(10)]
