"""A run's prediction as one function of images, and how far an exported one differs from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import ml_collections
import numpy as np

from agejax.runs.run import Run
from agejax.training import state as state_lib
from agejax.training.step import make_eval_step

Predict = Callable[[Any], dict[str, Any]]  # uint8 [B, S, S, 3] -> {label: [B] or [B, K]}


def prediction(run: Run, dtype: str | None = None) -> Predict:
    """The run's prediction as a function of uint8 images [B, S, S, 3].

    It holds preprocessing, weights and decoding.

    Args:
      dtype: what to compute in; None: as the run does.
    """
    config = ml_collections.ConfigDict(run.config)
    with config.unlocked():
        config.native = False  # an exported program runs on other machines
    if dtype is not None:
        config.model.dtype = dtype
    # Built anew, since a traced function keeps its lowering.
    eval_step = make_eval_step(config, state_lib.create_model(config, run.heads)[0])
    params, batch_stats = jax.device_get((run.params, run.batch_stats))
    return lambda images: eval_step(params, batch_stats, {"image": images})


def any_batch(size: int) -> jax.ShapeDtypeStruct:
    """The shape and dtype of images [batch, size, size, 3] with a symbolic batch."""
    return jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), size, size, 3), np.uint8)


def random_images(size: int) -> np.ndarray:
    """Noise of different brightness, uint8 [4, size, size, 3]."""
    rng = np.random.default_rng(0)
    return (rng.uniform(0, 256, (4, size, size, 3)) * rng.uniform(0.2, 1, (4, 1, 1, 3))).astype(
        np.uint8
    )


def difference(given: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest difference of any output, in units of the output's largest value."""
    assert given.keys() == expected.keys()
    tiny = np.finfo(np.float32).tiny
    return float(
        np.max([
            np.abs(given[k] - v).max() / max(np.abs(v).max(), tiny) for k, v in expected.items()
        ])
    )  # fmt: skip
