"""Reads the files of an archive or folder one after another; extracts nothing to disk.

Archives are treated as untrusted: names that lead out of the archive are refused, links and devices
are not read, and an archive that unpacks to far more than its size is refused before it costs
memory or time.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import pathlib
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from agejax import errors
from agejax.errors import UserError

Wanted = Callable[[str], bool]  # takes a path inside the archive

# Endings of the image types that every data set and predict read, in upper or lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
IMAGE = re.compile(r".*\.(jpe?g|png|bmp|webp|tiff?)", re.IGNORECASE | re.DOTALL)
# Picture types that are not in SUFFIXES: such files are not read, but counted.
OTHER_PICTURES = (
    *(".gif", ".heic", ".heif", ".avif", ".jfif", ".jp2", ".jxl", ".svg", ".ppm", ".pgm", ".tga"),
    *(".raw", ".dng", ".cr2", ".nef", ".arw", ".psd"),
)
PACKED = re.compile(r".*\.(zip|tar|tgz|tbz2?|txz|tar\.\w+|rar|7z)", re.IGNORECASE | re.DOTALL)

MAX_BYTES = 50 * 2**20  # per file; no face photo is larger
MAX_TABLE = 2**30  # per file with labels
# An archive may unpack to INFLATION times its size, a small one to ALWAYS bytes. Photos hardly
# shrink, tables to a tenth; deflate could reach 1,032 times, and members can overlap.
INFLATION, ALWAYS = 100, 16 * 2**20
CHUNK = 2**20  # bytes read at a time; no header of a tar is larger
DAMAGE = (*errors.DAMAGE, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError)
OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}


class Unread(str):
    """Why a file was not read, in place of its contents."""


NO_FILE = Unread("not a plain file but a link, a device or a sparse file")


class Elsewhere(bytes):
    """In place of the contents of a file that another worker reads."""


ELSEWHERE = Elsewhere()


def read(
    source: pathlib.Path,
    wanted: Wanted = lambda path: True,
    limit: int | None = None,
    mine: Wanted = lambda path: True,
) -> Iterator[tuple[str, bytes | Unread]]:
    """Yields (path inside, contents) of the wanted files in a folder, .zip or .tar of any kind.

    A .csv is read like a folder that holds only this file. Files larger than `limit`, by default
    `MAX_BYTES`, and what is not a regular file are `Unread`; files that are not `mine` are not
    opened, and `ELSEWHERE`. Hidden files (also macOS's ._ files) are left out. The order is the
    archive's own; a folder is sorted. If names in a .zip have "\\" but no "/", it was written on
    Windows, and "\\" is read as "/".

    Raises:
      UserError: not such an archive, or one that is damaged or truncated, has a name that leads out
        of it, or unpacks to far more than its size.
    """
    most = MAX_BYTES if limit is None else limit

    def plain(path: str) -> bool:
        return not is_hidden(path) and wanted(path)

    def safe(path: str) -> bool:
        if _leads_out(path) and wanted(path):
            raise UserError(
                f"{source}: {path} points outside of it; pack it again with relative names"
            )
        return plain(path)

    try:
        if source.is_dir():
            yield from _folder(source, plain, mine, most)
        elif source.suffix.lower() == ".csv":
            if wanted(source.name):
                with source.open("rb") as file:
                    yield source.name, _contents(file, most)
        elif _is_zip(source):
            yield from _zip(source, safe, mine, most)
        else:
            yield from _tar(source, safe, mine, most)
    except DAMAGE as error:
        raise UserError(
            f"{source} is damaged or its download is incomplete ({error}); download it again"
        ) from error
    except OSError as error:
        which = error.filename or source  # a file inside of a folder
        raise UserError(f"{which} cannot be read: {errors.reason(error)}") from error


def to_convert(endings: Mapping[str, int]) -> list[str]:
    """Lines about the pictures of types that are not read.

    Args:
      endings: of files that were passed over, in lower case -> how many have it.
    """
    return [
        f"{count:,} file{'' if count == 1 else 's'} ending in {ending}: convert to one of "
        f"{', '.join(SUFFIXES)}"
        for ending, count in sorted(endings.items())
        if ending in OTHER_PICTURES
    ]


def is_hidden(path: str) -> bool:
    """Whether a path inside a folder or an archive is hidden, as macOS's ._ files are."""
    return any(part.startswith(".") and part != "." for part in path.split("/"))


class _Budget:
    """The bytes that an archive may still unpack to."""

    def __init__(self, source: pathlib.Path) -> None:
        self._source = source
        self.left = self.total = max(ALWAYS, INFLATION * source.stat().st_size)

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise UserError(
                f"{self._source} unpacks to more than {self.total >> 20} MB, far more than an "
                "archive of photos of its size does; download it again, or unpack it to a folder"
            )


def walk(source: pathlib.Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yields (path inside, entry) of every file in a folder, sorted within each folder.

    Links to folders are followed after the folder's own files. Each folder is entered once, and one
    that contains the source is never entered, so that circular links end.
    """
    entered = {_identity(folder) for folder in source.resolve().parents}
    linked: list[tuple[str, str]] = []  # (path inside, path)

    def entries(inside: str, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        identity = _identity(pathlib.Path(folder))
        if identity in entered:
            return
        entered.add(identity)
        with os.scandir(folder) as scan:
            found = sorted(scan, key=lambda entry: entry.name)
        folders = []
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry)
            elif os.path.isdir(entry.path):  # a link to a folder; unlike entry.is_dir, never raises
                linked.append((f"{inside}{entry.name}/", entry.path))
            else:
                yield f"{inside}{entry.name}", entry
        for entry in folders:
            yield from entries(f"{inside}{entry.name}/", entry.path)

    linked.append(("", str(source)))
    while linked:
        yield from entries(*linked.pop(0))


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _folder(
    source: pathlib.Path, wanted: Wanted, mine: Wanted, most: int
) -> Iterator[tuple[str, bytes | Unread]]:
    for inside, entry in walk(source):
        if not wanted(inside) or not os.path.isfile(entry.path):
            continue
        if not mine(inside):
            yield _text(inside), ELSEWHERE
            continue
        with open(entry.path, "rb") as file:
            yield _text(inside), _contents(file, most)


def _is_zip(source: pathlib.Path) -> bool:
    """Whether it is a zip; zipfile would also accept a tar whose last member is a zip."""
    with source.open("rb") as file:
        start = file.read(512)
    tar = start[257:262] == b"ustar" or start.startswith(tuple(OPENERS))
    return not tar and zipfile.is_zipfile(source)


def _zip(
    source: pathlib.Path, wanted: Wanted, mine: Wanted, most: int
) -> Iterator[tuple[str, bytes | Unread]]:
    budget = _Budget(source)
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        of_windows = not any("/" in info.filename for info in members)
        for info in members:
            # From here on only this name counts, also for the checks that refuse a file.
            name = info.filename.replace("\\", "/") if of_windows else info.filename
            if name.endswith("/") or not wanted(name):
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not packed on Unix
            if kind not in (0, stat.S_IFREG):
                yield _text(name), NO_FILE
                continue
            if not mine(name):
                yield _text(name), ELSEWHERE
                continue
            try:
                with archive.open(info) as file:
                    data = _contents(file, most, budget)
            except (RuntimeError, NotImplementedError) as error:  # encrypted, or a rare compression
                raise UserError(f"{source}: {name}: {error}") from error
            yield _text(name), data


def _tar(
    source: pathlib.Path, wanted: Wanted, mine: Wanted, most: int
) -> Iterator[tuple[str, bytes | Unread]]:
    with _unpacked(source) as file:
        stream = _Stream(file, _Budget(source))
        try:
            tar = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]
        except tarfile.ReadError as error:
            raise UserError(
                f"{source} is not a .tar.gz, .tar or .zip archive, or its download is incomplete; "
                "download it again"
            ) from error
        end = -1
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # saves memory: there may be many
            if tar.offset <= end:  # a negative size would repeat members for ever
                raise tarfile.ReadError(f"{member.name} appears twice")
            end = tar.offset
            if member.isdir() or not wanted(member.name):
                continue
            if not mine(member.name):
                yield _text(member.name), ELSEWHERE
            elif member.isfile() and not member.issparse():
                packed = tar.extractfile(member)
                assert packed is not None
                yield _text(member.name), _contents(packed, most)
            else:
                yield _text(member.name), NO_FILE
        # tarfile takes a damaged header or the end of the file for the end of the archive. A
        # complete archive ends with a block of zeros.
        if stream.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive mark")
        while stream.read(CHUNK):  # up to the end, where a .gz has its checksum
            pass


@contextlib.contextmanager
def _unpacked(source: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens the bytes of a tar, decompressed by the method that its first bytes show."""
    with source.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        for magic, unpack in OPENERS.items():
            if start.startswith(magic):
                with unpack(file) as stream:
                    yield stream
                return
        yield file


class _Stream:
    """A tar's bytes for tarfile, which trusts the sizes in headers: reads within the budget."""

    def __init__(self, file: IO[bytes], budget: _Budget) -> None:
        self._file, self._budget = file, budget
        self._furthest = 0
        self.tell = file.tell
        self.last = b""  # what was read last

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self.last = self._file.read(size)
        self._reach(self.tell())
        return self.last

    def seek(self, position: int) -> int:
        self._reach(position)
        return self._file.seek(position)

    def _reach(self, position: int) -> None:
        self._budget.spend(max(position - self._furthest, 0))
        self._furthest = max(position, self._furthest)


def _contents(file: IO[bytes], most: int, budget: _Budget | None = None) -> bytes | Unread:
    """An open file's contents, read in pieces: one read would first allocate its claimed size."""
    data = bytearray()
    while len(data) <= most and (piece := file.read(min(CHUNK, most + 1 - len(data)))):
        data += piece
        if budget is not None:
            budget.spend(len(piece))
    return bytes(data) if len(data) <= most else Unread(f"larger than {most >> 20} MB")


def _leads_out(path: str) -> bool:
    """Whether a name is absolute on any system, or leads to a parent folder."""
    parts = re.split(r"[/\\]", path)
    return parts[0] == "" or re.match(r"[A-Za-z]:[/\\]", path) is not None or ".." in parts


def _text(name: str) -> str:
    """A name that can be printed anywhere: file systems and tars allow bytes that are not UTF-8."""
    return name.encode(errors="backslashreplace").decode()
