"""Errors that a user can mend, each as one line: what, where, and what to do about it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import logging
import math
import os
import pathlib
import select
import signal
import struct
import sys
import threading
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

from agejax.interrupts import INTERRUPTED, leave

# What parsers raise on bytes that are not as they should be.
DAMAGE = (
    *(EOFError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)

CLOSED_PIPE = 141  # the exit code that shells report for SIGPIPE
LONGEST = 700  # characters of a message

# Errors of reading that tell nothing about the file.
MACHINE = (
    *(errno.EACCES, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM),
    errno.ESTALE,
)
# Errors of the file system and the machine, by number, and what to do about each. An error with
# another number is a bug.
REMEDIES = {
    errno.EACCES: "change its permissions, or use another path",
    errno.EBUSY: "another program uses it; wait for that, or use another path",
    errno.EDQUOT: "free some space and start again",
    errno.EEXIST: "remove it, or use another path",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) and start again",
    errno.EIO: "check that disk, or use another",
    errno.EISDIR: "name a file, not a folder",
    errno.ELOOP: "its links lead in a circle; use another path",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ENFILE: "too many files are open on this machine; close some programs",
    errno.ENODEV: "use a file or folder on a disk",
    errno.ENOENT: "check the path",
    errno.ENOMEM: "free some memory and start again",
    errno.ENOSPC: "free some space and start again",
    errno.ENOTDIR: "a part of this path is a file; check the path",
    errno.ENOTEMPTY: "empty it, or use another path",
    errno.ENXIO: "use a file or folder on a disk",
    errno.EPERM: "change its permissions, or use another path",
    errno.EROFS: "use a path on a disk that can be written",
    errno.ESTALE: "mount that file system again",
    errno.ETXTBSY: "another program runs it; use another path",
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Bad input. The message is one line that names the thing, its place and the remedy.

    A message longer than `LONGEST` loses its middle: the thing stands first, the remedy last.
    """

    def __init__(self, message: str) -> None:
        line = one_line(message)
        if len(line) > LONGEST:
            line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
        super().__init__(line)


class NotFiniteError(UserError):
    """A loss or gradient that is not finite, at `step` (1-based)."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def few(names: Collection[str], most: int = 3) -> str:
    """The first names and how many more there are: "a, b, c and 12 more"."""
    shown = [
        name if len(name) <= 60 else f"{name[:57]}..." for name in itertools.islice(names, most)
    ]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def one_line(text: str) -> str:
    """With escapes in place of what is not printable.

    File names, cells and keys are quoted as they are, and may hold ends of lines, what a terminal
    obeys, or halves of characters that no stream takes.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run_command(main: Callable[..., Any], *args: Any) -> int:
    """Runs `main(*args)` and returns the exit code of the process.

    0: done. 2: one line on stderr, for a `UserError`, an error of the file system (`REMEDIES`), or
    no memory. 130: interrupted by Ctrl-C, one line. 141: the reader of the output has closed it, as
    `| head -1` does; no line.

    Raises:
      Exception: any other one. It is a bug, and its traceback says where.
    """
    _say_a_full_disk_once()
    with handling_interrupts(_interrupt):
        try:
            code = _run(main, args)
        finally:
            flushed = _flush()
    if code == INTERRUPTED:
        # Threads may still have to end; a second Ctrl-C does not wait for them.
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    return code or (0 if flushed else CLOSED_PIPE)


def _run(main: Callable[..., Any], args: Sequence[Any]) -> int:
    try:
        main(*args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        say("agejax: interrupted")
        return INTERRUPTED
    except Exception as error:
        if any(isinstance(each, BrokenPipeError) for each in _chain(error)) and (
            _is_closed(sys.stdout) or _is_closed(sys.stderr)
        ):
            return CLOSED_PIPE
        line = line_of(error)
        if line is None:
            raise
        say(f"agejax: error: {line}")
        return 2
    return 0


Handler = Callable[[int, FrameType | None], Any]


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handles the first SIGINT as Python does, and the next by `leave`: a library may lose one."""
    signal.signal(signal.SIGINT, leave)
    raise KeyboardInterrupt


@contextlib.contextmanager
def handling_interrupts(handler: Handler) -> Iterator[None]:
    """A handler of SIGINT for a while; a program that ignores or handles it itself goes on to."""
    previous = signal.getsignal(signal.SIGINT)
    ours = previous in (signal.default_int_handler, leave, _interrupt)
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous if previous is not leave else handler)


def line_of(error: Exception) -> str | None:
    """The one line of an error that the user can mend; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error).strip()
    if _no_memory(error):
        what = text.splitlines()[0] if text else "an allocation failed"
        return str(UserError(f"out of memory: {what}; use smaller batches, or a larger machine"))
    if isinstance(error, OSError) and error.errno in REMEDIES and not _is_ours(error.filename):
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        return str(UserError(f"{name}: {reason(error)}" if name else reason(error)))
    return None


def of_the_machine(error: Exception) -> bool:
    """Whether reading failed for want of memory or rights: the file itself may be whole."""
    return _no_memory(error) or (isinstance(error, OSError) and error.errno in MACHINE)


def _no_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED")  # XLA's


def reason(error: OSError) -> str:
    """What is wrong with a path, and what to do about it; the number must be in `REMEDIES`."""
    assert error.errno is not None
    return f"{os.strerror(error.errno)}; {REMEDIES[error.errno]}"


