"""From "a path the user has" to prepared, decoded, memory-mapped uint8 images with their labels.

A source is prepared once by its tfds builder into array_record, then decoded once per image size.
Both results are folders of the cache, named by a key of everything they depend on:

    CACHE/NAME/KEY-records/    what tfds wrote: encoded images and labels
    CACHE/NAME/KEY-128px/      images.u8 (uint8 [N, 128, 128, 3], raw), labels.npz, source.json
    CACHE/NAME/KEY-made-from.json   the KEY that a path of the user's had when it was last read
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import absl.logging
import cv2
import numpy as np
from PIL import Image

from agejax import files
from agejax.data import builders, duplicates
from agejax.data.builders import archives
from agejax.data.cache import cached
from agejax.data.mapped import MappedArray
from agejax.errors import DAMAGE, UserError, is_number, one_line, reason
from agejax.labels import LABELS
from agejax.logging import console, progress
from agejax.paths import cache_folder, expand

if TYPE_CHECKING:
    from agejax.data.builders.base import FaceBuilder

FORMAT = 3  # raise it when the same files would be decoded, grouped or kept differently
OF_ONE_REASON, LISTED = 3, 30  # lines about skipped files: for each reason, and in all
MAX_PIXELS = 50_000_000  # of one image
PARTS = 64  # into which the images are divided for the workers of a Beam pipeline
CHUNK = 64  # images that a thread decodes at a time


@dataclasses.dataclass(frozen=True)
class Source:
    """N decoded faces.

    Attributes:
      name: of the data set.
      images: uint8 [N, S, S, 3], RGB: mapped from a file, or gathered from mapped sources.
      labels: age, apparent_age, apparent_age_std float32 [N], years, NaN unknown; gender, ethnicity
        int32 [N], class numbers, -1 unknown.
      ids: str [N], the file's name, by which a user finds an image.
      groups: int64 [N]; images that show one picture share a number, the row of the first.
      label_names: the class names of gender and ethnicity, empty where the data has none.
      fingerprint: of the content (encoded images, labels, order, groups), not of its location.
      skipped: "name: reason" of every image that could not be used.
      undecoded: the known labels of each of these that could not be decoded: ages in years, classes
        by name. None: not recorded, as in caches of older versions.
      official: str [N], each image's split in the data set's own division, "" where it has none;
        None where the data set has no splits.
      people: int64 [N], a digest of the name of each image's group (a person, for example), 0
        where it has none: equal in every source with that group; None where there are no groups.
      photos: int64 [N]; as `groups`, but photos of one person are joined only if they are copies;
        None: not recorded, as in caches of older versions.
      part: of a mixture: int64 [N], which of `parts` a row is from.
      parts: of a mixture: part -> its share of the draws, in any unit; None: by the number of its
        training images, where a part with the mean number has a share of 1.
      train_only: of a mixture: bool [N], images that must not validate or test, such as those with
        pseudo-labels; None where there are none.
    """

    name: str
    images: np.ndarray | MappedArray | Gathered
    labels: dict[str, np.ndarray]
    ids: np.ndarray
    groups: np.ndarray
    label_names: dict[str, tuple[str, ...]]
    fingerprint: str
    skipped: tuple[str, ...]
    official: np.ndarray | None = None
    people: np.ndarray | None = None
    part: np.ndarray | None = None
    parts: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    train_only: np.ndarray | None = None
    undecoded: tuple[Mapping[str, float | str], ...] | None = None
    photos: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The images of rows int [B], uint8 [B, S, S, 3]."""
        if isinstance(self.images, np.ndarray):
            return np.take(self.images, rows, axis=0)
        return self.images[rows]

    @property
    def copies(self) -> np.ndarray:
        """Int64 [N], equal for copies of one photo: the row of the first of them."""
        if self.photos is not None:
            return self.photos
        if self.people is None:
            return self.groups
        return first_rows(np.where(self.people == 0, self.groups, -1 - np.arange(len(self.groups))))

    def shared(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Bool [R]: which of `rows` are among `others`, or share a group with one of them."""
        return np.isin(self.groups[rows], self.groups[others])

    def rows_in(self, fingerprint: str) -> tuple[Source, np.ndarray] | None:
        """Finds this source, one that it is a view of, or a part, by its fingerprint.

        Returns:
          (The source found, each of these images' row in it, int64 [N], -1 for those from
          elsewhere); None where these images were made from no such source.
        """
        if self.fingerprint == fingerprint:
            return self, np.arange(len(self.ids))
        if not isinstance(self.images, Gathered):
            return None
        source, rows = None, np.full(len(self.ids), -1)
        for i, each in enumerate(self.images.sources):
            if (found := each.rows_in(fingerprint)) is not None:
                source, mine = found[0], self.images.source == i
                rows[mine] = found[1][self.images.row[mine]]
        return None if source is None else (source, rows)

    def relabelled(
        self,
        labels: Mapping[str, np.ndarray],
        label_names: Mapping[str, tuple[str, ...]],
        change: object,
    ) -> Source:
        """The same images with other labels.

        Args:
          change: what decides the new labels, for the fingerprint.
        """
        rows = np.arange(len(self.ids))
        digest = hashlib.sha256(f"{self.fingerprint} {change}".encode()).hexdigest()
        return dataclasses.replace(
            self,
            images=Gathered((self,), np.zeros_like(rows), rows),
            labels=dict(labels),
            label_names=dict(label_names),
            fingerprint=digest[:16],
        )

    def select(self, rows: np.ndarray) -> Source:
        """A source of only these rows, int [M]; the images are not copied."""
        rows = np.asarray(rows, np.int64)
        fields = {name: v for name, v in vars(self).items() if name != "images"}
        columns = {name: v[rows] for name, v in fields.items() if isinstance(v, np.ndarray)}
        columns |= {
            name: first_rows(columns[name]) for name in ("groups", "photos") if name in columns
        }
        return dataclasses.replace(
            self,
            **columns,
            images=Gathered((self,), np.zeros(len(rows), np.int64), rows),
            labels={name: values[rows] for name, values in self.labels.items()},
            fingerprint=_key(self.fingerprint, hashlib.sha256(rows.tobytes()).hexdigest()),
        )


def first_rows(numbers: np.ndarray) -> np.ndarray:
    """Int [N] -> int64 [N]: for each row the first row with the same number."""
    _, first, which = np.unique(numbers, return_index=True, return_inverse=True)
    rows: np.ndarray = first[which].astype(np.int64)
    return rows


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Images of several sources by number: read only on request.

    Attributes:
      sources: the sources of the images.
      source: int64 [N], the source of image i.
      row: int64 [N], its row in that source.
    """

    sources: tuple[Source, ...]
    source: np.ndarray
    row: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.row), *self.sources[0].images.shape[1:])

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] of rows int [B]."""
        source, row = self.source[rows], self.row[rows]
        if len(self.sources) == 1:
            return self.sources[0].take(row)
        images = np.empty((len(row), *self.shape[1:]), np.uint8)
        for i in np.unique(source):
            images[source == i] = self.sources[i].take(row[source == i])
        return images


def load(
    name: str,
    path: str | None = None,
    *,
    image_size: int,
    cache_dir: str | None = None,
    options: Mapping[str, Any] | None = None,
    beam: Sequence[str] | None = None,
) -> Source:
    """Opens a data set; the first time, prepares and decodes it, with a line on stderr.

    If the files are gone, what was prepared from them is used, also with a line.

    Args:
      name: of a builder in `agejax.data.builders`.
      path: the user's archive or folder; None: the builder searches its usual place.
      image_size: S, the edge of the decoded images, pixels.
      cache_dir: default $AGEJAX_CACHE, else ~/.cache/agejax.
      options: the builder's options.
      beam: flags of the Apache Beam pipeline that prepares it; None: this process prepares it.

    Raises:
      UserError: unknown name or option, missing or damaged files, no usable image, a full disk.
    """
    builder = builders.find(name)
    path = path or None  # an empty one, as of an unset variable, is not the current folder
    options = _plain(options or {})
    builder.check_options(options)
    if image_size < 1:
        raise UserError(f"config.data.image_size: {image_size} is not 1 or more")
    made_by = (FORMAT, name, str(builder.VERSION), sorted(options.items()))
    given = path and str(expand(path).absolute())
    note = cache_folder(cache_dir) / name / f"{_key(*made_by, given)}-made-from.json"
    missing: UserError | None = None
    try:
        files = builder.locate(path)
        read = [files, *builder.also_reads(options, files)]
        key = _key(*made_by, *map(_stamp, read))
    except UserError as error:
        known = _recall(note)
        if known is None:
            raise
        missing, (key, files) = error, known
        console.note(f"{name}: {files} does not exist; the cache prepared from it is used")

    def prepare(folder: pathlib.Path) -> None:
        if missing is not None:
            raise missing
        console.note(f"{name}: preparing" + (f" {files}" if files else ""))
        _tfds(builder, folder, beam, source=files, **options)

    def decode_all(folder: pathlib.Path) -> None:
        def prepared(folder: pathlib.Path) -> Any:
            return _tfds(builder, folder, None, source=files, **options)

        examples = cached(f"{name}/{key}-records", prepare, prepared, cache_dir)
        place = cache_folder(cache_dir) / name / f"{key}-records"
        _decode_all(examples, folder, image_size, str(place))

    source = cached(f"{name}/{key}-{image_size}px", decode_all, _open, cache_dir)
    if missing is None and files is not None:
        _remember(note, key, files, [path for path in read if path is not None])
    return source


def read_image(path: pathlib.Path) -> bytes:
    """The contents of an image file, for `decode`.

    Raises:
      ValueError: a pipe or a device, which may never end, or a file larger than any photo.
      OSError: it cannot be read.
    """
    if not path.is_file():
        raise ValueError("not a file")
    if path.stat().st_size > archives.MAX_BYTES:
        raise ValueError(f"larger than {archives.MAX_BYTES >> 20} MB")
    return path.read_bytes()


def decode(data: bytes, image_size: int) -> np.ndarray:
    """Decodes an image of any format to uint8 [S, S, 3], RGB: the centre square, resized.

    Greyscale, CMYK, palette and 16-bit images are converted; EXIF orientation is applied.

    Raises:
      ValueError: not an image, a truncated one, or one of more than `MAX_PIXELS`.
    """
    return square(decode_whole(data), image_size)


def decode_whole(data: bytes) -> np.ndarray:
    """Decodes like `decode`, without cropping or resizing: uint8 [H, W, 3]."""
    if not data:
        raise ValueError("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as header:  # reads no pixels
            width, height = header.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("not an image that can be read") from error
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels are more than {MAX_PIXELS / 1e6:g} million; make it smaller"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ValueError("cannot be decoded") from error
    if image is None:
        raise ValueError("cannot be decoded")
    return image


def square(image: np.ndarray, size: int) -> np.ndarray:
    """Crops uint8 [H, W, 3] to its centre square, and resizes that to `size`."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    image = image[top : top + edge, left : left + edge]
    if edge == size:
        return image
    # cv2's INTER_AREA averages, so shrinking is antialiased.
    method = cv2.INTER_AREA if size < edge else cv2.INTER_CUBIC
    return cv2.resize(image, (size, size), interpolation=method)


