"""Reads the arrays of a weights file. Runs no code from it; needs neither torch nor Keras."""

from __future__ import annotations

import io
import math
import os
import pathlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable

import ml_dtypes
import numpy as np
import safetensors

from agejax.errors import DAMAGE, UserError
from agejax.models.pretrained import foreign, hdf5, tensorflow_js, torch_file
from agejax.models.pretrained.layout import Tensors

SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# What DataParallel and torch.compile put before every key, and others inside keys.
WRAPPERS = ("module.", "_orig_mod.")
INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
KERAS_MEMBER = "model.weights.h5"
INFLATION = 16  # an archive may unpack to this many times its size: weights hardly compress


def check(path: str, where: str) -> None:
    """Raises `UserError` if there is no file at `path`; the message begins with `where`."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"{where} {foreign.not_a_file(pathlib.Path(path))}")


def read(path: str, where: str) -> Tensors:
    """Reads the arrays of a weights file by their names in it, in the file's order.

    The content shows the format: safetensors, torch.save (state dicts, alone or in a training
    checkpoint), .npz, Keras' .h5 and .keras, the JSON manifest of TensorFlow.js. Floats of any
    width become float32. The prefixes of torch's wrappers are removed from all keys, in any order.

    Args:
      where: how a message begins.

    Raises:
      UserError: no such file, or one that cannot be read safely and completely.
    """
    check(path, where)
    try:
        tensors = _reader(path)(path)
        if not tensors:
            raise UserError("holds no arrays; name the file that has the weights")
        return _unwrapped({name: _single(array) for name, array in tensors.items()})
    except UserError as error:
        raise UserError(f"{where} {_line(error)}") from error
    except (*DAMAGE, OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{where} is damaged ({_line(error)}); get it again") from error


def _reader(path: str) -> Callable[[str], Tensors]:
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if KERAS_MEMBER in names:
            return _read_keras
        return _read_npz if any(n.endswith(".npy") for n in names) else torch_file.read_zip
    # Checked first: safetensors begins with a length, which may look like anything. It ends in a
    # zero byte, which JSON never has.
    if start[7:] == b"\0{":
        return _read_safetensors
    if start.lstrip()[:1] in (b"{", b"["):
        return tensorflow_js.read
    if start.startswith(b"\x80"):
        return torch_file.read_legacy
    if start.startswith(hdf5.SIGNATURE):
        return hdf5.read
    raise UserError(foreign.format_of(pathlib.Path(path)))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _single(array: np.ndarray) -> np.ndarray:
    floating = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    with np.errstate(over="ignore"):  # values beyond float32 are refused later as not finite
        return array.astype(np.float32, copy=False) if floating else array


def _unwrapped(tensors: Tensors) -> Tensors:
    names = [INNER.sub("", name) for name in tensors]
    if len(set(names)) < len(names):
        names = list(tensors)
    while names and (prefix := next((p for p in WRAPPERS if names[0].startswith(p)), None)):
        if not all(name.startswith(prefix) for name in names):
            break
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def _read_safetensors(path: str) -> Tensors:
    tensors = {}
    for name, entry in safetensors.deserialize(pathlib.Path(path).read_bytes()):
        if entry["dtype"] not in SAFETENSORS:
            raise UserError(f"has {name} in {entry['dtype']}; save it in float32")
        values = np.frombuffer(entry["data"], SAFETENSORS[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def _read_keras(path: str) -> Tensors:
    """Reads the .h5 in Keras 3's archive of a whole model, and nothing else of the archive."""
    with zipfile.ZipFile(path) as archive, tempfile.NamedTemporaryFile(suffix=".h5") as file:
        if archive.getinfo(KERAS_MEMBER).file_size > INFLATION * os.path.getsize(path):
            raise UserError("holds far more than its own size; get it again")
        with archive.open(KERAS_MEMBER) as member:
            shutil.copyfileobj(member, file)
        file.flush()
        with open(file.name, "rb") as copy:
            if copy.read(8) != hdf5.SIGNATURE:
                raise UserError(
                    f"is an archive of Keras whose {KERAS_MEMBER} is not HDF5; save the model "
                    "again, or its weights with model.save_weights('x.weights.h5')"
                )
        return hdf5.read(file.name)


def _read_npz(path: str) -> Tensors:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = os.path.getsize(path)
        # zipfile allocates as much memory as a member claims to need, compressed or not.
        if sum(m.file_size for m in members) > INFLATION * size:
            raise UserError("holds far more than its own size; get it again")
        if sum(m.compress_size for m in members) > size:
            raise UserError("has members that are larger than itself")
        return {
            member.filename.removesuffix(".npy"): _npy(archive.read(member), member.filename)
            for member in members
        }


def _npy(data: bytes, name: str) -> np.ndarray:
    """Reads one array of an archive. numpy's own reader trusts the shape before the values."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"has {name} in version {version} of .npy; save it again")
    header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, fortran, dtype = header(file)
    if dtype == np.dtype("V2"):  # how numpy stores bfloat16
        dtype = np.dtype(ml_dtypes.bfloat16)
    if dtype.kind not in "fiub" and dtype != ml_dtypes.bfloat16:
        raise UserError(f"has {name} in {dtype}, which is not a type of weights; leave it out")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise UserError(f"is damaged: the size of {name} is not its shape's; get it again")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(
        shape, order="F" if fortran else "C"
    )
