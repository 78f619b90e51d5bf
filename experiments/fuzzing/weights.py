"""Weights files that are damaged, claim too much, or try to run code."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import pathlib
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import safetensors.numpy
from flax import nnx

from agejax.errors import UserError
from agejax.models import pretrained, registry
from agejax.models.pretrained.layout import fit
from experiments.fuzzing import Target
from experiments.fuzzing.mutations import changed_text, encodable, mutated

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch.save before 1.6
# Keys that match each library's rules; shapes are random.
KEYS = {
    "resnet18": ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "fc.bias"),
    "resnet50": (
        *("conv1_conv/kernel", "conv1_conv/bias", "conv1_bn/gamma", "conv1_bn/moving_mean"),
        *("conv1_bn/moving_variance", "predictions/bias"),
    ),
    "vgg16": ("block1_conv1/kernel", "fc1/kernel", "features.0.weight", "classifier.0.weight"),
    "mobilenet_v3_small": (
        *("features.0.0.weight", "conv_stem.weight", "Conv/kernel", "Conv/BatchNorm/gamma"),
        "expanded_conv/depthwise/kernel",
    ),
    "mobilenet_v1": (
        *("conv1.kernel", "conv1_bn/gamma", "conv_stem.weight", "conv1_bn/batchnorm_1/sub"),
        *("conv1/convolution/merged_input", "conv_dw_1/depthwise_kernel", "conv1_relu/Cast"),
        "conv_dw_1_bn/batchnorm_1/mul",
    ),
    "vit_ti16": (
        *("cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "embedding/kernel", "cls"),
        *("pos_embedding", "Transformer/posembed_input/pos_embedding"),
        *("Transformer/encoder_norm/scale", "Transformer/encoderblock/LayerNorm_0/scale"),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel",
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel",
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/value/kernel",
    ),
}
H5_SHARE = 0.12  # each is read by its own process
PART = "w.bin"  # the arrays of a TensorFlow.js model
Tensors = dict[str, np.ndarray]


class Malice:
    """An object that pickles into a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def prepare(folder: pathlib.Path) -> Target:
    shapes = {name: _shapes(name) for name in KEYS}
    hostile = _hostile(folder.parent / "outside" / "run")

    def target(rng: random.Random, folder: pathlib.Path) -> bool:
        model = rng.choice(tuple(KEYS))
        tensors = _tensors(rng, KEYS[model], shapes[model])
        data = _file(rng, tensors, hostile)
        path = folder / "weights"
        (folder / PART).write_bytes(b"".join(tensor.tobytes() for tensor in tensors.values()))
        path.write_bytes(data if rng.random() < 0.25 else mutated(rng, data))
        _, match = pretrained.identify(str(path), model)
        with contextlib.suppress(UserError):  # few files have all keys
            fit(match.tensors, match.layout, shapes[model], str(path))
        return True

    return target


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    model = nnx.eval_shape(lambda: registry.create(name, image_size=32, rngs=nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(model))
    return {"/".join(map(str, path)): tuple(v.get_value().shape) for path, v in flat}


def _tensors(
    rng: random.Random, keys: tuple[str, ...], shapes: dict[str, tuple[int, ...]]
) -> Tensors:
    """Some of the keys, some of them altered, with small arrays of any rank."""
    chosen = rng.sample(keys, rng.randint(1, len(keys)))
    chosen = [changed_text(rng, key) if rng.random() < 0.1 else key for key in chosen]
    small = [shape for shape in shapes.values() if np.prod(shape, dtype=int) < 2000]
    made = {}
    for key in chosen:
        shape = tuple(rng.choice((0, 1, 2, 3, 7)) for _ in range(rng.randint(0, 4)))
        if rng.random() < 0.5:
            shape = rng.choice(small)
        kind = rng.choice((np.float32, np.float32, np.float16, np.int64))
        made[encodable(key) or "x"] = np.ones(shape, kind)
    return made


def _file(rng: random.Random, tensors: Tensors, hostile: list[bytes]) -> bytes:
    """A file of any format, or with a pickle damaged behind the checksum, or hostile."""
    if rng.random() < H5_SHARE:
        return _hdf5(rng, tensors)
    match rng.randrange(7):
        case 0:
            return safetensors.numpy.save(tensors)
        case 1:
            named = {key.replace("\x00", ""): value for key, value in tensors.items()}
            save: Any = rng.choice((np.savez, np.savez_compressed))
            save(out := io.BytesIO(), **named)
            return out.getvalue()
        case 2 | 3:
            pickled = _state_dict(tensors)
            if rng.random() < 0.5:
                pickled = mutated(rng, pickled)
            return _torch_zip(pickled, tensors)
        case 4:
            parts = (MAGIC, 1001, {"little_endian": True})
            keys = [str(i) for i in range(len(tensors))]
            return b"".join(
                (
                    *(pickle.dumps(part, 2) for part in parts),
                    _state_dict(tensors),
                    pickle.dumps(keys, 2),
                    *(struct.pack("<q", t.size) + t.tobytes() for t in tensors.values()),
                )
            )
        case 5:
            return _tensorflow_js(rng, tensors)
    pickled = rng.choice(hostile)
    return _torch_zip(pickled, tensors) if rng.random() < 0.5 else pickled


def _tensorflow_js(rng: random.Random, tensors: Tensors) -> bytes:
    """A manifest of arrays in `PART`; some are called quantised."""
    weights = []
    for name, tensor in tensors.items():
        entry: dict[str, Any] = {"name": name, "shape": tensor.shape, "dtype": tensor.dtype.name}
        if rng.random() < 0.2:
            kind = rng.choice(("uint8", "uint16", "float16", "int32", None))
            scale = rng.choice((0.5, 1e300, float("nan"), "1", None))
            entry["quantization"] = {"dtype": kind, "scale": scale, "min": -1}
        weights.append(entry)
    paths = rng.choice(([PART], [PART], [PART, PART], [f"../{PART}"], [""], ["."], [".."]))
    return json.dumps({"weightsManifest": [{"paths": paths, "weights": weights}]}).encode()


def _torch_zip(pickled: bytes, tensors: Tensors) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for i, tensor in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{i}", tensor.tobytes())
    return out.getvalue()


def _state_dict(tensors: Tensors) -> bytes:
    """The pickle of a state dict, as torch.save writes it."""
    kinds = {"float32": "Float", "float16": "Half", "int64": "Long"}

    def unicode(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    items = b""
    for i, (name, tensor) in enumerate(tensors.items()):
        kind = kinds[tensor.dtype.name].encode()
        strides = tuple(step // tensor.itemsize for step in tensor.strides)
        items += (
            unicode(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + unicode("storage")
            + b"ctorch\n" + kind + b"Storage\n" + unicode(str(i)) + unicode("cpu")
            + b"J" + struct.pack("<i", tensor.size) + b"tQK\0" + numbers(tensor.shape)
            + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
        )  # fmt: skip
    return b"\x80\x02}(" + items + b"u."


def _hdf5(rng: random.Random, tensors: Tensors) -> bytes:
    """A file as Keras 2 or 3 writes it, at times with a link or an array without its data."""
    layers: dict[str, Tensors] = {}
    for i, tensor in enumerate(tensors.values()):
        layers.setdefault(f"layer_{i % 3}", {})[rng.choice(("kernel", "bias", "gamma"))] = tensor
    with h5py.File(out := io.BytesIO(), "w", track_order=rng.random() < 0.5) as file:
        if rng.random() < 0.5:
            file.attrs["layer_names"] = [layer.encode() for layer in layers]
            for layer, leaves in layers.items():
                group = file.create_group(layer)
                group.attrs["weight_names"] = [f"{layer}/{leaf}:0".encode() for leaf in leaves]
                for leaf, tensor in leaves.items():
                    group[f"{layer}/{leaf}:0"] = tensor
        else:
            for i, (layer, leaves) in enumerate(layers.items()):
                group = file.create_group(f"layers/conv2d_{i}/vars")
                group.attrs["name"] = layer
                for j, tensor in enumerate(leaves.values()):
                    group[str(j)] = tensor
        match rng.randrange(8):
            case 0:
                file["link"] = h5py.ExternalLink("/etc/hostname", "/x")
            case 1:
                file["layers/link"] = h5py.SoftLink("/")
            case 2:
                file.create_dataset("layers/dense/vars/0", (2**20, 2**22), "f4")
    return out.getvalue()


def _hostile(canary: pathlib.Path) -> list[bytes]:
    """Pickles that would write a file, in every protocol."""
    calls = (
        Malice(os.system, f"touch {canary}"),
        Malice(builtins.exec, f"open({str(canary)!r}, 'w')"),
        Malice(builtins.eval, f"open({str(canary)!r}, 'w')"),
        Malice(pathlib.Path.touch, canary),
        Malice(builtins.__import__, "antigravity"),
        Malice(np.load, str(canary)),
    )
    return [
        pickle.dumps(value, protocol)
        for call in calls
        for value in (call, {"state_dict": call}, [call])
        for protocol in range(6)
    ]
