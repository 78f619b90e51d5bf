"""How often intervals hold the truth, in simulation: python -m experiments.benchmarks.intervals

Bootstrap intervals of a mean absolute error, of images in groups of copies that share an error; and
conformal intervals of ages whose error grows with the age. Recorded in
experiments/results/intervals.json.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from agejax import metrics
from agejax.calibration import Calibration
from agejax.errors import run_command
from agejax.logging import records
from experiments.arms import commit

MEAN = 5.0  # years, of the simulated errors


def bootstrap_coverage(groups: int, trials: int) -> float:
    """The share of trials whose interval holds the true mean."""
    rng = np.random.default_rng(groups)
    held = 0
    for trial in range(trials):
        sizes = rng.integers(1, 5, groups)
        errors = np.repeat(rng.exponential(MEAN, groups), sizes)
        errors += rng.normal(0, 0.5, len(errors))
        everything = np.ones((len(errors), 1), bool)
        copies = np.repeat(np.arange(groups), sizes)
        ((low, high),) = metrics.bootstrap(errors, everything, copies, seed=trial)
        held += low <= MEAN <= high
    return held / trials


def conformal_coverage(images: int, trials: int) -> dict[str, Any]:
    """The mean share of new images whose interval holds the age, of all and by decade."""
    rng = np.random.default_rng(images)
    shares: dict[str, list[float]] = {}
    for _ in range(trials):
        age = rng.gamma(4.0, 8.5, 2 * images).clip(1, 100)
        predicted = age + rng.normal(0, 2 + age / 10)
        val, test = slice(images), slice(images, None)
        fitted = Calibration.fit(
            {"age": predicted[val]}, {"age": age[val]}, np.arange(images), step=0
        )
        low, high = fitted.intervals({"age": predicted[test]})["age"]
        held = (low <= age[test]) & (age[test] <= high)
        shares.setdefault("all", []).append(held.mean())
        for name, part in metrics.decades(predicted[test]):
            if part.sum() >= metrics.SMALLEST_GROUP:
                shares.setdefault(name, []).append(held[part].mean())
    return {name: float(np.mean(values)) for name, values in shares.items()}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.intervals")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--output", default="experiments/results/intervals.json")
    args = parser.parse_args(argv[1:])
    result = {
        "command": "python -m experiments.benchmarks.intervals",
        "commit": commit(),
        "trials": args.trials,
        "bootstrap": {
            "claimed": 0.95,
            "groups of copies": {n: bootstrap_coverage(n, args.trials) for n in (150, 400, 1000)},
        },
        "conformal": {
            "claimed": 0.9,
            "validation images": {n: conformal_coverage(n, args.trials // 10) for n in (200, 1900)},
        },
    }
    print(result)
    records.write_json(pathlib.Path(args.output), result)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
