"""config.sampling -> weights: how often each training row is drawn.

`sampling.Sampler` makes the stream of draws from these weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from agejax.data import edits
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.labels import density

OLDEST_BIN = 8  # oversampling has nine bins of ages: 0-9, 10-19, ... 70-79, 80 and above
WHERE = "config.sampling"


class Draws(NamedTuple):
    """Weights f64 [N] of the rows, None where all are equal, and the number of draws per epoch."""

    weights: np.ndarray | None
    size: int

    def expected(self, rows: int) -> np.ndarray:
        """How often each of `rows` rows is drawn in an epoch on average, f64 [rows]."""
        if self.weights is None:
            return np.full(rows, self.size / rows)
        per_weight: float = self.size / self.weights.sum()
        return self.weights * per_weight


def keep(config: Any, source: Source, rows: np.ndarray) -> np.ndarray:
    """The training rows int64 [N] that remain after under-sampling by `config.keep`.

    Raises:
      UserError: a label or class the data lacks, a share outside 0..1, or no row left.
    """
    stays = np.zeros(len(source.ids), bool)
    stays[rows] = True
    if shares := config.get("keep"):  # the config of an old run lacks the setting
        for each in edits.thinned(source, stays, shares, config.keep_seed, f"{WHERE}.keep"):
            stays &= ~each.gone
    if not stays.any():
        raise UserError(f"{WHERE}.keep: no training image is left; keep more")
    left: np.ndarray = rows[stays[rows]]
    return left


def weigh(config: Any, source: Source, rows: np.ndarray) -> Draws:
    """The weights of `rows` int64 [N] for the sampling `config.kind`.

    uniform: all equal. density: DenseWeight of the age. lds: inverse smoothed counts of the age.
    inverse: inverse counts of the classes `over`. oversample: `oversampled`. A row whose label is
    unknown has weight 1, the mean. In a mixture the weights are scaled part by part, so that each
    part is drawn by its own weight; without one, by the number of its `rows`.

    Raises:
      UserError: an unknown label, a label that no row has, or a part without a row.
    """
    return _by_part(_weigh(config, source, rows), source, rows)


def even(source: Source, rows: np.ndarray) -> Draws:
    """Draws that prefer no label: `weigh` with kind uniform, also for a mixture.

    Raises:
      UserError: a part of a mixture without a row.
    """
    return _by_part(Draws(None, len(rows)), source, rows)


def _by_part(draws: Draws, source: Source, rows: np.ndarray) -> Draws:
    """`draws`; in a mixture, scaled so that each part is drawn by its own weight."""
    if source.part is None:
        return draws
    part = source.part[rows]
    counts = np.bincount(part, minlength=len(source.parts))
    for name, count in zip(source.parts, counts, strict=True):
        if not count:
            raise UserError(f"config.data.mixture.{name}: no training image is left of it")
    given = list(source.parts.values())
    if draws.weights is None and not any(given):
        return draws
    shares = [weight or n / counts.mean() for weight, n in zip(given, counts, strict=True)]
    weights = np.ones(len(rows)) if draws.weights is None else draws.weights
    scale = len(rows) * np.array(shares) / sum(shares) / np.bincount(part, weights)
    return Draws(weights * scale[part], draws.size)


def _weigh(config: Any, source: Source, rows: np.ndarray) -> Draws:
    if config.kind == "uniform":
        return Draws(None, len(rows))
    if config.kind == "density":
        return Draws(density.dense_weight(source.labels["age"][rows], config.alpha), len(rows))
    if config.kind == "lds":
        weights = density.lds_weight(
            source.labels["age"][rows],
            reweight=config.reweight,
            sigma=config.lds_sigma,
            size=config.lds_size,
            where=f"{WHERE}.lds_size",
        )
        return Draws(weights, len(rows))
    if config.kind == "inverse":
        if not config.over:
            raise UserError(f"{WHERE}.over is empty; name a label, such as ('age',)")
        labels = [_classes(source, name)[rows] for name in config.over]
        return Draws(density.inverse_count(density.crossing(labels), power=config.power), len(rows))
    if config.kind == "oversample":
        weights, size = oversampled(source.labels["age"][rows])
        return Draws(weights, size)
    raise ValueError(config.kind)


def oversampled(ages: np.ndarray) -> tuple[np.ndarray, int]:
    """Draws every row once, and copies from small bins: ages f32 [N] -> weights [N], draws.

    A ten-year bin b with n_b rows gets floor(0.3 (n - n_b)) + floor(0.1 n) copies, where n is the
    largest bin's count; an empty bin gets none. A row of unknown age has no copies. With these
    weights the systematic sampler draws each row once, as the original (occurrence 0), and spreads
    the bin's copies evenly over its rows.

    Raises:
      UserError: no known age.
    """
    known = np.isfinite(ages)
    if not known.any():
        raise UserError(f"{WHERE}.kind: oversample, but no training image has a known age")
    bins = np.clip(ages[known] // 10, 0, OLDEST_BIN).astype(np.int64)
    counts = np.bincount(bins, minlength=OLDEST_BIN + 1)
    most = int(counts.max())
    copies = np.where(counts > 0, 3 * (most - counts) // 10 + most // 10, 0)
    weights = np.ones(len(ages))
    weights[known] += (copies / np.maximum(counts, 1))[bins]
    return weights, len(ages) + int(copies.sum())


def _classes(source: Source, name: str) -> np.ndarray:
    """The class of every row, int [N], -1 unknown: years, decades, or a label's classes."""
    if name in ("age", "decade"):
        return density.age_bins(source.labels["age"], width=1 if name == "age" else 10)
    if name not in source.label_names:
        known = ("age", "decade", *source.label_names)
        raise UserError(f"{WHERE}.over: {name!r} is not one of {', '.join(known)}")
    return source.labels[name]
