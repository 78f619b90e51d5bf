"""Shared parts of operations on windows of an image: padding, taps, XLA's own convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def plain_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int = 1
) -> jax.Array:
    """The convolution of XLA: x [B, H, W, C], kernel [k, k, C / groups, F] -> [B, H', W', F]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )


def keeping_inputs(convolve: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The forward rule of a convolution whose gradient needs x and the kernel."""

    def forward(
        x: jax.Array, kernel: jax.Array, stride: int, padding: int
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolve(x, kernel, stride, padding), (x, kernel)

    return forward


def pad(x: jax.Array, padding: int) -> jax.Array:
    """x [B, H, W, C] with `padding` zeros on every side of each image."""
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0))) if padding else x


def same_pads(n: int, size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding before and after an axis of length `n`."""
    total = max((-(-n // stride) - 1) * stride + size - n, 0)
    return total // 2, total - total // 2


def pad_same(x: jax.Array, size: int, stride: int, value: float = 0.0) -> jax.Array:
    """x [B, H, W, C] with TensorFlow's "same" padding for windows of `size` x `size`."""
    height, width = (same_pads(n, size, stride) for n in x.shape[1:3])
    return jnp.pad(x, ((0, 0), height, width, (0, 0)), constant_values=value)


def taps(x: jax.Array, size: int, stride: int) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields ((i, j), the part of padded x that the kernel's entry i, j multiplies)."""
    batch, height, width, channels = x.shape
    rows, columns = ((n - size) // stride * stride + 1 for n in (height, width))
    for i in range(size):
        for j in range(size):
            end = (batch, i + rows, j + columns, channels)
            yield (i, j), lax.slice(x, (0, i, j, 0), end, (1, stride, stride, 1))
