"""Any folder or archive of images, with a CSV of labels, or without labels."""

from __future__ import annotations

import pathlib
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder, table, years
from agejax.errors import UserError
from agejax.paths import expand

FILE = ("file", "file_name", "filename", "path", "image", "id")
AGES = ("age", "apparent_age", "apparent_age_std")
CLASSES = ("gender", "ethnicity")
MORE = ("split", "group")
SPLITS = ("", "train", "val", "test")
NUMBER = re.compile(r"([0-9]{1,3})(?:\.0+)?")  # of a class; spreadsheets write 1.0 for 1
UNKNOWN = ("", "-1", "-1.0")


class ImageFolder(FaceBuilder):
    """Images and, in a CSV with a header, their labels.

    Its columns: the file's path or name (file, file_name, filename, path, image or id), and any of
    age, apparent_age, apparent_age_std (years), gender, ethnicity (names of classes, or numbers
    from 0), split (train, val, test) and group (what a split must not tear apart). Empty cells are
    unknown labels. Rows that contradict each other are skipped, all of them.
    """

    name = "image_folder"
    VERSION = tfds.core.Version("1.1.0")
    USUAL_NAMES = ("faces", "faces.zip", "faces.tar.gz")
    DOWNLOAD = "or collect images into a folder, a .zip or a .tar"

    def __init__(
        self,
        *,
        labels: str = "",
        gender_names: Sequence[str] = ("male", "female"),
        ethnicity_names: Sequence[str] = (),
        **kwargs: object,
    ) -> None:
        """labels: the CSV, a path inside the source or else outside of it; "" for no labels.

        gender_names, ethnicity_names: of the classes in their order; (): those of the CSV, sorted,
        or "0", "1", ... up to its highest number.
        """
        self.labels = labels
        self.names: dict[str, tuple[str, ...]] = {}
        for label, names in {"gender": gender_names, "ethnicity": ethnicity_names}.items():
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise UserError(
                    f"config.data.options.{label}_names of image_folder: {names!r} is no list of "
                    "names"
                )
            self.names[label] = tuple(names)
        super().__init__(**kwargs)  # type: ignore[arg-type]

    @classmethod
    def also_reads(
        cls, options: Mapping[str, Any], source: pathlib.Path | None
    ) -> list[pathlib.Path]:
        outside = expand(options.get("labels") or ".")
        return [outside] if outside.is_file() else []

    def faces(self) -> Iterator[Face]:
        rows = self._rows() if self.labels else {}
        self.label_names = {label: names for label, names in self.names.items() if names}
        used: set[str] = set()
        for path, _, data in self.images():
            if not self.labels:
                yield Face(id=path, image=data)
                continue
            key = next((ending for ending in _endings(path) if ending in rows), None)
            if key is None:
                self.skipped.append(f"{path}: no row in {self.labels}")
            elif key in used:
                self.skipped.append(f"{path}: a second image for the row {key}")
            else:
                used.add(key)
                row = rows[key]
                if isinstance(row, str):
                    self.skipped.append(f"{path}: {row}")
                else:
                    yield Face(id=path, image=data, **row)
        self.skipped += [f"{key}: no such image" for key in rows if key not in used]

    def _rows(self) -> dict[str, dict[str, Any] | str]:
        """File -> labels, or why the row is of no use.

        Raises:
          UserError: no such CSV, or one without rows or the columns it needs.
        """
        where = f"config.data.options.labels: {self.labels}"
        data = self._csv()

        def cells() -> Iterator[dict[str, str]]:
            return ({k.lower(): v for k, v in row.items()} for row in table(data, where, ()))

        header = list(next(cells(), ()))
        if not header:
            raise UserError(f"{where}: no rows in it; the first line names the columns")
        file = next((name for name in FILE if name in header), None)
        if file is None:
            raise UserError(f"{where}: no column {', '.join(FILE)}; there are {', '.join(header)}")
        if not set(header) & {*AGES, *CLASSES, *MORE}:
            raise UserError(
                f"{where}: none of the columns {', '.join((*AGES, *CLASSES, *MORE))} in it"
            )
        for label in CLASSES:
            if label in header and not self.names[label]:
                self.names[label] = _names({row[label] for row in cells()})
        rows: dict[str, dict[str, Any] | str] = {}
        for number, row in enumerate(cells(), 1):
            if not row[file]:
                self.skipped.append(f"row {number} of {self.labels}: no {file}")
                continue
            key = posixpath.normpath(row[file].replace("\\", "/"))
            try:
                labels: dict[str, Any] | str = self._labels(row)
            except ValueError as error:
                labels = str(error)
            first = rows.setdefault(key, labels)
            if first is not labels and repr(first) != repr(labels):  # where NaN equals NaN
                rows[key] = "two rows with different labels"
        return rows

    def _csv(self) -> bytes:
        inside = self.files(rf"(?:.*/)?{re.escape(self.labels)}")
        outside = expand(self.labels)
        if self.labels in inside:
            return inside[self.labels]
        if not inside and outside.is_file():
            return outside.read_bytes()
        if len(inside) != 1:
            found = f"{len(inside)} times" if inside else "nowhere"
            raise UserError(
                f"config.data.options.labels: {self.labels} is {found} in {self.source}"
            )
        return next(iter(inside.values()))

    def _labels(self, row: Mapping[str, str]) -> dict[str, Any]:
        """Raises ValueError for a cell that cannot be."""
        labels: dict[str, Any] = {name: years(row.get(name, "")) for name in AGES}
        for label in CLASSES:
            labels[label] = class_number(row.get(label, ""), label, self.names[label])
        labels |= {name: row.get(name, "") for name in MORE}
        if labels["split"] not in SPLITS:
            raise ValueError(f"split {labels['split']!r} is not train, val or test")
        return labels


def _endings(path: str) -> Iterator[str]:
    """a/b/c.jpg, b/c.jpg, c.jpg: a CSV may leave out the folders that an archive begins with."""
    parts = path.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _names(found: set[str]) -> tuple[str, ...]:
    """The names of the classes in a column; numbers stay what they are."""
    names = sorted(found.difference(UNKNOWN))
    numbers = [int(match[1]) for name in names if (match := NUMBER.fullmatch(name))]
    if names and len(numbers) == len(names):
        return tuple(str(i) for i in range(max(numbers) + 1))
    return tuple(names)


def class_number(text: str, label: str, names: Sequence[str]) -> int:
    """The number of a class given by its name, in any case, or by its number; -1 for unknown.

    Raises:
      ValueError: no such class.
    """
    if text in names:
        return names.index(text)
    if text in UNKNOWN:
        return -1
    number = NUMBER.fullmatch(text)
    if number and int(number[1]) < len(names):
        return int(number[1])
    folded = [name.casefold() for name in names]
    if text.casefold() in folded:
        return folded.index(text.casefold())
    raise ValueError(f"{label} {text!r} is not one of {', '.join(names)}")
