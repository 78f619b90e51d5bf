"""MobileNetV1 (Howard et al. 2017): a stem and 13 depthwise-separable blocks, ReLU6 throughout.

Numerics are TensorFlow's. With `folded` it has the layout of exported networks, where each batch
norm is merged into the convolution before it.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models.backbone import Backbone, Features
from agejax.models.layers import BatchNorm, Conv, Dropout, Linear, global_mean
from agejax.models.mobilenet_v3 import PADDINGS, divisible

STEM = 32  # channels
# channels, stride
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
    (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class ConvReLU6(nnx.Module):
    """A convolution with batch norm, or with a bias if the norm is folded into it; ReLU6."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        folded: bool,
        padding: Literal["same"] | None,
        epsilon: float,
        momentum: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = Conv(
            inputs, outputs, size, stride=stride, groups=groups, padding=padding,
            use_bias=folded, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.norm = None if folded else BatchNorm(outputs, epsilon=epsilon, momentum=momentum)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.conv(x)
        return jax.nn.relu6(x if self.norm is None else self.norm(x, train=train))


class MobileNetV1(Backbone):
    """Images [B, H, W, 3] -> pooled features [B, 1024 x width], or logits.

    Args:
      width: multiplier of every layer's channels.
      folded: biases instead of batch norms.
      padding: "same" is TensorFlow's; "torch" pads half of the kernel on every side.
      epsilon, norm_momentum: of the batch norms.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        folded: bool = False,
        padding: Literal["torch", "same"] = "same",
        epsilon: float = 1e-3,
        norm_momentum: float = 0.1,
        num_classes: int | None = None,
        dropout: float = 1e-3,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        make: Any = functools.partial(
            ConvReLU6, folded=folded, padding=PADDINGS[padding], epsilon=epsilon,
            momentum=norm_momentum, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        channels = divisible(STEM * width)
        self.stem = make(3, channels, 3, stride=2)
        depthwise, pointwise = [], []
        for wide, stride in BLOCKS:
            depthwise.append(make(channels, channels, 3, stride=stride, groups=channels))
            outputs = divisible(wide * width)
            pointwise.append(make(channels, outputs, 1))
            channels = outputs
        self.depthwise, self.pointwise = nnx.List(depthwise), nnx.List(pointwise)
        self.feature_dim, self.num_classes = channels, num_classes
        classifier = None
        if num_classes is not None:
            classifier = Linear(channels, num_classes, rngs=rngs)
        self.classifier = classifier
        self.dropout = Dropout(dropout)

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        x = self.stem(x, train=train)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = self.run(_separable, depthwise, pointwise, x, train=train)
        return Features(x, global_mean(x))

    def layer_paths(self) -> list[tuple[str, ...]]:
        blocks = range(len(self.depthwise))
        return [("stem",), *((f"depthwise/{i}", f"pointwise/{i}") for i in blocks)]

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        assert self.classifier is not None
        return self.classifier(self.dropout(features.pooled, train=train, rngs=rngs))


def _separable(
    depthwise: ConvReLU6, pointwise: ConvReLU6, x: jax.Array, *, train: bool
) -> jax.Array:
    return pointwise(depthwise(x, train=train), train=train)
