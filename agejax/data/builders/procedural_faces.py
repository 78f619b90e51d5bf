"""Drawn faces as a data set, for the quickstart and the tests, and as files.

python -m agejax.data.builders.procedural_faces --output=docs/procedural_faces.png
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds

from agejax.data.builders import archives
from agejax.data.builders.base import Face, FaceBuilder
from agejax.data.procedural.drawing import SIZE, SMALLEST, contact_sheet, draw
from agejax.data.procedural.people import COLOURINGS, GENDERS
from agejax.errors import UserError
from agejax.paths import expand
from agejax.process.command import run_command
from agejax.settings import Group, Setting


def _jpeg(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    return data.tobytes()


class ProceduralFaces(FaceBuilder):
    """Faces drawn by a program: stylised, deterministic, with UTKFace's long-tailed ages.

    Age shows in proportions, wrinkles, spots and hair; gender in hair, jaw, brows and beard;
    "ethnicity" is the colouring of skin, hair and eyes. Apparent age is the age that a face is
    drawn with, a few years off its age. The same version of OpenCV gives the same bytes.
    """

    name = "procedural_faces"
    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES = {"gender": GENDERS, "ethnicity": COLOURINGS}  # noqa: RUF012
    FIND_DUPLICATES = False
    OPTIONS = Group(
        "Options of procedural_faces.",
        count=Setting(4000, "How many images.", limits=(1, None)),
        seed=Setting(
            0, "Seed of the faces; image i depends on seed, i and size only.", limits=(0, None)
        ),
        size=Setting(SIZE, "Edge of the images.", limits=(SMALLEST, None), unit="pixels"),
    )

    def faces(self) -> Iterator[Face]:
        seed = self.options["seed"]
        for i in range(self.options["count"]):
            name = f"{seed}-{i:06d}"
            if not self.mine(name):
                yield Face(id=name, image=archives.ELSEWHERE)
                continue
            image, labels = draw(seed, i, self.options["size"])
            yield Face(
                id=name, image=_jpeg(image), age=float(labels.age),
                gender=labels.gender, ethnicity=labels.colouring, apparent_age=labels.looks,
            )  # fmt: skip


def write(folder: pathlib.Path, count: int, seed: int = 0, size: int = SIZE) -> None:
    """Writes the data set's first faces as files without labels, like a generator's output."""
    folder.mkdir(parents=True, exist_ok=True)
    for face in ProceduralFaces(count=count, seed=seed, size=size).faces():
        (folder / f"{face.id}.jpg").write_bytes(face.image)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m agejax.data.builders.procedural_faces",
        description="Writes a contact sheet of procedural faces, or a folder of them.",
    )
    parser.add_argument("--output", required=True, help="a picture, .png or .jpg; or a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=0, help="faces for a folder; 0: a sheet")
    args = parser.parse_args(argv[1:])
    if args.count < 0:
        raise UserError(f"--count={args.count}: must be 0 or more")
    if args.count:
        write(expand(args.output), args.count, args.seed)
    else:
        contact_sheet(args.output, args.seed)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
