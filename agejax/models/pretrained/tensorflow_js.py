"""Reads TensorFlow.js weights: a JSON manifest, and the binary files that it names beside it.

The format is that of tfjs-converter's `weightsManifest`: the arrays of a group stand one after
another in its files. A quantised array holds whole numbers q that stand for q * scale + min.
"""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np

from agejax.errors import UserError
from agejax.models.pretrained.layout import Tensors

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "int32": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "bool": np.bool_,
}
MAX_MANIFEST = 2**26  # bytes; a graph without its weights is far smaller


def read(path: str) -> Tensors:
    """The arrays of a manifest by their names; quantised ones as float32.

    Raises:
      UserError: no manifest of TensorFlow.js, a file that it names is missing or of another size,
        or an array that is not of numbers. As of all readers, the message goes on after the file's
        name.
    """
    manifest_file = pathlib.Path(path)
    if manifest_file.stat().st_size > MAX_MANIFEST:
        raise UserError("is JSON, and too large for a manifest of TensorFlow.js")
    content = json.loads(manifest_file.read_text(encoding="utf-8"))
    manifest = content.get("weightsManifest") if isinstance(content, dict) else None
    if manifest is None:
        raise UserError("is JSON, but no model of TensorFlow.js: it has no weightsManifest")
    tensors: Tensors = {}
    for group in manifest:
        data = b"".join(_beside(manifest_file, name) for name in group["paths"])
        start = 0
        for entry in group["weights"]:
            name, shape = entry["name"], tuple(int(n) for n in entry["shape"])
            quantised = entry.get("quantization")
            stored = quantised["dtype"] if quantised else entry["dtype"]
            if stored not in DTYPES or min(shape, default=1) < 0:
                raise UserError(f"has {str(name)[:80]} in {str(stored)[:20]}, which is no weight")
            size = math.prod(shape) * np.dtype(DTYPES[stored]).itemsize
            if start + size > len(data):
                raise UserError(f"names files that end before {str(name)[:80]}; get them again")
            array: np.ndarray = np.frombuffer(data[start : start + size], DTYPES[stored]).reshape(
                shape
            )
            start += size
            if quantised and stored != "float16":
                scale, least = np.float32(quantised["scale"]), np.float32(quantised["min"])
                array = array.astype(np.float32) * scale + least
            tensors[name] = array
        if start != len(data):
            raise UserError("names files that are larger than their arrays; get them again")
    return tensors


def _beside(manifest: pathlib.Path, name: str) -> bytes:
    """A file in the manifest's own folder; a name that leads elsewhere is not followed."""
    if pathlib.PurePath(name).name != name:
        raise UserError(f"names a file in another folder: {str(name)[:80]}")
    path = manifest.with_name(name)
    if not path.is_file():
        raise UserError(f"needs {name}, which is not beside it; get both files")
    return path.read_bytes()
