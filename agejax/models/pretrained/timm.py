"""timm's state dicts.

timm's ResNets and ResNeXts have the same names as torchvision's, whose layouts read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agejax.models import efficientnet, mobilenet_v1, vgg
from agejax.models.mobilenet_v3 import LARGE, SMALL, Row, block_parts, minimal
from agejax.models.pretrained import positions, torchvision
from agejax.models.pretrained.layout import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Layout,
    Rules,
    Tensors,
    torch_array,
)

SERESNET: Rules = (*torchvision.RESNET, (r"(layer\d)\.(\d+)\.se\.(fc[12])", r"\1/\2/se/\3"))
# Cadene's `pretrainedmodels`: SENet as ported from Caffe, RGB in 0..1.
LEGACY: Rules = (
    (r"layer0\.(conv1|bn1)", r"\1"),
    (r"(layer[1-4])\.(\d+)\.(conv\d|bn\d)", r"\1/\2/\3"),
    (r"(layer[1-4])\.(\d+)\.downsample\.([01])", r"\1/\2/downsample/\3"),
    (r"(layer[1-4])\.(\d+)\.se_module\.(fc[12])", r"\1/\2/se/\3"),
    (r"last_linear", "fc"),
)
VIT: Rules = (
    (r"", ""),  # cls_token and pos_embed are outside all modules
    (r"patch_embed\.proj", "patch_embed"),
    (r"blocks\.(\d+)\.(norm[12])", r"blocks/\1/\2"),
    (r"blocks\.(\d+)\.(?:attn|mlp)\.(qkv|proj|fc[12])", r"blocks/\1/\2"),
    (r"(norm|head)", r"\1"),
)
VIT_LAYOUT = Layout(
    "timm",
    VIT,
    transform=positions.fitted(torch_array),
    classifier=r"(head|pre_logits)\b.*",
    mean=HALF,
    std=HALF,
    options={"gelu": "exact"},
    doubt=(
        f"weights of DeiT look the same but expect config.model.mean {IMAGENET_MEAN} and .std "
        f"{IMAGENET_STD}"
    ),
)
# The parts of a MobileNetV3 block that expands, and of the first block, which does not.
WIDENING = {
    "expand": ("conv_pw", "bn1"),
    "depthwise": ("conv_dw", "bn2"),
    "project": ("conv_pwl", "bn3"),
}
FIRST = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
NATIVE: dict[str, Any] = {
    "options": {"padding": "torch", "epsilon": 1e-5},
    "doubt": (
        "weights of tf_mobilenetv3 look the same but need the padding of TensorFlow: load Keras' "
        "files of them instead"
    ),
}
# The minimalistic ones, which timm has only as tf_mobilenetv3_*_minimal_100.
PORTED: dict[str, Any] = {
    "options": {"padding": "same", "epsilon": 1e-3},
    "mean": HALF,
    "std": HALF,
}


def _layout(rules: Rules, **options: Any) -> Layout:
    return Layout("timm", rules, options=options)


def _mobilenet_v3(rows: tuple[Row, ...], **fields: Any) -> Layout:
    """Blocks are numbered by stage (all blocks of one width) and within the stage."""
    widths = [row[2] for row in rows]
    stages = sorted(set(widths))
    end = rf"blocks\.{len(stages)}\.0"
    rules = [
        ("conv_stem", "features/0/conv"),
        ("bn1", "features/0/norm"),
        (rf"{end}\.conv", f"features/{len(rows) + 1}/conv"),
        (rf"{end}\.bn1", f"features/{len(rows) + 1}/norm"),
        ("conv_head", "classifier/0"),
        ("classifier", "classifier/1"),
    ]
    for i, parts in enumerate(block_parts(rows)):
        block = rf"blocks\.{stages.index(widths[i])}\.{i - widths.index(widths[i])}"
        for j, part in enumerate(parts):
            ours = f"features/{i + 1}/block/{j}"
            if part == "squeeze_excite":
                rules += [(rf"{block}\.se\.conv_reduce", f"{ours}/fc1")]
                rules += [(rf"{block}\.se\.conv_expand", f"{ours}/fc2")]
            else:
                conv, norm = (WIDENING if i else FIRST)[part]
                rules += [(rf"{block}\.{conv}", f"{ours}/conv")]
                rules += [(rf"{block}\.{norm}", f"{ours}/norm")]
    return Layout("timm", tuple(rules), classifier=r"(conv_head|classifier)\..*", **fields)


def _mobilenet_v1() -> Layout:
    """The blocks of one width are a stage, as in MobileNetV3."""
    widths = [channels for channels, _ in mobilenet_v1.BLOCKS]
    stages = sorted(set(widths))
    rules = [("conv_stem", "stem/conv"), ("bn1", "stem/norm"), ("classifier", "classifier")]
    for i, width in enumerate(widths):
        block = rf"blocks\.{stages.index(width)}\.{i - widths.index(width)}"
        for conv, norm, part in (("conv_dw", "bn1", "depthwise"), ("conv_pw", "bn2", "pointwise")):
            rules += [(rf"{block}\.{conv}", f"{part}/{i}/conv")]
            rules += [(rf"{block}\.{norm}", f"{part}/{i}/norm")]
    return Layout(
        "timm",
        tuple(rules),
        mean=HALF,
        std=HALF,
        options={"folded": False, "padding": "torch", "epsilon": 1e-5},
    )


def _efficientnet(stages: tuple[efficientnet.Stage, ...], **fields: Any) -> Layout:
    """Block parts are named by role, but the first block's projection like other expansions."""
    rules = [
        ("conv_stem", "stem/conv"),
        ("bn1", "stem/norm"),
        ("conv_head", "top/conv"),
        ("bn2", "top/norm"),
        ("classifier", "classifier"),
    ]
    for i, (stage, j) in enumerate(efficientnet.places(stages)):
        block, ours = rf"blocks\.{stage}\.{j}", f"blocks/{i}"
        for part, (conv, norm) in (WIDENING if i else FIRST).items():
            rules += [(rf"{block}\.{conv}", f"{ours}/{part}/conv")]
            rules += [(rf"{block}\.{norm}", f"{ours}/{part}/norm")]
        rules += [(rf"{block}\.se\.conv_reduce", f"{ours}/se/fc1")]
        rules += [(rf"{block}\.se\.conv_expand", f"{ours}/se/fc2")]
    return Layout("timm", tuple(rules), **fields)


