"""Lines about what is going on, by Python's logging, under the name "agejax".

`logging.getLogger("agejax").setLevel("WARNING")` keeps warnings only, "ERROR" nothing; lines of
progress go with the others. Unless a program has given that logger a handler, a line is printed:
about the work itself on stdout, about what goes before and beside it on stderr. Warnings are
printed with the word "warning" in front.
"""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("agejax")


class _Printer(logging.Handler):
    """Prints lines on what stdout and stderr are at the time; raises where they are closed."""

    def emit(self, record: logging.LogRecord) -> None:
        out = sys.stdout if getattr(record, "on_stdout", False) else sys.stderr
        kind = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{kind}{self.format(record)}", file=out, flush=True)


if not logger.handlers:
    logger.addHandler(_Printer())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def result(line: str) -> None:
    """A line about the work itself."""
    logger.info("%s", line, extra={"on_stdout": True})


def note(line: str) -> None:
    """A line about what goes before and beside the work."""
    logger.info("%s", line)


def warning(line: str) -> None:
    """A line about what may be wrong."""
    logger.warning("%s", line)


def wanted() -> bool:
    """Whether anybody wants to read about progress."""
    return logger.isEnabledFor(logging.INFO)
