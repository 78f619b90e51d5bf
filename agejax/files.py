"""Files written whole or not at all, JSON, and what a disk objects to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import IO, Any, BinaryIO, TypeVar

from agejax.errors import REMEDIES, UserError, chain, reason

T = TypeVar("T")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")  # as `replacing` names a file until it is whole
JSON_TYPES = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def disk_was_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, is of a disk that takes no more."""
    return any(_has_number(error, number) for number in NO_ROOM)


def _has_number(error: BaseException | None, number: int) -> bool:
    # array_record and orbax give some of theirs a text but no number.
    return any(
        getattr(each, "errno", None) == number or os.strerror(number) in str(each)
        for each in chain(error)
    )


@contextlib.contextmanager
def disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an error of the file system, met while writing `path`, into a `UserError`."""
    name = os.fspath(path)
    try:
        with full_disk(f"cannot write {name}"):
            yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise UserError(f"cannot write {name}: {reason(error)}") from error


def check_folder(path: pathlib.Path, flag: str) -> None:
    """Checks that files can be written to a folder that is there, or can be made. Makes nothing.

    Commands call it before their long work. Root may write in spite of permissions.

    Args:
      flag: names the path in the message.

    Raises:
      UserError: it cannot be written.
    """
    place, new = path, 0  # the nearest folder that is there, and how many are to be made below it
    while not _is_there(place, flag):
        place, new = place.parent, new + 1
    if not place.is_dir():
        what = f"{place} is not a folder; use another path"
    elif not os.access(place, os.W_OK | os.X_OK):
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        what = f"{path} cannot be written: " + reason(
            OSError(errno.EROFS if read_only else errno.EACCES, "")
        )
    elif any(
        len(os.fsencode(part)) > os.pathconf(place, "PC_NAME_MAX")
        for part in path.parts[len(path.parts) - new :]
    ):
        what = f"{path}: {reason(OSError(errno.ENAMETOOLONG, ''))}"
    else:
        return
    raise UserError(f"{flag}: {what}")


def check_file(path: pathlib.Path, flag: str) -> None:
    """`check_folder` for a file; its folder may have to be made."""
    if not _is_there(path, flag):
        check_folder(path.parent, flag)
    elif path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; name a file")
    elif not os.access(path, os.W_OK):
        raise UserError(f"{flag}: {path} cannot be written; use another path")


def _is_there(path: pathlib.Path, flag: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise UserError(f"{flag}: {path} is a link to nowhere; remove it") from error
        return False
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise UserError(f"{flag}: {path}: {reason(error)}") from error
    return True


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when it is complete.

    A reader, or a crash, sees the old file or the new one; an interrupted command leaves no part.

    Raises:
      UserError: `path` cannot be written; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with disk(path), temporary.open("wb") as file:
            _lock(file)  # until it is in place: `remove_temporaries` passes over it
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporaries(workdir: pathlib.Path) -> None:
    """Removes what killed processes left of files they were `replacing` in a run's folder.

    A file that a living process writes is locked, and stays. Only the holder of the run's claim
    may call it.
    """
    for folder, below, names in os.walk(workdir):
        below[:] = [name for name in below if name not in ("checkpoints", "damaged")]
        for name in filter(TEMPORARY.fullmatch, names):
            with contextlib.suppress(OSError), open(os.path.join(folder, name), "rb") as file:
                if _lock(file):
                    os.unlink(file.name)


def _lock(file: IO[bytes]) -> bool:
    """Whether this process has the file's lock now, which ends when it closes the file, or dies."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another has it, or the file system has no locks
        return False
    return True


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which becomes `path` when all is written; else nothing is left of it.

    Raises:
      UserError: it cannot be made.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with disk(path):
            temporary.mkdir(parents=True)
        yield temporary
        with disk(path):
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a file in one go, as `replacing` does."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file of UTF-8 in one go, as `replacing` does."""
    write_bytes(path, text.encode())


def write_json(path: pathlib.Path, value: Any) -> None:
    """`write_text` of JSON; what is not finite becomes null, arrays become lists."""
    write_text(path, json.dumps(clean(value), indent=2) + "\n")


def read_json(path: pathlib.Path, kind: type[T], remedy: str) -> T:
    """The value in a JSON file, which must be of type `kind`.

    Args:
      remedy: what to do where it is damaged.

    Raises:
      UserError: it cannot be read, is not JSON, or holds a value of another type.
    """
    try:
        if not path.is_file():  # a pipe would never end
            raise UserError(f"{path} is not a file; {remedy}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(value, kind):
        found = JSON_TYPES.get(type(value), json.dumps(value))
        raise UserError(f"{path} holds {found} instead of {JSON_TYPES[kind]}; {remedy}")
    return value


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of JSON data, but for its entry `digest`: any changed value gives another one."""
    text = json.dumps({k: v for k, v in value.items() if k != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
