"""Convolutions with one filter per channel."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from agejax.models import lowerings
from agejax.models.lowerings import native
from agejax.models.lowerings.windows import keeping_inputs, pad, plain_conv, taps

ROWS_PER_SUM = 16  # fewer are not vectorised, more compile slowly


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """One filter per channel: x [B, H, W, C], kernel [k, k, 1, C] -> [B, H', W', C]."""
    on_cpu = native.depthwise if native.has_depthwise(x, kernel, padding) else by_taps
    y: jax.Array = lowerings.choose(
        x,
        kernel,
        cpu=functools.partial(on_cpu, stride=stride, padding=padding),
        default=functools.partial(plain_conv, stride=stride, padding=padding, groups=x.shape[-1]),
    )
    return y


def _backward(
    stride: int, padding: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def plain(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        dx, dkernel = jax.vjp(
            lambda x, k: plain_conv(x, k, stride, padding, x.shape[-1]), x, kernel
        )[1](dy)
        return dx, dkernel

    has_native = native.has_depthwise(*saved, padding)
    on_cpu = native.depthwise_back if has_native else _backward_by_taps
    gradients: tuple[jax.Array, jax.Array] = lowerings.choose(
        *saved,
        dy,
        cpu=functools.partial(on_cpu, stride=stride, padding=padding),
        default=plain,
    )
    return gradients


depthwise_conv.defvjp(keeping_inputs(depthwise_conv), _backward)


def by_taps(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The sum of x's taps, each times its entry of the kernel."""
    # Unrolled, so that XLA fuses all taps into one pass over the output.
    tapped = taps(pad(x, padding), kernel.shape[0], stride)
    return functools.reduce(jnp.add, (tap * kernel[i, j, 0] for (i, j), tap in tapped))


def _backward_by_taps(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
    size, (_, height, width, _) = kernel.shape[0], x.shape
    span_h, span_w = (stride * (n - 1) + 1 for n in dy.shape[1:3])
    before = size - 1 - padding

    # dx: the transposed convolution, as taps of dy dilated by the stride.
    spread = lax.pad(
        dy,
        jnp.zeros((), dy.dtype),
        (
            (0, 0, 0),
            (before, height + size - 1 - before - span_h, stride - 1),
            (before, width + size - 1 - before - span_w, stride - 1),
            (0, 0, 0),
        ),
    )
    dx = functools.reduce(
        jnp.add,
        (tap * kernel[size - 1 - i, size - 1 - j, 0] for (i, j), tap in taps(spread, size, 1)),
    )

    dkernel = kernel_gradient(pad(x, padding), dy, size, stride, ROWS_PER_SUM)
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


def kernel_gradient(
    padded: jax.Array, dy: jax.Array, size: int, stride: int, rows_per_sum: int
) -> jax.Array:
    """The sum of each tap of padded x times dy: f32 [size, size, C].

    XLA:CPU computes such a sum one number at a time. Additions of whole rows it vectorises:
    `rows_per_sum` rows at a time, of a few images that stay in the cache, for the taps of one row
    of the kernel. A scan over the kernel's rows keeps the program short.
    """
    batch, rows, columns, channels = dy.shape
    parts = math.gcd(batch, lowerings.batch_parts())
    some = math.gcd(batch // parts, max(1, rows_per_sum // rows))  # images at a time, per part
    x, dy = (z.reshape(parts, -1, some, *z.shape[1:]) for z in (padded, dy))
    tall, wide = (stride * (n - 1) + 1 for n in (rows, columns))

    def kernel_row(_: None, i: jax.Array) -> tuple[None, jax.Array]:
        def add(sums: tuple[jax.Array, ...], at: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
            shape = (parts, 1, some, tall, *x.shape[4:])
            xs = lax.dynamic_slice(x, (0, at, 0, i, 0, 0), shape)[:, 0].astype(jnp.float32)
            dys = lax.dynamic_index_in_dim(dy, at, 1, keepdims=False).astype(jnp.float32)

            # A network has a thousand of these: lax's are traced in half the time of jnp's.
            def x_row(n: int, row: int, j: int) -> jax.Array:
                start, end = (0, n, row, j, 0), (parts, n + 1, row + 1, j + wide, channels)
                return lax.squeeze(lax.slice(xs, start, end, (1, 1, 1, stride, 1)), (1, 2))

            every = [(n, row) for n in range(some) for row in range(rows)]
            dy_rows = [dys[:, n, row] for n, row in every]

            def tap(j: int) -> jax.Array:
                products = (
                    lax.mul(x_row(n, stride * row, j), dy_row)
                    for (n, row), dy_row in zip(every, dy_rows, strict=True)
                )
                return functools.reduce(lax.add, products)

            return tuple(total + tap(j) for j, total in enumerate(sums)), None

        zero = jnp.zeros((parts, columns, channels))
        sums, _ = lax.scan(add, (zero,) * size, jnp.arange(x.shape[1]))
        return None, jnp.stack([total.sum(axis=(0, 1)) for total in sums])

    _, gradient = lax.scan(kernel_row, None, jnp.arange(size))
    return gradient
