"""The learned positions of a transformer, for another image size than they were learned at."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from agejax.errors import UserError
from agejax.models.pretrained.layout import Transform


def fitted(transform: Transform) -> Transform:
    """A layout's transform that also brings `pos_embed` to the size of ours."""

    def transform_all(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if name == "pos_embed":
            return resize(tensor, shape[1])
        return transform(name, tensor, shape)

    return transform_all


def resize(positions: np.ndarray, tokens: int) -> np.ndarray:
    """[1, 1 + n^2, D] -> [1, tokens, D], the class token first, on a grid of rows.

    Bicubic (Keys 1981, a = -1/2) and antialiased when it shrinks, as timm's
    `resample_abs_pos_embed`.

    Raises:
      UserError: positions that are no square grid after the class token's.
    """
    if positions.ndim != 3 or math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:
        raise UserError(f"is {positions.shape}: no class token and then a square grid of positions")
    if positions.shape[1] == tokens:
        return positions
    dim, old, new = positions.shape[2], math.isqrt(positions.shape[1] - 1), math.isqrt(tokens - 1)
    grid = jnp.asarray(positions[0, 1:], jnp.float32).reshape(old, old, dim)
    grid = jax.image.resize(grid, (new, new, dim), "bicubic", antialias=True)
    return np.concatenate([positions[:, :1], np.asarray(grid).reshape(1, -1, dim)], axis=1)
