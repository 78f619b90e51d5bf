"""Image files as faces: which files paths name, and how each is read.

A model knows faces as its training images frame them. An image is such a crop, or a photo whose
faces are found and brought into that frame.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from agejax import threads
from agejax.data import sources
from agejax.data.builders import archives
from agejax.data.builders.archives import SUFFIXES
from agejax.errors import UserError
from agejax.evaluation.calibration import Calibration, known_geometry
from agejax.faces import detection
from agejax.paths import expand
from agejax.runs.run import Run

WORKERS = 4  # threads that read and decode


@dataclasses.dataclass(frozen=True)
class Crop:
    """A face to predict.

    Attributes:
      path: the file that it is from; None of an array.
      image: uint8 [S, S, 3].
      where: which face of the photo, its box and the detector's score; {} of a crop.
    """

    path: pathlib.Path | None
    image: np.ndarray
    where: dict[str, Any] = dataclasses.field(default_factory=dict)


Reader = Callable[[pathlib.Path], list[Crop]]  # an image file -> its faces


@dataclasses.dataclass
class Counts:
    """Counts of files: those that could not be read, those without a face, and of faces."""

    files: int = 0
    skipped: int = 0
    faceless: int = 0
    faces: int = 0

    def add(self, path: pathlib.Path, found: int | Exception) -> None:
        """Counts a file, as `crops` reports it."""
        self.files += 1
        if isinstance(found, Exception):
            self.skipped += 1
        else:
            self.faces += found
            self.faceless += not found


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
    """The files named or matched, and all images below the folders, sorted, each once.

    Folders that are symbolic links are looked into, as `archives.walk` does.

    Raises:
      UserError: a path that does not exist, or no image at all.
    """
    found: list[pathlib.Path] = []
    for given in paths:
        path = expand(given)
        if path.is_dir():
            below = {*path.rglob("*"), *(path / inside for inside, _ in archives.walk(path))}
            found += sorted(p for p in below if p.suffix.lower() in SUFFIXES)
        elif path.exists():
            found.append(path)
        elif matched := sorted(glob.glob(str(path), recursive=True)):
            found += [p for p in map(pathlib.Path, matched) if p.is_file()]
        else:
            raise UserError(f"{path}: no such file or folder")
    if not found:
        raise UserError(f"no image ({', '.join(SUFFIXES)}) in {', '.join(paths)}")
    return list(dict.fromkeys(found))


def crops(
    paths: Iterable[pathlib.Path],
    read: Reader,
    report: Callable[[pathlib.Path, int | Exception], None],
) -> Iterator[Crop]:
    """Yields the faces of every file that can be read, in order.

    Files are read ahead by threads, a bounded number of them.

    Args:
      report: called with each file and the number of faces in it, or why it cannot be read.
    """
    for path, future in threads.ahead(read, paths, WORKERS):
        try:
            found = future.result()
        except (OSError, ValueError) as error:
            report(path, error)
        else:
            report(path, len(found))
            yield from found


def crop_reader(image_size: int) -> Reader:
    """Reads a file as one face crop."""

    def read(path: pathlib.Path) -> list[Crop]:
        return [Crop(path, sources.decode(sources.read_image(path), image_size))]

    return read


def photo_reader(geometry: detection.Geometry, image_size: int) -> Reader:
    """Reads a photo, and warps every face in it to the frame of the training images.

    Raises:
      UserError: no detector is installed.
    """
    find = face_finder(geometry, image_size)

    def read(path: pathlib.Path) -> list[Crop]:
        image = sources.decode_whole(sources.read_image(path))
        return [dataclasses.replace(crop, path=path) for crop in find(image)]

    return read


def face_finder(
    geometry: detection.Geometry, image_size: int
) -> Callable[[np.ndarray], list[Crop]]:
    """Finds the faces of photos uint8 [H, W, 3], and warps each to the frame of training images.

    Any number of threads may call it at once.

    Raises:
      UserError: no detector is installed.
    """
    detection.Detector.installed()  # now, and not in a thread
    of_thread = threading.local()  # a detector is not for several threads at once

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


def choose_reader(
    faces: str, run: Run, calibration: Calibration | None, paths: Sequence[pathlib.Path]
) -> tuple[Reader, str | None]:
    """Chooses how to read images, as crops or as photos, and what to tell the user about it.

    Args:
      faces: "crops", "detect", or "auto": photos where a detector is installed and the first images
        are framed otherwise than the training images.

    Returns:
      (the reader, a line about a choice that was made or about what may spoil the ages, if any).

    Raises:
      UserError: "detect", and there is no detector, or the frame of the training images is unknown.
    """
    size = run.config.data.image_size
    if faces == "detect":
        return photo_reader(known_geometry(run.workdir, run.step), size), None
    geometry = calibration.geometry if calibration else None
    crops = crop_reader(size)
    if faces == "auto" and geometry is not None and detection.Detector.if_installed() is None:
        return crops, (
            "no face detector is installed, so each image is taken as a crop of a face; to find "
            f"the faces of photos: {detection.REMEDY}"
        )
    warning = detection.frame_warning(readable(paths[: detection.CHECKED], crops), geometry)
    if warning is None:
        return crops, None
    if faces == "crops":
        return crops, f"{warning}; if they are photos, use --faces=detect"
    assert geometry is not None
    note = "looking for faces in photos; if each image is one face, use --faces=crops"
    return photo_reader(geometry, size), note


def readable(paths: Iterable[pathlib.Path], read: Reader) -> Iterator[np.ndarray]:
    """The images of the files that can be read; the others are passed over."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            yield from (crop.image for crop in read(path))
