"""Self-contained HTML pages: no script, nothing loaded, readable on a phone and in dark mode."""

from __future__ import annotations

import base64
import html
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from agejax.reporting.plots import Chart

ROWS = 100  # rows of a list on a page; the JSON beside it has all
SHORT = 24  # characters of a table's cell that stay on one line

PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1c1c1c; --soft: #5a5a5a; --line: #d8d8d8;
  --back: #ffffff; --card: #f4f6f8; --link: #0060a0; }
@media screen and (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --soft: #a8a8a8;
  --line: #3c3c3c; --back: #16181b; --card: #22262b; --link: #7cc0f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem; color: var(--text);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 0.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.3rem; }
p { color: var(--soft); margin: 0.4rem 0; max-width: 48rem; }
a { color: var(--link); }
nav ul, .legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 0.8rem 0; padding: 0;
  list-style: none; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem;
  margin: 0.8rem 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: 0.6rem; margin: 0.6rem 0; padding: 0; list-style: none; }
.cards li { background: var(--card); border-radius: 0.5rem; padding: 0.6rem 0.8rem;
  font-size: 0.85rem; color: var(--soft); }
.cards b { display: block; font-size: 1.4rem; color: var(--text); }
.legend { flex-direction: column; font-size: 0.85rem; color: var(--soft); }
.legend li { display: flex; max-width: 60rem; }
.legend svg { flex: none; width: 0.8rem; height: 0.8rem; margin: 0.25rem 0.5rem 0 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr));
  gap: 1.2rem 2rem; margin: 1rem 0; align-items: start; }
.columns > * { min-width: 0; }
.wide { overflow-x: auto; margin: 0.6rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { vertical-align: bottom; }
td { white-space: nowrap; }
td.long { white-space: normal; min-width: 9rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--back); }
.number { text-align: right; }
figure { margin: 0; }
figcaption { margin: 0 0 0.4rem; font-weight: 600; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 0.5rem; }
summary { cursor: pointer; margin: 0.4rem 0; font-size: 0.85rem; }
@media print {
  @page { margin: 1.5cm; }
  body { max-width: none; padding: 0; font-size: 0.8rem; }
  nav, details:not([open]) { display: none; }
  .columns { grid-template-columns: 1fr 1fr; gap: 1rem; }
  .wide { overflow: visible; }
  table { font-size: 0.6rem; }
  th, td { padding: 0.1rem 0.3rem; }
  td.long { min-width: 0; }
  figure, .cards, tr { break-inside: avoid; }
  h2, h3, p, figcaption { break-after: avoid; }
}
</style>
</head>
<body>
<main>
<h1>$title</h1>
$lead
$contents
$sections
</main>
</body>
</html>
""")


class Section(NamedTuple):
    """A part of a page: its title in plain text, and its body in HTML."""

    title: str
    body: str


def page(title: str, lead: str, sections: Iterable[Section]) -> str:
    """Renders a page: a lead, a table of contents, and those sections that are not empty."""
    shown = [(f"section-{i}", *section) for i, section in enumerate(sections, 1) if section.body]
    links = "".join(
        f'<li><a href="#{name}">{html.escape(text)}</a></li>' for name, text, _ in shown
    )
    return PAGE.substitute(
        title=html.escape(title),
        lead=lead,
        contents=f'<nav aria-label="contents"><ul>{links}</ul></nav>' if shown else "",
        sections="\n".join(
            f'<section id="{name}">\n<h2>{html.escape(text)}</h2>\n{body}</section>'
            for name, text, body in shown
        ),
    )


def subheading(text: str) -> str:
    return f"<h3>{html.escape(text)}</h3>\n"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"


def facts(known: Mapping[str, Any]) -> str:
    """Renders what the page is about: name -> number or text."""
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{_text(value)}</dd>" for name, value in known.items()
    )
    return f'<dl class="facts">{rows}</dl>\n'


def legend(meanings: Mapping[str, str]) -> str:
    """Renders what colours mean: "#rrggbb" -> text."""
    items = "".join(
        f'<li><svg aria-hidden="true"><rect width="100%" height="100%" fill="{colour}"/></svg>'
        f"{html.escape(meaning)}</li>"
        for colour, meaning in meanings.items()
    )
    return f'<ul class="legend">{items}</ul>\n'


def cards(figures: Mapping[str, Any]) -> str:
    """Renders the headline figures: name -> number or text."""
    items = "".join(
        f"<li><b>{_text(value)}</b>{html.escape(name)}</li>" for name, value in figures.items()
    )
    return f'<ul class="cards">{items}</ul>\n'


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Renders a table; columns with whole numbers are right-aligned, and these have commas."""
    rows = [*rows]
    counts = [any(isinstance(cell, int) for cell in cells) for cells in zip(*rows, strict=True)]
    counts = counts or [False] * len(heads)
    body = "".join(f"<tr>{''.join(map(_cell, row, counts))}</tr>\n" for row in rows)
    head = "".join(
        f'<th scope="col"{_kind(number=count)}>{html.escape(name)}</th>'
        for name, count in zip(heads, counts, strict=True)
    )
    # A scrolling region must be reachable by keyboard, and then needs a name.
    wide = f'class="wide" tabindex="0" role="region" aria-label="table of {html.escape(heads[-1])}"'
    return f"<div {wide}><table><thead><tr>{head}</tr></thead>\n{body}</table></div>\n"


def _cell(value: Any, count: bool) -> str:
    return f"<td{_kind(number=count, long=len(str(value)) > SHORT)}>{_text(value)}</td>"


def _kind(**kinds: bool) -> str:
    """The attribute for those classes that hold."""
    names = " ".join(name for name, holds in kinds.items() if holds)
    return f' class="{names}"' if names else ""


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))


def listing(
    what: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], shown: int = ROWS
) -> str:
    """Renders a collapsed table of the first `shown` rows; "" where there are no rows."""
    if not rows:
        return ""
    most = f", the first {shown:,} of {len(rows):,}" if len(rows) > shown else f" ({len(rows):,})"
    head = f"<details><summary>{html.escape(what + most)}</summary>\n"
    return head + table(heads, rows[:shown]) + "</details>\n"


def figure(chart: Chart, below: str = "") -> str:
    """Renders a chart under its caption, with more HTML below it."""
    return (
        f"<figure><figcaption>{html.escape(chart.caption)}</figcaption>"
        f'<img alt="{html.escape(chart.alt)}" '
        f'src="data:image/png;base64,{base64.b64encode(chart.png).decode()}">{below}</figure>\n'
    )


def columns(blocks: Iterable[str]) -> str:
    """Puts blocks side by side on a wide screen, one below the other on a phone; "" for none."""
    inside = "".join(blocks)
    return f'<div class="columns">{inside}</div>\n' if inside else ""


def figures(charts: Iterable[Chart]) -> str:
    return columns(map(figure, charts))
