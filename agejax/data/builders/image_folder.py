"""Any folder or archive of images, with a table of labels, labels as folders, or no labels."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from agejax.data.builders import archives, cells, pairing, pixels
from agejax.data.builders.base import Face, FaceBuilder, listed, table
from agejax.errors import UserError, check_keys
from agejax.paths import expand
from agejax.settings import Group, Setting

FILE = (
    *("file", "file_name", "filename", "path", "image", "img_name", "image_name", "img_path"),
    *("image_path", "filepath", "id"),
)
AGES = ("age", "apparent_age", "apparent_age_std")
CLASSES = ("gender", "ethnicity")
MORE = ("split", "group")
KNOWN = ("file", *AGES, *CLASSES, *MORE)
WHERE = "config.data.options"
FOUND = "labels.csv"  # the table that is read if none is named
NO_LABELS = "none"
ONE_NUMBER = re.compile(r"\D*(\d+)\D*")
PLAIN_NUMBER = re.compile(r"\d+(\.0*)?")

Row = dict[str, Any] | str  # the labels of a face, or why they are unusable


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with labels.

    Attributes:
      where: its name in messages.
      path: of the table.
      column_of: our name of a column -> the table's name.
    """

    where: str
    path: str
    data: bytes
    column_of: Mapping[str, str]

    def __iter__(self) -> Iterator[dict[str, str]]:
        """Yields the rows, with our column names."""
        for row in table(self.data, self.where, ()):
            yield {ours: row.get(theirs, "") for ours, theirs in self.column_of.items()}

    def count(self, columns: Sequence[str]) -> dict[str, Counter[str]]:
        """Column -> how often it has each cell."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in columns}
        there = [name for name in columns if name in self.column_of]
        for row in self if there else ():
            for name in there:
                counts[name][row[name]] += 1
        return counts


class ImageFolder(FaceBuilder):
    """Images and, in a CSV with a header, their labels.

    Its columns: the file's path or name (file, file_name, filename, path, image, id and the like),
    and any of age, apparent_age, apparent_age_std (years), gender, ethnicity (names of classes, or
    numbers from 0), split (train, val, test) and group (what a split must not separate). Cells that
    are empty, or hold NA, None, -1 and the like, are unknown labels. Rows that contradict each
    other are all skipped. A column of pixels holds the images themselves.
    """

    name = "image_folder"
    VERSION = tfds.core.Version("1.3.0")
    USUAL_NAMES = ("faces", "faces.zip", "faces.tar.gz")
    DOWNLOAD = "or collect images into a folder, a .zip or a .tar"

    OPTIONS = Group(
        "Options of image_folder.",
        labels=Setting(
            "",
            'The CSV: a path inside the source, or else outside of it; "": labels.csv, if the '
            'source has one; "none": no labels.',
        ),
        columns=Setting(
            {},
            'The names of the columns in the table, such as {"age": "Years", "gender": "Sex"}; a '
            'column called "" is not read.',
        ),
        folders=Setting(
            "",
            'What the folders above an image mean, the nearest last, such as "age" or '
            '"split/gender"; "*" stands for a folder that means nothing. A table\'s labels come '
            "first.",
        ),
        gender_names=Setting(
            ("male", "female"),
            "Classes in their order, an empty name for a number that is not a class; (): those of "
            "the CSV, sorted, or its numbers.",
            item=str,
        ),
        ethnicity_names=Setting((), "As gender_names.", item=str),
    )

    def __init__(self, **kwargs: Any) -> None:
        options = self.OPTIONS.defaults() | kwargs
        self.labels = options["labels"]
        self.columns = dict(options["columns"])
        self.folders = tuple(options["folders"].split("/")) if options["folders"] else ()
        check_keys(self.columns, KNOWN, f"{WHERE}.columns")
        for ours, theirs in self.columns.items():
            if not isinstance(theirs, str):
                raise UserError(f"{WHERE}.columns.{ours}: {theirs!r}; set it to a column's name")
        check_keys(self.folders, ("*", *KNOWN[1:]), f"{WHERE}.folders")
        self.names = {label: tuple(options[f"{label}_names"]) for label in CLASSES}
        super().__init__(**kwargs)

    @classmethod
    def also_reads(
        cls, options: Mapping[str, Any], source: pathlib.Path | None
    ) -> list[pathlib.Path]:
        outside = expand(options.get("labels") or ".")
        return [outside] if outside.is_file() else []

    @classmethod
    def person(cls, group: str) -> int:
        """A digest of a group's name; 0 for a plain number: each folder numbers its own people."""
        return 0 if PLAIN_NUMBER.fullmatch(group) else super().person(group)

    def faces(self) -> Iterator[Face]:
        labels = self._table()
        files = self.image_paths() if labels or self.folders else []
        rows = self._rows(labels) if labels and files else {}
        of_folders = self._of_folders(files)
        self._name_classes()
        pairs = pairing.pair(files, rows)
        if labels and rows and not pairs.row_of:
            if pairs.why_not:
                file, why = next(iter(pairs.why_not.items()))
                raise UserError(
                    f"{labels.where}: none of its {len(rows):,} rows matches exactly one image; "
                    f"{file}: {why}; write paths with their folders"
                )
            raise UserError(
                f"{labels.where}: none of its {len(rows):,} rows matches one of the {len(files):,} "
                f"images; a row is {next(iter(rows))!r}, an image is {files[0]!r}"
            )
        empty = True
        for path, _, data in self.images():
            empty = False
            row = of_folders.get(path, {})
            if labels and isinstance(row, dict):
                key = pairs.row_of.get(path)
                if key is None:
                    row = pairs.why_not.get(path, f"no row in {labels.path}")
                else:
                    row = _joined(row, rows[key])
            if isinstance(row, str):
                self.skipped.append(f"{path}: {row}")
            else:
                yield Face(id=path, image=data, **row)
        if empty:
            yield from self._of_pixels(labels)
        else:
            paired = {*pairs.row_of.values(), *pairs.doubtful}
            self.skipped += [f"{key}: no such image" for key in rows if key not in paired]

    def _table(self) -> Table | None:
        """The table that the user names, or `FOUND`.

        Raises:
          UserError: it is missing or not unique; or as `_read`.
        """
        if self.labels == NO_LABELS:
            return None
        if not self.labels:
            inside = self.files(rf"(?i:(?:.*/)?{re.escape(FOUND)})")
            if len(inside) > 1:
                self.report(f"{len(inside)} files {FOUND} in it; name one with {WHERE}.labels")
            if len(inside) != 1:
                return None
            ((path, data),) = inside.items()
            self.report(
                f"labels come from {path} in it; {WHERE}.labels='{NO_LABELS}' leaves it out"
            )
            return self._read(path, path, data)
        where = f"{WHERE}.labels: {self.labels}"
        inside = self.files(rf"(?:.*/)?{re.escape(self.labels)}")
        outside = expand(self.labels)
        if self.labels in inside:
            return self._read(where, self.labels, inside[self.labels])
        if not inside and outside.is_file():
            return self._read(where, self.labels, outside.read_bytes())
        if len(inside) != 1:
            found = f"{len(inside)} times" if inside else "nowhere"
            raise UserError(f"{where} is {found} in {self.source}")
        return self._read(where, self.labels, next(iter(inside.values())))

    def _read(self, where: str, path: str, data: bytes) -> Table:
        """Reads a table and identifies its columns; reports those it does not read on stderr.

        Raises:
          UserError: no rows, or a needed column is missing; the message names those found.
        """
        header = list(next(table(data, where, ()), ()))
        if not header:
            raise UserError(f"{where}: no rows in it; the first line names the columns")
        theirs = {name.lower(): name for name in reversed(header)}
        column_of = {name: theirs[name] for name in (*KNOWN, pixels.COLUMN) if name in theirs}
        if file := next((name for name in FILE if name in theirs), None):
            column_of["file"] = theirs[file]
        for ours, name in self.columns.items():
            column_of.pop(ours, None)
            if name and name.lower() not in theirs:
                raise UserError(
                    f"{WHERE}.columns: no column {name!r} in {where}; there are {listed(header)}"
                )
            if name:
                column_of[ours] = theirs[name.lower()]
        remedy = f"there are {listed(header)}; name yours with {WHERE}.columns, such as"
        if not column_of.keys() & {"file", pixels.COLUMN}:
            raise UserError(f"{where}: no column {', '.join(FILE)}; {remedy} {{'file': '...'}}")
        if not column_of.keys() & {*AGES, *CLASSES, *MORE}:
            raise UserError(
                f"{where}: none of the columns {', '.join((*AGES, *CLASSES, *MORE))} in it; "
                f"{remedy} {{'age': '...'}}"
            )
        used = [name for name in header if name in column_of.values()]
        if unread := [name for name in header if name not in used]:
            self.report(
                f"{where}: columns read: {listed(used)}; not read: {listed(unread)} "
                f"({WHERE}.columns)"
            )
        return Table(where, path, data, column_of)

    def _rows(self, labels: Table) -> dict[str, Row]:
        """File -> labels, or why the row is unusable.

        Raises:
          UserError: as `_learn`.
        """
        self._learn(labels)
        rows: dict[str, Row] = {}
        for number, row in enumerate(labels, 1):
            if not row.get("file"):
                self.skipped.append(f"row {number} of {labels.path}: no file")
                continue
            key, said = pairing.normal(row["file"]), self._labels(row)
            first = rows.setdefault(key, said)
            if first is not said and repr(first) != repr(said):  # by repr NaN equals NaN
                rows[key] = "two rows with different labels"
        return rows

    def _learn(self, labels: Table) -> None:
        """Names the classes of the table's columns, if the user has not.

        Raises:
          UserError: a column numbers its classes differently, or has unknown splits.
        """
        counts = labels.count((*CLASSES, "split"))
        for label in CLASSES:
            self._learn_classes(label, counts[label], labels.where)
        for text, count in counts["split"].items():
            try:
                cells.split_name(text)
            except ValueError as error:
                raise UserError(
                    f"{labels.where}: {error}, in {count:,} rows; write one of these, or do not "
                    f"read the column: {WHERE}.columns = {{'split': ''}}"
                ) from error

    def _learn_classes(self, label: str, found: Mapping[str, int], where: str) -> None:
        option = f"{WHERE}.{label}_names"
        if wrong := cells.miscounted(found, label, self.names[label], option):
            raise UserError(f"{where}: {wrong}")
        self.names[label] = self.names[label] or cells.class_names(found)

    def _name_classes(self) -> None:
        self.label_names = {
            label: tuple(filter(None, names)) for label, names in self.names.items() if any(names)
        }

    def _labels(self, row: Mapping[str, str]) -> Row:
        """The labels in a row's cells (by our names), or which cells are invalid."""
        try:
            labels: dict[str, Any] = {name: cells.years(row.get(name, "")) for name in AGES}
            for label in CLASSES:
                text = row.get(label, "")
                labels[label] = cells.class_number(text, label, self.names[label])
            labels["split"] = cells.split_name(row.get("split", ""))
        except ValueError as error:
            return str(error)
        group = row.get("group", "")
        return labels | {"group": "" if cells.is_unknown(group) else group}

    def _of_folders(self, files: Sequence[str]) -> dict[str, Row]:
        """Image -> the labels in the names of its folders."""
        if not self.folders:
            return {}
        levels = len(self.folders)
        above = {file: file.split("/")[:-1][-levels:] for file in files}
        said = {
            file: dict(zip(self.folders, names, strict=True))
            for file, names in above.items()
            if len(names) == levels
        }
        for row in said.values():
            if cells.BAND.fullmatch(row.get("age", "")):
                continue  # "60+" has only one number, too
            if number := ONE_NUMBER.fullmatch(row.get("age", "")):
                row["age"] = number[1]
        for label in set(CLASSES) & set(self.folders):
            found = Counter(row[label] for row in said.values())
            self._learn_classes(label, found, f"{WHERE}.folders")
        missing = f"not in folders {'/'.join(self.folders)}"
        return {file: self._labels(said[file]) if file in said else missing for file in files}

    def _of_pixels(self, labels: Table | None) -> Iterator[Face]:
        """The faces of tables that hold the pixels, used where there are no image files."""
        tables = [labels] if labels else []
        if not labels and self.labels != NO_LABELS:
            tables = [
                self._read(path, path, data)
                for path, data in self.files(r".*\.csv").items()
                if pixels.in_table(data)
            ]
        for held in tables:
            if pixels.COLUMN not in held.column_of:
                continue
            self._learn(held)
            self._name_classes()
            for number, row in enumerate(held, 1):
                name, said = row.get("file") or str(number), self._labels(row)
                try:
                    if isinstance(said, str):
                        raise ValueError(said)
                    mine = self.mine(name)
                    image = pixels.encoded(row[pixels.COLUMN]) if mine else archives.ELSEWHERE
                except ValueError as error:
                    self.skipped.append(f"{name}: {error}")
                    continue
                yield Face(id=name, image=image, **said)


def _joined(of_folders: dict[str, Any], of_table: Row) -> Row:
    """The labels of the table, completed by those of the folders."""
    if isinstance(of_table, str):
        return of_table
    known = {k: v for k, v in of_table.items() if v not in ("", -1) and v == v}  # v == v: not NaN
    return of_folders | known
