"""APPA-REAL: train, valid and test folders of NNNNNN.jpg_face.jpg, and gt_avg_*.csv."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder, table
from agejax.data.builders.cells import years
from agejax.errors import UserError
from agejax.settings import Group, Setting

SPLITS = {"train": "train", "valid": "val", "test": "test"}
PATH = re.compile(r"(?:.*/)?(train|valid|test)/([^/]+)_face\.\w+")
CSV = re.compile(r"(?:.*/)?(gt_avg|allcategories)_(train|valid|test)\.csv")
COLUMNS = {
    "gt_avg": ("file_name", "apparent_age_avg", "apparent_age_std", "real_age"),
    "allcategories": ("file", "gender", "race"),
}
GENDERS, RACES = ("male", "female"), ("caucasian", "asian", "afroamerican")


class AppaReal(FaceBuilder):
    """7,591 photos with real ages and tens of thousands of votes (Agustsson et al. 2017).

    For research only. The cropped faces are read. Gender and ethnicity come from the extra
    allcategories_*.csv (Clapés et al. 2018), if these are beside the others.
    """

    name = "appa_real"
    VERSION = tfds.core.Version("1.1.0")
    LABEL_NAMES = {"gender": GENDERS, "ethnicity": ("Caucasian", "Asian", "Afroamerican")}  # noqa: RUF012
    USUAL_NAMES = ("appa-real-release.zip", "appa-real-release", "appa-real-release.tar.gz")
    DOWNLOAD = "appa-real-release.zip from https://chalearnlap.cvc.uab.cat/dataset/26/description/"
    OPTIONS = Group(
        "Options of appa_real.",
        target=Setting(
            "real",
            "Which age is `age`: the real one, or the apparent one, the mean of the votes.",
            choices=("real", "apparent"),
        ),
    )

    def faces(self) -> Iterator[Face]:
        rows: dict[tuple[str, str], dict[str, str]] = {}  # (folder, file) -> cells
        extra: dict[tuple[str, str], dict[str, str]] = {}
        for path, data in self.files(CSV.pattern).items():
            match = CSV.fullmatch(path)
            assert match is not None
            columns = COLUMNS[match[1]]
            into = rows if match[1] == "gt_avg" else extra
            into |= {(match[2], row[columns[0]]): row for row in table(data, path, columns)}
        if not rows:
            raise UserError(f"{self.source}: no gt_avg_train.csv, _valid.csv or _test.csv in it")
        for path, _, data in self.images(inside="_face."):
            match = PATH.fullmatch(path)
            key = (match[1], match[2]) if match else ("", "")
            if key not in rows:
                key = (key[0], f"{key[1]}.jpg")  # a copy with renamed files
            row = rows.pop(key, None)
            if match is None or row is None:
                self.skipped.append(f"{path}: no row in gt_avg_*.csv")
                continue
            try:
                real, apparent, spread = (
                    years(row[k]) for k in ("real_age", "apparent_age_avg", "apparent_age_std")
                )
            except ValueError as error:
                self.skipped.append(f"{path}: {error}")
                continue
            more = extra.get(key, {})
            yield Face(
                id="/".join(key),
                image=data,
                age=apparent if self.options["target"] == "apparent" else real,
                gender=_number(more.get("gender"), GENDERS),
                ethnicity=_number(more.get("race"), RACES),
                apparent_age=apparent,
                apparent_age_std=spread,
                split=SPLITS[match[1]],
            )
        self.skipped += [f"{'/'.join(key)}: no such face" for key in rows]


def _number(name: str | None, names: tuple[str, ...]) -> int:
    return names.index(name.lower()) if name and name.lower() in names else -1
