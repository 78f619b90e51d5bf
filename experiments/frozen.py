"""Scores heads of a frozen backbone on its cached features: in seconds, and no image is read."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from agejax import heads
from agejax.data import pipeline, splits
from agejax.evaluation.scored import Scored, open_data
from agejax.reporting import results
from agejax.runs.run import Run
from agejax.training import frozen


def scored(
    split: str, members: Callable[[int], Sequence[str]] | None = None
) -> Callable[[pathlib.Path, int, pathlib.Path], None]:
    """Makes an arm's scores (`arms.Arm.make`) on a split.

    Args:
      members: seed -> the runs whose predictions are averaged, as agejax.ensemble does it: paths
        below the comparison's folder; None: the arm's own run.
    """

    def make(folder: pathlib.Path, seed: int, scores: pathlib.Path) -> None:
        paths = [folder / run for run in members(seed)] if members else [scores.parent]
        runs = [Run.open(path) for path in paths]
        first = runs[0]
        source = open_data(first, None, None)
        rows = splits.make(source, first.config.data.split)
        said = []
        for run in runs:
            features = frozen.compute(
                run.config, run.model, run.params, run.batch_stats, source, rows, run.mesh
            )
            batches = pipeline.evaluation_batches(source, rows[split], run.batch_size, features)
            said.append(run.predict(batches))
        labels, names = heads.derive(
            first.heads, {k: v[rows[split]] for k, v in source.labels.items()}, source.label_names
        )
        mean = {name: np.mean([each[name] for each in said], axis=0) for name in said[0]}
        run = dataclasses.replace(first, workdir=scores.parent)
        results.publish(
            Scored(run, source, rows[split], split, mean, labels, names, float("nan")),
            scores,
            write_report=False,
        )

    return make
