"""IMDB-WIKI's face crops: imdb_crop or wiki_crop, with imdb.mat or wiki.mat."""

from __future__ import annotations

import datetime
import io
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder
from agejax.errors import UserError

MATLAB_DAY_ONE = 366  # MATLAB's day number of 31 December of the year 0, Python's day 0
DAYS = 365.2425  # of a year
# What loadmat and the fields of another struct end in.
UNREADABLE = (
    *(ValueError, KeyError, TypeError, NotImplementedError, OSError, EOFError),
    scipy.io.matlab.MatReadError,
)


class IMDBWIKI(FaceBuilder):
    """Up to 523,051 faces of actors and of Wikipedia's people (Rothe et al. 2015), for research.

    The age is the day of the photo less that of birth; of the photo only the year is known, and the
    middle of it is taken. Photos without one clear face, or with an impossible age, are skipped and
    counted by reason. A person is a group, so no split has one on both sides.
    """

    name = "imdb_wiki"
    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES = {"gender": ("male", "female")}  # noqa: RUF012
    USUAL_NAMES = ("imdb_crop.tar", "wiki_crop.tar", "imdb_crop", "wiki_crop")
    DOWNLOAD = (
        "imdb_crop.tar or wiki_crop.tar (faces only) from "
        "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/"
    )

    def __init__(
        self, *, min_face_score: float = 1.0, max_age: float = 100.0, **kwargs: object
    ) -> None:
        """min_face_score: of the authors' face detector; max_age: in years, older are mistakes."""
        self.min_face_score, self.max_age = min_face_score, max_age
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def faces(self) -> Iterator[Face]:
        found = self.files(r"(?:.*/)?(imdb|wiki)\.mat")
        if not found:
            raise UserError(f"{self.source}: no imdb.mat or wiki.mat in it")
        people: dict[str, dict[str, Any]] = {}
        reasons: Counter[str] = Counter()
        for path, data in found.items():
            for file, read in self._read(path, data):
                if isinstance(read, str):
                    reasons[read] += 1
                else:
                    people[file] = read
        for path, _, data in self.images():
            person = people.pop("/".join(path.split("/")[-2:]), None)
            if person is not None:  # those with a reason are most of the archive
                yield Face(id="/".join(path.split("/")[-2:]), image=data, **person)
        reasons["no such image"] += len(people)
        self.skipped += [f"{count:,} images: {why}" for why, count in reasons.items() if count]

    def _read(self, path: str, data: bytes) -> Iterator[tuple[str, dict[str, Any] | str]]:
        """(file, labels or why it is of no use) of every row of a .mat."""
        kind = "imdb" if path.endswith("imdb.mat") else "wiki"
        try:
            struct = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True)[kind]
            columns = {name: np.atleast_1d(struct[name].item()) for name in struct.dtype.names}
            needed = ("dob", "photo_taken", "full_path", "gender", "name", "face_score")
            born, taken, files, genders, names, scores = (columns[name] for name in needed)
            others = columns["second_face_score"]
        except UNREADABLE as error:
            raise UserError(f"{path} is no IMDB-WIKI table ({error}); get it again") from error
        for row in range(len(files)):
            age = _age(float(born[row]), int(taken[row]))
            if not scores[row] >= self.min_face_score:
                why = "no clear face"
            elif others[row] > 0:
                why = "a second face"
            elif not 0 <= age <= self.max_age:
                why = "an impossible age"
            else:
                gender = float(genders[row])
                yield (
                    str(files[row]),
                    {
                        "age": age,
                        "gender": -1 if math.isnan(gender) else 1 - int(gender),  # theirs: 1 male
                        "group": f"{kind} {names[row]}",
                    },
                )
                continue
            yield str(files[row]), why


def _age(born: float, taken: int) -> float:
    """Years from a MATLAB day number to the middle of a year, NaN where one is no date."""
    try:
        middle = datetime.date(taken, 7, 1).toordinal()
    except ValueError:
        return math.nan
    return (middle - (born - MATLAB_DAY_ONE)) / DAYS
