"""LIME: a local linear model of the visible parts of an image."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from agejax.explanations.explanation import BATCH, Explanation, Fill, Value, backdrop, full_batches
from agejax.explanations.superpixels import superpixels

SAMPLES = 1000  # as in the authors' code for images
KERNEL_WIDTH = 0.25  # as in the authors' code for images
RIDGE = 0.01  # only keeps the regression solvable: the authors' 1 shrinks the years by percents


def lime(
    predict: Value,
    image: np.ndarray,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    fill: Fill = "blur",
    batch: int = BATCH,
) -> Explanation:
    """LIME (Ribeiro et al. 2016): a local linear model of which segments are visible.

    Each sample hides every segment with probability 1/2. Its weight in a ridge regression is
    sqrt(exp(-d² / width²)), with its cosine distance d to the whole image, as in the authors' code.

    Args:
      predict: is called with `batch` images at a time.
      image: uint8 [S, S, 3].
      fill: the kind of `backdrop` that replaces a hidden segment.
    """
    segments = superpixels(image)
    count = int(segments.max()) + 1
    present = np.random.default_rng(seed).random((samples, count)) < 0.5
    present[0] = True  # the image itself
    hidden = backdrop(image, fill)

    def perturbed(rows: np.ndarray) -> np.ndarray:
        return np.where(present[rows][:, segments, None], image, hidden)

    parts = [(np.asarray(predict(perturbed(rows))), n) for rows, n in full_batches(samples, batch)]
    values = np.concatenate([part[:n] for part, n in parts]).astype(np.float64)
    distance = 1 - np.sqrt(present.mean(axis=1))  # the cosine of 0s and 1s with 1s alone
    nearness = np.sqrt(np.exp(-np.square(distance / KERNEL_WIDTH)))
    fit = Ridge(alpha=RIDGE, solver="cholesky").fit(present, values, nearness)
    weights = fit.coef_.astype(np.float32)
    r2 = float(fit.score(present, values, nearness))
    return Explanation(weights[segments], segments, weights, float(values[0]), {"r2": r2})
