"""python -m experiments.benchmarks.throughput [--output=experiments/results/throughput.json]

How fast the train step, the loop, augmentation, the cache and the host are on this machine.
Contestants take turns in one process, so that a noisy machine spoils all of them alike; what is
quoted is the median of the per-turn ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import numpy as np
import optax

from agejax import heads as heads_lib
from agejax import optim, sharding, step
from agejax import state as state_lib
from agejax.config import default
from agejax.data import pipeline, sampling
from agejax.data.sources import Source
from agejax.logging.stopwatch import Stopwatch
from agejax.logging.train_log import TrainLog
from agejax.models import layers, pretrained
from experiments.arms import commit

SIZE, BATCH = 128, 64
LIGHT = {
    "flip": 0.5, "crop": (0.75, 1.0), "rotate": 10.0,
    "brightness": 0.2, "contrast": 0.2, "saturation": 0.2,
}  # fmt: skip


def make_config(**augment: Any) -> Any:
    """MobileNetV3-Small with the three heads, as configs/mobilenet_v3_utk.py has it."""
    config = default()
    config.heads.age = {"kind": "regression"}
    config.heads.gender = {"kind": "binary", "weight": 0.25}
    config.heads.ethnicity = {"kind": "categorical", "weight": 0.25}
    config.augment.update(augment)
    return pretrained.settle(config)


def random_source(n: int, folder: pathlib.Path) -> Source:
    """n random images in a memory-mapped file, as a prepared source has them."""
    rng = np.random.default_rng(0)
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(n, SIZE, SIZE, 3)
    )
    for start in range(0, n, 1000):
        images[start : start + 1000] = rng.integers(
            0, 256, (min(1000, n - start), SIZE, SIZE, 3), np.uint8
        )
    labels = {
        "age": rng.uniform(1, 90, n).astype(np.float32),
        "gender": rng.integers(0, 2, n).astype(np.int32),
        "ethnicity": rng.integers(0, 5, n).astype(np.int32),
        "apparent_age": np.full(n, np.nan, np.float32),
        "apparent_age_std": np.full(n, np.nan, np.float32),
    }
    names = {"gender": ("male", "female"), "ethnicity": tuple("abcde")}
    ids = np.array([f"{i:06d}" for i in range(n)])
    return Source("random", images, labels, ids, np.arange(n), names, "random", ())


class Contestant:
    """A jitted train step with its own state."""

    def __init__(self, config: Any, source: Source, plain: bool = False) -> None:
        facts = heads_lib.Facts.of(source.labels, source.label_names)
        self.mesh = sharding.create_mesh(config.sharding.devices or 1, 1)
        with layers.plain_lowering() if plain else layers.platform_lowering():
            model, initialise = state_lib.create_model(
                config, heads_lib.create(config.heads, facts)
            )
            optimizer = optim.create_optimizer(
                config.optim, optax.constant_schedule(1e-4), model.parameters
            )
            like = state_lib.abstract(config, initialise, optimizer, self.mesh)
            self.step = step.make_train_step(config, model, optimizer, like)
            self.state = state_lib.create(config, initialise, optimizer, self.mesh)
            self.batch = sharding.put_batch(pipeline.gather(source, np.arange(BATCH)), self.mesh)
            self.turn(1)  # compiles

    def turn(self, steps: int) -> float:
        """Seconds a step on the resident batch, over `steps` steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / steps