# ------------------------------------------------------------------------- preparing and decoding


def _tfds(
    builder: type[FaceBuilder], folder: pathlib.Path, beam: Sequence[str] | None, **arguments: Any
) -> Any:
    """The random-access records of `builder` in `folder`, written there first if missing."""
    import tensorflow_datasets as tfds

    download = tfds.download.DownloadConfig()
    if beam is not None:
        from apache_beam.options.pipeline_options import PipelineOptions

        download.beam_options = PipelineOptions(list(beam))
        arguments["parts"] = PARTS

    tfds.disable_progress_bar()  # the builder has ours
    with _quiet():
        made = builder(data_dir=str(folder), **arguments)
        made.download_and_prepare(download_config=download)  # does nothing if already prepared
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences tfds' messages about downloads and about the folder it has just begun."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _decode_all(builder: Any, folder: pathlib.Path, image_size: int, place: str) -> None:
    """Writes images.u8, labels.npz and source.json to `folder`, from records in `place`."""
    import tensorflow_datasets as tfds

    from agejax.data.builders.base import SPLIT, no_image

    encoded = {"image": tfds.decode.SkipDecoding()}
    examples = builder.as_data_source(split=SPLIT, decoders=encoded)
    metadata = builder.info.metadata
    skipped, undecoded = list(metadata["skipped"]), []
    columns: dict[str, list[Any]] = {
        k: [] for k in (*LABELS, "id", "group", "split", "digest", "thumbnail")
    }
    start = time.monotonic()
    with (folder / "images.u8").open("wb") as file:
        decoded = _decoded(examples, image_size, place)
        with progress.Count(f"{builder.name}: decoded", len(examples)) as count:
            for image, row in decoded:
                count.add()
                if image is None:
                    skipped.append(f"{row['id']}: {row['error']}")
                    undecoded.append(_known_labels(row, metadata["label_names"]))
                    continue
                file.write(image.data)
                for name, values in columns.items():
                    values.append(row[name])
    skipped = [one_line(line) for line in skipped]
    ids = np.array(columns["id"])
    if not len(ids):
        raise UserError(no_image(builder.name, builder.source, skipped))

    thumbnails = np.stack(columns["thumbnail"]) if builder.FIND_DUPLICATES else None
    if thumbnails is not None:
        console.note(f"{builder.name}: searching for duplicates")
    photos = duplicates.groups(len(ids), thumbnails, [columns["digest"]])
    groups = duplicates.groups(len(ids), None, [photos.astype(str).tolist(), columns["group"]])
    labels = {name: np.array(columns[name], dtype) for name, dtype in LABELS.items()}
    official = np.array(columns["split"])
    people = np.array([builder.person(group) for group in columns["group"]], np.int64)
    arrays: dict[str, Any] = {"ids": ids, "groups": groups, "official": official} | labels
    arrays |= {"people": people, "photos": photos}
    np.savez(folder / "labels.npz", **arrays)
    facts = {
        "name": builder.name,
        "shape": [len(ids), image_size, image_size, 3],
        "label_names": metadata["label_names"],
        "skipped": skipped,
        "undecoded": undecoded,
        "fingerprint": _key(
            builder.name,
            metadata["label_names"],
            hashlib.sha256("\n".join((*columns["id"], *columns["digest"])).encode()).hexdigest(),
            *(hashlib.sha256(a.tobytes()).hexdigest() for a in (groups, *labels.values())),
        ),
    }
    (folder / "source.json").write_text(json.dumps(facts, indent=1))
    sizes = np.unique(photos, return_counts=True)[1]
    console.note(
        f"{builder.name}: {len(ids):,} images of {image_size} px in {time.monotonic() - start:.0f} "
        f"s; {(sizes > 1).sum():,} groups of duplicates with {sizes[sizes > 1].sum():,} images; "
        f"{len(skipped)} skipped" + "".join(f"\n  {line}" for line in listed(skipped))
    )


