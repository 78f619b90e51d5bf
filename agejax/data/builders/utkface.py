"""UTKFace as downloaded: an archive or a folder of [age]_[gender]_[race]_[time].jpg.chip.jpg."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder

NAME = re.compile(r"(\d{1,2}|10\d|11[0-6])_([01])_([0-4])_\d+\.jpg(\.chip\.jpg)?")  # to 116 years


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
    USUAL_NAMES = ("UTKFace.tar.gz", "UTKFace.tar", "UTKFace.zip", "UTKFace")
    DOWNLOAD = "UTKFace.tar.gz (aligned and cropped faces) from https://susanqq.github.io/UTKFace/"

    def faces(self) -> Iterator[Face]:
        seen: set[str] = set()
        for path, match, data in self.images(NAME, "[age]_[gender]_[race]_[time].jpg"):
            name = path.rsplit("/", 1)[-1]
            if name not in seen:  # the public archive has some in two folders
                seen.add(name)
                age, gender, race = (int(label) for label in match.groups()[:3])
                yield Face(id=name, image=data, age=age, gender=gender, ethnicity=race)
