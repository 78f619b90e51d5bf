"""A linear map from a student's pooled features to its teacher's, trained along with the student.

Its arrays are in the train state beside the network's, under `KERNEL` and `BIAS`. The network does
not use them: `Run.open` leaves them out, so predictions and exports do not contain them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Flat = dict[str, jax.Array]
Initialise = Callable[[jax.Array], tuple[Flat, Flat]]

KERNEL, BIAS = "distill/features/kernel", "distill/features/bias"


def names(outputs: int) -> tuple[str, ...]:
    """The names of the map's parameters; none if a teacher gives no features (`outputs` 0)."""
    return (KERNEL, BIAS) if outputs else ()


def added(initialise: Initialise, inputs: int, outputs: int) -> Initialise:
    """`initialise` for a state with the map [inputs, outputs] too; unchanged for 0 outputs.

    The network's own arrays are the same as without it.
    """
    if not outputs:
        return initialise

    def with_map(key: jax.Array) -> tuple[Flat, Flat]:
        params, batch_stats = initialise(key)
        draw = jax.nn.initializers.lecun_normal()
        kernel = draw(jax.random.fold_in(key, outputs), (inputs, outputs), jnp.float32)
        return params | {KERNEL: kernel, BIAS: jnp.zeros(outputs)}, batch_stats

    return with_map


def apply(params: Mapping[str, jax.Array], pooled: jax.Array) -> jax.Array:
    """Features [B, inputs] -> [B, outputs]."""
    return pooled @ params[KERNEL] + params[BIAS]
