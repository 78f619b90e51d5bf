"""How far a prediction can be trusted, on the host: calibrated probabilities, age intervals with
the stated coverage, the error of the most certain images, and the interval of a share.

Temperatures and quantiles are fitted on validation images and judged on test images. Images with an
unknown label (-1, NaN) never count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy  # it imports its parts lazily: predict needs none of them

from agejax.evaluation.metrics import SMALLEST_GROUP, Partition

AGES = (0.0, 116.0)  # years; intervals are clipped to these

# ----------------------------------------------------------------------------------- probabilities


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log p of the true class; probabilities [N, K], labels int [N]."""
    p, label = _known(probabilities, labels)
    return float(-_log(p)[np.arange(len(label)), label].mean())


def temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017, section 4.2).

    Logits are not needed: log p differs from them by a constant, which softmax cancels.

    Args:
      probabilities: [N, K] of validation images; two columns for a binary target.
      labels: int [N], -1 where unknown.

    Returns:
      Above 1 for an overconfident model, below 1 for an underconfident one. Limited to 0.01..100: a
      model that is never wrong would have 0, one that knows nothing infinity.
    """
    p, label = _known(probabilities, labels)
    best = scipy.optimize.minimize_scalar(
        lambda log_t: nll(scaled(p, math.exp(log_t)), label),
        bounds=(math.log(0.01), math.log(100)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(best.x)


def scaled(probabilities: np.ndarray, t: float) -> np.ndarray:
    """softmax(log p / t), float64 [N, K]; the most probable class stays so."""
    tempered: np.ndarray = scipy.special.softmax(_log(probabilities) / t, axis=1)
    return tempered


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> list[dict[str, Any]]:
    """The reliability curve: accuracy of the most probable class against its confidence.

    Returns:
      A row for each bin (low, high] of the largest probability that holds an image; bins have equal
      widths: {"low", "high", "n", "confidence": its mean, "accuracy", "accuracy_ci95"}.
    """
    p, label = _known(probabilities, labels)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == label
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "n": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
            "accuracy_ci95": wilson(int(right[inside].sum()), int(inside.sum())),
        }
        for b, inside in ((b, bin_of == b) for b in np.unique(bin_of).tolist())
    ]


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the most probable class, in bins of equal width: the sum over
    bins of n/N |accuracy - confidence| (Naeini et al. 2015, as in Guo et al. 2017, eq. 3)."""
    rows = reliability(probabilities, labels, bins)
    gaps = [row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows]
    return float(sum(gaps) / sum(row["n"] for row in rows))


def _known(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    assert probabilities.ndim == 2
    assert len(probabilities) == len(labels)
    known = labels >= 0
    assert known.any(), "no image has a label"
    return probabilities[known].astype(np.float64), labels[known]


def _log(probabilities: np.ndarray) -> np.ndarray:
    """log p, finite: a probability rounded to 0 counts as the smallest float32."""
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))


# ---------------------------------------------------------------------------------- age intervals


def conformal(errors: np.ndarray, alpha: float, sigma: np.ndarray | None = None) -> float:
    """The half width of intervals that miss a share `alpha` of exchangeable images at most.

    Split conformal prediction: the ceil((n + 1)(1 - alpha))-th smallest |r| / sigma (Vovk et al.
    2005; Lei et al. 2018, theorem 2.2; normalised as in Papadopoulos et al. 2008). Duplicates of
    calibration images are no new evidence; leave one of each.

    Args:
      errors: years, |age - predicted| of calibration images [N]; NaN where the age is unknown.
      sigma: years [N], how uncertain the model was, above 0; None: the same everywhere.

    Returns:
      Years, or multiples of sigma; infinite where there are fewer than 1 / alpha - 1 images.
    """
    assert 0 < alpha < 1
    assert sigma is None or (np.shape(sigma) == np.shape(errors) and np.all(sigma > 0))
    score = np.abs(errors) if sigma is None else np.abs(errors) / sigma
    score = np.sort(score[np.isfinite(errors)].astype(np.float64))
    rank = _rank(len(score), alpha)
    return float(score[rank - 1]) if rank <= len(score) else math.inf


def _rank(n: int, alpha: float) -> int:
    """ceil((n + 1)(1 - alpha)), with alpha as the decimal number that it is written as."""
    return math.ceil(round((n + 1) * (1 - alpha), 9))


@dataclasses.dataclass(frozen=True)
class GroupQuantile:
    """A quantile `q` of `n` calibration images; `own`: whether all are of the group itself."""

    n: int
    q: float
    own: bool


@dataclasses.dataclass(frozen=True)
class ByGroup:
    """A quantile for each group; `everybody` is for images in no group."""

    everybody: GroupQuantile
    groups: Mapping[str, GroupQuantile]

    def of(self, parts: Partition) -> np.ndarray:
        """The quantile of each image, float [N], for `interval`; parts have the fitted names."""
        q = np.full(len(parts[0][1]), self.everybody.q)
        for name, part in parts:
            q[part] = self.groups[name].q
        return q


