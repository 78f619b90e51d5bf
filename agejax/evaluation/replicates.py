"""Figures of several trainings of one recipe, which differ in their seed, on the same images.

An interval over images alone describes the runs that were trained. These describe the recipe: they
add how much another training would differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # it imports its parts lazily: predict needs none of them

from agejax.evaluation import bootstrap

Z = statistics.NormalDist().inv_cdf(0.975)
METHOD = (
    "Intervals of 95 % join Student's t over seeds with a bootstrap over groups of copies; "
    "differences are paired."
)
ONE_SEED = (
    "Intervals of 95 % are a bootstrap over groups of copies, of one seed: another seed gives "
    "another figure. Differences are paired."
)


def method(seeds: int) -> str:
    """What the intervals of a comparison with so many seeds are, in words for its table."""
    return METHOD if seeds > 1 else ONE_SEED


def mean_interval(
    losses: np.ndarray, groups: np.ndarray, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The mean over seeds and images, and its 95 % interval, as `joined` makes it.

    For the difference of two recipes' losses on the same images this is the paired interval.

    Args:
      losses: float [seeds, N]; NaN does not count.
      groups: [N], equal within a group of copies.

    Returns:
      {"mean", "ci95": [low, high], "images95", "seeds": the mean of each, "n": images}.
    """
    known = np.isfinite(losses).all(axis=0)
    losses, groups = losses[:, known], groups[known]
    everything = np.ones((losses.shape[1], 1), bool)
    resampled = [bootstrap.means(one, everything, groups, seed, resamples)[:, 0] for one in losses]
    return joined(losses.mean(axis=1), np.stack(resampled, axis=1), losses.shape[1])


def difference(
    ours: np.ndarray,
    theirs: np.ndarray,
    resampled: tuple[np.ndarray, np.ndarray],
    n: int,
    matched: bool,
) -> dict[str, Any]:
    """The difference of two recipes' figures on the same images, with its 95 % interval.

    Args:
      ours, theirs: each seed's figure, [k] and [m].
      resampled: both on the same resampled images, [resamples, k] and [resamples, m].
      n: images.
      matched: whether entry i of both has the same seed: then `joined` of the differences by seed.
        Else Student's t for two samples of one spread, with k + m - 2 degrees of freedom; a recipe
        with one seed borrows the spread of the other.

    Returns:
      {"mean", "ci95", "images95", "n"} as from `joined`.
    """
    if matched:
        figure = joined(ours - theirs, resampled[0] - resampled[1], n)
        del figure["seeds"]
        return figure
    mean = float(ours.mean() - theirs.mean())
    of_mean = resampled[0].mean(axis=1) - resampled[1].mean(axis=1)
    freedom, scale = len(ours) + len(theirs) - 2, 1 / len(ours) + 1 / len(theirs)
    variance = own = 0.0
    if freedom:
        variance = scale * sum(map(_squares, (ours, theirs))) / freedom
        centred = [each - each.mean(axis=0) for each in resampled]
        own = scale * float(np.mean(sum(map(_squares, centred)))) / freedom
    images = _over_images(mean, of_mean, own)
    return {
        "mean": mean,
        "ci95": _with_runs(mean, images, variance, freedom),
        "images95": images,
        "n": n,
    }


def _squares(values: np.ndarray) -> Any:
    """The sum of squared deviations over the last axis."""
    return np.square(values - values.mean(axis=-1, keepdims=True)).sum(axis=-1)


def joined(seeds: np.ndarray, resampled: np.ndarray, n: int) -> dict[str, Any]:
    """A figure of several seeds on the same images, with its 95 % interval.

    By the law of total variance, the variance of the mean over seeds has two parts: that over
    training runs, given the images, and that over images, of the runs' expected figure. The first
    is s² / k of the seeds' figures. The second is the bootstrap's over images, less the share that
    comes from the runs' differences on single images, which s² already includes. `over_seeds`
    combines the two.

    Args:
      seeds: each seed's figure, [k].
      resampled: the same on resampled images, [resamples, k].
      n: images.

    Returns:
      {"mean", "ci95": [low, high], "images95": the interval over images alone, "seeds", "n"}. For
      one seed "ci95" is over images alone, and leaves out how much another training would differ.
    """
    k, mean = len(seeds), float(seeds.mean())
    own = 0.0
    if k > 1:
        own = (resampled - resampled.mean(axis=0)).var(axis=1, ddof=1).mean() / k
    images = _over_images(mean, resampled.mean(axis=1), own)
    return {
        "mean": mean,
        "ci95": over_seeds(seeds, images),
        "images95": images,
        "seeds": [float(x) for x in seeds],
        "n": n,
    }


def _over_images(mean: float, of_mean: np.ndarray, own: float) -> list[float]:
    """The interval over images alone.

    Args:
      of_mean: the figure on resampled images, [resamples].
      own: the part of its variance that comes from the runs' differences on single images.
    """
    total = of_mean.var()
    share = max(1 - own / total, 0.0) if total > 0 else 1.0
    bounds = mean + np.sqrt(share) * (np.percentile(of_mean, [2.5, 97.5]) - mean)
    return [float(bound) for bound in bounds]


def over_seeds(seeds: Sequence[float] | np.ndarray, images95: Sequence[float]) -> list[float]:
    """The 95 % interval of the mean over seeds [k], from its interval over images alone.

    Half widths are t* sqrt(A + B), with A = s² / k of the seeds, B the variance over images, and t*
    the mean of the quantiles of Student's t with k - 1 degrees of freedom and of the normal,
    weighted by A and B (Cochran & Cox 1957, section 4.14, for means of unequal variances). A joint
    number of degrees of freedom (Welch & Satterthwaite) covers 0.86 to 0.94 with two seeds;
    experiments/benchmarks/intervals.py simulates both.
    """
    k = len(seeds)
    a = float(np.var(seeds, ddof=1)) / k if k > 1 else 0.0
    return _with_runs(float(np.mean(seeds)), images95, a, k - 1)


def _with_runs(mean: float, images95: Sequence[float], a: float, freedom: int) -> list[float]:
    """As `over_seeds`, for a variance `a` over runs with some degrees of freedom."""
    if a == 0:
        return [float(bound) for bound in images95]
    t = float(scipy.stats.t.ppf(0.975, freedom))
    b = ((np.asarray(images95) - mean) / Z) ** 2
    half = (a * t + b * Z) / np.sqrt(a + b)
    return [float(mean - half[0]), float(mean + half[1])]


def text(figure: Mapping[str, Any], digits: int = 2, sign: str = "") -> str:
    """A figure and its interval as a table's cell; sign "+" for a difference."""
    low, high = figure["ci95"]
    return f"{figure['mean']:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
