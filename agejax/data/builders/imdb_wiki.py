"""IMDB-WIKI's face crops: imdb_crop or wiki_crop, with imdb.mat or wiki.mat."""

from __future__ import annotations

import datetime
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from agejax.data.builders import matlab
from agejax.data.builders.base import Face, FaceBuilder
from agejax.errors import DAMAGE, UserError
from agejax.settings import Group, Setting

MATLAB_DAY_ONE = 366  # MATLAB's day number of 31 December of the year 0, Python's day 0
DAYS = 365.2425  # per year
GENDERS = {1.0: 0, 0.0: 1}  # in the file: 1 male, 0 female, NaN unknown
NUMBERS = ("dob", "photo_taken", "gender", "face_score", "second_face_score")
TEXTS = ("full_path", "name")
LISTED = 3  # files per reason to skip; the others are counted


class IMDBWIKI(FaceBuilder):
    """Up to 523,051 faces of actors and of people in Wikipedia (Rothe et al. 2015), for research.

    The age is the day of the photo minus the day of birth; only the photo's year is known, and
    1 July is assumed. Photos without one clear face, or with an impossible age, are skipped and
    counted by reason. A person, by name, is a group, so no split separates a person's photos.
    """

    name = "imdb_wiki"
    VERSION = tfds.core.Version("1.2.0")
    NAMES_PEOPLE = True
    LABEL_NAMES = {"gender": ("male", "female")}  # noqa: RUF012
    USUAL_NAMES = ("imdb_crop.tar", "wiki_crop.tar", "imdb_crop", "wiki_crop")
    DOWNLOAD = (
        "imdb_crop.tar or wiki_crop.tar (faces only) from "
        "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/"
    )
    OPTIONS = Group(
        "Options of imdb_wiki.",
        min_face_score=Setting(1.0, "Lowest score of the authors' face detector."),
        max_age=Setting(100.0, "Highest age; older ones are mistakes.", unit="years"),
    )

    def faces(self) -> Iterator[Face]:
        found = self.files(r"(?:.*/)?(imdb|wiki)\.mat")
        if not found:
            raise UserError(f"{self.source}: no imdb.mat or wiki.mat in it")
        rows: dict[str, dict[str, Any] | str] = {}
        for path, data in found.items():
            rows |= self._rows(path, data)
        unusable: defaultdict[str, list[str]] = defaultdict(list)  # reason -> files
        for path, _, data in self.images():
            file = "/".join(path.split("/")[-2:])
            row = rows.pop(file if file in rows else _as_jpeg(file), "no row in the .mat")
            if isinstance(row, str):
                unusable[row].append(file)
            else:
                yield Face(id=file, image=data, **row)
        unusable["no such image"] += rows
        for reason, files in unusable.items():
            self.skipped += [f"{file}: {reason}" for file in files[:LISTED]]
            if more := files[LISTED:]:
                self.skipped.append(f"and {len(more):,} more: {reason}")

    def _rows(self, path: str, data: bytes) -> dict[str, dict[str, Any] | str]:
        """File -> labels, or why it is unusable.

        Raises:
          UserError: an invalid table.
        """
        kind = "imdb" if path.endswith("imdb.mat") else "wiki"
        try:
            columns = matlab.read(data, kind, (*NUMBERS, *TEXTS))
            numbers = [np.asarray(columns[name], np.float64) for name in NUMBERS]
            cells = list(zip(*numbers, *(columns[name] for name in TEXTS), strict=True))
        except DAMAGE as error:
            raise UserError(
                f"{path} is not a readable IMDB-WIKI table ({error}); download it again"
            ) from error
        rows: dict[str, dict[str, Any] | str] = {}
        for born, taken, gender, score, second, file, name in cells:
            age = _age(born, taken)
            row: dict[str, Any] | str = {
                "age": age,
                "gender": GENDERS.get(gender, -1),
                "group": name if isinstance(name, str) else "",  # an empty cell is no str
            }
            if not (self.options["min_face_score"] <= score < math.inf):
                row = "no clear face"
            elif not math.isnan(second):
                row = "a second face"
            elif not 0 <= age <= self.options["max_age"]:
                row = "an impossible age"
            rows[str(file)] = row
        return rows


def _as_jpeg(file: str) -> str:
    """The name in the .mat of an image that was saved as another type."""
    return file.rpartition(".")[0] + ".jpg"


def _age(born: float, taken: float) -> float:
    """Years from a MATLAB day number to 1 July of a year, NaN if one is invalid."""
    try:
        middle = datetime.date(int(taken), 7, 1).toordinal()
    except (ValueError, OverflowError):
        return math.nan
    return (middle - (born - MATLAB_DAY_ONE)) / DAYS
