"""Fits a baseline, and scores and reports it like a run."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import numpy as np

from agejax import files
from agejax.data import draws, opening, splits
from agejax.errors import UserError
from agejax.evaluation import baselines
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.scored import Scored
from agejax.labels import is_known
from agejax.logging import console
from agejax.paths import expand
from agejax.reporting import results
from agejax.runs.run import Run


def evaluate_baseline(
    workdir: str | pathlib.Path,
    estimator: str = "svm",
    which: str = "run",
    split: str = "test",
    output: str | pathlib.Path | None = None,
    *,
    write_report: bool = True,
) -> dict[str, Any]:
    """Fits a classical estimator to a run's backbone features, scores it and reports it.

    Args:
      estimator: a name of `baselines.ESTIMATORS`.
      which: one of `baselines.FEATURES`.
      split: the split to score.
      output: None: baselines/ESTIMATOR-FEATURES-SPLIT below `Run.results`.
      write_report: as in `results.evaluate`.

    Returns:
      The contents of metrics.json, as `results.evaluate` returns them.
    """
    run = Run.open(workdir)
    output = expand(output or run.results / "baselines" / f"{estimator}-{which}-{split}")
    files.check_folder(output, "--output")
    source = opening.open_source(run.config.data)
    if source.fingerprint != run.fingerprint:
        raise UserError(f"--workdir={workdir}: not the data this run was trained on")
    rows = splits.make(source, run.config.data.split)
    if split not in rows:
        raise UserError(f"--split={split}: the run has {', '.join(rows)}")
    if "val" not in rows:
        raise UserError(
            f"--workdir={workdir}: the run has no val split, which chooses an estimator's options"
        )
    rows["train"] = draws.keep(run.config.sampling, source, rows["train"])
    rows = {name: rows[name] for name in dict.fromkeys(("train", "val", split))}
    x = {name: baselines.features(run, source, some, which) for name, some in rows.items()}
    start = time.perf_counter()
    predictions: dict[str, dict[str, np.ndarray]] = {name: {} for name in rows}
    for label in dict.fromkeys(head.label for head in run.heads.values()):
        y = {name: source.labels[label][rows[name]] for name in ("train", "val")}
        if not is_known(y["val"]).any():
            console.note(f"{label}: left out, since no val image has it to choose options by")
            continue
        fitted, options = baselines.fit(estimator, x, y)
        console.result(f"{label}: {estimator} {options}")
        names = source.label_names.get(label)
        for name in rows:
            predictions[name][label] = baselines.predict(
                fitted, x[name], len(names) if names else None
            )
    if not predictions[split]:
        raise UserError(
            f"--workdir={workdir}: no val image has a label, which chooses an estimator's options"
        )
    seconds = time.perf_counter() - start
    console.result(f"fitted in {seconds:.0f} s")

    def scored(name: str) -> Scored:
        return Scored(
            run=dataclasses.replace(run, workdir=output, model=None),
            source=source,
            rows=rows[name],
            split=name,
            predictions=predictions[name],
            labels={k: v[rows[name]] for k, v in source.labels.items()},
            label_names=dict(source.label_names),
            images_per_second=float("nan"),
            fitted=f"{estimator}, fitted to features of the backbone with its "
            f"{'trained' if which == 'run' else 'pretrained'} weights; val chose its options",
        )

    val = scored("val")
    calibration = Calibration.fit(val.predictions, val.labels, val.duplicates, run.step)
    return results.publish(scored(split), output, calibration, write_report=write_report)
