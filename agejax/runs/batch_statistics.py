"""Batch-norm statistics of training images: for averaged weights, and for restored norms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agejax.config import completed
from agejax.data import draws, opening, pipeline, sampling, splits
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.models.layers import batch_norms
from agejax.runs.run import Run
from agejax.training import augment
from agejax.training import step as step_lib
from agejax.training.state import Model

Flat = Mapping[str, Any]  # arrays by flat name
Batches = Iterable[tuple[jax.Array, jax.Array]]  # (images f32 [B, S, S, 3] in 0..1, key of dropout)
BATCHES = 100


def training_batches(config: Any, source: Source, rows: np.ndarray, count: int) -> Iterator[Any]:
    """Yields the first `count` of `Batches` as the train step sees them.

    Args:
      config: of the run.
      rows: int64 [N], the training rows of `source`.
    """
    sampler = sampling.Sampler(*draws.weigh(config.sampling, source, rows), config.seed)
    read = pipeline.TrainBatches(
        source, rows, sampler, config.data.batch_size, config.sampling.copy_strength,
        bool(config.augment.copies),
    )  # fmt: skip
    augmented = jax.jit(augment.build(config.augment, config.model.image_size))
    for step in range(count):
        batch = read[step]
        key_augment, key_dropout = step_lib.keys(config.seed, step)
        yield augmented(key_augment, batch["image"], batch["strength"])[0], key_dropout


def anew(run: Run, count: int = BATCHES) -> dict[str, np.ndarray]:
    """Computes the batch statistics of a run's weights on its training images.

    Averaged weights need statistics of their own (Izmailov et al. 2018, SWA): the means, over
    `count` batches augmented as in training, of each batch's mean and unbiased variance, as in
    torch.optim.swa_utils.update_bn.

    Returns:
      Flat name -> float32, for the batch norms that train; empty where there are none.

    Raises:
      UserError: the training images are missing.
    """
    assert run.model is not None
    network = run.model.network(run.params, run.batch_stats)
    if all(norm.frozen for norm in batch_norms(network).values()):
        return {}
    config = completed(run.config)
    source = opening.open_source(config.data)
    if source.fingerprint != run.fingerprint:
        raise UserError(
            f"--statistics=anew: {run.workdir} was trained on other data than its config gives "
            "now; bring back its training images, or use --statistics=averaged"
        )
    rows = draws.keep(config.sampling, source, splits.make(source, config.data.split)["train"])
    batches = training_batches(config, source, rows, count)
    return measure(run.model, run.params, run.batch_stats, batches)


def measure(
    model: Model, params: Flat, batch_stats: Flat, batches: Batches, *, observe: bool = False
) -> dict[str, np.ndarray]:
    """Measures the inputs of a network's batch norms in training mode.

    Args:
      observe: all batch norms, frozen ones too, normalise by `batch_stats`, as in evaluation. Else
        they normalise by each batch, as in training, and frozen ones are left out.

    Returns:
      Flat names of batch statistics -> float32, the mean over `batches`.
    """

    @jax.jit
    def of_batch(params: Any, stats: Any, images: jax.Array, key: jax.Array) -> dict[str, Any]:
        network = model.network(params, stats)
        norms = batch_norms(network)
        for norm in norms.values():
            norm.momentum, norm.observing = 1.0, observe
            norm.frozen &= not observe
        network(
            images,
            train=True,
            rngs=nnx.Rngs(dropout=key),
            # Feature smoothing comes after all batch norms, and is off before its first epoch.
            ages=dict.fromkeys(model.heads, jnp.zeros(len(images))),
            epoch=jnp.int32(0),
        )
        return {
            f"{path}/{name}": value[...]
            for path, norm in norms.items()
            if not norm.frozen
            for name, value in (("mean", norm.mean), ("var", norm.var))
        }

    sums: dict[str, np.ndarray] = {}
    count = 0
    for images, key in batches:
        for name, value in jax.device_get(of_batch(params, batch_stats, images, key)).items():
            sums[name] = sums.get(name, 0.0) + value.astype(np.float64)
        count += 1
    return {name: np.asarray(total / count, np.float32) for name, total in sums.items()}


def calibrated(
    model: Model, params: Flat, batch_stats: Flat, batches: Batches
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gives batch norms the statistics of `batches` without changing what the network computes.

    y = scale (x - mean) / σ + bias, with σ² = var + epsilon, stays the same function of x when mean
    and σ become mean' and σ', and

        scale' = scale σ' / σ        bias' = bias + scale (mean' - mean) / σ

    Returns:
      (parameters, batch statistics).
    """
    measured = measure(model, params, batch_stats, batches, observe=True)
    arrays: dict[str, Any] = {**params, **batch_stats}
    for path, norm in batch_norms(model.network(dict(params), dict(batch_stats))).items():
        scale, bias, mean, var = (
            np.asarray(arrays[f"{path}/{name}"], np.float64)
            for name in ("scale", "bias", "mean", "var")
        )
        new_mean, new_var = measured[f"{path}/mean"], measured[f"{path}/var"]
        slope = scale / np.sqrt(var + norm.epsilon)
        arrays |= {
            f"{path}/scale": np.float32(slope * np.sqrt(new_var + norm.epsilon)),
            f"{path}/bias": np.float32(bias + slope * (new_mean - mean)),
            f"{path}/mean": new_mean,
            f"{path}/var": new_var,
        }
    return {name: arrays[name] for name in params}, {name: arrays[name] for name in batch_stats}
