"""python -m agejax.predict IMAGE_OR_FOLDER_OR_GLOB... [--workdir=RUN] [--faces=crops|detect]

One line per face: path, age in years with an interval that holds the truth 9 times in 10, and the
probability of each class. Without --workdir the model that comes with agejax is used.

A model knows faces as its training images frame them. With --faces=crops, images are such crops;
with --faces=detect they are photos, whose faces are found and brought into that frame. By default
the images themselves decide, where a face detector is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import io
import itertools
import json
import math
import pathlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from tqdm import tqdm

from agejax import heads, tables
from agejax.data import sources
from agejax.data.builders import archives
from agejax.data.builders.archives import SUFFIXES
from agejax.errors import UserError, one_line, run_command
from agejax.evaluation.calibration import Calibration, known_geometry
from agejax.faces import detection
from agejax.logging import records
from agejax.paths import expand
from agejax.runs import box
from agejax.runs.ensembles import open_run
from agejax.runs.run import Run
from agejax.training import sharding

if TYPE_CHECKING:
    from agejax.data.pipeline import HostBatch

WORKERS = 4  # threads that read and decode


@dataclasses.dataclass(frozen=True)
class Crop:
    """A face to predict.

    Attributes:
      image: uint8 [S, S, 3].
      where: which face of the photo, its box and the detector's score; {} of a crop.
    """

    path: pathlib.Path
    image: np.ndarray
    where: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Counts:
    """What became of the files."""

    files: int = 0
    skipped: int = 0
    faceless: int = 0
    faces: int = 0


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
    paths: Sequence[pathlib.Path], read: Callable[[pathlib.Path], list[Crop]], counts: Counts
) -> Iterator[Crop]:
    """The faces of every file that can be read, in order; the others are named on stderr.

    Files are read ahead by threads, a bounded number of them.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[tuple[pathlib.Path, Future[list[Crop]]]] = deque()
        progress = tqdm(total=len(paths), unit=" files", disable=not sys.stderr.isatty())
        rest = iter(paths)
        with progress:
            while True:
                for path in rest:
                    waiting.append((path, pool.submit(read, path)))
                    if len(waiting) >= 16 * WORKERS:
                        break
                if not waiting:
                    return
                path, future = waiting.popleft()
                counts.files += 1
                try:
                    found = future.result()
                    counts.faceless += not found
                    counts.faces += len(found)
                    yield from found
                except (OSError, ValueError) as error:
                    counts.skipped += 1
                    line = one_line(f"skipped {path}: {error}")
                    progress.write(line, file=sys.stderr)
                progress.update()


