"""python -m experiments.benchmarks.sampler [--rows=10000000] [--output=FILE]

Measures the cost of each kind of sampling on ten million examples: seconds and memory from labels
to a sampler, and milliseconds per batch of 1,024 row numbers.

The default FILE is experiments/results/sampler.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from agejax.config import default
from agejax.data import draws, sampling
from agejax.data.sources import Source
from experiments.arms import commit

BATCH = 1024
OUTPUT = pathlib.Path(__file__).parents[1] / "results" / "sampler.json"
KINDS: dict[str, dict[str, Any]] = {
    "uniform": {"kind": "uniform"},
    "density": {"kind": "density"},
    "lds, sqrt": {"kind": "lds"},
    "lds, inverse": {"kind": "lds", "reweight": "inverse"},
    "inverse count of the age": {"kind": "inverse"},
    "inverse count of decade x gender x ethnicity": {
        "kind": "inverse",
        "over": ("decade", "gender", "ethnicity"),
    },
    "oversample": {"kind": "oversample"},
}


def labelled(rows: int) -> Source:
    """A source with long-tailed whole ages, two genders, five ethnicities, and no images."""
    rng = np.random.default_rng(0)
    labels = {
        "age": np.floor(np.clip(rng.gamma(4.0, 8.5, rows), 1, 116)).astype(np.float32),
        "gender": rng.integers(0, 2, rows, np.int32),
        "ethnicity": np.minimum(rng.geometric(0.4, rows) - 1, 4).astype(np.int32),
    }
    names = {"gender": ("male", "female"), "ethnicity": tuple("abcde")}
    nothing = np.zeros((0, 1, 1, 3), np.uint8)
    ids = np.zeros(0, str)
    return Source("labels", nothing, labels, ids, np.zeros(0, int), names, "", ())


def cost(make: Callable[[], sampling.Sampler], repeats: int) -> dict[str, float]:
    """Median seconds of `make()`, its peak and remaining memory, and milliseconds per batch."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        sampler = make()
        seconds.append(time.perf_counter() - start)
        del sampler
    tracemalloc.start()  # slow, so it runs separately
    sampler = make()
    stays, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    milliseconds = []
    for step in range(200):
        start = time.perf_counter()
        sampler.indices(np.arange(step * BATCH, (step + 1) * BATCH))
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return {
        "build_seconds": statistics.median(seconds),
        "build_peak_mb": peak / 1e6,
        "sampler_mb": stays / 1e6,
        "batch_ms": statistics.median(milliseconds),
        "batch_ms_p95": float(np.quantile(milliseconds, 0.95)),
    }


def measure(rows: int, repeats: int) -> dict[str, Any]:
    """Measures every figure of this benchmark, as JSON data."""
    source, every = labelled(rows), np.arange(rows)
    weights = np.random.default_rng(1).gamma(2.0, 1.0, rows)
    kinds = {"from given weights": cost(lambda: sampling.Sampler(weights, rows, 0), repeats)}
    for name, changes in KINDS.items():
        config = default().sampling
        config.update(changes)
        kinds[name] = cost(
            lambda c=config: sampling.Sampler(*draws.weigh(c, source, every), 0), repeats
        )
        print(f"{name}: {kinds[name]}", flush=True)
    return {
        "what": f"{rows:,} examples, batches of {BATCH:,} row numbers, medians; build is from "
        "labels to sampler, its memory beside the labels'",
        "kinds": kinds,
        "repeats": repeats,
        "machine": f"{os.cpu_count()} cores, numpy {np.__version__}",
        "commit": commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args()
    text = json.dumps(measure(args.rows, args.repeats), indent=2) + "\n"
    print(text)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text)


if __name__ == "__main__":
    main()
