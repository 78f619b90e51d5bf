"""What an evaluation measures: the contents of metrics.json."""

from __future__ import annotations

import contextlib
import datetime
import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax.data import draws, splits
from agejax.data.sources import Source
from agejax.evaluation import (
    failures,
    gaps,
    gates,
    headlines,
    metrics,
    quality,
    uncertainty,
    unprocessed,
)
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.scored import Scored
from agejax.heads import Facts
from agejax.labels import is_known
from agejax.runs import lineage
from agejax.training import image_sizes

OF_ANYTHING = {"image_folder", "procedural_faces"}  # data sets whose name tells no contents


def measure(scored: Scored) -> dict[str, Any]:
    """The figures of `metrics.evaluate`, and to which data, split, step and date they belong."""
    result = metrics.evaluate(
        scored.predictions,
        scored.labels,
        scored.label_names,
        duplicates=scored.duplicates,
        floor_age=scored.run.facts.medians.get("age"),
    )
    if scored.run.model is not None:
        result["image_size"] = image_sizes.of_evaluation(scored.run.config)
    return result | {
        "images_per_second": scored.images_per_second,
        "dataset": scored.source.name,
        "fingerprint": scored.source.fingerprint,
        "split": scored.split,
        "step": scored.run.step,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def look_closer(scored: Scored, calibration: Calibration | None) -> dict[str, Any]:
    """{"uncertainty", "gaps": target -> `gaps.measure` of the losses, "unprocessed", "suspects":
    {"n", "reasons": {kind: images}}}, and for the age {"headlines", "gates", "quality": the error
    by image quality, "weak_groups"}."""
    parts = metrics.partitions(scored.labels, scored.label_names)
    found = suspects(scored, calibration)
    reasons = Counter(
        kind
        for suspect in found
        for kind in {reason.partition(":")[0] for reason in suspect.reasons}
    )
    result: dict[str, Any] = {
        "gaps": _gaps(scored, parts),
        "unprocessed": _unprocessed(scored.source),
        "suspects": {"n": len(found), "reasons": dict(reasons)},
    }
    if calibration is not None:
        result["uncertainty"] = _uncertainty(scored, calibration)
    age, predicted = scored.labels.get("age"), scored.predictions.get("age")
    if age is not None and predicted is not None and np.isfinite(age).any():
        sexes = parts.get("gender", [])
        result["headlines"] = headlines.measure(age, predicted, sexes, scored.duplicates)
        result["gates"] = gates.measure(age, predicted, parts, scored.duplicates)
        looks = quality.measure(scored.source.take, scored.rows, quality.Brisque.installed())
        result["quality"] = {
            name: quality.by_quality(predicted - age, values, quality.edges(name, values))
            for name, values in looks.items()
        }
        traits, opposites = _traits(scored, looks)
        result["weak_groups"] = failures.weak_groups(
            np.abs(predicted - age), traits, scored.duplicates, opposites=opposites
        )
    return result


def suspects(scored: Scored, calibration: Calibration | None) -> list[failures.Suspect]:
    """`failures.suspects` of an evaluation; without a calibration, only copies tell."""
    intervals = calibration.intervals(scored.predictions) if calibration else {}
    probabilities = calibration.probabilities(scored.predictions) if calibration else {}
    labels = {k: v for k, v in scored.labels.items() if k in scored.source.labels}
    return failures.suspects(
        labels, scored.label_names, scored.copies, scored.predictions, intervals, probabilities
    )


def _traits(
    scored: Scored, looks: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What `failures.weak_groups` may divide the images by, labels and image quality; and, of two
    classes, what the second is called, by the first."""
    classes = {
        label: scored.label_names[label]
        for label in ("gender", "ethnicity")
        if label in scored.labels and label in scored.label_names
    }
    times = Counter(["age", *looks, *(name for names in classes.values() for name in names)])
    traits: dict[str, np.ndarray] = {"age": scored.labels["age"].astype(np.float64)}
    opposites = {}
    for label, names in classes.items():
        # Labels may share the name of a class, such as "other".
        called = [name if times[name] == 1 else f"{label} {name}" for name in names]
        values = scored.labels[label]
        if len(called) == 2:  # one is the other's opposite
            traits[called[0]] = values == 0
            if is_known(values).all():
                opposites[called[0]] = called[1]
            continue
        traits |= {name: values == number for number, name in enumerate(called)}
    return traits | dict(looks), opposites


def _gaps(scored: Scored, parts: Mapping[str, metrics.Partition]) -> dict[str, Any]:
    result = {}
    for name, predicted in scored.predictions.items():
        if name in scored.labels and (known := is_known(scored.labels[name])).any():
            losses = metrics.losses(predicted, scored.labels[name])
            result[name] = gaps.measure(losses, known, parts, scored.duplicates)
    return result


def _unprocessed(source: Source) -> dict[str, Any]:
    """What of the whole data set, not of a split, could not be used.

    Returns:
      {"images": how many could, "files": how many could not, "undecoded": images among these that
      could not be decoded, None where that is not recorded, "groups": `unprocessed.measure`}.
    """
    lost = source.undecoded
    return {
        "images": len(source.ids),
        "files": len(source.skipped),
        "undecoded": None if lost is None else len(lost),
        "groups": unprocessed.measure(source.labels, source.label_names, lost or ()),
    }


def _uncertainty(scored: Scored, calibration: Calibration) -> dict[str, Any]:
    """{"validation_images", "fitted_to": their split, "alpha", and by target: for classes
    {"temperature", "nll", "ece"} and the latter two again after scaling; for ages {"marginal",
    "by_decade": coverages, "groups": by label}}."""
    labels, predictions = scored.labels, scored.predictions
    result: dict[str, Any] = {
        "validation_images": calibration.n,
        "fitted_to": calibration.split,
        "alpha": calibration.alpha,
    }
    scaled = calibration.probabilities(predictions)
    for name, p in scaled.items():
        if name in labels and (labels[name] >= 0).any():
            raw, label = predictions[name], labels[name]
            result[name] = {
                "temperature": calibration.temperatures[name],
                "nll": uncertainty.nll(raw, label),
                "nll_scaled": uncertainty.nll(p, label),
                "ece": uncertainty.ece(raw, label),
                "ece_scaled": uncertainty.ece(p, label),
            }
    parts = metrics.partitions(labels, scored.label_names)
    alpha, fitted = calibration.alpha, calibration.widths
    alike = calibration.intervals(predictions, by_decade=False)
    for name, (low, high) in calibration.intervals(predictions).items():
        age = labels.get(name)
        if age is None or not np.isfinite(age).any():
            continue
        n = fitted[name].everybody.n
        result[name] = {
            "marginal": uncertainty.coverage(age, *alike[name], alpha, n),
            "by_decade": uncertainty.coverage(age, low, high, alpha, n),
            "predicted decade": uncertainty.coverage_by_group(
                age, low, high, alpha, metrics.decades(predictions[name]), fitted[name]
            ),
            "groups": {
                by: [
                    {
                        "name": group,
                        **uncertainty.coverage(age[part], low[part], high[part], alpha, n),
                    }
                    for group, part in of
                    if np.isfinite(age[part]).any()
                ]
                for by, of in parts.items()
            },
            "aurc": uncertainty.aurc(np.abs(predictions[name] - age), high - low),
        }
    return result


def may_be_known(scored: Scored) -> str | None:
    """Describes in words that a run may know some of the images from its training; None: no sign.

    Other data is known by the name of its data set alone, so nothing is known of a user's folders.
    """
    run, source, rows = scored.run, scored.source, scored.rows
    if source.fingerprint == run.fingerprint:
        if scored.split != "all":
            return _of_other_splits(scored)
        by_name = splits.make(source, run.config.data.split)
        count = source.shared(rows, by_name["train"]).sum()
        return (
            f"{run.workdir} was trained on {count:,} of these {len(rows):,} images, or copies of "
            "them; its scores are too good"
            + (", and --split=test leaves them out" if "test" in by_name else "")
        )
    mixed = source.part is not None  # other data is never a mixture
    names = set(lineage.names(run.config.data) if mixed else [source.name]) - OF_ANYTHING
    for node in lineage.runs(lineage.of(run)):
        if shared := names & set(node["data"]["names"]):
            return (
                f"{node['name']} was trained on another version or part of "
                f"{' and '.join(sorted(shared))}; if it has seen some of these images, the scores "
                "are too good"
            )
    return None


def _of_other_splits(scored: Scored) -> str | None:
    """Whether a run's data is split otherwise now than when it was trained, in words.

    The config names lists of names or official splits, whose contents may have changed.
    """
    run, source = scored.run, scored.source
    if not (run.config.data.split.get("files") or run.config.data.split.get("official")):
        return None
    with contextlib.redirect_stderr(io.StringIO()):  # what it says was said
        train = splits.make(source, run.config.data.split)["train"]
        train = draws.keep(run.config.sampling, source, train)
    now = Facts.of({k: v[train] for k, v in source.labels.items()}, source.label_names).counts
    if all(run.facts.counts.get(label, counts) == counts for label, counts in now.items()):
        return None
    return (
        f"{run.workdir} was trained on other images than config.data.split gives now, since lists "
        f"or official splits have changed; it may have seen images of {scored.split}, and then the "
        "scores are too good"
    )


def known_to_ancestors(scored: Scored) -> dict[str, int]:
    """`lineage.known_to_ancestors` for the images of a run's own split."""
    run = scored.run
    own = scored.source.fingerprint == run.fingerprint and scored.split not in ("train", "all")
    if run.model is None or not own:  # an ensemble has no lineage of its own
        return {}
    return lineage.known_to_ancestors(lineage.of(run), scored.source, scored.rows)