def _vgg_array(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """timm's dense layers are convolutions; ours take a flattened [512, 7, 7]."""
    if tensor.ndim == 4 and len(shape) == 2:
        return tensor.reshape(len(tensor), -1).T
    return torch_array(name, tensor, shape)


def _vgg(depths: tuple[int, ...], batch_norm: bool) -> Layout:
    dense = [(r"pre_logits\.fc1", "classifier/0"), (r"pre_logits\.fc2", "classifier/1")]
    return Layout(
        "timm",
        (*torchvision.vgg_convs(depths, batch_norm), *dense, (r"head\.fc", "classifier/2")),
        transform=_vgg_array,
        classifier=r"(pre_logits|head)\..*",
    )


# The parts of the cells of NASNet and PNASNet, and their modules.
CELL_PARTS: Rules = (
    (r"conv_1x1", "squeeze"),
    (r"conv_prev_1x1", "adjust"),
    (r"comb_iter_(\d)_left", r"blocks/\2/0"),
    (r"comb_iter_(\d)_right", r"blocks/\2/1"),
)
CELL_LAYERS: Rules = (
    (r"conv", "conv"),
    (r"bn", "norm"),
    *(
        rule
        for i in range(2)
        for rule in (
            (rf"separable_{i + 1}\.depthwise_conv2d", f"convs/{i}/depthwise"),
            (rf"separable_{i + 1}\.pointwise_conv2d", f"convs/{i}/pointwise"),
            (rf"bn_sep_{i + 1}", f"convs/{i}/norm"),
        )
    ),
)
NASNET: Rules = (
    (r"conv_?0\.conv", "conv"),
    (r"conv_?0\.bn", "norm"),
    (r"last_linear", "classifier"),
    (r"cells/(\d+)\.(?:conv_prev_1x1\.)?path_1\.conv", r"cells/\1/adjust/paths/0"),
    (r"cells/(\d+)\.(?:conv_prev_1x1\.)?path_2\.conv", r"cells/\1/adjust/paths/1"),
    (r"cells/(\d+)\.(?:conv_prev_1x1\.)?final_path_bn", r"cells/\1/adjust/norm"),
    *(
        (rf"cells/(\d+)\.{part}\.{layer}", rf"cells/\1/{our_part}/{our_layer}")
        for part, our_part in CELL_PARTS
        for layer, our_layer in CELL_LAYERS
    ),
)


def _nasnet(cells: Sequence[str]) -> Layout:
    """`cells`: timm's names in order; ours have only numbers."""
    numbers = {name: f"cells/{i}" for i, name in enumerate(cells)}

    def numbered(tensors: Tensors) -> Tensors:
        parts = [key.partition(".") for key in tensors]
        keys = [f"{numbers.get(first, first)}{dot}{rest}" for first, dot, rest in parts]
        return dict(zip(keys, tensors.values(), strict=True))

    return Layout(
        "timm",
        NASNET,
        prepare=numbered,
        mean=HALF,
        std=HALF,
        options={"zero_padded_max": False},
    )


NASNET_CELLS = [f"cell_{i}" for i in range(18)]
NASNET_CELLS[12:12] = ["reduction_cell_1"]
NASNET_CELLS[6:6] = ["reduction_cell_0"]
STEM_CELLS = ["cell_stem_0", "cell_stem_1"]


LAYOUTS: dict[str, Layout] = {
    "mobilenet_v3_small": _mobilenet_v3(SMALL, **NATIVE),
    "mobilenet_v3_small_minimalistic": _mobilenet_v3(minimal(SMALL), **PORTED),
    "mobilenet_v3_large": _mobilenet_v3(LARGE, **NATIVE),
    "mobilenet_v3_large_minimalistic": _mobilenet_v3(minimal(LARGE), **PORTED),
    "seresnet50": _layout(SERESNET, stride_first=False),
    "seresnext50_32x4d": _layout(SERESNET, stride_first=False),
    "senet50": _layout(LEGACY, stride_first=True),
    "legacy_seresnext50_32x4d": _layout(LEGACY, stride_first=False),
    "vgg16": _vgg(vgg.VGG16, False),
    "vgg16_bn": _vgg(vgg.VGG16, True),
    "vgg19": _vgg(vgg.VGG19, False),
    "vgg19_bn": _vgg(vgg.VGG19, True),
    "mobilenet_v1": _mobilenet_v1(),
    "efficientnet_b0": _efficientnet(
        efficientnet.B0,
        options={"padding": "torch", "epsilon": 1e-5},
        doubt=(
            "weights of tf_efficientnet_b0 look the same but need the model of that name, and "
            f"those of efficientnet_b0.ra4 expect config.model.mean and .std {HALF}"
        ),
    ),
    "tf_efficientnet_b0": _efficientnet(
        efficientnet.B0,
        options={"padding": "same", "epsilon": 1e-3},
        doubt=(
            "weights of efficientnet_b0 look the same but need the model of that name, and "
            f"those of AdvProp (ap_in1k) expect config.model.mean and .std {HALF}"
        ),
    ),
    **{
        f"efficientnet_lite{i}": _efficientnet(
            stages,
            options={"padding": "torch", "epsilon": 1e-5},
            doubt=(
                f"weights of tf_efficientnet_lite{i} look the same but need the model of that name"
            ),
        )
        for i, stages in enumerate(efficientnet.LITES)
    },
    **{
        f"tf_efficientnet_lite{i}": _efficientnet(
            stages,
            options={"padding": "same", "epsilon": 1e-3},
            mean=HALF,
            std=HALF,
            doubt=f"weights of efficientnet_lite{i} look the same but need the model of that name",
        )
        for i, stages in enumerate(efficientnet.LITES)
    },
    "nasnet_large": _nasnet([*STEM_CELLS, *NASNET_CELLS]),
    "pnasnet5_large": _nasnet([*STEM_CELLS, *(f"cell_{i}" for i in range(12))]),
    **{f"vit_{size}": VIT_LAYOUT for size in ("ti16", "s16", "b16", "l16")},
}
