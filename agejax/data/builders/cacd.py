"""CACD2000: [age]_[name]_[number].jpg."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from agejax.data.builders import matlab
from agejax.data.builders.base import Face, FaceBuilder
from agejax.data.builders.cells import OLDEST
from agejax.errors import DAMAGE, UserError

NAME = re.compile(r"(\d{1,3})_(.+)_(\d{1,5})", re.DOTALL)
TABLE = r"(?:.*/)?celebrity2000_meta\.mat"
STRUCT, COLUMNS = "celebrityImageData", ("age", "name")


class CACD(FaceBuilder):
    """163,446 photos of 2,000 celebrities of 14 to 62 years (Chen, Chen & Hsu 2014).

    For research only; an age is the photo's year minus the year of birth, and noisy. A person, by
    name, is a group, so no split separates a person's photos. If the source holds
    celebrity2000_meta.mat, its ages count, and photos that it does not list are skipped; the file
    names hold the same ages.
    """

    name = "cacd"
    VERSION = tfds.core.Version("1.0.0")
    NAMES_PEOPLE = True
    USUAL_NAMES = ("CACD2000.tar.gz", "CACD2000")
    DOWNLOAD = "CACD2000.tar.gz (original face images) from http://bcsiriuschen.github.io/CARC/"

    def faces(self) -> Iterator[Face]:
        ages = self._ages()
        for path, match, data in self.images(NAME, "[age]_[name]_[number].jpg"):
            name = path.rsplit("/", 1)[-1]
            age = float(match[1]) if ages is None else ages.get(match[0])
            if age is None:
                self.skipped.append(f"{name}: no row in celebrity2000_meta.mat")
            elif not 0 <= age <= OLDEST:
                self.skipped.append(f"{name}: {age:g} is not an age")
            else:
                yield Face(id=name, image=data, age=age, group=match[2].lower())

    def _ages(self) -> dict[str, float] | None:
        """File name without its ending -> years; None if there is no table.

        Raises:
          UserError: an invalid table.
        """
        found = self.files(TABLE)
        for path, data in found.items():
            try:
                columns = matlab.read(data, STRUCT, COLUMNS)
                ages = np.asarray(columns["age"], np.float64).tolist()
                names = [str(name).rpartition(".")[0] for name in columns["name"]]
                return dict(zip(names, ages, strict=True))
            except DAMAGE as error:
                raise UserError(
                    f"{path} is not a readable table of CACD ({error}); download it again, or "
                    "remove it: the images' names hold the ages"
                ) from error
        return None
