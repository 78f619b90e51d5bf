"""The .npz files of vision_transformer (AugReg, Steiner et al. 2022) and of big_vision: ViT.

Both have flax's layout. big_vision numbers parts differently, may stack all blocks into one array
(its `scan`), puts `params/` before every name, and adds the positions before the class token.
"""

from __future__ import annotations

import re

import numpy as np

from agejax.models.pretrained import positions
from agejax.models.pretrained.layout import HALF, Layout, Rules, Tensors

RULES: Rules = (
    (r"", ""),  # cls and pos_embedding are outside all modules
    (r"Transformer/posembed_input", ""),
    (r"embedding", "patch_embed"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_0", r"blocks/\1/norm1"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_[12]", r"blocks/\1/norm2"),
    (r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_\d/qkv", r"blocks/\1/qkv"),
    (r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_\d/out", r"blocks/\1/proj"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_\d/Dense_0", r"blocks/\1/fc1"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_\d/Dense_1", r"blocks/\1/fc2"),
    (r"Transformer/encoder_norm", "norm"),
    (r"head", "head"),
)
ROOTS = ("opt/target/", "params/")  # in a whole training state, and in big_vision
HEADS = r".*/MultiHeadDotProductAttention_\d/"


def prepare(tensors: Tensors) -> Tensors:
    """Names each block's arrays by its number, merges heads, and query, key and value to `qkv`.

    Dense kernels get our shape: [inputs, outputs].
    """
    root = next((root for root in ROOTS if f"{root}embedding/kernel" in tensors), "")
    if f"{root}Transformer/encoder_norm/scale" not in tensors:
        return tensors
    tensors = {k.removeprefix(root): v for k, v in tensors.items() if k.startswith(root)}
    merged: Tensors = {}
    for key, value in _unstacked(tensors).items():
        if re.fullmatch(HEADS + "out/kernel", key):  # [heads, width, D]
            value = value.reshape(-1, value.shape[-1])
        elif re.fullmatch(HEADS + "(query|key|value)/kernel", key):  # [D, heads, width]
            value = value.reshape(value.shape[0], -1)
        elif re.fullmatch(HEADS + "(query|key|value)/bias", key):  # [heads, width]
            value = value.reshape(-1)
        merged[key] = value
    for key in [key for key in merged if "/query/" in key]:
        parts = [key.replace("/query/", f"/{part}/") for part in ("query", "key", "value")]
        if all(part in merged for part in parts):
            qkv = np.concatenate([merged.pop(part) for part in parts], axis=-1)
            merged[key.replace("/query/", "/qkv/")] = qkv
    if "pos_embedding" in merged and "cls" in merged:
        first = np.zeros_like(merged["cls"])
        merged["pos_embedding"] = np.concatenate([first, merged["pos_embedding"]], axis=1)
    return merged


def _unstacked(tensors: Tensors) -> Tensors:
    result: Tensors = {}
    for key, value in tensors.items():
        if "/encoderblock/" not in key:
            result[key] = value
            continue
        for i, part in enumerate(value):
            result[key.replace("/encoderblock/", f"/encoderblock_{i}/")] = part
    return result


def _array(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The patches' kernel [16, 16, 3, D] -> [16 16 3, D]; other arrays stay as they are."""
    return tensor.reshape(-1, tensor.shape[-1]) if name == "patch_embed/kernel" else tensor


LAYOUT = Layout(
    "AugReg",
    RULES,
    leaves={"cls": "cls_token", "pos_embedding": "pos_embed"},
    prepare=prepare,
    transform=positions.fitted(_array),
    classifier=r"(head|pre_logits)\b.*",
    mean=HALF,
    std=HALF,
    options={"gelu": "tanh"},
)
LAYOUTS: dict[str, Layout] = {f"vit_{size}": LAYOUT for size in ("ti16", "s16", "b16", "l16")}
