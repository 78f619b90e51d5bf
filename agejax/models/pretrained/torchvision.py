"""torchvision's state dicts: MobileNetV3, ResNet, VGG, ViT."""

from __future__ import annotations

from agejax.models.pretrained.layout import TORCH_LEAVES, Layout, Rules

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


VIT_LEAVES = TORCH_LEAVES | {
    "in_proj_weight": "kernel",
    "in_proj_bias": "bias",
    "class_token": "cls_token",
    "pos_embedding": "pos_embed",
}


def _layout(rules: Rules) -> Layout:
    return Layout("torchvision", rules)


LAYOUTS: dict[str, Layout] = {
    "mobilenet_v3_small": _layout(MOBILENET_V3),
    "mobilenet_v3_large": _layout(MOBILENET_V3),
    **{f"resnet{n}": _layout(RESNET) for n in (18, 34, 50, 101, 152)},
    "vgg16": _layout(_vgg((2, 2, 3, 3, 3), False)),
    "vgg16_bn": _layout(_vgg((2, 2, 3, 3, 3), True)),
    "vgg19": _layout(_vgg((2, 2, 4, 4, 4), False)),
    "vgg19_bn": _layout(_vgg((2, 2, 4, 4, 4), True)),
    "vit_b16": Layout("torchvision", VIT, leaves=VIT_LEAVES),
    "vit_l16": Layout("torchvision", VIT, leaves=VIT_LEAVES),
}
