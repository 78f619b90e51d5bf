"""Evaluation against its forward pass: python -m experiments.benchmarks.evaluation --workdir=RUN
    [--images=2000]

Images/s of `evaluate` over a split, from the decoded cache, against the jitted forward pass on
batches already on the device, in alternating turns; and how long the report takes. Recorded in
experiments/results/evaluation.json.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from agejax import files
from agejax.data import pipeline
from agejax.evaluation import fitting
from agejax.evaluation.scored import Scored, open_data, score_rows
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs.ensembles import open_run
from agejax.training import sharding
from experiments.arms import commit

TURNS = 7


def bare(scored: Scored) -> float:
    """Images/s of the forward pass over equally many batches, without reading or fetching."""
    run, size = scored.run, scored.run.batch_size
    host = next(pipeline.evaluation_batches(scored.source, scored.rows[:size], size))
    batch = sharding.put_batch(host, run.mesh)
    jax.block_until_ready(run.eval_step(run.params, run.batch_stats, batch))
    rounds = -(-len(scored.rows) // size)
    start = time.perf_counter()
    for _ in range(rounds):
        said = run.eval_step(run.params, run.batch_stats, batch)
    jax.block_until_ready(said)
    return rounds * size / (time.perf_counter() - start)


def measure(workdir: str, source: str | None, images: int) -> dict[str, Any]:
    """Measures every figure of this benchmark on the data's first images, as JSON data."""
    run = open_run(workdir)
    data = open_data(run, None, source)
    rows = np.arange(min(images, len(data.ids)))
    turns = []
    for _ in range(TURNS):
        scored = score_rows(run, data, rows, "all")
        turns.append((scored.images_per_second, bare(scored)))
    calibration = fitting.calibrate(run, data)
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        results.publish(scored, pathlib.Path(folder), calibration)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    ratios = [ours / forward for ours, forward in turns]
    model = run.config.model
    return {
        "what": f"{len(rows):,} images, {model.name} at {model.image_size} px, batches of "
        f"{run.batch_size}; {TURNS} alternating turns",
        "evaluate_images_per_second": float(np.median([ours for ours, _ in turns])),
        "forward_images_per_second": float(np.median([forward for _, forward in turns])),
        "evaluate_over_forward": {
            "median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios),
        },
        "report_seconds": seconds,
        "report_cpu_seconds": cpu,
        "device": f"{run.mesh.devices.flat[0].device_kind}, {run.mesh.size} device(s)",
        "commit": commit(),
    }  # fmt: skip


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.evaluation")
    parser.add_argument("--workdir", required=True, help="a trained run")
    parser.add_argument("--source", help="where its data lies now")
    parser.add_argument("--images", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--output", default="experiments/results/evaluation.json")
    args = parser.parse_args(argv[1:])
    sharding.start()
    result = measure(args.workdir, args.source, args.images)
    files.write_json(pathlib.Path(args.output), result)
    print({k: v for k, v in result.items() if k != "what"})


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
