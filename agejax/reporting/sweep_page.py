"""The page of a sweep: its trials, the best value over time, and which settings matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agejax.reporting import page
from agejax.reporting.plots import BLUE, GRID, ORANGE, TEXT, WIDTH, Chart, tidy

Rows = Sequence[Mapping[str, Any]]  # rows of trials.csv, by trial number


def sweep(
    name: str,
    rows: Rows,
    best: Mapping[str, Any] | None,
    importances: Mapping[str, float],
    minimise: bool = True,
) -> str:
    """Renders the page of a sweep.

    Args:
      rows: {"number", "state", "value", "steps", "error" and a value for each setting}.
      best: {"number", "value", "flags"} of the best complete trial.
      importances: setting -> share of the variance.
      minimise: whether a lower value is better.
    """
    counts = {state: sum(row["state"] == state for row in rows) for state in STATES}
    lead = page.cards({"trials": len(rows)} | {k: n for k, n in counts.items() if n})
    if best is not None:
        lead += page.cards({f"best value, trial {best['number']}": f"{best['value']:.4f}"})
        lead += page.paragraph(f"Its settings: {best['flags']}")
    shares = sorted(importances.items(), key=lambda item: -item[1])
    matter = page.paragraph(
        "Each setting's share of the variance between complete trials (fANOVA)."
    ) + page.table(("setting", "share"), [(k, f"{share:.1%}") for k, share in shares])
    ordered = sorted(rows, key=lambda row: _rank(row, minimise))
    # The settings of a study may change, and a trial that was killed at once has none.
    heads = ("number", "state", "value", "steps", *settings_of(rows), "error")
    cells = [[_cell(row.get(head)) for head in heads] for row in ordered]
    charts = [history(rows, minimise)]
    if settings_of(complete := [row for row in rows if row["state"] == "complete"]):
        charts.append(settings(complete))
    sections = [
        page.Section("Values", page.figures(charts)),
        page.Section("Which settings matter", matter if shares else ""),
        page.Section("Trials, the best first", page.table(heads, cells)),
    ]
    return page.page(f"Sweep {name}", lead, sections)


STATES = ("complete", "pruned", "fail")


def history(rows: Rows, minimise: bool) -> Chart:
    """Draws each trial's value, and the best complete one so far."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for state, marker, colour in (("complete", "o", BLUE), ("pruned", "x", TEXT)):
        some = [row for row in rows if row["state"] == state and row["value"] is not None]
        axes.plot(
            [row["number"] for row in some], [row["value"] for row in some], marker,
            color=colour, label=f"{state} ({len(some)})",
        )  # fmt: skip
    complete = [row for row in rows if row["state"] == "complete"]
    if complete:
        values = np.array([row["value"] for row in complete])
        best = (np.minimum if minimise else np.maximum).accumulate(values)
        numbers = [row["number"] for row in complete]
        axes.step(numbers, best, where="post", color=ORANGE, label="best so far")
    axes.set(xlabel="trial", ylabel="value")
    axes.grid(color=GRID, linewidth=0.6)
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9)
    tidy(axes)
    words = ", ".join(f"trial {row['number']} {row['value']:.4g}" for row in complete)
    alt = f"Scatter plot of the value of each trial. Complete: {words or 'none yet'}."
    return Chart.of(figure, "The value of each trial", alt)


def settings(complete: Rows) -> Chart:
    """Draws a panel per setting: the values of complete trials against it."""
    names = settings_of(complete)
    lines = -(-len(names) // 2)
    figure = Figure(figsize=(WIDTH, 2.3 * lines), layout="constrained")
    panels = figure.subplots(lines, 2, squeeze=False, sharey=True).ravel()
    for axes, name in zip(panels, names, strict=False):
        some = [row for row in complete if name in row]
        given = [row[name] for row in some]
        numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in given)
        x = given if numbers else [str(value) for value in given]
        axes.plot(x, [row["value"] for row in some], "o", color=BLUE, markersize=5)
        if numbers and min(given) > 0 and max(given) > 20 * min(given):
            axes.set_xscale("log")
        axes.set_title(name, fontsize=9, color=TEXT)
        axes.grid(color=GRID, linewidth=0.6)
        tidy(axes)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    alt = f"Scatter plots of {len(complete)} complete trials' values against {', '.join(names)}."
    return Chart.of(figure, "The value against each setting", alt)


def settings_of(rows: Rows) -> list[str]:
    """The settings that any of these trials has a value of."""
    known = ("number", "state", "value", "steps", "error")
    return list(dict.fromkeys(name for row in rows for name in row if name not in known))


def _rank(row: Mapping[str, Any], minimise: bool) -> tuple[int, float]:
    value = row["value"] if row["value"] is not None else float("inf")
    return STATES.index(row["state"]) if row[
        "state"
    ] in STATES else 9, value if minimise else -value


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.5g}"
    # A table would take True for the number 1.
    return "" if value is None else str(value) if isinstance(value, bool) else value
