"""What a user can do wrong, said in one line: what, where, and what to do about it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import math
import os
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

# What parsers raise on bytes that are not as they should be.
DAMAGE = (
    *(EOFError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


class UserError(Exception):
    """Bad input. The message is one line that names the thing, its place and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class NotFiniteError(UserError):
    """A loss or gradient that is not finite, at `step` (1-based)."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def one_line(text: str) -> str:
    """With escapes in place of what is not printable.

    File names, cells and keys are quoted as they are, and may hold ends of lines, what a terminal
    obeys, or halves of characters that no stream takes.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run_command(main: Callable[..., Any], *args: Any) -> int:
    """Runs `main(*args)`; a `UserError` becomes one line on stderr and exit code 2."""
    _say_a_full_disk_once()
    try:
        main(*args)
    except UserError as error:
        print(f"agejax: error: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def full_disk(message: str) -> Iterator[None]:
    """Turns the error of a full disk, however deep a library has wrapped it, into a `UserError`."""
    try:
        yield
    except Exception as error:
        if _disk_was_full(error):
            raise UserError(message) from error
        raise


def _disk_was_full(error: BaseException | None) -> bool:
    while error is not None:
        # array_record and orbax give some of theirs a text but no number.
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say_a_full_disk_once() -> None:
    """Quietens orbax's threads: each dies at length of a full disk, as the main one does."""
    threading.excepthook, sys.unraisablehook = _of_a_thread, _of_nobody
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_of_other_than_the_disk)


def _of_a_thread(failure: threading.ExceptHookArgs) -> None:
    if not _disk_was_full(failure.exc_value):
        threading.__excepthook__(failure)


def _of_nobody(failure: sys.UnraisableHookArgs) -> None:
    """Writes that come to their end when nobody waits for them any more are no news either."""
    late = str(failure.exc_value).endswith(("Event loop is closed", "likely shutting down"))
    if not late and not _disk_was_full(failure.exc_value):
        sys.__unraisablehook__(failure)


def _of_other_than_the_disk(record: logging.LogRecord) -> bool:
    return not (record.exc_info and _disk_was_full(record.exc_info[1]))


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


def check_values(
    given: Any,
    defaults: Mapping[str, Any],
    where: str,
    limits: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> None:
    """Raises `UserError` where settings are not as their defaults are: the keys, types and limits.

    A whole number may stand for a real one, a list for a tuple, and None, or a number, for None.

    Args:
      limits: of numbers, or of those in a tuple; both ends are allowed.
    """
    if not hasattr(given, "items"):
        raise UserError(
            f"{where}: {given!r}; set it to {{{', '.join(defaults)}: ...}}, any of them"
        )
    check_keys(given, defaults, where)
    for key, value in given.items():
        kind = _unlike(value, defaults[key])
        if kind:
            raise UserError(f"{where}.{key}: {value!r}; set it to {kind}")
        low, high = limits.get(key, (-math.inf, math.inf))
        numbers = value if isinstance(value, (tuple, list)) else [value]
        if not all(low <= n <= high for n in numbers if is_number(n)):
            raise UserError(f"{where}.{key}: {value!r}; set it within {low:g}..{high:g}")


def _unlike(value: Any, default: Any) -> str:
    """What a value should be that is not like the default; "" where it is."""
    match default:
        case None:
            return "" if value is None or is_number(value) else "a number"
        case bool():
            return "" if isinstance(value, bool) else "True or False"
        case int():
            return "" if is_number(value) and isinstance(value, int) else "a whole number"
        case float():
            return "" if is_number(value) else "a number"
        case str():
            return "" if isinstance(value, str) else "a text"
        case tuple() | list():
            kind = f"a list, such as {default!r}" if default else "a list"
            if not isinstance(value, (tuple, list)):
                return kind
            first = default[0] if default else None
            if first is None or isinstance(first, tuple):  # of anything, or of rules
                return ""
            return kind if any(_unlike(item, first) for item in value) else ""
    return "" if hasattr(value, "items") else "a dict"


def one_of(where: str, key: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises `UserError` where a setting has none of its values."""
    if value not in allowed:
        raise UserError(f"{where}.{key}: {value!r} is not one of {', '.join(map(str, allowed))}")
