"""python -m experiments.benchmarks.start --source=UTKFace.tar.gz --pretrained=WEIGHTS
    [--beside=FOLDER] [--repeats=5] [--output=experiments/results/start]

Measures how long `python -m agejax.main` takes to its first step: of configs/mobilenet_v3_utk.py,
in a new process each time, on images that were decoded before. Once with nothing compiled and once
with what that first process compiled. FOLDER is the working tree of another commit, whose starts
alternate with those of this one. CPU seconds are of all threads until the row of the first step is
written; on a busy machine they say more than wall seconds. Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from agejax import files
from agejax.errors import UserError
from agejax.paths import cache_folder
from agejax.process.command import run_command
from experiments.arms import commit
from experiments.benchmarks.turns import alternate, cpu_seconds, ratio

HERE = pathlib.Path(__file__).parents[2]
OUTPUT = HERE / "experiments" / "results" / "start"
# The row of step 1 is written when step 2 is on its way.
SETTINGS = {
    "total": "{'steps': 2}", "schedule.warmup": "{'steps': 1}", "log_every": "{'steps': 1}",
    "eval.final_split": "",
}  # fmt: skip
FIRST = "step 1/2 "  # in the line of the first step
THIS, OTHER = "this", "beside"
UNITS = {"cpu_seconds": "CPU s", "seconds": "wall s", "peak_mib": "MiB at the peak"}


def first_step(tree: pathlib.Path, command: Sequence[str], cache: pathlib.Path) -> dict[str, float]:
    """Starts a training with the code of a tree, and ends it after its first step.

    Args:
      cache: of compiled programs.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "AGEJAX_CACHE": str(cache)}
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as workdir,
        subprocess.Popen(
            [*command, f"--workdir={workdir}/run"], cwd=tree, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if FIRST in line:
                break
        seconds = time.perf_counter() - began
        if not said or FIRST not in said[-1]:
            raise UserError(f"{tree}: no first step: {' '.join(said[-3:]).strip()}")
        figures = _used(process.pid)
        process.kill()
    return figures | {"seconds": seconds}


def _used(pid: int) -> dict[str, float]:
    """What a process has used so far, as Linux reports it."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    peak = status.partition("VmHWM:")[2].split()[0]
    return {"cpu_seconds": cpu_seconds(pid), "peak_mib": int(peak) / 1024}


def cold_and_warm(tree: pathlib.Path, command: Sequence[str]) -> dict[str, dict[str, float]]:
    """A start with nothing compiled, and one with what it compiled."""
    with tempfile.TemporaryDirectory() as folder:
        start = functools.partial(first_step, tree, command, pathlib.Path(folder))
        return {"nothing compiled before": start(), "compiled before": start()}


def measure(
    trees: Mapping[str, pathlib.Path], command: Sequence[str], repeats: int
) -> list[dict[str, Any]]:
    """A row of JSON data for each kind of start and each quantity."""
    cold_and_warm(HERE, command)  # decodes the images, and reads the libraries from the disk
    turns = {k: functools.partial(cold_and_warm, tree, command) for k, tree in trees.items()}
    taken = alternate(turns, repeats)
    rows = []
    for kind in next(iter(taken.values()))[0]:
        for unit in UNITS:
            values = {name: [turn[kind][unit] for turn in each] for name, each in taken.items()}
            row: dict[str, Any] = {"start": kind, "unit": unit, "turns": values}
            if OTHER in values:
                row["ratio"] = ratio(values[THIS], values[OTHER])
            rows.append(row)
    return rows


def table(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    names = list(result["commits"])
    commits = [f"{result['commits'][name]}" for name in names]
    columns = ["start", "", *commits, *(["this / other"] if OTHER in names else [])]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in result["rows"]:
        cells = []
        for name in names:
            turns = row["turns"][name]
            cells.append(f"{statistics.median(turns):,.3g} ({min(turns):,.3g} to {max(turns):,.3g})"
                         if max(turns) < 1000 else f"{statistics.median(turns):,.0f}")  # fmt: skip
        if "ratio" in row:
            cells.append("{median:.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"]))
        lines.append(f"| {row['start']} | {UNITS[row['unit']]} | {' | '.join(cells)} |")
    return (
        f"Time to the first step of configs/mobilenet_v3_utk.py: medians of {result['repeats']} "
        f"turns with the smallest and largest; {result['machine']}.\n\n" + "\n".join(lines) + "\n"
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", type=pathlib.Path, required=True, help="UTKFace.tar.gz")
    parser.add_argument(
        "--pretrained", type=pathlib.Path, required=True, help="the ImageNet weights"
    )
    parser.add_argument("--beside", type=pathlib.Path, help="the working tree of another commit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args(argv[1:])
    trees = {THIS: HERE} | ({OTHER: args.beside.absolute()} if args.beside else {})
    settings = SETTINGS | {
        "data.source": args.source.absolute(), "data.cache_dir": cache_folder(),
        "model.pretrained": args.pretrained.absolute(),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "agejax.main", "--config=configs/mobilenet_v3_utk.py",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]  # fmt: skip
    rows = measure(trees, command, args.repeats)
    result = {
        "command": "python -m experiments.benchmarks.start" + (" --beside" if args.beside else ""),
        "commits": {name: commit(tree) for name, tree in trees.items()},
        "machine": f"{os.cpu_count()} CPU cores, JAX {jax.__version__}",
        "repeats": args.repeats,
        "rows": rows,
    }
    files.write_json(args.output.with_suffix(".json"), result)
    files.write_text(args.output.with_suffix(".md"), table(result))
    print(table(result))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
