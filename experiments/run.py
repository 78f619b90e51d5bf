"""A published system and ours, arm by arm:

    python -m experiments.run imbalance --source=UTKFace.tar.gz --weights=FOLDER [--scale=cpu]

Trains every arm with every seed, one after the other, and scores it on the test split at the end;
what is done is skipped, what was stopped goes on. As cluster jobs: --arm=NAME --seed=N trains one.
Writes experiments/results/NAME-SCALE.json and .md: ours beside theirs, with intervals over seeds
and images.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from agejax.errors import UserError, run_command
from agejax.logging import records
from experiments import arms
from experiments.systems.setting import SCALES, Arm, Setting

SYSTEMS = ("architectures", "imbalance", "transfer", "small_model", "scratch_vs_pretrained")


def measure(scores: arms.Scores, base: arms.Scores, columns: Sequence[str]) -> dict[str, Any]:
    """An arm's row: each figure with its interval, and its paired difference to the reference."""
    groups = scores.columns["group"]
    row: dict[str, Any] = {}
    for path in columns:
        label, name = path.split("/")
        if name == "macro_f1":
            known = scores.columns[label] >= 0
            true = scores.columns[label][known]
            values, reference = (
                [f1_score(true, said[known], average="macro") for said in of.predicted[label]]
                for of in (scores, base)
            )
            row[path] = {"mean": float(np.mean(values)), "seeds": values, "n": int(known.sum())}
            difference = np.subtract(values, reference)
            row[path]["difference"] = {"mean": float(difference.mean()), "seeds": [*difference]}
        else:
            losses, reference = scores.losses(label), base.losses(label)
            figure = arms.mean_interval(losses, groups)
            paired = arms.mean_interval(losses - reference, groups)
            if name == "accuracy":
                figure, paired = _right(figure), _less(paired)
            row[path] = figure | {"difference": paired}
    return row | {
        "images_per_second": float(np.median([r["images_per_second"] for r in scores.runs])),
        "minutes": float(np.median([sum(r["seconds"].values()) / 60 for r in scores.runs])),
        "commits": scores.commits,
    }


def _right(wrong: Mapping[str, Any]) -> dict[str, Any]:
    """An accuracy of an interval of the share of wrong answers."""
    low, high = wrong["ci95"]
    return {**wrong, "mean": 1 - wrong["mean"], "ci95": [1 - high, 1 - low],
            "seeds": [1 - x for x in wrong["seeds"]]}  # fmt: skip


def _less(difference: Mapping[str, Any]) -> dict[str, Any]:
    """The difference of accuracies, of that of shares of wrong answers."""
    low, high = difference["ci95"]
    return {**difference, "mean": -difference["mean"], "ci95": [-high, -low],
            "seeds": [-x for x in difference["seeds"]]}  # fmt: skip


def table(
    title: str, columns: Sequence[str], chosen: Mapping[str, Arm], rows: Mapping[str, Any]
) -> str:
    """The comparison in Markdown: ours, the difference to the reference, theirs."""
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
                _figure(row[path]),
                _figure(row[path]["difference"], "+"),
                "" if theirs is None else f"{theirs:g}",
            ]
        cells += [f"{row['images_per_second']:.0f}", f"{row['minutes']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _figure(figure: Mapping[str, Any], sign: str = "") -> str:
    text = f"{figure['mean']:{sign}.3f}"
    if "ci95" in figure:
        low, high = figure["ci95"]
        text += f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return text


def run(
    name: str, setting: Setting, seeds: Sequence[int], folder: pathlib.Path, only: str = ""
) -> tuple[str, dict[str, Any]]:
    """Trains what is missing, and compares.

    Returns:
      (the table in Markdown, the contents of the JSON file).
    """
    system = importlib.import_module(f"experiments.systems.{name}")
    chosen: dict[str, Arm] = {
        arm: what
        for arm, what in system.arms(setting).items()
        if arm == system.REFERENCE or re.search(only, arm)
    }
    configs = {arm: what.config for arm, what in chosen.items()}
    scores = arms.run(configs, seeds, folder, "test", prepared(chosen))
    base = scores[system.REFERENCE]
    for of in scores.values():
        of.check_same_images(base)
    rows = {arm: measure(of, base, system.COLUMNS) for arm, of in scores.items()}
    return table(system.TITLE, system.COLUMNS, chosen, rows), {
        "command": f"python -m experiments.run {name} --scale={setting.scale}",
        "commit": arms.commit(),
        "seeds": list(seeds),
        "dataset": setting.dataset,
        "reference": system.REFERENCE,
        "arms": {
            arm: {"what": chosen[arm].what, "theirs": dict(chosen[arm].theirs)} | row
            for arm, row in rows.items()
        },
    }


def prepared(chosen: Mapping[str, Arm]) -> dict[str, Callable[[pathlib.Path], None]]:
    """What some arms need before they are trained."""
    return {name: arm.prepare for name, arm in chosen.items() if arm.prepare is not None}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--dataset", default="utkface")
    parser.add_argument("--source", help="the archive or folder; default: the builder looks")
    parser.add_argument("--weights", type=pathlib.Path, help="a folder of published weights")
    parser.add_argument("--synthetic", help="faces without labels, for architectures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="regex of the arms")
    parser.add_argument("--arm", help="train this one alone, for a cluster's job")
    parser.add_argument("--seed", type=int, help="with this seed, for a cluster's job")
    parser.add_argument("--folder", type=pathlib.Path, help="default: runs/SYSTEM-SCALE")
    parser.add_argument("--output", type=pathlib.Path, help="default: experiments/results/...")
    args = parser.parse_args(argv[1:])
    name = f"{args.system}-{args.scale}"
    folder = args.folder or pathlib.Path("runs") / name
    setting = Setting(args.scale, args.dataset, args.source, args.weights, folder, args.synthetic)
    if args.arm is not None:
        system = importlib.import_module(f"experiments.systems.{args.system}")
        known = system.arms(setting)
        if args.arm not in known:
            raise UserError(f"--arm={args.arm}: there are {', '.join(known)}")
        seeds = range(args.seeds) if args.seed is None else (args.seed,)
        one = {args.arm: known[args.arm]}
        configs = {name: arm.config for name, arm in one.items()}
        arms.run(configs, seeds, folder, "test", prepared(one))
        return
    text, result = run(args.system, setting, range(args.seeds), folder, args.only)
    output = args.output or pathlib.Path("experiments/results") / name
    records.write_json(output.with_suffix(".json"), result)
    records.write_text(output.with_suffix(".md"), text)
    print(text)
    print(json.dumps({"written": str(output.with_suffix(".json"))}))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
