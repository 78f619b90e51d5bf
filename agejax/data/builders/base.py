"""The base of all face data sets in tfds: the features of one face, and the shared builder."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import pathlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from agejax import tables
from agejax.data.builders import archives
from agejax.errors import UserError, one_line
from agejax.logging import console, progress
from agejax.paths import expand
from agejax.settings import Group

MANUAL = pathlib.Path("~/tensorflow_datasets/downloads/manual")
ANY = re.compile(r".*", re.DOTALL)
MAX_CELLS = 20_000_000  # of a table: rows times columns
DELIMITERS = (",", ";", "\t")  # between the columns of a table
ZIP, XLS = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"  # the first bytes of .xlsx (a zip) and .xls
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
OTHER_ENCODING = "text in another encoding than UTF-8: save it as CSV UTF-8"
LONGEST_HEADER = 2**16  # bytes
LONGEST_CELL = 2**24  # characters: one of grey pixels has some four for each, here of 2,048 x 2,048
SOME, WIDEST = 10, 24  # names that a message lists, and characters of each
SPLIT = "train"  # tfds' name for the one split of a data set that has no official ones


@dataclasses.dataclass(frozen=True)
class Face:
    """One example. `image` is an encoded file's bytes (JPEG, PNG, ...), ages are in years.

    `group` names what must stay on one side of a split (a person, for example); "" is a group of
    its own. A mixture joins equal groups of one data set, and equal names of people of several.
    Duplicates need no group: sources.py finds them by their pixels. `split` is the data set's own,
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


class FaceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg,misc]
    """A tfds builder of faces that needs no TensorFlow. A data set is a subclass with:

    - `name`, `VERSION`: raise the version when the same files would give other examples;
    - `LABEL_NAMES`: {"gender": (...), "ethnicity": (...)}, the names of the classes;
    - `faces()`, which yields each `Face`;
    - `USUAL_NAMES` and `DOWNLOAD`, where it reads files of the user's;
    - `OPTIONS`, where it has some of its own; their values are `self.options`.
    """

    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    FIND_DUPLICATES: ClassVar[bool] = True  # by their pixels, when the source is loaded
    NAMES_PEOPLE: ClassVar[bool] = False  # whether groups are names that other data sets use too
    USUAL_NAMES: ClassVar[Sequence[str]] = ()  # of the user's archive or folder; (): reads none
    DOWNLOAD: ClassVar[str] = ""  # what to get, and from where
    OPTIONS: ClassVar[Group] = Group("No options.")  # config.data.options

    def __init__(
        self, *, source: str | pathlib.Path | None = None, parts: int = 0, **kwargs: Any
    ) -> None:
        """`source`: the archive or folder to read, as `locate` returns it; `parts`: into how many
        parts the images are divided for Beam's workers; 0: this process reads all; and any of
        `OPTIONS`."""
        self.check_options({key: value for key, value in kwargs.items() if key in self.OPTIONS})
        self.options = {
            key: kwargs.pop(key, default) for key, default in self.OPTIONS.defaults().items()
        }
        self.source = None if source is None else pathlib.Path(source)
        self.skipped: list[str] = []  # "name: reason" of what `faces` could not use
        self.passed_over: Counter[str] = Counter()  # ending -> files that are not images
        self.packed: list[str] = []  # archives inside the source
        self.label_names = dict(self.LABEL_NAMES)  # `faces` may find others
        self.part, self.parts = 0, parts
        self._reader = dict(vars(self))  # what a worker needs: tfds' own state cannot be pickled
        super().__init__(**{"file_format": "array_record"} | kwargs)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raises `UserError` for unknown options or invalid values."""
        cls.OPTIONS.check(options, f"data set {cls.name}: config.data.options")

    @classmethod
    def locate(cls, path: str | None) -> pathlib.Path | None:
        """The files to read: `path`, or what the manual folder holds; None: none are needed.

        Raises:
          UserError: a path that does not exist, or nothing found; explains what to download and
            where to put it.
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
            "--source=PATH, in a training with --config.data.source=PATH"
        )

    @classmethod
    def also_reads(
        cls, options: Mapping[str, Any], source: pathlib.Path | None
    ) -> list[pathlib.Path]:
        """Files outside the source that the examples depend on, and whose change counts too."""
        return []

    def faces(self) -> Iterator[Face]:
        """Yields every usable face once, in any order; appends to `skipped` what is unusable.

        The image of a face that another worker reads is `archives.ELSEWHERE`.
        """
        raise NotImplementedError

    def mine(self, name: str) -> bool:
        """Whether this process reads the image of this name."""
        name_hash = zlib.crc32(name.encode(errors="surrogateescape"))
        return not self.parts or name_hash % self.parts == self.part

    @classmethod
    def person(cls, group: str) -> int:
        """A digest of a group's name, equal wherever the group is the same; 0 for ""."""
        if not group:
            return 0
        place = cls.name
        if cls.NAMES_PEOPLE:
            place, group = "people", "".join(filter(str.isalnum, _unaccented(group).casefold()))
        digest = hashlib.blake2b(f"{place}/{group}".encode(errors="replace"), digest_size=8)
        return int.from_bytes(digest.digest(), "big", signed=True) or 1

    def images(
        self,
        name: re.Pattern[str] = ANY,
        rule: str = "",
        *,
        inside: str = "",
        source: pathlib.Path | None = None,
    ) -> Iterator[tuple[str, re.Match[str], bytes]]:
        """Yields (path inside, match, bytes) of every image whose name matches `name`.

        The name is the file's without the ending of its image type. Images with other names are
        skipped as not following `rule`; of equal paths only the first is read. Pictures of other
        types are counted.

        Args:
          inside: what a path must contain to count at all.
          source: where to look; default: the builder's own source.
        """
        source = source or self.source
        assert source is not None
        seen: set[str] = set()
        for path, data in archives.read(
            source, lambda path: inside in path and self._is_image(path), mine=self.mine
        ):
            if path in seen:
                continue
            seen.add(path)
            short = path.rsplit("/", 1)[-1]
            match = name.fullmatch(short.rpartition(".")[0])
            if match is None:
                self.skipped.append(f"{short}: not named {rule}")
            elif isinstance(data, archives.Unread):
                self.skipped.append(f"{short}: {data}")
            else:
                yield path, match, data
        self.skipped += archives.to_convert(self.passed_over)
        if seen:
            self.skipped += [f"{path}: an archive in it, which is not read" for path in self.packed]

    def image_paths(self) -> list[str]:
        """The paths of all images in the source, in order; reads none."""
        assert self.source is not None
        found = archives.read(
            self.source,
            lambda path: archives.IMAGE.fullmatch(path) is not None,
            mine=lambda path: False,
        )
        return list(dict.fromkeys(path for path, _ in found))

    def report(self, what: str) -> None:
        """Prints a line on stderr, only once: all of Beam's workers read the same tables."""
        if self.part == self.parts:
            console.note(one_line(f"{self.name}: {what}"))

    def _is_image(self, path: str) -> bool:
        """Whether it is an image; counts the files that are not."""
        if archives.IMAGE.fullmatch(path):
            return True
        if archives.PACKED.fullmatch(path):
            self.packed.append(path)
        name, dot, ending = path.rsplit("/", 1)[-1].rpartition(".")
        self.passed_over[f".{ending.lower()}" if name and dot else "no ending"] += 1
        return False

    def files(self, pattern: str) -> dict[str, bytes]:
        """{path inside: contents} of the files whose path matches; for few files, such as tables.

        Raises:
          UserError: one is larger than `archives.MAX_TABLE`, or not a regular file.
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
            "image": tfds.features.Image(shape=(None, None, 3)),  # any encoding, stored unchanged
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
        from agejax.data.builders import on_beam  # Beam is optional

        self.part = self.parts  # no worker's part: sees all names and reads no image
        for _ in self.examples():
            pass
        self._unread = pathlib.Path(self.data_dir) / "unread.jsonl"
        return {SPLIT: on_beam.Examples(type(self), self._reader, self.parts, self._unread)}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with progress.Count(f"{self.name}: read", None) as count:
            for example in self.examples():
                yield example
                count.add()
        self._keep()

    def examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(id, features) of every face whose image is `mine`.

        Raises:
          UserError: there is no face at all.
        """
        seen: set[str] = set()
        for face in self.faces():
            if face.id in seen:  # for example in another folder; users find images by their ids
                self.skipped.append(f"{face.id}: a second image with this name")
                continue
            seen.add(face.id)
            if not isinstance(face.image, archives.Elsewhere):
                yield face.id, vars(face)
        if not seen:
            raise UserError(no_image(self.name, self.source, self.skipped, self._what_else()))

    def _what_else(self) -> str:
        """What the source holds besides images, and what to do about it."""
        if self.packed:
            return (
                f"it contains archives ({listed(self.packed)}): name one of them as the source, "
                "each as a part of config.data.mixture, or unpack them"
            )
        if self.source is not None and self.source.suffix.lower() == ".csv":
            return "it is a table: name the folder or archive of the images as the source"
        counts = [f"{count:,} {ending}" for ending, count in self.passed_over.most_common()]
        return f"it holds files of other types ({listed(counts)})" if counts else ""

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        known = set(self.skipped)  # every worker repeats what this process has reported
        for line in self._unread.read_text().splitlines():
            self.skipped += [skipped for skipped in json.loads(line) if skipped not in known]
        self._keep()

    def _keep(self) -> None:
        """Stores what was found besides the examples in the records' metadata."""
        metadata = self.info.metadata
        metadata["label_names"] = {label: list(names) for label, names in self.label_names.items()}
        metadata["skipped"] = self.skipped


