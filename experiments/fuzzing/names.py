"""File names of face data sets: valid ones, nearly valid ones and others."""

from __future__ import annotations

import pathlib
import random
import zipfile

from agejax.data import builders, sources
from agejax.errors import UserError
from experiments.fuzzing import Target
from experiments.fuzzing.images import jpeg
from experiments.fuzzing.mutations import changed_text, encodable, text

RIGHT = {
    "utkface": "26_1_2_20170116184751526.jpg.chip.jpg",
    "aaf": "07381A80.jpg",
    "agedb": "10000_GlennClose_62_f.jpg",
    "fg_net": "001A43a.JPG",
    "cacd": "53_Robin_Williams_0001.jpg",
    "morph": "009055_1M54.JPG",
    "image_folder": "faces/a.png",
}
LETTERS = "0123456789_A.jpgmf /\\-"
WHOLE = 0.2  # share of the inputs that are prepared and decoded too


def prepare(folder: pathlib.Path) -> Target:
    picture = jpeg(0)

    def target(rng: random.Random, folder: pathlib.Path) -> bool:
        data_set = rng.choice(tuple(RIGHT))
        names = [_name(rng, RIGHT[data_set]) for _ in range(rng.randint(1, 6))]
        path = folder / "faces.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in dict.fromkeys(names):
                archive.writestr(zipfile.ZipInfo(name), picture)
        if rng.random() < WHOLE:
            source = sources.load(
                data_set, str(path), image_size=8, cache_dir=str(folder / "cache")
            )
            return not source.skipped
        builder = builders.find(data_set)(source=path, data_dir=folder)
        found = [face for face in builder.faces() if 0 <= face.age <= 120 or face.age != face.age]
        if not found and not builder.skipped:
            raise UserError("all of them are hidden, or no images by their names")
        return not builder.skipped

    return target


def _name(rng: random.Random, right: str) -> str:
    match rng.randrange(4):
        case 0:
            return rng.choice(("", "a/", "../", "/", ".", "C:\\")) + right
        case 1 | 2:
            name = changed_text(rng, right)
        case _:
            name = text(rng, LETTERS) + rng.choice(("", ".jpg", ".JPG", ".png"))
    # What a zip archive can hold.
    return encodable(name).replace("\x00", "")[:60000] or "x"
