"""UTKFace as downloaded: an archive or a folder of [age]_[gender]_[race]_[time].jpg.chip.jpg."""

from __future__ import annotations

import pathlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder
from agejax.errors import UserError

NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d+)\.jpg(\.chip\.jpg)?")
OLDEST = 116
MAX_BYTES = 50 * 2**20  # of one image; more is no face chip
FILES = ("UTKFace.tar.gz", "UTKFace.zip", "UTKFace")
MANUAL = pathlib.Path("~/tensorflow_datasets/downloads/manual").expanduser()


class UTKFace(FaceBuilder):
    """UTKFace (Zhang, Song & Qi 2017): aligned and cropped chips, 200 x 200 JPEG, ages 1 to 116.

    Labels are annotators' guesses. Names that do not follow the pattern are skipped and listed.
    """

    name = "utkface"
    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES = {  # noqa: RUF012
        "gender": ("male", "female"),
        "ethnicity": ("White", "Black", "Asian", "Indian", "Other"),
    }

    @classmethod
    def locate(cls, path: str | None) -> pathlib.Path:
        places = [pathlib.Path(path)] if path else [MANUAL / name for name in FILES]
        for place in places:
            if place.exists():
                return place
        where = f"{path} does not exist" if path else f"no UTKFace in {MANUAL}"
        raise UserError(
            f"{where}: download UTKFace.tar.gz (aligned & cropped faces) from "
            "https://susanqq.github.io/UTKFace/ and name it with --config.data.source=PATH, "
            f"or put it in {MANUAL}"
        )

    def faces(self) -> Iterator[Face]:
        assert self.source is not None
        seen: set[str] = set()
        for path, data in read_files(self.source):
            name = path.rsplit("/", 1)[-1]
            match = NAME.fullmatch(name)
            if match is None or not 1 <= int(match[1]) <= OLDEST:
                self.skipped.append(f"{name}: malformed name")
            elif name in seen:
                self.skipped.append(f"{name}: second file of this name")
            elif data is None:
                self.skipped.append(f"{name}: larger than {MAX_BYTES} bytes")
            else:
                seen.add(name)
                age, gender, race = (int(match[i]) for i in (1, 2, 3))
                yield Face(name, data, age=age, gender=gender, ethnicity=race)
        if not seen:
            raise UserError(
                f"{self.source}: no image named [age]_[gender]_[race]_[time].jpg in it; "
                "is this UTKFace?"
            )


def read_files(source: pathlib.Path) -> Iterator[tuple[str, bytes | None]]:
    """Yields (path inside, bytes) of every file of a folder, .zip or .tar(.gz), None if too large.

    Hidden files are left out. Nothing is extracted to disk.

    Raises:
      UserError: not an archive, or a damaged or truncated one.
    """
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                small = path.stat().st_size <= MAX_BYTES
                yield str(path.relative_to(source)), path.read_bytes() if small else None
        return
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                for info in archive.infolist():
                    if not info.is_dir() and not _hidden(info.filename):
                        small = info.file_size <= MAX_BYTES
                        yield info.filename, archive.read(info) if small else None
            return
        with tarfile.open(source, mode="r|*") as tar:
            for member in tar:
                if member.isfile() and not _hidden(member.name):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name, file.read() if member.size <= MAX_BYTES else None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{source} is damaged, truncated, or no .tar.gz or .zip ({error}); download it again"
        ) from error
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error}") from error


def _hidden(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith(".")
