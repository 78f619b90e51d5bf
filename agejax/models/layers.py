"""The layers all models share, with lowerings that make XLA:CPU fast where it is not.

XLA:CPU has no fast convolution in groups, its 1x1 convolutions are slow backwards, and autodiff of
batch norm reads its input more often than need be. On a CPU the functions below compute the same
values as shifted multiply-adds and matrix products; elsewhere as the plain convolution. The choice
is made at lowering (`lax.platform_dependent`), so a program exported for a GPU has the plain one.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from agejax.errors import UserError

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Initializer = jax.nn.initializers.Initializer

# torchvision's default for convolutions (He et al. 2015): N(0, 2 / fan out).
trunc_normal = jax.nn.initializers.truncated_normal(0.02)
kaiming_fan_out = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
TERMS = 16  # fewer are not vectorised, more take long to compile
CACHE = 2**18  # bytes that are worked on together, to stay in a core's cache
PIXELS = 2**13  # of a batch's outputs, beyond which a convolution's kernel has our gradient
_plain, _parts = False, 1


def plain_lowering() -> contextlib.AbstractContextManager[None]:
    """While active, what is traced uses the plain convolution and batch norm on every platform.

    Only tracing looks at it: a jitted function that has been traced keeps what it has.
    """
    return _lowering(plain=True)


def platform_lowering() -> contextlib.AbstractContextManager[None]:
    """While active, what is traced uses what suits the platform: the default."""
    return _lowering(plain=False)


@contextlib.contextmanager
def _lowering(plain: bool) -> Iterator[None]:
    global _plain
    before, _plain = _plain, plain
    try:
        yield
    finally:
        _plain = before


@contextlib.contextmanager
def batch_split(parts: int) -> Iterator[None]:
    """While active, what is traced keeps apart the equal parts of the batch on `parts` devices."""
    global _parts
    before, _parts = _parts, parts
    try:
        yield
    finally:
        _parts = before


# ---- convolutions --------------------------------------------------------------------------------


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


def conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """As `plain_conv`, in the way that suits the platform and the shape.

    Depthwise (groups = C = F), other groups, 1x1, few input channels (an RGB stem) and small maps
    have their own lowering, other kernels their own gradient.
    """
    size, _, inputs, outputs = kernel.shape
    if _plain:
        return plain_conv(x, kernel, stride, padding, groups)
    if groups == x.shape[-1] == outputs and inputs == 1:
        return depthwise_conv(x, kernel, stride, padding)
    if groups > 1:
        on_cpu = functools.partial(_grouped, stride=stride, padding=padding, groups=groups)
    elif size == 1 and padding == 0:
        on_cpu = functools.partial(_pointwise, stride=stride)
    elif inputs <= 4 or _is_small(x, size, stride, padding):
        on_cpu = functools.partial(_im2col, stride=stride, padding=padding)
    else:
        return _dense(x, kernel, stride, padding)
    plain = functools.partial(plain_conv, stride=stride, padding=padding, groups=groups)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., C], kernel [C, F] -> [..., F], as one product of two matrices.

    XLA:CPU copies x's gradient into another order where several axes are summed over for the
    kernel's: 6 times as long, of 64 images of 32 x 32 pixels from 16 to 72 channels.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _pointwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return matmul(x[:, ::stride, ::stride], kernel[0, 0])


def _keeping_inputs(convolve: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The forward rule of a convolution whose gradient needs x and the kernel."""

    def forward(
        x: jax.Array, kernel: jax.Array, stride: int, padding: int
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolve(x, kernel, stride, padding), (x, kernel)

    return forward


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return plain_conv(x, kernel, stride, padding)


def _dense_backward(
    stride: int, padding: int, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept

    def plain(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda k: plain_conv(x, k, stride, padding), kernel)[1](dy)[0]

    def on_cpu(x: jax.Array, dy: jax.Array) -> jax.Array:
        gradient = _dense_kernel_gradient(_pad(x, padding), dy, kernel.shape[0], stride)
        return gradient.astype(kernel.dtype)

    (dx,) = jax.vjp(lambda x: plain_conv(x, kernel, stride, padding), x)[1](dy)
    if dy.size // dy.shape[-1] <= PIXELS:
        return dx, plain(x, dy)
    return dx, lax.platform_dependent(x, dy, cpu=on_cpu, default=plain)


_dense.defvjp(_keeping_inputs(plain_conv), _dense_backward)


def _dense_kernel_gradient(padded: jax.Array, dy: jax.Array, size: int, stride: int) -> jax.Array:
    """Each tap of padded x, transposed, times dy: f32 [size, size, C, F].

    Of more than `PIXELS` pixels, XLA:CPU's own takes 1.4 to 3 times as long, 31 GFLOP/s. A few
    images at a time, so that their taps stay in the cache.
    """
    batch, rows, columns, outputs = dy.shape
    inputs = padded.shape[-1]
    parts = math.gcd(batch, _parts)
    some = math.gcd(batch // parts, max(1, CACHE // (4 * rows * columns * inputs)))
    split = (z.reshape(parts, -1, some, *z.shape[1:]).swapaxes(0, 1) for z in (padded, dy))

    def add(sums: list[jax.Array], at: tuple[jax.Array, ...]) -> tuple[list[jax.Array], None]:
        x, dy = at
        taps = [tap for _, tap in _taps(x.reshape(-1, *x.shape[2:]), size, stride)]
        dys = dy.reshape(parts, -1, outputs)
        return [
            total + jnp.einsum(
                "pnc,pnf->pcf", tap.reshape(parts, -1, inputs), dys,
                preferred_element_type=jnp.float32,
            )
            for total, tap in zip(sums, taps, strict=True)
        ], None  # fmt: skip

    zero = jnp.zeros((parts, inputs, outputs))
    sums, _ = lax.scan(add, [zero] * size**2, tuple(split))
    return jnp.stack([total.sum(axis=0) for total in sums]).reshape(size, size, inputs, outputs)


def _is_small(x: jax.Array, size: int, stride: int, padding: int) -> bool:
    """Whether few pixels come out of a dense convolution for the channels that go in.

    XLA:CPU is slow there: 64 images of 2 x 2 pixels from 512 to 512 channels and back take 2.4 s,
    as one product .04 s; 16 of 7 x 7 take .16 and .09 s. From 256 channels to 4 x 4 pixels, or from
    64 to 16 x 16, it is faster than the product.
    """
    rows, columns = ((n + 2 * padding - size) // stride + 1 for n in x.shape[1:3])
    return rows * columns <= 9 or (rows * columns <= 49 and x.shape[-1] >= 384)


def _im2col(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    taps = [tap for _, tap in _taps(_pad(x, padding), kernel.shape[0], stride)]
    return matmul(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def _grouped(x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    taps = [tap for _, tap in _taps(_pad(x, padding), kernel.shape[0], stride)]
    columns = jnp.concatenate([tap.reshape(*tap.shape[:3], groups, -1) for tap in taps], axis=-1)
    kernels = kernel.reshape(columns.shape[-1], groups, -1)
    y = jnp.einsum("bhwgi,igo->bhwgo", columns, kernels)
    return y.reshape(*y.shape[:3], -1)


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """One filter a channel: x [B, H, W, C], kernel [k, k, 1, C] -> [B, H', W', C]."""
    return _depthwise(x, kernel, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_depthwise_taps, stride=stride, padding=padding),
        default=functools.partial(plain_conv, stride=stride, padding=padding, groups=x.shape[-1]),
    )


def _depthwise_backward(
    stride: int, padding: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def plain(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, k: plain_conv(x, k, stride, padding, x.shape[-1]), x, kernel)[1](
            dy
        )

    return lax.platform_dependent(
        *saved,
        dy,
        cpu=functools.partial(_depthwise_taps_backward, stride=stride, padding=padding),
        default=plain,
    )


_depthwise.defvjp(_keeping_inputs(_depthwise), _depthwise_backward)


def _depthwise_taps(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    # Unrolled, XLA fuses all taps into one pass over the output.
    taps = _taps(_pad(x, padding), kernel.shape[0], stride)
    return functools.reduce(jnp.add, (tap * kernel[i, j, 0] for (i, j), tap in taps))


def _depthwise_taps_backward(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
    size, (_, height, width, _) = kernel.shape[0], x.shape
    span_h, span_w = (stride * (n - 1) + 1 for n in dy.shape[1:3])
    before = size - 1 - padding

    # dx: the transposed convolution, as taps of dy spread out by the stride.
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
        (tap * kernel[size - 1 - i, size - 1 - j, 0] for (i, j), tap in _taps(spread, size, 1)),
    )

    dkernel = _depthwise_kernel_gradient(_pad(x, padding), dy, size, stride)
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


def _depthwise_kernel_gradient(
    padded: jax.Array, dy: jax.Array, size: int, stride: int
) -> jax.Array:
    """What each tap of padded x gives when multiplied with dy and summed: f32 [size, size, C].

    XLA:CPU takes one number after the other in such a sum. Written as additions of whole rows, it
    vectorises them: `TERMS` rows at a time, of a few images that stay in the cache, for the taps of
    one row of the kernel. A scan over the kernel's rows keeps the program short.
    """
    batch, rows, columns, channels = dy.shape
    parts = math.gcd(batch, _parts)
    some = math.gcd(batch // parts, max(1, TERMS // rows))  # images at a time, of each part
    x, dy = (z.reshape(parts, -1, some, *z.shape[1:]) for z in (padded, dy))
    tall, wide = (stride * (n - 1) + 1 for n in (rows, columns))

    def kernel_row(_: None, i: jax.Array) -> tuple[None, jax.Array]:
        def add(sums: tuple[jax.Array, ...], at: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
            shape = (parts, 1, some, tall, *x.shape[4:])
            xs = lax.dynamic_slice(x, (0, at, 0, i, 0, 0), shape)[:, 0].astype(jnp.float32)
            dys = lax.dynamic_index_in_dim(dy, at, 1, keepdims=False).astype(jnp.float32)

            def tap(j: int) -> jax.Array:
                products = (
                    xs[:, n, stride * row, j : j + wide : stride] * dys[:, n, row]
                    for n in range(some)
                    for row in range(rows)
                )
                return functools.reduce(jnp.add, products)

            return tuple(total + tap(j) for j, total in enumerate(sums)), None

        zero = jnp.zeros((parts, columns, channels))
        sums, _ = lax.scan(add, (zero,) * size, jnp.arange(x.shape[1]))
        return None, jnp.stack([total.sum(axis=(0, 1)) for total in sums])

    return lax.scan(kernel_row, None, jnp.arange(size))[1]


def _pad(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0))) if padding else x


def _taps(x: jax.Array, size: int, stride: int) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields ((i, j), what the kernel's entry i, j is multiplied with) of padded x."""
    batch, height, width, channels = x.shape
    rows, columns = ((n - size) // stride * stride + 1 for n in (height, width))
    for i in range(size):
        for j in range(size):
            end = (batch, i + rows, j + columns, channels)
            yield (i, j), lax.slice(x, (0, i, j, 0), end, (1, stride, stride, 1))


# ---- batch norm ----------------------------------------------------------------------------------


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the batch's own statistics (Ioffe & Szegedy 2015).

    Args:
      x: [B, H, W, C]. Under jit the batch is the global one, on however many devices.
      scale, bias: float32 [C].

    Returns:
      y as x, and mean and biased variance, float32 [C], which carry no gradient.
    """
    if _plain:
        x32 = x.astype(jnp.float32)
        mean, variance = jnp.mean(x32, axis=(0, 1, 2)), jnp.var(x32, axis=(0, 1, 2))
        y = (x32 - mean) * lax.rsqrt(variance + epsilon) * scale + bias
        return y.astype(x.dtype), mean, variance
    return _batch_norm(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    x32, n = x.astype(jnp.float32), x.size // x.shape[-1]
    # Both sums in one pass; float32 sums of squares may end up a little below zero.
    mean = jnp.sum(x32, axis=(0, 1, 2)) / n
    variance = jnp.maximum(jnp.sum(x32 * x32, axis=(0, 1, 2)) / n - mean * mean, 0.0)
    inverse = lax.rsqrt(variance + epsilon)
    y = x32 * (scale * inverse) + (bias - mean * scale * inverse)
    return (y.astype(x.dtype), mean, variance), (x, scale, mean, inverse)


def _batch_norm_backward(
    epsilon: float, saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = saved
    dy, n = cotangents[0].astype(jnp.float32), x.size // x.shape[-1]
    x32 = x.astype(jnp.float32)
    dbias = jnp.sum(dy, axis=(0, 1, 2))
    dscale = (jnp.sum(dy * x32, axis=(0, 1, 2)) - mean * dbias) * inverse
    # dx is one multiply-add of dy and x, with everything else a constant of the channel.
    a = scale * inverse
    b = -a * inverse * dscale / n
    dx = a * dy + b * x32 - (a * dbias / n + b * mean)
    return dx.astype(x.dtype), dscale, dbias


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


# ---- modules -------------------------------------------------------------------------------------


def same_pads(n: int, size: int, stride: int) -> tuple[int, int]:
    """Padding before and after an axis of length `n` that TensorFlow calls "same"."""
    total = max((-(-n // stride) - 1) * stride + size - n, 0)
    return total // 2, total - total // 2


def pad_same(x: jax.Array, size: int, stride: int, value: float = 0.0) -> jax.Array:
    """x [B, H, W, C] padded as TensorFlow's "same" does for a window of `size` x `size`."""
    height, width = (same_pads(n, size, stride) for n in x.shape[1:3])
    return jnp.pad(x, ((0, 0), height, width, (0, 0)), constant_values=value)


class Conv(nnx.Module):
    """Square convolution; parameters float32.

    Args:
      padding: on every side, as in torch; None for size // 2; "same" for TensorFlow's, which at
        stride 2 depends on the input's size and is one more after than before.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: int | Literal["same"] | None = None,
        groups: int = 1,
        use_bias: bool = False,
        init: Initializer = kaiming_fan_out,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.size, self.stride, self.groups, self.dtype = size, stride, groups, dtype
        self.padding: int | str = size // 2 if padding is None else padding
        shape = (size, size, inputs // groups, outputs)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, x, padding = self.kernel[...].astype(self.dtype), x.astype(self.dtype), self.padding
        if isinstance(padding, str):
            pads = {same_pads(n, self.size, self.stride) for n in x.shape[1:3]}
            before, after = next(iter(pads))
            if len(pads) == 1 and before == after:
                padding = before
            else:
                x, padding = pad_same(x, self.size, self.stride), 0
        y = conv(x, kernel, self.stride, padding, self.groups)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class BatchNorm(nnx.Module):
    """Batch norm with torch's conventions: momentum is the new value's share, variance unbiased.

    `frozen` makes it use, and keep, its running statistics in training too. `observing` makes it
    use them there, and move them all the same.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        self.epsilon, self.momentum = epsilon, momentum
        self.frozen = self.observing = False
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale, bias = self.scale[...], self.bias[...]
        fixed = not train or self.frozen
        if fixed or self.observing:
            a = scale * lax.rsqrt(self.var[...] + self.epsilon)
            y = (x * a + (bias - self.mean[...] * a)).astype(x.dtype)
            if fixed:
                return y
            _, mean, variance = batch_norm(x, scale, bias, self.epsilon)
        else:
            y, mean, variance = batch_norm(x, scale, bias, self.epsilon)
        n = x.size // x.shape[-1]
        unbiased = variance * (n / max(n - 1, 1))
        # Not `self.mean[...] = `: flax then looks for a sharding, which JAX searches all that has
        # been traced for, so that tracing a deep network takes four times as long.
        self.mean.set_value((1 - self.momentum) * self.mean[...] + self.momentum * mean)
        self.var.set_value((1 - self.momentum) * self.var[...] + self.momentum * unbiased)
        return y


def batch_norms(network: nnx.Module) -> dict[str, BatchNorm]:
    """The batch norms of a network by their paths, such as "backbone/norms/0"."""
    return {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_modules(network)
        if isinstance(module, BatchNorm)
    }


def attention(qkv: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v of every head: [B, T, 3, H, D] -> [B, T, H, D]."""

    def plain(qkv: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))

    return plain(qkv) if _plain else lax.platform_dependent(qkv, cpu=_by_heads, default=plain)


@jax.custom_vjp
def _by_heads(qkv: jax.Array) -> jax.Array:
    """Attention whose products have their axes side by side: two thirds of XLA:CPU's time."""
    return _by_heads_forward(qkv)[0]


def _by_heads_forward(qkv: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    shares = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    y = jnp.einsum("bhts,bhsd->bhtd", shares, v)
    return y.swapaxes(1, 2), (q, k, v, shares, y)


def _by_heads_backward(kept: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array]:
    q, k, v, shares, y = kept
    dy = dy.swapaxes(1, 2)
    dv = jnp.einsum("bhts,bhtd->bhsd", shares, dy)
    dshares = jnp.einsum("bhtd,bhsd->bhts", dy, v, preferred_element_type=jnp.float32)
    # The sum over all keys of shares * dshares is that over the few channels of y * dy (Dao et al.
    # 2022, FlashAttention, appendix B.2), which saves a pass over what is largest here.
    inner = jnp.sum(y.astype(jnp.float32) * dy, axis=-1, keepdims=True)
    dscores = (shares * (dshares - inner)).astype(v.dtype)
    dq = jnp.einsum("bhts,bhsd->bhtd", dscores, k) * q.shape[-1] ** -0.5
    dk = jnp.einsum("bhts,bhtd->bhsd", dscores, q)
    return (jnp.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4),)


_by_heads.defvjp(_by_heads_forward, _by_heads_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x (Hendrycks and Gimpel 2016), within 1e-7 |x|.

    By erf, as PyTorch has it: JAX's erfc is better far below zero, where the result is nearly none,
    and takes XLA:CPU twice as long. Of the forward pass only x is kept.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + lax.erf(x * 0.5**0.5))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    density = jnp.exp(-0.5 * x * x) * (0.5 / np.pi) ** 0.5
    return (dy * (_normal_cdf(x) + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class Linear(nnx.Module):
    """Dense layer; parameters float32."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        init: Initializer = trunc_normal,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return matmul(x.astype(self.dtype), kernel) + bias


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed in float32."""

    def __init__(self, features: int, *, epsilon: float = 1e-6) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True) + epsilon)
    y = (x32 - mean) * inverse * scale + bias
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _layer_norm_backward(
    epsilon: float, kept: tuple[jax.Array, ...], dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = kept
    dy = dy.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    scaled = dy * scale
    inner = jnp.mean(scaled, axis=-1, keepdims=True)
    along = jnp.mean(scaled * normal, axis=-1, keepdims=True)
    dx = (scaled - inner - normal * along) * inverse
    rows = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), jnp.sum(dy * normal, axis=rows), jnp.sum(dy, axis=rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class Dropout(nnx.Module):
    """Inverted dropout; draws from the `dropout` stream of the rngs given at the call."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        if not train or self.rate == 0 or rngs is None:
            return x
        keep = jax.random.bernoulli(rngs.dropout(), 1 - self.rate, self.mask_shape(x))
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))

    def mask_shape(self, x: jax.Array) -> tuple[int, ...]:
        """Shape of the draws, which broadcast to x."""
        return x.shape


class DropPath(Dropout):
    """Stochastic depth (Huang et al. 2016): drops a residual branch, for each example of its own.

    What is kept is scaled up, so that the expectation stays, as in timm.
    """

    def mask_shape(self, x: jax.Array) -> tuple[int, ...]:
        return (x.shape[0],) + (1,) * (x.ndim - 1)


def drop_path_rates(rate: float, blocks: int) -> list[float]:
    """The rate of each block: 0 for the first, linearly up to `rate` for the last, as in timm."""
    rates: list[float] = np.linspace(0, rate, blocks).tolist()
    return rates


class SqueezeExcite(nnx.Module):
    """Channel attention (Hu et al. 2018): `act` inside, and `gate` on what multiplies."""

    def __init__(
        self,
        features: int,
        squeezed: int,
        *,
        act: Activation = jax.nn.relu,
        gate: Activation = jax.nn.hard_sigmoid,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.act, self.gate = act, gate
        # 1x1 convolutions in torchvision, so drawn as its convolutions are.
        make = functools.partial(Linear, init=kaiming_fan_out, dtype=dtype, rngs=rngs)
        self.fc1, self.fc2 = make(features, squeezed), make(squeezed, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = self.gate(self.fc2(self.act(self.fc1(global_mean(x)))))
        return x * gate[:, None, None, :]


Activation = Callable[[jax.Array], jax.Array]


def global_mean(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, C], float32."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def max_pool(
    x: jax.Array, size: int, stride: int, padding: int = 0, *, ceil: bool = False
) -> jax.Array:
    """Maximum over windows, padded with -inf as in torch.

    Args:
      ceil: whether a last window that the padded image does not fill counts too.

    Raises:
      UserError: fewer pixels are left than a window has.
    """
    if min(x.shape[1:3]) + 2 * padding < size:
        raise UserError(
            f"config.model.image_size: at a pool of {size}x{size} pixels {x.shape[1]}x{x.shape[2]} "
            "are left; give the network larger images or fewer pools"
        )
    height, width = (
        (padding, padding + (size - n - 2 * padding) % stride * ceil) for n in x.shape[1:3]
    )
    pads = ((0, 0), height, width, (0, 0))

    def plain(x: jax.Array) -> jax.Array:
        # A constant of numpy's: a traced one hides from JAX that this is a maximum, which it could
        # then not differentiate.
        lowest = np.array(-np.inf, x.dtype)
        return lax.reduce_window(
            x, lowest, lax.max, (1, size, size, 1), (1, stride, stride, 1), pads
        )

    def on_cpu(x: jax.Array) -> jax.Array:
        # The first of equal ones has the gradient, as above, which XLA:CPU scatters one number
        # after the other: 10 times as long.
        padded = jnp.pad(x, pads, constant_values=-np.inf)
        taps = (tap for _, tap in _taps(padded, size, stride))
        return functools.reduce(lambda y, tap: jnp.where((tap > y) | (tap != tap), tap, y), taps)

    return plain(x) if _plain else lax.platform_dependent(x, cpu=on_cpu, default=plain)


def mean_pool(x: jax.Array, size: int, stride: int, *, count_padding: bool) -> jax.Array:
    """Mean over windows, padded with zeros as TensorFlow's "same".

    Args:
      count_padding: whether windows at the border are divided by `size` squared all the same.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C].
    """
    # Not `reduce_window`, whose gradient XLA:CPU computes several times slower.
    padded = pad_same(x, size, stride)
    sums = functools.reduce(jnp.add, (tap for _, tap in _taps(padded, size, stride)))
    if count_padding:
        return sums / (size * size)
    rows, columns = (_inside(n, size, stride) for n in x.shape[1:3])
    return sums / jnp.asarray(np.outer(rows, columns)[..., None], x.dtype)


def _inside(n: int, size: int, stride: int) -> np.ndarray:
    """How many entries of each "same" window over an axis of length `n` are not padding."""
    ones = np.pad(np.ones(n), same_pads(n, size, stride))
    return np.lib.stride_tricks.sliding_window_view(ones, size)[::stride].sum(axis=1)
