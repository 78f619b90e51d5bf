"""torchvision's state dicts: MobileNetV3, EfficientNet, ResNet, ResNeXt, VGG, ViT."""

from __future__ import annotations

from typing import Any

from agejax.models import efficientnet, vgg
from agejax.models.pretrained import positions
from agejax.models.pretrained.layout import TORCH_LEAVES, Layout, Rules, torch_array

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
    (r"", ""),  # class_token is outside all modules
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


def vgg_convs(depths: tuple[int, ...], batch_norm: bool) -> Rules:
    """Names in torchvision and timm, which number every layer, even pools and activations."""
    rules, index, i = [], 0, 0
    for depth in depths:
        for _ in range(depth):
            rules.append((rf"features\.{index}", f"convs/{i}"))
            if batch_norm:
                rules.append((rf"features\.{index + 1}", f"norms/{i}"))
            index, i = index + 2 + batch_norm, i + 1
        index += 1
    return tuple(rules)


def _vgg(depths: tuple[int, ...], batch_norm: bool) -> Layout:
    dense = [(rf"classifier\.{3 * i}", f"classifier/{i}") for i in range(3)]
    return _layout((*vgg_convs(depths, batch_norm), *dense))


def _efficientnet() -> Layout:
    """Stages and parts of a block are numbered; the stem and the top count as stages."""
    end = len(efficientnet.B0) + 1
    rules = [(r"classifier\.1", "classifier")]
    for i, layer in enumerate(("conv", "norm")):
        rules += [(rf"features\.0\.{i}", f"stem/{layer}")]
        rules += [(rf"features\.{end}\.{i}", f"top/{layer}")]
    for i, (stage, j) in enumerate(efficientnet.places(efficientnet.B0)):
        parts = ["expand", "depthwise", "se", "project"]
        for k, part in enumerate(parts if i else parts[1:]):
            block = rf"features\.{stage + 1}\.{j}\.block\.{k}"
            layers = ("fc1", "fc2") if part == "se" else ("0", "1")
            ours = ("fc1", "fc2") if part == "se" else ("conv", "norm")
            rules += [
                (rf"{block}\.{a}", f"blocks/{i}/{part}/{b}")
                for a, b in zip(layers, ours, strict=True)
            ]
    return _layout(tuple(rules), padding="torch", epsilon=1e-5)


VIT_LEAVES = TORCH_LEAVES | {
    "in_proj_weight": "kernel",
    "in_proj_bias": "bias",
    "class_token": "cls_token",
    "pos_embedding": "pos_embed",
}
VIT_LAYOUT = Layout(
    "torchvision",
    VIT,
    leaves=VIT_LEAVES,
    transform=positions.fitted(torch_array),
    options={"gelu": "exact"},
)


def _layout(rules: Rules, **options: Any) -> Layout:
    return Layout("torchvision", rules, options=options)


LAYOUTS: dict[str, Layout] = {
    "mobilenet_v3_small": _layout(MOBILENET_V3, padding="torch", epsilon=1e-3),
    "mobilenet_v3_large": _layout(MOBILENET_V3, padding="torch", epsilon=1e-3),
    "resnet18": _layout(RESNET),
    "resnet34": _layout(RESNET),
    **{f"resnet{n}": _layout(RESNET, stride_first=False) for n in (50, 101, 152)},
    "resnext50_32x4d": _layout(RESNET, stride_first=False),
    "vgg16": _vgg(vgg.VGG16, False),
    "vgg16_bn": _vgg(vgg.VGG16, True),
    "vgg19": _vgg(vgg.VGG19, False),
    "vgg19_bn": _vgg(vgg.VGG19, True),
    "efficientnet_b0": _efficientnet(),
    "vit_b16": VIT_LAYOUT,
    "vit_l16": VIT_LAYOUT,
}
