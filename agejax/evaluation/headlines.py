"""The headline figures of age estimation, as the field defines them.

MAE is the mean absolute error, SD the standard deviation of the signed error, bias its mean, Acc(x)
the share of images with an error of at most x years. NIST's FATE AEV leads with the mean over 26
cells, the MAE of each sex at each age from 18 to 30: every cell counts alike, however many images
it holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agejax.evaluation import bootstrap
from agejax.evaluation.metrics import Partition

YEARS = range(13, 31)  # single years of age with an MAE of their own
CELL_YEARS = range(18, 31)  # single years of age that make NIST's cells
WITHIN = range(16)  # years x of Acc(x)


def measure(
    age: np.ndarray,
    predicted: np.ndarray,
    sexes: Partition,
    duplicates: np.ndarray,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Any]:
    """Headline figures of predicted ages; intervals resample groups of copies.

    Args:
      age, predicted: years [N]; NaN where the age is unknown, which is for some image not so.
      sexes: the images by sex, as from `metrics.partitions`; empty where unknown.
      duplicates: int [N], equal within a group of copies.

    Returns:
      {"n", "mae", "mae_ci95", "sd" (n - 1 degrees of freedom; 0 for one image), "bias",
      "bias_ci95" (predicted - true), "within": [Acc(x) for x = 0, 1, ... 15], "cells": {"mae",
      "mae_ci95", "n", "filled", "of": how many cells hold an image, of how many there are,
      "smallest": the images of the smallest cell that holds one}, absent where no cell does,
      "by_year": [{"name", "n", "mae", "mae_ci95", "bias"}] for those of `YEARS` that occur}; years.
    """
    known = np.isfinite(age)
    error = np.where(known, predicted.astype(np.float64) - age, 0.0)
    size, year = np.abs(error), np.floor(age)
    years = [(str(k), year == k) for k in YEARS if (year == k).any()]
    all_cells = [part & (year == k) for _, part in sexes for k in CELL_YEARS]
    cells = [cell for cell in all_cells if cell.any()]
    masks = np.stack([known, *(part for _, part in years), *cells], axis=1)
    resampled = bootstrap.means(size, masks, duplicates, seed, resamples)
    mae_ci95, *by_year_ci95 = bootstrap.percentiles(resampled[:, : 1 + len(years)])
    result: dict[str, Any] = {
        "n": int(known.sum()),
        "mae": float(size[known].mean()),
        "mae_ci95": mae_ci95,
        "sd": float(error[known].std(ddof=1)) if known.sum() > 1 else 0.0,
        "bias": float(error[known].mean()),
        "bias_ci95": bootstrap.intervals(error, known[:, None], duplicates, seed, resamples)[0],
        "within": [float((size[known] <= x).mean()) for x in WITHIN],
        "by_year": [
            {
                "name": name,
                "n": int(part.sum()),
                "mae": float(size[part].mean()),
                "mae_ci95": interval,
                "bias": float(error[part].mean()),
            }
            for (name, part), interval in zip(years, by_year_ci95, strict=True)
        ],
    }
    if cells:
        result["cells"] = {
            "mae": float(np.mean([size[cell].mean() for cell in cells])),
            "mae_ci95": _of_cells(resampled[:, 1 + len(years) :]),
            "n": int(sum(cell.sum() for cell in cells)),
            "filled": len(cells),
            "of": len(all_cells),
            "smallest": int(min(cell.sum() for cell in cells)),
        }
    return result


def _of_cells(resampled: np.ndarray) -> list[float]:
    """The 95 % interval of the mean of cells; a cell that a resample misses is left out of it.

    Args:
      resampled: [resamples, cells]; NaN where a resample has no image of a cell.
    """
    filled = np.isfinite(resampled)
    total = np.where(filled, resampled, 0.0).sum(axis=1)
    count = filled.sum(axis=1)
    means = total[count > 0] / count[count > 0]
    return bootstrap.percentiles(means[:, None])[0]
