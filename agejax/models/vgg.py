"""VGG 16 and 19 (Simonyan & Zisserman 2014), with and without batch norm; torchvision's names."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models.backbone import Backbone, Features
from agejax.models.layers import BatchNorm, Conv, Dropout, Linear, global_mean
from agejax.models.lowerings.pool import max_pool

WIDTHS = (64, 128, 256, 512, 512)
VGG16 = (2, 2, 3, 3, 3)
VGG19 = (2, 2, 4, 4, 4)


class VGG(Backbone):
    """Images [B, H, W, 3] -> globally averaged features [B, 512], or logits.

    The three published dense layers, most of the parameters, exist only with `num_classes`.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        *,
        batch_norm: bool = False,
        num_classes: int | None = None,
        dropout: float = 0.5,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.depths, self.feature_dim, self.num_classes = depths, WIDTHS[-1], num_classes
        convs, norms, channels = [], [], 3
        for depth, width in zip(depths, WIDTHS, strict=True):
            for _ in range(depth):
                convs.append(Conv(channels, width, 3, use_bias=True, dtype=dtype, rngs=rngs))
                norms.append(BatchNorm(width))
                channels = width
        self.convs = nnx.List(convs)
        self.norms = nnx.List(norms) if batch_norm else None
        classifier = None
        if num_classes is not None:
            dense = functools.partial(Linear, init=jax.nn.initializers.normal(0.01), rngs=rngs)
            classifier = nnx.List(
                [
                    dense(512 * 7 * 7, 4096, dtype=dtype),
                    dense(4096, 4096, dtype=dtype),
                    dense(4096, num_classes),
                ]
            )
        self.classifier = classifier
        self.dropout = Dropout(dropout)

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        convs, norms = list(self.convs), list(self.norms or ())
        end = 0
        for depth in self.depths:
            stage = slice(end, end + depth)
            x = self.run(_stage, convs[stage], norms[stage], x, train=train)
            end += depth
        return Features(x, global_mean(x))

    def layer_paths(self) -> list[tuple[str, ...]]:
        return [(f"convs/{i}", f"norms/{i}") for i in range(len(self.convs))]

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        assert self.classifier is not None
        x = adaptive_mean(features.maps, 7).reshape(len(features.maps), -1)
        for dense in self.classifier[:2]:
            x = self.dropout(jax.nn.relu(dense(x)), train=train, rngs=rngs)
        return self.classifier[2](x.astype(jnp.float32))


def _stage(
    convs: Sequence[Conv], norms: Sequence[BatchNorm], x: jax.Array, *, train: bool
) -> jax.Array:
    """Convolutions up to a max pool; `norms` is empty without batch norm."""
    for i, conv in enumerate(convs):
        x = conv(x)
        if norms:
            x = norms[i](x, train=train)
        x = jax.nn.relu(x)
    return max_pool(x, 2, 2)


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, C, size, size], flattened as in torch; each cell is its part's mean."""

    def parts(n: int) -> jax.Array:
        # Cell i averages floor(i n / size) up to ceil((i + 1) n / size).
        i, k = jnp.arange(size)[:, None], jnp.arange(n)[None]
        inside = (k >= i * n // size) & (k < -(-(i + 1) * n // size))
        return inside / inside.sum(axis=1, keepdims=True)

    _, height, width, _ = x.shape
    rows, columns = parts(height).astype(x.dtype), parts(width).astype(x.dtype)
    return jnp.einsum("bhwc,ih,jw->bcij", x, rows, columns)


vgg16 = functools.partial(VGG, VGG16)
vgg16_bn = functools.partial(VGG, VGG16, batch_norm=True)
vgg19 = functools.partial(VGG, VGG19)
vgg19_bn = functools.partial(VGG, VGG19, batch_norm=True)
