"""Reads torchvision state dicts kept as .safetensors: MobileNetV3, ResNet, VGG."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from agejax.errors import UserError

# (regex of a torchvision module's name, ours); the first match of a family wins.
Rules = tuple[tuple[str, str], ...]
MOBILENET_V3: Rules = (
    (r"features\.(\d+)\.0", r"features/\1/conv"),
    (r"features\.(\d+)\.1", r"features/\1/norm"),
    (r"features\.(\d+)\.block\.(\d+)\.0", r"features/\1/block/\2/conv"),
    (r"features\.(\d+)\.block\.(\d+)\.1", r"features/\1/block/\2/norm"),
    (r"features\.(\d+)\.block\.(\d+)\.(fc[12])", r"features/\1/block/\2/\3"),
    (r"classifier\.0", r"classifier/0"),
    (r"classifier\.3", r"classifier/1"),
)
RESNET: Rules = (
    (r"(conv1|bn1|fc)", r"\1"),
    (r"(layer\d)\.(\d+)\.(conv\d|bn\d)", r"\1/\2/\3"),
    (r"(layer\d)\.(\d+)\.downsample\.([01])", r"\1/\2/downsample/\3"),
)


def _vgg(depths: tuple[int, ...], batch_norm: bool) -> Rules:
    """torchvision numbers every layer, pools and activations too."""
    rules, index, i = [], 0, 0
    for depth in depths:
        for _ in range(depth):
            rules.append((rf"features\.{index}", f"convs/{i}"))
            if batch_norm:
                rules.append((rf"features\.{index + 1}", f"norms/{i}"))
            index, i = index + 2 + batch_norm, i + 1
        index += 1
    dense = [(rf"classifier\.{3 * i}", f"classifier/{i}") for i in range(3)]
    return (*rules, *dense)


FAMILIES: dict[str, Rules] = {
    "mobilenet_v3_small": MOBILENET_V3,
    "mobilenet_v3_large": MOBILENET_V3,
    **{f"resnet{n}": RESNET for n in (18, 34, 50, 101, 152)},
    "vgg16": _vgg((2, 2, 3, 3, 3), False),
    "vgg16_bn": _vgg((2, 2, 3, 3, 3), True),
    "vgg19": _vgg((2, 2, 4, 4, 4), False),
    "vgg19_bn": _vgg((2, 2, 4, 4, 4), True),
}
CLASSIFIER = re.compile(r"(classifier|fc)\b.*")  # of the other task: left out without being asked
IGNORED = re.compile(r".*\.num_batches_tracked")
STATISTICS = {"running_mean": "mean", "running_var": "var"}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a weights file gave.

    Attributes:
      params, batch_stats: the arrays it filled, float32, by our names.
      left_out: its classifier's keys, which a backbone has no use for.
      mean, std: of RGB in 0..1, which these weights expect the images to be normalised with.
    """

    params: dict[str, np.ndarray]
    batch_stats: dict[str, np.ndarray]
    left_out: tuple[str, ...]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def load(
    path: str,
    model_name: str,
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    prefix: str = "backbone/",
) -> Loaded:
    """Fits a torchvision .safetensors file to a model's flat parameters.

    Args:
      params, batch_stats: by our names; anything with a shape. Only names under `prefix` count.

    Raises:
      UserError: an unreadable file, a family without rules, or keys and shapes that do not match on
        either side, all of them listed.
    """
    where = f"config.model.pretrained: {path}"
    if model_name not in FAMILIES:
        raise UserError(f"{where}: no rules to read weights of {model_name!r} yet")
    if not pathlib.Path(path).is_file():
        raise UserError(f"{where} does not exist; name a .safetensors file of torchvision's keys")
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{where} is damaged or not a .safetensors file ({error}); get it again"
        ) from error

    wanted = {
        name.removeprefix(prefix): tuple(value.shape)
        for name, value in {**params, **batch_stats}.items()
        if name.startswith(prefix)
    }
    found: dict[str, np.ndarray] = {}
    left_out, problems = [], []
    for key, tensor in tensors.items():
        if IGNORED.fullmatch(key):
            continue
        name = _our_name(key, tensor, FAMILIES[model_name])
        if name not in wanted:
            if CLASSIFIER.fullmatch(key):
                left_out.append(key)
            else:
                problems.append(f"{key} has no place in {model_name}")
            continue
        value = _our_layout(tensor, len(wanted[name]))
        if value.shape != wanted[name]:
            problems.append(f"{key} is {value.shape}, {name} needs {wanted[name]}")
        else:
            found[name] = np.ascontiguousarray(value, np.float32)
    mismatched = {p.split(" needs ")[0].rsplit(" ", 1)[-1] for p in problems if " needs " in p}
    problems += [f"{name} is missing" for name in sorted(wanted.keys() - found - mismatched)]
    if problems:
        raise UserError(f"{where} does not fit: {'; '.join(problems)}")
    filled = {prefix + name: value for name, value in found.items()}
    return Loaded(
        params={k: v for k, v in filled.items() if k in params},
        batch_stats={k: v for k, v in filled.items() if k in batch_stats},
        left_out=tuple(left_out),
    )


def _our_name(key: str, tensor: np.ndarray, rules: Rules) -> str | None:
    module, _, leaf = key.rpartition(".")
    for pattern, ours in rules:
        match = re.fullmatch(pattern, module)
        if match:
            if leaf == "weight":
                leaf = "scale" if tensor.ndim == 1 else "kernel"
            return f"{match.expand(ours)}/{STATISTICS.get(leaf, leaf)}"
    return None


def _our_layout(tensor: np.ndarray, ndim: int) -> np.ndarray:
    """torch's [out, in, h, w] -> [h, w, in, out]; [out, in] or a 1x1 convolution -> [in, out]."""
    if tensor.ndim == 4 and ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and ndim == 2:
        return tensor[:, :, 0, 0].T
    return tensor.T if tensor.ndim == 2 else tensor
