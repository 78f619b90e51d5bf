"""Errors that a user can mend, each as one line: what, where, and what to do about it."""

from __future__ import annotations

import difflib
import errno
import itertools
import math
import os
import pathlib
import struct
import traceback
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

# What parsers raise on bytes that are not as they should be.
DAMAGE = (
    *(EOFError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)

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
    """What is wrong with a path, and what to do about it where `REMEDIES` knows that."""
    if error.errno not in REMEDIES:
        return brief(error)
    return f"{os.strerror(error.errno)}; {REMEDIES[error.errno]}"


def brief(error: Exception) -> str:
    """The message of an error, one line and not too long; a bare key explains too little."""
    text = repr(error) if isinstance(error, LookupError) or not str(error).strip() else str(error)
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_ours(filename: Any) -> bool:
    """Whether a path lies in this package: an error there is a bug."""
    return isinstance(filename, str) and pathlib.Path(__file__).parent in pathlib.Path(
        os.path.abspath(filename)
    ).parents  # fmt: skip


def chain(error: BaseException | None) -> Iterator[BaseException]:
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

    for each in chain(error):
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


def nearest(given: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known one, or all of them."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(given), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names) or 'none'}"


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
