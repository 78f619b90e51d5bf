"""EfficientNet-B0 (Tan & Le 2019) and EfficientNet-Lite0 to 2, with ReLU6 and no squeeze-excite.

Numerics are those of timm and torchvision, or with options those of TensorFlow's weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models.backbone import Backbone, Features
from agejax.models.layers import (
    Activation,
    Dropout,
    DropPath,
    Linear,
    SqueezeExcite,
    drop_path_rates,
    global_mean,
)
from agejax.models.mobilenet_v3 import PADDINGS, ConvNorm, divisible

# blocks, kernel, stride of the first block, expansion factor, outputs
Stage = tuple[int, int, int, int, int]
B0: tuple[Stage, ...] = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, TOP = 32, 1280  # channels


def scaled(stages: tuple[Stage, ...], width: float, depth: float) -> tuple[Stage, ...]:
    """The stages of a larger Lite network: `width` times the channels, `depth` times the blocks.

    In all of them the first and the last stage keep their depth, and stem and top their width
    (tensorflow/tpu, efficientnet_lite_builder.py: fix_head_stem).
    """
    ends = (0, len(stages) - 1)
    return tuple(
        (blocks if i in ends else math.ceil(depth * blocks), size, stride, wider,
         divisible(width * outputs))
        for i, (blocks, size, stride, wider, outputs) in enumerate(stages)
    )  # fmt: skip


LITES = (B0, scaled(B0, 1.0, 1.1), scaled(B0, 1.1, 1.2))  # Lite0, Lite1, Lite2


def places(stages: tuple[Stage, ...]) -> list[tuple[int, int]]:
    """The stage of every block and its number within it, from which libraries make names."""
    return [(i, j) for i, (depth, *_) in enumerate(stages) for j in range(depth)]


class MBConv(nnx.Module):
    """Expand, depthwise, squeeze-excite, project.

    Args:
      squeeze: channels inside squeeze-excite; 0: no squeeze-excite.
      make: makes a `ConvNorm`, given its widths, size, stride, groups and activation.
      drop_path: rate at which training drops the residual branch of an example.
    """

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        size: int,
        stride: int,
        *,
        squeeze: int,
        act: Activation,
        make: Callable[..., ConvNorm],
        drop_path: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.residual = stride == 1 and inputs == outputs
        self.expand = make(inputs, expanded, 1, act=act) if expanded != inputs else None
        self.depthwise = make(expanded, expanded, size, stride=stride, groups=expanded, act=act)
        se = None
        if squeeze:
            gate = jax.nn.sigmoid
            se = SqueezeExcite(expanded, squeeze, act=act, gate=gate, dtype=dtype, rngs=rngs)
        self.se = se
        self.project = make(expanded, outputs, 1)
        self.drop_path = DropPath(drop_path)

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = x if self.expand is None else self.expand(x, train=train)
        y = self.depthwise(y, train=train)
        if self.se is not None:
            y = self.se(y)
        y = self.project(y, train=train)
        return x + self.drop_path(y, train=train, rngs=rngs) if self.residual else y


class EfficientNet(Backbone):
    """Images [B, H, W, 3] -> pooled features [B, 1280], or logits.

    Args:
      stages: B0, or one of LITES.
      lite: ReLU6 instead of swish, and no squeeze-excite.
      padding: "torch" pads half of the kernel on every side; "same" is TensorFlow's.
      epsilon: of the batch norms: 1e-5 in timm and torchvision, 1e-3 in TensorFlow.
      drop_path: rate of the last block's `DropPath`; it grows from 0 at the first.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        lite: bool,
        *,
        padding: Literal["torch", "same"] = "torch",
        epsilon: float = 1e-5,
        num_classes: int | None = None,
        dropout: float = 0.2,
        drop_path: float = 0.0,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        act = jax.nn.relu6 if lite else jax.nn.silu
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        make: Callable[..., ConvNorm] = functools.partial(
            ConvNorm, padding=PADDINGS[padding], epsilon=epsilon, momentum=0.1, **common
        )
        self.stem = make(3, STEM, 3, stride=2, act=act)
        blocks: list[MBConv] = []
        channels = STEM
        rates = drop_path_rates(drop_path, sum(depth for depth, *_ in stages))
        for depth, size, stride, wider, outputs in stages:
            for i in range(depth):
                # A quarter of the block's inputs, not of its expanded channels.
                squeeze = 0 if lite else channels // 4
                block: Callable[..., MBConv] = functools.partial(
                    MBConv, squeeze=squeeze, act=act, make=make, drop_path=rates[len(blocks)],
                    **common,
                )  # fmt: skip
                step = stride if i == 0 else 1
                blocks.append(block(channels, wider * channels, outputs, size, step))
                channels = outputs
        self.blocks = nnx.List(blocks)
        self.top = make(channels, TOP, 1, act=act)
        self.feature_dim, self.num_classes = TOP, num_classes
        self.classifier = Linear(TOP, num_classes, rngs=rngs) if num_classes is not None else None
        self.dropout = Dropout(dropout)

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        x = self.stem(x, train=train)
        for block in self.blocks:
            x = self.run(block, x, train=train, rngs=rngs)
        x = self.top(x, train=train)
        return Features(x, global_mean(x))

    def layer_paths(self) -> list[tuple[str, ...]]:
        *first, last = (f"blocks/{i}" for i in range(len(self.blocks)))
        return [("stem",), *((path,) for path in first), (last, "top")]

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        assert self.classifier is not None
        return self.classifier(self.dropout(features.pooled, train=train, rngs=rngs))


b0 = functools.partial(EfficientNet, B0, False)
lite0, lite1, lite2 = (functools.partial(EfficientNet, stages, True) for stages in LITES)
tf_b0 = functools.partial(b0, padding="same", epsilon=1e-3)
tf_lite0 = functools.partial(lite0, padding="same", epsilon=1e-3)
tf_lite1 = functools.partial(lite1, padding="same", epsilon=1e-3)
tf_lite2 = functools.partial(lite2, padding="same", epsilon=1e-3)
