"""FairFace: train/N.jpg and val/N.jpg with fairface_label_{train,val}.csv."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder, table
from agejax.errors import UserError

# The bands that annotators chose from, and their middles; the last one's is where the ages of other
# data sets above 70 have theirs.
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


class FairFace(FaceBuilder):
    """108,501 faces of seven groups in balance (Kärkkäinen & Joo 2021), CC BY 4.0.

    Ages are bands of years. Official splits: train and val.
    """

    name = "fairface"
    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES = {"gender": ("male", "female"), "ethnicity": RACES}  # noqa: RUF012
    USUAL_NAMES = ("fairface", "FairFace", "fairface.zip", "fairface.tar.gz")
    DOWNLOAD = (
        "fairface-img-margin025-trainval.zip and the two label files from "
        "https://github.com/joojs/fairface into one folder, unpacked"
    )

    def __init__(self, *, age: str = "middle", **kwargs: object) -> None:
        """age: "middle" of its band, or "none", for gender and ethnicity alone."""
        if age not in ("middle", "none"):
            raise UserError(f"config.data.options.age of fairface: {age!r} is not middle or none")
        self.with_age = age == "middle"
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def faces(self) -> Iterator[Face]:
        rows: dict[str, dict[str, str]] = {}
        for path, data in self.files(r"(?:.*/)?fairface_label_(train|val)\.csv").items():
            cells = table(data, path, ("file", "age", "gender", "race"))
            rows |= {row["file"]: row for row in cells}
        if not rows:
            raise UserError(f"{self.source}: no fairface_label_train.csv or _val.csv in it")
        for path, _, data in self.images():
            match = PATH.fullmatch(path)
            row = rows.pop(match[1], None) if match else None
            if match is None or row is None:
                self.skipped.append(f"{path}: no row in fairface_label_*.csv")
                continue
            known = (row["age"] in AGES, row["gender"] in GENDERS, row["race"] in RACES)
            if not all(known):
                self.skipped.append(f"{path}: {row['age']}, {row['gender']}, {row['race']}")
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
