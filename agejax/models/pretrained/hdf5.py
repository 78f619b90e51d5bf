"""Reads Keras' weights: .h5 files of Keras 1, 2 and 3, and Keras 3's .weights.h5.

All get names of one scheme, "<layer>/<leaf>": the layer's own name, which may contain slashes
(Keras 2's MobileNetV3 has `expanded_conv_1/expand/BatchNorm`), and Keras 3's leaves:

    Conv2D, DepthwiseConv2D, Dense    kernel [h, w, in, out], [h, w, in, 1], [in, out]; bias
    SeparableConv2D                   depthwise_kernel [h, w, in, 1], pointwise_kernel, bias
    BatchNormalization                gamma, beta, moving_mean, moving_variance

In .weights.h5, layers of a nested model are named the same way, without the outer layer's name.
"""

from __future__ import annotations

import math
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import h5py
import numpy as np

from agejax.errors import UserError

if TYPE_CHECKING:
    from agejax.models.pretrained.layout import Tensors  # slow to import in the subprocess

CPU_SECONDS = 10  # to look through a file; a file of 2,000 arrays takes 1.3
SIGNATURE = b"\x89HDF\r\n\x1a\n"

# The meaning of `vars/0`, `vars/1`, ... in a .weights.h5, by the layer's class.
LEAVES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
VARIABLE = re.compile(r"(?:.+/)?layers/([^/]+?)(?:_\d+)?/vars/(\d+)")
# `block1_conv1_W_1:0` in Keras 1, whose format VGG's published weights still have.
KERAS_1 = re.compile(r".+_([Wb])(?:_\d+)?")
KERAS_1_LEAVES = {"W": "kernel", "b": "bias"}


def read(path: str) -> Tensors:
    """Reads the arrays of a Keras weights file by the names above.

    Raises:
      UserError: arrays that are not stored plainly in the file, names that do not follow Keras, or
        a file that crashes HDF5.
      OSError, RuntimeError, LookupError, ValueError: a damaged file.
    """
    probe_in_subprocess(path)
    with h5py.File(path, "r") as file:
        return {name: dataset[()] for name, dataset in datasets(file).items()}


def probe_in_subprocess(path: str) -> None:
    """Looks through the file in a subprocess, which a damaged file may crash or block.

    HDF5 follows some lists in a file without checking that they end, and then cannot be stopped.

    Raises:
      UserError: the subprocess crashed or ran out of time.
    """
    done = subprocess.run(
        [sys.executable, "-P", __file__, path, str(CPU_SECONDS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode < 0:
        raise UserError("is damaged: its HDF5 structure has no end; get it again")
    if done.returncode:
        raise AssertionError(done.stderr)


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """The datasets for `read`; reads no array yet."""
    stored: dict[str, h5py.Group | h5py.Dataset] = {}

    def keep(path: str, found: h5py.Group | h5py.Dataset) -> None:
        stored[path] = found

    file.visititems(keep)  # follows neither soft nor external links, and visits every object once
    root = "model_weights/" if "model_weights" in stored else ""
    top = stored["model_weights"] if root else file
    legacy = any(re.fullmatch(r"layer_names\d*", attribute) for attribute in top.attrs)
    found: dict[str, h5py.Dataset] = {}
    for name, dataset in _legacy(top, root, stored) if legacy else _modern(stored):
        if name in found:
            raise UserError(
                f"has {name} twice, from a model inside of a layer; save the weights with "
                "model.save_weights('x.weights.h5')"
            )
        if dataset.chunks or dataset.external or dataset.is_virtual:
            raise UserError(f"does not hold {name} plainly in itself; save it with Keras again")
        if dataset.dtype.kind not in "fiu":
            raise UserError(f"has {name} in {dataset.dtype}; save it in float32")
        found[name] = dataset
    if not found:
        raise UserError("is HDF5 without weights of Keras; name a .h5 or .weights.h5 file")
    # Shapes may claim any size. Keras does not compress, so the file's size is the limit.
    claimed = sum(math.prod(d.shape) * d.dtype.itemsize for d in found.values())
    if claimed > file.id.get_filesize():
        raise UserError("claims arrays larger than itself; get it again")
    return found


def _legacy(
    top: h5py.Group, root: str, stored: dict[str, h5py.Group | h5py.Dataset]
) -> Iterator[tuple[str, h5py.Dataset]]:
    for layer in _names(top, "layer_names"):
        if not isinstance(group := stored.get(root + layer), h5py.Group):
            raise UserError(f"does not hold {layer} itself; save it with Keras again")
        weights = _names(group, "weight_names")
        leaves = [_leaf(weight) for weight in weights]
        for weight, leaf in zip(weights, leaves, strict=True):
            dataset = stored.get(f"{root}{layer}/{weight}")
            if not isinstance(dataset, h5py.Dataset):
                raise UserError(f"does not hold {weight} itself; save it with Keras again")
            if leaf == "depthwise_kernel" and "pointwise_kernel" not in leaves:
                leaf = "kernel"  # Keras 2's DepthwiseConv2D
            yield f"{layer}/{leaf}", dataset


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names. Keras splits lists too long for one attribute: `layer_names0`, ..."""
    pieces = [attribute, *(f"{attribute}{i}" for i in range(len(group.attrs)))]
    return [name for piece in pieces if piece in group.attrs for name in _texts(group, piece)]


def _texts(group: h5py.Group, attribute: str) -> list[str]:
    """Reads an attribute that must be text: in a damaged file HDF5 can crash on other types."""
    stored = group.attrs.get_id(attribute)
    if math.prod(stored.shape) == 0:  # Keras stores empty lists as numbers
        return []
    if h5py.check_string_dtype(stored.dtype) is None:
        raise UserError(f"is damaged: {attribute} is not a text; get it again")
    values = np.ravel(group.attrs[attribute]).tolist()
    # Encoded first, since h5py returns bytes that are not text as lone surrogates.
    return [(v if isinstance(v, bytes) else v.encode()).decode() for v in values]


def _leaf(weight: str) -> str:
    leaf = weight.rsplit("/", 1)[-1].split(":")[0]
    keras_1 = KERAS_1.fullmatch(leaf)
    return KERAS_1_LEAVES[keras_1[1]] if keras_1 else leaf


def _modern(
    stored: dict[str, h5py.Group | h5py.Dataset],
) -> Iterator[tuple[str, h5py.Dataset]]:
    for path, dataset in stored.items():
        # Others belong to an optimizer or to random generators.
        match = VARIABLE.fullmatch(path)
        if match is None or not isinstance(dataset, h5py.Dataset):
            continue
        group = dataset.parent
        if "name" not in group.attrs:
            raise UserError("has layers without names; save it with a newer Keras")
        leaves = LEAVES.get(match[1], ())
        # One array less may mean a layer without bias, but in a norm it is ambiguous.
        plain = len(group) == len(leaves) or leaves[len(group) :] == ("bias",)
        leaf = leaves[int(match[2])] if plain else match[2]
        yield f"{_texts(group, 'name')[0]}/{leaf}", dataset


if __name__ == "__main__":
    seconds = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with h5py.File(sys.argv[1], "r") as opened:
            datasets(opened)
    except Exception:
        pass  # occurs again in the main process, which reports it
