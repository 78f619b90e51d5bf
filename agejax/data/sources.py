"""A path the user has -> prepared once, decoded once: memory-mapped uint8 images and their labels."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

from agejax.data import builders, duplicates
from agejax.errors import UserError, check_keys

DECODER = 1  # raise it when the same file would decode to other pixels
MAX_PIXELS = 50_000_000  # of one image; more is a decompression bomb
REAL = ("age", "apparent_age", "apparent_age_std")
CLASSES = ("gender", "ethnicity")
WHOLE = 256 * 2**20  # a file up to this size is hashed whole, a larger one at both ends
CHUNK = 512  # images decoded together


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set ready for batches. Rows are in the order of `ids`.

    Attributes:
      images: uint8 [N, S, S, 3] RGB, memory-mapped.
      labels: age, apparent_age, apparent_age_std float32 [N] (NaN unknown); gender, ethnicity
        int32 [N] (-1 unknown).
      ids: str [N], sorted, unique.
      groups: int64 [N]; duplicates share a number.
      label_names: class names of the categorical labels.
      fingerprint: of the contents, wherever the files lie.
      skipped: "name: reason" of what could not be used.
    """

    name: str
    images: np.ndarray
    labels: dict[str, np.ndarray]
    ids: np.ndarray
    groups: np.ndarray
    label_names: dict[str, tuple[str, ...]]
    fingerprint: str
    skipped: tuple[str, ...]


def load(
    name: str,
    path: str | None,
    *,
    image_size: int,
    cache_dir: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """The data set `name` at `path`, prepared and decoded if the cache has not got it yet.

    An interrupted preparation is never taken for a finished one: it happens in a folder that gets
    its name at the end. Two processes that want the same data wait for each other.

    Args:
      path: the archive or folder the user downloaded; None: where the data set is usually put.
      image_size: edge of the decoded images, pixels.
      cache_dir: default $AGEJAX_CACHE or ~/.cache/agejax.
      options: the builder's own.

    Raises:
      UserError: an unknown data set or option, missing or damaged files, no usable image, or a full
        disk.
    """
    builder_class = builders.find(name)
    options = dict(options or {})
    check_keys(options, builder_class.option_names(), "config.data.options")
    place = builder_class.locate(path)
    cache = pathlib.Path(
        cache_dir or os.environ.get("AGEJAX_CACHE") or "~/.cache/agejax"
    ).expanduser()
    what = [name, str(builder_class.VERSION), sorted(options.items()), _digest(place)]
    records = cache / "records" / _key(what)
    decoded = cache / "decoded" / _key([*what, image_size, DECODER, duplicates.VERSION])
    with _disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        if not _is_whole(decoded):
            with _lock(cache / f"{decoded.name}.lock"):
                if not _is_whole(decoded):  # nobody else has done it in the meantime
                    builder = builder_class(source=place, data_dir=records, **options)
                    _decode(_prepared(builder), builder_class, image_size, decoded)
    return _open(name, decoded)


def decode(data: bytes, size: int) -> np.ndarray:
    """An encoded image as RGB uint8 [size, size, 3]: shorter side resized, centre cut out.

    Grey, CMYK and transparent images become RGB, as do rotations noted in EXIF.

    Raises:
      ValueError: not an image, damaged, or more than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("not a readable image") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("a damaged image")
    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale != 1:
        shape = (max(size, round(width * scale)), max(size, round(height * scale)))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, shape, interpolation=how)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return cv2.cvtColor(image[top : top + size, left : left + size], cv2.COLOR_BGR2RGB)


# ---- preparing -----------------------------------------------------------------------------------


def _prepared(builder: Any) -> Any:
    """The builder with its records on disk."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    if not pathlib.Path(builder.data_path).exists():
        print(f"preparing {builder.name} from {builder.source or 'its own drawings'}", flush=True)
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    return builder


def _decode(builder: Any, builder_class: Any, size: int, target: pathlib.Path) -> None:
    """Decodes all records into `target`, which appears whole or not at all."""
    from agejax.data.builders.base import SPLIT

    records = builder.as_data_source(split=SPLIT, decoders={"image": _no_decoding()})
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        folder = pathlib.Path(temporary)
        examples = [
            {
                k: v.decode() if isinstance(v, bytes) else v
                for k, v in record.items()
                if k != "image"
            }
            for record in records
        ]
        order = sorted(range(len(examples)), key=lambda i: examples[i]["id"])
        images = np.lib.format.open_memmap(
            folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(order), size, size, 3)
        )
        usable = np.ones(len(order), bool)
        skipped = list(builder.info.metadata.get("skipped", []))

        def decode_row(row: int) -> str | None:
            try:
                images[row] = decode(records[order[row]]["image"], size)
            except ValueError as error:
                usable[row] = False
                return f"{examples[order[row]]['id']}: {error}"
            return None

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(order), CHUNK):
                rows = range(start, min(start + CHUNK, len(order)))
                skipped += [line for line in pool.map(decode_row, rows) if line]
                _progress(f"decoding {builder.name} at {size} px", rows.stop, len(order))
        if not usable.any():
            raise UserError(f"{builder.source}: none of its images can be read; download it again")
        if not usable.all():
            kept = np.flatnonzero(usable)
            images[: len(kept)] = images[kept]
            short = np.lib.format.open_memmap(
                folder / "short.npy", mode="w+", dtype=np.uint8, shape=(len(kept), size, size, 3)
            )
            short[:] = images[: len(kept)]
            images = short
            os.replace(folder / "short.npy", folder / "images.npy")
        rows = [examples[i] for i, good in zip(order, usable, strict=True) if good]
        hints = [row["group"] for row in rows]
        if builder_class.FIND_DUPLICATES:
            groups = duplicates.groups(images, hints)
        else:
            groups = np.arange(len(rows))
        arrays = {
            **{k: np.array([row[k] for row in rows], np.float32) for k in REAL},
            **{k: np.array([row[k] for row in rows], np.int32) for k in CLASSES},
            "ids": np.array([row["id"] for row in rows]),
            "groups": groups,
        }
        np.savez(folder / "labels.npz", **arrays)
        images.flush()
        meta = {
            "label_names": builder_class.LABEL_NAMES,
            "skipped": skipped,
            "fingerprint": _contents(images, arrays),
            "bytes": (folder / "images.npy").stat().st_size,
        }
        (folder / "meta.json").write_text(json.dumps(meta))
        for file in folder.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(target, ignore_errors=True)  # a damaged one
        os.rename(folder, target)
        folder.mkdir()  # for TemporaryDirectory to remove
    if skipped:
        shown = "; ".join(skipped[:5]) + ("; ..." if len(skipped) > 5 else "")
        print(f"skipped {len(skipped)} of {builder.name}: {shown}", flush=True)