def readable(
    paths: Iterable[pathlib.Path], read: Callable[[pathlib.Path], list[Crop]]
) -> Iterator[np.ndarray]:
    """The images of the files that can be read; of the others nothing is said yet."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            yield from (crop.image for crop in read(path))


def crop_reader(image_size: int) -> Callable[[pathlib.Path], list[Crop]]:
    """Reads a file as one face crop."""

    def read(path: pathlib.Path) -> list[Crop]:
        return [Crop(path, sources.decode(sources.read_image(path), image_size))]

    return read


def photo_reader(
    geometry: detection.Geometry, image_size: int
) -> Callable[[pathlib.Path], list[Crop]]:
    """Reads a photo, and warps every face in it to the frame of the training images.

    Raises:
      UserError: no detector is installed.
    """
    detection.Detector.installed()  # now, and not in a thread
    of_thread = threading.local()  # a detector is not for several threads at once

    def read(path: pathlib.Path) -> list[Crop]:
        if not hasattr(of_thread, "detector"):
            of_thread.detector = detection.Detector.installed()
        detector: detection.Detector = of_thread.detector
        image = sources.decode_whole(sources.read_image(path))
        found = []
        for i, (face, crop) in enumerate(detector.crops(image, geometry, image_size)):
            box = [round(x, 1) for x in face.box]
            found.append(Crop(path, crop, {"face": i, "box": box, "score": round(face.score, 3)}))
        return found

    return read


def reader(
    faces: str, run: Run, calibration: Calibration | None, paths: Sequence[pathlib.Path]
) -> Callable[[pathlib.Path], list[Crop]]:
    """How to read images: as crops, or as photos. Reports on stderr what may spoil the ages.

    Args:
      faces: "crops", "detect", or "auto": photos where a detector is installed and the first images
        are framed otherwise than the training images.

    Raises:
      UserError: "detect", and there is no detector, or the frame of the training images is unknown.
    """
    size = run.config.data.image_size
    if faces == "detect":
        return photo_reader(known_geometry(run.workdir, run.step), size)
    geometry = calibration.geometry if calibration else None
    crops = crop_reader(size)
    if faces == "auto" and geometry is not None and detection.Detector.if_installed() is None:
        print(
            "no face detector is installed, so each image is taken as a crop of a face; to find "
            f"the faces of photos: {detection.REMEDY}",
            file=sys.stderr,
        )
        return crops
    warning = detection.frame_warning(readable(paths[: detection.CHECKED], crops), geometry)
    if warning is None:
        return crops
    if faces == "crops":
        print(f"{warning}; if they are photos, use --faces=detect", file=sys.stderr)
        return crops
    assert geometry is not None
    print("looking for faces in photos; if each image is one face, use --faces=crops",
          file=sys.stderr)  # fmt: skip
    return photo_reader(geometry, size)


def introduction(run: Run) -> str:
    """A line about a released model and what its answers are."""
    return (
        f"model: {box.name_of(run.workdir)} ({run.config.model.name}), for research: an age is a "
        f"guess from one photo, and its errors by group are in {run.workdir / 'card.md'}"
    )


def batch_size_of(images: int, run: Run) -> int:
    """Rows of a batch: a power of two per device, so that few numbers of images compile anew."""
    rows = 2 ** math.ceil(math.log2(max(images / run.mesh.size, 1))) * run.mesh.size
    return min(run.config.eval.batch_size, rows)


def predict(
    run: Run, faces: Iterable[Crop], batch_size: int, calibration: Calibration | None = None
) -> Iterator[dict[str, Any]]:
    """One record per face.

    Records hold path, age (years), with a calibration age_low and age_high (years) and calibrated
    probabilities, and {target: {class: probability}}.
    """
    nothing = {head.label: np.zeros(0) for head in run.heads.values()}
    classes = heads.derive(run.heads, nothing, run.facts.label_names)[1]
    for batch in _batches(faces, batch_size):
        said = run.predict([_pad(np.stack([crop.image for crop in batch]), batch_size)])
        intervals = calibration.intervals(said) if calibration else {}
        said = said | (calibration.probabilities(said) if calibration else {})
        for i, crop in enumerate(batch):
            record: dict[str, Any] = {"path": str(crop.path), **crop.where}
            for name, values in said.items():
                if values.ndim == 1:
                    record[name] = round(float(values[i]), 2)
                    if name in intervals:
                        low, high = intervals[name]
                        record[f"{name}_low"] = round(float(low[i]), 2)
                        record[f"{name}_high"] = round(float(high[i]), 2)
                else:
                    record[name] = {
                        c: round(float(p), 4) for c, p in zip(classes[name], values[i], strict=True)
                    }
            yield record


def write(lines: Iterator[dict[str, Any]], form: str, out: TextIO) -> None:
    """Writes records as they come, as JSON lines or CSV."""
    if form == "jsonl":
        for record in lines:
            out.write(json.dumps(record) + "\n")
    else:
        rows = map(_flat, lines)
        first = next(rows, None)
        if first is not None:
            tables.write(out, first, (row.values() for row in itertools.chain([first], rows)))
    out.flush()


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """{target: {class: probability}} as {target_class: probability}; the rest stays."""
    return {
        f"{key}_{name}" if name else key: value
        for key, item in record.items()
        for name, value in (item.items() if isinstance(item, dict) else [("", item)])
    }


@contextlib.contextmanager
def destination(path: str | None) -> Iterator[TextIO]:
    """A file to write to, or stdout. File names that are not UTF-8 come out as they are.

    The file is there once all is written, its folder too. A device or a pipe is written as it is.

    Raises:
      UserError: it cannot be written.
    """
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        yield sys.stdout
        return
    target = expand(path).resolve()
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    if target.exists() and not target.is_file():
        with records.disk(path), target.open("w", **options) as out:
            yield out
        return
    with records.disk(path):
        target.parent.mkdir(parents=True, exist_ok=True)
    with records.replacing(target) as file:
        out = io.TextIOWrapper(file, **options)
        yield out
        out.detach()  # flushes, and leaves the file open


def _batches(faces: Iterable[Crop], size: int) -> Iterator[list[Crop]]:
    batch: list[Crop] = []
    for face in faces:
        batch.append(face)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _pad(images: np.ndarray, batch_size: int) -> HostBatch:
    """A full batch, so that every call runs the one compiled program; padding has weight 0."""
    missing = batch_size - len(images)
    return {
        "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
        "weight": (np.arange(batch_size) < len(images)).astype(np.float32),
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m agejax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workdir", default=box.BOX,
        help="the folder of a trained run, a released model or an ensemble, or box:NAME; default: "
        "the model that comes with agejax",
    )  # fmt: skip
    parser.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    parser.add_argument(
        "--faces", choices=("auto", "crops", "detect"), default="auto",
        help="whether images are face crops, or photos to find the faces in",
    )  # fmt: skip
    parser.add_argument("--output", help="a file to write to; default: stdout")
    parser.add_argument("paths", nargs="+", metavar="IMAGE_OR_FOLDER_OR_GLOB")
    args = parser.parse_args(argv[1:])
    paths = find_images(args.paths)
    if args.output is not None:
        records.check_file(expand(args.output), "--output")
    sharding.start()
    run = open_run(args.workdir)
    counts = Counts()
    calibration = Calibration.read(run.workdir, run.step, run.config.eval.get("image_size", 0))
    if box.is_release(run.workdir):
        print(introduction(run), file=sys.stderr)
    if calibration is None:
        remedy = f"python -m agejax.evaluate --workdir={run.workdir} makes it"
        released = box.is_release(run.workdir)
        print(
            f"no intervals: {box.name_of(run.workdir)} has no calibration"
            + ("" if released else f" yet; {remedy}"),
            file=sys.stderr,
        )
    read = reader(args.faces, run, calibration, paths)
    batch_size = batch_size_of(len(paths), run)

    start = time.perf_counter()
    lines = predict(run, crops(paths, read, counts), batch_size, calibration)
    with destination(args.output) as out:
        write(lines, args.format, out)
        if counts.skipped == counts.files:
            raise UserError(f"none of the {len(paths)} file(s) is a readable image")
        if not counts.faces:
            raise UserError(f"no face found in {counts.files - counts.skipped} photo(s)")
    seconds = time.perf_counter() - start
    if counts.skipped:
        print(f"warning: {counts.skipped} of {counts.files} files could not be read and are named "
              "above", file=sys.stderr)  # fmt: skip
    if counts.faceless:
        print(f"warning: no face in {counts.faceless} of {counts.files} photos", file=sys.stderr)
    print(f"{counts.faces} faces of {counts.files} files, {counts.skipped} skipped, "
          f"{counts.faces / seconds:,.0f} images/s", file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
