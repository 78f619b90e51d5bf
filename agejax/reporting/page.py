"""Self-contained HTML pages: no script, nothing loaded, readable on a phone and in dark mode."""

from __future__ import annotations

import base64
import html
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agejax.reporting.plots import Chart

ROWS = 100  # rows of a list on a page; the JSON beside it has all

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


def page(title: str, sections: Iterable[str]) -> str:
    """Renders a page from sections, which the functions below make."""
    return PAGE.substitute(title=html.escape(title), body="\n".join(sections))


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>\n"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"


def cards(figures: Mapping[str, Any]) -> str:
    """Renders the headline figures: name -> number or text."""
    items = "".join(
        f"<li><b>{_text(value)}</b>{html.escape(name)}</li>" for name, value in figures.items()
    )
    return f'<ul class="cards">{items}</ul>\n'


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Renders a table; numbers are right-aligned, with commas."""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    # A scrolling region must be reachable by keyboard, and then needs a name.
    wide = f'class="wide" tabindex="0" role="region" aria-label="table of {html.escape(heads[-1])}"'
    return f"<div {wide}><table><thead><tr>{head}</tr></thead>\n{body}</table></div>\n"


def _cell(value: Any) -> str:
    kind = ' class="number"' if isinstance(value, int) else ""
    return f"<td{kind}>{_text(value)}</td>"


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


def figures(charts: Iterable[Chart]) -> str:
    return "".join(
        f'<figure><img alt="{html.escape(chart.alt)}" '
        f'src="data:image/png;base64,{base64.b64encode(chart.png).decode()}">'
        f"<figcaption>{html.escape(chart.caption)}</figcaption></figure>\n"
        for chart in charts
    )