def table(data: bytes, where: str, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the rows of a table with a header, cells stripped; a list would need far more memory.

    The delimiter is the one of `DELIMITERS` that occurs most often in the header. The apostrophe
    that our own tables put before what a spreadsheet would run is removed.

    Raises:
      UserError: an Excel file, not UTF-8, a needed column is missing, or more than `MAX_CELLS`.
    """
    if data.startswith((ZIP, XLS)):
        kind = "packed" if data.startswith(ZIP) and b"xl/" not in data else "an Excel file"
        raise UserError(f"{where} is {kind}: save it as CSV UTF-8")
    if data.startswith(UTF_16) or b"\0" in data[:2]:
        raise UserError(f"{where}: {OTHER_ENCODING}")
    lines = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    first = re.split(rb"[\r\n]", data[:LONGEST_HEADER], maxsplit=1)[0]
    delimiter = max(DELIMITERS, key=lambda mark: first.count(mark.encode()))
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))  # of the process: 2^17 before
    try:
        rows = csv.DictReader(lines, skipinitialspace=True, delimiter=delimiter)
        header = [" ".join(name.split()) for name in rows.fieldnames or ()]
        missing = [name for name in needed if name not in header]
        if missing:
            raise UserError(
                f"{where}: no column {', '.join(missing)}; there are {listed(header) or 'none'}"
            )
        rows.fieldnames = header
        for number, row in enumerate(rows, 1):
            if number * len(header) > MAX_CELLS:  # even in a short file: rows may leave out cells
                raise UserError(f"{where} has over {MAX_CELLS:,} cells; leave out columns or rows")
            yield {
                k: tables.original((v or "").strip()) for k, v in row.items() if isinstance(k, str)
            }
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {OTHER_ENCODING}") from error
    except csv.Error as error:
        raise UserError(f"{where} is not a CSV file: {error}") from error


def no_image(
    name: str, source: pathlib.Path | None, skipped: Sequence[str], what_else: str = ""
) -> str:
    """The message for a user whose files hold no usable image."""
    first = f", the first: {skipped[0]}" if skipped else ""
    return (
        f"{source or name}: no usable image for the data set {name!r} in it "
        f"({len(skipped)} skipped{first}); {what_else or 'is it the right archive or folder?'}"
    )


def listed(names: Sequence[str]) -> str:
    """The first few of a list, each shortened if it is long."""
    names = [name if len(name) <= WIDEST else f"{name[: WIDEST - 3]}..." for name in names]
    return ", ".join(names[:SOME]) + (f" and {len(names) - SOME} more" if len(names) > SOME else "")


def _unaccented(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
