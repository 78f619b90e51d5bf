"""MORPH Album 2: [id]_[photo][M|F][age].JPG, and a CSV with the race."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder, table
from agejax.data.builders.cells import OLDEST

NAME = re.compile(r"(\d+)_(\d+)([MF])(\d{2,3})", re.IGNORECASE)
TABLE = r"(?i:(?:.*/)?[^/]*morph[^/]*\.csv)"  # morph_2008_nonCommercial.csv in the release
RACES = {"W": 0, "B": 1, "A": 2, "H": 3, "O": 4}


class Morph(FaceBuilder):
    """55,134 police photos of 13,618 people of 16 to 77 years (Ricanek & Tesafaye 2006).

    By licence. Age and gender are in the file names; the race is read from the release's CSV
    (columns photo and race) if it is in the source. A person is a group, so no split
    separates a person's photos.
    """

    name = "morph"
    VERSION = tfds.core.Version("1.1.0")
    LABEL_NAMES = {  # noqa: RUF012
        "gender": ("male", "female"),
        "ethnicity": ("White", "Black", "Asian", "Hispanic", "Other"),
    }
    USUAL_NAMES = ("MORPH_nonCommercial", "MORPH_nonCommercial.zip", "Album2", "MORPH", "morph")
    DOWNLOAD = "MORPH Album 2 from https://uncw.edu/oic/tech/morph.html (by licence)"

    def faces(self) -> Iterator[Face]:
        tables = self.files(TABLE)
        if not tables:
            self.report("no CSV with 'morph' in its name; the ethnicity is unknown")
        race_of = {
            _stem(row["photo"]): RACES.get(row["race"].upper(), -1)
            for path, data in tables.items()
            for row in table(data, path, ("photo", "race"))
        }
        for path, match, data in self.images(NAME, "[id]_[photo][M|F][age].JPG"):
            name, age = path.rsplit("/", 1)[-1], int(match[4])
            if age > OLDEST:
                self.skipped.append(f"{name}: {age} is not an age")
                continue
            yield Face(
                id=name,
                image=data,
                age=age,
                gender=int(match[3].upper() == "F"),
                ethnicity=race_of.get(match[0].upper(), -1),
                group=match[1],
            )


def _stem(photo: str) -> str:
    """ "Album2/009055_1M54.JPG" -> "009055_1M54"."""
    return photo.replace("\\", "/").rsplit("/", 1)[-1].rpartition(".")[0].upper()
