"""python -m experiments.benchmarks.commits [--before=0c2a7f2] [--output=FILE]

Compares the bare train step of this checkout with that of another commit: MobileNetV3-Small,
128 px, 64 images, float32, batches on the device. Each commit has its own process, which sleeps
while the others have their turn: A B C, C B A, ... This checkout has two, because on a shared
machine the speed of one process differs from that of the next: the ratio of these two shows how
much. Recorded in experiments/results/commits.json.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import contextlib
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from agejax import files
from agejax.errors import UserError
from agejax.process.command import run_command
from experiments.arms import commit
from experiments.benchmarks.contestants.case import CORES, Case
from experiments.benchmarks.peers import Child, Peer, Scale, draw, find_device
from experiments.benchmarks.turns import alternate, cpu_seconds, ratio

HERE = pathlib.Path(__file__).parents[2]
OUTPUT = HERE / "experiments" / "results" / "commits.json"
BEFORE = "0c2a7f2"  # the last commit before the rooms of docs/architecture.md
CASE = Case()
WARM_UP = 5  # steps


def check_out(name: str, folder: pathlib.Path) -> None:
    """Writes the files of a commit to a folder.

    Raises:
      UserError: there is no such commit.
    """
    archive = subprocess.run(["git", "-C", HERE, "archive", name], capture_output=True)
    if archive.returncode:
        reason = archive.stderr.decode().strip().splitlines()[-1]
        raise UserError(f"--before={name}: {reason}; name a commit of {HERE}")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)


def turn_of(child: Child, steps: int) -> Callable[[], tuple[float, float]]:
    """A turn of a commit's process: (seconds, CPU seconds) per step."""
    run = child.prepare({"kind": "train"})
    run(WARM_UP)

    def turn() -> tuple[float, float]:
        begin = cpu_seconds(child.pid)
        seconds = run(steps)
        return seconds, (cpu_seconds(child.pid) - begin) / steps

    return turn


def measure(before: str, repeats: int, steps: int) -> dict[str, Any]:
    """Measures the two commits, as JSON data.

    Raises:
      UserError: there is no such commit.
    """
    scale = Scale(faces=CASE.batch, edge=CASE.image_size, cases=(CASE,), input=CASE)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = pathlib.Path(temporary)
        check_out(before, folder / "before")
        (folder / "faces").mkdir()
        data = draw(folder / "faces", scale)
        places = {"before": folder / "before", "now": HERE, "now, again": HERE}
        turns = {}
        for name, place in places.items():
            # The process imports agejax and experiments of its commit, wherever it is started.
            environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(place)}
            child = Child(Peer("agejax", CASE.dtype, {"plain": False}, environment), CASE, data)
            turns[name] = turn_of(stack.enter_context(contextlib.closing(child)), steps)
        times = alternate(turns, repeats)
    result: dict[str, Any] = {
        "what": f"{CASE.network}, {CASE.dtype}, {CASE.image_size} px, batch {CASE.batch}: seconds "
        "per train step",
        "commits": {"before": before, "now": commit()},
        "device": f"{find_device()[1]}, {CORES} cores",
        "repeats": repeats,
        "steps_per_turn": steps,
    }
    for i, clock in enumerate(("seconds", "cpu_seconds")):
        per_step = {name: [each[i] for each in given] for name, given in times.items()}
        result[clock] = {
            "turns": per_step,
            "median": {name: statistics.median(given) for name, given in per_step.items()},
            "now / before": ratio(per_step["now"], per_step["before"]),
            "now, again / before": ratio(per_step["now, again"], per_step["before"]),
            "now, again / now": ratio(per_step["now, again"], per_step["now"]),
        }
    return result


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.commits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each process")
    parser.add_argument("--steps", type=int, default=10, help="steps per turn")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args(argv[1:])
    result = measure(args.before, args.repeats, args.steps)
    command = " ".join(["python -m experiments.benchmarks.commits", *argv[1:]])
    files.write_json(args.output, {"command": command} | result)
    for clock in ("seconds", "cpu_seconds"):
        for name in ("now / before", "now, again / before", "now, again / now"):
            found = result[clock][name]
            span = f"{found['min']:.2f} to {found['max']:.2f}"
            print(f"{clock}, {name}: {found['median']:.2f} ({span})")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
