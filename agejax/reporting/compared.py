"""The report's sections that compare runs on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agejax.evaluation import comparison
from agejax.reporting import cells, figures, page
from agejax.reporting.plots import Chart


def charts(result: Mapping[str, Any]) -> dict[str, Chart]:
    """Draws the differences by group of each comparison and target."""
    return {
        _name(target, number): figures.paired_differences(
            target,
            [
                {"name": "all", **{k: v for k, v in of.items() if k != "groups"}},
                *(row for by in of["groups"].values() for row in by),
            ],
            "years" if "mae" in result[target] else "error rate",
        )
        for number, found in enumerate(result.get("compared", ()), 1)
        for target, of in found["targets"].items()
    }


def sections(result: Mapping[str, Any], charts: Mapping[str, Chart]) -> list[page.Section]:
    """A section per comparison."""
    return [
        page.Section(
            f"Comparison with {found['theirs']['workdirs'][0]}",
            page.paragraph(
                f"{comparison.title(found)}. Below zero this run is better: the mean absolute "
                "error of ages in years, the error rate of classes, with 95 % intervals."
            )
            + page.table(
                ("target", "difference", "95 % interval", "images"),
                [
                    (target, f"{of['difference']:+.3f}", cells.interval(of["difference_ci95"]),
                     of["n"])
                    for target, of in found["targets"].items()
                ],
            )
            + page.figures(charts[_name(target, number)] for target in found["targets"]),
        )
        for number, found in enumerate(result.get("compared", ()), 1)
    ]  # fmt: skip


def _name(target: str, number: int) -> str:
    return f"{target} compared" + (f" {number}" if number > 1 else "")
