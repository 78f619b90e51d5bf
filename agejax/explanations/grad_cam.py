"""Grad-CAM: the feature maps that the network pools, weighted by their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from agejax.errors import UserError
from agejax.explanations.explanation import Explanation, as_partial, of_pixels

# Images, and what is added to the maps, [] or [B, h, w, C] -> values [B] and these maps.
Tapped = Callable[[Any, Any], tuple[Any, Any]]


def grad_cam(tapped: Tapped, image: np.ndarray) -> Explanation:
    """Grad-CAM (Selvaraju et al. 2017): each map times the prediction's mean gradient by it.

    The authors' last step, a ReLU, is left out: a place that lowers the age is as informative. Each
    cell's share is spread evenly over its pixels; with a linear head over pooled maps, the cells
    sum to the prediction except for the head's bias.

    Args:
      tapped: differentiable by JAX; bound as in `integrated_gradients`.
      image: uint8 [S, S, 3].

    Raises:
      UserError: the maps have one cell.
    """
    value, cells = jax.tree.map(np.asarray, _cam(as_partial(tapped), image[None]))
    if cells[0].size == 1:
        raise UserError(
            "--method=grad_cam: the network's last maps are 1 x 1; use --method=lime, "
            "or a config.model.image_size that leaves larger ones"
        )
    size = len(image)
    shares = cv2.resize(cells[0], (size, size), interpolation=cv2.INTER_LINEAR)
    return of_pixels(image, shares * (cells[0].size / size**2), float(value[0]), {})


@jax.jit
def _cam(tapped: jax.tree_util.Partial, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images [B, S, S, 3] -> values [B] and Grad-CAM's cells [B, h, w]."""

    def total(delta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        values, maps = tapped(images, delta)
        return jnp.sum(values), (values, maps)

    shape = jax.eval_shape(tapped, images, jnp.float32(0))[1]
    slopes, (values, maps) = jax.grad(total, has_aux=True)(jnp.zeros(shape.shape, jnp.float32))
    return values, jnp.sum(slopes.mean(axis=(1, 2), keepdims=True) * maps, axis=-1)
