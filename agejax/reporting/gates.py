"""The report's section on age gates: its charts and tables, from metrics.json's "gates"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agejax.evaluation.gates import USUAL
from agejax.reporting import cells, figures, page
from agejax.reporting.plots import BLUE, ORANGE, Chart

TITLE = "Age gates"
ABOUT = (
    "Who would pass without a document if everyone with a predicted age of T years or more did "
    "(Challenge-T; NIST IR 8525), with 95 % Wilson intervals. This shows how far a model is from "
    f"such a use; it does not permit it. {cells.FEW}"
)


def charts(gates: Mapping[str, Any]) -> dict[str, Chart]:
    """Draws rates by challenge age, and at Challenge-25 by group and by true age."""
    drawn = {"gates": figures.challenge(gates["challenge"])}
    kinds = (
        ("fpr", "false accepts", "Minors of 14 to 17", ORANGE),
        ("tpr", "true accepts", "Adults", BLUE),
    )
    for key, name, who, colour in kinds:
        rows = [{"name": row["name"], **_usual(row)[key]} for row in _groups(gates)]
        if any(row["n"] for row in rows):
            title = f"{who} whom Challenge-{USUAL} lets in, by group"
            drawn[f"{name} by group"] = figures.let_in(title, rows, [colour] * len(rows))
    rows = gates["by_age"][0]["rows"]
    title = f"Who is let in by Challenge-{USUAL}, by true age; orange: minors"
    drawn["let in by age"] = figures.let_in(
        title, rows, [ORANGE if row["minor"] else BLUE for row in rows]
    )
    return drawn


def section(gates: Mapping[str, Any] | None, charts: Mapping[str, Chart]) -> page.Section:
    """The section; empty where there is no age to judge."""
    if gates is None:
        return page.Section(TITLE, "")
    return page.Section(
        TITLE,
        page.paragraph(ABOUT)
        + page.columns([page.figure(charts["gates"]), f"<div>{_overall(gates)}</div>"])
        + _by_group(gates, charts)
        + _limits(gates)
        + _by_age(gates, charts),
    )


def _groups(gates: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for rows in gates["groups"].values() for row in rows]


def _usual(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rates of a group at Challenge-25."""
    found: Mapping[str, Any] = next(of for of in row["challenge"] if of["threshold"] == USUAL)
    return found


def _overall(gates: Mapping[str, Any]) -> str:
    rows = [
        (row["threshold"], *cells.rate(row["fpr"]), *cells.rate(row["tpr"]))
        for row in gates["challenge"]
    ]
    band = gates["band"]
    return (
        page.table(("T", "14 to 17: let in", "n", "18 and older: let in", "n"), rows)
        + page.paragraph(
            f"A service for ages {band['first']} to {band['last']} only, which lets in everyone "
            "with a predicted age in this range:"
        )
        + page.table(
            ("true age", "let in", "n"),
            [
                ("in the range", *cells.rate(band["tpr"])),
                ("outside it", *cells.rate(band["fpr"])),
                ("outside it by at most 5 years", *cells.rate(band["fpr_near"])),
            ],
        )
    )


def _by_group(gates: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    if not gates["groups"]:
        return ""
    heads = ("group", "14 to 17: let in", "n", "18 and older: let in", "n")
    rows = [
        (row["name"], *cells.rate(_usual(row)["fpr"]), *cells.rate(_usual(row)["tpr"]))
        for row in _groups(gates)
    ]
    shown = [
        page.figure(charts[name])
        for name in ("false accepts by group", "true accepts by group")
        if name in charts
    ]
    tables = page.listing(f"all groups at Challenge-{USUAL}", heads, rows)
    for by, of in gates["groups"].items():
        every = [
            (row["name"], at["threshold"], *cells.rate(at["fpr"]), *cells.rate(at["tpr"]))
            for row in of
            for at in row["challenge"]
        ]
        all_heads = (heads[0], "T", *heads[1:])
        tables += page.listing(f"every T by {by}", all_heads, every, shown=len(every))
    return page.subheading("By group") + page.columns(shown) + tables + _gaps(gates)


def _gaps(gates: Mapping[str, Any]) -> str:
    rows = [
        (
            by,
            *(f"{gap[end]['mean']:.1%}: {gap[end]['name']}, n = {gap[end]['n']:,}"
              for end in ("largest", "smallest")),
            f"{100 * gap['difference']:.1f} "
            + cells.interval([100 * bound for bound in gap["difference_ci95"]], 1),
        )
        for by, gap in gates["gaps"].items()
    ]  # fmt: skip
    if not rows:
        return page.paragraph("No two groups have enough minors for a comparison.")
    return page.paragraph(
        f"The gap between the groups' false accepts at Challenge-{USUAL}, among groups with enough "
        "minors. An interval that starts at 0 may be chance alone."
    ) + page.table(("by", "most", "fewest", "difference, percentage points"), rows)


def _limits(gates: Mapping[str, Any]) -> str:
    """The challenge ages that keep false accepts at a limit, over all and by group."""
    everybody = {"name": "all", "limits": gates["limits"]}
    rows = [
        (
            row["name"],
            cells.count(row["limits"][0]["fpr"]["n"]),
            *(_age(limit) for limit in row["limits"]),
        )
        for row in (everybody, *_groups(gates))
        if row["limits"]
    ]
    if not rows:
        return ""
    names = [f"{row['limit']:.0%} of minors" for row in gates["limits"]]
    needed = " and ".join(f"{row['needed']} for {row['limit']:.0%}" for row in gates["limits"])
    return (
        page.subheading("The challenge age that lets in few minors")
        + page.paragraph(
            "The lowest T, in years, that lets in at most so many of those aged 14 to 17, with its "
            "95 % interval (exact). “or more” has no upper end: these images cannot show that any "
            f"T is safe enough. That takes at least so many minors: {needed}."
        )
        + page.table(("group", "minors", *names), rows)
    )


def _age(limit: Mapping[str, Any]) -> str:
    low, high = limit["ci95"]
    return f"{limit['threshold']} [{low} " + ("or more]" if high is None else f"to {high}]")


def _by_age(gates: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    """What gates cost adults, and which minors pass them, at each challenge age of note."""
    by_age = sorted(gates["by_age"], key=lambda at: at["threshold"])
    rows = [
        (same[0]["name"], cells.count(same[0]["n"]), *(cells.rate(row)[0] for row in same))
        for same in zip(*(at["rows"] for at in by_age), strict=True)
    ]
    minors = [
        (
            at["threshold"], row["name"], round(row["rate"] * row["n"]), cells.count(row["n"]),
            f"{row['mean_error']:+.1f}", f"{row['largest_error']:+.1f}",
        )
        for at in by_age
        for row in at["rows"]
        if row["minor"] and row["rate"]
    ]  # fmt: skip
    heads = ("true age", "n", *(f"let in at T = {at['threshold']}" for at in by_age))
    passed = page.paragraph("No minor passes at these challenge ages.")
    if minors:
        passed = page.paragraph(
            "Minors who pass, and how far off their predicted ages are (predicted − true)."
        ) + page.table(
            ("T", "true age", "let in", "of", "mean error, years", "largest error"), minors
        )
    return (
        page.subheading("By true age")
        + page.paragraph(
            "What a gate costs adults: the share of each age that is let in, at "
            f"Challenge-{USUAL} and at the challenge ages above that let in few minors."
        )
        + page.table(heads, rows)
        + page.columns([page.figure(charts["let in by age"]), f"<div>{passed}</div>"])
    )
