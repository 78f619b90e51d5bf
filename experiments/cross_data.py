"""Measures how well a model of one data set works on another, and how much training on both helps:

    python -m experiments.cross_data --source=UTKFace.tar.gz --aaf=AAF \\
        --pretrained=mobilenet_v3_small_imagenet_features.safetensors

UTKFace and All-Age-Faces, the latter framed like the former by agejax.data.align. MobileNetV3-Small
at 64 px; every arm sees equally many images and is scored on the test splits of both sets, on which
no arm has trained. Recorded in experiments/results/cross_data.json and .md.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from agejax import files
from agejax.configs import mobilenet_v3_utk_alone
from agejax.evaluation import replicates
from agejax.process.command import run_command
from agejax.reporting import results
from experiments import arms

SETS = {"utkface": "UTKFace", "aaf": "All-Age-Faces"}
EXAMPLES = 60_000  # about 4 epochs of UTKFace
LABELS = ("age", "gender")  # labels of both sets


def configs(places: Mapping[str, str], pretrained: str) -> dict[str, ml_collections.ConfigDict]:
    """Arm -> config: each set alone, both in proportion to their sizes, and both equally often.

    Args:
      places: set of `SETS` -> its source.
    """
    config = mobilenet_v3_utk_alone.get_config()
    config.model.pretrained = pretrained
    config.data.image_size, config.model.image_size = 100, 64
    config.total = {"examples": EXAMPLES}
    config.eval.every = config.checkpoint.every = {"percent": 25.0}
    config.optim.ema = 0.99  # 0.999 would remember the start of so short a run
    del config.heads.ethnicity  # All-Age-Faces lacks it
    chosen = {}
    for name, source in places.items():
        chosen[name] = config.copy_and_resolve_references()
        chosen[name].data.name, chosen[name].data.source = name, source
    for arm, weights in (("both", {}), ("both-alike", {"weight": 1.0})):
        chosen[arm] = config.copy_and_resolve_references()
        chosen[arm].data.mixture = {
            name: {"name": name, "source": source} | weights for name, source in places.items()
        }
    return chosen


def cross(
    folder: pathlib.Path, arm: str, seeds: Sequence[int], name: str, place: str
) -> arms.Scores:
    """An arm's predictions for all images of a set that it has not trained on."""
    workdirs = [folder / arm / f"seed-{seed}" for seed in seeds]
    for workdir in workdirs:
        if not (workdir / name / "metrics.json").exists():
            results.evaluate(
                workdir, dataset=name, source_path=place, output=workdir / name, write_report=False
            )
    return arms.Scores.read(workdirs, name)


def on_common_images(scores: Mapping[str, arms.Scores]) -> dict[str, arms.Scores]:
    """Restricts scores to the images that all arms were scored on, in one order.

    A mixture puts the part's name before an image's, and may hold out other images where one set
    has a copy of an image in the other.
    """
    numbered = {
        arm: {name.rpartition("/")[2]: i for i, name in enumerate(each.columns["id"])}
        for arm, each in scores.items()
    }
    common = sorted(set.intersection(*map(set, numbered.values())))
    chosen = {}
    for arm, each in scores.items():
        rows = np.array([numbered[arm][name] for name in common])
        columns = {key: column[rows] for key, column in each.columns.items()}
        predicted = {key: said[:, rows] for key, said in each.predicted.items()}
        chosen[arm] = dataclasses.replace(each, columns=columns, predicted=predicted)
    return chosen


def main(argv: Sequence[str]) -> None:
    parser = arms.parser("cross_data", __doc__ or "")
    parser.add_argument("--aaf", required=True, help="All-Age-Faces, framed like UTKFace")
    parser.add_argument("--output", default="experiments/results/cross_data")
    args = parser.parse_args(argv[1:])
    places = {"utkface": args.source, "aaf": args.aaf}
    folder, seeds = pathlib.Path(args.folder), range(args.seeds)
    chosen = {arm: arms.Arm(c) for arm, c in configs(places, args.pretrained).items()}
    scores = arms.run(chosen, seeds, folder, "test")

    tables: dict[str, Any] = {}
    for name in SETS:
        other = next(each for each in SETS if each != name)
        crossed = cross(folder, other, seeds, name, places[name])
        rows = on_common_images(scores | {other: crossed})
        home = rows[name]
        groups = home.columns["group"]
        tables[name] = {arm: {} for arm in rows}
        for (arm, each), label in itertools.product(rows.items(), LABELS):
            losses, reference = each.losses(label), home.losses(label)
            difference = replicates.mean_interval(losses - reference, groups)
            tables[name][arm][label] = replicates.mean_interval(losses, groups) | {
                "difference": difference
            }
    intervals = replicates.method(args.seeds)
    output = pathlib.Path(args.output)
    files.write_json(
        output.with_suffix(".json"),
        {
            "command": "python -m experiments.cross_data",
            "commits": {arm: each.commits for arm, each in scores.items()},
            "commit": arms.commit(),
            "seeds": args.seeds,
            "intervals": intervals,
            "tested on": tables,
        },
    )
    files.write_text(output.with_suffix(".md"), page(tables, intervals))
    print(table(tables))


def page(tables: Mapping[str, Any], intervals: str) -> str:
    """The page cross_data.md."""
    return f"{table(tables)}\n{intervals}\n"


def table(tables: Mapping[str, Any]) -> str:
    lines = [
        "| tested on | trained on | age MAE | against at home | wrong genders | against at home |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in tables.items():
        for arm, row in rows.items():
            cells = []
            for label, digits in (("age", 2), ("gender", 3)):
                cells.append(replicates.text(row[label], digits))
                cells.append(replicates.text(row[label]["difference"], digits, "+"))
            n = row["age"]["n"]
            lines.append(f"| {SETS[name]} (n = {n:,}) | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
