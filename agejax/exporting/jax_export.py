"""Prediction functions as jax.export files, which run without agejax."""

from __future__ import annotations

import jax
import jax.export

from agejax.exporting.prediction import Predict, any_batch

PLATFORMS = ("cpu", "cuda")  # on which a JAX file runs


def to_jax(predict: Predict, size: int) -> bytes:
    """Serialises `predict` for any batch size on all `PLATFORMS`, each with its own lowering."""
    return bytes(
        jax.export.export(jax.jit(predict), platforms=PLATFORMS)(any_batch(size)).serialize()
    )


def load(data: bytes) -> Predict:
    """Loads what `to_jax` made, as a function of images."""
    call = jax.jit(jax.export.deserialize(bytearray(data)).call)
    return lambda images: jax.device_get(call(images))