def listed(skipped: Sequence[str]) -> list[str]:
    """Lines about skipped files: a few for each reason, so that a common one hides no other.

    Args:
      skipped: "file: reason" of each. Reasons that differ in numbers only count as one.
    """
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for line in skipped:
        by_reason[re.sub(r"\d+", "#", line.partition(": ")[2])].append(line)
    lines = []
    for some in by_reason.values():
        lines += [f"skipped {line}" for line in some[:OF_ONE_REASON]]
        if len(some) > OF_ONE_REASON:
            lines.append(f"and {len(some) - OF_ONE_REASON:,} more for this reason")
    more = len(lines) - LISTED
    return lines if more <= 0 else [*lines[:LISTED], f"and {more:,} more lines"]


def _decoded(
    examples: Any, image_size: int, place: str
) -> Iterator[tuple[np.ndarray | None, dict[str, Any]]]:
    """Yields (image, the other columns) in order; image is None if it cannot be decoded.

    Raises:
      UserError: the records in `place` are damaged. Only records that were prepared before the
        cache had checksums can get this far.
    """

    def work(start: int) -> list[tuple[np.ndarray | None, dict[str, Any]]]:
        rows = range(start, min(start + CHUNK, len(examples)))
        try:
            found = examples.__getitems__(rows)
        except DAMAGE as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{place} is damaged ({reason}); remove it, and it is rebuilt"
            ) from error
        return [_decode_example(example, image_size) for example in found]

    workers = os.cpu_count() or 1
    window = 4 * workers * CHUNK  # bounds how many images wait to be written
    with ThreadPoolExecutor(workers) as pool:
        for begin in range(0, len(examples), window):
            starts = range(begin, min(begin + window, len(examples)), CHUNK)
            for chunk in pool.map(work, starts):
                yield from chunk


