"""Weights of keras.applications, legacy .h5 and .weights.h5, by the names from hdf5.py."""

from __future__ import annotations

import re

import numpy as np

from agejax.models import mobilenet_v1, vgg
from agejax.models.mobilenet_v3 import LARGE, SMALL, Row, block_parts, minimal
from agejax.models.pretrained.layout import HALF, Layout, Rules, Tensors

LEAVES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
CLASSIFIER = r"(predictions|logits|conv_2|fc\d)/.*"
# Preprocessing "caffe": only subtracts ImageNet's mean from pixels in 0..255.
CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)


def array(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Keras' [h, w, in, out] is ours too, but its depthwise kernels are [h, w, in, 1].

    A 1x1 convolution in Keras may be a dense layer here.
    """
    if tensor.ndim == 4 and len(shape) == 2:
        return tensor.reshape(tensor.shape[2:])
    if tensor.ndim == 4 and shape[2] == 1:
        return tensor.transpose(0, 1, 3, 2)
    return tensor


def rgb(tensors: Tensors, stem: str) -> Tensors:
    """Turns weights for BGR images into weights for RGB; others stay."""
    if stem not in tensors:
        return tensors
    return tensors | {stem: tensors[stem][:, :, ::-1]}


# ---- MobileNetV3 ---------------------------------------------------------------------------------


def _mobilenet_v3_names(tensors: Tensors) -> Tensors:
    """Turns Keras 2's names, which the published files have, into Keras 3's."""
    if "Conv/kernel" not in tensors:
        return tensors
    names = {}
    for name, tensor in tensors.items():
        layer, leaf = name.replace("/BatchNorm/", "_bn/").rsplit("/", 1)
        names[f"{layer.replace('/', '_').lower()}/{leaf}"] = tensor
    return names


def _mobilenet_v3(rows: tuple[Row, ...]) -> Layout:
    ends = {"conv": "features/0", "conv_1": f"features/{len(rows) + 1}"}
    rules = [("conv_2", "classifier/0"), ("logits", "classifier/1")]
    for layer, ours in ends.items():
        rules += [(layer, f"{ours}/conv"), (f"{layer}_bn", f"{ours}/norm")]
    for i, parts in enumerate(block_parts(rows)):
        block = f"expanded_conv_{i}" if i else "expanded_conv"
        for j, part in enumerate(parts):
            layer, ours = f"{block}_{part}", f"features/{i + 1}/block/{j}"
            if part == "squeeze_excite":
                rules += [(f"{layer}_conv", f"{ours}/fc1"), (f"{layer}_conv_1", f"{ours}/fc2")]
            else:
                rules += [(layer, f"{ours}/conv"), (f"{layer}_bn", f"{ours}/norm")]
    return Layout(
        "keras",
        tuple(rules),
        leaves=LEAVES,
        prepare=_mobilenet_v3_names,
        transform=array,
        classifier=CLASSIFIER,
        mean=HALF,
        std=HALF,
        options={"padding": "same", "epsilon": 1e-3},
    )


# ---- VGG -----------------------------------------------------------------------------------------


def _vgg_array(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Keras' first dense layer takes a flattened [7, 7, 512]; ours, as in torch, [512, 7, 7]."""
    if name == "classifier/0/kernel" and tensor.shape == shape:
        return tensor.reshape(7, 7, 512, -1).transpose(2, 0, 1, 3).reshape(shape)
    return array(name, tensor, shape)


def _vgg(depths: tuple[int, ...]) -> Layout:
    layers = [(i + 1, j + 1) for i, depth in enumerate(depths) for j in range(depth)]
    convs = [(f"block{i}_conv{j}", f"convs/{k}") for k, (i, j) in enumerate(layers)]
    dense = [("fc1", "classifier/0"), ("fc2", "classifier/1"), ("predictions", "classifier/2")]
    return Layout(
        "keras",
        (*convs, *dense),
        prepare=lambda tensors: rgb(tensors, "block1_conv1/kernel"),
        transform=_vgg_array,
        classifier=CLASSIFIER,
        mean=CAFFE_MEAN,
        std=CAFFE_STD,
    )


# ---- ResNet --------------------------------------------------------------------------------------


def _resnet_folded(tensors: Tensors) -> Tensors:
    """RGB instead of BGR; no biases before batch norms; epsilon 1e-5 instead of 1.001e-5."""
    if "conv1_conv/kernel" not in tensors:
        return tensors
    folded = {}
    for name, tensor in rgb(tensors, "conv1_conv/kernel").items():
        layer, leaf = name.rsplit("/", 1)
        if leaf == "moving_mean":
            tensor = tensor - tensors[f"{layer.removesuffix('_bn')}_conv/bias"]
        if leaf == "moving_variance":
            tensor = tensor + np.float32(1.001e-5 - 1e-5)
        if not name.endswith("_conv/bias"):
            folded[name] = tensor
    return folded


def _resnet(depths: tuple[int, ...]) -> Layout:
    rules = [("conv1_conv", "conv1"), ("conv1_bn", "bn1"), ("predictions", "fc")]
    for i, depth in enumerate(depths):
        for j in range(depth):
            block, ours = f"conv{i + 2}_block{j + 1}", f"layer{i + 1}/{j}"
            rules += [
                (rf"{block}_0_conv", f"{ours}/downsample/0"),
                (rf"{block}_0_bn", f"{ours}/downsample/1"),
                (rf"{block}_([123])_conv", rf"{ours}/conv\1"),
                (rf"{block}_([123])_bn", rf"{ours}/bn\1"),
            ]
    return Layout(
        "keras",
        tuple(rules),
        leaves=LEAVES,
        prepare=_resnet_folded,
        transform=array,
        classifier=CLASSIFIER,
        mean=CAFFE_MEAN,
        std=CAFFE_STD,
        options={"stride_first": True},
    )


# ---- NASNet --------------------------------------------------------------------------------------

# The places of the separable convolutions: block, and left or right of the sum.
NASNET_BRANCHES = {
    "normal_left1": "0/0",
    "normal_right1": "0/1",
    "normal_left2": "1/0",
    "normal_right2": "1/1",
    "normal_left5": "4/0",
    "reduction_left1": "0/0",
    "reduction_right1": "0/1",
    "reduction_right2": "1/1",
    "reduction_right3": "2/1",
    "reduction_left4": "4/0",
}
CELL = r"(cells/\d+)/"
NASNET: Rules = (
    ("stem_conv1", "conv"),
    ("stem_bn1", "norm"),
    ("predictions", "classifier"),
    (rf"{CELL}(?:normal|reduction)_conv_1", r"\1/squeeze/conv"),
    (rf"{CELL}(?:normal|reduction)_bn_1", r"\1/squeeze/norm"),
    (rf"{CELL}adjust_conv_projection", r"\1/adjust/conv"),
    (rf"{CELL}adjust_conv_1", r"\1/adjust/paths/0"),
    (rf"{CELL}adjust_conv_2", r"\1/adjust/paths/1"),
    (rf"{CELL}adjust_bn", r"\1/adjust/norm"),
    *(
        (rf"{CELL}separable_conv_{i + 1}_{norm}{branch}", rf"\1/blocks/{ours}/convs/{i}{our_norm}")
        for branch, ours in NASNET_BRANCHES.items()
        for i in range(2)
        for norm, our_norm in (("", ""), ("bn_", "/norm"))
    ),
)
SEPARABLE_LEAVES = {
    "depthwise_kernel": "depthwise/kernel",
    "pointwise_kernel": "pointwise/kernel",
}


def _nasnet(n: int) -> Layout:
    """Names for `n` normal cells per stage: Keras' layers end in a cell's name, not a number."""
    stages = (range(n), [f"reduce_{n}"], range(n + 1, 2 * n + 1), [f"reduce_{2 * n}"],
              range(2 * n + 1, 3 * n + 1))  # fmt: skip
    cells = ["stem_1", "stem_2", *(str(name) for stage in stages for name in stage)]

    def numbered(tensors: Tensors) -> Tensors:
        named = {}
        for key, tensor in tensors.items():
            match = re.fullmatch(r"(\w+?)_((?:stem_|reduce_)?\d+)/(\w+)", key)
            if match and match[2] in cells:
                key = f"cells/{cells.index(match[2])}/{match[1]}/{match[3]}"
            named[key] = tensor
        return named

    return Layout(
        "keras",
        NASNET,
        leaves=LEAVES | SEPARABLE_LEAVES,
        prepare=numbered,
        transform=array,
        classifier=CLASSIFIER,
        mean=HALF,
        std=HALF,
        options={"zero_padded_max": True},
    )


# ---- MobileNetV1 ---------------------------------------------------------------------------------

# Before a stride of 2 Keras pads odd maps only at their ends, but "same" pads both sides; at image
# sizes that are multiples of 32 there are no odd maps, and the two are equal.
MOBILENET_V1 = Layout(
    "keras",
    (
        ("conv1", "stem/conv"),
        ("conv1_bn", "stem/norm"),
        ("conv_preds", "classifier"),
        *(
            (f"conv_{short}_{i + 1}{theirs}", f"{part}/{i}/{ours}")
            for short, part in (("dw", "depthwise"), ("pw", "pointwise"))
            for theirs, ours in (("", "conv"), ("_bn", "norm"))
            for i in range(len(mobilenet_v1.BLOCKS))
        ),
    ),
    leaves=LEAVES | {"depthwise_kernel": "kernel"},
    transform=array,
    classifier=r"conv_preds/.*",
    mean=HALF,
    std=HALF,
    options={"folded": False, "padding": "same", "epsilon": 1e-3},
)


LAYOUTS: dict[str, Layout] = {
    "mobilenet_v1": MOBILENET_V1,
    "mobilenet_v3_small": _mobilenet_v3(SMALL),
    "mobilenet_v3_small_minimalistic": _mobilenet_v3(minimal(SMALL)),
    "mobilenet_v3_large": _mobilenet_v3(LARGE),
    "mobilenet_v3_large_minimalistic": _mobilenet_v3(minimal(LARGE)),
    "nasnet_mobile": _nasnet(4),
    "nasnet_large": _nasnet(6),
    "resnet50": _resnet((3, 4, 6, 3)),
    "resnet101": _resnet((3, 4, 23, 3)),
    "resnet152": _resnet((3, 8, 36, 3)),
    "vgg16": _vgg(vgg.VGG16),
    "vgg19": _vgg(vgg.VGG19),
}
