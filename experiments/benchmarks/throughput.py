"""python -m experiments.benchmarks.throughput [--output=experiments/results/throughput.json]

Measures the speed of the train step, the loop, augmentation, the cache and the host on this
machine. Contestants take turns in one process, so that a noisy machine affects all alike; the
figures are medians of the per-turn ratios.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from typing import Any

import jax
import numpy as np

from agejax.data.sources import Source
from agejax.training import sharding
from experiments.arms import commit
from experiments.benchmarks.contestants.case import Case
from experiments.benchmarks.contestants.ours import (
    ENDLESS,
    LIGHT,
    Loop,
    TrainStep,
    as_source,
    make_config,
    read_ahead,
)
from experiments.benchmarks.turns import alternate, ratio

CASE = Case()


def random_source(n: int, size: int, folder: pathlib.Path) -> Source:
    """A source of n random images of `size` pixels in a memory-mapped file, like a prepared one."""
    rng = np.random.default_rng(0)
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(n, size, size, 3)
    )
    for start in range(0, n, 1000):
        images[start : start + 1000] = rng.integers(
            0, 256, (min(1000, n - start), size, size, 3), np.uint8
        )
    labels = {
        "age": rng.uniform(1, 90, n).astype(np.float32),
        "gender": rng.integers(0, 2, n).astype(np.int32),
        "ethnicity": rng.integers(0, 5, n).astype(np.int32),
    }
    return as_source(images, labels)


def cache_images_per_second(source: Source, batch: int = 256, batches: int = 60) -> float:
    """Images/s of the pipeline alone: shuffled batches from the decoded cache."""
    read = read_ahead(source, batch).iterate(0, ENDLESS, 0)
    for _ in range(5):
        next(read)
    start = time.perf_counter()
    for _ in range(batches):
        next(read)
    seconds = time.perf_counter() - start
    read.close()
    return batch * batches / seconds


def in_processes(repeats: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step in processes that keep freed memory (`process.memory`) or return it.

    Any variable MALLOC_... prevents keeping; this one, at 0, has no other effect.
    """

    def turn(**variables: str) -> float:
        flags = ["--alone", f"--steps={steps}"]
        command = [sys.executable, "-m", "experiments.benchmarks.throughput", *flags]
        environment = os.environ | variables
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout)

    return alternate(
        {"kept": turn, "given back": lambda: turn(MALLOC_ARENA_MAX="0")}, max(3, repeats // 2)
    )


def alone(steps: int) -> float:
    """Seconds per step of one contestant, in its own process."""
    with tempfile.TemporaryDirectory() as temporary:
        source = random_source(CASE.batch, CASE.image_size, pathlib.Path(temporary))
        contestant = TrainStep(make_config(CASE), source)
        contestant.turn(steps)
        return contestant.turn(steps)


def measure(repeats: int, steps: int) -> dict[str, Any]:
    """Measures every figure of this benchmark, as JSON data."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        source = random_source(4000, CASE.image_size, folder)
        plain = TrainStep(make_config(CASE), source, plain=True)
        fast = TrainStep(make_config(CASE), source)
        light = TrainStep(make_config(CASE, **LIGHT), source)
        loop = Loop(make_config(CASE), source, folder)
        seconds = alternate(
            {
                "step": lambda: fast.turn(steps),
                "loop": lambda: loop.turn(steps),
                "step with augmentation": lambda: light.turn(steps),
                "step with plain convolutions": lambda: plain.turn(max(2, steps // 4)),
            },
            repeats,
        )
        memory = in_processes(repeats, steps)
        return {
            "what": f"MobileNetV3-Small, batch {CASE.batch}, {CASE.image_size} px, {CASE.dtype}, "
            "three heads, AdamW",
            "images_per_second": {
                name: CASE.batch / statistics.median(values) for name, values in seconds.items()
            },
            "step_over_plain": ratio(seconds["step with plain convolutions"], seconds["step"]),
            "loop_over_step": ratio(seconds["step"], seconds["loop"]),
            "augmentation_share_of_step": {
                k: v - 1
                for k, v in ratio(seconds["step with augmentation"], seconds["step"]).items()
            },
            "memory_kept_over_given_back": ratio(memory["given back"], memory["kept"]),
            "cache_images_per_second": cache_images_per_second(source),
            "host_milliseconds_per_step": loop.host_milliseconds(),
            "repeats": repeats,
            "steps_a_turn": steps,
            "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
            "jax": metadata.version("jax"),
            "commit": commit(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=20, help="steps per turn")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file; default: print only")
    parser.add_argument("--alone", action="store_true", help="print the seconds of a step")
    args = parser.parse_args()
    if args.alone:
        sharding.start()
        print(alone(args.steps))
        return
    text = json.dumps(measure(args.repeats, args.steps), indent=2) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
