"""python -m agejax.evaluate --workdir=RUN [--dataset=NAME --source=PATH --option=NAME=VALUE]

Scores a trained run on its own splits or on any other data. Writes metrics.json, predictions.csv,
report.html, which opens offline, and its charts under figures/. --compare=RUN2 sets another run
beside it, on the same images.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax import heads, tables
from agejax.data import opening, pipeline, prepare, splits
from agejax.data.sources import Source
from agejax.errors import UserError, run_command
from agejax.evaluation import metrics, quality, uncertainty
from agejax.evaluation.calibration import Calibration
from agejax.faces import detection
from agejax.logging import records
from agejax.paths import expand
from agejax.reporting import report
from agejax.runs import box, lineage
from agejax.runs.ensembles import open_run
from agejax.runs.run import Run
from agejax.training import image_sizes, sharding

FRAMED = 300  # images that say how the training data frames faces


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a run says of some images, and what is known of them.

    Attributes:
      source, rows, split: the images: rows int [N] of the source.
      predictions: label -> years [N] or probabilities [N, K], as `Run.predict` gives them.
      labels, label_names: those of the images, and those that heads derive.
      images_per_second: without compiling.
    """

    run: Run
    source: Source
    rows: np.ndarray
    split: str
    predictions: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    label_names: dict[str, Sequence[str]]
    images_per_second: float

    @property
    def name(self) -> str:
        return f"{self.run.workdir.name} on {self.source.name} ({self.split})"

    @property
    def duplicates(self) -> np.ndarray:
        return self.source.groups[self.rows]


def score(
    run: Run,
    dataset: str | None = None,
    source_path: str | None = None,
    split: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Scored:
    """Predicts the images of a split; the arguments are those of `evaluate`.

    Raises:
      UserError: no such split, no label that the run predicts on any of its images, or neither a
        split nor a data set is named and the run's data has changed.
    """
    source = open_data(run, dataset, source_path, options)
    same_data = source.fingerprint == run.fingerprint
    if split is None and dataset is None and not same_data:
        raise UserError(
            f"--workdir: {run.workdir} was trained on other data than its config gives now; "
            "--split=all scores all of it, also images that the run was trained on, and --dataset "
            "names another data set"
        )
    split = split or ("test" if same_data else "all")
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
    """The run's own data, or another data set with its classes numbered as the run numbers them."""
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


def is_known(labels: np.ndarray) -> np.ndarray:
    """bool [N]: ages in years that are not NaN, class numbers that are not -1."""
    return np.isfinite(labels) if labels.dtype.kind == "f" else labels >= 0


def score_rows(run: Run, source: Source, rows: np.ndarray, split: str) -> Scored:
    """Predicts rows int [N] of a source."""
    batch_size = run.config.eval.batch_size
    first = rows[: min(len(rows), batch_size)]
    run.predict(pipeline.evaluation_batches(source, first, batch_size))  # compiles
    start = time.perf_counter()
    predictions = run.predict(pipeline.evaluation_batches(source, rows, batch_size))
    seconds = time.perf_counter() - start
    labels, label_names = heads.derive(
        run.heads, {k: v[rows] for k, v in source.labels.items()}, source.label_names
    )
    return Scored(run, source, rows, split, predictions, labels, label_names, len(rows) / seconds)


def calibrate(run: Run, source: Source | None = None) -> Calibration | None:
    """The run's calibration: as it was written, or fitted now and written.

    It is fitted to the split "calibration" where the run has one, else to val.

    Args:
      source: the data of the run, where it is open.

    Returns:
      None where val is empty or the run's data is not at hand any more, which is said on stderr.
    """
    image_size = run.config.eval.get("image_size", 0)
    known = Calibration.read(run.workdir, run.step, image_size)
    if known is not None:
        return known
    try:
        source = source or opening.open_source(run.config.data)
    except UserError as error:
        print(f"no calibration: the run's validation images are not here: {error}", file=sys.stderr)
        return None
    if source.fingerprint != run.fingerprint:
        print("no calibration: the run's validation images are not here", file=sys.stderr)
        return None
    by_name = splits.make(source, run.config.data.split)
    name = splits.CALIBRATION if splits.CALIBRATION in by_name else "val"
    rows = by_name.get(name)
    if rows is None:
        print("no calibration: the run was trained without a val split", file=sys.stderr)
        return None
    held = score_rows(run, source, rows, name)
    fitted = Calibration.fit(held.predictions, held.labels, held.duplicates, run.step)
    fitted = dataclasses.replace(
        fitted, geometry=framing(source, rows), split=name, image_size=image_size
    )
    if box.is_release(run.workdir):  # it is only read
        return fitted
    try:
        fitted.save(run.workdir)
    except UserError as error:  # a run may lie where only its owner writes
        print(f"the calibration is used here but not kept: {error}", file=sys.stderr)
    return fitted


def framing(source: Source, rows: np.ndarray) -> detection.Geometry | None:
    """How faces are framed in images of a source; None where nothing can say so.

    predict says what it lacks when it needs it.
    """
    detector = detection.Detector.if_installed()
    try:
        return detection.Geometry.of(source.take(rows[:FRAMED]), detector) if detector else None
    except UserError:  # no faces
        return None


def measure(scored: Scored) -> dict[str, Any]:
    """`metrics.evaluate`'s figures, and what they are of."""
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
        "split": scored.split,
        "step": scored.run.step,
    }


