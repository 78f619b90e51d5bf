"""Pseudo-labels: labels that a trained run gives to the unlabelled faces it is most certain of."""

from __future__ import annotations

import io
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax import files, tables
from agejax.data import sources
from agejax.errors import UserError
from agejax.evaluation.scored import score_rows
from agejax.paths import expand
from agejax.runs import ensembles
from agejax.runs.run import Run
from agejax.settings import to_json

LABELS = ("age", "gender", "ethnicity")  # that a CSV of `image_folder` can hold
TABLE, FACTS = "labels.csv", "labels.json"  # a folder of faces may have a table of that name too


def pseudo_label(
    workdir: str | pathlib.Path,
    source_path: str | None,
    output: str | pathlib.Path,
    *,
    dataset: str = "image_folder",
    labels: Sequence[str] = LABELS,
    keep: float = 0.8,
    probability: float = 0.9,
) -> dict[str, Any]:
    """Labels images with a run; writes labels.csv and labels.json to `output`.

    The uncertainty of an age is the predicted one (`age_sigma`), or else the spread of the
    predictions for the image and its mirror image, and of an ensemble's members.

    Args:
      source_path: a folder or archive of face crops, framed as the run's training images; None:
        where the data set's builder looks.
      dataset: a builder's name.
      labels: which of `LABELS` to write.
      keep: the share of images to keep, those with the most certain ages; 1 keeps all.
      probability: a class with a smaller probability is left unknown.

    Returns:
      {"images", "kept", "labelled": {label: images}, "uncertainty": of the least certain image
      kept, years, "config": lines to copy}.

    Raises:
      UserError: no run, none of the labels predicted, no image, a share outside (0, 1], or a folder
        with another table of labels.
    """
    if not 0 < keep <= 1:
        raise UserError(f"--keep={keep}: set a share above 0 and at most 1")
    if not 0 <= probability <= 1:
        raise UserError(f"--probability={probability}: set it to 0 to 1")
    output = expand(output)
    files.check_folder(output, "--output")
    if (output / TABLE).exists() and not (output / FACTS).exists():
        raise UserError(
            f"--output: {output / TABLE} is not of pseudo_label, which would replace it; name "
            "another folder"
        )
    run = twice(ensembles.open_run(workdir))
    predicted = dict.fromkeys(head.label for head in run.heads.values())
    if not predicted.keys() & set(labels):
        raise UserError(
            f"--labels={','.join(labels)}: {workdir} predicts none of them, only "
            f"{', '.join(predicted)}"
        )
    source = sources.load(
        dataset,
        source_path,
        image_size=run.config.data.image_size,
        cache_dir=run.config.data.cache_dir,
    )
    scored = score_rows(run, source, np.arange(len(source.ids)), "all")
    said = scored.predictions
    unsure = uncertainty_of(said)
    kept = np.sort(np.argsort(unsure, kind="stable")[: max(1, round(keep * len(unsure)))])

    columns: dict[str, list[str]] = {"file": source.ids[kept].tolist()}
    for label in (label for label in labels if label in said):
        values = said[label][kept]
        if values.ndim == 1:
            columns[label] = [f"{value:.2f}" for value in values]
        else:
            names = run.facts.label_names[label]
            sure = values.max(axis=1) >= probability
            columns[label] = [
                names[k] if yes else ""
                for k, yes in zip(values.argmax(axis=1).tolist(), sure, strict=True)
            ]
    output.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    tables.write(text, columns, zip(*columns.values(), strict=True))
    files.write_text(output / TABLE, text.getvalue())
    result = {
        "images": len(source.ids),
        "kept": len(kept),
        "labelled": {k: sum(map(bool, v)) for k, v in columns.items() if k != "file"},
        "uncertainty": float(unsure[kept].max()),
        "run": str(workdir),
        "config": config_lines(run, dataset, source_path, output / TABLE),
    }
    files.write_json(output / FACTS, result)
    return result


def twice(run: Run) -> Run:
    """The run with predictions averaged over each image and its mirror image."""
    return ensembles.join(
        run.workdir, [run], "predictions", ensembles.equal_weights([run]), ["plain", "flip"]
    )


def uncertainty_of(said: Mapping[str, np.ndarray]) -> np.ndarray:
    """Uncertainties [N]: of the age, years, or without one 1 - the largest probability of a class.

    Args:
      said: the predictions, with one of `LABELS` at least.
    """
    for name in ("age_sigma", "age_spread"):
        if name in said:
            return said[name]
    label = next(name for name in said if name in LABELS)
    doubt: np.ndarray = 1 - said[label].max(axis=1)
    return doubt


def config_lines(run: Run, dataset: str, source_path: str | None, labels: pathlib.Path) -> str:
    """Config lines that mix the images into the run's data, or that give a data set new labels."""
    place = None if source_path is None else str(expand(source_path).absolute())
    if dataset != "image_folder":
        lines = {"name": dataset, "source": place, "edits.labels": str(labels.absolute())}
        return "\n".join(f"config.data.{key} = {value!r}" for key, value in lines.items())
    data = run.config.data
    parts: dict[str, Any] = to_json(data.mixture) if data.get("mixture") else {
        "real": {"name": data.name, "source": data.source}
        | ({"options": to_json(data.options)} if data.options else {})
    }  # fmt: skip
    free = itertools.chain(["pseudo"], (f"pseudo-{i}" for i in itertools.count(2)))
    options = {"labels": str(labels.absolute())} | {
        f"{label}_names": tuple(names)
        for label, names in run.facts.label_names.items()
        if label in LABELS
    }
    parts[next(name for name in free if name not in parts)] = {
        "name": "image_folder",
        "source": place,
        "train_only": True,  # val and test stay real
        "options": options,
    }
    return f"config.data.mixture = {parts!r}"
