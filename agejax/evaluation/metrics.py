"""Metrics of predictions, on the host: the contents of metrics.json.

Figures equal scikit-learn's on the same predictions. Intervals are percentile bootstraps that
resample groups of duplicates, so that copies of one photo count as evidence once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from agejax.errors import UserError
from agejax.evaluation import bootstrap, replicates
from agejax.labels import DECADES, is_known

SMALLEST_GROUP = 30  # images; the error of a smaller group is too uncertain

Partition = Sequence[tuple[str, np.ndarray]]  # (name, bool [N]) of each part


def evaluate(
    predictions: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    label_names: Mapping[str, Sequence[str]],
    *,
    duplicates: np.ndarray | None = None,
    floor_age: float | None = None,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Any]:
    """Scores predictions; a target without labels or predictions is absent.

    Args:
      predictions: age float [N] in years; gender and ethnicity probabilities [N, K].
      labels: [N] each; NaN (ages) or -1 (classes) where unknown.
      label_names: class names of gender and ethnicity, for the groups.
      duplicates: int [N], the duplicate group of each image; None: no duplicates.
      floor_age: the best constant prediction, years (the median of the training images).
      seed, resamples: of the bootstrap.

    Returns:
      {"n", "age": {"n", "mae", "mae_ci95", "macro_mae" (the unweighted mean of the decades' MAE:
      Baccianella et al. 2009), "rmse", "median_ae", "bias" (predicted - true), "cs3", "cs5", "cs10"
      (fractions with an error of at most so many years), "floor_mae"},
      "gender", "ethnicity": {"n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1"},
      "groups": {target: {"decade", "gender", "ethnicity", "gender x ethnicity": [{"name", "n",
      "mae", "bias", "mae_ci95" | "accuracy", "accuracy_ci95"}], "worst": {"by", "name", ...} of
      `SMALLEST_GROUP` images or more}}}. Plain Python numbers, all finite.

    Raises:
      UserError: a prediction is not finite.
    """
    n = len(next(iter(predictions.values())))
    duplicates = np.arange(n) if duplicates is None else duplicates
    parts = partitions(labels, label_names)
    result: dict[str, Any] = {"n": n}
    groups: dict[str, Any] = {}
    for target, predicted in predictions.items():
        label = labels.get(target)
        if label is None:
            continue
        known = is_known(label)
        if not known.any():
            continue
        bad = np.flatnonzero(~np.isfinite(predicted).reshape(n, -1).all(axis=1))
        if bad.size:
            raise UserError(
                f"{target}: {bad.size:,} of {n:,} predictions are not finite, the first in row "
                f"{bad[0]}: the model has diverged; train again with a lower config.schedule.lr"
            )
        # Per-image values whose mean is the group's score; the first ranks the groups.
        values: dict[str, np.ndarray]
        if predicted.ndim == 1:
            error = predicted.astype(np.float64) - label
            values = {"mae": np.abs(error), "bias": error}
            scores = _age_scores(error[known], label[known])
            if floor_age is not None and target == "age":
                scores["floor_mae"] = float(np.abs(floor_age - label[known].astype(float)).mean())
        else:
            classes = predicted.argmax(axis=1)
            values = {"accuracy": (classes == label).astype(np.float64)}
            scores = _class_scores(label[known], classes[known])
        masks = [known, *(part & known for by in parts.values() for _, part in by)]
        rank, ranked = next(iter(values.items()))
        intervals = bootstrap.intervals(
            ranked, np.stack(masks, axis=1), duplicates, seed, resamples
        )
        result[target] = {
            "n": int(known.sum()),
            rank: scores.pop(rank),
            f"{rank}_ci95": intervals[0],
            **scores,
        }
        groups[target] = _group_scores(values, parts, masks[1:], intervals[1:])
    return {**result, "groups": groups}


def paired(
    predictions: Sequence[Mapping[str, np.ndarray]],
    others: Sequence[Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    label_names: Mapping[str, Sequence[str]],
    duplicates: np.ndarray,
    *,
    matched: bool = True,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Any]:
    """Compares the errors of two models on the same images, each trained with one or more seeds.

    Args:
      predictions, others: of each seed.
      labels, label_names, duplicates, seed, resamples: as in `evaluate`.
      matched: as in `replicates.difference`.

    Returns:
      target -> {"n", "difference": of the mean absolute errors in years, or of the error rates of
      classes, below 0 where `predictions` are better, "difference_ci95": paired, over images, and
      over seeds where there are several, "groups": {by: [{"name", "n", "difference",
      "difference_ci95"}]}}, for targets that all predict.
    """
    result: dict[str, Any] = {}
    parts = partitions(labels, label_names)
    every = [*predictions, *others]
    for target in (name for name in predictions[0] if name in labels):
        if not all(target in one for one in every):
            continue
        label = labels[target]
        known = is_known(label)
        if not known.any():
            continue
        ours, theirs = (
            np.stack([losses(one[target], label) for one in some]) for some in (predictions, others)
        )
        masks = [known, *(part & known for by in parts.values() for _, part in by)]
        intervals = _difference_intervals(
            ours, theirs, np.stack(masks, axis=1), duplicates, matched, seed, resamples
        )
        differences = ours.mean(axis=0) - theirs.mean(axis=0)
        groups = _group_scores({"difference": differences}, parts, masks[1:], intervals[1:])
        result[target] = {
            "n": int(known.sum()),
            "difference": float(differences[known].mean()),
            "difference_ci95": intervals[0],
            "groups": {by: rows for by, rows in groups.items() if by != "worst"},
        }
    return result


def _difference_intervals(
    ours: np.ndarray,
    theirs: np.ndarray,
    masks: np.ndarray,
    duplicates: np.ndarray,
    matched: bool,
    seed: int,
    resamples: int,
) -> list[list[float]]:
    """The interval of the difference of mean losses [seeds, N] in each part of masks [N, K]."""
    means = [
        np.stack([bootstrap.means(one, masks, duplicates, seed, resamples) for one in of], axis=-1)
        for of in (ours, theirs)
    ]  # [resamples, K, seeds] each
    result = []
    for k, part in enumerate(masks.T):
        drawn = np.isfinite(means[0][:, k, 0])  # resamples with an image of the part
        if not drawn.any():
            result.append([np.nan, np.nan])
            continue
        one, other = (of[drawn, k] for of in means)
        figure = replicates.difference(
            ours[:, part].mean(axis=1),
            theirs[:, part].mean(axis=1),
            (one, other),
            int(part.sum()),
            matched,
        )
        result.append(figure["ci95"])
    return result


def losses(predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Absolute errors in years, or 1 for a wrong class and 0 for a right one; float64 [N]."""
    wrong: np.ndarray
    if predicted.ndim == 1:
        wrong = np.abs(predicted.astype(np.float64) - label)
    else:
        wrong = (predicted.argmax(axis=1) != label).astype(np.float64)
    return wrong


