"""Where a model fails: groups of images with large errors, and labels that may be wrong.

The groups are those that a shallow tree over labels and image quality finds on half of the images.
A tree finds groups by chance too, so the other half confirms each of them or does not.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from agejax.evaluation import bootstrap
from agejax.evaluation.metrics import SMALLEST_GROUP

DEPTH = 3  # conditions of a group, at most
SHARE = 0.02  # of the images, that a group has at least
CONFIDENCE = 0.95  # of all groups that are confirmed, together
DISAGREE = 5.0  # years; copies whose ages differ by more contradict each other
FAR = 2.0  # half widths of an age's interval that a label is away from the prediction
UNLIKELY = 0.01  # calibrated probability of a labelled class


def weak_groups(
    sizes: np.ndarray,
    traits: Mapping[str, np.ndarray],
    duplicates: np.ndarray,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
    opposites: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The groups with the largest errors that a regression tree (Breiman et al. 1984) finds.

    The images are halved at random, copies together. One half grows the tree, the other one judges
    its leaves. A leaf is confirmed if its mean is above that of all judged images with a confidence
    that holds for all leaves at once (Bonferroni).

    Args:
      sizes: absolute errors of the age, years [N]; NaN where the age is unknown.
      traits: name -> what may divide the images, float [N]: numbers, or bool, "is one". NaN where
        unknown, which counts as the median.
      duplicates: int [N], equal within a group of copies.
      opposites: trait -> what an image without it is called; default: "not" and the trait.

    Returns:
      {"found_on", "judged_on": images, "mae": of the judged images, "groups": the leaves whose mean
      is above that of the half that found them, the worst first: {"name": its conditions, "n",
      "mae", "mae_ci95": judged, "found_mae", "confirmed"}}; {} for too few images.
    """
    # It takes a second to import, and only evaluations need it.
    from sklearn.tree import DecisionTreeRegressor

    rows = np.flatnonzero(np.isfinite(sizes))
    _, group = np.unique(duplicates[rows], return_inverse=True)
    first = np.random.default_rng(seed).permutation(group.max(initial=-1) + 1) % 2 == 0
    finds, judges = rows[first[group]], rows[~first[group]]
    least = max(SMALLEST_GROUP, int(SHARE * len(finds)))
    if min(len(finds), len(judges)) < 2 * least or not traits:
        return {}
    columns = np.stack([_filled(values) for values in traits.values()], axis=1)
    tree = DecisionTreeRegressor(max_depth=DEPTH, min_samples_leaf=least, random_state=seed)
    tree.fit(columns[finds], sizes[finds])
    leaf_of_found, leaf_of_judged = tree.apply(columns[finds]), tree.apply(columns[judges])
    leaves = np.unique(leaf_of_found)
    masks = leaf_of_judged[:, None] == leaves
    everybody = np.ones((len(judges), 1), bool)
    resampled = bootstrap.means(
        sizes[judges], np.hstack([masks, everybody]), duplicates[judges], seed, resamples
    )
    above = resampled[:, :-1] - resampled[:, -1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a leaf without a judged image
        lowest = np.nanquantile(above, (1 - CONFIDENCE) / len(leaves), axis=0)
    names = _conditions(tree.tree_, traits, columns, opposites or {})
    found = []
    for i, (leaf, interval) in enumerate(
        zip(leaves.tolist(), bootstrap.percentiles(resampled[:, :-1]), strict=True)
    ):
        mean = float(sizes[finds][leaf_of_found == leaf].mean())
        if mean <= sizes[finds].mean() or not masks[:, i].any():
            continue
        found.append(
            {
                "name": names[leaf],
                "n": int(masks[:, i].sum()),
                "mae": float(sizes[judges][masks[:, i]].mean()),
                "mae_ci95": interval,
                "found_mae": mean,
                "confirmed": bool(lowest[i] > 0),
            }
        )
    return {
        "found_on": len(finds),
        "judged_on": len(judges),
        "mae": float(sizes[judges].mean()),
        "groups": sorted(found, key=lambda each: -each["found_mae"]),
    }


def _filled(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    middle = np.median(values[known]) if known.any() else 0.0
    return np.where(known, values, middle).astype(np.float64)


def _conditions(
    tree: Any,
    traits: Mapping[str, np.ndarray],
    columns: np.ndarray,
    opposites: Mapping[str, str],
) -> dict[int, str]:
    """Leaf -> its conditions in words, each trait once."""
    names, found = list(traits), {}
    paths: list[tuple[int, dict[int, tuple[float, float]]]] = [(0, {})]
    while paths:
        node, bounds = paths.pop()
        trait = int(tree.feature[node])
        if trait < 0:  # a leaf
            found[node] = ", ".join(
                _is_or_not(names[t], low, opposites)
                if traits[names[t]].dtype.kind == "b"
                else _between(names[t], low, high, columns[:, t])
                for t, (low, high) in bounds.items()
            )
            continue
        low, high = bounds.get(trait, (-np.inf, np.inf))
        at = float(tree.threshold[node])
        paths.append((int(tree.children_left[node]), bounds | {trait: (low, min(high, at))}))
        paths.append((int(tree.children_right[node]), bounds | {trait: (max(low, at), high)}))
    return found


def _is_or_not(name: str, low: float, opposites: Mapping[str, str]) -> str:
    return name if low > -np.inf else opposites.get(name, f"not {name}")


def _between(name: str, low: float, high: float, values: np.ndarray) -> str:
    """low < value <= high in words, with values that occur."""
    inside = values[(low < values) & (values <= high)]
    first, last = f"{inside.min():.4g}", f"{inside.max():.4g}"
    if low == -np.inf:
        return f"{name} up to {last}"
    return f"{name} {first} and more" if high == np.inf else f"{name} {first} to {last}"


class Suspect(NamedTuple):
    """An image whose label may be wrong.

    Attributes:
      row: of the evaluated images.
      reasons: why, in words.
    """

    row: int
    reasons: tuple[str, ...]


def suspects(
    labels: Mapping[str, np.ndarray],
    label_names: Mapping[str, Sequence[str]],
    duplicates: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    intervals: Mapping[str, tuple[np.ndarray, np.ndarray]],
    probabilities: Mapping[str, np.ndarray],
) -> list[Suspect]:
    """Images whose labels contradict those of a copy, or lie far from a confident prediction.

    Args:
      labels, label_names: as `metrics.evaluate` takes them.
      duplicates: int [N], equal within a group of copies.
      predictions: age in years [N].
      intervals: of ages, years [N] each, calibrated.
      probabilities: of classes, [N, K], calibrated.

    Returns:
      Those with more reasons first, then by the error of the age.
    """
    reasons: dict[int, list[str]] = {}
    for row, reason in itertools.chain(
        _contradictions(labels, label_names, duplicates),
        _far(labels, predictions, intervals),
        _unlikely(labels, label_names, probabilities),
    ):
        reasons.setdefault(row, []).append(reason)
    size = np.zeros(len(duplicates))
    if "age" in labels and "age" in predictions:
        size = np.nan_to_num(np.abs(predictions["age"] - labels["age"]))
    order = sorted(reasons, key=lambda row: (-len(reasons[row]), -size[row], row))
    return [Suspect(row, tuple(reasons[row])) for row in order]


def _contradictions(
    labels: Mapping[str, np.ndarray],
    label_names: Mapping[str, Sequence[str]],
    duplicates: np.ndarray,
) -> Iterator[tuple[int, str]]:
    order = np.argsort(duplicates, kind="stable")
    _, start = np.unique(duplicates[order], return_index=True)
    for rows in np.split(order, start[1:]):
        if len(rows) < 2:
            continue
        for name, values in labels.items():
            mine = values[rows]
            if mine.dtype.kind == "f":
                known = mine[np.isfinite(mine)]
                differ = name == "age" and len(known) > 1 and np.ptp(known) > DISAGREE
                given = [f"{value:g}" for value in np.unique(known)]
            else:
                some = np.unique(mine[mine >= 0])
                differ = name in label_names and len(some) > 1
                given = [str(label_names[name][value]) for value in some] if differ else []
            if differ:
                for row in rows.tolist():
                    yield row, f"copies disagree: {name} {' and '.join(given)}"


def _far(
    labels: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    intervals: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[int, str]]:
    for name, (low, high) in intervals.items():
        if name not in labels:
            continue
        # One end may be cut at the ages there are; the other then has the whole half width.
        half = np.maximum(predictions[name] - low, high - predictions[name])
        away = np.abs(labels[name] - predictions[name])
        for row in np.flatnonzero(away > FAR * half).tolist():
            yield (
                row,
                (
                    f"far: {name} {labels[name][row]:g}, predicted {predictions[name][row]:.0f} "
                    f"({low[row]:.0f} to {high[row]:.0f})"
                ),
            )


def _unlikely(
    labels: Mapping[str, np.ndarray],
    label_names: Mapping[str, Sequence[str]],
    probabilities: Mapping[str, np.ndarray],
) -> Iterator[tuple[int, str]]:
    for name, p in probabilities.items():
        if name not in labels or name not in label_names:
            continue
        known = np.flatnonzero(labels[name] >= 0)
        given = p[known, labels[name][known]]
        for row, share in zip(known.tolist(), given.tolist(), strict=True):
            if share < UNLIKELY:
                names = label_names[name]
                yield (
                    row,
                    (
                        f"unlikely: {name} {names[labels[name][row]]} ({share:.2%}), predicted "
                        f"{names[int(p[row].argmax())]}"
                    ),
                )
