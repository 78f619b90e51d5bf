"""Writes evaluations to a folder: metrics.json, predictions.csv, suspects.csv and the report."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax import files, tables
from agejax.errors import UserError
from agejax.evaluation import comparison, failures, findings, fitting, metrics, robustness
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.scored import Scored, score
from agejax.faces import detection
from agejax.labels import is_known
from agejax.logging import console
from agejax.paths import expand
from agejax.reporting import report
from agejax.runs.ensembles import open_run

SUSPECTS = "suspects.csv"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation's metrics and files.

    Attributes:
      metrics: the contents of metrics.json.
      folder: holds metrics.json, predictions.csv and, where requested, suspects.csv and the report.
    """

    metrics: dict[str, Any]
    folder: pathlib.Path

    @property
    def report(self) -> pathlib.Path:
        """The path of report.html, which opens offline."""
        return self.folder / report.FILE


def evaluate(
    workdir: str | pathlib.Path,
    *,
    dataset: str | None = None,
    source_path: str | None = None,
    split: str | None = None,
    output: str | pathlib.Path | None = None,
    compare_with: Sequence[str | pathlib.Path] = (),
    write_report: bool = True,
    options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    degrade: bool = False,
) -> Evaluation:
    """Scores the run's best checkpoint and writes the results to `output`.

    Args:
      dataset: a builder's name; None: the one the run was trained on.
      source_path: where its files lie; None: where the run's config says.
      split: train, val, test or another of the run's splits, or all. None: test on the run's own
        data, all on other data, where the run's splits do not apply.
      output: None: evaluation/DATASET-SPLIT below `Run.results`.
      compare_with: the folders of other runs, to compare on the same images; those of one config
        count as its seeds (`comparison.compare`).
      write_report: without it, only `metrics.evaluate`'s figures and predictions.csv are written.
      options: of the data set, as config.data.options; options not named here stay as in the run.
      image_size: pixels; scores the images at this size, to choose config.eval.image_size. The
        default split is then val, and nothing is calibrated. The results go to a folder of their
        own, WORKDIR/evaluation/DATASET-SPLIT-SIZEpx.
      degrade: predicts degraded images and views of one face too (`robustness.measure`).

    Raises:
      UserError: no run, no such data or split, or data without a label that the run predicts.
    """
    if output is not None:
        files.check_folder(expand(output), "--output")
    run = open_run(workdir)
    if output is None:
        files.check_folder(run.results / "evaluation", "--output")
    if image_size is not None:
        run = run.scored_at(image_size)
        if split == "test":
            raise UserError(
                "--image_size: choose a size on --split=val; the test split is for the size that "
                "config.eval.image_size says"
            )
    usual = "test" if image_size is None else "val"
    scored = score(run, dataset, source_path, split, options, usual=usual)
    if known := findings.may_be_known(scored):
        console.warning(known)
    others = [
        comparison.score_again(scored, open_run(other), source_path, options)
        for other in compare_with
    ]
    for other in others:
        # Images of its own data that trained it are counted when it is scored.
        of_own_data = other.source.fingerprint == other.run.fingerprint
        if not of_own_data and (known := findings.may_be_known(other)):
            console.warning(known)
        warn_of_ancestors(other)
    calibration = None
    if write_report and image_size is None:
        own = scored.source if scored.source.fingerprint == run.fingerprint else None
        calibration = fitting.calibrate(run, own)
        if own is None:
            warn_of_frame(scored, calibration)
    size = "" if image_size is None else f"-{image_size}px"
    place = run.results / "evaluation" / f"{scored.source.name}-{scored.split}{size}"
    folder = expand(output or place)
    found = publish(scored, folder, calibration, others, write_report=write_report, degrade=degrade)
    return Evaluation(found, folder)


