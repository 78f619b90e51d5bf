"""FairFace: train/N.jpg and val/N.jpg with fairface_label_{train,val}.csv."""

from __future__ import annotations

import math
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from agejax.data.builders import cells
from agejax.data.builders.base import Face, FaceBuilder, table
from agejax.errors import UserError
from agejax.settings import Group, Setting

# The bands that annotators chose from, and the mean of the whole years in each. The last is open:
# 76 lies between the mean ages of people of 70 or more in AAF (75) and in UTKFace (80).
AGES = {
    "0-2": 1.0, "3-9": 6.0, "10-19": 14.5, "20-29": 24.5, "30-39": 34.5, "40-49": 44.5,
    "50-59": 54.5, "60-69": 64.5, "more than 70": 76.0,
}  # fmt: skip
GENDERS = ("Male", "Female")
RACES = (
    "White", "Black", "East Asian", "Southeast Asian", "Indian", "Middle Eastern",
    "Latino_Hispanic",
)  # fmt: skip
PATH = re.compile(r"(?:.*/)?(((train|val)/\d+)\.\w+)")
TABLES = ("fairface_label_train.csv", "fairface_label_val.csv")
MANY = 5  # rows with one unknown age; too many for a typing error


class FairFace(FaceBuilder):
    """108,501 faces, balanced over seven groups (Kärkkäinen & Joo 2021), CC BY 4.0.

    Ages are bands of years. Official splits: train and val. The label files may be in the source
    or beside it; in a folder with the images' .zip, the .zip is read.
    """

    name = "fairface"
    VERSION = tfds.core.Version("1.1.0")
    LABEL_NAMES = {"gender": ("male", "female"), "ethnicity": RACES}  # noqa: RUF012
    USUAL_NAMES = (
        *("fairface", "FairFace", "fairface.zip", "fairface.tar.gz"),
        *("fairface-img-margin025-trainval.zip", "fairface-img-margin025-trainval"),
    )
    DOWNLOAD = (
        "fairface-img-margin025-trainval.zip and the two label files (fairface_label_*.csv) from "
        "https://github.com/joojs/fairface into one folder named fairface"
    )
    OPTIONS = Group(
        "Options of fairface.",
        age=Setting(
            "middle",
            "Age for each age range: its middle, or none, to use gender and ethnicity only.",
            choices=("middle", "none"),
        ),
    )

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
            row = rows.pop(match[2], None) if match else None
            if match is None or row is None:
                self.skipped.append(f"{path}: no row in fairface_label_*.csv")
                continue
            try:
                age = _age(row["age"]) if self.options["age"] == "middle" else math.nan
                gender = cells.class_number(row["gender"], "gender", GENDERS)
                ethnicity = cells.class_number(row["race"], "race", RACES)
            except ValueError:
                labels = f"{row['age']!r}, {row['gender']!r}, {row['race']!r}"
                self.skipped.append(f"{path}: an unknown label in {labels}")
                continue
            yield Face(
                id=match[1],
                image=data,
                age=age,
                gender=gender,
                ethnicity=ethnicity,
                split=match[3],
            )
        self.skipped += [f"{row['file']}: no such image" for row in rows.values()]

    def _rows(self) -> dict[str, dict[str, str]]:
        """File without its ending -> cells.

        Raises:
          UserError: no table, or one in which a spreadsheet has changed a whole age band.
        """
        assert self.source is not None
        found = self.files(rf"(?:.*/)?(?:{'|'.join(map(re.escape, TABLES))})")
        if not found:
            found = {str(path): path.read_bytes() for path in _beside(self.source)}
        if not found:
            raise UserError(
                f"{self.source}: no {' or '.join(TABLES)} in it or beside it; get them from "
                "https://github.com/joojs/fairface"
            )
        rows, ages = {}, Counter[str]()
        for path, data in found.items():
            for row in table(data, path, ("file", "age", "gender", "race")):
                rows[row["file"].replace("\\", "/").rpartition(".")[0]] = row
                ages[row["age"]] += 1
        if self.options["age"] == "middle":
            _check_bands(ages, self.source)
        return rows


def _age(text: str) -> float:
    """The middle of a band, NaN if unknown.

    Raises:
      ValueError: no such band.
    """
    if cells.is_unknown(text):
        return math.nan
    if (band := cells.band(text, AGES)) is None:
        raise ValueError(f"{text} is not an age range")
    return AGES[band]


def _check_bands(ages: Mapping[str, int], source: pathlib.Path) -> None:
    """Refuses tables in which a band is missing and many rows hold something else.

    A spreadsheet turns 3-9 and 10-19 into dates. Rows with an ambiguous date would all be skipped,
    and the run would see no children.
    """
    read = {text: cells.band(text, AGES) for text in ages}
    missing = [band for band in AGES if band not in read.values()]
    odd = {t: ages[t] for t, band in read.items() if band is None and not cells.is_unknown(t)}
    text = max(odd, key=lambda t: odd[t], default="")
    if missing and odd and odd[text] >= MANY:
        raise UserError(
            f"{source}: {odd[text]:,} rows of its tables have the age {text!r}, which is not an "
            f"age range, and none has {', '.join(missing)}; a spreadsheet changes 3-9 and 10-19 to "
            "dates: get the tables again, or set config.data.options.age='none'"
        )


def _beside(source: pathlib.Path) -> list[pathlib.Path]:
    """The label files beside the source."""
    places = [source.absolute().with_name(name) for name in TABLES]
    return [path for path in places if path.is_file()]
