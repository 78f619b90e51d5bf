"""Age gates: whom a challenge age admits, whom it turns away, and how both differ by group.

A gate with the challenge age T admits everyone who looks T or older without a document (NIST IR
8525). A false accept admits a minor, a true accept an adult. The minors here are those of 14 to 17,
the hardest to tell from adults.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy  # it imports its parts lazily: predict needs none of them

from agejax.evaluation import gaps
from agejax.evaluation.metrics import Partition
from agejax.evaluation.uncertainty import wilson

ADULT = 18.0  # years
OLDEST_MINORS = (14.0, 18.0)  # years, [from, below): the oldest whom an age gate must stop
CHALLENGES = tuple(range(18, 31))  # years
USUAL = 25  # years; Challenge-25 is the gate that shops use
LIMITS = (0.01, 0.05)  # the shares of minors that a gate may admit
NEAR = 5.0  # years
# Ages at which the true ages are cut: single years next to 18, wider bands elsewhere.
CUTS = (0, 10, 14, 15, 16, 17, 18, 21, 25, 30, 40, 50, 60)


def measure(
    age: np.ndarray,
    predicted: np.ndarray,
    parts: Mapping[str, Partition],
    duplicates: np.ndarray,
) -> dict[str, Any]:
    """Everything about gates that metrics.json holds.

    Args:
      age, predicted: years [N]; NaN where the age is unknown.
      parts: the ways to divide the images into groups, as from `metrics.partitions`; decades are
        left out, because a gate treats ages differently on purpose.
      duplicates: int [N], equal within a group of copies.

    Returns:
      {"challenge", "band": as from the functions of these names, "groups": {by: [{"name",
      "challenge", "limits"}]}, "limits": a `challenge_age` per limit, "by_age": `by_age` at
      `USUAL` and at each of these challenge ages, "gaps": `gaps.measure` of the false accepts at
      `USUAL`}.
    """
    by = {name: of for name, of in parts.items() if name != "decade"}
    limits = challenge_ages(age, predicted, duplicates)
    thresholds = dict.fromkeys([USUAL, *(row["threshold"] for row in limits)])
    return {
        "challenge": challenge(age, predicted),
        "band": age_band(age, predicted),
        "groups": {
            name: [
                {
                    "name": group,
                    "challenge": challenge(age[part], predicted[part]),
                    "limits": challenge_ages(age[part], predicted[part], duplicates[part]),
                }
                for group, part in of
                if np.isfinite(age[part]).any()
            ]
            for name, of in by.items()
        },
        "limits": limits,
        "by_age": [
            {"threshold": threshold, "rows": by_age(age, predicted, threshold)}
            for threshold in thresholds
        ],
        "gaps": gaps.measure((predicted >= USUAL).astype(float), is_minor(age), by, duplicates),
    }


def is_minor(age: np.ndarray) -> np.ndarray:
    """bool [N]: who is one of the minors that a gate is judged on; unknown ages are not."""
    minors: np.ndarray = (OLDEST_MINORS[0] <= age) & (age < OLDEST_MINORS[1])
    return minors


def challenge(
    age: np.ndarray, predicted: np.ndarray, thresholds: Iterable[float] = CHALLENGES
) -> list[dict[str, Any]]:
    """False and true accepts at each challenge age.

    Args:
      age, predicted: years [N]; NaN where the age is unknown.

    Returns:
      For each T {"threshold", "fpr": of those aged 14 to 17, "tpr": of those aged 18 or older}, the
      latter two {"n", "rate": share admitted, None for n = 0, "ci95": Wilson's}.
    """
    youth, adult = is_minor(age), age >= ADULT
    return [
        {
            "threshold": threshold,
            "fpr": rate(predicted[youth] >= threshold),
            "tpr": rate(predicted[adult] >= threshold),
        }
        for threshold in thresholds
    ]


def challenge_ages(
    age: np.ndarray,
    predicted: np.ndarray,
    duplicates: np.ndarray,
    limits: Iterable[float] = LIMITS,
) -> list[dict[str, Any]]:
    """The lowest challenge age, in whole years from 18, that keeps false accepts at each limit.

    The interval inverts the exact binomial test (Clopper & Pearson 1934): it holds every challenge
    age at which the data do not contradict a false-accept rate of the limit. A bootstrap would
    promise too much: no resample holds an older-looking minor than the sample does. A group of
    copies counts as one piece of evidence.

    Args:
      age, predicted: years [N]; NaN where the age is unknown.
      duplicates: int [N], equal within a group of copies.

    Returns:
      A row per limit {"limit", "threshold": years, "ci95": [low, high], high None where there are
      too few minors to tell, "fpr": the rate there as in `challenge`, "needed": how many minors it
      takes for an upper bound, if none of them is admitted}; no row where there are no minors.
    """
    minors = is_minor(age)
    if not minors.any():
        return []
    looks = np.sort(predicted[minors].astype(np.float64))
    # Only here can the share fall: just above how old somebody looks.
    thresholds = np.unique([ADULT, *(np.floor(looks[looks >= ADULT]) + 1)])
    share = (len(looks) - np.searchsorted(looks, thresholds)) / len(looks)
    people = len(np.unique(duplicates[minors]))
    low, high = _exact(share * people, people)
    rows = []
    for limit in limits:
        threshold = int(thresholds[np.argmax(share <= limit)])
        enough = high <= limit
        rows.append(
            {
                "limit": limit,
                "threshold": threshold,
                "ci95": [
                    int(thresholds[np.argmax(low <= limit)]),
                    int(thresholds[np.argmax(enough)]) if enough.any() else None,
                ],
                "fpr": rate(predicted[minors] >= threshold),
                "needed": math.ceil(math.log(0.025) / math.log(1 - limit)),
            }
        )
    return rows


def _exact(k: np.ndarray, n: int, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The exact bounds of the shares k / n (Clopper & Pearson 1934); k may be fractions, [M]."""
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):  # a beta distribution without images, where k is 0 or n
        low = scipy.stats.beta.ppf(tail, k, n - k + 1)
        high = scipy.stats.beta.ppf(1 - tail, k + 1, n - k)
    return np.where(k > 0, low, 0.0), np.where(k < n, high, 1.0)


