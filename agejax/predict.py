"""python -m agejax.predict --workdir=RUN IMAGE_OR_FOLDER... [--format=jsonl|csv]

One line an image on stdout: path, age in years, and the probability of each class.
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from agejax import heads, sharding
from agejax.data import sources
from agejax.data.pipeline import HostBatch
from agejax.errors import UserError, run_command
from agejax.run import Run

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
    """The files named, and all images below the folders named, sorted.

    Raises:
      UserError: a path that does not exist, or no image at all.
    """
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    if not found:
        raise UserError(f"no image ({', '.join(SUFFIXES)}) in {', '.join(paths)}")
    return found


def predict(run: Run, paths: Sequence[pathlib.Path], batch_size: int) -> Iterator[dict[str, Any]]:
    """One record an image that can be read; the others are named on stderr.

    Records hold path, age (years) and {target: {class: probability}}.
    """
    nothing = {head.label: np.zeros(0) for head in run.heads.values()}
    classes = heads.derive(run.heads, nothing, run.facts.label_names)[1]
    for start in range(0, len(paths), batch_size):
        readable, images = [], []
        for path in paths[start : start + batch_size]:
            try:
                images.append(sources.decode(path.read_bytes(), run.config.data.image_size))
                readable.append(path)
            except (OSError, ValueError) as error:
                print(f"skipped {path}: {error}", file=sys.stderr)
        if not images:
            continue
        predictions = run.predict([_pad(np.stack(images), batch_size)])
        for i, path in enumerate(readable):
            record: dict[str, Any] = {"path": str(path)}
            for name, values in predictions.items():
                if values.ndim == 1:
                    record[name] = round(float(values[i]), 2)
                else:
                    record[name] = {
                        c: round(float(p), 4) for c, p in zip(classes[name], values[i], strict=True)
                    }
            yield record


def write(records: Iterator[dict[str, Any]], form: str, out: TextIO) -> int:
    """Writes records as they come, as JSON lines or CSV; returns their number."""
    count, rows = 0, None
    for record in records:
        count += 1
        if form == "jsonl":
            out.write(json.dumps(record) + "\n")
            continue
        flat = {
            f"{key}_{name}" if name else key: value
            for key, item in record.items()
            for name, value in (item.items() if isinstance(item, dict) else [("", item)])
        }
        if rows is None:
            rows = csv.DictWriter(out, list(flat))
            rows.writeheader()
        rows.writerow(flat)
    out.flush()
    return count


def _pad(images: np.ndarray, batch_size: int) -> HostBatch:
    """A full batch, so that every call runs the one compiled program; padding has weight 0."""
    missing = batch_size - len(images)
    return {
        "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
        "weight": (np.arange(batch_size) < len(images)).astype(np.float32),
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m agejax.predict", description=__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    parser.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    parser.add_argument("paths", nargs="+", metavar="IMAGE_OR_FOLDER")
    args = parser.parse_args(argv[1:])
    paths = find_images(args.paths)
    sharding.start()
    run = Run.open(args.workdir)
    batch_size = min(run.config.eval.batch_size, -(-len(paths) // run.mesh.size) * run.mesh.size)
    start = time.perf_counter()
    count = write(predict(run, paths, batch_size), args.format, sys.stdout)
    if not count:
        raise UserError(f"none of the {len(paths)} file(s) is a readable image")
    rate = count / (time.perf_counter() - start)
    skipped = len(paths) - count
    print(f"{count} images, {skipped} skipped, {rate:,.0f} images/s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
