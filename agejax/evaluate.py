"""python -m agejax.evaluate --workdir=RUN [--dataset=NAME --source=PATH] [--split=NAME]

Scores a trained run on its own splits or on any other data: metrics.json, predictions.csv, age.png.
"""

from __future__ import annotations

import argparse
import csv
import io
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from agejax import heads, metrics, sharding
from agejax.data import opening, pipeline, splits
from agejax.errors import UserError, run_command
from agejax.logging import records
from agejax.reporting import plots
from agejax.run import Run


def evaluate(
    workdir: str | pathlib.Path,
    *,
    dataset: str | None = None,
    source_path: str | None = None,
    split: str | None = None,
    output: str | pathlib.Path | None = None,
) -> dict[str, Any]:
    """Scores the run's best checkpoint and writes the results to `output`.

    Args:
      dataset: a builder's name; default: the one the run was trained on.
      source_path: where its files lie; default: where the run's config says.
      split: train, val, test or another of the run's splits, or all. Default: test on the run's own
        data, all on other data, where the run's splits mean nothing.
      output: default: WORKDIR/evaluation/DATASET-SPLIT.

    Returns:
      The contents of metrics.json.
    """
    run = Run.open(workdir)
    config = run.config.data
    if dataset is None or opening.is_own(config, dataset):
        source = opening.open_source(config, source_path)
    else:
        source = opening.open_other(config, dataset, source_path, run.facts.label_names)
    same_data = source.fingerprint == run.fingerprint
    split = split or ("test" if same_data else "all")
    if split == "all":
        rows = np.arange(len(source.ids))
    elif not same_data:
        raise UserError(f"--split={split}: not the data this run was trained on; use --split=all")
    else:
        by_name = splits.make(source, config.split)
        if split not in by_name:
            raise UserError(f"--split={split}: the run has {', '.join(by_name)}, and all")
        rows = by_name[split]

    batch_size = run.config.eval.batch_size
    first = rows[: min(len(rows), batch_size)]
    run.predict(pipeline.evaluation_batches(source, first, batch_size))  # compiles
    start = time.perf_counter()
    predictions = run.predict(pipeline.evaluation_batches(source, rows, batch_size))
    seconds = time.perf_counter() - start

    labels, label_names = heads.derive(
        run.heads, {k: v[rows] for k, v in source.labels.items()}, source.label_names
    )
    result = metrics.evaluate(
        predictions,
        labels,
        label_names,
        duplicates=source.groups[rows],
        floor_age=run.facts.medians.get("age"),
    )
    result |= {
        "images_per_second": len(rows) / seconds,
        "dataset": source.name,
        "split": split,
        "step": run.step,
    }
    output = pathlib.Path(output or run.workdir / "evaluation" / f"{source.name}-{split}")
    output.mkdir(parents=True, exist_ok=True)
    records.write_json(output / "metrics.json", result)
    write_predictions(
        output / "predictions.csv", source.ids[rows], source.groups[rows], labels, predictions
    )
    print(metrics.table(result))
    if "age" in result:
        known = np.isfinite(labels["age"])
        plots.save_age_figure(
            labels["age"][known],
            predictions["age"][known],
            output / "age.png",
            title=f"{run.workdir.name} on {source.name} ({split})",
        )
    print(f"written to {output}/: metrics.json, predictions.csv, age.png")
    return result


def write_predictions(
    path: pathlib.Path,
    ids: np.ndarray,
    groups: np.ndarray,
    labels: dict[str, np.ndarray],
    predictions: dict[str, np.ndarray],
) -> None:
    """One CSV row an image: id, duplicate group, each target's label and prediction, _p<class>."""
    columns: dict[str, np.ndarray] = {"id": ids, "group": groups}
    for name, predicted in predictions.items():
        if name not in labels:  # such as age_sigma, which nobody knows the truth of
            columns[name] = predicted
            continue
        columns[name] = labels[name]
        if predicted.ndim == 1:
            columns[f"{name}_predicted"] = predicted
        else:
            columns[f"{name}_predicted"] = predicted.argmax(axis=1)
            columns |= {f"{name}_p{k}": p for k, p in enumerate(predicted.T)}
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(columns)
    rows.writerows(zip(*columns.values(), strict=True))
    records.write_text(path, text.getvalue())


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m agejax.evaluate", description=__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    parser.add_argument("--dataset", help="a data set's name; default: the run's own")
    parser.add_argument("--source", help="the archive or folder; default: the run's own")
    parser.add_argument("--split", help="train, val, test, all; default: test, or all elsewhere")
    parser.add_argument("--output", help="default: WORKDIR/evaluation/DATASET-SPLIT")
    args = parser.parse_args(argv[1:])
    sharding.start()
    evaluate(
        args.workdir,
        dataset=args.dataset,
        source_path=args.source,
        split=args.split,
        output=args.output,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
