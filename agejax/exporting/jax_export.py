"""A prediction as a file of jax.export, which runs without agejax."""

from __future__ import annotations

import jax
import jax.export

from agejax.exporting.prediction import Predict, any_batch

PLATFORMS = ("cpu", "cuda")  # that a JAX file runs on


def to_jax(predict: Predict, size: int) -> bytes:
    """`predict` for any batch on every one of `PLATFORMS`, each with the lowering that suits it."""
    return bytes(
        jax.export.export(jax.jit(predict), platforms=PLATFORMS)(any_batch(size)).serialize()
    )


def load(data: bytes) -> Predict:
    """The prediction of a file that `to_jax` made, as a function of images."""
    call = jax.jit(jax.export.deserialize(bytearray(data)).call)
    return lambda images: jax.device_get(call(images))
