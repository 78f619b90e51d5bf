"""Files that a run leaves: JSON written whole or not at all, and metrics.jsonl line by line."""

from __future__ import annotations

import errno
import json
import math
import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax.errors import UserError


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in one go: a reader, or a crash, sees the old one or the new one.

    Raises:
      UserError: the disk is full; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _named(error, path) from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """`write_text` of JSON; what is not finite becomes null, numpy's numbers become Python's."""
    write_text(path, json.dumps(clean(value), indent=2) + "\n")


def clean(value: Any) -> Any:
    """`value` with only what JSON knows."""
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return clean(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class MetricsFile:
    """metrics.jsonl: one line an entry, each on disk when `append` returns.

    Opening it at `resume_step` drops the entries after that step, which will come again, and a last
    line that a crash has cut.

    Raises:
      UserError: the disk is full.
    """

    def __init__(self, path: pathlib.Path, resume_step: int = 0) -> None:
        self._path = path
        if path.exists():
            write_text(path, "".join(_kept(path, resume_step)))
        self._file = path.open("a")

    def append(self, entry: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(clean(entry)) + "\n")
            self._file.flush()
        except OSError as error:
            raise _named(error, self._path) from error

    def close(self) -> None:
        self._file.close()


def _kept(path: pathlib.Path, resume_step: int) -> list[str]:
    lines = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= resume_step:
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return lines


def _named(error: OSError, path: pathlib.Path) -> Exception:
    if error.errno == errno.ENOSPC:
        return UserError(f"disk full while writing {path}: free some space and start again")
    return error
