"""UTKFace as downloaded: an archive or a folder of [age]_[gender]_[race]_[time].jpg.chip.jpg."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders import archives
from agejax.data.builders.base import Face, FaceBuilder
from agejax.errors import UserError

IMAGE = re.compile(r".*\.(jpe?g|png)", re.IGNORECASE)
NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.jpg(\.chip\.jpg)?")
OLDEST = 116
USUAL_NAMES = ("UTKFace.tar.gz", "UTKFace.tar", "UTKFace.zip", "UTKFace")
MANUAL = pathlib.Path("~/tensorflow_datasets/downloads/manual")


class UTKFace(FaceBuilder):
    """Faces in the wild of 0 to 116 years (Zhang, Song & Qi 2017), for non-commercial research.

    Labels are read from the file names; names that do not follow the pattern are skipped.
    """

    name = "utkface"
    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES = {  # noqa: RUF012
        "gender": ("male", "female"),
        "ethnicity": ("White", "Black", "Asian", "Indian", "Other"),
    }

    @classmethod
    def locate(cls, path: str | None) -> pathlib.Path:
        manual = MANUAL.expanduser()
        places = [manual / name for name in USUAL_NAMES]
        if path is not None:
            places = [pathlib.Path(path).expanduser()]
        for place in places:
            if place.exists():
                return place
        missing = f"{path} does not exist" if path is not None else f"no UTKFace in {manual}"
        raise UserError(
            f"{missing}: download UTKFace.tar.gz (aligned and cropped faces) from "
            f"https://susanqq.github.io/UTKFace/, then put it in {manual} or say where it is with "
            "--config.data.source=PATH"
        )

    def faces(self) -> Iterator[Face]:
        assert self.source is not None
        seen: set[str] = set()
        for path, data in archives.read(self.source):
            name = path.rsplit("/", 1)[-1]
            if name in seen or not IMAGE.fullmatch(name):
                continue
            seen.add(name)
            match = NAME.fullmatch(name)
            if match is None or int(match[1]) > OLDEST:
                self.skipped.append(f"{name}: not named [age]_[gender]_[race]_[time].jpg")
            elif data is None:
                self.skipped.append(f"{name}: larger than {archives.MAX_BYTES >> 20} MB")
            else:
                age, gender, race = (int(label) for label in match.groups()[:3])
                yield Face(id=name, image=data, age=age, gender=gender, ethnicity=race)
