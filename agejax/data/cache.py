"""Cached folders: each is made once, and is either complete or absent.

    CACHE/NAME/            what `make` wrote
      whole.json           {file: its size, bytes}
      digests.json         {"chunk": bytes, "crc32": {file: the checksum of each chunk}}

When a process first opens a folder, threads read every file in it and compare it with its
checksums: 0.35 s of CPU time per GB. Checksums detect damage, not forgery.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from agejax import files
from agejax.errors import DAMAGE, UserError, brief, of_the_machine, reason
from agejax.files import full_disk
from agejax.logging import console
from agejax.paths import cache_folder

WHOLE = "whole.json"
DIGESTS = "digests.json"
CHUNK = 16 * 2**20  # bytes per checksum
PIECE = 2**20  # bytes read at a time
LONG = 4e9  # bytes; checking a larger folder takes long enough to print a line
T = TypeVar("T")


class Damaged(Exception):
    """A folder of the cache has changed since it was written; the message tells how."""


class Absent(Exception):
    """There is no such folder."""


def cached(
    name: str,
    make: Callable[[pathlib.Path], None],
    read: Callable[[pathlib.Path], T],
    cache_dir: str | None = None,
) -> T:
    """Returns `read` of the cache's folder `name`, which `make` fills the first time.

    A folder that is damaged, or that `read` fails on, is made again, with a line on stderr. For
    want of memory, rights or open files the call fails, and the folder stays. A second process that
    wants the folder meanwhile waits for the first. What a killed process left behind is removed.

    Args:
      cache_dir: default: $AGEJAX_CACHE, else ~/.cache/agejax.

    Raises:
      UserError: a disk that is full, read-only or failing, or a machine without open files left;
        or as `make`.
    """
    folder = cache_folder(cache_dir) / name

    def opened() -> T:
        check(folder)
        with _damage():
            return read(folder)

    with _disk_errors(folder.parent):
        with contextlib.suppress(Absent, Damaged):
            return opened()
        with _locked(folder):
            try:
                return opened()  # another process may have made it meanwhile
            except Damaged as error:
                console.warning(f"{folder} is damaged ({error}) and is rebuilt")
                _remove(folder)
            except Absent:
                pass
            _make(folder, make)
            return read(folder)


def check(folder: pathlib.Path, again: bool = False) -> int:
    """Checks that a folder is as it was written; returns its size in bytes.

    A folder that this process has already checked is read again only if the sizes or times of its
    files have changed.

    Args:
      again: read it in any case.

    Raises:
      Absent: there is no such folder.
      Damaged: one of its files is missing or has changed.
      OSError, MemoryError: there are no rights, no memory or no open files left to read it.
    """
    if not os.path.lexists(folder):
        raise Absent(str(folder))
    with _damage():
        sizes = _sizes(folder)
        state = _state(folder, sizes)
        if again or _checked.get(folder) != state:
            if (folder / DIGESTS).exists():
                _compare(folder, sizes)
            else:
                _adopt(folder, sizes)
                state = _state(folder, sizes)
            _checked[folder] = state
        return sum(sizes.values())


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns errors of reading a folder into `Damaged`, but for those that tell nothing about it.

    Without the rights, the memory or the number of open files to read it, a folder may be whole,
    and may be the only copy of an archive that is gone.
    """
    try:
        yield
    except (*DAMAGE, OSError) as error:
        if of_the_machine(error):
            raise
        raise Damaged(brief(error)) from error


def check_all(name: str, cache_dir: str | None = None) -> str:
    """Checks every folder that the cache keeps under `name`; returns a line that counts them.

    Raises:
      UserError: some are damaged, or there are none.
    """
    place = cache_folder(cache_dir) / name
    folders = sorted(p for p in place.glob("*") if p.suffix != ".json" and p.name[0] != ".")
    if not folders:
        raise UserError(f"{place}: it holds nothing of {name}")
    total, damaged = 0, []
    for folder in folders:
        try:
            total += check(folder, again=True)
        except Damaged as error:
            damaged.append(f"{folder} is damaged ({error})")
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(folders)} folders are rebuilt at their next use: "
            + "; ".join(damaged)
        )
    return f"{name}: {len(folders)} folders, {total / 1e6:,.1f} MB, all unchanged"


_checked: dict[pathlib.Path, Any] = {}  # folder -> its files' states when they were last checked


