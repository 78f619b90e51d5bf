"""All-Age-Faces: NNNNNAyy.jpg, an id and an age; ids up to 07380 are female."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders import archives
from agejax.data.builders.base import Face, FaceBuilder

NAME = re.compile(r"(\d{5})A(\d{2})\.jpg", re.IGNORECASE)
LAST_FEMALE = 7380
ALIGNED = re.compile(r"(.*/)?aglined faces/.*")  # as the release spells it


class AAF(FaceBuilder):
    """13,322 mostly Asian faces of 2 to 80 years (Cheng et al. 2019), for research only.

    Of the release, which has every photo twice, the aligned faces are taken; any other folder or
    archive of such files is taken whole.
    """

    name = "aaf"
    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES = {"gender": ("male", "female")}  # noqa: RUF012
    USUAL_NAMES = ("AAF.tar.gz", "AAF_chips.tar.gz", "All-Age-Faces Dataset.zip", "AAF")
    DOWNLOAD = "All-Age-Faces Dataset from https://github.com/JingchunCheng/All-Age-Faces-Dataset"

    def faces(self) -> Iterator[Face]:
        assert self.source is not None
        # A file of each kind is enough to know, but a tar has to be looked through for it.
        release = next(archives.read(self.source, lambda p: ALIGNED.fullmatch(p) is not None), None)
        inside = "aglined faces/" if release else ""
        for path, match, data in self.images(NAME, "[id]A[age].jpg", inside=inside):
            number, age = int(match[1]), int(match[2])
            gender = int(number <= LAST_FEMALE)
            yield Face(id=path.rsplit("/", 1)[-1], image=data, age=age, gender=gender)
