"""Vision transformers (Dosovitskiy et al. 2021), patches of 16; timm's names and numerics.

timm's `deit_*` are the same networks. With `gelu="tanh"` the numerics are those of
vision_transformer and big_vision in JAX, which published them first.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.errors import UserError
from agejax.models.backbone import Backbone, Features
from agejax.models.layers import (
    BatchNorm,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    drop_path_rates,
)
from agejax.models.lowerings.activation import gelu
from agejax.models.lowerings.attention import attention

PATCH = 16
Gelu = Literal["exact", "tanh"]
Stem = Literal["patches", "convolutions"]


class ConvStem(nnx.Module):
    """Four 3x3 convolutions of stride 2 with batch norm and ReLU, and a 1x1 one, make the tokens.

    Xiao et al. 2021, Early Convolutions Help Transformers See Better: a network that starts from
    random weights then learns in far fewer steps. Images [B, H, W, 3] -> [B, H / 16, W / 16, dim].
    """

    def __init__(self, dim: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        widths = (3, dim // 8, dim // 4, dim // 2, dim)
        make = functools.partial(Conv, dtype=dtype, rngs=rngs)
        self.convs = nnx.List([make(*pair, 3, stride=2) for pair in itertools.pairwise(widths)])
        self.norms = nnx.List([BatchNorm(width) for width in widths[1:]])
        self.proj = make(dim, dim, 1, use_bias=True)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x), train=train))
        tokens: jax.Array = self.proj(x)
        return tokens


class Block(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        drop_path: float,
        gelu: Gelu,
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads, self.gelu = heads, gelu
        make = functools.partial(Linear, dtype=dtype, rngs=rngs)
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.qkv, self.proj = make(dim, 3 * dim), make(dim, dim)
        self.fc1, self.fc2 = make(dim, 4 * dim), make(4 * dim, dim)
        self.dropout, self.drop_path = Dropout(dropout), DropPath(drop_path)

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        drop = functools.partial(self.dropout, train=train, rngs=rngs)
        drop_path = functools.partial(self.drop_path, train=train, rngs=rngs)
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        x = x + drop_path(drop(self.proj(attention(qkv).reshape(batch, tokens, dim))))
        hidden = self.fc1(self.norm2(x))
        hidden = gelu(hidden) if self.gelu == "exact" else jax.nn.gelu(hidden, approximate=True)
        return x + drop_path(drop(self.fc2(drop(hidden))))


class ViT(Backbone):
    """Images [B, H, W, 3] -> the normalised class token [B, dim], or logits.

    Args:
      image_size: edge of the images, pixels, a multiple of 16, for which positions are learned.
        For images of another multiple of 16 they are resized.
      stem: what makes tokens of the image: a linear map of each patch, or a `ConvStem`, for which
        there are no published weights.
      gelu: exact, or its approximation by a tanh, which is up to 5e-4 off.
      drop_path: rate of the last block's `DropPath`, for attention and MLP each; it grows from 0
        at the first block.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        image_size: int,
        num_classes: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        stem: Stem = "patches",
        gelu: Gelu = "exact",
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if image_size % PATCH:
            raise UserError(
                f"config.model.image_size: a ViT needs a multiple of {PATCH}, got {image_size}"
            )
        tokens = (image_size // PATCH) ** 2 + 1
        init = jax.nn.initializers.truncated_normal(0.02)
        self.feature_dim, self.num_classes = dim, num_classes
        make = functools.partial(Linear, PATCH * PATCH * 3) if stem == "patches" else ConvStem
        self.patch_embed = make(dim, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(init(rngs.params(), (1, 1, dim), jnp.float32))
        self.pos_embed = nnx.Param(init(rngs.params(), (1, tokens, dim), jnp.float32))
        self.blocks = nnx.List(
            [
                Block(dim, heads, dropout, rate, gelu, dtype=dtype, rngs=rngs)
                for rate in drop_path_rates(drop_path, depth)
            ]
        )
        self.norm = LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.head = Linear(dim, num_classes, rngs=rngs) if num_classes is not None else None

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        batch, height, width, _ = x.shape
        if height % PATCH or width % PATCH:
            raise UserError(f"a ViT needs images of a multiple of {PATCH} px")
        if isinstance(self.patch_embed, ConvStem):
            x = self.patch_embed(x, train=train)
            x = x.reshape(batch, -1, x.shape[-1])
        else:
            x = x.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3)
            x = self.patch_embed(x.swapaxes(2, 3).reshape(batch, -1, PATCH * PATCH * 3))
        first = jnp.broadcast_to(self.cls_token[...], (batch, 1, x.shape[-1]))
        x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        positions = resize_positions(self.pos_embed[...], height // PATCH, width // PATCH)
        x = x + positions.astype(x.dtype)
        x = self.dropout(x, train=train, rngs=rngs)
        for block in self.blocks:
            x = self.run(block, x, train=train, rngs=rngs)
        # Two calls: if nobody uses the maps, they are dead code.
        maps = self.norm(x[:, 1:]).reshape(batch, height // PATCH, width // PATCH, -1)
        return Features(maps, self.norm(x[:, 0].astype(jnp.float32)))

    def layer_paths(self) -> list[tuple[str, ...]]:
        *first, last = (f"blocks/{i}" for i in range(len(self.blocks)))
        stem = ("patch_embed", "cls_token", "pos_embed")
        return [stem, *((path,) for path in first), (last, "norm")]

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        assert self.head is not None
        return self.head(features.pooled)


def resize_positions(positions: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes learned positions to another grid: [1, 1 + n * n, D] -> [1, 1 + height * width, D].

    The first one, of the class token, stays. The others are resized in rows and columns: bicubic
    (Keys 1981, a = -1/2), antialiased if the grid shrinks, as in timm's `resample_abs_pos_embed`.
    """
    side, dim = math.isqrt(positions.shape[1] - 1), positions.shape[2]
    if (height, width) == (side, side):
        return positions
    grid = positions[0, 1:].reshape(side, side, dim)
    grid = jax.image.resize(grid, (height, width, dim), "bicubic", antialias=True)
    return jnp.concatenate([positions[:, :1], grid.reshape(1, -1, dim)], axis=1)


ti16 = functools.partial(ViT, 192, 12, 3)
s16 = functools.partial(ViT, 384, 12, 6)
b16 = functools.partial(ViT, 768, 12, 12)
l16 = functools.partial(ViT, 1024, 24, 16)
