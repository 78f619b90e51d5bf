"""An audit as one HTML page: needs no script and no other file, and shows no face."""

from __future__ import annotations

import base64
import html
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agejax.reporting.audit_figures import Chart

ROWS = 100  # of a list on the page; audit.json has them all

PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1c1c1c; --soft: #5a5a5a; --line: #d8d8d8;
  --back: #ffffff; --card: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --soft: #a8a8a8; --line: #3c3c3c;
  --back: #16181b; --card: #22262b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--text);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p, figcaption { color: var(--soft); margin: .4rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem;
  padding: 0; list-style: none; }
.cards li { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; font-size: .85rem;
  color: var(--soft); }
.cards b { display: block; font-size: 1.4rem; color: var(--text); }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
.number { text-align: right; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .5rem; }
summary { cursor: pointer; margin: .4rem 0; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
</body>
</html>
""")


def page(report: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    """The page of an audit's JSON and its charts."""
    copies, conflicts = report["duplicates"], report["conflicts"]
    body = [
        _paragraph(
            f"Decoded at {report['image_size']} px; fingerprint {report['fingerprint']}. "
            f"Lists show at most {ROWS} lines; audit.json has all."
        ),
        _cards(
            {
                "images": report["images"],
                "files skipped": report["skipped"]["n"],
                "groups of duplicates": copies["groups"],
                "images in them": copies["images"],
                "groups with conflicting labels": conflicts["groups"],
                "ages over 5 years apart": conflicts["age_over_5_years"],
            }
        ),
        _skipped(report["skipped"]),
        _duplicates(copies),
        _conflicts(conflicts, charts),
        _leakage(report["leakage"], report.get("notes", [])),
        _distribution(report["distribution"], charts),
        _outliers(report["outliers"]),
    ]
    title = html.escape(f"Audit of {report['dataset']}")
    return PAGE.substitute(title=title, body="\n".join(body))


def _skipped(skipped: Mapping[str, Any]) -> str:
    if not skipped["n"]:
        return _heading("Files skipped") + _paragraph("None.")
    return (
        _heading("Files skipped")
        + _table(("reason", "files"), skipped["reasons"].items())
        + _list("the files", ("file and reason",), [(line,) for line in skipped["files"]])
    )


def _duplicates(copies: Mapping[str, Any]) -> str:
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
    return (
        _heading("Duplicates")
        + _table(("kind", "groups", "images", "what it is"), rows)
        + _table(("images in a group", "groups"), copies["sizes"].items())
        + _list("the groups", ("files", "kind"), listed)
    )


def _conflicts(conflicts: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
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
    return (
        _heading("Labels that contradict")
        + _paragraph("Groups of duplicates in which a label is not the same for all copies.")
        + _table(("differs", "groups"), rows)
        + _figures(chart for name, chart in charts.items() if name == "years apart")
        + _list("the groups", heads, listed)
    )


def _leakage(leakage: Mapping[str, Any], notes: Sequence[str]) -> str:
    text = _heading("Leakage between splits")
    if not leakage:
        return text + _paragraph(
            "No splits were given; give some with --split-file NAME=FILE or --fraction NAME=SHARE."
        )
    heads = ("splits", "groups torn", "of these exact", "images concerned", "images in both")
    for way, leaks in leakage.items():
        sizes = ", ".join(f"{name} {n:,}" for name, n in leaks["splits"].items())
        rows, listed = [], []
        for pair in leaks["pairs"]:
            concerned = ", ".join(f"{name} {n:,}" for name, n in pair["images"].items())
            name = " and ".join(pair["splits"])
            rows.append((name, pair["groups"], pair["exact"], concerned, pair["shared"]))
            listed += [
                (name, "; ".join(f"{split}: {', '.join(ids)}" for split, ids in torn.items()))
                for torn in pair["listed"]
            ]
        text += f"<h3>{html.escape(way)}</h3>\n" + _paragraph(f"{sizes} images.")
        text += _table(heads, rows)
        text += _list("the groups torn apart", ("splits", "files"), listed)
    return text + "".join(_paragraph(note) for note in notes)


def _distribution(shown: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    known = ", ".join(f"{label} {n:,}" for label, n in shown["known"].items())
    age = ", ".join(f"{name} {value:.4g}" for name, value in shown["age"].items())
    rows = [(name, *counts, sum(counts)) for name, counts in shown["table"].items()]
    return (
        _heading("Who is in it")
        + _paragraph(f"Images with a label: {known}." + (f" Age: {age} years." if age else ""))
        + _figures(chart for name, chart in charts.items() if name != "years apart")
        + _paragraph("Images of each group by age in years.")
        + _table(("", *shown["decades"], "all"), rows)
    )


def _outliers(outliers: Mapping[str, Any]) -> str:
    rows = [(kind, found["n"], found["what"]) for kind, found in outliers.items()]
    listed = [(kind, name) for kind, found in outliers.items() for name in found["ids"][:ROWS]]
    return (
        _heading("Outliers")
        + _table(("kind", "images", "criterion"), rows)
        + _paragraph("The sizes of the original files are not kept, so none is called tiny.")
        + _list("the images", ("kind", "file"), listed, shown=len(listed))
    )


# ---------------------------------------------------------------------------------------- elements


def _heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>\n"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"


def _cards(counts: Mapping[str, int]) -> str:
    items = "".join(f"<li><b>{n:,}</b>{html.escape(name)}</li>" for name, n in counts.items())
    return f'<ul class="cards">{items}</ul>\n'


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers are set to the right, with commas."""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n{body}</table></div>\n'


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def _list(what: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], shown: int = ROWS) -> str:
    """A table that opens on a click, of the first `shown` rows; nothing where there are none."""
    if not rows:
        return ""
    most = f", the first {shown:,} of {len(rows):,}" if len(rows) > shown else f" ({len(rows):,})"
    head = f"<details><summary>{html.escape(what + most)}</summary>\n"
    return head + _table(heads, rows[:shown]) + "</details>\n"


def _figures(charts: Iterable[Chart]) -> str:
    return "".join(
        f'<figure><img alt="{html.escape(chart.alt)}" '
        f'src="data:image/png;base64,{base64.b64encode(chart.png).decode()}">'
        f"<figcaption>{html.escape(chart.caption)}</figcaption></figure>\n"
        for chart in charts
    )


def _joined(values: Iterable[Any]) -> str:
    return ", ".join("unknown" if value is None else _short(value) for value in values)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
