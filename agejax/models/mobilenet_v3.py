"""MobileNetV3 Small and Large (Howard et al. 2019), with torchvision's numerics and names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models.backbone import Backbone, Features
from agejax.models.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dropout,
    Linear,
    SqueezeExcite,
    global_mean,
)

# kernel, expanded, out, squeeze-excite, activation, stride
Row = tuple[int, int, int, bool, str, int]
SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, "relu", 2),
    (3, 72, 24, False, "relu", 2),
    (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "hard_swish", 2),
    (5, 240, 40, True, "hard_swish", 1),
    (5, 240, 40, True, "hard_swish", 1),
    (5, 120, 48, True, "hard_swish", 1),
    (5, 144, 48, True, "hard_swish", 1),
    (5, 288, 96, True, "hard_swish", 2),
    (5, 576, 96, True, "hard_swish", 1),
    (5, 576, 96, True, "hard_swish", 1),
)
LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hard_swish", 2),
    (3, 200, 80, False, "hard_swish", 1),
    (3, 184, 80, False, "hard_swish", 1),
    (3, 184, 80, False, "hard_swish", 1),
    (3, 480, 112, True, "hard_swish", 1),
    (3, 672, 112, True, "hard_swish", 1),
    (5, 672, 160, True, "hard_swish", 2),
    (5, 960, 160, True, "hard_swish", 1),
    (5, 960, 160, True, "hard_swish", 1),
)
ACTIVATIONS: dict[str, Activation] = {"relu": jax.nn.relu, "hard_swish": jax.nn.hard_swish}


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple of `by` that is not more than a tenth below, as in all MobileNets."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded if rounded >= 0.9 * channels else rounded + by


class ConvNorm(nnx.Module):
    """Convolution, batch norm, activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        act: Activation | None = None,
        momentum: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = Conv(
            inputs, outputs, size, stride=stride, groups=groups, dtype=dtype, rngs=rngs
        )
        self.norm = BatchNorm(outputs, epsilon=1e-3, momentum=momentum)
        self.act = act

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.norm(self.conv(x), train=train)
        return x if self.act is None else self.act(x)


class InvertedResidual(nnx.Module):
    """Expand, depthwise, squeeze-excite, project; `block` is in torchvision's order."""

    def __init__(
        self,
        inputs: int,
        row: Row,
        *,
        momentum: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        size, expanded, outputs, squeeze, act_name, stride = row
        act = ACTIVATIONS[act_name]
        make = functools.partial(ConvNorm, momentum=momentum, dtype=dtype, rngs=rngs)
        self.residual = stride == 1 and inputs == outputs
        self.block = nnx.List(
            [
                *([make(inputs, expanded, 1, act=act)] if expanded != inputs else []),
                make(expanded, expanded, size, stride=stride, groups=expanded, act=act),
                *(
                    [SqueezeExcite(expanded, divisible(expanded / 4), dtype=dtype, rngs=rngs)]
                    if squeeze
                    else []
                ),
                make(expanded, outputs, 1),
            ]
        )

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = x
        for layer in self.block:
            y = layer(y) if isinstance(layer, SqueezeExcite) else layer(y, train=train)
        return x + y if self.residual else y


class MobileNetV3(Backbone):
    """Images [B, H, W, 3] -> pooled features [B, 576 or 960], or logits.

    Args:
      rows: SMALL or LARGE.
      hidden: width of the published classifier's dense layer.
      width: multiplier of every layer's channels.
      norm_momentum: the new value's share in the batch-norm statistics; torchvision's .01 is for
        long runs, and lags behind in one of a few hundred steps.
      minimalistic: the variant without squeeze-excite, hard swish and 5x5 kernels.
    """

    def __init__(
        self,
        rows: tuple[Row, ...],
        hidden: int,
        *,
        width: float = 1.0,
        minimalistic: bool = False,
        norm_momentum: float = 0.01,
        num_classes: int | None = None,
        dropout: float = 0.2,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        scale = lambda channels: divisible(channels * width)  # noqa: E731
        act = jax.nn.relu if minimalistic else jax.nn.hard_swish
        common: dict[str, Any] = {"momentum": norm_momentum, "dtype": dtype, "rngs": rngs}
        make: Callable[..., ConvNorm] = functools.partial(ConvNorm, act=act, **common)
        channels = scale(16)
        features: list[nnx.Module] = [make(3, channels, 3, stride=2)]
        for size, expanded, outputs, squeeze, act_name, stride in rows:
            row = (size, scale(expanded), scale(outputs), squeeze, act_name, stride)
            if minimalistic:
                row = (3, row[1], row[2], False, "relu", stride)
            features.append(InvertedResidual(channels, row, **common))
            channels = row[2]
        self.feature_dim, self.num_classes = 6 * channels, num_classes
        features.append(make(channels, self.feature_dim, 1))
        self.features = nnx.List(features)
        classifier = None
        if num_classes is not None:
            dense = functools.partial(Linear, init=jax.nn.initializers.normal(0.01), rngs=rngs)
            classifier = nnx.List(
                [dense(self.feature_dim, hidden, dtype=dtype), dense(hidden, num_classes)]
            )
        self.classifier = classifier
        self.dropout = Dropout(dropout)

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        for layer in self.features:
            x = layer(x, train=train)
        return Features(x, global_mean(x))

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        assert self.classifier is not None
        x = jax.nn.hard_swish(self.classifier[0](features.pooled))
        x = self.dropout(x, train=train, rngs=rngs)
        return self.classifier[1](x.astype(jnp.float32))


small = functools.partial(MobileNetV3, SMALL, 1024)
large = functools.partial(MobileNetV3, LARGE, 1280)
