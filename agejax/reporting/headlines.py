"""The report's section of headline figures and gaps between groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agejax.reporting import cells, figures, page
from agejax.reporting.plots import Chart

TITLE = "Headline figures"
SHOWN = (1, 3, 5, 10)  # x of Acc(x) in the table


def charts(headlines: Mapping[str, Any]) -> dict[str, Chart]:
    """Draws the MAE at each age from 13 to 30; nothing where none of these occurs."""
    rows = headlines["by_year"]
    if not rows:
        return {}
    chart = figures.error_by_group("age by single year", rows, "mae", headlines["mae"])
    return {"age by single year": chart}


def section(result: Mapping[str, Any], charts: Mapping[str, Chart]) -> page.Section:
    """The section, from the contents of metrics.json; the gaps between groups come first."""
    body = _gaps(result.get("gaps", {}))
    if "headlines" in result:
        found = result["headlines"]
        curve, years = (
            page.figure(charts[name]) if name in charts else ""
            for name in ("cumulative score", "age by single year")
        )
        figures = f"<div>{_table(found)}{_within(found)}{curve}</div>"
        body += page.subheading("The age, in the field's figures")
        body += page.columns([figures, *filter(None, [years])])
    return page.Section(TITLE, body)


def _gaps(gaps: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{target} by {by}",
            *(f"{gap[end]['mean']:.3f}: {gap[end]['name']}, n = {gap[end]['n']:,}"
              for end in ("largest", "smallest")),
            f"{gap['difference']:.3f} {cells.interval(gap['difference_ci95'])}",
            "" if gap["ratio"] is None
            else f"{gap['ratio']:.2f} {cells.interval(gap['ratio_ci95'], 2)}",
            ", ".join(f"{left['name']} ({left['n']})" for left in gap["left_out"] if left["n"]),
        )
        for target, divisions in gaps.items()
        for by, gap in divisions.items()
    ]  # fmt: skip
    if not rows:
        return ""
    heads = ("", "largest error", "smallest error", "difference", "ratio", "left out: too few")
    return (
        page.subheading("Gaps between groups")
        + page.paragraph(
            "The error of the worst group, less that of the best, and their ratio: the MAE of ages "
            "in years, the error rate of classes. The 95 % intervals allow for the choice of the "
            "extremes: one that starts at 0, or a ratio at 1, may be chance alone."
        )
        + page.table(heads, rows)
    )


def _table(found: Mapping[str, Any]) -> str:
    n = found["n"]
    rows: list[tuple[Any, ...]] = [
        ("MAE, years", f"{found['mae']:.2f}", cells.interval(found["mae_ci95"], 2), n),
        ("bias: mean of predicted − true", f"{found['bias']:+.2f}",
         cells.interval(found["bias_ci95"], 2), n),
        ("SD of predicted − true", f"{found['sd']:.2f}", "", n),
    ]  # fmt: skip
    if "cells" in found:
        of = found["cells"]
        name = f"mean MAE of {of['filled']} cells: each sex at each age from 18 to 30"
        if of["filled"] < of["of"]:
            name += f"; {of['of'] - of['filled']} of {of['of']} hold no image"
        name += f"; the smallest holds {of['smallest']}"
        rows.append((name, f"{of['mae']:.2f}", cells.interval(of["mae_ci95"], 2), of["n"]))
    rows += [
        (f"Acc({x}): within {x} year{'s' * (x > 1)}", f"{found['within'][x]:.1%}", "", n)
        for x in SHOWN
    ]
    return page.table(("figure", "value", "95 % interval", "images"), rows)


def _within(found: Mapping[str, Any]) -> str:
    rows = [(x, f"{share:.1%}") for x, share in enumerate(found["within"])]
    return page.listing("Acc(x) for every x", ("x, years", "images within"), rows)
