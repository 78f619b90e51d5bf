"""AgeDB: [number]_[name]_[age]_[m|f].jpg."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder
from agejax.data.builders.cells import OLDEST

NAME = re.compile(r"(\d+)_(.+)_(\d{1,3})_([mf])", re.IGNORECASE)


class AgeDB(FaceBuilder):
    """16,488 photos of 568 well-known people of 1 to 101 years (Moschoglou et al. 2017).

    For research only, by request. A person is a group, so no split separates a person's photos.
    """

    name = "agedb"
    VERSION = tfds.core.Version("1.1.0")
    NAMES_PEOPLE = True
    LABEL_NAMES = {"gender": ("male", "female")}  # noqa: RUF012
    USUAL_NAMES = ("AgeDB.zip", "AgeDB.tar.gz", "AgeDB")
    DOWNLOAD = "AgeDB.zip from https://ibug.doc.ic.ac.uk/resources/agedb/ (decrypted)"

    def faces(self) -> Iterator[Face]:
        for path, match, data in self.images(NAME, "[number]_[name]_[age]_[m|f].jpg"):
            name, age = path.rsplit("/", 1)[-1], int(match[3])
            if age > OLDEST:
                self.skipped.append(f"{name}: {age} is not an age")
                continue
            gender = int(match[4].lower() == "f")
            yield Face(id=name, image=data, age=age, gender=gender, group=match[2].lower())
