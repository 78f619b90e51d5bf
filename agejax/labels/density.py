"""Label densities as example weights: rare values weigh more.

Weights of examples have mean 1, over the known ones and so over all: an unknown label weighs 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy  # which imports its parts when they are used: predict needs none of them

from agejax.errors import UserError

GRID_POINTS = 4096
MIN_WEIGHT = 1e-6  # before the division by the mean
PART = 2**20  # examples looked at together
OLDEST = 120  # LDS: ages above count as this one, as in `imbalanced-regression`


def kde(values: np.ndarray, bandwidth: float, grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density of values [N] at an equidistant grid [G] that contains them, f64 [G].

    Each value is shared between its two grid neighbours, and the counts are convolved with the
    kernel by FFT (Fan and Marron 1994). The kernel ends where its own density falls below 1e-4.
    """
    step = (grid[-1] - grid[0]) / (len(grid) - 1)
    counts = np.zeros(len(grid))
    for part in _parts(values):
        position = (part - grid[0]) / step
        left = np.clip(np.floor(position).astype(np.int64), 0, len(grid) - 2)
        share = position - left
        counts += np.bincount(left, 1 - share, len(grid))
        counts += np.bincount(left + 1, share, len(grid))
    taps = min(int(_reach(bandwidth) / step), len(grid))
    offsets = np.arange(-taps, taps + 1) * (step / bandwidth)
    kernel = np.exp(-0.5 * offsets**2) / (np.sqrt(2 * np.pi) * bandwidth)
    full: np.ndarray = scipy.signal.fftconvolve(counts / len(values), kernel)
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
    values = np.asarray(values)
    known = np.isfinite(values)
    y = values if known.all() else values[known]
    if not alpha >= 0:
        raise UserError(f"density: alpha is {alpha}; set it to 0 (uniform) or above")
    if bandwidth is not None and not bandwidth > 0:
        raise UserError(f"density: bandwidth is {bandwidth}; set a positive one, or leave it out")
    if not len(y):
        raise UserError("density: no example has a known value; use uniform sampling")
    low, high = float(y.min()), float(y.max())
    if low == high:  # a single value is neither rare nor common
        return np.ones(len(values))
    if bandwidth is None:
        mean = sum(part.sum() for part in _parts(y)) / len(y)
        std = np.sqrt(sum(np.square(part - mean).sum() for part in _parts(y)) / len(y))
        bandwidth = float(1.06 * std * len(y) ** -0.2)
    margin = max(_reach(bandwidth), 0.05 * (high - low))
    grid = np.linspace(low - margin, high + margin, GRID_POINTS)
    density = kde(y, bandwidth, grid)
    density = (density - density.min()) / np.ptp(density)
    star = np.maximum(1 - alpha * density, MIN_WEIGHT)
    at = (np.searchsorted(grid, part, side="right") - 1 for part in _parts(y))
    return _spread(np.concatenate([star[i] for i in at]), known)


