"""CSV tables that people open in spreadsheets, of texts that came with somebody's data.

A spreadsheet runs a cell that begins with =, +, -, @ or white space before them as a formula, which
may send the table's contents away (OWASP, "CSV Injection"). File names and names of classes may
begin so. An apostrophe in front of them makes them texts; `original` takes it off again.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import Any, TextIO

# The wide forms are taken for the narrow ones by spreadsheets of some languages. What begins with
# apostrophes before one of these gets one more, so that every cell can be read back.
FORMULA = re.compile(r"'*([\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def cell(value: Any) -> Any:
    """The value as a cell that no spreadsheet runs: a text may get an apostrophe, a number none."""
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def original(text: str) -> str:
    """The text that `cell` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def write(out: TextIO, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a header and rows, row by row as they come."""
    lines = csv.writer(out)
    lines.writerow(map(cell, header))
    lines.writerows(map(cell, row) for row in rows)
