"""What a prediction is worth, on the host: the contents of metrics.json, and ratios of sums.

Figures equal scikit-learn's on the same predictions. Intervals are percentile bootstraps that
resample groups of duplicates, so that copies of one photo do not count as evidence twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sklearn_metrics

from agejax.errors import UserError

DECADES = 10  # 0-9, 10-19, ..., 90+
SMALLEST_GROUP = 30  # images; below it a group's error says little
RESAMPLES = 1000


def evaluate(
    predictions: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    duplicates: np.ndarray,
    label_names: Mapping[str, Sequence[str]],
    *,
    floor_age: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores predictions; a target without labels or predictions is absent.

    Args:
      predictions: age float [N] in years; gender and ethnicity probabilities [N, K].
      labels: [N] each; NaN or -1 where unknown.
      duplicates: int [N], the duplicate group of each image.
      floor_age: the constant that the best constant predictor says, years (the median of training).
      seed: of the bootstrap.

    Returns:
      {"n", "age": {"n", "mae", "mae_ci95", "rmse", "median_ae", "bias" (predicted - true), "cs3",
      "cs5", "cs10" (shares with an error of at most so many years), "floor_mae"},
      "gender": {"n", "accuracy", "accuracy_ci95", "balanced_accuracy"},
      "ethnicity": {"n", "accuracy", "accuracy_ci95", "macro_f1"},
      "groups": {"age": [...], "gender": [...], ..., "worst": {...}}}.
    """
    result: dict[str, Any] = {"n": len(next(iter(predictions.values())))}
    for name, predicted in predictions.items():
        label = labels[name]
        known = np.isfinite(label) if predicted.ndim == 1 else label >= 0
        if not known.any():
            continue
        if predicted.ndim == 1:
            error = predicted[known].astype(np.float64) - label[known]
            scores = _age(error, duplicates[known], seed)
            if floor_age is not None and name == "age":
                scores["floor_mae"] = float(np.abs(floor_age - label[known]).mean())
        else:
            scores = _classes(
                label[known], predicted[known].argmax(axis=1), duplicates[known], seed
            )
            scores.pop("macro_f1" if predicted.shape[1] == 2 else "balanced_accuracy")
        result[name] = scores
    if "age" in result:
        error = predictions["age"].astype(np.float64) - labels["age"]
        result["groups"] = _groups(error, labels, label_names)
    return result


def _age(error: np.ndarray, duplicates: np.ndarray, seed: int) -> dict[str, Any]:
    size = np.abs(error)
    return {
        "n": len(error),
        "mae": float(size.mean()),
        "mae_ci95": bootstrap(size, duplicates, seed),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "median_ae": float(np.median(size)),
        "bias": float(error.mean()),
        **{f"cs{k}": float((size <= k).mean()) for k in (3, 5, 10)},
    }


def _classes(
    true: np.ndarray, predicted: np.ndarray, duplicates: np.ndarray, seed: int
) -> dict[str, Any]:
    hit = (true == predicted).astype(np.float64)
    # Of the classes that occur; a class nobody has is no failure.
    recalls = [hit[true == c].mean() for c in np.unique(true)]
    return {
        "n": len(true),
        "accuracy": float(hit.mean()),
        "accuracy_ci95": bootstrap(hit, duplicates, seed),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": float(
            sklearn_metrics.f1_score(true, predicted, average="macro", zero_division=0)
        ),
    }


def bootstrap(
    values: np.ndarray, duplicates: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> list[float]:
    """[low, high] of the mean's 95 % percentile interval, resampling whole groups (Efron 1979)."""
    _, group = np.unique(duplicates, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(len(sums), size=len(sums))
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    return [float(q) for q in np.percentile(means, [2.5, 97.5])]


def _groups(
    error: np.ndarray, labels: Mapping[str, np.ndarray], label_names: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Age error by decade, by each class, and by gender and ethnicity together."""
    known = np.isfinite(error)
    decade = np.full(len(error), -1)
    decade[known] = np.minimum(labels["age"][known] // 10, DECADES - 1)
    names = {"age": [f"{d}0-{d}9" for d in range(DECADES - 1)] + ["90+"], **label_names}
    names["age"][0] = "0-9"
    members: dict[str, list[tuple[str, np.ndarray]]] = {
        "age": [(name, decade == d) for d, name in enumerate(names["age"])]
    }
    for label in label_names:
        members[label] = [(name, labels[label] == c) for c, name in enumerate(names[label])]
    if {"gender", "ethnicity"} <= label_names.keys():
        members["gender x ethnicity"] = [
            (f"{g} {e}", is_g & is_e)
            for g, is_g in members["gender"]
            for e, is_e in members["ethnicity"]
        ]
    result: dict[str, Any] = {}
    for label, parts in members.items():
        rows = [
            {
                "name": name,
                "n": int((part & known).sum()),
                "mae": float(np.abs(error[part & known]).mean()),
                "bias": float(error[part & known].mean()),
            }
            for name, part in parts
            if (part & known).any()
        ]
        if rows:
            result[label] = rows
    large = [
        {"by": label, **row}
        for label, rows in result.items()
        for row in rows
        if row["n"] >= SMALLEST_GROUP
    ]
    if large:
        result["worst"] = max(large, key=lambda row: row["mae"])
    return result


def scalars(evaluated: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of an evaluation's targets, as {"age/mae": ...}."""
    return {
        f"{target}/{name}": value
        for target, scores in evaluated.items()
        if isinstance(scores, dict) and target != "groups"
        for name, value in scores.items()
        if isinstance(value, float) and name != "floor_mae"
    }


def lookup(evaluated: Mapping[str, Any], path: str) -> float:
    """The value at a path such as age/mae; `UserError` names the paths there are."""
    values = scalars(evaluated)
    if path not in values:
        raise UserError(f"config.eval.best: no metric {path!r}; there are {', '.join(values)}")
    return values[path]


def ratios(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{name: [sum, count]} -> {name: sum / count}; what was never counted is left out."""
    return {name: float(s[0] / s[1]) for name, s in sums.items() if s[1] > 0}


def table(evaluated: Mapping[str, Any]) -> str:
    """A plain-text table of an evaluation, error by group first."""
    lines = []
    for label, rows in evaluated.get("groups", {}).items():
        if label != "worst":
            cells = [f"{r['name']} {r['mae']:.2f} (n {r['n']:,})" for r in rows]
            lines.append(f"  age MAE by {label}: " + ", ".join(cells))
    worst = evaluated.get("groups", {}).get("worst")
    if worst:
        lines.append(
            f"  worst group of {SMALLEST_GROUP} or more: {worst['name']}, MAE {worst['mae']:.2f}, "
            f"bias {worst['bias']:+.2f} (n {worst['n']:,})"
        )
    lines.append("")
    for target, scores in evaluated.items():
        if not isinstance(scores, dict) or target == "groups":
            continue
        cells = []
        for name, value in scores.items():
            if name.endswith("_ci95"):
                cells[-1] += f" [{value[0]:.3f}, {value[1]:.3f}]"
            else:
                cells.append(f"{name} {value:,}" if name == "n" else f"{name} {value:.3f}")
        lines.append(f"  {target}: " + "  ".join(cells))
    return "\n".join(lines)
