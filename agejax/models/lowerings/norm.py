"""Batch norm and layer norm, with gradients that read their inputs less often than autodiff's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from agejax.models import lowerings


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, parts: int = 1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the batch's own statistics (Ioffe & Szegedy 2015).

    Args:
      x: [B, H, W, C]. Under jit this is the global batch, on any number of devices.
      scale, bias: float32 [C].
      parts: the batch's equal parts, each normalised by its own statistics. As many as there are
        devices, they need nothing of each other.

    Returns:
      y, like x; mean and biased variance, float32 [C], which carry no gradient: averaged over the
      parts.
    """
    if parts > 1:
        of_part = functools.partial(batch_norm, epsilon=epsilon)
        split = x.reshape(parts, -1, *x.shape[1:])
        y, means, variances = jax.vmap(of_part, (0, None, None))(split, scale, bias)
        # Nothing in the step waits for these averages: XLA joins those of all layers into one sum
        # over the devices.
        return y.reshape(x.shape), jnp.mean(means, axis=0), jnp.mean(variances, axis=0)
    if lowerings.is_plain():
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
    # Both sums in one pass; in float32 the variance may come out slightly below zero.
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
    # dx is one multiply-add of dy and x; everything else is a constant per channel.
    a = scale * inverse
    b = -a * inverse * dscale / n
    dx = a * dy + b * x32 - (a * dbias / n + b * mean)
    return dx.astype(x.dtype), dscale, dbias


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalises each vector of x's last axis by its own mean and variance (Ba et al. 2016).

    Args:
      x: [..., C]; computed in float32.
      scale, bias: float32 [C].
    """
    if lowerings.is_plain():
        return _layer_norm_forward(x, scale, bias, epsilon)[0]
    return _layer_norm(x, scale, bias, epsilon)


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
