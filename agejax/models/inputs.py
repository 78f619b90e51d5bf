"""What becomes of uint8 images before a network sees them: resizing, 0..1, luminance."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Training and evaluation sample bilinearly from images up to this much larger than the network's.
# From images no larger, a face that is moved comes out blurred and one in its place does not: a
# network trained on the former took the latter, at 64 px, for 2 years older.
SUPERSAMPLING = 1.6
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def eval_images(images: jax.Array, size: int) -> jax.Array:
    """0..255 [B, H, W, 3] -> f32 [B, size, size, 3] in 0..1, sampled as training samples them."""
    out = shrink(images, size)
    if out is images:  # not shrunk, and so not divided yet
        out = images.astype(jnp.float32) / 255
    if out.shape[1:3] == (size, size):
        return out
    # Not len(images): an exported model's batch has a symbol for a size.
    shape = (images.shape[0], size, size, 3)
    resized: jax.Array = jax.image.resize(out, shape, "linear", antialias=False)
    return resized


def shrink(images: jax.Array, size: int) -> jax.Array:
    """Images over `SUPERSAMPLING` times the size, made so: a bilinear sampling would alias."""
    n, height, width, _ = images.shape
    limit = round(SUPERSAMPLING * size)
    if max(height, width) <= limit:
        return images
    shape = (n, min(height, limit), min(width, limit), 3)
    shrunk: jax.Array = jax.image.resize(images.astype(jnp.float32) / 255, shape, "linear")
    return shrunk


def luminance(images: jax.Array) -> jax.Array:
    """[..., 3] -> [..., 1]; spelled out, as XLA:CPU is slow in sums over a short last axis."""
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
