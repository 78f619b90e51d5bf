"""python -m agejax.pseudo_label --workdir=RUN --source=FOLDER --output=DIR [--keep=.8]

Labels the faces of a folder, an archive or a data set with a trained run or ensemble, keeps what it
is surest of, and writes labels.csv with the lines of a config that train on it beside real faces.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax import tables
from agejax.data import sources
from agejax.errors import UserError, check_keys, run_command
from agejax.evaluation.scored import score_rows
from agejax.logging import records
from agejax.paths import expand
from agejax.runs import ensembles
from agejax.runs.run import Run
from agejax.training import sharding

LABELS = ("age", "gender", "ethnicity")  # that a CSV of `image_folder` can hold


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
    """Writes labels.csv and labels.json to `output`.

    How sure the run is of an age is what it says itself (`age_sigma`), or else how far apart its
    answers to the image and its mirror image are, and those of an ensemble's members.

    Args:
      source_path: a folder or archive of face crops, framed as the run's training images; None:
        the data set's builder looks.
      dataset: a builder's name.
      labels: of `LABELS`, those to write.
      keep: the share of the images that stay, those of the surest ages; 1 keeps all.
      probability: below it a class is left unknown.

    Returns:
      {"images", "kept", "labelled": {label: images}, "uncertainty": years, of the least sure image
      kept, "config": lines to copy}.

    Raises:
      UserError: no run, no image, or a share outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise UserError(f"--keep={keep}: a share above 0, and 1 at most")
    output = expand(output)
    records.check_folder(output, "--output")
    run = twice(ensembles.open_run(workdir))
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
    records.write_text(output / "labels.csv", text.getvalue())
    result = {
        "images": len(source.ids),
        "kept": len(kept),
        "labelled": {k: sum(map(bool, v)) for k, v in columns.items() if k != "file"},
        "uncertainty": float(unsure[kept].max()),
        "run": str(workdir),
        "config": config_lines(run, dataset, source_path, output / "labels.csv"),
    }
    records.write_json(output / "labels.json", result)
    return result


def twice(run: Run) -> Run:
    """The run, asked of every image and of its mirror image."""
    return ensembles.join(
        run.workdir, [run], "predictions", ensembles.equal_weights([run]), ["plain", "flip"]
    )


def uncertainty_of(said: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N], the lower the surer: of the age, years, or without one 1 - the largest probability."""
    for name in ("age_sigma", "age_spread"):
        if name in said:
            return said[name]
    label = next(iter(said))
    return 1 - said[label].max(axis=1)


def config_lines(run: Run, dataset: str, source_path: str | None, labels: pathlib.Path) -> str:
    """A mixture of the run's data and the labelled images; of a data set, its own labels edited."""
    place = None if source_path is None else str(expand(source_path).absolute())
    if dataset != "image_folder":
        lines = {"name": dataset, "source": place, "edits.labels": str(labels.absolute())}
        return "\n".join(f"config.data.{key} = {value!r}" for key, value in lines.items())
    data = run.config.data
    options = {"labels": str(labels.absolute())} | {
        f"{label}_names": tuple(names)
        for label, names in run.facts.label_names.items()
        if label in LABELS
    }
    parts = {
        "real": {"name": data.name, "source": data.source},
        "pseudo": {
            "name": "image_folder",
            "source": place,
            "train_only": True,  # val and test stay real
            "options": options,
        },
    }
    return f"config.data.mixture = {parts!r}"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m agejax.pseudo_label",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="the folder of a trained run or ensemble")
    parser.add_argument("--source", help="a folder or archive of face crops")
    parser.add_argument("--dataset", default="image_folder", help="a data set's name")
    parser.add_argument("--labels", default=",".join(LABELS), help="those to write; default: all")
    parser.add_argument("--output", required=True, help="the folder to write to")
    parser.add_argument("--keep", type=float, default=0.8, help="share of the surest; default .8")
    parser.add_argument(
        "--probability", type=float, default=0.9, help="of a class, below it unknown; default .9"
    )
    args = parser.parse_args(argv[1:])
    sharding.start()
    if args.source is None and args.dataset == "image_folder":
        raise UserError("--source: name a folder or an archive of faces")
    labels = args.labels.split(",")
    check_keys(labels, LABELS, "--labels")
    result = pseudo_label(
        args.workdir,
        args.source,
        args.output,
        dataset=args.dataset,
        labels=labels,
        keep=args.keep,
        probability=args.probability,
    )
    for label, count in result["labelled"].items():
        print(f"{label}: {count:,} of {result['images']:,} images")
    print(f"written to {args.output}/; to train on it:\n{result['config']}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
