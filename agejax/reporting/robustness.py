"""The report's sections on degraded images and on views of one face, from "robustness"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agejax.evaluation.gates import USUAL
from agejax.reporting import cells, figures, page
from agejax.reporting.plots import Chart

ABOUT = (
    "The first row is the image as it is; its figure is the dashed line. Changes are paired with "
    "it. Degradations are drawn by a program, so they stand in for cameras and hands and are not "
    "photos of them."
)
AS_IT_IS = "as it is"
SPREAD = "age over views of one face"


def charts(robustness: Mapping[str, Any], alpha: float | None) -> dict[str, Chart]:
    """Draws the error, and an age's coverage, against severity, and the spread by group.

    Args:
      alpha: the share of images that intervals may miss; None where there are none.
    """
    drawn = {}
    for target, kinds in robustness["targets"].items():
        for kind, rows in kinds.items():
            key = "mae" if "mae" in rows[0] else "accuracy"
            name = f"{target} under {kind}"
            drawn[name] = figures.error_by_group(name, rows, key, rows[0][key], AS_IT_IS)
        every = [
            row if row["name"] == AS_IT_IS else row | {"name": f"{kind}: {row['name']}"}
            for i, (kind, rows) in enumerate(kinds.items())
            for row in rows[min(i, 1) :]  # as it is only once
        ]
        if alpha is not None and "coverage" in every[0]:
            name = f"{target} coverage when degraded"
            drawn[name] = figures.interval_coverage(every, 1 - alpha)
    if stability := robustness.get("stability"):
        rows = [row for of in stability["groups"].values() for row in of]
        drawn[SPREAD] = figures.error_by_group(SPREAD, rows, "sd", stability["sd"])
    return drawn


def sections(
    robustness: Mapping[str, Any] | None, charts: Mapping[str, Chart]
) -> list[page.Section]:
    """Robustness and stability; empty where they were not asked for."""
    if robustness is None:
        return []
    body = page.paragraph(f"{robustness['n']:,} images, one of each group of copies. {ABOUT}")
    for target, kinds in robustness["targets"].items():
        name = f"{target} coverage when degraded"
        shown = [
            *(charts[f"{target} under {kind}"] for kind in kinds),
            *([charts[name]] if name in charts else []),
        ]
        rows = [
            (kind, row["name"], f"{row.get('mae', row.get('accuracy')):.3f}",
             f"{row['change']:+.3f}", cells.interval(row["change_ci95"]),
             f"{row['coverage']:.1%}" if "coverage" in row else "", cells.count(row["n"]))
            for kind, of in kinds.items()
            for row in of
        ]  # fmt: skip
        heads = ("", "severity", "MAE, years" if "mae" in next(iter(kinds.values()))[0] else
                 "accuracy", "change of the error", "95 % interval", "coverage", "n")  # fmt: skip
        body += page.subheading(target.capitalize()) + page.figures(shown)
        body += page.listing("as a table", heads, rows)
    body += _undetected(robustness.get("undetected"), robustness["n"])
    return [
        page.Section("Degraded images", body),
        page.Section("Views of one face", _stability(robustness, charts)),
    ]


def _undetected(found: Mapping[str, Any] | None, n: int) -> str:
    if found is None:
        return ""
    rows = [
        (row["name"], row["lost"], *cells.rate(row))
        for of in found["groups"].values()
        for row in of
    ]
    return page.paragraph(
        f"In {found['images']:,} of these {n:,} images, as they are, the face detector finds no "
        "face: a photo of such a face cannot be processed."
    ) + page.listing("images without a face found, by group", ("group", "lost", "share", "n"), rows)


def _stability(robustness: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    found, copies = robustness.get("stability"), robustness.get("copies")
    if found is None or copies is None:
        return ""
    rows = [
        (by, row["name"], f"{row['sd']:.2f}", cells.interval(row["sd_ci95"], 2),
         cells.count(row["n"]))
        for by, of in found["groups"].items()
        for row in of
    ]  # fmt: skip
    gate = [
        (who, *cells.rate(found[key]))
        for who, key in (
            ("all", "gate_changes"),
            ("14 to 17", "gate_changes_minors"),
            ("18 and older", "gate_changes_adults"),
        )
    ]
    of_copies = (
        f"{copies['n']:,} photos have copies among the scored images, {copies['images']:,} images: "
        f"their predictions are {copies['range']:.2f} years apart in the mean, at most "
        f"{copies['largest']:.2f}."
        if copies["n"]
        else "No photo has a copy among the scored images."
    )
    text = (
        page.paragraph(
            f"{found['views']} views of each of {found['n']:,} faces, in which a person would see "
            "the same age: mirrored, turned by 5 degrees, nearer, farther, moved, brighter, "
            "darker, compressed. Over these the predicted age has a standard deviation of "
            f"{found['sd']:.2f} years {cells.interval(found['sd_ci95'], 2)} and a range of "
            f"{found['range']:.2f} years in the mean, {found['range_p95']:.2f} for the least "
            f"stable 5 %. {of_copies}"
        )
        + page.paragraph(f"Faces that Challenge-{USUAL} admits in some views and not in others:")
        + page.table(("true age", "share", "n"), gate)
        + page.listing(
            "standard deviation over views, by group",
            ("by", "group", "SD, years", "95 % interval", "n"),
            rows,
        )
    )
    return page.columns([f"<div>{text}</div>", page.figure(charts[SPREAD])])