def _state(folder: pathlib.Path, sizes: dict[str, int]) -> list[tuple[int, ...]]:
    files = [folder / name for name in (*sizes, WHOLE, DIGESTS)]
    states = [path.stat() for path in files if path.exists()]
    return [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in states]


def _sizes(folder: pathlib.Path) -> dict[str, int]:
    """Sizes of the files in whole.json, compared with the files themselves.

    Raises:
      Damaged: a file is missing or of another size.
    """
    sizes = json.loads((folder / WHOLE).read_text())
    if not isinstance(sizes, dict) or not sizes:
        raise Damaged(f"{WHOLE} lists no files")
    for name, size in sizes.items():
        if not (folder / name).is_file():
            raise Damaged(f"{name} is missing")
        if (folder / name).stat().st_size != size:
            raise Damaged(f"{name} is not of the {size} bytes that were written")
    return sizes


def _compare(folder: pathlib.Path, sizes: dict[str, int]) -> None:
    """Raises `Damaged` for the first file that does not match its checksums."""
    stored = json.loads((folder / DIGESTS).read_text())
    names = sizes.keys() - {DIGESTS}
    if stored["crc32"].keys() != names:
        raise Damaged(f"{DIGESTS} lists other files")
    total = sum(sizes.values())
    if total > LONG:
        console.note(f"{folder}: checking {total / 1e9:.1f} GB")
    found = _checksums(folder, names, stored["chunk"])
    for name, values in stored["crc32"].items():
        if found[name] != values:
            raise Damaged(f"{name} has changed since it was written")


def _adopt(folder: pathlib.Path, sizes: dict[str, int]) -> None:
    """Writes checksums for a folder that was made before the cache had them.

    The folder may be the only copy of an archive that is gone, so it is not made again. Its .npz
    files are checked against zip's own checksums, as they were then.
    """
    for name in sizes:
        if name.endswith(".npz"):
            with zipfile.ZipFile(folder / name) as archive:
                if archive.testzip() is not None:
                    raise Damaged(f"{name} has changed since it was written")
    with contextlib.suppress(OSError, UserError):  # this user may only read the cache
        files.write_text(folder / DIGESTS, _digests(folder, sizes))


def _digests(folder: pathlib.Path, names: Any) -> str:
    return json.dumps({"chunk": CHUNK, "crc32": _checksums(folder, names, CHUNK)})


def _checksums(folder: pathlib.Path, names: Any, chunk: int) -> dict[str, list[int]]:
    """name -> the CRC-32 of each `chunk` bytes of the file."""
    starts = {name: range(0, (folder / name).stat().st_size, chunk) for name in names}
    chunks = [(folder / name, start) for name, all_of in starts.items() for start in all_of]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = pool.map(lambda place: _checksum(place[0], place[1], chunk), chunks)
        return {name: [next(sums) for _ in all_of] for name, all_of in starts.items()}


def _checksum(path: pathlib.Path, start: int, size: int) -> int:
    """The CRC-32 of `size` bytes, read in pieces that fit into the processor's cache."""
    value, buffer = 0, memoryview(bytearray(min(PIECE, size)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while size > 0 and (count := file.readinto(buffer[:size])):
            value = zlib.crc32(buffer[:count], value)
            size -= count
    return value


def _make(folder: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    """Fills `folder`, which appears complete or not at all; the caller holds its lock."""
    partial = folder.parent / f".{folder.name}.partial"
    _remove(partial)
    partial.mkdir()
    try:
        make(partial)
        (partial / DIGESTS).write_text(_digests(partial, _names(partial)))
        sizes = {name: (partial / name).stat().st_size for name in _names(partial)}
        (partial / WHOLE).write_text(json.dumps(sizes))
        for name in (*sizes, WHOLE):
            _sync(partial / name)
        partial.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _checked[folder] = _state(folder, sizes)


def _names(folder: pathlib.Path) -> list[str]:
    """The paths of all files, relative to the folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _remove(path: pathlib.Path) -> None:
    """Removes a folder, a file or a link, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock that one process needs to make this folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(cache: pathlib.Path) -> Iterator[None]:
    """Turns disk errors into a `UserError`."""
    remedy = "use another place with --config.data.cache_dir=DIR"
    try:
        with full_disk(f"cannot write to the cache {cache}", f", or {remedy}"):
            yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # no fault of the disk
            raise UserError(f"cache {cache}: {reason(error)}") from error
        raise UserError(f"cache {cache}: {error}; mend that or {remedy}") from error