def _no_decoding() -> Any:
    import tensorflow_datasets as tfds

    return tfds.decode.SkipDecoding()


def _progress(what: str, done: int, total: int) -> None:
    if sys.stdout.isatty():
        print(f"\r{what}: {done:,}/{total:,}", end="\n" if done == total else "", flush=True)
    elif done == total:
        print(f"{what}: {total:,} images", flush=True)


# ---- the cache -----------------------------------------------------------------------------------


def _open(name: str, folder: pathlib.Path) -> Source:
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "labels.npz") as arrays:
        labels = {k: arrays[k] for k in (*REAL, *CLASSES)}
        ids, groups = arrays["ids"], arrays["groups"]
    return Source(
        name=name,
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=labels,
        ids=ids,
        groups=groups,
        label_names={k: tuple(v) for k, v in meta["label_names"].items()},
        fingerprint=meta["fingerprint"],
        skipped=tuple(meta["skipped"]),
    )


def _is_whole(folder: pathlib.Path) -> bool:
    """True where a decoded cache is there with all its bytes; says so where it is damaged."""
    if not folder.exists():
        return False
    try:
        meta = json.loads((folder / "meta.json").read_text())
        whole = (folder / "images.npy").stat().st_size == meta["bytes"]
        with np.load(folder / "labels.npz") as arrays:
            whole = whole and len(arrays["ids"]) > 0
    except (OSError, ValueError, KeyError):
        whole = False
    if not whole:
        print(f"the cache {folder} is damaged; preparing it again", flush=True)
    return whole


def _contents(images: np.ndarray, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    for start in range(0, len(images), CHUNK):
        digest.update(images[start : start + CHUNK].tobytes())
    return digest.hexdigest()


def _digest(place: pathlib.Path | None) -> str:
    """Of an archive's bytes, or of a folder's names, sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    if place is None:
        return ""
    try:
        if place.is_dir():
            for path in sorted(place.rglob("*")):
                stat = path.stat()
                line = f"{path.relative_to(place)} {stat.st_size} {stat.st_mtime_ns}\n"
                digest.update(line.encode())
            return digest.hexdigest()
        size = place.stat().st_size
        with place.open("rb") as file:
            digest.update(file.read(WHOLE if size <= WHOLE else WHOLE // 2))
            if size > WHOLE:
                file.seek(-WHOLE // 2, os.SEEK_END)
                digest.update(file.read())
        return f"{size}-{digest.hexdigest()}"
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error}") from error


def _key(parts: list[Any]) -> str:
    text = json.dumps(parts, default=str)
    return f"{parts[0]}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Held by one process at a time, and let go of when it dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _disk_errors(cache: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"disk full while preparing data in {cache}: free some space, or set "
                "config.data.cache_dir or $AGEJAX_CACHE to a larger disk"
            ) from error
        raise
