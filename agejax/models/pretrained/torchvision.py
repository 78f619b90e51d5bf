"""Reads torchvision state dicts kept as .safetensors: MobileNetV3, ResNet, VGG, ViT."""

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
VIT: Rules = (
    (r"", ""),  # class_token stands outside of all modules
    (r"conv_proj", "patch_embed"),
    (r"encoder", ""),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])", r"blocks/\1/norm\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention", r"blocks/\1/qkv"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj", r"blocks/\1/proj"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)", r"blocks/\1/fc1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)", r"blocks/\1/fc2"),
    (r"encoder\.ln", "norm"),
    (r"heads\.head", "head"),
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
    "vit_b16": VIT,
    "vit_l16": VIT,
}
# The output layers, theirs or ours: those of the other task need not match anything.
CLASSIFIER = re.compile(r"(classifier|fc|heads?)\b.*")
IGNORED = re.compile(r".*\.num_batches_tracked")
LEAVES = {
    "running_mean": "mean",
    "running_var": "var",
    "in_proj_weight": "kernel",
    "in_proj_bias": "bias",
    "class_token": "cls_token",
    "pos_embedding": "pos_embed",
}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a weights file gave.

    Attributes:
      params, batch_stats: the arrays it filled, float32, by our names.
      fresh: our classifier's names that it has no values for, as full names; not in `params`.
      left_out: its classifier's keys, which a backbone has no use for.
      mean, std: of RGB in 0..1, which these weights expect the images to be normalised with.
    """

    params: dict[str, np.ndarray]
    batch_stats: dict[str, np.ndarray]
    fresh: tuple[str, ...]
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
    found: dict[str, np.ndarray | None] = {}  # None: there, but of another shape
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
        if name in found:
            problems.append(f"{key} is the second tensor for {name}")
        value = _our_layout(tensor, len(wanted[name]))
        found[name] = None
        if value.shape == wanted[name]:
            found[name] = np.ascontiguousarray(value, np.float32)
        else:
            problems.append(f"{key} is {value.shape}, {name} needs {wanted[name]}")
    missing = sorted(wanted.keys() - found)
    problems += [f"{name} is missing" for name in missing if not CLASSIFIER.fullmatch(name)]
    if problems:
        raise UserError(f"{where} does not fit: {'; '.join(problems)}")
    filled = {prefix + name: value for name, value in found.items() if value is not None}
    return Loaded(
        params={k: v for k, v in filled.items() if k in params},
        batch_stats={k: v for k, v in filled.items() if k in batch_stats},
        fresh=tuple(prefix + name for name in missing),
        left_out=tuple(left_out),
    )


def _our_name(key: str, tensor: np.ndarray, rules: Rules) -> str | None:
    module, _, leaf = key.rpartition(".")
    for pattern, ours in rules:
        match = re.fullmatch(pattern, module)
        if match:
            if leaf == "weight":
                leaf = "scale" if tensor.ndim == 1 else "kernel"
            return f"{match.expand(ours)}/{LEAVES.get(leaf, leaf)}".lstrip("/")
    return None


def _our_layout(tensor: np.ndarray, ndim: int) -> np.ndarray:
    """torch's [out, in, h, w] -> [h, w, in, out], or [h w in, out] for a dense layer of ours."""
    if tensor.ndim == 4:
        kernel = tensor.transpose(2, 3, 1, 0)
        return kernel if ndim == 4 else kernel.reshape(-1, kernel.shape[-1])
    return tensor.T if tensor.ndim == 2 else tensor
