"""Label densities as example weights: rare values weigh more. Weights have mean 1."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.signal import fftconvolve

from agejax.errors import UserError

GRID_POINTS = 4096
MIN_WEIGHT = 1e-6  # before the division by the mean


def kde(values: np.ndarray, bandwidth: float, grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density of values [N] at an equidistant grid [G] that contains them, f64 [G].

    Each value is shared between its two grid neighbours, and the counts are convolved with the
    kernel by FFT (Fan and Marron 1994). The kernel ends where its own density falls below 1e-4.
    """
    step = (grid[-1] - grid[0]) / (len(grid) - 1)
    position = (values - grid[0]) / step
    left = np.clip(np.floor(position).astype(np.int64), 0, len(grid) - 2)
    share = position - left
    counts = np.bincount(left, 1 - share, len(grid)) + np.bincount(left + 1, share, len(grid))
    taps = min(int(_reach(bandwidth) / step), len(grid))
    offsets = np.arange(-taps, taps + 1) * (step / bandwidth)
    kernel = np.exp(-0.5 * offsets**2) / (np.sqrt(2 * np.pi) * bandwidth)
    full = fftconvolve(counts / len(values), kernel)
    return full[taps : taps + len(grid)]


def dense_weight(values: np.ndarray, alpha: float, bandwidth: float | None = None) -> np.ndarray:
    """DenseWeight of each value: values [N] (years, say) -> f64 [N], mean 1.

    w = max(1 - alpha p'(y), 1e-6) over its mean, where p' is the kernel density scaled to 0..1:
    alpha 0 gives all ones, alpha 1 gives the most common value almost nothing. The default
    bandwidth is 1.06 std n^(-1/5). An unknown value (NaN) weighs 1, as the average known one does.

    Steininger et al. 2021, doi 10.1007/s10994-021-06023-5; the same numbers as PyPI `denseweight`
    0.1.2.

    Raises:
      UserError: alpha below 0, a bandwidth that is not positive, or no known value.
    """
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    y = values[known]
    if not alpha >= 0:
        raise UserError(f"density: alpha is {alpha}; set it to 0 (uniform) or above")
    if bandwidth is not None and not bandwidth > 0:
        raise UserError(f"density: bandwidth is {bandwidth}; set a positive one, or leave it out")
    if not len(y):
        raise UserError("density: no example has a known value; use uniform sampling")
    weights = np.ones_like(values)
    if np.ptp(y) == 0:  # a single value is neither rare nor common
        return weights
    if bandwidth is None:
        bandwidth = float(1.06 * np.std(y) * len(y) ** -0.2)
    margin = max(_reach(bandwidth), 0.05 * np.ptp(y))
    grid = np.linspace(y.min() - margin, y.max() + margin, GRID_POINTS)
    density = kde(y, bandwidth, grid)
    density = (density - density.min()) / np.ptp(density)
    at = np.searchsorted(grid, y, side="right") - 1
    star = np.maximum(1 - alpha * density[at], MIN_WEIGHT)
    weights[known] = star / star.mean()
    return weights


def inverse_count(labels: np.ndarray) -> np.ndarray:
    """Weights that make all classes equally frequent: labels int [N] -> f64 [N], mean 1.

    w = N / (K n_c), scikit-learn's `balanced`. An unknown label (below 0) weighs 1.

    Raises:
      UserError: no known label.
    """
    labels = np.asarray(labels)
    known = labels >= 0
    if not known.any():
        raise UserError("density: no example has a known label; use uniform sampling")
    _, inverse, counts = np.unique(labels[known], return_inverse=True, return_counts=True)
    weights = np.ones(labels.shape)
    weights[known] = known.sum() / (len(counts) * counts[inverse])
    return weights


def _reach(bandwidth: float) -> float:
    """How far the kernel reaches: to a density of 1e-4, and one as flat as that 3 bandwidths."""

    def excess(x: float) -> float:
        return np.exp(-0.5 * (x / bandwidth) ** 2) / (np.sqrt(2 * np.pi) * bandwidth) - 1e-4

    if excess(3 * bandwidth) < 0:
        return 3 * bandwidth
    # The reference stops its root search here; a finer one moves the grid, and weights by 2e-5.
    return brentq(excess, 0, 8 * bandwidth, xtol=1e-3) + 1e-3