def _age_scores(error: np.ndarray, label: np.ndarray) -> dict[str, float]:
    size = np.abs(error)
    by_decade = [size[part].mean() for _, part in decades(label) if part.any()]
    return {
        "mae": float(size.mean()),
        "macro_mae": float(np.mean(by_decade)),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "median_ae": float(np.median(size)),
        "bias": float(error.mean()),
        **{f"cs{k}": float((size <= k).mean()) for k in (3, 5, 10)},
    }


def _class_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Scores of classes; which classes count is as in scikit-learn.

    Balanced accuracy is the mean recall of the classes that occur among the labels; macro-F1 is
    the mean F1 of the classes that occur among labels or predictions.
    """
    classes, codes = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    confusion = np.zeros((len(classes), len(classes)))
    np.add.at(confusion, (codes[: len(true)], codes[len(true) :]), 1)
    hits, labelled, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    occurs = labelled > 0
    return {
        "accuracy": float(hits.sum() / len(true)),
        "balanced_accuracy": float((hits[occurs] / labelled[occurs]).mean()),
        "macro_f1": float((2 * hits / (labelled + said)).mean()),
    }


def decades(age: np.ndarray) -> Partition:
    """Parts of `age` (years, [N]) by decade, named by `DECADES`; unknown ages are in no part."""
    return [
        (name, (age >= 10 * d) & ((age < 10 * d + 10) | (name == DECADES[-1])))
        for d, name in enumerate(DECADES)
    ]


def partitions(
    labels: Mapping[str, np.ndarray], label_names: Mapping[str, Sequence[str]]
) -> dict[str, Partition]:
    """The ways to divide the images into groups: by decade, by each class, and crossed."""
    result: dict[str, Partition] = {"decade": decades(labels["age"])} if "age" in labels else {}
    for label, names in label_names.items():
        if label in labels:
            result[label] = [(name, labels[label] == c) for c, name in enumerate(names)]
    if {"gender", "ethnicity"} <= result.keys():
        result["gender x ethnicity"] = [
            (f"{gender} {ethnicity}", is_gender & is_ethnicity)
            for gender, is_gender in result["gender"]
            for ethnicity, is_ethnicity in result["ethnicity"]
        ]
    return result


def _group_scores(
    values: Mapping[str, np.ndarray],
    partitions: Mapping[str, Partition],
    masks: Sequence[np.ndarray],
    intervals: Sequence[Sequence[float]],
) -> dict[str, Any]:
    """Means of `values` ([N] each) by group, and the worst large group.

    Args:
      masks, intervals: for each part of each partition, in order: its images, bool [N], and the
        interval of the first value's mean.
    """
    result: dict[str, Any] = {}
    rank = next(iter(values))
    every = iter(zip(masks, intervals, strict=True))
    for by, parts in partitions.items():
        rows = [
            {
                "name": name,
                "n": int(counts.sum()),
                **{k: float(v[counts].mean()) for k, v in values.items()},
                f"{rank}_ci95": interval,
            }
            for (name, _), (counts, interval) in zip(parts, every, strict=False)
            if counts.any()
        ]
        if rows:
            result[by] = rows
    large = [
        {"by": by, **row}
        for by, rows in result.items()
        for row in rows
        if row["n"] >= SMALLEST_GROUP
    ]
    if large:
        sign = -1 if rank == "accuracy" else 1
        result["worst"] = max(large, key=lambda row: sign * row[rank])
    return result


def scalars(evaluated: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of an evaluation's targets, as {"age/mae": ...}, and its loss, if known."""
    values = {
        f"{target}/{name}": value
        for target, scores in _targets(evaluated)
        for name, value in scores.items()
        if isinstance(value, float) and name != "floor_mae"
    }
    return values | ({"loss": evaluated["loss"]} if "loss" in evaluated else {})


