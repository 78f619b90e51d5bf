"""The arms of a comparison: trained one after the other, scored on the same images, compared.

An arm is a config. Each trains once a seed in FOLDER/ARM/seed-N, goes on from where it was stopped,
and is skipped when its scores are there, so that the same command may be given again at any time.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import pathlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from agejax import evaluate, sharding, train
from agejax.logging import records
from agejax.metrics import RESAMPLES

Arms = Mapping[str, ml_collections.ConfigDict]


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The arguments that comparisons on UTKFace from ImageNet weights have in common."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", required=True, help="UTKFace.tar.gz")
    parser.add_argument("--pretrained", required=True, help="the ImageNet weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", default=f"runs/{name}")
    return parser


def run(
    arms: Arms,
    seeds: Sequence[int],
    folder: pathlib.Path,
    split: str,
    prepare: Mapping[str, Callable[[pathlib.Path], None]] | None = None,
) -> dict[str, Scores]:
    """Trains and scores what is not done yet.

    Args:
      split: of each arm's own data, which must be the same images for all.
      prepare: of some arms, what to call with `folder` before they are trained.

    Returns:
      arm -> its predictions.

    Raises:
      UserError: as in training.
      SystemExit: SIGTERM or SIGINT stopped an arm; the same call goes on with it.
    """
    sharding.start()  # the compile cache: an arm's seeds share their programs
    for seed in seeds:  # the outer loop, so that what is there of a long comparison is fair
        for name, config in arms.items():
            workdir = folder / name / f"seed-{seed}"
            if (workdir / "scores" / "metrics.json").exists():
                continue
            print(f"==== {name}, seed {seed} ====", flush=True)
            if prepare and name in prepare:
                prepare[name](folder)
            seeded = config.copy_and_resolve_references()
            seeded.seed = seed
            if train.train(seeded, workdir) is None:
                raise SystemExit(1)
            records.write_json(workdir / "arm.json", {"commit": commit()})
            scores = workdir / "scores"
            evaluate.evaluate(workdir, split=split, output=scores, write_report=False)
            jax.clear_caches()  # a long list of arms would fill the memory with programs
    return {name: Scores.read([folder / name / f"seed-{seed}" for seed in seeds]) for name in arms}


@dataclasses.dataclass(frozen=True)
class Scores:
    """What an arm's seeds predict for the same images.

    Attributes:
      columns: of predictions.csv but those that differ between seeds: ids, groups, labels. [N]
      predicted: label -> [seeds, N], years or class numbers.
      runs: summary.json of each seed.
      commits: of the code that finished each seed: a long comparison may span several.
    """

    columns: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]
    runs: tuple[dict[str, Any], ...]
    commits: tuple[str, ...]

    @classmethod
    def read(cls, workdirs: Sequence[pathlib.Path]) -> Scores:
        """Of runs that were scored.

        Raises:
          ValueError: they were scored on different images.
        """
        tables = []
        for workdir in workdirs:
            with (workdir / "scores" / "predictions.csv").open() as file:
                rows = list(csv.reader(file))
            tables.append(dict(zip(rows[0], np.array(rows[1:]).T, strict=True)))
        ids = tables[0]["id"]
        if any((table["id"] != ids).any() for table in tables):
            raise ValueError(f"{workdirs[0]} and its like were scored on different images")
        labels = [key.removesuffix("_predicted") for key in tables[0] if "_predicted" in key]
        columns = {"id": ids, "group": tables[0]["group"]}
        columns |= {label: tables[0][label].astype(float) for label in labels}
        predicted = {
            label: np.array([table[f"{label}_predicted"].astype(float) for table in tables])
            for label in labels
        }
        summaries = [json.loads((workdir / "summary.json").read_text()) for workdir in workdirs]
        commits = [json.loads((workdir / "arm.json").read_text())["commit"] for workdir in workdirs]
        return cls(columns, predicted, tuple(summaries), tuple(commits))

    def check_same_images(self, other: Scores) -> None:
        """Raises ValueError where another arm was scored on other images, or in another order.

        A part of a mixture puts its name before the file's.
        """
        pairs = zip(self.columns["id"], other.columns["id"], strict=True)
        if any(not (a.endswith(b) or b.endswith(a)) for a, b in pairs):
            raise ValueError("two arms were scored on different images")

    def losses(self, label: str) -> np.ndarray:
        """[seeds, N]: absolute errors of an age in years, 0 or 1 of a class; NaN: no label."""
        true, predicted = self.columns[label], self.predicted[label]
        if label == "age":
            return np.abs(predicted - true)
        return np.where(true < 0, np.nan, predicted != true)


def mean_interval(
    losses: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The mean over seeds and images, and its 95 % interval.

    The interval resamples seeds, and groups of duplicates of the images (a percentile bootstrap).
    Of the difference of two arms' losses on the same images it is the paired interval.

    Args:
      losses: float [seeds, N]; NaN does not count.
      groups: [N], equal within a group.

    Returns:
      {"mean", "ci95": [low, high], "seeds": the mean of each, "n": images}.
    """
    known = np.isfinite(losses).all(axis=0)
    losses, groups = losses[:, known], groups[known]
    _, group = np.unique(groups, return_inverse=True)
    counts = np.bincount(group)
    sums = np.array([np.bincount(group, row) for row in losses])
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(len(counts), size=len(counts))
        some = rng.integers(len(sums), size=len(sums))
        means[i] = sums[some][:, drawn].sum() / (len(some) * counts[drawn].sum())
    return {
        "mean": float(losses.mean()),
        "ci95": [float(q) for q in np.percentile(means, [2.5, 97.5])],
        "seeds": [float(row.mean()) for row in losses],
        "n": int(known.sum()),
    }


def commit() -> str:
    """The commit that is checked out, with a plus where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
