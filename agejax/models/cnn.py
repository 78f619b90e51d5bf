"""A small convolutional network without published weights: the trunk of system E."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models.backbone import Backbone, Features
from agejax.models.layers import BatchNorm, Conv, Dropout, Linear, global_mean
from agejax.models.lowerings.pool import max_pool


class CNN(Backbone):
    """Images [B, H, W, 3] -> maps [B, H / 2^n, W / 2^n, C] after n rounds, and their means.

    A round is a 3x3 convolution, ReLU, a 2x2 max pool, batch norm and dropout.

    Args:
      widths: channels of each round.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 128),
        dropout: float = 0.0,
        num_classes: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        convs, channels = [], 3
        for width in widths:
            convs.append(Conv(channels, width, 3, use_bias=True, dtype=dtype, rngs=rngs))
            channels = width
        self.convs = nnx.List(convs)
        self.norms = nnx.List([BatchNorm(width) for width in widths])
        self.dropout = Dropout(dropout)
        self.feature_dim, self.num_classes = channels, num_classes
        self.fc = Linear(channels, num_classes, rngs=rngs) if num_classes is not None else None

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.run(_round, conv, norm, self.dropout, x, train=train, rngs=rngs)
        return Features(x, global_mean(x))

    def layer_paths(self) -> list[tuple[str, ...]]:
        return [(f"convs/{i}", f"norms/{i}") for i in range(len(self.convs))]

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        assert self.fc is not None
        return self.fc(features.pooled)


def _round(
    conv: Conv,
    norm: BatchNorm,
    dropout: Dropout,
    x: jax.Array,
    *,
    train: bool,
    rngs: nnx.Rngs | None = None,
) -> jax.Array:
    x = norm(max_pool(jax.nn.relu(conv(x)), 2, 2), train=train)
    return dropout(x, train=train, rngs=rngs)
