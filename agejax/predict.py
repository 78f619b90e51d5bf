"""python -m agejax.predict IMAGE_OR_FOLDER_OR_GLOB... [--workdir=RUN] [--faces=crops|detect]

Prints one line per face: path, age in years with an interval that contains the label 9 times in
10, and the probability of each class. Without --workdir it uses the model that comes with agejax.

A model expects faces framed as in its training images. With --faces=crops, images are such crops;
with --faces=detect they are photos, whose faces are found and brought into that frame. By default,
where a face detector is installed, the framing of the images decides.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import shlex
import sys
import time
from collections.abc import Sequence

from agejax import files
from agejax.errors import UserError, one_line
from agejax.logging import console, progress
from agejax.paths import expand
from agejax.predicting import annotation, images, output, predictions
from agejax.predicting.model import open_model
from agejax.process import usage
from agejax.process.command import run_command
from agejax.runs import box
from agejax.runs.run import Run
from agejax.training import sharding


def introduction(run: Run) -> str:
    """A line about a released model and what its predictions mean."""
    return (
        f"model: {box.name_of(run.workdir)} ({run.config.model.name}), for research: an age is a "
        f"guess from one photo, and its errors by group are in {run.workdir / 'card.md'}"
    )


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument(
        "--workdir", default=box.BOX,
        help="the folder of a trained run, a released model or an ensemble, an exported file, or "
        "box:NAME; default: the model that comes with agejax",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("jsonl", "csv"), default="jsonl",
        help="JSON, one line per face, or a table; default: jsonl",
    )  # fmt: skip
    parser.add_argument(
        "--faces", choices=("auto", "crops", "detect"), default="auto",
        help="whether images are face crops, or photos to find the faces in; default: auto, "
        "decided by the framing of the images",
    )  # fmt: skip
    parser.add_argument("--output", help="a file to write to; default: stdout")
    parser.add_argument(
        "--annotate", metavar="DIR", help="a folder for copies of the images with boxes and ages"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="IMAGE_OR_FOLDER_OR_GLOB",
        help="what to predict; folders are searched with their subfolders",
    )  # fmt: skip
    args = parser.parse_args(argv[1:])
    paths = images.find_images(args.paths)
    if args.output is not None:
        files.check_file(expand(args.output), "--output")
    if args.annotate is not None:
        files.check_folder(expand(args.annotate), "--annotate")
        copies = annotation.places(paths, expand(args.annotate))
    sharding.start()
    model = open_model(args.workdir)
    counts = images.Counts()
    released = model.run is not None and box.is_release(model.run.workdir)
    if model.run is not None and released:
        console.note(introduction(model.run))
    if model.calibration is None:
        remedy = (
            f" yet; python -m agejax.evaluate --workdir={shlex.quote(str(model.name))} makes it"
        )
        console.note(
            f"no intervals: {model.name} has no calibration"
            + ("" if released or model.run is None else remedy)
        )
    read = images.choose_reader(args.faces, model, paths)
    batch_size = predictions.batch_size_of(len(paths), model)
    # Records that scroll over a terminal need no bar among them.
    counted = args.output is not None or not sys.stdout.isatty()

    def report(picture: images.Picture, found: int | Exception) -> None:
        counts.add(picture, found)
        if isinstance(found, Exception):
            console.note(one_line(f"skipped {picture}: {found}"))
        elif not found:
            console.note(one_line(f"no face in {picture}"))
        if counted:
            count.add()

    start = time.perf_counter()
    with (
        output.destination(args.output) as out,
        progress.Count("predicted", len(paths), "files") as count,
    ):
        faces = images.crops(paths, read, report)
        records = predictions.of_faces(model, faces, batch_size)
        if args.annotate is not None:
            records = annotation.annotated(records, copies)
        output.write(records, args.format, out)
        if counts.skipped == counts.files:
            raise UserError(f"none of the {len(paths)} file(s) is a readable image")
        if not counts.faces:
            raise UserError(f"no face found in {counts.files - counts.skipped} photo(s)")
    seconds = time.perf_counter() - start
    if counts.skipped:
        console.warning(
            f"{counts.skipped} of {counts.files} files could not be read and are named above"
        )
    if counts.faceless:
        console.warning(f"no face in {counts.faceless} of {counts.files} photos")
    if args.annotate is not None:
        console.note(f"images with boxes and ages are in {args.annotate}/")
    console.note(
        f"{counts.faces} face{'' if counts.faces == 1 else 's'} of {counts.files} "
        f"file{'' if counts.files == 1 else 's'}, {counts.skipped} skipped, "
        f"{counts.faces / seconds:,.1f} images/s"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
