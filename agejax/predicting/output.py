"""Writes records of predictions as JSON lines or CSV, to a file or stdout."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from agejax import files, tables
from agejax.paths import expand


def write(lines: Iterable[dict[str, Any]], form: str, out: TextIO) -> None:
    """Writes each record as it comes, as a JSON line or a CSV row."""
    if form == "jsonl":
        for record in lines:
            out.write(json.dumps(record) + "\n")
    else:
        rows = map(flat, lines)
        first = next(rows, None)
        if first is not None:
            tables.write(out, first, (row.values() for row in itertools.chain([first], rows)))
    out.flush()


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """Turns {target: {class: probability}} into {target_class: probability}; the rest stays."""
    return {
        f"{key}_{name}" if name else key: value
        for key, item in record.items()
        for name, value in (item.items() if isinstance(item, dict) else [("", item)])
    }


@contextlib.contextmanager
def destination(path: str | None) -> Iterator[TextIO]:
    """Opens a file to write to, or stdout. File names that are not UTF-8 pass unchanged.

    The file and its folder appear once all is written. Devices and pipes are written directly.

    Raises:
      UserError: it cannot be written.
    """
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        yield sys.stdout
        return
    target = expand(path).resolve()
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    if target.exists() and not target.is_file():
        with files.disk(path), target.open("w", **options) as out:
            yield out
        return
    with files.disk(path):
        target.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(target) as file:
        out = io.TextIOWrapper(file, **options)
        yield out
        out.detach()  # flushes; the file stays open
