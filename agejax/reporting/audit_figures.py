"""Charts of an audit: ages by label, and age differences between copies. No faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agejax.reporting.plots import BLUE, GRID, ORANGE, TEXT, WIDTH, Chart, tidy


def draw(report: Mapping[str, Any]) -> dict[str, Chart]:
    """Draws the charts of an audit's JSON; without ages there are fewer, or none."""
    shown = report["distribution"]
    charts = {}
    if shown["known"]["age"]:
        edges = np.array(shown["edges"])
        charts = {
            f"age by {label}" if label != "all" else "age": _ages(edges, groups, label)
            for label, groups in shown["histograms"].items()
        }
    apart = [group["years_apart"] for group in report["conflicts"]["listed"]]
    if any(apart):
        charts["years apart"] = _years_apart([years for years in apart if years])
    return charts


def _ages(edges: np.ndarray, groups: Mapping[str, Sequence[int]], label: str) -> Chart:
    """A panel per group; all share the axis of ages, and each has its own axis of counts."""
    figure = Figure(figsize=(WIDTH, 1 + 1.5 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False).ravel()
    words = []
    for axes, (name, counts) in zip(panels, groups.items(), strict=True):
        n = int(np.sum(counts))
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=BLUE, ec="white", lw=0.5)
        axes.set_title(f"{name}: {n:,} images", loc="left", fontsize=10, color=TEXT)
        axes.set_ylabel("images")
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        tidy(axes)
        words.append(f"{name} {n:,}" + (f", most of {_peak(edges, counts)}" if n else ""))
    panels[-1].set_xlabel("age (years)")
    step = int(edges[1] - edges[0])
    by = "" if label == "all" else f" by {label}"
    caption = f"Ages{by}, in bins of {step} years"
    return Chart.of(figure, caption, f"Histograms. {caption}. Images: {'; '.join(words)}.")


def _peak(edges: np.ndarray, counts: Sequence[int]) -> str:
    at = int(np.argmax(counts))
    return f"{edges[at]:g} to {edges[at + 1] - 1:g} years"


def _years_apart(years: Sequence[float]) -> Chart:
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    axes = figure.subplots()
    edges = np.arange(0, np.floor(max(years)) + 2)
    counts, _ = np.histogram(years, edges)
    axes.bar(edges[:-1], counts, 0.9, color=ORANGE)
    axes.set(xlabel="years between the oldest and the youngest label", ylabel="groups")
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    tidy(axes)
    caption = f"Age differences between copies, {len(years):,} groups whose ages differ"
    alt = (
        f"Histogram. {caption}: median {np.median(years):g}, largest {max(years):g} years; "
        f"{np.sum(np.array(years) > 5):,} groups differ by more than 5 years."
    )
    return Chart.of(figure, caption, alt)
