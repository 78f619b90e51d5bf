"""Prepares uint8 images for a network: resizing, scaling to 0..1, luminance."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Training and evaluation sample bilinearly from images up to this factor larger than the network's.
# From images of the same size, a shifted face comes out blurred and an unshifted one does not: a
# network trained on the former predicted the latter 2 years older, at 64 px.
SUPERSAMPLING = 1.6
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def eval_images(images: jax.Array, size: int) -> jax.Array:
    """0..255 [B, H, W, 3] -> f32 [B, size, size, 3] in 0..1, sampled as in training."""
    out = shrink(images, size)
    if out is images:  # not shrunk, so not yet divided by 255
        out = images.astype(jnp.float32) / 255
    if out.shape[1:3] == (size, size):
        return out
    # Not len(images): the batch size of an exported model is a symbol.
    shape = (images.shape[0], size, size, 3)
    resized: jax.Array = jax.image.resize(out, shape, "linear", antialias=False)
    return resized


def shrink(images: jax.Array, size: int) -> jax.Array:
    """Shrinks images to at most `SUPERSAMPLING` times `size`: bilinear sampling would alias."""
    n, height, width, _ = images.shape
    limit = round(SUPERSAMPLING * size)
    if max(height, width) <= limit:
        return images
    shape = (n, min(height, limit), min(width, limit), 3)
    shrunk: jax.Array = jax.image.resize(images.astype(jnp.float32) / 255, shape, "linear")
    return shrunk


def luminance(images: jax.Array) -> jax.Array:
    """[..., 3] -> [..., 1]; written out, as XLA:CPU is slow at sums over a short last axis."""
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