def brief(error: Exception) -> str:
    """The message of an error, one line and not too long; a bare key says too little."""
    text = repr(error) if isinstance(error, LookupError) or not str(error).strip() else str(error)
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_ours(filename: Any) -> bool:
    """Whether a path lies in this package: an error there is a bug."""
    return isinstance(filename, str) and pathlib.Path(__file__).parent in pathlib.Path(
        os.path.abspath(filename)
    ).parents  # fmt: skip


def say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr
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


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, and what was being handled when it was raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def line_in(path: str, error: BaseException) -> str | None:
    """Says where a Python file that the user wrote failed: "line 3: NameError: ...".

    Returns:
      None where the error came neither out of that file nor from compiling it.
    """

    def is_it(name: str | None) -> bool:
        return name is not None and os.path.abspath(name) == os.path.abspath(path)

    for each in _chain(error):
        kind, text = type(each).__name__, " ".join(str(each).split())
        if isinstance(each, SyntaxError) and (is_it(each.filename) or not each.filename):
            place = f"line {each.lineno}: " if each.lineno else ""  # a file of NUL bytes has none
            return f"{place}{kind}: {each.msg}"
        steps = traceback.walk_tb(each.__traceback__)
        lines = [line for frame, line in steps if is_it(frame.f_code.co_filename)]
        if lines:
            return f"line {lines[-1]}: " + (
                text if isinstance(each, UserError) else f"{kind}: {text}"
            )
    return None


@contextlib.contextmanager
def full_disk(what: str, remedy: str = "") -> Iterator[None]:
    """Turns the error of a full disk, however deep a library has wrapped it, into a `UserError`.

    A quota and a limit on the size of files (`ulimit -f`) are as full, and are named.

    Args:
      what, remedy: as for `no_room`.
    """
    try:
        yield
    except Exception as error:
        number = next((number for number in NO_ROOM if _has_number(error, number)), None)
        if number is None:
            raise
        raise no_room(what, remedy, number) from error


def no_room(what: str, remedy: str = "", number: int = errno.ENOSPC) -> UserError:
    """The error of a disk that takes no more.

    Args:
      what: "cannot write FILE".
      remedy: what follows the remedy of the error, with the sign that joins them.
      number: one of `NO_ROOM`.
    """
    kind = "the limit on file sizes is reached" if number == errno.EFBIG else "disk full"
    quota = f" ({os.strerror(number)})" if number == errno.EDQUOT else ""
    return UserError(f"{kind}: {what}{quota}; {REMEDIES[number]}{remedy}")


def _disk_was_full(error: BaseException | None) -> bool:
    return any(_has_number(error, number) for number in NO_ROOM)


def _has_number(error: BaseException | None, number: int) -> bool:
    # array_record and orbax give some of theirs a text but no number.
    return any(
        getattr(each, "errno", None) == number or os.strerror(number) in str(each)
        for each in _chain(error)
    )


def _say_a_full_disk_once() -> None:
    """Quietens orbax's threads: each dies at length of a full disk, as the main one does."""
    threading.excepthook, sys.unraisablehook = _of_a_thread, _of_nobody
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_of_other_than_the_disk)
    logging.getLogger("absl").addFilter(_of_other_than_no_metrics)


def _of_a_thread(failure: threading.ExceptHookArgs) -> None:
    if not _disk_was_full(failure.exc_value):
        threading.__excepthook__(failure)


def _of_nobody(failure: sys.UnraisableHookArgs) -> None:
    """Writes that come to their end when nobody waits for them any more are no news either."""
    if isinstance(failure.exc_value, KeyboardInterrupt):
        # Lost in a library's callback, such as JAX's of the garbage collector: comes again from
        # another thread, for what is raised in here is lost as well.
        if signal.getsignal(signal.SIGINT) is leave:
            signal.signal(signal.SIGINT, _interrupt)
        almost_out = threading.Event()
        threading.Thread(target=_interrupt_again, args=(almost_out,), daemon=True).start()
        almost_out.set()
        return
    late = str(failure.exc_value).endswith(("Event loop is closed", "likely shutting down"))
    if not late and not _disk_was_full(failure.exc_value):
        sys.__unraisablehook__(failure)


def _interrupt_again(almost_out: threading.Event) -> None:
    almost_out.wait()
    time.sleep(0.1)  # until the main thread has left the hook
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _of_other_than_the_disk(record: logging.LogRecord) -> bool:
    return not (record.exc_info and _disk_was_full(record.exc_info[1]))


def _of_other_than_no_metrics(record: logging.LogRecord) -> bool:
    """Passes over orbax's warning of a checkpoint without a value: not every one is evaluated."""
    return "did not provide metrics" not in record.getMessage()


def nearest(given: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known one, or all of them."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(given), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises `UserError` for the first key of `given` not in `known`, naming the nearest."""
    for key in given:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; {nearest(key, known)}")


def is_number(value: Any) -> bool:
    """Whether it is a finite number that arrays of 64 bits can hold; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)


def one_of(where: str, key: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises `UserError` where a setting has none of its values."""
    if value not in allowed:
        raise UserError(f"{where}.{key}: {value!r} is not one of {', '.join(map(str, allowed))}")
