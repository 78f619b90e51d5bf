"""Predictions of a run on a split of its data, or on other data, together with the labels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax import heads
from agejax.data import opening, pipeline, splits
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.labels import is_known
from agejax.runs.run import Run


@dataclasses.dataclass(frozen=True)
class Scored:
    """A run's predictions of some images, and what is known of these images.

    Attributes:
      source, rows, split: the images: rows int [N] of the source.
      predictions: label -> years [N] or probabilities [N, K], as `Run.predict` gives them.
      labels, label_names: those of the data, and those that heads derive.
      images_per_second: without compilation.
      fitted: what was fitted to features of the run's backbone and predicts in place of its heads,
        in words; "" where the run itself predicts.
    """

    run: Run
    source: Source
    rows: np.ndarray
    split: str
    predictions: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    label_names: dict[str, Sequence[str]]
    images_per_second: float
    fitted: str = ""

    @property
    def name(self) -> str:
        return f"{self.run.workdir.name} on {self.source.name} ({self.split})"

    @property
    def duplicates(self) -> np.ndarray:
        """Int64 [N], equal for images that are no independent evidence: copies, and a person's."""
        groups: np.ndarray = self.source.groups[self.rows]
        return groups

    @property
    def copies(self) -> np.ndarray:
        """Int64 [N], equal for copies of one photo."""
        copies: np.ndarray = self.source.copies[self.rows]
        return copies


def score(
    run: Run,
    dataset: str | None = None,
    source_path: str | None = None,
    split: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    usual: str = "test",
) -> Scored:
    """Predicts the images of a split; the arguments are those of `results.evaluate`.

    Args:
      usual: the split of the run's own data that is scored where none is named.

    Raises:
      UserError: no such split; no image in it has a label that the run predicts; or the run's data
        has changed, and neither a split nor a data set is named.
    """
    source = open_data(run, dataset, source_path, options)
    same_data = source.fingerprint == run.fingerprint
    if split is None and dataset is None and not same_data:
        raise UserError(
            f"--workdir: {run.workdir} was trained on other data than its config gives now; "
            "--split=all scores all of it, also images that the run was trained on, and --dataset "
            "names another data set"
        )
    split = split or (usual if same_data else "all")
    if split == "all":
        rows = np.arange(len(source.ids))
    elif not same_data:
        raise UserError(f"--split={split}: not the data this run was trained on; use --split=all")
    else:
        by_name = splits.make(source, run.config.data.split)
        if split not in by_name:
            raise UserError(f"--split={split}: the run has {', '.join(by_name)}, and all")
        rows = by_name[split]
    check_labelled(run, source, rows)
    return score_rows(run, source, rows, split)


def open_data(
    run: Run, dataset: str | None, path: str | None, options: Mapping[str, Any] | None = None
) -> Source:
    """Opens the run's own data, or another data set with its classes numbered as in the run."""
    if opening.is_own(run.config.data, dataset):
        return opening.open_source(run.config.data, path, options)
    assert dataset is not None
    return opening.open_other(run.config.data, dataset, path, run.facts.label_names, options)


def check_labelled(run: Run, source: Source, rows: np.ndarray) -> None:
    """Raises `UserError` where rows int [N] have no known label that the run predicts."""
    labels = heads.derive(
        run.heads, {k: v[rows] for k, v in source.labels.items()}, source.label_names
    )[0]
    predicted = dict.fromkeys(head.label for head in run.heads.values())
    if not any(label in labels and is_known(labels[label]).any() for label in predicted):
        raise UserError(
            f"{source.name}: none of the {len(rows):,} images has a label of {', '.join(predicted)}"
            ", so there is nothing to score; say where the labels are, such as --option "
            "labels=FILE.csv, or use python -m agejax.predict"
        )


def score_rows(run: Run, source: Source, rows: np.ndarray, split: str) -> Scored:
    """Predicts rows int [N] of a source."""
    first = rows[: run.batch_size]
    run.predict(pipeline.evaluation_batches(source, first, run.batch_size))  # compiles
    start = time.perf_counter()
    batches = pipeline.evaluation_batches(source, rows, run.batch_size)
    predictions = run.predict(pipeline.counted(batches, "scored", len(rows)))
    seconds = time.perf_counter() - start
    labels, label_names = heads.derive(
        run.heads, {k: v[rows] for k, v in source.labels.items()}, source.label_names
    )
    return Scored(run, source, rows, split, predictions, labels, label_names, len(rows) / seconds)
