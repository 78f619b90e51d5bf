"""The splits of the benchmark facebase, as lists of names that config.data.split.files reads.

Paplhám & Franc, "A Call to Reflect on Evaluation Practices for Age Estimation", CVPR 2024. It
describes a data set by one JSON file, such as UTKFace.json: a list of images, each with "img_path"
and "folder", a number. Folders 0 to 9 make five splits, folders 0 to 2 make one.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from typing import Any

from agejax import files
from agejax.data.builders import pairing
from agejax.data.sources import Source
from agejax.errors import UserError, few

NOWHERE = -1  # the folder of images that the benchmark does not use
TEN_FOLDERS = tuple(
    {
        "train": {(first + i) % 10 for i in range(6)},
        "val": {(first + 6) % 10, (first + 7) % 10},
        "test": {(first + 8) % 10, (first + 9) % 10},
    }
    for first in (0, 2, 4, 5, 6)
)
THREE_FOLDERS = ({"train": {0}, "val": {1}, "test": {2}},)
CHIP = ".chip.jpg"  # UTKFace's ending of cropped faces; the benchmark names the whole photos

Split = dict[str, list[str]]  # split -> ids of the source


@dataclasses.dataclass(frozen=True)
class Splits:
    """The benchmark's splits of a data set.

    Attributes:
      folds: one dict per split of the benchmark, {"train" | "val" | "test": ids, sorted}.
      named: how many images the benchmark uses.
      left_out: how many of them are in no list, because the data lacks them or they are named
        twice.
    """

    folds: list[Split]
    named: int
    left_out: int


def read(path: pathlib.Path) -> list[tuple[str, int]]:
    """Reads a data set's JSON file: (path of the image, folder) of every image that is used.

    Raises:
      UserError: it is no such file, or its folders are neither 0 to 9 nor 0 to 2.
    """
    remedy = (
        "get the benchmark's JSON file of the data set; from a clone without Git LFS it is only a "
        "pointer"
    )
    entries = files.read_json(path, list, remedy)
    found = []
    for number, entry in enumerate(entries, 1):
        of = entry if isinstance(entry, dict) else {}
        name, folder = of.get("img_path"), of.get("folder")
        if not isinstance(name, str) or not name or type(folder) is not int:
            raise UserError(
                f"{path}, entry {number}: it needs an img_path and a folder, a whole number; "
                f"{remedy}"
            )
        if folder != NOWHERE:
            found.append((pairing.normal(name), folder))
    if not found:
        raise UserError(f"{path}: no image with a folder; {remedy}")
    return found


def splits(source: Source, path: pathlib.Path, leave_out: bool = False) -> Splits:
    """Finds the benchmark's splits in a data set.

    Args:
      path: the benchmark's JSON file of the data set.
      leave_out: leaves out images that the data lacks, and images that are named twice.

    Raises:
      UserError: as `read`, a split without images, or, unless `leave_out`, such images.
    """
    entries = read(path)
    ways = _ways({folder for _, folder in entries}, path)
    times = Counter(name for name, _ in entries)
    # An exact name comes before that of a chip.
    ids = sorted(source.ids.tolist(), key=lambda name: not name.endswith(CHIP))
    id_of = {name.removesuffix(CHIP): name for name in ids}
    pairs = pairing.pair(list(id_of), times)
    found = {row: id_of[name] for name, row in pairs.row_of.items()}

    twice = {name for name, count in times.items() if count > 1} | pairs.doubtful
    missing = times.keys() - found.keys() - twice
    if not leave_out:
        remedy = "; --leave_out writes the lists without them"
        if twice:
            raise UserError(
                f"{path}: {len(twice):,} names stand for more than one image, or twice for one, "
                f"such as {few(sorted(twice))}{remedy}"
            )
        if missing:
            raise UserError(
                f"{path}: {source.name} lacks {len(missing):,} of {len(times):,} images, such as "
                f"{few(sorted(missing))}; get the whole data set{remedy}, but figures on them "
                "do not compare with published ones"
            )
    usable = found.keys() - twice
    kept = [(found[name], folder) for name, folder in entries if name in usable]
    folds = [
        {
            split: sorted(name for name, folder in kept if folder in folders)
            for split, folders in way.items()
        }
        for way in ways
    ]
    for number, fold in enumerate(folds):
        for split, names in fold.items():
            if not names:
                raise UserError(
                    f"{path}: fold {number} has no image of {source.name} in its {split} split; "
                    "name the data set that this file describes"
                )
    return Splits(folds, len(times), len(times) - len(kept))


def _ways(folders: set[int], path: pathlib.Path) -> tuple[dict[str, set[int]], ...]:
    if folders <= {0, 1, 2}:
        return THREE_FOLDERS
    if folders <= set(range(10)):
        return TEN_FOLDERS
    others = few([str(folder) for folder in sorted(folders - set(range(10)))])
    raise UserError(
        f"{path}: folders {others}; the benchmark makes splits of folders 0 to 9, or 0 to 2"
    )


def write(splits: Splits, folder: pathlib.Path, about: dict[str, Any]) -> None:
    """Writes FOLDER/fold-0/train.txt and so on, and protocol.json with `about` and the counts."""
    for number, fold in enumerate(splits.folds):
        place = folder / f"fold-{number}"
        place.mkdir()
        for split, names in fold.items():
            files.write_text(place / f"{split}.txt", "".join(f"{name}\n" for name in names))
    counts = {"images": splits.named, "left_out": splits.left_out, "folds": len(splits.folds)}
    files.write_json(folder / "protocol.json", about | counts)
