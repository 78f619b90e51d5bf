"""What a step costs the host: CPU time of the thread that trains, whatever the device takes:

    python -m experiments.benchmarks.host [--output=experiments/results/host.json]

Trains by `agejax.train` on drawn faces, with batches from the host and with data on the device, a
step and several steps per call. The loop's thread reads its own CPU clock between any two calls. So
all that the thread does counts (the next batch, dispatch, the log and its rows), and what other
threads do does not: reading, and on a CPU the step itself. The network is small: its arrays lie in
as many vectors as those of a large one. The images that are put on the device are of usual size.

On a CPU the step empties the caches that the loop's thread needs, which an accelerator's step does
not. So every row is measured with an empty step too, of the same arguments and results.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections

from agejax import files
from agejax.config import default
from agejax.configs import quickstart
from agejax.logging.watchdog import Watchdog
from agejax.process.command import run_command
from agejax.train import train
from agejax.training import sharding
from agejax.training import step as step_lib
from experiments.arms import commit

EDGE, SIZE, BATCH = 200, 32, 64  # pixels of stored images and of the network's; images per step
STEPS_PER_CALL = (1, 8)
CALLS = 32
LOG_EVERY = 32  # steps
WARM_UP = 3  # calls
MAKE_TRAIN_STEP = step_lib.make_train_step


def get_config(mode: str, steps: int) -> ml_collections.ConfigDict:
    """The training of a row; its log, but no evaluation and no checkpoint, lies within."""
    config = quickstart.get_config()
    config.data.options = {"count": 200}
    config.data.image_size, config.model.image_size = EDGE, SIZE
    config.model.name, config.model.options = "mlp", {"widths": (64,)}
    config.augment, config.optim.ema = default().augment, 0.99
    config.data.batch_size = BATCH
    config.data.resident, config.steps_per_call = mode, steps
    config.log_every = {"steps": LOG_EVERY}
    config.total = {"steps": -(-CALLS * steps // LOG_EVERY) * LOG_EVERY}
    config.eval.every = config.checkpoint.every = {"percent": 100.0}
    config.sharding.devices = 1
    return config


def make_empty_step(
    config: Any, model: Any, optimizer: Any, like: Any, *, steps: int = 1, **settings: Any
) -> jax.stages.Wrapped:
    """As `make_train_step`: a call that takes and gives the same arrays and computes nothing."""
    whole = MAKE_TRAIN_STEP(config, model, optimizer, like, steps=steps, **settings)

    def call(state: Any, batch: Any) -> Any:
        _, sums = jax.eval_shape(whole, state, batch)
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), sums)
        return dataclasses.replace(state, step=state.step + steps), ones

    return jax.jit(call, donate_argnums=0, keep_unused=True)


STEPS = {"whole": MAKE_TRAIN_STEP, "empty": make_empty_step}


def measure(mode: str, steps: int, step: str) -> dict[str, Any]:
    """A row of JSON data: milliseconds of the loop's thread per step."""
    clock: list[float] = []
    feed = Watchdog.feed

    def noted(self: Watchdog) -> None:
        clock.append(time.thread_time())  # the loop feeds the watchdog before each call
        feed(self)

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Watchdog, "feed", noted),
        mock.patch.object(step_lib, "make_train_step", STEPS[step]),
    ):
        train(get_config(mode, steps), pathlib.Path(folder) / "run")
    # The last two are around the last call, after which val is evaluated, and the first ones
    # compile.
    taken = [b - a for a, b in zip(clock[WARM_UP:-1], clock[WARM_UP + 1 : -1], strict=False)]
    each = [1e3 * seconds / steps for seconds in taken]
    return {
        "data": "resident" if mode == "on" else "streamed",
        "steps_per_call": steps,
        "step": step,
        "calls": len(each),
        "least": min(each),
        "median": statistics.median(each),
        "mean": statistics.fmean(each),
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.host",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file; default: print only")
    args = parser.parse_args(argv[1:])
    sharding.start()
    result = {
        "what": f"mlp, batch {BATCH}, stored images of {EDGE} px, network of {SIZE} px; CPU "
        "milliseconds of the loop's thread per step",
        "rows": [measure(*row) for row in itertools.product(("off", "on"), STEPS_PER_CALL, STEPS)],
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in ("jax", "flax")},
        "commit": commit(),
    }
    print(json.dumps(result, indent=2))
    if args.output:
        files.write_json(args.output, result)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
