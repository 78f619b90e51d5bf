"""Convolutions, and the matrix product for 1x1 convolutions."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from agejax.models import lowerings
from agejax.models.lowerings import native
from agejax.models.lowerings.depthwise import depthwise_conv
from agejax.models.lowerings.windows import keeping_inputs, pad, plain_conv, taps

# Where XLA:CPU's own convolution is slower than one matrix product of all taps (im2col): few input
# channels (an RGB stem), or few output pixels; the more channels, the more pixels.
FEW_CHANNELS = 4
FEW_PIXELS = 9
MANY_CHANNELS, THEIR_PIXELS = 384, 49
# Output pixels of a batch beyond which the kernel's gradient is summed tap by tap.
TAP_GRADIENT_MIN_PIXELS = 2**13
TILE_BYTES = 2**18  # processed together, to stay in a core's cache


def conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """Computes `plain_conv` in the form that suits the platform and the shape.

    Depthwise (groups = C = F), other groups, 1x1, few input channels (an RGB stem) and small maps
    have their own lowering, other convolutions their own gradient of the kernel.
    """
    size, _, inputs, outputs = kernel.shape
    if lowerings.is_plain():
        return plain_conv(x, kernel, stride, padding, groups)
    if groups == x.shape[-1] == outputs and inputs == 1:
        return depthwise_conv(x, kernel, stride, padding)
    if groups > 1:
        on_cpu = functools.partial(grouped, stride=stride, padding=padding, groups=groups)
    elif size == 1 and padding == 0:
        on_cpu = functools.partial(pointwise, stride=stride)
    elif native.has_rgb(x, kernel):
        on_cpu = functools.partial(native.rgb, stride=stride, padding=padding)
    elif inputs <= FEW_CHANNELS or _is_small(x, size, stride, padding):
        on_cpu = functools.partial(im2col, stride=stride, padding=padding)
    else:
        return dense(x, kernel, stride, padding)
    plain = functools.partial(plain_conv, stride=stride, padding=padding, groups=groups)
    y: jax.Array = lowerings.choose(x, kernel, cpu=on_cpu, default=plain)
    return y


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., C], kernel [C, F] -> [..., F], as one product of two matrices.

    If the kernel's gradient sums over several axes, XLA:CPU copies x's gradient into another order:
    6 times as long for 64 images of 32 x 32 pixels from 16 to 72 channels.
    """
    if lowerings.is_plain():
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def pointwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 1x1 convolution as one matrix product."""
    return matmul(x[:, ::stride, ::stride], kernel[0, 0])


def im2col(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """A convolution as one matrix product of all its taps side by side."""
    columns = [tap for _, tap in taps(pad(x, padding), kernel.shape[0], stride)]
    return matmul(jnp.concatenate(columns, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def grouped(x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    """A convolution in groups as one matrix product per group."""
    parts = [tap for _, tap in taps(pad(x, padding), kernel.shape[0], stride)]
    columns = jnp.concatenate([part.reshape(*part.shape[:3], groups, -1) for part in parts], -1)
    kernels = kernel.reshape(columns.shape[-1], groups, -1)
    y = jnp.einsum("bhwgi,igo->bhwgo", columns, kernels)
    return y.reshape(*y.shape[:3], -1)


def _is_small(x: jax.Array, size: int, stride: int, padding: int) -> bool:
    """Whether a dense convolution has few output pixels for its number of input channels.

    XLA:CPU is slow there: 64 images of 2 x 2 pixels from 512 to 512 channels and back take 2.4 s,
    but 0.04 s as one product; 16 images of 7 x 7 take 0.16 and 0.09 s. With 256 channels and 4 x 4
    output pixels, or 64 and 16 x 16, XLA is faster than the product.
    """
    rows, columns = ((n + 2 * padding - size) // stride + 1 for n in x.shape[1:3])
    pixels = rows * columns
    return pixels <= FEW_PIXELS or (pixels <= THEIR_PIXELS and x.shape[-1] >= MANY_CHANNELS)


# ---- dense convolutions: XLA's own, with our gradient of the kernel ------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """XLA's own convolution, with `kernel_gradient` for the kernel where that is faster."""
    return plain_conv(x, kernel, stride, padding)


def _dense_backward(
    stride: int, padding: int, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept

    def plain(x: jax.Array, dy: jax.Array) -> jax.Array:
        gradient: jax.Array
        (gradient,) = jax.vjp(lambda k: plain_conv(x, k, stride, padding), kernel)[1](dy)
        return gradient

    def on_cpu(x: jax.Array, dy: jax.Array) -> jax.Array:
        gradient = kernel_gradient(pad(x, padding), dy, kernel.shape[0], stride, TILE_BYTES)
        return gradient.astype(kernel.dtype)

    (dx,) = jax.vjp(lambda x: plain_conv(x, kernel, stride, padding), x)[1](dy)
    if dy.size // dy.shape[-1] <= TAP_GRADIENT_MIN_PIXELS:
        return dx, plain(x, dy)
    return dx, lowerings.choose(x, dy, cpu=on_cpu, default=plain)


dense.defvjp(keeping_inputs(plain_conv), _dense_backward)


def kernel_gradient(
    padded: jax.Array, dy: jax.Array, size: int, stride: int, tile_bytes: int
) -> jax.Array:
    """Each tap of padded x, transposed, times dy: f32 [size, size, C, F].

    For more than `TAP_GRADIENT_MIN_PIXELS` pixels, XLA:CPU's own takes 1.4 to 3 times as long (31
    GFLOP/s). Processes at most `tile_bytes` of images at a time, so that their taps stay in the
    cache.
    """
    batch, rows, columns, outputs = dy.shape
    inputs = padded.shape[-1]
    parts = math.gcd(batch, lowerings.batch_parts())
    some = math.gcd(batch // parts, max(1, tile_bytes // (4 * rows * columns * inputs)))
    split = (z.reshape(parts, -1, some, *z.shape[1:]).swapaxes(0, 1) for z in (padded, dy))

    def add(sums: list[jax.Array], at: tuple[jax.Array, ...]) -> tuple[list[jax.Array], None]:
        x, dy = at
        tapped = [tap for _, tap in taps(x.reshape(-1, *x.shape[2:]), size, stride)]
        dys = dy.reshape(parts, -1, outputs)
        return [
            total + jnp.einsum(
                "pnc,pnf->pcf", tap.reshape(parts, -1, inputs), dys,
                preferred_element_type=jnp.float32,
            )
            for total, tap in zip(sums, tapped, strict=True)
        ], None  # fmt: skip

    zero = jnp.zeros((parts, inputs, outputs))
    sums, _ = lax.scan(add, [zero] * size**2, tuple(split))
    return jnp.stack([total.sum(axis=0) for total in sums]).reshape(size, size, inputs, outputs)
