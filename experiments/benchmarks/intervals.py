"""Coverage of intervals, in simulation: python -m experiments.benchmarks.intervals

Bootstrap intervals of a mean absolute error, for images in groups of copies that share an error;
of the gap between groups, and of the mean of 26 cells; exact intervals of challenge ages; intervals
of comparisons over seeds and images; and conformal intervals of ages whose error grows with the
age. Recorded in experiments/results/intervals.json.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from agejax import files
from agejax.evaluation import bootstrap, gaps, gates, headlines, metrics, replicates
from agejax.evaluation.calibration import Calibration
from agejax.process.command import run_command
from experiments import arms

RESAMPLES = 400  # resamples of images, in a trial of intervals over seeds
MEAN = 5.0  # years, of the simulated errors
GROUPS = (300, 200, 150, 100, 100, 60)  # photos of the groups whose gap is simulated
LOOKS = (16.0, 4.0)  # years: mean and standard deviation of how old simulated minors look


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


def gap_coverage(means: Sequence[float], trials: int) -> dict[str, float]:
    """The share of trials whose intervals hold the true gap and the true ratio.

    Args:
      means: the groups' true mean errors, years; each photo has one to three copies.
    """
    rng = np.random.default_rng(len(means))
    true = {"difference": max(means) - min(means), "ratio": max(means) / min(means)}
    held = dict.fromkeys(true, 0)
    of_photo = np.repeat(np.arange(len(GROUPS)), GROUPS)
    for trial in range(trials):
        copies = np.repeat(np.arange(len(of_photo)), rng.integers(1, 4, len(of_photo)))
        errors = rng.exponential(np.asarray(means)[of_photo])[copies]
        parts = {"x": [(str(i), of_photo[copies] == i) for i in range(len(GROUPS))]}
        known = np.ones(len(errors), bool)
        found = gaps.measure(errors, known, parts, copies, seed=trial)["x"]
        for name, value in true.items():
            low, high = found[f"{name}_ci95"]
            held[name] += low <= value <= high
    return {name: count / trials for name, count in held.items()}


def cells_coverage(images: int, trials: int) -> float:
    """The share of trials whose interval holds the true mean of 26 cells.

    Args:
      images: in the smallest cells, at 18 and at 30; the others hold up to six times as many.
    """
    rng = np.random.default_rng(images)
    ages = np.array([*headlines.CELL_YEARS], float)
    size = images * np.round(1 + 5 * np.sin(np.pi * (ages - ages[0]) / np.ptp(ages))).astype(int)
    scale = 2 + (ages - ages[0]) / 3  # years: cells differ in their errors
    age = np.repeat(np.concatenate([ages, ages]), np.concatenate([size, size]))
    sexes = [(name, np.arange(len(age)) // size.sum() == i) for i, name in enumerate("mf")]
    held = 0
    for trial in range(trials):
        predicted = age + rng.normal(0, np.interp(age, ages, scale))
        found = headlines.measure(age, predicted, sexes, np.arange(len(age)), seed=trial)
        low, high = found["cells"]["mae_ci95"]
        held += low <= np.sqrt(2 / np.pi) * scale.mean() <= high
    return held / trials


def challenge_age_coverage(minors: int, limit: float, trials: int) -> dict[str, float]:
    """The share of trials whose interval holds the true challenge age, and has an upper end."""
    rng = np.random.default_rng(minors)
    true = math.ceil(stats.norm.isf(limit, *LOOKS))
    held = ended = 0
    for _ in range(trials):
        looks = rng.normal(*LOOKS, minors)
        (row,) = gates.challenge_ages(np.full(minors, 15.0), looks, np.arange(minors), [limit])
        low, high = row["ci95"]
        held += low <= true and (high is None or true <= high)
        ended += high is not None
    return {"held": held / trials, "with an upper end": ended / trials}


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
        "gap between six groups": {
            "claimed": 0.95,
            "trials": args.trials // 2,
            "true means, years": {
                ", ".join(f"{mean:g}" for mean in means): gap_coverage(means, args.trials // 2)
                for means in ((3.0,) * 6, (3.0,) * 5 + (4.5,), (2.0, 2.5, 3.0, 3.5, 4.0, 6.0))
            },
        },
        "mean of 26 cells": {
            "claimed": 0.95,
            "trials": args.trials // 2,
            "images in the smallest cell": {
                n: cells_coverage(n, args.trials // 2) for n in (2, 5, 20)
            },
        },
        "challenge age": {
            "claimed": 0.95,
            "trials": args.trials // 2,
            "minors and the share let in": {
                f"{n}, {limit:.0%}": challenge_age_coverage(n, limit, args.trials // 2)
                for n in (120, 400, 1000)
                for limit in gates.LIMITS
            },
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
