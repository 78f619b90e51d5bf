"""Files that a run leaves: JSON written whole or not at all, and metrics.jsonl line by line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from agejax.errors import full_disk


@contextlib.contextmanager
def disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the error of a full disk, met while writing `path`, into a `UserError`."""
    with full_disk(f"disk full: cannot write {os.fspath(path)}; free some space and start again"):
        yield


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in one go: a reader, or a crash, sees the old one or the new one.

    Raises:
      UserError: the disk is full; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with disk(path):
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """`write_text` of JSON; what is not finite becomes null, arrays become lists."""
    write_text(path, json.dumps(clean(value), indent=2) + "\n")


def clean(value: Any) -> Any:
    """`value` with only what JSON knows."""
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and JAX
        return clean(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class MetricsFile:
    """metrics.jsonl: one line an entry; what `append` has written outlives the process.

    Opening it at `resume_step` drops the entries after that step, which will come again, and a last
    line that a crash has cut. So a run that was killed and resumed has each step once.

    Raises:
      UserError: the disk is full.
    """

    def __init__(self, path: pathlib.Path, resume_step: int = 0) -> None:
        self._path = path
        if path.exists():
            write_text(path, "".join(_kept(path, resume_step)))
        with disk(path):
            # Unbuffered: nothing unwritten is left to fail a second time in close().
            self._file = path.open("ab", buffering=0)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Writes one line; what is not finite becomes null."""
        line = (json.dumps(clean(entry)) + "\n").encode()
        with disk(self._path):
            while line:  # a disk that fills up takes part of a line, and fails on the rest
                line = line[self._file.write(line) :]

    def close(self) -> None:
        self._file.close()


def _kept(path: pathlib.Path, resume_step: int) -> list[str]:
    """The whole lines up to `resume_step`."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= resume_step:
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return lines
