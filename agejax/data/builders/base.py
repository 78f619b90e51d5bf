"""What every face data set is to tfds: the features of one face, and the builder they share."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import json
import math
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from agejax.data.builders import archives
from agejax.errors import UserError
from agejax.paths import expand

MANUAL = pathlib.Path("~/tensorflow_datasets/downloads/manual")
IMAGE = re.compile(r".*\.(jpe?g|png|bmp|webp)", re.IGNORECASE | re.DOTALL)
MAX_CELLS = 20_000_000  # of a table: rows times columns
OLDEST = 120  # years; nobody in a photo is older
SPLIT = "train"  # tfds' name for the one split of a data set that has no official ones


@dataclasses.dataclass(frozen=True)
class Face:
    """One example. `image` is an encoded file's bytes (JPEG, PNG, ...), ages are in years.

    `group` names what must stay on one side of a split (a person, say); "" is a group of its own.
    Duplicates need none here: sources.py finds them by their pixels. `split` is the data set's own,
    train, val or test; "" where it has none.
    """

    id: str
    image: bytes
    age: float = math.nan
    gender: int = -1
    ethnicity: int = -1
    apparent_age: float = math.nan
    apparent_age_std: float = math.nan
    group: str = ""
    split: str = ""


class FaceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A tfds builder of faces that needs no TensorFlow. A data set is a subclass with:

    - `name`, `VERSION`: raise the version when the same files would give other examples;
    - `LABEL_NAMES`: {"gender": (...), "ethnicity": (...)}, the names of the classes;
    - `faces()`, which yields each `Face`;
    - `USUAL_NAMES` and `DOWNLOAD`, where it reads files of the user's;
    - options of its own as keyword-only arguments of `__init__`, the rest passed on.
    """

    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    FIND_DUPLICATES: ClassVar[bool] = True  # by their pixels, when the source is loaded
    USUAL_NAMES: ClassVar[Sequence[str]] = ()  # of the user's archive or folder; (): reads none
    DOWNLOAD: ClassVar[str] = ""  # what to get, and from where

    def __init__(
        self, *, source: str | pathlib.Path | None = None, parts: int = 0, **kwargs: Any
    ) -> None:
        """`source`: the archive or folder to read, as `locate` gives it; `parts`: of the images,
        each read by a worker of Beam's; 0: all by this process."""
        self.source = None if source is None else pathlib.Path(source)
        self.skipped: list[str] = []  # "name: reason" of what `faces` could not use
        self.label_names = dict(self.LABEL_NAMES)  # `faces` may find others
        self.part, self.parts = 0, parts
        self._reader = dict(vars(self))  # what a worker needs: tfds' own state does not travel
        super().__init__(**{"file_format": "array_record"} | kwargs)

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The keys of config.data.options that this data set knows, with their defaults."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        ours = ("source", "parts")
        own = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ours]
        return {p.name: p.default for p in own}

    @classmethod
    def locate(cls, path: str | None) -> pathlib.Path | None:
        """The files to read: `path`, or what the manual folder holds; None: none are needed.

        Raises:
          UserError: a path that does not exist, or nothing found: what to get and where to put it.
        """
        if not cls.USUAL_NAMES:
            if path is not None:
                raise UserError(
                    f"{path}: the data set {cls.name} reads no files; leave the source out"
                )
            return None
        manual = MANUAL if path is not None else expand(MANUAL)
        places = [manual / name for name in cls.USUAL_NAMES]
        if path is not None:
            places = [expand(path)]
        for place in places:
            if place.exists():
                return place
        what = f"{path} does not exist" if path is not None else f"no {cls.name} in {manual}"
        raise UserError(
            f"{what}: download {cls.DOWNLOAD}, then put it in {manual} or say where it is with "
            "--config.data.source=PATH"
        )

    @classmethod
    def also_reads(
        cls, options: Mapping[str, Any], source: pathlib.Path | None
    ) -> list[pathlib.Path]:
        """Files outside of the source that the examples depend on: a change of them is one too."""
        return []

    def faces(self) -> Iterator[Face]:
        """Every usable face once, in any order; appends to `skipped` what is not usable.

        The image of one that another worker reads is `archives.ELSEWHERE`.
        """
        raise NotImplementedError

    def mine(self, name: str) -> bool:
        """Whether the image of this name is in the part of them that this process reads."""
        name_hash = zlib.crc32(name.encode(errors="surrogateescape"))
        return not self.parts or name_hash % self.parts == self.part

    def images(
        self,
        name: re.Pattern[str] = IMAGE,
        rule: str = "",
        *,
        inside: str = "",
        source: pathlib.Path | None = None,
    ) -> Iterator[tuple[str, re.Match[str], bytes]]:
        """Yields (path inside, match, bytes) of every image whose name is as `name` says.

        Others are skipped, as not following `rule`; a second one of the same path too.

        Args:
          inside: what a path must contain to count at all.
          source: where to look; default: in the builder's own source.
        """
        source = source or self.source
        assert source is not None
        seen: set[str] = set()
        for path, data in archives.read(
            source,
            lambda path: inside in path and IMAGE.fullmatch(path) is not None,
            mine=self.mine,
        ):
            if path in seen:
                continue
            seen.add(path)
            short = path.rsplit("/", 1)[-1]
            match = name.fullmatch(short)
            if match is None:
                self.skipped.append(f"{short}: not named {rule}")
            elif isinstance(data, archives.Unread):
                self.skipped.append(f"{short}: {data}")
            else:
                yield path, match, data

    def files(self, pattern: str) -> dict[str, bytes]:
        """{path inside: contents} of the files whose path matches; few ones, such as tables.

        Raises:
          UserError: one is larger than `archives.MAX_TABLE`, or no file.
        """
        assert self.source is not None
        wanted = re.compile(pattern)
        found: dict[str, bytes] = {}
        for path, data in archives.read(
            self.source, lambda path: wanted.fullmatch(path) is not None, archives.MAX_TABLE
        ):
            if isinstance(data, archives.Unread):
                raise UserError(f"{self.source}: {path} is {data}")
            found[path] = data
        return found

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),  # any encoding, kept as it is
            "age": np.float32,
            "gender": np.int32,
            "ethnicity": np.int32,
            "apparent_age": np.float32,
            "apparent_age_std": np.float32,
            "id": tfds.features.Text(),
            "group": tfds.features.Text(),
            "split": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(
                label_names={k: list(v) for k, v in self.LABEL_NAMES.items()}
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if not self.parts:
            return {SPLIT: self._generate_examples()}
        from agejax.data.builders import on_beam  # which not everybody has

        self.part = self.parts  # nobody's: all names are seen and no image is read
        for _ in self.examples():
            pass
        self._unread = pathlib.Path(self.data_dir) / "unread.jsonl"
        return {SPLIT: on_beam.Examples(type(self), self._reader, self.parts, self._unread)}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self.examples()
        self._keep()

    def examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(id, features) of every face whose image is `mine`.

        Raises:
          UserError: there is no face at all.
        """
        seen: set[str] = set()
        for face in self.faces():
            if face.id in seen:  # in another folder, say; ids are what people know images by
                self.skipped.append(f"{face.id}: a second image of this name")
                continue
            seen.add(face.id)
            if not isinstance(face.image, archives.Elsewhere):
                yield face.id, vars(face)
        if not seen:
            raise UserError(no_image(self.name, self.source, self.skipped))

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        known = set(self.skipped)  # every worker says again what this process has seen
        for line in self._unread.read_text().splitlines():
            self.skipped += [skipped for skipped in json.loads(line) if skipped not in known]
        self._keep()

    def _keep(self) -> None:
        """Writes what was found beside the examples into the records' folder."""
        metadata = self.info.metadata
        metadata["label_names"] = {label: list(names) for label, names in self.label_names.items()}
        metadata["skipped"] = self.skipped


def table(data: bytes, where: str, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV file with a header, cells stripped; all together are far larger.

    Raises:
      UserError: not UTF-8, without one of the needed columns, or of more than `MAX_CELLS`.
    """
    lines = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    try:
        rows = csv.DictReader(lines, skipinitialspace=True)
        header = [" ".join(name.split()) for name in rows.fieldnames or ()]
        missing = [name for name in needed if name not in header]
        if missing:
            raise UserError(
                f"{where}: no column {', '.join(missing)}; there are {', '.join(header) or 'none'}"
            )
        rows.fieldnames = header
        for number, row in enumerate(rows, 1):
            if number * len(header) > MAX_CELLS:  # of a short file too: rows may leave out cells
                raise UserError(f"{where} has over {MAX_CELLS:,} cells; leave out columns or rows")
            yield {k: (v or "").strip() for k, v in row.items() if isinstance(k, str)}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} is no CSV file: {error}") from error


def years(text: str) -> float:
    """An age in years, NaN where the cell is empty.

    Raises:
      ValueError: no number, or an age that nobody has.
    """
    try:
        value = float(text) if text else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value) or value < 0 or value > OLDEST:
        raise ValueError(f"{text} is no age")
    return value


def no_image(name: str, source: pathlib.Path | None, skipped: Sequence[str]) -> str:
    """What to tell a user whose files hold no usable image."""
    first = f", the first: {skipped[0]}" if skipped else ""
    return (
        f"{source or name}: no usable image for the data set {name!r} in it "
        f"({len(skipped)} skipped{first}); is it the right archive or folder?"
    )
