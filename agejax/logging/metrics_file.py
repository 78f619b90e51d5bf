"""metrics.jsonl, written line by line."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from agejax import files


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
            files.write_text(path, "".join(_kept(path, resume_step)))
        with files.disk(path):
            # Unbuffered: nothing unwritten is left to fail a second time in close().
            self._file = path.open("ab", buffering=0)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Writes one line; what is not finite becomes null."""
        line = (json.dumps(files.clean(entry)) + "\n").encode()
        with files.disk(self._path):
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
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return lines
