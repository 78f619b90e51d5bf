"""Lets many readers open one run while it trains and saves a checkpoint at every step:

    python -m experiments.storm [--opens=200] [--readers=2] [--steps=300]

Reader processes open the run repeatedly with `agejax.evaluate`, `agejax.predict` and `Run.open`
until the training ends; more trainings follow until there are enough opens. Each training must
survive, with parameters bit-identical to those of a training without readers; each open must work,
or end with one line (exit code 2), and never with a traceback. Writes
experiments/results/storm.json and .md.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Any

from agejax import files
from agejax.errors import UserError
from agejax.process.command import run_command
from experiments import faults
from experiments.arms import commit

OUTPUT = pathlib.Path(__file__).parent / "results" / "storm"
KINDS = ("Run.open", "predict", "evaluate")
STOP = "training has ended"  # a file beside the run's folder
PHOTOS = 4  # given to predict


# ---- the processes -------------------------------------------------------------------------------


def train_child(workdir: pathlib.Path, cache: pathlib.Path, steps: int) -> None:
    """Trains, saves at every step, and prints the digest of the final parameters."""
    from agejax.train import train
    from agejax.training import sharding

    sharding.start()
    config = faults.get_config(cache)
    config.total = {"steps": steps}
    config.checkpoint.every = {"steps": 1}
    config.eval.every = {"steps": 2}
    config.log_every = {"steps": 10}
    config.data.workers = 0
    if train(config, workdir) is not None:
        print(f"digest {faults.digest(workdir)}")


def read_child(workdir: pathlib.Path, cache: pathlib.Path, first: int, opens: int) -> None:
    """Opens the run `opens` times, or until the training has ended; prints a JSON line for each."""
    from agejax.runs.run import Run
    from agejax.training import sharding

    sharding.start()
    folder = pathlib.Path(tempfile.mkdtemp(dir=workdir.parent))
    photos = _write_photos(cache, folder)
    for i in range(opens):
        if (workdir.parent / STOP).exists():
            return
        kind, start = KINDS[(first + i) % len(KINDS)], time.time()
        row: dict[str, Any] = {"kind": kind, "outcome": "done", "step": None, "said": ""}
        try:
            if kind == "Run.open":
                row["step"] = Run.open(workdir).step
            else:
                row["step"] = _use(kind, workdir, folder, photos)
        except UserError as error:
            row |= {"outcome": "one line", "said": str(error)}
        except Exception as error:
            traceback.print_exc()
            row |= {"outcome": "traceback", "said": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(row | {"start": start, "end": time.time()}), flush=True)


def _use(
    kind: str, workdir: pathlib.Path, folder: pathlib.Path, photos: Sequence[pathlib.Path]
) -> int | None:
    """Predicts or evaluates as the commands do; returns the step where the result has it.

    Raises:
      UserError: the line of a command that ended with exit code 2.
      RuntimeError: a wrong result.
    """
    from agejax import predict
    from agejax.reporting import results

    if kind == "evaluate":
        with contextlib.redirect_stdout(io.StringIO()):
            result = results.evaluate(
                workdir, split="val", output=folder, write_report=False
            ).metrics
        return int(result["step"])
    answers, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(answers), contextlib.redirect_stderr(complaints):
        code = run_command(predict.main, ["predict", f"--workdir={workdir}", *map(str, photos)])
    if code:
        raise UserError(complaints.getvalue().strip().splitlines()[-1])
    if len(answers.getvalue().splitlines()) != len(photos):
        raise RuntimeError(f"{answers.getvalue()!r} for {len(photos)} images")
    return None


class Child:
    """A process of this script. It prints to a file: a pipe that is not read would block it."""

    def __init__(self, log: pathlib.Path, *arguments: Any) -> None:
        self._log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "experiments.storm", "--child", *map(str, arguments)],
                stdout=out, stderr=out, env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )  # fmt: skip

    def finish(self) -> faults.Process:
        return faults.Process(self.process.wait(), self._log.read_text())


# ---- the storm -----------------------------------------------------------------------------------


def storm(opens: int, readers: int, steps: int) -> dict[str, Any]:
    """Repeats the training until `readers` processes at once have opened it `opens` times.

    Raises:
      UserError: the training without readers fails.
    """
    trainings: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        cache = pathlib.Path(name) / "cache"
        os.environ["AGEJAX_CACHE"] = str(cache)
        alone = Child(
            pathlib.Path(name) / "alone.txt", "train", pathlib.Path(name) / "alone", cache, steps
        ).finish()
        if not alone.digest:
            raise UserError(f"the training that nothing looks at failed: {alone.text[-2000:]}")
        while len(rows) < opens:
            number = len(trainings) + 1
            folder = pathlib.Path(name) / str(number)
            folder.mkdir()
            done, seen = _train_and_read(folder / "run", cache, steps, readers, opens - len(rows))
            rows += [row | {"training": number} for row in seen]
            trainings.append(
                {
                    "code": done.code,
                    "bit_equal": done.digest == alone.digest,
                    "opens": len(seen),
                    "died_of": "" if done.code == 0 else done.text.strip().splitlines()[-1][:300],
                }
            )
            print(f"training {number}: {trainings[-1]}; {len(rows)} opens", flush=True)
            if not seen:
                raise UserError(f"no reader opened the run: {done.text[-2000:]}")
    return {
        "opens": len(rows), "readers": readers, "steps": steps, "commit": commit(),
        "trainings": trainings, "rows": rows,
    }  # fmt: skip


def _train_and_read(
    workdir: pathlib.Path, cache: pathlib.Path, steps: int, readers: int, opens: int
) -> tuple[faults.Process, list[dict[str, Any]]]:
    """A training's result, and the opens that ended while it trained."""
    trainer = Child(workdir.parent / "train.txt", "train", workdir, cache, steps)
    while trainer.process.poll() is None and not list(workdir.glob("checkpoints/[0-9]*")):
        time.sleep(0.05)
    each = -(-opens // readers)
    reading = [
        Child(workdir.parent / f"read-{i}.txt", "read", workdir, cache, i, each)
        for i in range(readers)
    ]
    trained = trainer.finish()
    ended = time.time()
    (workdir.parent / STOP).touch()
    rows = []
    for done in [child.finish() for child in reading]:
        lines = [line for line in done.text.splitlines() if line.startswith('{"kind"')]
        rows += [row for row in map(json.loads, lines) if row["end"] < ended]
        if done.code or any('"traceback"' in line for line in lines):
            print(done.text[-4000:], file=sys.stderr, flush=True)
    return trained, sorted(rows, key=lambda row: row["end"])


def _write_photos(cache: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes some images of the training data, for predict."""
    from PIL import Image

    from agejax.data import opening

    images = opening.open_source(faults.get_config(cache).data).images
    paths = [folder / f"photo-{i}.png" for i in range(PHOTOS)]
    for image, path in zip(images, paths, strict=False):
        Image.fromarray(image).save(path)
    return paths


def table(result: dict[str, Any]) -> str:
    """One row per kind of open, and one line about the trainings."""
    by_kind = collections.defaultdict(list)
    for row in result["rows"]:
        by_kind[row["kind"]].append(row)
    lines = [
        "| opened by | n | done | one line | traceback | seconds, mean | steps, different ones |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, rows in sorted(by_kind.items()):
        outcomes = collections.Counter(row["outcome"] for row in rows)
        seconds = sum(row["end"] - row["start"] for row in rows) / len(rows)
        steps = len({(row["training"], row["step"]) for row in rows} - {(1, None)})
        lines.append(
            f"| {kind} | {len(rows)} | {outcomes['done']} | {outcomes['one line']} | "
            f"{outcomes['traceback']} | {seconds:.2f} | {steps if kind != 'predict' else ''} |"
        )
    trainings = result["trainings"]
    alive, equal = (sum(map(test, trainings)) for test in (
        lambda t: t["code"] == 0, lambda t: t["bit_equal"]))  # fmt: skip
    lines.append(
        f"\n{len(trainings)} training(s) of {result['steps']} steps, each saved: {alive} lived to "
        f"the end, {equal} with the parameters of the training that nothing looked at."
    )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    if argv[1:2] == ["--child"]:
        what, workdir, cache, *numbers = argv[2:]
        child = {"train": train_child, "read": read_child}[what]
        child(pathlib.Path(workdir), pathlib.Path(cache), *map(int, numbers))
        return
    parser = argparse.ArgumentParser(
        prog="python -m experiments.storm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--opens", type=int, default=200)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args(argv[1:])
    result = storm(args.opens, args.readers, args.steps)
    files.write_json(args.output.with_suffix(".json"), result)
    files.write_text(args.output.with_suffix(".md"), table(result))
    print(table(result) + json.dumps({"written": str(args.output.with_suffix(".json"))}))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
