"""Adience: faces of Flickr albums, with fold_0_data.txt to fold_4_data.txt."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from agejax.data.builders import cells
from agejax.data.builders.base import Face, FaceBuilder, table
from agejax.errors import UserError
from agejax.settings import Group, Setting

FOLDS = 5
TABLE = re.compile(r"(?:.*/)?fold_([0-4])_data\.txt")
COLUMNS = ("user_id", "original_image", "face_id", "age", "gender")
# How file names begin in the two releases of the images.
RELEASES = {"aligned": "landmark_aligned_face", "faces": "coarse_tilt_aligned_face"}
BAND = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)")
# The mean age of people of 60 or more in UTKFace, as measured here (2,143 images). The middle of
# the band (60, 100) would be 80.
OLD, OLD_AGE = (60, 100), 72.0
GENDERS = ("m", "f")


class Adience(FaceBuilder):
    """26,580 faces of 2,284 people's albums (Eidinger, Enbar & Hassner 2014), for research.

    Ages are bands: the middle counts, and 72 years for (60, 100). An album's owner (user_id) is a
    group, and each of the five folds holds whole albums. One fold is the official test split, the
    others train. The folds' tables may be in the source or beside it; in a folder with
    aligned.tar.gz or faces.tar.gz, that archive is read.
    """

    name = "adience"
    LABEL_NAMES = {"gender": ("male", "female")}  # noqa: RUF012
    USUAL_NAMES = ("adience", "Adience", "AdienceBenchmarkGenderAndAgeClassification")
    DOWNLOAD = (
        "aligned.tar.gz (or faces.tar.gz) and fold_0_data.txt to fold_4_data.txt from "
        "https://talhassner.github.io/home/projects/Adience/Adience-data.html into one folder "
        "named adience"
    )
    OPTIONS = Group(
        "Options of adience.",
        images=Setting("aligned", "Which of the releases.", choices=tuple(RELEASES)),
        test_fold=Setting(0, "Which fold is test.", limits=(0, FOLDS - 1)),
    )

    @classmethod
    def also_reads(
        cls, options: Mapping[str, Any], source: pathlib.Path | None
    ) -> list[pathlib.Path]:
        return [] if source is None else _beside(source)

    def faces(self) -> Iterator[Face]:
        assert self.source is not None
        rows = self._rows()
        begin = RELEASES[self.options["images"]]
        packed = self.source / f"{self.options['images']}.tar.gz"
        for path, match, data in self.images(
            re.compile(rf"{begin}\.(\d+\..+)", re.DOTALL),
            f"{begin}.[face_id].[original_image]",
            inside=begin,
            source=packed if packed.is_file() else None,
        ):
            user = path.split("/")[-2] if "/" in path else ""
            key = f"{user}/{match[1]}"
            row = rows.pop(key, "no row in fold_*_data.txt")
            if isinstance(row, str):
                self.skipped.append(f"{path}: {row}")
            else:
                yield Face(id="/".join(path.split("/")[-2:]), image=data, group=user, **row)
        self.skipped += [f"{key}: no such image" for key in rows]

    def _rows(self) -> dict[str, dict[str, Any] | str]:
        """user_id/face_id.original_image without its ending -> labels, or why it is unusable."""
        assert self.source is not None
        found = self.files(TABLE.pattern)
        if not found:
            found = {str(path): path.read_bytes() for path in _beside(self.source)}
        if not found:
            raise UserError(
                f"{self.source}: no fold_0_data.txt to fold_{FOLDS - 1}_data.txt in it or beside "
                f"it; download {self.DOWNLOAD}"
            )
        rows: dict[str, dict[str, Any] | str] = {}
        for path, data in found.items():
            match = TABLE.fullmatch(path)
            assert match is not None
            split = "test" if int(match[1]) == self.options["test_fold"] else "train"
            for row in table(data, path, COLUMNS):
                image = row["original_image"].rpartition(".")[0]
                key = f"{row['user_id']}/{row['face_id']}.{image}"
                try:
                    rows[key] = {
                        "age": _age(row["age"]),
                        "gender": GENDERS.index(row["gender"]) if row["gender"] in GENDERS else -1,
                        "split": split,
                    }
                except ValueError as error:
                    rows[key] = str(error)
        return rows


def _age(text: str) -> float:
    """ "(25, 32)" -> 28.5, "35" -> 35, "None" -> NaN.

    Raises:
      ValueError: no age and no band of ages.
    """
    if not (match := BAND.fullmatch(text)):
        return cells.years(text)
    low, high = int(match[1]), int(match[2])
    if (low, high) == OLD:
        return OLD_AGE
    if not low <= high <= cells.OLDEST:
        raise ValueError(f"{text} is not an age range")
    return math.fsum((low, high)) / 2


def _beside(source: pathlib.Path) -> list[pathlib.Path]:
    """The folds' tables beside the source."""
    places = [source.absolute().with_name(f"fold_{i}_data.txt") for i in range(FOLDS)]
    return [path for path in places if path.is_file()]
