"""Coverage of intervals, in simulation: python -m experiments.benchmarks.intervals

Bootstrap intervals of a mean absolute error, for images in groups of copies that share an error;
intervals of comparisons over seeds and images; and conformal intervals of ages whose error grows
with the age. Recorded in experiments/results/intervals.json.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from agejax import files
from agejax.evaluation import bootstrap, metrics, replicates
from agejax.evaluation.calibration import Calibration
from agejax.process.command import run_command
from experiments import arms

RESAMPLES = 400  # resamples of images, in a trial of intervals over seeds
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
        ((low, high),) = bootstrap.intervals(errors, everything, copies, seed=trial)
        held += low <= MEAN <= high
    return held / trials


def seeds_coverage(
    seeds: int, ratio: float, paired: bool, trials: int, images: int = 200
) -> dict[str, float]:
    """The share of trials whose 95 % interval over seeds and images holds the true mean.

    An error is the sum of the mean, a part of the image (skewed, with variance 1), a part of the
    seed on that image, and a part of the seed, whose mean over seeds has `ratio` times the variance
    that the images give the mean.

    Args:
      paired: the errors are differences of two arms. Most of an image's part is the same in both
        and cancels: a tenth is left, and the part of a seed on an image is the larger one.

    Returns:
      {"joined": by `replicates.mean_interval`, "percentile": by a percentile bootstrap over seeds
      and images, "recovered": by `arms.images_of_percentile` from that, "welch": with the degrees
      of freedom of Welch and Satterthwaite}.
    """
    rng = np.random.default_rng([seeds, round(100 * ratio), paired])
    of_image, of_both = (0.1, 1.0) if paired else (1.0, 0.3)
    of_seed = ratio * (of_image / images) * seeds
    held = dict.fromkeys(("joined", "percentile", "recovered", "welch"), 0)
    for _ in range(trials):
        errors = np.sqrt(of_image) * (rng.exponential(1, images) - 1)
        errors = errors + rng.normal(0, np.sqrt(of_both), (seeds, images))
        errors += rng.normal(0, np.sqrt(of_seed), (seeds, 1))
        times = rng.multinomial(images, np.full(images, 1 / images), RESAMPLES)
        resampled = times @ errors.T / images
        figure = replicates.joined(errors.mean(axis=1), resampled, images)
        drawn = rng.integers(seeds, size=(RESAMPLES, seeds))
        means = np.take_along_axis(resampled, drawn, axis=1).mean(axis=1)
        percentile = np.percentile(means, [2.5, 97.5]).tolist()
        a = np.var(figure["seeds"], ddof=1) / seeds
        b = (np.ptp(figure["images95"]) / 2 / replicates.Z) ** 2
        freedom = (a + b) ** 2 / (a**2 / (seeds - 1) + b**2 / (images - 1))
        half = stats.t.ppf(0.975, freedom) * np.sqrt(a + b)
        intervals = {
            "joined": figure["ci95"],
            "percentile": percentile,
            "recovered": replicates.over_seeds(
                figure["seeds"], arms.images_of_percentile(figure["seeds"], percentile)
            ),
            "welch": (figure["mean"] - half, figure["mean"] + half),
        }
        for name, (low, high) in intervals.items():
            held[name] += low <= 0 <= high
    return {name: count / trials for name, count in held.items()}


def conformal_coverage(images: int, trials: int) -> dict[str, Any]:
    """The mean share of new images whose interval holds the age: overall and by decade."""
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
        "commit": arms.commit(),
        "trials": args.trials,
        "bootstrap": {
            "claimed": 0.95,
            "groups of copies": {n: bootstrap_coverage(n, args.trials) for n in (150, 400, 1000)},
        },
        "over seeds and images": {
            "claimed": 0.95,
            "the seeds' share of the variance over the images'": {
                f"{'difference' if paired else 'mean'}, {k} seeds, {ratio:g}": seeds_coverage(
                    k, ratio, paired, args.trials // 2
                )
                for paired in (False, True)
                for k in (2, 3, 5)
                for ratio in (0, 0.3, 1, 3, 10)
            },
        },
        "conformal": {
            "claimed": 0.9,
            "validation images": {n: conformal_coverage(n, args.trials // 10) for n in (200, 1900)},
        },
    }
    print(result)
    files.write_json(pathlib.Path(args.output), result)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
