"""python -m agejax.data.align --source=FACES --like=RUN --output=FOLDER

Copies an archive or folder of faces with every face framed like the run's training images. Each
public data set frames faces in its own way, and a model trained on one frame is wrong on another:
align the data before you evaluate on it or mix it. Tables and other files are copied unchanged. An
image that is unreadable or shows no face becomes an empty file: evaluate counts these by group.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import pathlib
import sys
import threading
from collections.abc import Sequence

import cv2
import numpy as np

from agejax import files, threads
from agejax.data import sources
from agejax.data.builders import archives
from agejax.errors import UserError
from agejax.evaluation.calibration import known_geometry
from agejax.faces import detection
from agejax.faces.geometry import Geometry
from agejax.logging import progress
from agejax.paths import expand
from agejax.process import usage
from agejax.process.command import run_command
from agejax.runs.ensembles import open_run

WORKERS = 4  # threads; the detector uses the cores itself
QUALITY = 95  # of JPEG


def align(
    source: pathlib.Path, geometry: Geometry, size: int, output: pathlib.Path
) -> dict[str, list[str]]:
    """Writes the largest face of every image to `output`, under the image's own path.

    An empty file stands for an image without a face, or an unreadable one: its name, or its row in
    a table, still has its labels, so that an evaluation counts it by group (`Source.undecoded`).

    Args:
      size: edge of the images written, pixels.

    Returns:
      {"aligned", "no face", "unreadable", "unsafe path": the paths inside}.

    Raises:
      UserError: no detector, a damaged archive, no image in it, or a full disk.
    """
    detection.Detector.installed()  # raise here, not in a thread
    done: dict[str, list[str]] = {"aligned": [], "no face": [], "unreadable": [], "unsafe path": []}
    of_thread = threading.local()

    def work(file: tuple[str, bytes | archives.Unread]) -> str:
        path, data = file
        target = (output / path).resolve()
        if not target.is_relative_to(output.resolve()):
            return "unsafe path"
        what, written = aligned(path, data)
        if written is not None:
            with files.disk(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(written)
        return what

    def aligned(path: str, data: bytes | archives.Unread) -> tuple[str, bytes | None]:
        """What a file is, and what to write in its place."""
        if archives.IMAGE.fullmatch(path) is None:
            return ("unreadable", None) if isinstance(data, archives.Unread) else ("", data)
        if isinstance(data, archives.Unread):
            return "unreadable", b""
        if not hasattr(of_thread, "detector"):
            of_thread.detector = detection.Detector.installed()
        try:
            image = sources.decode_whole(data)
        except ValueError:
            return "unreadable", b""
        crop = next((crop for _, crop in of_thread.detector.crops(image, geometry, size)), None)
        if crop is None:
            return "no face", b""
        return "aligned", _encoded(crop, pathlib.PurePath(path).suffix)

    images = archives.read(source, limit=archives.MAX_TABLE)
    with progress.Count("aligned", None, "files") as count:
        for (path, _), future in threads.ahead(work, images, WORKERS):
            done.get(future.result(), []).append(path)
            count.add()
    if not done["aligned"]:
        raise UserError(f"{source}: no face was found in any of its images")
    return done


def _encoded(image: np.ndarray, suffix: str) -> bytes:
    """Encodes uint8 RGB [S, S, 3] in the format of the file's ending."""
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY] if suffix.lower() in (".jpg", ".jpeg") else []
    _, data = cv2.imencode(suffix, image[:, :, ::-1], options)
    return data.tobytes()


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument("--source", required=True, help="the archive or folder of faces")
    parser.add_argument("--like", required=True, metavar="RUN", help="a run that was evaluated")
    parser.add_argument("--output", required=True, help="a new folder")
    parser.add_argument(
        "--size",
        type=usage.at_least(1),
        default=200,
        help="edge of the images, pixels; default: 200, as in UTKFace",
    )
    args = parser.parse_args(argv[1:])
    output, source = expand(args.output), expand(args.source)
    if output.exists():
        raise UserError(f"--output={output}: it exists already; name a new folder")
    if not source.exists():
        raise UserError(f"--source={args.source}: no such file or folder")
    files.check_folder(output, "--output")
    run = open_run(args.like)
    geometry = known_geometry(run.workdir, run.step)
    with files.new_folder(output) as folder:
        done = align(source, geometry, args.size, folder)
    for what, paths in done.items():
        some = ", ".join(paths[:10]) + (", ..." if len(paths) > 10 else "")
        print(f"{what}: {len(paths):,}" + (f" ({some})" if paths and what != "aligned" else ""))
    print(f"written to {output}/")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
