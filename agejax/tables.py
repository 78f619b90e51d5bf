"""CSV tables that are safe to open in spreadsheets, although their texts come from user data.

A spreadsheet runs a cell that begins with =, +, -, @, or white space and one of these, as a
formula, which may send the table's contents away (OWASP, "CSV Injection"). Names of files and
classes may begin so. An apostrophe in front makes them texts; `original` takes it off again.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import Any, TextIO

# Spreadsheets in some languages treat the wide forms as the narrow ones. A text that begins with
# apostrophes before one of these gets one more, so that every cell can be read back.
FORMULA = re.compile(r"'*([\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def cell(value: Any) -> Any:
    """The value as a cell that no spreadsheet runs; only texts ever get an apostrophe."""
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def original(text: str) -> str:
    """Restores the text that `cell` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def write(out: TextIO, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a header and rows, each row as it comes."""
    lines = csv.writer(out)
    lines.writerow(map(cell, header))
    lines.writerows(map(cell, row) for row in rows)
