"""UTKFace as downloaded: an archive or a folder of [age]_[gender]_[race]_[time].jpg.chip.jpg."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders import archives, pixels
from agejax.data.builders.base import Face, FaceBuilder, table

# Ages up to 116 years. The public set has a few names without a race. A "chip" is a face crop.
NAME = re.compile(
    r"(\d{1,2}|10\d|11[0-6])_([01])_(?:([0-4])_\d+|\d{8,})"
    r"(?:\.(?:jpe?g|png|bmp|webp|tiff?))?(?:\.chip)?",
    re.IGNORECASE,
)
COLUMNS = ("age", "ethnicity", "gender", "img_name", pixels.COLUMN)  # of the set as one table


class UTKFace(FaceBuilder):
    """Faces in the wild of 0 to 116 years (Zhang, Song & Qi 2017), for non-commercial research.

    Labels are read from the file names; a name without a race still gives age and gender, and files
    whose names do not follow the pattern are skipped. If there are no images, one table of grey
    pixels (columns age, ethnicity, gender, img_name, pixels) is read.
    """

    name = "utkface"
    VERSION = tfds.core.Version("1.1.0")
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
            if name not in seen:  # the public archive has some images in two folders
                seen.add(name)
                age, gender, race = (
                    -1 if label is None else int(label) for label in match.groups()
                )
                yield Face(id=name, image=data, age=age, gender=gender, ethnicity=race)
        if not seen:
            yield from self._of_a_table()

    def _of_a_table(self) -> Iterator[Face]:
        for path, data in self.files(r".*\.csv").items():
            if not pixels.in_table(data):
                continue
            for number, row in enumerate(table(data, path, COLUMNS), 1):
                labels = "_".join(row[label] for label in ("age", "gender", "ethnicity"))
                name = row["img_name"] or str(number)
                if not name.startswith(f"{labels}_"):  # the name lacks its labels
                    name = f"{labels}_{name}"
                match = NAME.fullmatch(f"{labels}_0")
                if match is None:
                    self.skipped.append(f"{path}, row {number}: age, gender, ethnicity {labels}?")
                    continue
                try:
                    image = pixels.encoded(row["pixels"]) if self.mine(name) else archives.ELSEWHERE
                except ValueError as error:
                    self.skipped.append(f"{name}: {error}")
                    continue
                age, gender, race = (int(label) for label in match.groups())
                yield Face(id=name, image=image, age=age, gender=gender, ethnicity=race)
