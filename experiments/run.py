"""Compares a published system with ours, arm by arm:

    python -m experiments.run imbalance --source=UTKFace.tar.gz --weights=FOLDER [--scale=cpu]

Trains every arm with every seed in turn, and scores it on the test split at the end; finished arms
are skipped, stopped ones resume. As cluster jobs: --arm=NAME --seed=N trains one, and --task=N the
one with number N in an array (experiments/slurm/arms.sbatch).
Writes runs/SYSTEM-SCALE/SYSTEM-SCALE.json and .md: our figures beside the published ones, with
intervals over seeds and images; and charts: errors by decade, confusion matrices, curves.
--output=experiments/results/SYSTEM-SCALE records them.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import importlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax import files
from agejax.errors import UserError
from agejax.evaluation import replicates
from agejax.process import usage
from agejax.process.command import run_command
from agejax.reporting.plots import Chart
from experiments import arms, charts
from experiments.arms import Arm
from experiments.systems import transfer
from experiments.systems.setting import SCALES, Setting

SYSTEMS = ("architectures", "imbalance", "transfer", "small_model", "scratch_vs_pretrained")


def measure(scores: arms.Scores, base: arms.Scores, columns: Sequence[str]) -> dict[str, Any]:
    """An arm's row: each figure with its interval, and its paired difference to the reference."""
    row: dict[str, Any] = {}
    for path in columns:
        label, name, *only = path.split("/")
        some = np.ones(len(base.columns["id"]), bool)
        if only:  # images with this label in the reference's data
            names = base.runs[0]["facts"]["label_names"]["gender"]
            some = base.columns["gender"] == names.index(only[0])
        groups = scores.columns["group"][some]
        if name == "macro_f1":
            figure, difference = arms.macro_f1_interval(
                scores.columns[label], scores.predicted[label], base.predicted[label], groups
            )
        elif name == "mae":
            losses, reference = scores.losses(label)[:, some], base.losses(label)[:, some]
            figure = replicates.mean_interval(losses, groups)
            difference = replicates.mean_interval(losses - reference, groups)
        else:
            wrong, reference = (
                of.losses(label) if name == "accuracy" else of.bucket_errors(label, transfer.EDGES)
                for of in (scores, base)
            )
            figure = replicates.mean_interval(1 - wrong, groups)
            difference = replicates.mean_interval(reference - wrong, groups)
        row[path] = figure | {"difference": difference}
    if scores.runs:
        row["images_per_second"] = float(np.median([r["images_per_second"] for r in scores.runs]))
        row["minutes"] = float(np.median([sum(r["seconds"].values()) / 60 for r in scores.runs]))
    return row | {"commits": scores.commits}


