"""How far groups are apart: the largest mean less the smallest, and their ratio, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax.evaluation import bootstrap
from agejax.evaluation.metrics import SMALLEST_GROUP, Partition

ENOUGH = 0.9  # of the resamples hold an image of each group: at least some three people in each


def measure(
    values: np.ndarray,
    known: np.ndarray,
    parts: Mapping[str, Partition],
    duplicates: np.ndarray,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Any]:
    """The gap between the groups of each division of the images.

    The largest of several noisy means is too large, and the smallest too small, so an interval of
    the two groups that happen to be the extremes would be too far from 0. These intervals hold for
    all pairs of groups at once: their width is the bootstrap's 95 % quantile of the largest
    standardised deviation over all pairs (as Tukey's range does for normal means). So they may
    start at 0, or at a ratio of 1: then chance alone can explain the gap.

    Args:
      values: losses or rates per image, 0 or more, float [N].
      known: bool [N], the images that count.
      parts: as from `metrics.partitions`.
      duplicates: int [N], equal within a group of copies, which are resampled together.

    Returns:
      by -> {"largest", "smallest": {"name", "n", "mean"}, "difference", "difference_ci95",
      "ratio", "ratio_ci95": None where the smallest mean is 0, "left_out": [{"name", "n"}], groups
      of fewer than `SMALLEST_GROUP` images}. A division with fewer than two larger groups is
      absent.
    """
    result: dict[str, Any] = {}
    values = np.where(known, values, 0.0).astype(np.float64)
    for by, named in parts.items():
        groups = [(name, part & known) for name, part in named]
        large = [(name, part) for name, part in groups if part.sum() >= SMALLEST_GROUP]
        if len(large) < 2:
            continue
        masks = np.stack([part for _, part in large], axis=1)
        means = np.array([values[part].mean() for _, part in large])
        resampled = bootstrap.means(values, masks, duplicates, seed, resamples)
        most, least = int(means.argmax()), int(means.argmin())
        row: dict[str, Any] = {
            key: {"name": large[i][0], "n": int(masks[:, i].sum()), "mean": float(means[i])}
            for key, i in (("largest", most), ("smallest", least))
        }
        low, high = _range(means, resampled - means)
        row |= {
            "difference": float(means[most] - means[least]),
            "difference_ci95": [max(low, 0.0), high],
            "ratio": None,
            "ratio_ci95": None,
        }
        if means[least] > 0:
            # The deviation of a logarithm, to first order: a resample may have a mean of 0.
            low, high = _range(np.log(means), resampled / means - 1)
            row["ratio"] = float(means[most] / means[least])
            row["ratio_ci95"] = [max(float(np.exp(low)), 1.0), float(np.exp(high))]
        row["left_out"] = [
            {"name": name, "n": int(part.sum())}
            for name, part in groups
            if part.sum() < SMALLEST_GROUP
        ]
        result[by] = row
    return result


def _range(means: np.ndarray, deviations: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the largest minus the smallest of K means.

    Args:
      means: [K].
      deviations: of resampled means, [resamples, K]; NaN where a resample has no image of a group.
        With too few whole rows the interval has no upper end.
    """
    one, other = np.triu_indices(len(means), 1)
    whole = np.isfinite(deviations).all(axis=1)
    if whole.mean() < ENOUGH:
        return 0.0, math.inf
    deviations = deviations[whole]
    apart = deviations[:, one] - deviations[:, other]
    spread = apart.std(axis=0)
    vary = spread > 0
    scaled = np.abs(apart[:, vary]) / spread[vary]
    width = np.quantile(scaled.max(axis=1), 0.95) * spread if vary.any() else spread
    size = np.abs(means[one] - means[other])
    return float((size - width).max()), float((size + width).max())
