"""Bootstrap intervals that resample groups of copies: copies of a photo count as evidence once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

RESAMPLES = 1000


def draws(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields, per resample, how often each of n groups is drawn, int [n]; a seed fixes the draws.

    One resample at a time: 20,000 groups x 1,000 resamples would fill 160 MB.
    """
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(n, size=n), minlength=n) if n else np.zeros(0, np.int64)


def means(
    values: np.ndarray,
    parts: np.ndarray,
    duplicates: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Means of the parts in each resample of the groups of copies, [resamples, K].

    Args:
      values: float [N].
      parts: bool [N, K]; the mean of part k is that of values[parts[:, k]].
      duplicates: int [N], equal within a group of copies.

    Returns:
      NaN where a resample draws no image of a part.
    """
    some = parts.any(axis=1)
    _, group = np.unique(duplicates[some], return_inverse=True)
    n = int(group.max(initial=-1)) + 1
    parts, values = parts[some], np.where(some, values, 0.0)[some]
    sums = np.zeros((n, 2, parts.shape[1]))
    np.add.at(sums, group, np.stack([np.where(parts, values[:, None], 0.0), parts], axis=1))
    found = np.empty((resamples, parts.shape[1]))
    with np.errstate(invalid="ignore"):  # 0 / 0
        for i, times in enumerate(draws(n, resamples, seed)):
            total, count = np.tensordot(times, sums, 1)
            found[i] = total / count
    return found


def intervals(
    values: np.ndarray,
    parts: np.ndarray,
    duplicates: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[list[float]]:
    """95 % percentile bootstrap intervals of means; groups of copies are resampled (Efron 1979).

    With the same seed, two models' resamples of the same images are paired, and so is the interval
    of the mean of their differences.

    Args:
      values, parts, duplicates, seed, resamples: as in `means`.

    Returns:
      K intervals [low, high]; NaN where a part holds no image. Resamples that draw no image of a
      part do not count for it.
    """
    return percentiles(means(values, parts, duplicates, seed, resamples))


def percentiles(resampled: np.ndarray) -> list[list[float]]:
    """The 95 % intervals [low, high] of K figures, from their resamples [R, K]; NaN is ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a part without images
        low, high = np.nanpercentile(resampled, [2.5, 97.5], axis=0)
    bounds: list[list[float]] = np.stack([low, high], axis=1).tolist()
    return bounds
