"""Reads TensorFlow.js weights: a JSON manifest, and the binary files that it names beside it.

The format is tfjs-converter's `weightsManifest`, for graph models and layers models: the arrays of
a group follow one another in the group's files. A quantised array holds whole numbers q that stand
for q * scale + min.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from agejax.errors import UserError
from agejax.models.pretrained.layout import Tensors

DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "int32": "<i4",
    "uint8": "u1",
    "uint16": "<u2",
    "bool": "?",
}
QUANTISED = ("float16", "uint8", "uint16")
MAX_AXES = 8
MAX_MANIFEST = 2**24  # bytes; a graph without its weights is far smaller


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a manifest: how its bytes are stored, and the real numbers they stand for."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float = 1.0
    least: float = 0.0

    @classmethod
    def of(cls, entry: Any) -> Entry:
        """Parses an entry; raises UserError if it describes no array of numbers."""
        name, shape, quantised = entry["name"], entry["shape"], entry.get("quantization")
        stored = quantised["dtype"] if quantised else entry["dtype"]
        if not isinstance(name, str):
            raise UserError(f"has an array without a name ({str(name)[:40]}); get it again")
        known: Any = QUANTISED if quantised else DTYPES
        if stored not in known:
            raise UserError(
                f"has {name[:80]} in {str(stored)[:20]}, which is not a type of weights"
            )
        if len(shape) > MAX_AXES or not all(type(n) is int and n >= 0 for n in shape):
            raise UserError(f"has {name[:80]} in the shape {str(shape)[:60]}; get it again")
        dtype = np.dtype(DTYPES[stored])
        if quantised and stored != "float16":
            scale, least = float(quantised["scale"]), float(quantised["min"])
            return cls(name, tuple(shape), dtype, scale, least)
        return cls(name, tuple(shape), dtype)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytes | memoryview) -> np.ndarray:
        """The array in these bytes; float32 if it is quantised to whole numbers."""
        array: np.ndarray = np.frombuffer(data, self.dtype).reshape(self.shape)
        if (self.scale, self.least) == (1.0, 0.0):
            return array
        with np.errstate(over="ignore", invalid="ignore"):  # `fit` refuses what is not finite
            return array.astype(np.float32) * np.float32(self.scale) + np.float32(self.least)


def read(path: str) -> Tensors:
    """Reads a manifest's arrays by name; arrays quantised to whole numbers become float32.

    Raises:
      UserError: no manifest of TensorFlow.js; a file that it names is missing, elsewhere or of
        another size; two arrays of one name; or an array that does not hold numbers. As in all
        readers, the message continues the file's name.
    """
    file = pathlib.Path(path)
    if file.stat().st_size > MAX_MANIFEST:
        raise UserError("is JSON, and too large for a TensorFlow.js model; name a weights file")
    content = json.loads(file.read_text(encoding="utf-8"))
    manifest = content.get("weightsManifest") if isinstance(content, dict) else None
    if manifest is None:
        raise UserError(
            "is JSON without the weightsManifest of a TensorFlow.js model; name a weights file"
        )
    tensors: Tensors = {}
    parts: set[pathlib.Path] = set()
    for group in manifest:
        entries = [Entry.of(entry) for entry in group["weights"]]
        data = memoryview(_data([_beside(file, name) for name in group["paths"]], entries, parts))
        for entry in entries:
            if entry.name in tensors:
                raise UserError(f"has {entry.name[:80]} twice; get it again")
            tensors[entry.name] = entry.array(data[: entry.size])
            data = data[entry.size :]
    return tensors


def _data(files: list[pathlib.Path], entries: list[Entry], parts: set[pathlib.Path]) -> bytes:
    """The bytes of a group's files; together they must be as long as its arrays.

    Args:
      parts: the files of all groups so far. Each belongs to one group: naming one file many times
        would fill the memory.
    """
    if len(set(files)) < len(files) or not parts.isdisjoint(files):
        raise UserError("names one file twice; get it again")
    parts.update(files)
    left = sum(file.stat().st_size for file in files)
    for entry in entries:
        if left < entry.size:
            raise UserError(f"names files that end before {entry.name[:80]}; get them again")
        left -= entry.size
    if left:
        raise UserError("names files that are larger than their arrays; get them again")
    return b"".join(file.read_bytes() for file in files)


def _beside(manifest: pathlib.Path, name: str) -> pathlib.Path:
    """A file in the manifest's own folder; a name that leads elsewhere is not followed."""
    if pathlib.PurePath(name).name != name or name == "..":
        raise UserError(f"names a file in another folder: {name[:80]}")
    path = manifest.with_name(name)
    if not path.is_file():
        raise UserError(f"needs {name[:80]}, which is not beside it; get both files")
    return path