def _decode_example(
    example: Mapping[str, Any], image_size: int
) -> tuple[np.ndarray | None, dict[str, Any]]:
    row = {k: v.decode() if isinstance(v, bytes) else v for k, v in example.items() if k != "image"}
    try:
        image = decode_whole(example["image"])
    except ValueError as error:
        return None, row | {"error": error}
    row["digest"] = hashlib.blake2b(example["image"], digest_size=16).hexdigest()
    row["thumbnail"] = duplicates.thumbnail(image)
    return np.ascontiguousarray(square(image, image_size)), row


def _known_labels(
    row: Mapping[str, Any], label_names: Mapping[str, Sequence[str]]
) -> dict[str, float | str]:
    """The labels of an example that are known: ages in years, classes by name."""
    known: dict[str, float | str] = {}
    for label, dtype in LABELS.items():
        value = row[label]
        if np.dtype(dtype).kind == "i":
            if value >= 0:
                known[label] = label_names[label][int(value)]
        elif np.isfinite(value):
            known[label] = float(value)
    return known


def _open(folder: pathlib.Path) -> Source:
    """Opens a decoded folder; raises ValueError, KeyError or TypeError if its files disagree."""
    facts = json.loads((folder / "source.json").read_text())
    n, height, width, channels = facts["shape"]
    images = MappedArray(folder / "images.u8", (n, height, width, channels))
    with np.load(folder / "labels.npz") as arrays:
        columns = {name: arrays[name] for name in ("ids", "groups", "official", "people", *LABELS)}
        if "photos" in arrays:  # a cache of an older version has none
            columns["photos"] = arrays["photos"]
    kinds = {"ids": "U", "groups": "i", "official": "U", "people": "i", "photos": "i"} | {
        name: np.dtype(dtype).kind for name, dtype in LABELS.items()
    }
    for name, values in columns.items():
        if values.shape != (n,) or values.dtype.kind != kinds[name]:
            raise ValueError(f"labels.npz: {name} is {values.dtype} {list(values.shape)}")
    label_names = {label: tuple(names) for label, names in dict(facts["label_names"]).items()}
    texts = [facts["name"], facts["fingerprint"], *facts["skipped"]]
    if not all(isinstance(text, str) for text in (*texts, *sum(label_names.values(), ()))):
        raise ValueError("source.json: a number in place of a text")
    undecoded = facts.get("undecoded")
    if undecoded is None and not facts["skipped"]:
        undecoded = []  # an older version, which found nothing amiss
    if not (undecoded is None or isinstance(undecoded, list)):
        raise ValueError("source.json: undecoded is not a list")
    for label, value in (item for known in undecoded or () for item in dict(known).items()):
        if not (isinstance(value, str) if kinds[label] == "i" else is_number(value)):
            raise ValueError(f"source.json: a {label} of {value!r}")
    official, people = columns.pop("official"), columns.pop("people")
    return Source(
        name=facts["name"],
        images=images,
        ids=columns.pop("ids"),
        groups=columns.pop("groups"),
        official=official if (official != "").any() else None,
        people=people if people.any() else None,
        photos=columns.pop("photos", None),
        labels=columns,
        label_names=label_names,
        fingerprint=facts["fingerprint"],
        skipped=tuple(facts["skipped"]),
        undecoded=None if undecoded is None else tuple(undecoded),
    )


