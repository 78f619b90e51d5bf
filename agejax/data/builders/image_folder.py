"""Any folder or archive of images, with a CSV of labels, or without labels."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder, table, years
from agejax.errors import UserError

FILE = ("file", "file_name", "filename", "path", "image", "id")
AGES = ("age", "apparent_age", "apparent_age_std")
CLASSES = ("gender", "ethnicity")
MORE = ("split", "group")
SPLITS = ("", "train", "val", "test")


class ImageFolder(FaceBuilder):
    """Images and, in a CSV with a header, their labels.

    Its columns: the file's path or name (file, file_name, filename, path, image or id), and any of
    age, apparent_age, apparent_age_std (years), gender, ethnicity (names of classes), split (train,
    val, test) and group (what a split must not tear apart). Empty cells are unknown labels.
    """

    name = "image_folder"
    VERSION = tfds.core.Version("1.0.0")
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
        """labels: the CSV, a path inside the source or outside of it; "" for no labels.

        gender_names, ethnicity_names: of the classes in their order; (): those of the CSV, sorted.
        """
        self.labels = labels
        self.names: dict[str, tuple[str, ...]] = {
            "gender": tuple(gender_names),
            "ethnicity": tuple(ethnicity_names),
        }
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def faces(self) -> Iterator[Face]:
        rows = self._rows() if self.labels else {}
        self.info.metadata["label_names"] = {k: list(v) for k, v in self.names.items() if v}
        used: set[str] = set()
        for path, _, data in self.images():
            if not self.labels:
                yield Face(id=path, image=data)
                continue
            key = path if path in rows else path.rsplit("/", 1)[-1]
            if key not in rows:
                self.skipped.append(f"{path}: no row in {self.labels}")
            elif key in used:
                self.skipped.append(f"{path}: a second image for the row {key}")
            else:
                used.add(key)
                if isinstance(rows[key], str):
                    self.skipped.append(f"{path}: {rows[key]}")
                else:
                    yield Face(id=path, image=data, **rows[key])
        self.skipped += [f"{key}: no such image" for key in rows if key not in used]

    def _rows(self) -> dict[str, Any]:
        """File -> labels, or why the row is of no use.

        Raises:
          UserError: no such CSV, or one without the columns it needs.
        """
        where = f"config.data.options.labels: {self.labels}"
        outside = pathlib.Path(self.labels).expanduser()
        inside = self.files(r"(?:.*/)?.*\.csv")
        found = [d for p, d in inside.items() if p == self.labels or p.endswith("/" + self.labels)]
        if outside.is_file():
            found = [outside.read_bytes()]
        if len(found) != 1:
            raise UserError(f"{where} is {'ambiguous' if found else 'nowhere'} in {self.source}")
        cells = table(found[0], where, ())
        header = list(cells[0]) if cells else []
        file = next((name for name in FILE if name in header), None)
        if file is None:
            raise UserError(f"{where}: no column {', '.join(FILE)}; there are {', '.join(header)}")
        known = [name for name in header if name in (*AGES, *CLASSES, *MORE)]
        if not known:
            raise UserError(
                f"{where}: none of the columns {', '.join((*AGES, *CLASSES, *MORE))} in it"
            )
        for label in CLASSES:
            if not self.names[label]:
                self.names[label] = tuple(sorted({row.get(label, "") for row in cells} - {""}))
        rows: dict[str, Any] = {}
        for row in cells:
            try:
                labels: Any = self._labels(row)
            except ValueError as error:
                labels = str(error)
            if rows.setdefault(row[file], labels) != labels and not _same(rows[row[file]], labels):
                rows[row[file]] = "two rows with different labels"
        return rows

    def _labels(self, row: Mapping[str, str]) -> dict[str, Any]:
        """Raises ValueError for a cell that cannot be."""
        labels: dict[str, Any] = {name: years(row.get(name, "")) for name in AGES}
        for label in CLASSES:
            name = row.get(label, "")
            if name and name not in self.names[label]:
                raise ValueError(f"{label} {name!r} is not one of {', '.join(self.names[label])}")
            labels[label] = self.names[label].index(name) if name else -1
        labels |= {name: row.get(name, "") for name in MORE}
        if labels["split"] not in SPLITS:
            raise ValueError(f"split {labels['split']!r} is not train, val or test")
        return labels


def _same(one: Any, other: Any) -> bool:
    """Equal, where NaN equals NaN."""
    return repr(one) == repr(other)
