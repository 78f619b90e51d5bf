"""An audit as one HTML page without scripts, other files or faces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agejax.reporting.page import (
    ROWS,
    Section,
    cards,
    figures,
    listing,
    page,
    paragraph,
    subheading,
    table,
)
from agejax.reporting.plots import Chart


def audit(report: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    """Renders the page from an audit's JSON and charts."""
    copies, conflicts = report["duplicates"], report["conflicts"]
    lead = paragraph(
        f"Images are decoded at {report['image_size']} px; the fingerprint of the data is "
        f"{report['fingerprint']}. Lists show at most {ROWS} lines; audit.json has all."
    ) + cards(
        {
            "images": report["images"],
            "files skipped": report["skipped"]["n"],
            "groups of duplicates": copies["groups"],
            "images in these groups": copies["images"],
            "groups with conflicting labels": conflicts["groups"],
            "groups with ages over 5 years apart": conflicts["age_over_5_years"],
        }
    )
    sections = [
        _skipped(report["skipped"]),
        _duplicates(copies),
        _conflicts(conflicts, charts),
        _leakage(report["leakage"], report.get("notes", [])),
        _distribution(report["distribution"], charts),
        _outliers(report["outliers"]),
    ]
    return page(f"Audit of {report['dataset']}", lead, sections)


def _skipped(skipped: Mapping[str, Any]) -> Section:
    body = paragraph("None.")
    if skipped["n"]:
        body = table(("reason", "files"), skipped["reasons"].items())
        body += listing("the files", ("file and reason",), [(line,) for line in skipped["files"]])
    return Section("Files skipped", body)


def _duplicates(copies: Mapping[str, Any]) -> Section:
    rows = [
        (kind, copies[kind]["groups"], copies[kind]["images"], what)
        for kind, what in (
            ("exact", "all decoded images of the group are equal, pixel by pixel"),
            ("near", "another crop, size, contrast, compression or side of one picture"),
        )
    ]
    listed = [
        (", ".join(group["ids"]), "exact" if group["exact"] else "near")
        for group in copies["listed"]
    ]
    return Section(
        "Duplicates",
        table(("kind", "groups", "images", "what it is"), rows)
        + table(("images in a group", "groups"), copies["sizes"].items())
        + listing("the groups", ("files", "kind"), listed),
    )


def _conflicts(conflicts: Mapping[str, Any], charts: Mapping[str, Chart]) -> Section:
    rows = [
        ("any label", conflicts["groups"]),
        ("age", conflicts["age"]),
        ("age, by over 5 years", conflicts["age_over_5_years"]),
        ("gender", conflicts["gender"]),
        ("ethnicity", conflicts["ethnicity"]),
    ]
    listed = [
        (
            f"{group['years_apart']:g}",
            ", ".join(group["ids"]),
            _joined(group["age"]),
            _joined(group.get("gender", ())),
            _joined(group.get("ethnicity", ())),
        )
        for group in conflicts["listed"]
    ]
    heads = ("years apart", "files", "age", "gender", "ethnicity")
    return Section(
        "Contradicting labels",
        paragraph("Groups of duplicates in which a label is not the same for all copies.")
        + table(("differs", "groups"), rows)
        + figures(chart for name, chart in charts.items() if name == "years apart")
        + listing("the groups", heads, listed),
    )


def _leakage(leakage: Mapping[str, Any], notes: Sequence[str]) -> Section:
    title, text = "Leakage between splits", ""
    if not leakage:
        text = paragraph(
            "No splits were given; give some with --split-file NAME=FILE or --fraction NAME=SHARE."
        )
        return Section(title, text)
    heads = ("splits", "groups in both", "of these exact", "images of these", "images in both")
    for way, leaks in leakage.items():
        sizes = ", ".join(f"{name} {n:,}" for name, n in leaks["splits"].items())
        rows, listed = [], []
        for pair in leaks["pairs"]:
            concerned = ", ".join(f"{name} {n:,}" for name, n in pair["images"].items())
            name = " and ".join(pair["splits"])
            rows.append((name, pair["groups"], pair["exact"], concerned, pair["shared"]))
            listed += [
                (name, "; ".join(f"{split}: {', '.join(ids)}" for split, ids in group.items()))
                for group in pair["listed"]
            ]
        text += subheading(way) + paragraph(f"Images: {sizes}.")
        text += table(heads, rows)
        text += listing("the groups in both splits", ("splits", "files"), listed)
    return Section(title, text + "".join(map(paragraph, notes)))


def _distribution(shown: Mapping[str, Any], charts: Mapping[str, Chart]) -> Section:
    known = ", ".join(f"{label} {n:,}" for label, n in shown["known"].items())
    age = ", ".join(f"{name} {value:.4g}" for name, value in shown["age"].items())
    rows = [(name, *counts, sum(counts)) for name, counts in shown["table"].items()]
    return Section(
        "People in the data",
        paragraph(f"Images with a label: {known}." + (f" Age: {age} years." if age else ""))
        + figures(chart for name, chart in charts.items() if name != "years apart")
        + paragraph("Images of each group by age in years:")
        + table(("", *shown["decades"], "all"), rows),
    )


def _outliers(outliers: Mapping[str, Any]) -> Section:
    rows = [(kind, found["n"], found["what"]) for kind, found in outliers.items()]
    listed = [(kind, name) for kind, found in outliers.items() for name in found["ids"][:ROWS]]
    return Section(
        "Outliers",
        table(("kind", "images", "criterion"), rows)
        + paragraph("The sizes of the original files are not kept, so small files are not listed.")
        + listing("the images", ("kind", "file"), listed, shown=len(listed)),
    )


def _joined(values: Iterable[Any]) -> str:
    return ", ".join("unknown" if value is None else _short(value) for value in values)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