def conformal_by_group(
    errors: np.ndarray, parts: Partition, alpha: float, sigma: np.ndarray | None = None
) -> ByGroup:
    """`conformal` within each group, so that each group is covered (Mondrian: Vovk et al. 2003;
    Romano et al. 2020).

    The group must be known at prediction time: use the decade of the prediction, never that of the
    true age.

    Args:
      parts: (name, bool [N]) of disjoint groups of the calibration images, as in metrics.decades.
        Groups with fewer than `SMALLEST_GROUP` images, or 1 / alpha - 1, are pooled; where these
        are too few together, they take the widest quantile of the others, or that of all.
    """

    def quantile(rows: np.ndarray) -> GroupQuantile:
        q = conformal(errors[rows], alpha, None if sigma is None else sigma[rows])
        return GroupQuantile(int(np.isfinite(errors[rows]).sum()), q, own=True)

    assert np.sum([part for _, part in parts], axis=0).max(initial=0) <= 1, "groups overlap"
    everybody = quantile(np.ones(len(errors), bool))
    alone = {name: quantile(part) for name, part in parts}
    enough = {
        name: one for name, one in alone.items() if one.n >= SMALLEST_GROUP and math.isfinite(one.q)
    }
    # Not the overall quantile: small groups, such as the oldest, have the largest errors.
    small = [part for name, part in parts if name not in enough]
    shared = quantile(np.any(small, axis=0)) if small else everybody
    if not math.isfinite(shared.q):  # too few even when pooled: as wide as the widest
        shared = max([everybody, *enough.values()], key=lambda one: one.q)
    shared = dataclasses.replace(shared, own=False)
    groups = {name: enough.get(name, shared) for name in alone}
    return ByGroup(everybody, groups)


def interval(
    predicted: np.ndarray,
    q: float | np.ndarray,
    sigma: np.ndarray | None = None,
    low: float = AGES[0],
    high: float = AGES[1],
) -> tuple[np.ndarray, np.ndarray]:
    """predicted ± q sigma, clipped to [low, high]: (lower, upper), years [N] each.

    Clipping costs no coverage. A prediction outside gives the bound itself.
    """
    half = q * (np.ones(len(predicted)) if sigma is None else sigma)
    return np.clip(predicted - half, low, high), np.clip(predicted + half, low, high)


def coverage(
    age: np.ndarray, lower: np.ndarray, upper: np.ndarray, alpha: float, calibration: int
) -> dict[str, Any]:
    """How often intervals hold the true age, and the range that chance allows.

    The number of hits among n test images is beta-binomial, (k, m + 1 - k) with the rank k of the m
    calibration images: binomial, plus the chance in the calibration (Vovk 2012; Angelopoulos &
    Bates 2023, section 3.2 and appendix C). Ages in whole years tie, which can only raise it.

    Args:
      age: years [N], NaN where unknown.
      lower, upper: years [N], from `interval`.
      calibration: the number of images that the quantile was fitted to.

    Returns:
      {"n", "coverage", "band95": [low, high], where the coverage of valid intervals lies, "width":
      the mean, years}; all but n are NaN where no age is known.
    """
    known = np.isfinite(age)
    age, lower, upper = age[known], lower[known], upper[known]
    n, rank = len(age), _rank(calibration, alpha)
    if n == 0:
        return {"n": 0, "coverage": math.nan, "band95": [math.nan] * 2, "width": math.nan}
    band = (1.0, 1.0)
    if rank <= calibration:
        hits = scipy.stats.betabinom(n, rank, calibration + 1 - rank)
        band = tuple(hits.ppf([0.025, 0.975]) / n)
    return {
        "n": n,
        "coverage": float(((lower <= age) & (age <= upper)).mean()),
        "band95": [float(bound) for bound in band],
        "width": float((upper - lower).mean()),
    }


def coverage_by_group(
    age: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    alpha: float,
    parts: Partition,
    fitted: ByGroup,
) -> list[dict[str, Any]]:
    """`coverage` of each group with a known age: a row {"name", "n", "coverage", "band95", "width",
    "own": whether its quantile is the group's own}."""
    return [
        {
            "name": name,
            **coverage(age[part], lower[part], upper[part], alpha, fitted.groups[name].n),
            "own": fitted.groups[name].own,
        }
        for name, part in parts
        if np.isfinite(age[part]).any()
    ]


# ----------------------------------------------------------------------------------- risk and share


def risk_coverage(errors: np.ndarray, uncertainty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The error of the images kept when the least certain are left out (El-Yaniv & Wiener 2010).

    Args:
      errors: per image [N], such as |age - predicted|, or 1 for a wrong class; NaN: unknown.
      uncertainty: [N], such as sigma, an interval's width, or 1 - the largest probability.

    Returns:
      (share kept, from 1 / n to 1; mean error of these), [n] each, the most certain first. Equally
      certain images count with their mean error, so that the order of rows does not matter.
    """
    known = np.isfinite(errors)
    errors, uncertainty = errors[known].astype(np.float64), uncertainty[known]
    _, level, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    ordered = np.repeat(np.bincount(level, errors) / counts, counts)
    kept = np.arange(1, len(errors) + 1)
    return kept / len(errors), np.cumsum(ordered) / kept


def aurc(errors: np.ndarray, uncertainty: np.ndarray) -> float:
    """The area under `risk_coverage`, its mean over all shares (Geifman et al. 2019, eq. 3): the
    mean error where the uncertainty is uninformative, lower the more it tells."""
    return float(risk_coverage(errors, uncertainty)[1].mean())


# ------------------------------------------------------------------------------------------- shares


def wilson(k: int, n: int, confidence: float = 0.95) -> list[float]:
    """[low, high] of the share k / n by the score interval (Wilson 1927); [0, 1] for n = 0."""
    assert 0 <= k <= n
    if n == 0:
        return [0.0, 1.0]
    z = scipy.stats.norm.ppf((1 + confidence) / 2)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return [max(0.0, float(centre - half)), min(1.0, float(centre + half))]
