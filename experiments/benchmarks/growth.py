"""python -m experiments.benchmarks.growth [--only=REGEX] [--output=experiments/results/growth]

Measures how speed, memory and start-up time grow with the data (20 thousand, 200 thousand and 2
million examples of 32 px), with the batch (8 to 1,024 images of 64 px) and with the number of
devices (1 to 8 simulated ones that share a CPU's cores: they show the cost of more devices, not a
speed-up). Every point runs in a process with its own peak memory. Writes OUTPUT.json and .md.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from agejax import files
from agejax.errors import UserError
from agejax.process.command import run_command
from experiments.arms import commit
from experiments.memory import Peak

OUTPUT = pathlib.Path(__file__).parents[1] / "results" / "growth"
POINTS: dict[str, dict[str, int]] = {
    **{f"data {n:,}": {"examples": n} for n in (20_000, 200_000, 2_000_000)},
    **{f"batch {n:,}": {"batch": n} for n in (8, 16, 32, 64, 128, 256, 512, 1024)},
    **{f"devices {n}": {"batch": 64, "devices": n} for n in (1, 2, 4, 8)},
}
EDGE = 32  # pixels, for the points that vary the data


def data(examples: int) -> dict[str, float]:
    """Measures the way from labels in memory to training batches.

    The images are a sparse file, which the kernel reads as zeros, as fast as a cache that has been
    read before.
    """
    from agejax.config import default
    from agejax.data import draws, pipeline, sampling, splits
    from agejax.data.sources import Source
    from experiments.benchmarks.sampler import labelled

    config = default()
    config.sampling.kind = "density"
    with tempfile.NamedTemporaryFile() as file:
        shape = (examples, EDGE, EDGE, 3)
        images = np.memmap(file.name, np.uint8, "w+", shape=shape)
        without = labelled(examples)
        source = Source(
            "growth", images, without.labels, np.char.mod("%08d", np.arange(examples)),
            np.arange(examples), without.label_names, "growth", (),
        )  # fmt: skip
        start = time.perf_counter()
        rows = splits.make(source, config.data.split)["train"]
        split = time.perf_counter()
        sampler = sampling.Sampler(*draws.weigh(config.sampling, source, rows), 0)
        sampled = time.perf_counter()
        read = pipeline.TrainBatches(source, rows, sampler, 256).iterate(0, 10**6, 0)
        next(read)
        first = time.perf_counter()
        for _ in range(20):
            next(read)
        warm, batches = time.perf_counter(), 400
        for _ in range(batches):
            next(read)
        seconds = time.perf_counter() - warm
        read.close()
    return {
        "seconds to split": split - start,
        "seconds to sampler": sampled - split,
        "seconds to first batch": first - sampled,
        "images/s": 256 * batches / seconds,
    }


def steps(batch: int, devices: int = 1) -> dict[str, float]:
    """Measures MobileNetV3-Small's train step at 64 px on a resident batch."""
    from experiments.benchmarks.contestants import ours
    from experiments.benchmarks.contestants.case import Case
    from experiments.benchmarks.throughput import random_source

    config = ours.make_config(Case(image_size=64, batch=batch))
    config.sharding.devices = devices
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        source = random_source(batch, 64, pathlib.Path(folder))
        contestant = ours.TrainStep(config, source)
        ready = time.perf_counter() - start
    count = max(4, 2048 // batch)
    contestant.turn(count)
    seconds = min(contestant.turn(count) for _ in range(3))
    memory = contestant.step.lower(contestant.state, contestant.batch).compile().memory_analysis()
    return {
        "seconds to first step": ready,
        "images/s": batch / seconds,
        "MiB of temporaries, a device": memory.temp_size_in_bytes / 2**20,
    }


def point(examples: int = 0, **sizes: int) -> dict[str, float]:
    """Measures one row in this process."""
    with Peak() as peak:
        figures = data(examples) if examples else steps(**sizes)
    return figures | {"MiB at the peak, without files": peak.bytes / 2**20}


def measure(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Measures each point in its own process."""
    rows = {}
    with tempfile.TemporaryDirectory() as cache:  # so that each point compiles
        for name in names:
            devices = POINTS[name].get("devices", 1)
            environment = os.environ | {
                "AGEJAX_CACHE": cache,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            }
            command = [sys.executable, "-m", "experiments.benchmarks.growth", f"--point={name}"]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            rows[name] = json.loads(done.stdout)
            print(name, rows[name], flush=True)
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """A table for each quantity that grows."""
    parts = []
    for kind in ("data", "batch", "devices"):
        mine = {name: row for name, row in rows.items() if name.startswith(kind)}
        if mine:
            columns = list(next(iter(mine.values())))
            lines = [f"| {kind} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
            for name, row in mine.items():
                cells = [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in row.values()]
                lines.append(f"| {name.removeprefix(kind).strip()} | {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="regex of the points")
    parser.add_argument("--point", choices=POINTS, help="measure this one here and print it")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args(argv[1:])
    if args.point:
        print(json.dumps(point(**POINTS[args.point])))
        return
    names = [name for name in POINTS if re.search(args.only, name)]
    if not names:
        raise UserError(f"--only={args.only}: there are {', '.join(POINTS)}")
    rows = measure(names)
    result = {"command": "python -m experiments.benchmarks.growth", "commit": commit()}
    files.write_json(args.output.with_suffix(".json"), result | {"rows": rows})
    files.write_text(args.output.with_suffix(".md"), table(rows))
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
