"""Recomputes recorded tables from their JSON files, without the runs:

    python -m experiments.recompute [FILE.json ...]

Each figure's interval is computed from its seeds' figures and its interval over images
(`replicates.joined`). Older files have only a percentile bootstrap over both; the images' part is
recovered from it. Default: all comparisons in experiments/results.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import importlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from agejax import files
from agejax.errors import UserError
from agejax.evaluation import replicates
from agejax.process.command import run_command
from experiments import arms, cross_data, run, targets

RESULTS = pathlib.Path("experiments/results")
COMPARISONS = (
    "architectures-cpu", "cross_data", "imbalance-cpu", "imbalance-ours",
    "scratch_vs_pretrained-cpu", "small_model-5epochs", "small_model-cpu", "targets",
    "transfer-cpu", "transfer_check",
)  # fmt: skip
RECOVERED = (
    " The part of the images is recovered from a percentile bootstrap over seeds and images, and a "
    "little too wide."
)


def figures(tree: Any) -> Iterator[dict[str, Any]]:
    """Yields every figure with an interval in a file's contents."""
    if isinstance(tree, dict):
        if {"mean", "ci95", "seeds", "n"} <= tree.keys():
            yield tree
        for value in tree.values():
            yield from figures(value)


def recompute(recorded: dict[str, Any]) -> None:
    """Recomputes all intervals of a file's contents in place; may be repeated."""
    recovered = False
    for figure in figures(recorded):
        if "images95" not in figure:
            figure["images95"] = arms.images_of_percentile(figure["seeds"], figure["ci95"])
            recovered = True
        figure["ci95"] = replicates.over_seeds(figure["seeds"], figure["images95"])
    if recovered:
        recorded["intervals"] = replicates.METHOD + RECOVERED


def page(name: str, recorded: dict[str, Any], old: str) -> str:
    """A comparison's Markdown with its tables recomputed; the rest stays.

    Raises:
      UserError: an unknown command made the file.
    """
    if name == "targets":
        return targets.page(recorded["arms"], recorded["intervals"])
    if name == "cross_data":
        return cross_data.page(recorded["tested on"], recorded["intervals"])
    command = re.fullmatch(r"\S+ -m experiments.run (\w+) --scale=(\w+)", recorded["command"])
    if command is None:
        raise UserError(f"{name}.json: no table is known of {recorded['command']!r}")
    system = importlib.import_module(f"experiments.systems.{command[1]}")
    rows = recorded["arms"]
    columns = [key for key in next(iter(rows.values())) if "/" in key]
    chosen = {arm: arms.Arm(None, row["what"], row["theirs"]) for arm, row in rows.items()}
    table = run.table(f"{system.TITLE}, at scale {command[2]}", columns, chosen, rows)
    after = old.index("\n\n", old.index("\n| ")) + 1  # the table's end
    return table + re.sub(
        r"Intervals of 95 % .*? differences are paired\.( The part .*? too wide\.)?",
        recorded["intervals"],
        old[after:],
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.recompute",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    args = parser.parse_args(argv[1:])
    for path in args.files or [RESULTS / f"{name}.json" for name in COMPARISONS]:
        recorded = json.loads(path.read_text())
        recompute(recorded)
        markdown = path.with_suffix(".md")
        if markdown.exists():
            files.write_text(markdown, page(path.stem, recorded, markdown.read_text()))
        files.write_json(path, recorded)
        print(f"{path}: {sum(1 for _ in figures(recorded)):,} intervals")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
