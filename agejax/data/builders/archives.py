"""The files of an archive or folder, read as bytes in turn; nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import lzma
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

from agejax.errors import UserError

Wanted = Callable[[str], bool]  # of a path inside

MAX_BYTES = 50 * 2**20  # of one file; no face photo is larger
MAX_TABLE = 2**30  # of one with labels
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,  # an OSError too
    lzma.LZMAError,
    zlib.error,
    EOFError,
)


def read(
    source: pathlib.Path, wanted: Wanted = lambda path: True, limit: int | None = None
) -> Iterator[tuple[str, bytes | None]]:
    """Yields (path inside, contents) of the wanted files in a folder, .zip or .tar of any kind.

    Contents are None where they exceed `limit`, by default `MAX_BYTES`. Hidden files (macOS's ._
    among them) are left out. The order is the archive's own; of a folder, sorted.

    Raises:
      UserError: not such an archive, or a damaged or truncated one.
    """

    most = MAX_BYTES if limit is None else limit

    def plain(path: str) -> bool:
        hidden = any(part.startswith(".") and part != "." for part in path.split("/"))
        return not hidden and wanted(path)

    if source.is_dir():
        files = _folder(source, plain, most)
    elif zipfile.is_zipfile(source) and not tarfile.is_tarfile(source):
        files = _zip(source, plain, most)
    else:
        files = _tar(source, plain, most)
    try:
        yield from files
    except DAMAGE as error:
        raise UserError(
            f"{source} is damaged or its download broke off ({error}); download it again"
        ) from error
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error}") from error


def _folder(source: pathlib.Path, wanted: Wanted, most: int) -> Iterator[tuple[str, bytes | None]]:
    for folder, subfolders, names in os.walk(source):
        subfolders.sort()
        for name in sorted(names):
            path = pathlib.Path(folder, name)
            inside = path.relative_to(source).as_posix()
            if wanted(inside) and path.is_file():
                with path.open("rb") as file:
                    data = file.read(most + 1)
                yield inside, _capped(data, most)


def _zip(source: pathlib.Path, wanted: Wanted, most: int) -> Iterator[tuple[str, bytes | None]]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not info.is_dir() and wanted(info.filename):
                try:
                    with archive.open(info) as file:
                        data = file.read(most + 1)
                except (RuntimeError, NotImplementedError) as error:  # encrypted, or exotic
                    raise UserError(f"{source}: {info.filename}: {error}") from error
                yield info.filename, _capped(data, most)


def _tar(source: pathlib.Path, wanted: Wanted, most: int) -> Iterator[tuple[str, bytes | None]]:
    try:
        tar = tarfile.open(source)  # noqa: SIM115 -- closed below, past the except
    except tarfile.ReadError as error:
        raise UserError(
            f"{source} is no .tar.gz, .tar or .zip archive, or its download broke off; "
            "download it again"
        ) from error
    with tar:
        for member in tar:
            if member.isfile() and wanted(member.name):
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, _capped(file.read(most + 1), most)
        # tarfile takes an end between two members for the end of the archive. A whole archive has
        # a block of zeros there; reading on to the end also checks the checksum of a .gz.
        assert tar.fileobj is not None
        while tar.fileobj.read(2**20):
            pass
        if tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end-of-archive mark")


def _capped(data: bytes, most: int) -> bytes | None:
    return data if len(data) <= most else None