# --------------------------------------------------------------------------- where it was made from


def _plain(options: Any) -> dict[str, Any]:
    """Options as dicts in one order, so that a config and a command line name the same cache."""
    return {
        name: _plain(value) if hasattr(value, "items") else value
        for name, value in sorted(options.items())
    }


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def _stamp(files: pathlib.Path | None) -> Any:
    """A stamp that changes with the user's files, without reading them all; a move is no change."""
    if files is None:
        return None
    try:
        if files.is_dir():
            return sorted(_listing(files))
        state = files.stat()
        with files.open("rb") as file:
            digest = hashlib.sha256(file.read(2**20))
            file.seek(max(0, state.st_size - 2**20))
            digest.update(file.read())
        return state.st_size, state.st_mtime_ns, digest.hexdigest()
    except OSError as error:
        raise UserError(f"{files} cannot be read: {reason(error)}") from error


def _listing(folder: pathlib.Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of every file that a builder would find; reads none."""
    for inside, entry in archives.walk(folder):
        state = entry.stat(follow_symlinks=os.path.exists(entry.path))
        yield inside, state.st_size, state.st_mtime_ns


def _remember(
    note: pathlib.Path, key: str, place: pathlib.Path, read: Sequence[pathlib.Path]
) -> None:
    """Records the key under which the files at `place` were prepared, in case they are deleted."""
    stamps = {str(path.absolute()): _key(_stamp(path)) for path in read if path != place}
    value = {"key": key, "files": str(place.absolute()), "also": stamps}
    with contextlib.suppress(OSError, UserError):  # this user may only read the cache
        if not note.exists() or note.read_text() != json.dumps(value):
            files.write_text(note, json.dumps(value))


def _recall(note: pathlib.Path) -> tuple[str, pathlib.Path] | None:
    """The key and path of files that were prepared and are gone now.

    None if they are still there, or if another file that was read with them has changed.
    """
    try:
        known = json.loads(note.read_text())
        also = {pathlib.Path(path): stamp for path, stamp in known["also"].items()}
        if any(path.exists() and _key(_stamp(path)) != stamp for path, stamp in also.items()):
            return None
        key, place = str(known["key"]), pathlib.Path(known["files"])
    except (OSError, *DAMAGE):
        return None
    return None if place.exists() else (key, place)
