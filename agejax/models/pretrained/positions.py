"""Resizes a transformer's learned positions to another image size."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from agejax.errors import UserError
from agejax.models import vit
from agejax.models.pretrained.layout import Transform


def fitted(transform: Transform) -> Transform:
    """The transform of a layout, extended to resize `pos_embed` to the size of ours."""

    def transform_all(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if name == "pos_embed":
            return resize(tensor, shape[1])
        return transform(name, tensor, shape)

    return transform_all


def resize(positions: np.ndarray, tokens: int) -> np.ndarray:
    """[1, 1 + n^2, D] -> [1, tokens, D], as `vit.resize_positions` does.

    Raises:
      UserError: after the class token's, the positions do not form a square grid.
    """
    if positions.ndim != 3 or math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:
        raise UserError(f"is {positions.shape}: no class token and then a square grid of positions")
    if positions.shape[1] == tokens:
        return positions
    side = math.isqrt(tokens - 1)
    return np.asarray(vit.resize_positions(jnp.asarray(positions, jnp.float32), side, side))
