"""The last layers of heads: features [B, C] to raw outputs [B, width], always float32.

Logits must not lose digits, whatever the backbone's dtype.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models.layers import Linear


def linear(inputs: int, width: int, rngs: nnx.Rngs, bias: jax.typing.ArrayLike = 0.0) -> Linear:
    """A dense layer that starts at `bias`, [] or [width]."""
    layer = Linear(inputs, width, rngs=rngs)
    assert layer.bias is not None
    layer.bias.set_value(layer.bias[...] + jnp.asarray(bias, jnp.float32))
    return layer


class Ranks(nnx.Module):
    """One score for all ranks, a bias for each (CORAL, Cao et al. 2020): [B, C] -> [B, K - 1].

    Shared weights keep the ranks' probabilities in order.

    Args:
      bias: [K - 1], initial values, in falling order. Those of coral-pytorch, evenly from 1 to 0,
        are too close together for a hundred ages.
    """

    def __init__(self, inputs: int, rngs: nnx.Rngs, bias: jax.Array) -> None:
        self.score = nnx.Param(Linear(inputs, 1, rngs=rngs).kernel[...])
        self.bias = nnx.Param(jnp.asarray(bias, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.score[...] + self.bias[...]


class Cosine(nnx.Module):
    """Cosines between the features and a vector per class: [B, C] -> [B, K] in -1..1."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs) -> None:
        init = jax.nn.initializers.normal(1.0)  # the vectors' length does not matter
        self.kernel = nnx.Param(init(rngs.params(), (inputs, width), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _unit(x, axis=1) @ _unit(self.kernel[...], axis=0)


class Noisy(nnx.Module):
    """A dense layer, and a learned log standard deviation of the noise, the same for every row.

    [B, C] -> [B, 2]: the prediction, and the log standard deviation.
    """

    def __init__(self, inputs: int, rngs: nnx.Rngs, bias: jax.Array, noise: jax.Array) -> None:
        self.linear = linear(inputs, 1, rngs, bias)
        self.noise = nnx.Param(jnp.log(jnp.asarray(noise, jnp.float32)))

    def __call__(self, x: jax.Array) -> jax.Array:
        noise = jnp.broadcast_to(self.noise[...], (x.shape[0], 1))
        return jnp.concatenate([self.linear(x), noise], axis=1)


def _unit(x: jax.Array, axis: int) -> jax.Array:
    # The square root's slope is infinite at 0; dropout or dead units can make vectors of zeros.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis, keepdims=True) + 1e-12)
