"""Lines about what is going on, by Python's logging, under the name "agejax".

`logging.getLogger("agejax").setLevel("WARNING")` keeps warnings only, "ERROR" nothing; progress
goes with the other lines. Unless a program has given that logger a handler, a line is printed:
about the work itself on stdout, about what goes before and beside it on stderr. Warnings are
printed with the word "warning" in front.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator
from typing import TextIO

logger = logging.getLogger("agejax")
OPENING = "opening"  # marks the records of `opening`
START_OF_LINE = "\r\x1b[K"  # and erases what is there


class _Printer(logging.Handler):
    """Prints lines on what stdout and stderr are at the time; raises where they are closed.

    Below them a terminal may show one more line, which is drawn again and again.
    """

    _drawn_on: TextIO | None = None

    def emit(self, record: logging.LogRecord) -> None:
        out = sys.stdout if getattr(record, "on_stdout", False) else sys.stderr
        kind = "warning: " if record.levelno >= logging.WARNING else ""
        self.erase()
        print(f"{kind}{self.format(record)}", file=out, flush=True)

    def draw(self, line: str, out: TextIO) -> None:
        """Draws `line` in place of the one before."""
        # A line that wraps could not be drawn again.
        line = line[: shutil.get_terminal_size().columns - 1]
        self.acquire()
        try:
            self.erase()
            out.write(line)
            out.flush()
            self._drawn_on = out
        finally:
            self.release()

    def erase(self) -> None:
        """Removes the line that was drawn, if any."""
        if self._drawn_on is not None:
            self._drawn_on.write(START_OF_LINE)
            self._drawn_on.flush()
            self._drawn_on = None


printer = _Printer()
if not logger.handlers:
    logger.addHandler(printer)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def result(line: str) -> None:
    """A line about the work itself."""
    logger.info("%s", line, extra={"on_stdout": True})


def opening(lines: str) -> None:
    """The lines about what a training is about to do."""
    logger.info("%s", lines, extra={"on_stdout": True, OPENING: True})


@contextlib.contextmanager
def without_openings() -> Iterator[None]:
    """While active, `opening` prints nothing: for many trainings that differ in few settings."""

    def passes(record: logging.LogRecord) -> bool:
        return not getattr(record, OPENING, False)

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def note(line: str) -> None:
    """A line about what goes before and beside the work."""
    logger.info("%s", line)


def warning(line: str) -> None:
    """A line about what may be wrong."""
    logger.warning("%s", line)


def draws_on(out: TextIO) -> bool:
    """Whether a line can be drawn there: on a terminal, unless the logger is quiet or not ours."""
    return out.isatty() and logger.isEnabledFor(logging.INFO) and printer in logger.handlers