class Loop(Contestant):
    """The same step as `train` runs it: batches from the cache, logging, TensorBoard."""

    def __init__(self, config: Any, source: Source, folder: pathlib.Path) -> None:
        sampler = sampling.Sampler(None, len(source.ids), 0)
        rows = np.arange(len(source.ids))
        self.batches = pipeline.TrainBatches(source, rows, sampler, BATCH)
        self.folder, self.turns = folder, 0
        super().__init__(config, source)

    def turn(self, steps: int) -> float:
        clock = Stopwatch()
        read = self.batches.iterate(0, 10**6, 0)
        next(read)  # the readers are running
        self.turns += 1
        folder = self.folder / f"turn{self.turns}"
        folder.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            log = TrainLog(
                folder,
                start_step=0,
                total_steps=10**6,
                batch_size=BATCH,
                steps_per_epoch=1e3,
                clock=clock,
            )
        with log, clock("step"):
            start = time.perf_counter()
            for i in range(steps):
                with clock("input"):
                    batch = sharding.put_batch(next(read), self.mesh)
                self.state, sums = self.step(self.state, batch)
                log.add(i + 1, sums)
                if i % 5 == 4:
                    log.report()
            log.flush()
            jax.block_until_ready(self.state)
            seconds = (time.perf_counter() - start) / steps
        read.close()
        return seconds


def alternate(turns: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contestant's turns, A B C, C B A, A B C, ..."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(repeats):
        for name in list(turns)[:: 1 if i % 2 == 0 else -1]:
            seconds[name].append(turns[name]())
    return seconds


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median, minimum and maximum of the per-turn ratios."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def cache_images_per_second(source: Source, batch: int = 256, batches: int = 60) -> float:
    """Images/s of the pipeline alone, shuffled batches from the decoded cache."""
    sampler = sampling.Sampler(None, len(source.ids), 0)
    pipe = pipeline.TrainBatches(source, np.arange(len(source.ids)), sampler, batch)
    read = pipe.iterate(0, 10**6, 0)
    for _ in range(5):
        next(read)
    start = time.perf_counter()
    for _ in range(batches):
        next(read)
    seconds = time.perf_counter() - start
    read.close()
    return batch * batches / seconds


def host_milliseconds(loop: Loop, steps: int = 20) -> float:
    """Median milliseconds until the host is free again after it has sent off a step.

    With the device idle before each step: taking a read batch, putting it on the device,
    dispatching the step and remembering its sums.
    """
    read = loop.batches.iterate(0, 10**6, 0)
    next(read)
    milliseconds, window = [], []
    for _ in range(steps):
        jax.block_until_ready(loop.state)
        start = time.perf_counter()
        batch = sharding.put_batch(next(read), loop.mesh)
        loop.state, sums = loop.step(loop.state, batch)
        window.append(sums)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    read.close()
    return statistics.median(milliseconds)


def in_processes(repeats: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step in processes that keep freed memory (`agejax.memory`), and that give it back.

    Any variable MALLOC_... stops the first; this one, at 0, is otherwise what it is without.
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
    """Seconds a step of one contestant, in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        contestant = Contestant(make_config(), random_source(BATCH, pathlib.Path(temporary)))
        contestant.turn(steps)
        return contestant.turn(steps)


def measure(repeats: int, steps: int) -> dict[str, Any]:
    """Every figure of this page, as JSON data."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        source = random_source(4000, folder)
        plain = Contestant(make_config(), source, plain=True)
        fast = Contestant(make_config(), source)
        light = Contestant(make_config(**LIGHT), source)
        loop = Loop(make_config(), source, folder)
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
            "what": f"MobileNetV3-Small, batch {BATCH}, {SIZE} px, float32, three heads, AdamW",
            "images_per_second": {
                name: BATCH / statistics.median(values) for name, values in seconds.items()
            },
            "step_over_plain": ratio(seconds["step with plain convolutions"], seconds["step"]),
            "loop_over_step": ratio(seconds["step"], seconds["loop"]),
            "augmentation_share_of_step": {
                k: v - 1
                for k, v in ratio(seconds["step with augmentation"], seconds["step"]).items()
            },
            "memory_kept_over_given_back": ratio(memory["given back"], memory["kept"]),
            "cache_images_per_second": cache_images_per_second(source),
            "host_milliseconds_per_step": host_milliseconds(loop),
            "repeats": repeats,
            "steps_a_turn": steps,
            "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
            "jax": metadata.version("jax"),
            "commit": commit(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
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
