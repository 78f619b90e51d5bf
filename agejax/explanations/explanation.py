"""What all methods share: explanations, backdrops for hidden parts, and batches of one size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import cv2
import jax
import numpy as np

from agejax.explanations.superpixels import GRID, superpixels

Fill = Literal["blur", "mean"]
# Images [B, S, S, 3], uint8 or f32 of 0..255 -> what is explained, [B].
Value = Callable[[Any], Any]
BATCH = 32  # images per call of the network, always full, so that it compiles once


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What each part of an image adds to the prediction, in the prediction's unit.

    Attributes:
      heat: f32 [S, S]. LIME: the weight of each pixel's segment. Else: each pixel's own share.
      segments: int32 [S, S], 0..K-1.
      weights: f32 [K], of the segments. Except for LIME: the sums of their pixels' shares.
      prediction: what is explained, years or a probability.
      checks: how far to trust it. LIME: `r2` of the local fit. Integrated gradients: `baseline`,
        the backdrop's prediction, and `gap`, by how much the shares miss the difference to it.
    """

    heat: np.ndarray
    segments: np.ndarray
    weights: np.ndarray
    prediction: float
    checks: dict[str, float] = dataclasses.field(default_factory=dict)


def backdrop(image: np.ndarray, fill: Fill = "blur") -> np.ndarray:
    """The image with its information removed: very blurred, or its mean colour; uint8 [S, S, 3]."""
    if fill == "mean":
        colour = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
        return np.broadcast_to(colour, image.shape).copy()
    return cv2.GaussianBlur(image, (0, 0), len(image) / GRID)


def of_pixels(
    image: np.ndarray, shares: np.ndarray, prediction: float, checks: dict[str, float]
) -> Explanation:
    """An `Explanation` from the shares of pixels [S, S], which are summed over superpixels."""
    segments = superpixels(image)
    weights = np.bincount(segments.ravel(), shares.ravel()).astype(np.float32)
    return Explanation(shares.astype(np.float32), segments, weights, prediction, checks)


def full_batches(count: int, batch: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields rows 0..count-1 in batches that are all full, and how many rows of each count."""
    for start in range(0, count, batch):
        yield np.minimum(np.arange(start, start + batch), count - 1), min(batch, count - start)


def as_partial(function: Callable[..., Any]) -> jax.tree_util.Partial:
    """The function as a `jax.tree_util.Partial`, which `jax.jit` takes as an argument."""
    if isinstance(function, jax.tree_util.Partial):
        return function
    return jax.tree_util.Partial(function)


@jax.jit
def values_of(value: jax.tree_util.Partial, images: jax.Array) -> jax.Array:
    """`value(images)`, compiled once for all partials of the same function."""
    values: jax.Array = value(images)
    return values
