"""How predictions hold when images get worse, and how much they move between views of one face."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from agejax.data import pipeline
from agejax.data.sources import Source
from agejax.evaluation import bootstrap, degradations, gates, metrics, uncertainty, unprocessed
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.degradations import Change
from agejax.evaluation.scored import Scored
from agejax.faces.detection import Detector
from agejax.labels import is_known
from agejax.logging import progress
from agejax.runs.run import Run

IMAGES = 1000  # at most; one of each group of copies


def measure(scored: Scored, calibration: Calibration | None) -> dict[str, Any]:
    """Predicts degraded images and views of a sample of the scored images.

    Returns:
      {"n": images, "targets": {target: {kind: [{"name": severity, "n", "mae" | "accuracy",
      "mae_ci95" | "accuracy_ci95", "change", "change_ci95": of the mean loss against the image as
      it is, paired; of an age with intervals also "coverage", "band95", "width"}]}}, each kind
      led by a row "as it is"; for the age "stability": `spread` over `degradations.views`, and
      "copies": `of_copies` of all scored images; "undetected": images in which the detector finds
      no face, by group, absent without a detector}.
    """
    rows = sample(scored.duplicates, IMAGES)
    part = _taken(scored, rows)
    geometry = calibration.geometry if calibration else None
    kinds = degradations.kinds(geometry)
    views = degradations.views()
    images = part.source.take(part.rows)
    source = part.source.select(part.rows)
    steps = sum(map(len, kinds.values())) + len(views)
    with progress.Count("robustness: predicted", steps * len(rows)) as count:

        def predict(change: Change) -> dict[str, np.ndarray]:
            with ThreadPoolExecutor() as pool:
                changed = np.stack([*pool.map(change, images, range(len(images)))])
            predicted = _predicted(scored.run, dataclasses.replace(source, images=changed))
            count.add(len(images))
            return predicted

        clean, *others = (predict(change) for change in views.values())
        targets: dict[str, Any] = {target: {} for target in _targets(part, clean)}
        for kind, levels in kinds.items():
            found = {"as it is": clean} | {name: predict(change) for name, change in levels.items()}
            for target in targets:
                targets[target][kind] = [
                    {"name": name, **_score(part, target, predicted, clean, calibration)}
                    for name, predicted in found.items()
                ]
    result: dict[str, Any] = {"n": len(rows), "targets": targets}
    parts = metrics.partitions(part.labels, part.label_names)
    if "age" in targets:
        ages = np.stack([clean["age"], *(view["age"] for view in others)])
        result["stability"] = spread(ages, part.labels["age"], parts, part.duplicates)
        result["copies"] = of_copies(scored.predictions["age"], scored.copies)
    if (detector := Detector.if_installed()) is not None:
        lost = np.array([not detector.find(image) for image in images])
        result["undetected"] = {
            "images": int(lost.sum()),
            "groups": unprocessed.by_group(lost, parts),
        }
    return result


def sample(duplicates: np.ndarray, most: int) -> np.ndarray:
    """Evenly spaced indices int [M <= most] into images, one of each group of copies."""
    first = np.sort(np.unique(duplicates, return_index=True)[1])
    chosen: np.ndarray = first[
        np.linspace(0, len(first) - 1, min(most, len(first))).round().astype(int)
    ]
    return chosen


def _predicted(run: Run, source: Source) -> dict[str, np.ndarray]:
    rows = np.arange(len(source.ids))
    return run.predict(pipeline.evaluation_batches(source, rows, run.batch_size))


def _taken(scored: Scored, rows: np.ndarray) -> Scored:
    """The scored images of some rows int [M] of the predictions."""
    return dataclasses.replace(
        scored,
        rows=scored.rows[rows],
        predictions={name: values[rows] for name, values in scored.predictions.items()},
        labels={name: values[rows] for name, values in scored.labels.items()},
    )


def _targets(scored: Scored, predicted: Mapping[str, np.ndarray]) -> list[str]:
    return [
        name for name in predicted if name in scored.labels and is_known(scored.labels[name]).any()
    ]


def _score(
    scored: Scored,
    target: str,
    predicted: Mapping[str, np.ndarray],
    clean: Mapping[str, np.ndarray],
    calibration: Calibration | None,
) -> dict[str, Any]:
    label = scored.labels[target]
    known = is_known(label)
    losses = metrics.losses(predicted[target], label)
    change = losses - metrics.losses(clean[target], label)
    mean, mean_ci95 = _mean(losses, known, scored.duplicates)
    changed, changed_ci95 = _mean(change, known, scored.duplicates)
    figure: dict[str, Any] = {"n": int(known.sum())}
    if predicted[target].ndim == 1:
        figure |= {"mae": mean, "mae_ci95": mean_ci95}
    else:
        figure |= {"accuracy": 1 - mean, "accuracy_ci95": [1 - x for x in reversed(mean_ci95)]}
    figure |= {"change": changed, "change_ci95": changed_ci95}
    if calibration is not None and target in calibration.widths:
        low, high = calibration.intervals(predicted)[target]
        n = calibration.widths[target].everybody.n
        figure |= uncertainty.coverage(label, low, high, calibration.alpha, n)
    return figure


def _mean(
    values: np.ndarray, known: np.ndarray, duplicates: np.ndarray
) -> tuple[float, list[float]]:
    (interval,) = bootstrap.intervals(values, known[:, None], duplicates)
    return float(values[known].mean()), interval


# ---------------------------------------------------------------------------------------- stability


def spread(
    views: np.ndarray,
    age: np.ndarray,
    parts: Mapping[str, metrics.Partition],
    duplicates: np.ndarray,
) -> dict[str, Any]:
    """How far the predicted ages of one face are apart, over views of it.

    Args:
      views: years [V, N], the first as it is.
      age: the true ages, years [N], NaN unknown.
      parts, duplicates: as in `metrics.partitions` and `metrics.evaluate`.

    Returns:
      {"views": V, "n": N, "sd": the mean over faces of the standard deviation over views, years,
      "sd_ci95", "range": the mean of largest - smallest, "range_p95": its 95 % quantile over faces,
      "gate_changes": of faces, the share that Challenge-25 admits in some views only: {"n", "rate",
      "ci95"}; of minors of 14 to 17 and of adults too: "gate_changes_minors",
      "gate_changes_adults"; "groups": {by: [{"name", "n", "sd", "sd_ci95"}]}}.
    """
    sd, ranges = views.std(axis=0, ddof=1), np.ptp(views, axis=0)
    admitted = views >= gates.USUAL
    undecided = np.asarray(admitted.any(axis=0) & ~admitted.all(axis=0))
    everybody = np.ones(len(age), bool)
    masks = [everybody, *(part for of in parts.values() for _, part in of)]
    first, *intervals = bootstrap.intervals(sd, np.stack(masks, axis=1), duplicates)
    ci95 = iter(intervals)
    named = {by: [(name, part, next(ci95)) for name, part in of] for by, of in parts.items()}
    return {
        "views": len(views),
        "n": len(age),
        "sd": float(sd.mean()),
        "sd_ci95": first,
        "range": float(ranges.mean()),
        "range_p95": float(np.quantile(ranges, 0.95)),
        "gate_changes": gates.rate(undecided),
        "gate_changes_minors": gates.rate(undecided[gates.is_minor(age)]),
        "gate_changes_adults": gates.rate(undecided[age >= gates.ADULT]),
        "groups": {
            by: [
                {
                    "name": name,
                    "n": int(part.sum()),
                    "sd": float(sd[part].mean()),
                    "sd_ci95": bounds,
                }
                for name, part, bounds in of
                if part.any()
            ]
            for by, of in named.items()
        },
    }


def of_copies(predicted: np.ndarray, copies: np.ndarray) -> dict[str, Any]:
    """How far the predicted ages of copies of one photo are apart.

    Args:
      predicted: years [N].
      copies: int [N], equal within a group of copies.

    Returns:
      {"n": groups of two copies or more, "images", "range": the mean over groups of largest -
      smallest, years, "largest"}; the latter two None where there are no copies.
    """
    _, group, sizes = np.unique(copies, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    years = predicted[order].astype(np.float64)
    ranges = np.maximum.reduceat(years, starts) - np.minimum.reduceat(years, starts)
    apart = ranges[sizes > 1]
    return {
        "n": len(apart),
        "images": int(sizes[sizes > 1].sum()),
        "range": float(apart.mean()) if len(apart) else None,
        "largest": float(apart.max()) if len(apart) else None,
    }