def lookup(evaluated: Mapping[str, Any], path: str) -> float:
    """The value at a path such as age/mae; `UserError` names the paths there are."""
    values = scalars(evaluated)
    if path not in values:
        raise UserError(f"config.eval.best: no metric {path!r}; there are {', '.join(values)}")
    return values[path]


def table(evaluated: Mapping[str, Any]) -> str:
    """An evaluation as plain text: a row per group, then a row per target."""
    blocks = [_grid(_group_rows(evaluated["groups"]))]
    for target, groups in evaluated["groups"].items():
        if "worst" in groups:
            figures = ", ".join(
                f"{k} {_figure(k, v)}"
                for k, v in groups["worst"].items()
                if k not in ("by", "name")
            )
            blocks[0] += (
                f"\n  {target}, worst group of {SMALLEST_GROUP} images or more: "
                f"{groups['worst']['name']} ({figures})"
            )
    # Targets with the same figures share one heading.
    shared: dict[tuple[str, ...], list[list[str]]] = {}
    for target, scores in _targets(evaluated):
        heading = tuple("95 % interval" if k.endswith("_ci95") else k for k in scores)
        rows = shared.setdefault(heading, [["", *heading]])
        rows.append([target, *(_figure(k, v) for k, v in scores.items())])
    return "\n\n".join(block for block in [*blocks, *map(_grid, shared.values())] if block)


def paired_table(evaluated: Mapping[str, Any], paired: Mapping[str, Any]) -> str:
    """Writes what `paired` returns as plain text: a row per target.

    Classes have the difference of their accuracies: that of the error rates with the other sign.

    Args:
      evaluated: the result of `evaluate` for `predictions`.
    """
    rows = [["", "difference", "95 % interval", "n"]]
    for target, found in paired.items():
        metric, sign = ("mae", 1) if "mae" in evaluated[target] else ("accuracy", -1)
        low, high = sorted(sign * bound for bound in found["difference_ci95"])
        interval = f"[{low:+z.3f}, {high:+z.3f}]"
        difference = f"{sign * found['difference']:+z.3f}"  # z: no -0.000
        rows.append([f"{target} {metric}", difference, interval, f"{found['n']:,}"])
    return _grid(rows)


def _targets(evaluated: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (target, scores) of the targets that groups are scored by too."""
    return ((name, evaluated[name]) for name in evaluated["groups"])


def _group_rows(groups: Mapping[str, Any]) -> list[list[str]]:
    """A row per group, with all targets' figures side by side; crossed groups are left out."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    columns = ["n"]
    for target, by_label in groups.items():
        for by in by_label.keys() - {"worst", "gender x ethnicity"}:
            for row in by_label[by]:
                cell = cells.setdefault((by, row["name"]), {"n": f"{row['n']:,}"})
                for name in row.keys() - {"name", "n"}:
                    cell[f"{target} {name}"] = _figure(name, row[name])
        for name in ("mae", "bias", "accuracy"):
            if any(f"{target} {name}" in cell for cell in cells.values()):
                columns.append(f"{target} {name}")
    if not cells:
        return []
    order = {by: i for i, by in enumerate(("decade", "gender", "ethnicity"))}
    keys = sorted(cells, key=lambda key: order.get(key[0], len(order)))
    return [["", *columns], *([key[1], *(cells[key].get(c, "") for c in columns)] for key in keys)]


def _figure(name: str, value: Any) -> str:
    if isinstance(value, Sequence):
        return "[" + ", ".join(f"{v:.3f}" for v in value) + "]"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:+.3f}" if name == "bias" else f"{value:.3f}"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns: the first aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + row[0].ljust(widths[0]) + "".join(
            "  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        )
        for row in rows
    )  # fmt: skip
