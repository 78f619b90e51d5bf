"""Integrated gradients: shares of pixels along the path from a backdrop to the image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from agejax.explanations.explanation import (
    BATCH,
    Explanation,
    Fill,
    Value,
    as_partial,
    backdrop,
    full_batches,
    of_pixels,
    values_of,
)

STEPS = 128  # between backdrop and image


def integrated_gradients(
    value: Value,
    image: np.ndarray,
    *,
    steps: int = STEPS,
    fill: Fill = "blur",
    batch: int = BATCH,
) -> Explanation:
    """Integrated gradients (Sundararajan et al. 2017), from a backdrop to the image.

    A pixel's share is (image - backdrop) · the mean gradient along the straight line between them,
    by the midpoint rule. The shares sum to the difference of the two predictions, up to `gap`.

    Args:
      value: differentiable by JAX. A `jax.tree_util.Partial` is compiled once for all images,
        whatever it binds, and keeps parameters out of the compiled program.
      image: uint8 [S, S, 3].
      fill: the kind of `backdrop`.
    """
    value = as_partial(value)
    end, start = image.astype(np.float32), backdrop(image, fill).astype(np.float32)
    slope = np.zeros(image.shape, np.float64)
    for rows, kept in full_batches(steps, batch):
        along = ((rows + 0.5) / steps).astype(np.float32)
        share = (np.arange(batch) < kept).astype(np.float32) / steps
        slope += np.asarray(_slope(value, start, end, along, share), np.float64)
    shares = ((end - start) * slope).sum(axis=2)
    ends = np.repeat(np.stack([end, start]), [1, batch - 1], axis=0)
    prediction, baseline = np.asarray(values_of(value, ends), np.float64)[:2].tolist()
    gap = float(shares.sum() - (prediction - baseline))
    return of_pixels(image, shares, prediction, {"baseline": baseline, "gap": gap})


@jax.jit
def _slope(
    value: jax.tree_util.Partial,
    start: jax.Array,
    end: jax.Array,
    along: jax.Array,
    share: jax.Array,
) -> jax.Array:
    """Σ share_i · d value / d image, at `along_i` of the path; [B] and [S, S, 3] -> [S, S, 3]."""
    images = start + along[:, None, None, None] * (end - start)
    # Weighted before the derivative: the backward pass then sums over the steps.
    slope = jax.grad(lambda x: jnp.sum(share * value(images + x)))
    gradient: jax.Array = slope(jnp.zeros_like(start))
    return gradient