def look_closer(scored: Scored, calibration: Calibration | None) -> dict[str, Any]:
    """{"uncertainty", and of the age "gates" and "quality": the error by how good an image is}."""
    result: dict[str, Any] = {}
    if calibration is not None:
        result["uncertainty"] = _uncertainty(scored, calibration)
    age, predicted = scored.labels.get("age"), scored.predictions.get("age")
    if age is not None and predicted is not None and np.isfinite(age).any():
        result["gates"] = {
            "challenge": uncertainty.challenge(age, predicted),
            "band": uncertainty.age_band(age, predicted),
        }
        looks = quality.measure(scored.source.take, scored.rows, quality.Brisque.installed())
        result["quality"] = {
            name: quality.by_quality(predicted - age, values, quality.edges(name, values))
            for name, values in looks.items()
        }
    return result


def _uncertainty(scored: Scored, calibration: Calibration) -> dict[str, Any]:
    """{"validation_images", "fitted_to": their split, "alpha", and by target: of classes
    {"temperature", "nll", "ece"} and these again after scaling; of ages {"marginal", "by_decade":
    coverages, "groups": by label}}."""
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


def score_again(
    scored: Scored,
    run: Run,
    source_path: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Scored:
    """The same images, in the same order, as another run sees them.

    Images that the other run has trained on are counted on stderr.

    Raises:
      UserError: the other run's data lacks one of the images.
    """
    config = scored.run.config.data
    mixed = config.get("mixture")
    dataset = None if mixed else scored.source.name
    source = open_data(run, dataset, source_path or config.source, options)
    row = {name: i for i, name in enumerate(source.ids.tolist())}
    ids = scored.source.ids[scored.rows].tolist()
    if missing := [name for name in ids if name not in row]:
        raise UserError(
            f"--compare={run.workdir}: its data lacks {len(missing):,} of the {len(ids):,} images, "
            f"such as {missing[0]}"
        )
    rows = np.array([row[name] for name in ids])
    if source.fingerprint == run.fingerprint and scored.split != "train":
        learned = splits.make(source, run.config.data.split)["train"]
        if seen := int(np.isin(source.groups[rows], source.groups[learned]).sum()):
            print(
                f"warning: {run.workdir} was trained on {seen:,} of these {len(rows):,} images, or "
                "on copies of them: it knows the answers",
                file=sys.stderr,
            )
    return score_rows(run, source, rows, scored.split)


def compare(scored: Scored, other: Scored) -> dict[str, Any]:
    """{"workdir", "targets": `metrics.paired`} of two runs on the same images.

    A target whose classes the other run numbers otherwise is left out.
    """
    alike = {
        name: values
        for name, values in other.predictions.items()
        if other.label_names.get(name) == scored.label_names.get(name)
    }
    targets = metrics.paired(
        scored.predictions, alike, scored.labels, scored.label_names, scored.duplicates
    )
    return {"workdir": str(other.run.workdir), "targets": targets}


def evaluate(
    workdir: str | pathlib.Path,
    *,
    dataset: str | None = None,
    source_path: str | None = None,
    split: str | None = None,
    output: str | pathlib.Path | None = None,
    compare_with: str | pathlib.Path | None = None,
    write_report: bool = True,
    options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> dict[str, Any]:
    """Scores the run's best checkpoint and writes the results to `output`.

    Args:
      dataset: a builder's name; default: the one the run was trained on.
      source_path: where its files lie; default: where the run's config says.
      split: train, val, test or another of the run's splits, or all. Default: test on the run's own
        data, all on other data, where the run's splits mean nothing.
      output: default: evaluation/DATASET-SPLIT below `Run.results`.
      compare_with: another run's folder, whose predictions of the same images are set beside.
      write_report: without it there are only `metrics.evaluate`'s figures and predictions.csv.
      options: of the data set, as config.data.options; those that it was trained with and that are
        not named here stay.
      image_size: pixels; scores the images at this size, to choose config.eval.image_size by. The
        default split is then val, and nothing is calibrated. The results go to a folder of their
        own, WORKDIR/evaluation/DATASET-SPLIT-SIZEpx.

    Returns:
      The contents of metrics.json.

    Raises:
      UserError: no run, no such data or split, or data without any label that the run predicts.
    """
    if output is not None:
        records.check_folder(expand(output), "--output")
    run = open_run(workdir)
    if output is None:
        records.check_folder(run.results / "evaluation", "--output")
    if image_size is not None:
        run, split = run.scored_at(image_size), split or (None if dataset else "val")
        if split == "test":
            raise UserError(
                "--image_size: choose a size on --split=val; the test split is for the size that "
                "config.eval.image_size says"
            )
    scored = score(run, dataset, source_path, split, options)
    other = None
    if compare_with is not None:
        other = score_again(scored, open_run(compare_with), source_path, options)
    calibration = None
    if write_report and image_size is None:
        own = scored.source if scored.source.fingerprint == run.fingerprint else None
        calibration = calibrate(run, own)
        if own is None:
            warn_of_frame(scored, calibration)
    size = "" if image_size is None else f"-{image_size}px"
    place = run.results / "evaluation" / f"{scored.source.name}-{scored.split}{size}"
    return publish(scored, expand(output or place), calibration, other, write_report=write_report)


def publish(
    scored: Scored,
    output: pathlib.Path,
    calibration: Calibration | None = None,
    other: Scored | None = None,
    *,
    write_report: bool = True,
) -> dict[str, Any]:
    """Writes what is to be known of predictions to `output`, and prints the table.

    Args:
      other: another run's predictions of the same images.
      write_report: as in `evaluate`.

    Returns:
      The contents of metrics.json.
    """
    result = measure(scored)
    if known := known_to_ancestors(scored):
        result["known_to_ancestors"] = known
        for name, count in known.items():
            print(
                f"warning: {count:,} of these {len(scored.rows):,} images, or copies of them, "
                f"trained {name}, which {scored.run.workdir} learned from; its scores are too good",
                file=sys.stderr,
            )
    if write_report:
        result |= look_closer(scored, calibration)
    if other is not None:
        result["compared"] = compare(scored, other)
    output.mkdir(parents=True, exist_ok=True)
    records.write_json(output / "metrics.json", result)
    write_predictions(output / "predictions.csv", scored, calibration)
    print(metrics.table(result))
    if write_report:
        report.write(output, scored, result, calibration)
    print(f"written to {output}/")
    return result


def known_to_ancestors(scored: Scored) -> dict[str, int]:
    """`lineage.known_to_ancestors` of the images of a run's own split."""
    run = scored.run
    own = scored.source.fingerprint == run.fingerprint and scored.split not in ("train", "all")
    if run.model is None or not own:  # an ensemble has no lineage of its own
        return {}
    return lineage.known_to_ancestors(lineage.of(run), scored.source, scored.rows)


def warn_of_frame(scored: Scored, calibration: Calibration | None) -> None:
    """Says on stderr where other data frames faces otherwise than the run's own."""
    step = max(len(scored.rows) // detection.CHECKED, 1)
    some = scored.source.take(scored.rows[::step][: detection.CHECKED])
    geometry = calibration.geometry if calibration else None
    if warning := detection.frame_warning(some, geometry):
        print(f"{warning}; python -m agejax.data.align makes a copy that is", file=sys.stderr)


def write_predictions(
    path: pathlib.Path, scored: Scored, calibration: Calibration | None = None
) -> None:
    """One CSV row an image: id, duplicate group, each target's label, prediction and, of an age,
    interval (_low, _high); probabilities are _p<class>. Then the labels of what was not predicted.
    """
    source, rows = scored.source, scored.rows
    columns: dict[str, np.ndarray] = {"id": source.ids[rows], "group": source.groups[rows]}
    intervals = calibration.intervals(scored.predictions) if calibration else {}
    for name, predicted in scored.predictions.items():
        if name not in scored.labels:  # such as age_sigma, which nobody knows the truth of
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
    records.write_text(path, text.getvalue())


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that name the images, where they are not the run's own."""
    parser.add_argument("--dataset", help="a data set's name; default: the run's own")
    parser.add_argument("--source", help="the archive or folder; default: the run's own")
    prepare.add_option(parser)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m agejax.evaluate", description=__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    add_data_arguments(parser)
    parser.add_argument("--split", help="train, val, test, all; default: test, or all elsewhere")
    parser.add_argument("--compare", metavar="RUN2", help="another run, on the same images")
    parser.add_argument(
        "--image_size", type=int, metavar="PIXELS",
        help="score val at this size, to choose config.eval.image_size; default: the run's own",
    )  # fmt: skip
    parser.add_argument("--output", help="default: WORKDIR/evaluation/DATASET-SPLIT")
    args = parser.parse_args(argv[1:])
    sharding.start()
    evaluate(
        args.workdir,
        dataset=args.dataset,
        source_path=args.source,
        options=prepare.options(args.option),
        split=args.split,
        output=args.output,
        compare_with=args.compare,
        image_size=args.image_size,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