def table(
    title: str, columns: Sequence[str], chosen: Mapping[str, Arm], rows: Mapping[str, Any]
) -> str:
    """The comparison in Markdown: our figures, differences to the reference, published figures."""
    heads = [f"{path} | against the first | theirs" for path in columns]
    lines = [
        f"### {title}\n",
        f"| arm | {' | '.join(heads)} | images/s | minutes |",
        "|" + "---|" * (3 + 3 * len(columns)),
    ]
    for name, row in rows.items():
        cells = [f"{name}: {chosen[name].what}"]
        for path in columns:
            theirs = chosen[name].theirs.get(path)
            cells += [
                replicates.text(row[path], 3),
                replicates.text(row[path]["difference"], 3, "+"),
                "" if theirs is None else f"{theirs:g}",
            ]
        cells += [
            f"{row[key]:.0f}" if key in row else "" for key in ("images_per_second", "minutes")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(
    name: str,
    setting: Setting,
    seeds: Sequence[int],
    folder: pathlib.Path,
    only: str = "",
    against: str | None = None,
) -> tuple[str, dict[str, Any], dict[str, Chart]]:
    """Trains what is missing, and compares.

    Args:
      against: the arm that the others are compared with; None: the system's reference.

    Returns:
      (the table in Markdown, the contents of the JSON file, charts by name).

    Raises:
      UserError: there is no arm `against`, or as `arms.chosen` and `arms.run`.
    """
    system = importlib.import_module(f"experiments.systems.{name}")
    known, reference = system.arms(setting), against or system.REFERENCE
    if reference not in known:
        raise UserError(f"--against={reference}: there are {', '.join(known)}")
    chosen = arms.chosen(known, only, reference)
    chosen = {reference: chosen[reference]} | chosen
    scores = arms.run(chosen, seeds, folder, "test")
    base = scores[reference]
    for of in scores.values():
        of.check_same_images(base)
    # Without labels of gender there are no errors by gender.
    columns = [c for c in system.COLUMNS if c.count("/") == 1 or "gender" in base.columns]
    rows = {arm: measure(of, base, columns) for arm, of in scores.items()}
    n, ids = len(base.columns["id"]), len(np.unique(base.columns["group"]))
    intervals = replicates.method(len(seeds))
    devices = sorted({run["device"] for of in scores.values() for run in of.runs})
    text = table(f"{system.TITLE}, at scale {setting.scale}", columns, chosen, rows) + (
        f"\n{n:,} test images ({ids:,} without copies) of {setting.dataset}; seeds: "
        f"{', '.join(map(str, seeds))}. {intervals} Trained on {' and '.join(devices)}.\n"
    )
    return (
        text,
        {
            "command": f"python -m experiments.run {name} --scale={setting.scale}",
            "commit": arms.commit(),
            "seeds": list(seeds),
            "intervals": intervals,
            "dataset": setting.dataset,
            "devices": devices,
            "reference": reference,
            "arms": {
                arm: {"what": chosen[arm].what, "theirs": dict(chosen[arm].theirs)}
                | row
                | {"decades": scores[arm].by_decade("age")}
                for arm, row in rows.items()
            },
        },
        charts.of_arms(scores, {arm: folder / arm / f"seed-{seeds[0]}" for arm in scores}),
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--dataset", default="utkface")
    parser.add_argument("--source", help="the archive or folder; default: where the builder looks")
    parser.add_argument("--weights", type=pathlib.Path, help="a folder of published weights")
    parser.add_argument("--synthetic", help="faces without labels, for architectures")
    parser.add_argument("--genders", help="a run that predicts genders, for architectures")
    parser.add_argument("--seeds", type=usage.at_least(1), default=3)
    parser.add_argument("--only", default="", metavar="REGEX", help="of the arms' names")
    parser.add_argument("--against", metavar="ARM", help="the reference; default: the system's")
    parser.add_argument("--arm", help="train only this arm, for a cluster's job")
    parser.add_argument("--seed", type=int, help="with this seed, for a cluster's job")
    parser.add_argument("--task", type=int, help="number of an array's job: arm and seed")
    parser.add_argument("--folder", type=pathlib.Path, help="default: runs/SYSTEM-SCALE")
    parser.add_argument(
        "--output", type=pathlib.Path, help="path without suffix; default: FOLDER/SYSTEM-SCALE"
    )
    args = parser.parse_args(argv[1:])
    name = f"{args.system}-{args.scale}"
    folder = args.folder or pathlib.Path("runs") / name
    setting = Setting(
        args.scale, args.dataset, args.source, args.weights, folder, args.synthetic, args.genders
    )
    known = importlib.import_module(f"experiments.systems.{args.system}").arms(setting)
    if args.task is not None:
        alone = [name for name, arm in known.items() if arm.config and not arm.prepare]
        if not 0 <= args.task < len(alone) * args.seeds:
            last = len(alone) * args.seeds - 1
            raise UserError(
                f"--task={args.task}: {len(alone)} arms by {args.seeds} seeds are 0 to {last}"
            )
        args.seed, number = divmod(args.task, len(alone))
        args.arm = alone[number]
    if args.arm is not None:
        if args.arm not in known:
            raise UserError(f"--arm={args.arm}: there are {', '.join(known)}")
        seeds = range(args.seeds) if args.seed is None else (args.seed,)
        arms.run({args.arm: known[args.arm]}, seeds, folder, "test")
        return
    output = args.output or folder / name
    files.check_folder(output.parent, "--output")
    text, result, drawn = run(
        args.system, setting, range(args.seeds), folder, args.only, args.against
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    for kind, chart in drawn.items():
        figure = output.with_name(f"{output.name}-{kind}.png")
        figure.write_bytes(chart.png)
        text += f"\n{chart.caption}:\n\n![{chart.alt}]({figure.name})\n"
    files.write_json(output.with_suffix(".json"), result)
    files.write_text(output.with_suffix(".md"), text)
    print(text)
    print(json.dumps({"written": str(output.with_suffix(".json"))}))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
