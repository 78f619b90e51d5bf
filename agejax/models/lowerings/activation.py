"""GELU, with a gradient that keeps only the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from agejax.models import lowerings


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x (Hendrycks and Gimpel 2016), within 1e-7 |x|.

    Uses erf, as PyTorch does: JAX's erfc is more exact far below zero, where the result is nearly
    0, but takes XLA:CPU twice as long. The forward pass keeps only x.
    """
    return x * _normal_cdf(x) if lowerings.is_plain() else _gelu(x)


@jax.custom_vjp
def _gelu(x: jax.Array) -> jax.Array:
    return x * _normal_cdf(x)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + lax.erf(x * 0.5**0.5))


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _gelu(x), x


def _backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    density = jnp.exp(-0.5 * x * x) * (0.5 / np.pi) ** 0.5
    return (dy * (_normal_cdf(x) + x * density),)


_gelu.defvjp(_forward, _backward)
