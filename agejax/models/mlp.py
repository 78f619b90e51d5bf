"""A multilayer perceptron: the baseline without any knowledge of a pixel's place in the image."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.errors import UserError
from agejax.models.backbone import Backbone, Features
from agejax.models.layers import BatchNorm, Dropout, Linear


class MLP(Backbone):
    """Images [B, H, W, 3], flattened -> features [B, C] of the last width; maps are [B, 1, 1, C].

    A layer is dense, batch norm, ReLU and dropout. Most parameters are in the first layer: 3 H W
    times its width.

    Args:
      widths: of the hidden layers.
      image_size: H and W, pixels; other sizes do not work.

    Raises:
      UserError: `widths` is empty.
    """

    def __init__(
        self,
        *,
        image_size: int,
        widths: Sequence[int] = (512, 256),
        dropout: float = 0.0,
        num_classes: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if not widths:
            raise UserError("config.model.options.widths: it is empty; give one width per layer")
        init, inputs = jax.nn.initializers.he_normal(), 3 * image_size**2
        layers = []
        for width in widths:
            layers.append(Linear(inputs, width, init=init, dtype=dtype, rngs=rngs))
            inputs = width
        self.layers = nnx.List(layers)
        self.norms = nnx.List([BatchNorm(width) for width in widths])
        self.dropout = Dropout(dropout)
        self.feature_dim, self.num_classes = inputs, num_classes
        self.fc = Linear(inputs, num_classes, rngs=rngs) if num_classes is not None else None

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        x = x.reshape(x.shape[0], 1, 1, -1)
        for dense, norm in zip(self.layers, self.norms, strict=True):
            x = self.run(_layer, dense, norm, self.dropout, x, train=train, rngs=rngs)
        return Features(x, x[:, 0, 0].astype(jnp.float32))

    def layer_paths(self) -> list[tuple[str, ...]]:
        return [(f"layers/{i}", f"norms/{i}") for i in range(len(self.layers))]

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        assert self.fc is not None
        return self.fc(features.pooled)


def _layer(
    dense: Linear,
    norm: BatchNorm,
    dropout: Dropout,
    x: jax.Array,
    *,
    train: bool,
    rngs: nnx.Rngs | None = None,
) -> jax.Array:
    x = jax.nn.relu(norm(dense(x), train=train))
    return dropout(x, train=train, rngs=rngs)
