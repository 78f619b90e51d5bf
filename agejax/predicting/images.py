"""From paths to faces: finds the files, and reads each image as one face crop or as a photo.

A model expects faces framed as in its training images. An image is such a crop, or a photo whose
faces are found and brought into that frame.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import pathlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from agejax import threads
from agejax.data import sources
from agejax.data.builders import archives
from agejax.data.builders.archives import SUFFIXES
from agejax.errors import UserError
from agejax.faces import detection
from agejax.faces.geometry import Geometry
from agejax.logging import console
from agejax.paths import expand
from agejax.predicting.model import Model

WORKERS = 4  # threads that read and decode


@dataclasses.dataclass(frozen=True)
class Crop:
    """A face to predict.

    Attributes:
      path: the file that it is from; None for an image in memory.
      image: uint8 [S, S, 3].
      where: for an image in memory its number; for a face in a photo its number, its box and the
        detector's score.
    """

    path: pathlib.Path | None
    image: np.ndarray
    where: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class InMemory:
    """An image given as an array.

    Attributes:
      number: which of the images given it is, from 0.
      pixels: uint8 [H, W, 3], RGB.
    """

    number: int
    pixels: np.ndarray


Picture = pathlib.Path | InMemory
Reader = Callable[[Picture], list[Crop]]  # an image -> its faces


@dataclasses.dataclass
class Counts:
    """Counts images that could not be read, images without a face, and faces."""

    files: int = 0
    skipped: int = 0
    faceless: int = 0
    faces: int = 0

    def add(self, picture: Picture, found: int | Exception) -> None:
        """Counts an image; takes what `crops` reports."""
        self.files += 1
        if isinstance(found, Exception):
            self.skipped += 1
        else:
            self.faces += found
            self.faceless += not found


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
    """Finds the files named or matched, and all images below folders; sorted, each once.

    Follows symbolic links to folders, as `archives.walk` does. Leaves hidden files of folders out,
    and warns of their pictures of other types.

    Raises:
      UserError: a path that does not exist, or no image.
    """
    found: list[pathlib.Path] = []
    passed_over: Counter[str] = Counter()  # ending -> files
    for given in paths:
        path = expand(given)
        if path.is_dir():
            below = {*path.rglob("*"), *(path / inside for inside, _ in archives.walk(path))}
            plain = [p for p in below if not archives.is_hidden(p.relative_to(path).as_posix())]
            found += sorted(p for p in plain if p.suffix.lower() in SUFFIXES)
            passed_over.update(p.suffix.lower() for p in plain)
        elif path.exists():
            found.append(path)
        elif matched := sorted(glob.glob(str(path), recursive=True)):
            found += [p for p in map(pathlib.Path, matched) if p.is_file()]
        else:
            raise UserError(f"{path}: no such file or folder")
    for line in archives.to_convert(passed_over):
        console.warning(f"skipped {line}")
    if not found:
        raise UserError(f"no image ({', '.join(SUFFIXES)}) in {', '.join(paths)}")
    return list(dict.fromkeys(found))


def crops(
    pictures: Iterable[Picture],
    read: Reader,
    report: Callable[[Picture, int | Exception], None],
) -> Iterator[Crop]:
    """Yields the faces of every image that can be read, in order.

    Threads read a bounded number of images ahead.

    Args:
      report: called with each image and its number of faces, or why it cannot be read.
    """
    for picture, future in threads.ahead(read, pictures, WORKERS):
        try:
            found = future.result()
        except (OSError, ValueError) as error:
            report(picture, error)
        else:
            report(picture, len(found))
            yield from found


def pixels(picture: Picture) -> np.ndarray:
    """The whole image, uint8 [H, W, 3].

    Raises:
      ValueError, OSError: the file is not an image, or cannot be read.
    """
    if isinstance(picture, InMemory):
        return picture.pixels
    return sources.decode_whole(sources.read_image(picture))


def _placed(picture: Picture, crop: Crop) -> Crop:
    """Adds to the face which image it is from."""
    if isinstance(picture, InMemory):
        return dataclasses.replace(crop, where={"image": picture.number, **crop.where})
    return dataclasses.replace(crop, path=picture)


def crop_reader(image_size: int) -> Reader:
    """Reads an image as one face crop."""

    def read(picture: Picture) -> list[Crop]:
        return [_placed(picture, Crop(None, sources.square(pixels(picture), image_size)))]

    return read


def photo_reader(geometry: Geometry, image_size: int) -> Reader:
    """Reads a photo, and warps each of its faces to the frame of the training images.

    Raises:
      UserError: no detector is installed.
    """
    find = face_finder(geometry, image_size)

    def read(picture: Picture) -> list[Crop]:
        return [_placed(picture, crop) for crop in find(pixels(picture))]

    return read


def face_finder(geometry: Geometry, image_size: int) -> Callable[[np.ndarray], list[Crop]]:
    """Finds the faces of photos uint8 [H, W, 3], and warps each to the frame of training images.

    Any number of threads may call it at once.

    Raises:
      UserError: no detector is installed.
    """
    detection.Detector.installed()  # raises now, not in a thread
    of_thread = threading.local()  # a detector is not thread-safe

    def find(photo: np.ndarray) -> list[Crop]:
        if not hasattr(of_thread, "detector"):
            of_thread.detector = detection.Detector.installed()
        detector: detection.Detector = of_thread.detector
        found = []
        for i, (face, crop) in enumerate(detector.crops(photo, geometry, image_size)):
            box = [round(x, 1) for x in face.box]
            found.append(Crop(None, crop, {"face": i, "box": box, "score": round(face.score, 3)}))
        return found

    return find


def choose_reader(faces: str, model: Model, pictures: Sequence[Picture]) -> Reader:
    """Chooses whether to read images as crops or as photos, and logs what may spoil the ages.

    Args:
      faces: "crops", "detect", or "auto": photos, if a detector is installed and the first images
        are framed differently from the training images.

    Raises:
      UserError: "detect" without a detector, or with training images whose frame is unknown.
    """
    size = model.image_size
    if faces == "detect":
        return photo_reader(model.geometry(), size)
    geometry = model.calibration.geometry if model.calibration else None
    crops = crop_reader(size)
    if faces == "auto" and geometry is not None and detection.Detector.if_installed() is None:
        console.note(
            "no face detector is installed, so each image is taken as a crop of a face; to find "
            f"the faces of photos: {detection.REMEDY}"
        )
        return crops
    warning = detection.frame_warning(readable(pictures[: detection.CHECKED], crops), geometry)
    if warning is None:
        return crops
    if faces == "crops":
        console.warning(f"{warning}; if they are photos, use --faces=detect")
        return crops
    assert geometry is not None
    console.note("looking for faces in photos; if each image is one face, use --faces=crops")
    return photo_reader(geometry, size)


def readable(pictures: Iterable[Picture], read: Reader) -> Iterator[np.ndarray]:
    """Yields the faces of the images that can be read; skips the others."""
    for picture in pictures:
        with contextlib.suppress(OSError, ValueError):
            yield from (crop.image for crop in read(picture))
