"""Maximum and mean over windows of an image."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from agejax.errors import UserError
from agejax.models import lowerings
from agejax.models.lowerings.windows import pad_same, same_pads, taps


def max_pool(
    x: jax.Array, size: int, stride: int, padding: int = 0, *, ceil: bool = False
) -> jax.Array:
    """Maximum over windows, padded with -inf as in torch.

    Args:
      ceil: whether a last window that extends past the padded image counts too.

    Raises:
      UserError: the padded image is smaller than a window.
    """
    if min(x.shape[1:3]) + 2 * padding < size:
        raise UserError(
            f"config.model.image_size: a pool of {size}x{size} pixels gets maps of only "
            f"{x.shape[1]}x{x.shape[2]}; give the network larger images or fewer pools"
        )
    height, width = (
        (padding, padding + (size - n - 2 * padding) % stride * ceil) for n in x.shape[1:3]
    )
    pads = ((0, 0), height, width, (0, 0))

    def plain(x: jax.Array) -> jax.Array:
        # A numpy constant: with a traced one JAX would not recognise a maximum, and could not
        # differentiate it.
        lowest = np.array(-np.inf, x.dtype)
        y: jax.Array = lax.reduce_window(
            x, lowest, lax.max, (1, size, size, 1), (1, stride, stride, 1), pads
        )
        return y

    def on_cpu(x: jax.Array) -> jax.Array:
        # The first of equal values gets the gradient, as above; XLA:CPU scatters it one number at
        # a time, which takes 10 times as long.
        padded = jnp.pad(x, pads, constant_values=-np.inf)
        tapped = (tap for _, tap in taps(padded, size, stride))
        return functools.reduce(lambda y, tap: jnp.where((tap > y) | (tap != tap), tap, y), tapped)

    if lowerings.is_plain():
        return plain(x)
    y: jax.Array = lowerings.choose(x, cpu=on_cpu, default=plain)
    return y


def mean_pool(x: jax.Array, size: int, stride: int, *, count_padding: bool) -> jax.Array:
    """Mean over windows, padded with zeros like TensorFlow's "same".

    Args:
      count_padding: whether windows at the border are divided by `size` squared too.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C].
    """
    padded = pad_same(x, size, stride)
    sums: jax.Array
    if lowerings.is_plain():
        zero, window = np.zeros((), x.dtype), (1, size, size, 1)
        sums = lax.reduce_window(padded, zero, lax.add, window, (1, stride, stride, 1), "VALID")
    else:
        # XLA:CPU takes several times as long for the gradient of `reduce_window`.
        sums = functools.reduce(jnp.add, (tap for _, tap in taps(padded, size, stride)))
    if count_padding:
        return sums / (size * size)
    rows, columns = (_inside(n, size, stride) for n in x.shape[1:3])
    return sums / jnp.asarray(np.outer(rows, columns)[..., None], x.dtype)


def _inside(n: int, size: int, stride: int) -> np.ndarray:
    """The number of entries that are not padding in each "same" window over `n` entries."""
    ones = np.pad(np.ones(n), same_pads(n, size, stride))
    windows = np.lib.stride_tricks.sliding_window_view(ones, size)[::stride]
    counts: np.ndarray = windows.sum(axis=1)
    return counts
