"""Tables of labels and lists of names: for data sets, edits and splits."""

from __future__ import annotations

import datetime
import io
import math
import pathlib
import random
import zipfile
from collections.abc import Callable

import ml_collections
import numpy as np
import scipy.io

from agejax.config import default
from agejax.data import builders, edits, sources, splits
from agejax.data.builders.appa_real import COLUMNS
from agejax.data.builders.image_folder import AGES, CLASSES, FILE, MORE
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.heads import Facts
from experiments.fuzzing import Target
from experiments.fuzzing.images import jpeg
from experiments.fuzzing.mutations import encodable, mutated, text

IMAGES = [f"{i}.jpg" for i in range(6)]
CELLS = {
    "age": ("30", "4.5", "121", "-1", ""),
    "gender": ("male", "Female", "1", "0.0", "-1", "x", "999", ""),
    "ethnicity": ("Asian", "0", "17", "999", "-1", ""),
    "split": ("train", "val", "test", "dev", ""),
}
ROWS = 4 * 2**20 // 9 * b"0.jpg,30\n"
BOMBS = (
    b"file,age\n" + ROWS,  # takes time
    b"file,age\n" + 16 * ROWS,  # packs to almost nothing
    b"file,age%s\n" % (10_000 * b",x") + ROWS,  # most cells are left out
)
WHOLE = 0.2  # share of the inputs that are prepared and decoded too


def prepare(folder: pathlib.Path) -> Target:
    pictures = [jpeg(i) for i in range(len(IMAGES))]
    source = _source()

    def archive(path: pathlib.Path, files: dict[str, bytes], prefix: str = "") -> pathlib.Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, picture in zip(IMAGES, pictures, strict=True):
                packed.writestr(prefix.format(name), picture)
            for name, data in files.items():
                packed.writestr(name, data)
        return path

    def read(rng: random.Random, name: str, path: pathlib.Path, **options: object) -> bool:
        if rng.random() < WHOLE:
            cache = str(path.parent / "cache")
            loaded = sources.load(name, str(path), image_size=8, cache_dir=cache, options=options)
            Facts.of(loaded.labels, loaded.label_names)
            return not loaded.skipped
        builder = builders.find(name)(source=path, data_dir=path.parent, **options)
        if not list(builder.faces()) and not builder.skipped:
            raise UserError(f"{path}: no image")
        return not builder.skipped

    def image_folder(rng: random.Random, folder: pathlib.Path) -> bool:
        columns = (rng.choice(FILE), *rng.sample((*AGES, *CLASSES, *MORE), rng.randint(0, 4)))
        if rng.random() < 0.02:
            path = archive(folder / "x.zip", {"labels.csv": rng.choice(BOMBS)}, "{}")
            return read(rng, "image_folder", path, labels="labels.csv")
        data = _csv(rng, columns)
        if rng.random() < 0.3:
            labels = folder / "labels.csv"
            labels.write_bytes(data)
            path = archive(folder / "x.zip", {}, "{}")
            return read(rng, "image_folder", path, labels=str(labels))
        path = archive(folder / "x.zip", {"labels.csv": data}, "{}")
        return read(rng, "image_folder", path, labels="labels.csv")

    def appa_real(rng: random.Random, folder: pathlib.Path) -> bool:
        files = {
            "gt_avg_train.csv": _csv(rng, COLUMNS["gt_avg"]),
            "allcategories_train.csv": _csv(rng, COLUMNS["allcategories"]),
        }
        return read(rng, "appa_real", archive(folder / "x.zip", files, "train/{}_face.jpg"))

    def fairface(rng: random.Random, folder: pathlib.Path) -> bool:
        table = _csv(rng, ("file", "age", "gender", "race"), "train/{}")
        files = {"fairface_label_train.csv": table}
        return read(rng, "fairface", archive(folder / "x.zip", files, "train/{}"))

    def imdb_wiki(rng: random.Random, folder: pathlib.Path) -> bool:
        files = {"wiki_crop/wiki.mat": _mat(rng)}
        return read(rng, "imdb_wiki", archive(folder / "x.zip", files, "wiki_crop/17/{}"))

    def aaf(rng: random.Random, folder: pathlib.Path) -> bool:
        files = {
            f"aligned faces/{i:05}A3{i}.jpg": picture for i, picture in enumerate(pictures)
        } | {"image sets/train.txt": _names(rng, "0000{}A3{} 0")}
        return read(rng, "aaf", archive(folder / "x.zip", files, "other/{}"))

    def labels(rng: random.Random, folder: pathlib.Path) -> bool:
        path = folder / "labels.csv"
        columns = (rng.choice(FILE), *rng.sample((*AGES, *CLASSES), rng.randint(0, 3)))
        path.write_bytes(_csv(rng, columns))
        config = default().data.edits
        config.labels = str(path)
        edited = edits.apply(source, config)
        Facts.of(edited.labels, edited.label_names)
        return True

    def split_files(rng: random.Random, folder: pathlib.Path) -> bool:
        config = default().data.split
        files: dict[str, str] = {}
        for name in rng.sample(("train", "val", "test", ""), rng.randint(1, 3)):
            files[name] = str(folder / f"{len(files)}.txt")
            pathlib.Path(files[name]).write_bytes(_names(rng, "{}.jpg"))
        config.files = ml_collections.ConfigDict(files)
        splits.make(source, config)
        return True

    readers: tuple[Callable[[random.Random, pathlib.Path], bool], ...] = (
        *(image_folder, image_folder, appa_real, fairface, imdb_wiki),
        *(aaf, labels, labels, split_files),
    )

    def target(rng: random.Random, folder: pathlib.Path) -> bool:
        return rng.choice(readers)(rng, folder)

    return target


