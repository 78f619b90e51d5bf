"""Attention of all heads of a transformer layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from agejax.models import lowerings
from agejax.models.lowerings import native


def attention(qkv: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v for every head: [B, T, 3, H, D] -> [B, T, H, D]."""

    def plain(qkv: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))

    if lowerings.is_plain():
        return plain(qkv)
    on_cpu = native.attention if native.has_attention(qkv) else by_heads
    y: jax.Array = lowerings.choose(qkv, cpu=on_cpu, default=plain)
    return y


@jax.custom_vjp
def by_heads(qkv: jax.Array) -> jax.Array:
    """Attention with contiguous axes in its products: takes two thirds of XLA:CPU's time."""
    return _forward(qkv)[0]


def _forward(qkv: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    shares = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    y = jnp.einsum("bhts,bhsd->bhtd", shares, v)
    return y.swapaxes(1, 2), (q, k, v, shares, y)


def _backward(kept: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array]:
    q, k, v, shares, y = kept
    dy = dy.swapaxes(1, 2)
    dv = jnp.einsum("bhts,bhtd->bhsd", shares, dy)
    dshares = jnp.einsum("bhtd,bhsd->bhts", dy, v, preferred_element_type=jnp.float32)
    # The sum of shares * dshares over all keys equals that of y * dy over the few channels (Dao et
    # al. 2022, FlashAttention, appendix B.2), which saves a pass over the largest array here.
    inner = jnp.sum(y.astype(jnp.float32) * dy, axis=-1, keepdims=True)
    dscores = (shares * (dshares - inner)).astype(v.dtype)
    dq = jnp.einsum("bhts,bhsd->bhtd", dscores, k) * q.shape[-1] ** -0.5
    dk = jnp.einsum("bhts,bhtd->bhsd", dscores, q)
    return (jnp.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4),)


by_heads.defvjp(_forward, _backward)
