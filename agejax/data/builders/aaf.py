"""All-Age-Faces: NNNNNAyy.jpg, an id and an age; ids up to 07380 are female."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders import archives
from agejax.data.builders.base import Face, FaceBuilder

NAME = re.compile(r"(\d{5})A(\d{2})", re.IGNORECASE)
LAST_FEMALE = 7380
ALIGNED = re.compile(r"(?:.*/)?((?:aglined|aligned) faces/).*")  # "aglined" in the release
SETS = re.compile(r"(?:.*/)?image sets/(train|val|test)\.txt")


class AAF(FaceBuilder):
    """13,322 mostly Asian faces of 2 to 80 years (Cheng et al. 2019), for research only.

    The release has every photo twice: the aligned faces are read, and `image sets` gives the
    official splits. Of any other folder or archive all such files are read.
    """

    name = "aaf"
    VERSION = tfds.core.Version("1.2.0")
    LABEL_NAMES = {"gender": ("male", "female")}  # noqa: RUF012
    USUAL_NAMES = (
        *("All-Age-Faces Dataset.zip", "All-Age-Faces Dataset"),
        *("AAF.tar.gz", "AAF_chips.tar.gz", "AAF"),
    )
    DOWNLOAD = "All-Age-Faces Dataset from https://github.com/JingchunCheng/All-Age-Faces-Dataset"

    def faces(self) -> Iterator[Face]:
        assert self.source is not None
        # One file is enough to know, but a tar must be searched for it.
        aligned = next(
            (ALIGNED.fullmatch(p) for p, _ in archives.read(self.source, _is_aligned)), None
        )
        split = self._splits() if aligned else {}
        for path, match, data in self.images(
            NAME, "[id]A[age].jpg", inside=aligned[1] if aligned else ""
        ):
            name, number, age = path.rsplit("/", 1)[-1], int(match[1]), int(match[2])
            yield Face(
                id=name,
                image=data,
                age=age,
                gender=int(number <= LAST_FEMALE),
                split=split.get(match[0].upper(), ""),
            )

    def _splits(self) -> dict[str, str]:
        """Name without its ending -> split, from lines "00000A02 0" or "00000A02.jpg 0"."""
        found: dict[str, str] = {}
        for path, data in self.files(SETS.pattern).items():
            match = SETS.fullmatch(path)
            assert match is not None
            for line in data.decode(errors="replace").splitlines():
                if words := line.split():
                    found[words[0].upper().removesuffix(".JPG")] = match[1]
        return found


def _is_aligned(path: str) -> bool:
    return ALIGNED.fullmatch(path) is not None