def _source() -> Source:
    """A source of labels only, with more rows than the tables."""
    n = 40
    real = {label: np.full(n, math.nan, np.float32) for label in AGES}
    classes = {label: np.zeros(n, np.int32) for label in CLASSES}
    return Source(
        name="made up",
        images=np.zeros((n, 2, 2, 3), np.uint8),
        labels=real | classes | {"age": np.arange(n, dtype=np.float32)},
        ids=np.array([f"{i}.jpg" for i in range(n)]),
        groups=np.arange(n),
        label_names={"gender": ("male", "female"), "ethnicity": ("Asian", "Other")},
        fingerprint="",
        skipped=(),
    )


def _csv(rng: random.Random, columns: tuple[str, ...], file: str = "{}") -> bytes:
    """A table of these columns, with odd cells, rows and bytes."""
    header = list(columns)
    if rng.random() < 0.2:
        header[rng.randrange(len(header))] = text(rng)
    if rng.random() < 0.1:
        header.append(rng.choice(header))
    rows = [header]
    for _ in range(rng.randint(0, 8)):
        cells = [file.format(rng.choice(IMAGES))]
        for column in columns[1:]:
            usual = CELLS.get(column, CELLS["age"])
            cells.append(rng.choice(usual) if rng.random() < 0.8 else text(rng))
        rows.append(cells[: rng.choice((len(cells), len(cells), 1, 0))] + ["x"] * rng.randint(0, 1))
    quote = rng.choice(("", "", "", '"'))
    newline = rng.choice(("\n", "\n", "\r\n", "\r", "\n\n"))
    lines = [rng.choice((",", ",", ",", ";", ", ")).join(f"{quote}{c}{quote}" for c in row)
             for row in rows]  # fmt: skip
    code = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    data = newline.join(lines).encode(code, errors="replace")
    return mutated(rng, data) if rng.random() < 0.3 else data


def _names(rng: random.Random, form: str) -> bytes:
    """Names, one per line."""
    numbers = [rng.randrange(12) for _ in range(rng.randint(0, 12))]
    lines = [form.format(i, i) if rng.random() < 0.9 else text(rng) for i in numbers]
    data = "\n".join(lines).encode(errors="replace")
    return mutated(rng, data) if rng.random() < 0.3 else data


def _mat(rng: random.Random) -> bytes:
    """wiki.mat, with odd numbers, shapes and bytes."""
    n = len(IMAGES)
    odd = (math.nan, math.inf, -math.inf, 0, -1, 1e18, 2.0)
    born = datetime.date(1960, 1, 1).toordinal() + 366

    def numbers(usual: float) -> np.ndarray:
        return np.array([usual if rng.random() < 0.8 else rng.choice(odd) for _ in range(n)])

    columns = {
        "dob": numbers(born),
        "photo_taken": numbers(2000),
        "full_path": np.array([[f"17/{name}"] for name in IMAGES], object).T,
        "gender": numbers(1.0),
        "name": np.array([[encodable(text(rng))] for _ in IMAGES], object).T,
        "face_score": numbers(2.0),
        "second_face_score": numbers(math.nan),
    }
    if rng.random() < 0.1:
        columns[rng.choice(tuple(columns))] = np.zeros(rng.randint(0, 2))
    if rng.random() < 0.02:
        columns["dob"] = np.zeros(8 * 2**20)
    packed = rng.random() < 0.5
    scipy.io.savemat(out := io.BytesIO(), {"wiki": columns}, do_compression=packed)
    return mutated(rng, out.getvalue()) if rng.random() < 0.6 else out.getvalue()
