"""What is compared: every family of backbones with every library whose weights it reads."""

from __future__ import annotations

from experiments.parity.case import Case
from experiments.parity.torch_reference import timm, torchvision

CASES: list[Case] = [
    Case(
        "mobilenet_v3_small",
        "torchvision",
        torchvision("mobilenet_v3_small"),
        train=True,
        golden=True,
    ),
    Case("resnet18", "torchvision", torchvision("resnet18"), golden=True),
    Case("resnet50", "torchvision", torchvision("resnet50"), train=True, golden=True),
    Case("vgg16", "torchvision", torchvision("vgg16")),
    Case("vgg16_bn", "torchvision", torchvision("vgg16_bn")),
    Case("vit_b16", "torchvision", torchvision("vit_b_16", image_size=64)),
]
