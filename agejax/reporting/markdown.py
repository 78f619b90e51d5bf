"""Tables and lists in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose first column is text, and whose others are numbers; whole ones get commas."""
    columns = "---:|" * (len(heads) - 1)
    lines = [_row(heads), f"|---|{columns}"]
    return "\n".join([*lines, *(_row(row) for row in rows)])


def _row(cells: Sequence[Any]) -> str:
    texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
    safe = (" ".join(text.replace("|", "\\|").split()) for text in texts)
    return f"| {' | '.join(safe)} |"


def bullets(lines: Iterable[str]) -> str:
    """A list, one line each."""
    return "\n".join(f"- {line}" for line in lines)
