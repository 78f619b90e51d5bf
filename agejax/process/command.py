"""How a command ends: an exit code, and at most one line for what the user can mend."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from agejax.errors import chain, line_of
from agejax.files import disk_was_full
from agejax.process import interrupts

CLOSED_PIPE = 141  # the exit code that shells report for SIGPIPE


def run_command(main: Callable[..., Any], *args: Any) -> int:
    """Runs `main(*args)` and returns the exit code of the process.

    0: done. 2: one line on stderr, for a `UserError`, an error of the file system
    (`errors.REMEDIES`), or no memory. 130: interrupted by Ctrl-C, one line. 141: the reader of the
    output has closed it, as `| head -1` does; no line.

    Raises:
      Exception: any other one. It is a bug, and its traceback says where.
    """
    _report_a_full_disk_once()
    try:
        code = _run(main, args)
    finally:
        flushed = _flush()
    if code == interrupts.INTERRUPTED:
        # Threads may still have to end; a second Ctrl-C does not wait for them.
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(interrupts.INTERRUPTED))
    return code or (0 if flushed else CLOSED_PIPE)


def _run(main: Callable[..., Any], args: Sequence[Any]) -> int:
    try:
        with interrupts.handled_by(interrupts.interrupt):
            main(*args)
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        report("agejax: interrupted")
        return interrupts.INTERRUPTED
    except Exception as error:
        if any(isinstance(each, BrokenPipeError) for each in chain(error)) and (
            _is_closed(sys.stdout) or _is_closed(sys.stderr)
        ):
            return CLOSED_PIPE
        line = line_of(error)
        if line is None:
            raise
        report(f"agejax: error: {line}")
        return 2
    return 0


def report(line: str) -> None:
    """Prints a line on stderr, where anybody reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _is_closed(stream: Any) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # errors are always reported
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


def _flush() -> bool:
    """Writes out stdout and stderr; False where that fails.

    Such a stream leads nowhere from then on, as Python reports at length what it cannot flush when
    it exits.
    """
    flushed = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            flushed = False
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return flushed


def _report_a_full_disk_once() -> None:
    """Quietens orbax's threads: each reports a full disk at length, as the main one does."""
    threading.excepthook, sys.unraisablehook = _thread_hook, _unraisable_hook
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_of_no_full_disk)
    logging.getLogger("absl").addFilter(_is_of_no_missing_metrics)


def _thread_hook(failure: threading.ExceptHookArgs) -> None:
    if not disk_was_full(failure.exc_value):
        threading.__excepthook__(failure)


def _unraisable_hook(failure: sys.UnraisableHookArgs) -> None:
    if isinstance(failure.exc_value, KeyboardInterrupt):
        # Lost in a library's callback, such as JAX's of the garbage collector.
        interrupts.repeat()
        return
    # Writes that come to their end when nobody waits for them any more are no news either.
    late = str(failure.exc_value).endswith(("Event loop is closed", "likely shutting down"))
    if not late and not disk_was_full(failure.exc_value):
        sys.__unraisablehook__(failure)


def _is_of_no_full_disk(record: logging.LogRecord) -> bool:
    return not (record.exc_info and disk_was_full(record.exc_info[1]))


def _is_of_no_missing_metrics(record: logging.LogRecord) -> bool:
    """False for orbax's warning of a checkpoint without a value: not every one is evaluated."""
    return "did not provide metrics" not in record.getMessage()
