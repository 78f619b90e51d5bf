"""Per-example losses: pure functions [B, ...] -> [B]. Weights and masks are applied outside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """|prediction - target|, [B]."""
    return jnp.abs(prediction - target)


def l2(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared error, [B]: its slope is the error, as Huber's near zero."""
    return 0.5 * jnp.square(prediction - target)


def huber(prediction: jax.Array, target: jax.Array, delta: float) -> jax.Array:
    """Huber (1964): half the squared error up to `delta`, linear beyond, [B]."""
    return optax.losses.huber_loss(prediction, target, delta=delta)


def binary_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-log p of the true class from one logit of class 1, [B]; `target` is 0 or 1."""
    return optax.losses.sigmoid_binary_cross_entropy(logits, target.astype(logits.dtype))


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-log p of the true class, logits [B, K], integer `target` [B] -> [B]."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, target)