def publish(
    scored: Scored,
    output: pathlib.Path,
    calibration: Calibration | None = None,
    others: Sequence[Scored] = (),
    *,
    write_report: bool = True,
    degrade: bool = False,
) -> dict[str, Any]:
    """Writes metrics.json, predictions.csv, suspects.csv and the report, and prints the table.

    Args:
      others: other runs' predictions of the same images.
      write_report, degrade: as in `evaluate`.

    Returns:
      The contents of metrics.json.
    """
    result = findings.measure(scored)
    if known := warn_of_ancestors(scored):
        result["known_to_ancestors"] = known
    if write_report:
        result |= findings.look_closer(scored, calibration)
    if degrade:
        result["robustness"] = robustness.measure(scored, calibration)
    if others:
        result["compared"] = comparison.compare(scored, others)
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(output / "metrics.json", result)
    write_predictions(output / "predictions.csv", scored, calibration)
    console.result(metrics.table(result))
    for compared in result.get("compared", ()):
        table = metrics.paired_table(result, compared["targets"])
        console.result(f"\n{comparison.title(compared)}:\n{table}")
    if write_report:
        suspected = findings.suspects(scored, calibration)
        write_suspects(output / SUSPECTS, scored, suspected)
        report.write(output, scored, result, calibration)
    console.result(f"written to {output}/")
    return result


def warn_of_ancestors(scored: Scored) -> dict[str, int]:
    """Warns on stderr of images that trained a model's ancestors, and counts them by ancestor."""
    known = findings.known_to_ancestors(scored)
    for name, count in known.items():
        console.warning(
            f"{count:,} of these {len(scored.rows):,} images, or copies of them, "
            f"trained {name}, which {scored.run.workdir} learned from; its scores are too good"
        )
    return known


def warn_of_frame(scored: Scored, calibration: Calibration | None) -> None:
    """Warns on stderr where other data frames faces differently from the run's own."""
    step = max(len(scored.rows) // detection.CHECKED, 1)
    some = scored.source.take(scored.rows[::step][: detection.CHECKED])
    geometry = calibration.geometry if calibration else None
    if warning := detection.frame_warning(some, geometry):
        console.warning(f"{warning}; python -m agejax.data.align makes a copy framed so")


def write_suspects(
    path: pathlib.Path, scored: Scored, suspected: Sequence[failures.Suspect]
) -> None:
    """Writes a CSV row per suspected label: id, the labels as they are, why, and the predictions.

    config.data.edits.labels reads it: where a label is corrected in it, the correction counts.
    """
    known = [
        name
        for name in scored.source.labels
        if name in scored.labels and is_known(scored.labels[name]).any()
    ]
    predicted = [name for name in known if name in scored.predictions]
    header = ["id", *known, "reasons", *(f"{name}_predicted" for name in predicted)]
    rows = [
        [
            scored.source.ids[scored.rows[row]],
            *(_label(scored, name, scored.labels[name][row]) for name in known),
            "; ".join(reasons),
            *(_prediction(scored, name, row) for name in predicted),
        ]
        for row, reasons in suspected
    ]
    text = io.StringIO()
    tables.write(text, header, rows)
    files.write_text(path, text.getvalue())


def _prediction(scored: Scored, name: str, row: int) -> str:
    given = scored.predictions[name][row]
    return f"{given:.1f}" if given.ndim == 0 else _label(scored, name, given.argmax())


def _label(scored: Scored, name: str, value: Any) -> str:
    """A label as a cell; "" where it is unknown."""
    if name in scored.label_names:
        return str(scored.label_names[name][value]) if value >= 0 else ""
    return f"{value:g}" if np.isfinite(value) else ""


def write_predictions(
    path: pathlib.Path, scored: Scored, calibration: Calibration | None = None
) -> None:
    """Writes a CSV row per image: id, duplicate group, each target's label and prediction, an age's
    interval (_low, _high) and a class's probabilities (_p<class>); then labels not predicted.
    """
    source, rows = scored.source, scored.rows
    columns: dict[str, np.ndarray] = {"id": source.ids[rows], "group": source.groups[rows]}
    intervals = calibration.intervals(scored.predictions) if calibration else {}
    for name, predicted in scored.predictions.items():
        if name not in scored.labels:  # such as age_sigma, which has no true value
            columns[name] = predicted
            continue
        columns[name] = scored.labels[name]
        if predicted.ndim == 1:
            columns[f"{name}_predicted"] = predicted
            if name in intervals:
                columns[f"{name}_low"], columns[f"{name}_high"] = intervals[name]
        else:
            columns[f"{name}_predicted"] = predicted.argmax(axis=1)
            columns |= {f"{name}_p{k}": p for k, p in enumerate(predicted.T)}
    for name, values in scored.labels.items():
        if name not in columns and is_known(values).any():
            columns[name] = values
    text = io.StringIO()
    tables.write(text, columns, zip(*columns.values(), strict=True))
    files.write_text(path, text.getvalue())