def lds_window(sigma: float, size: int) -> np.ndarray:
    """A window [size] over ages, years, whose largest value is 1, as in `imbalanced-regression`.

    It is an impulse filtered with a Gaussian; scipy's filter reflects at the borders, so that it is
    flatter than the Gaussian itself.
    """
    impulse = np.zeros(size)
    impulse[size // 2] = 1
    window: np.ndarray = scipy.ndimage.gaussian_filter1d(impulse, sigma)
    window /= window.max()
    return window


def lds_weight(
    values: np.ndarray,
    *,
    reweight: str = "sqrt",
    sigma: float = 2.0,
    size: int = 5,
    where: str = "density",
) -> np.ndarray:
    """Label distribution smoothing: weights of ages [N], years -> f64 [N], mean 1.

    One over the counts per year of age (of which `sqrt` takes the root and `inverse` clips to
    5..1000), convolved with `lds_window`. Ages count as the nearest year of 0..120. An unknown
    value (NaN) weighs 1.

    Yang et al. 2021, "Delving into Deep Imbalanced Regression".

    Args:
      where: the place of the window's size, for an error.

    Raises:
      UserError: no known value, an unknown way to weigh, or a window that is none.
    """
    values = np.asarray(values)
    known = np.isfinite(values)
    if not known.any():
        raise UserError("density: no example has a known value; use uniform sampling")
    if reweight not in ("sqrt", "inverse"):
        raise UserError(f"density: reweight is {reweight!r}; set it to sqrt or inverse")
    if not sigma > 0 or size < 1 or size % 2 == 0:
        raise UserError(f"{where}: need sigma > 0 and an odd size, not {sigma} and {size}")
    years = np.rint(values[known]).clip(0, OLDEST).astype(np.uint8)
    counts = np.bincount(years, minlength=OLDEST + 1).astype(np.float64)
    counts = np.sqrt(counts) if reweight == "sqrt" else np.clip(counts, 5, 1000)
    effective = scipy.ndimage.convolve1d(counts, lds_window(sigma, size), mode="constant")
    weight = np.divide(1, effective, out=np.zeros_like(effective), where=effective > 0)
    return _spread(weight[years], known)


def inverse_class_weights(
    counts: Sequence[int] | np.ndarray, power: float = 1.0, normalise: str = "mean"
) -> np.ndarray:
    """INS (power 1) and ISNS (power 1/2): 1 / n^power of K classes with n examples, f64 [K].

    Normalised to "mean", 1 over the examples, which with power 1 is N / (K n), scikit-learn's
    `balanced`; or to "classes", a sum of K. A class of no example weighs 0 and is none of the K.

    Raises:
      UserError: a power below 0, an unknown way to normalise, or no example at all.
    """
    if not power >= 0:
        raise UserError(f"density: power is {power}; set it to 0 (uniform) or above")
    counts = _counts(counts)
    star = np.zeros_like(counts)
    star[counts > 0] = counts[counts > 0] ** -power
    return _normalised(star, counts, normalise)


def effective_class_weights(
    counts: Sequence[int] | np.ndarray, beta: float = 0.9999, normalise: str = "mean"
) -> np.ndarray:
    """Class-balanced: (1 - beta) / (1 - beta^n), one over the effective number, f64 [K].

    Cui et al. 2019; with "classes" it is PyPI `balanced-loss`. Normalised as
    `inverse_class_weights`.

    Raises:
      UserError: a beta that is not in 0..1, an unknown way to normalise, or no example at all.
    """
    if not 0 <= beta < 1:
        raise UserError(f"density: beta is {beta}; set it to 0 (uniform) or above, and below 1")
    counts = _counts(counts)
    star = np.zeros_like(counts)
    star[counts > 0] = (1 - beta) / (1 - beta ** counts[counts > 0])
    return _normalised(star, counts, normalise)


def inverse_count(labels: np.ndarray, power: float = 1.0, normalise: str = "mean") -> np.ndarray:
    """`inverse_class_weights` of each example's class: int [N] -> f64 [N]; unknown (< 0): 1.

    Raises:
      UserError: as there, or no known label.
    """
    return _by_class(labels, lambda counts: inverse_class_weights(counts, power, normalise))


def class_balanced(labels: np.ndarray, beta: float = 0.9999, normalise: str = "mean") -> np.ndarray:
    """`effective_class_weights` of each example's class: int [N] -> f64 [N]; unknown (< 0): 1.

    Raises:
      UserError: as there, or no known label.
    """
    return _by_class(labels, lambda counts: effective_class_weights(counts, beta, normalise))


def _counts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    counts = np.asarray(counts, np.float64)
    if not counts.sum() > 0:
        raise UserError("density: no class has an example; use uniform sampling")
    return counts


def _normalised(star: np.ndarray, counts: np.ndarray, normalise: str) -> np.ndarray:
    if normalise not in ("mean", "classes"):
        raise UserError(f"density: normalise is {normalise!r}; set it to mean or classes")
    over = counts if normalise == "mean" else counts > 0
    scale: float = over.sum() / (over * star).sum()
    return star * scale


def _by_class(labels: np.ndarray, weigh: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    labels = np.asarray(labels)
    known = labels >= 0
    if not known.any():
        raise UserError("density: no example has a known label; use uniform sampling")
    counts = np.zeros(int(labels.max()) + 1, np.int64)
    for start in range(0, len(labels), PART):
        part = labels[start : start + PART]
        counts += np.bincount(part[part >= 0], minlength=len(counts))
    # The last weight is what an unknown label, -1, is looked up as.
    weights: np.ndarray = np.append(weigh(counts), 1.0)[np.maximum(labels, -1)]
    return weights


def _spread(weights: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Weights of the known examples [M], scaled to mean 1, among those of all [N]: 1 if unknown."""
    weights /= weights.mean()
    if known.all():
        return weights
    every = np.ones(len(known))
    every[known] = weights
    return every


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    """Values as f64, a part at a time: temporaries of ten million would fill the memory."""
    return (values[i : i + PART].astype(np.float64) for i in range(0, len(values), PART))


def age_bins(ages: np.ndarray, width: float = 10.0) -> np.ndarray:
    """Which bin of `width` years each age [N] is in, int32 [N]; -1 where unknown (NaN).

    Raises:
      UserError: a width that is not positive.
    """
    if not width > 0:
        raise UserError(f"density: bins of {width} years; set a positive width")
    bins = np.floor_divide(ages, width)
    return np.where(np.isfinite(bins), bins, -1).astype(np.int32)


def crossing(labels: Sequence[np.ndarray]) -> np.ndarray:
    """A number for each combination of labels, int [N] each -> int64 [N]; -1 where one is unknown.

    Numbers are in the order of the first label, then of the second, and so on, with gaps where a
    combination does not occur.

    Raises:
      UserError: no labels to cross.
    """
    if not labels:
        raise UserError("density: no labels to cross; name at least one")
    codes = np.zeros(len(labels[0]), np.int64)
    unknown = np.zeros(len(labels[0]), bool)
    for label in labels:
        codes *= int(np.max(label, initial=0)) + 1
        codes += label
        unknown |= np.less(label, 0)
    codes[unknown] = -1
    return codes


def _reach(bandwidth: float) -> float:
    """How far the kernel reaches: to a density of 1e-4, and one as flat as that 3 bandwidths."""

    def excess(x: float) -> float:
        height = np.exp(-0.5 * (x / bandwidth) ** 2) / (np.sqrt(2 * np.pi) * bandwidth)
        return float(height - 1e-4)

    if excess(3 * bandwidth) < 0:
        return 3 * bandwidth
    # The reference stops its root search here; a finer one moves the grid, and weights by 2e-5.
    root: float = scipy.optimize.brentq(excess, 0, 8 * bandwidth, xtol=1e-3)
    return root + 1e-3