def by_age(age: np.ndarray, predicted: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """Who is admitted at one challenge age, by the true age: what the gate costs and lets slip.

    Args:
      age, predicted: years [N]; NaN where the age is unknown.

    Returns:
      A row per band of `CUTS` that holds an image: {"name", "n", "rate", "ci95": as in `challenge`,
      "minor": whether the band lies below 18, "mean_error", "largest_error": predicted - true of
      those admitted, years, None where nobody is}.
    """
    rows = []
    for first, below in itertools.pairwise([*CUTS, math.inf]):
        part = (first <= age) & (age < below)
        if not part.any():
            continue
        admitted = part & (predicted >= threshold)
        error = (predicted[admitted] - age[admitted]).astype(np.float64)
        rows.append(
            {
                "name": _name(first, below),
                **rate(predicted[part] >= threshold),
                "minor": below <= ADULT,
                "mean_error": float(error.mean()) if len(error) else None,
                "largest_error": float(error.max()) if len(error) else None,
            }
        )
    return rows


def _name(first: float, below: float) -> str:
    if math.isinf(below):
        return f"{first}+"
    return f"{first}" if below == first + 1 else f"{first}-{below - 1}"


def age_band(
    age: np.ndarray, predicted: np.ndarray, first: int = 13, last: int = 16
) -> dict[str, Any]:
    """A place only for those aged `first` to `last`, such as a chat (NIST IR 8525): it admits those
    who look first <= years < last + 1.

    Returns:
      {"first", "last", "tpr": of those in the band, "fpr": of all others, "fpr_near": of others at
      most five years younger or older}, rates as in `challenge`.
    """
    inside = (first <= age) & (age < last + 1)
    outside = np.isfinite(age) & ~inside
    near = outside & (first - NEAR <= age) & (age < last + 1 + NEAR)
    let_in = (first <= predicted) & (predicted < last + 1)
    return {
        "first": first,
        "last": last,
        "tpr": rate(let_in[inside]),
        "fpr": rate(let_in[outside]),
        "fpr_near": rate(let_in[near]),
    }


def rate(let_in: np.ndarray) -> dict[str, Any]:
    """{"n", "rate", "ci95"} of bool [n], as in `challenge`."""
    n, k = len(let_in), int(let_in.sum())
    return {"n": n, "rate": k / n if n else None, "ci95": wilson(k, n)}
