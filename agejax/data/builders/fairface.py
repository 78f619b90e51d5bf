"""FairFace: train/N.jpg and val/N.jpg with fairface_label_{train,val}.csv."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder, table
from agejax.errors import UserError

# The bands that annotators chose from, and the means of the whole years in them. The last is open:
# 76 lies between the means of those of 70 and more in AAF (75) and in UTKFace (80).
AGES = {
    "0-2": 1.0, "3-9": 6.0, "10-19": 14.5, "20-29": 24.5, "30-39": 34.5, "40-49": 44.5,
    "50-59": 54.5, "60-69": 64.5, "more than 70": 76.0,
}  # fmt: skip
GENDERS = ("Male", "Female")
RACES = (
    "White", "Black", "East Asian", "Southeast Asian", "Indian", "Middle Eastern",
    "Latino_Hispanic",
)  # fmt: skip
PATH = re.compile(r"(?:.*/)?((train|val)/\d+\.jpg)")
TABLES = ("fairface_label_train.csv", "fairface_label_val.csv")


class FairFace(FaceBuilder):
    """108,501 faces of seven groups in balance (Kärkkäinen & Joo 2021), CC BY 4.0.

    Ages are bands of years. Official splits: train and val. The label files may lie in the source
    or beside it; in a folder with the images' .zip, the .zip is read.
    """

    name = "fairface"
    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES = {"gender": ("male", "female"), "ethnicity": RACES}  # noqa: RUF012
    USUAL_NAMES = (
        *("fairface", "FairFace", "fairface.zip", "fairface.tar.gz"),
        *("fairface-img-margin025-trainval.zip", "fairface-img-margin025-trainval"),
    )
    DOWNLOAD = (
        "fairface-img-margin025-trainval.zip and the two label files (fairface_label_*.csv) from "
        "https://github.com/joojs/fairface into one folder named fairface"
    )

    def __init__(self, *, age: str = "middle", **kwargs: object) -> None:
        """age: "middle" of its band, or "none", for gender and ethnicity alone."""
        if age not in ("middle", "none"):
            raise UserError(f"config.data.options.age of fairface: {age!r} is not middle or none")
        self.with_age = age == "middle"
        super().__init__(**kwargs)  # type: ignore[arg-type]

    @classmethod
    def also_reads(
        cls, options: Mapping[str, Any], source: pathlib.Path | None
    ) -> list[pathlib.Path]:
        return [] if source is None else _beside(source)

    def faces(self) -> Iterator[Face]:
        assert self.source is not None
        rows = self._rows()
        zips = self.source.glob("fairface-img-*.zip") if self.source.is_dir() else ()
        for path, _, data in self.images(source=min(zips, default=None)):
            match = PATH.fullmatch(path)
            row = rows.pop(match[1], None) if match else None
            if match is None or row is None:
                self.skipped.append(f"{path}: no row in fairface_label_*.csv")
                continue
            known = (row["age"] in AGES, row["gender"] in GENDERS, row["race"] in RACES)
            if not all(known):
                labels = f"{row['age']!r}, {row['gender']!r}, {row['race']!r}"
                self.skipped.append(f"{path}: an unknown label in {labels}")
                continue
            yield Face(
                id=match[1],
                image=data,
                age=AGES[row["age"]] if self.with_age else math.nan,
                gender=GENDERS.index(row["gender"]),
                ethnicity=RACES.index(row["race"]),
                split=match[2],
            )
        self.skipped += [f"{file}: no such image" for file in rows]

    def _rows(self) -> dict[str, dict[str, str]]:
        """File -> cells."""
        assert self.source is not None
        found = self.files(rf"(?:.*/)?(?:{'|'.join(map(re.escape, TABLES))})")
        if not found:
            found = {str(path): path.read_bytes() for path in _beside(self.source)}
        if not found:
            raise UserError(
                f"{self.source}: no {' or '.join(TABLES)} in it or beside it; get them from "
                "https://github.com/joojs/fairface"
            )
        cells = (
            table(data, path, ("file", "age", "gender", "race")) for path, data in found.items()
        )
        return {row["file"]: row for rows in cells for row in rows}


def _beside(source: pathlib.Path) -> list[pathlib.Path]:
    """The label files that lie beside the source."""
    places = [source.absolute().with_name(name) for name in TABLES]
    return [path for path in places if path.is_file()]
