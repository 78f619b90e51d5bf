"""The arms of a comparison: trains them in turn, scores them on the same images, compares them.

An arm is a config. It trains once per seed in FOLDER/ARM/seed-N, resumes where it was stopped, and
is skipped once its scores exist, so that the same command may be repeated at any time.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from scipy import optimize, stats

from agejax import files
from agejax.errors import UserError
from agejax.evaluation import bootstrap, metrics
from agejax.evaluation.bootstrap import RESAMPLES
from agejax.labels import LABELS
from agejax.reporting import results
from agejax.train import train
from agejax.training import sharding


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a comparison: a config to train, or something made from earlier arms.

    Attributes:
      config: None for an arm that is made.
      what: a description.
      theirs: the published figures: path into metrics.json -> figure.
      prepare: called with the comparison's folder before the arm is trained.
      make: called with that folder, a seed and the folder for its scores, in place of training.
    """

    config: ml_collections.ConfigDict | None
    what: str = ""
    theirs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    prepare: Callable[[pathlib.Path], None] | None = None
    make: Callable[[pathlib.Path, int, pathlib.Path], None] | None = None


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """A parser of the arguments shared by comparisons on UTKFace from ImageNet weights."""
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


def chosen(known: Mapping[str, Arm], only: str, reference: str) -> dict[str, Arm]:
    """The arms whose names match a regex, and the reference, in their order.

    Raises:
      UserError: no name matches, or it is no regex.
    """
    try:
        names = [name for name in known if re.search(only, name)]
    except re.error as error:
        raise UserError(f"--only={only}: not a regular expression ({error})") from error
    if not names:
        raise UserError(f"--only={only}: no arm has such a name; there are {', '.join(known)}")
    return {name: arm for name, arm in known.items() if name == reference or name in names}


def run(
    arms: Mapping[str, Arm], seeds: Sequence[int], folder: pathlib.Path, split: str
) -> dict[str, Scores]:
    """Trains and scores the arms that are not done yet.

    Args:
      split: of each arm's own data; it must hold the same images for all arms.

    Returns:
      arm -> its predictions.

    Raises:
      UserError: as training raises it.
      SystemExit: SIGTERM or SIGINT stopped an arm; the same call resumes it.
    """
    sharding.start()  # the compile cache: an arm's seeds share compiled programs
    for seed in seeds:  # the outer loop: an unfinished comparison stays fair
        for name, arm in arms.items():
            workdir = folder / name / f"seed-{seed}"
            scores = workdir / "scores"
            if (scores / "metrics.json").exists():
                continue
            print(f"==== {name}, seed {seed} ====", flush=True)
            if arm.prepare is not None:
                arm.prepare(folder)
            if arm.config is not None:
                seeded = arm.config.copy_and_resolve_references()
                seeded.seed = seed
                if train(seeded, workdir) is None:
                    raise SystemExit(1)
            workdir.mkdir(parents=True, exist_ok=True)
            files.write_json(workdir / "arm.json", {"commit": commit()})
            if arm.make is not None:
                arm.make(folder, seed, scores)
            else:
                results.evaluate(workdir, split=split, output=scores, write_report=False)
            jax.clear_caches()  # else compiled programs of many arms fill the memory
    return {name: Scores.read([folder / name / f"seed-{seed}" for seed in seeds]) for name in arms}


@dataclasses.dataclass(frozen=True)
class Scores:
    """What an arm's seeds predict for the same images.

    Attributes:
      columns: those of predictions.csv that are the same for all seeds: ids, groups, labels. [N]
      predicted: label -> [seeds, N], years or class numbers.
      runs: summary.json of each seed; empty for an arm made from others.
      commits: of the code that finished each seed, since a long comparison may span several.
    """

    columns: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]
    runs: tuple[dict[str, Any], ...]
    commits: tuple[str, ...]

    @classmethod
    def read(cls, workdirs: Sequence[pathlib.Path], name: str = "scores") -> Scores:
        """Reads the scores of runs.

        Args:
          name: the folder in each run that holds predictions.csv.

        Raises:
          ValueError: they were scored on different images.
        """
        tables = []
        for workdir in workdirs:
            with (workdir / name / "predictions.csv").open() as file:
                rows = list(csv.reader(file))
            tables.append(dict(zip(rows[0], np.array(rows[1:]).T, strict=True)))
        ids = tables[0]["id"]
        if any((table["id"] != ids).any() for table in tables):
            raise ValueError(f"{workdirs[0]} and its like were scored on different images")
        labels = [key.removesuffix("_predicted") for key in tables[0] if "_predicted" in key]
        columns = {"id": ids, "group": tables[0]["group"]}
        known = [label for label in LABELS if label in tables[0]]
        columns |= {label: tables[0][label].astype(float) for label in known}
        predicted = {
            label: np.array([table[f"{label}_predicted"].astype(float) for table in tables])
            for label in labels
        }
        summaries = [
            json.loads(path.read_text())
            for path in (workdir / "summary.json" for workdir in workdirs)
            if path.exists()
        ]
        commits = [json.loads((workdir / "arm.json").read_text())["commit"] for workdir in workdirs]
        return cls(columns, predicted, tuple(summaries), tuple(commits))

    def check_same_images(self, other: Scores) -> None:
        """Raises ValueError where another arm was scored on other images, or in another order.

        A mixture puts the part's name before the file's.
        """
        pairs = zip(self.columns["id"], other.columns["id"], strict=True)
        if any(not (a.endswith(b) or b.endswith(a)) for a, b in pairs):
            raise ValueError("two arms were scored on different images")

    def losses(self, label: str) -> np.ndarray:
        """[seeds, N]: absolute errors of an age, years, or 0 and 1 of a class; NaN: no label."""
        true, predicted = self.columns[label], self.predicted[label]
        if label == "age":
            return np.abs(predicted - true)
        return np.where(true < 0, np.nan, predicted != true)

    def bucket_errors(self, label: str, edges: Sequence[float]) -> np.ndarray:
        """[seeds, N]: 0 where the predicted age is in the bucket of the true one, else 1."""
        true, said = (np.searchsorted(edges, x, side="right") for x in
                      (self.columns[label], self.predicted[label]))  # fmt: skip
        return np.where(np.isnan(self.columns[label]), np.nan, said != true)

    def by_decade(self, label: str) -> dict[str, tuple[float, int]]:
        """Decade -> (MAE over seeds and images, images)."""
        losses = self.losses(label)
        return {
            name: (float(losses[:, part].mean()), int(part.sum()))
            for name, part in metrics.decades(self.columns[label])
            if part.any()
        }


def mean_interval(
    losses: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The mean over seeds and images, and its 95 % interval, as `joined` makes it.

    For the difference of two arms' losses on the same images this is the paired interval.

    Args:
      losses: float [seeds, N]; NaN does not count.
      groups: [N], equal within a group of copies.

    Returns:
      {"mean", "ci95": [low, high], "images95", "seeds": the mean of each, "n": images}.
    """
    known = np.isfinite(losses).all(axis=0)
    losses, groups = losses[:, known], groups[known]
    resampled = [losses @ times / times.sum() for times in _resampled(groups, resamples, seed)]
    return joined(losses.mean(axis=1), np.array(resampled), losses.shape[1])


def macro_f1_interval(
    true: np.ndarray,
    predicted: np.ndarray,
    reference: np.ndarray,
    groups: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Macro-F1, and its difference to that of other predictions of the same images.

    Args:
      true: class numbers [N]; -1 does not count.
      predicted, reference: class numbers [seeds, N].
      groups, resamples, seed: as in `mean_interval`.

    Returns:
      (that of `predicted`, the paired difference to `reference`), each as from `mean_interval`.
    """
    known = true >= 0
    true, predicted, reference = true[known], predicted[:, known], reference[:, known]
    k = int(max(x.max() for x in (true, predicted, reference))) + 1

    def macro_f1(said: np.ndarray, times: np.ndarray) -> float:
        cells = np.bincount((true * k + said).astype(int), times, k * k).reshape(k, k)
        hits, sizes = np.diag(cells), cells.sum(axis=0) + cells.sum(axis=1)
        return float((2 * hits[sizes > 0] / sizes[sizes > 0]).mean())

    def of_seeds(times: np.ndarray) -> np.ndarray:  # [2, seeds]
        return np.array([[macro_f1(s, times) for s in of] for of in (predicted, reference)])

    ours, theirs = of_seeds(np.ones(len(true)))
    resampled = np.array(
        [of_seeds(times) for times in _resampled(groups[known], resamples, seed)]
    )  # [resamples, 2, seeds]
    return (
        joined(ours, resampled[:, 0], len(true)),
        joined(ours - theirs, resampled[:, 0] - resampled[:, 1], len(true)),
    )


def _resampled(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each image is drawn, [N], when groups of copies are resampled."""
    _, group = np.unique(groups, return_inverse=True)
    n = int(group.max(initial=-1)) + 1
    for times in bootstrap.draws(n, resamples, seed):
        yield times[group]


# ---- intervals over seeds and images ------------------------------------------------------------

METHOD = (
    "Intervals of 95 % join Student's t over seeds with a bootstrap over groups of copies; "
    "differences are paired."
)
Z = float(stats.norm.ppf(0.975))


def joined(seeds: np.ndarray, resampled: np.ndarray, n: int) -> dict[str, Any]:
    """A figure of several seeds on the same images, with its 95 % interval.

    By the law of total variance, the variance of the mean over seeds has two parts: that over
    training runs, given the images, and that over images, of the runs' expected figure. The first
    is s² / k of the seeds' figures. The second is the bootstrap's over images, less the share that
    comes from the runs' differences on single images, which s² already includes. `over_seeds`
    combines the two.

    Args:
      seeds: each seed's figure, [k].
      resampled: the same on resampled images, [resamples, k].
      n: images.

    Returns:
      {"mean", "ci95": [low, high], "images95": the interval over images alone, "seeds", "n"}. For
      one seed "ci95" is over images alone, and leaves out how much another training would differ.
    """
    k, mean = len(seeds), float(seeds.mean())
    of_mean = resampled.mean(axis=1)
    share = 1.0
    if k > 1 and (total := of_mean.var()) > 0:
        own = (resampled - resampled.mean(axis=0)).var(axis=1, ddof=1).mean() / k
        share = max(1 - own / total, 0.0)
    images = mean + np.sqrt(share) * (np.percentile(of_mean, [2.5, 97.5]) - mean)
    return {
        "mean": mean,
        "ci95": over_seeds(seeds, images),
        "images95": [float(bound) for bound in images],
        "seeds": [float(x) for x in seeds],
        "n": n,
    }


def over_seeds(seeds: Sequence[float] | np.ndarray, images95: Sequence[float]) -> list[float]:
    """The 95 % interval of the mean over seeds [k], from its interval over images alone.

    Half widths are t* sqrt(A + B), with A = s² / k of the seeds, B the variance over images, and t*
    the mean of the quantiles of Student's t with k - 1 degrees of freedom and of the normal,
    weighted by A and B (Cochran & Cox 1957, section 4.14, for means of unequal variances). A joint
    number of degrees of freedom (Welch & Satterthwaite) covers 0.86 to 0.94 with two seeds;
    experiments/benchmarks/intervals.py simulates both.
    """
    mean = float(np.mean(seeds))
    a = float(np.var(seeds, ddof=1)) / len(seeds) if len(seeds) > 1 else 0.0
    if a == 0:
        return [float(bound) for bound in images95]
    t = float(stats.t.ppf(0.975, len(seeds) - 1))
    b = ((np.asarray(images95) - mean) / Z) ** 2
    half = (a * t + b * Z) / np.sqrt(a + b)
    return [float(mean - half[0]), float(mean + half[1])]


def images_of_percentile(seeds: Sequence[float], ci95: Sequence[float]) -> list[float]:
    """The interval over images alone, from a percentile bootstrap over seeds and images.

    Such a bootstrap draws means of k seeds, of which all k^k are known, plus a deviation from the
    images. This deviation is assumed normal, with the width that makes the recorded bounds its
    quantiles. It includes the runs' differences on single images, so it is a little too wide.
    """
    mean = float(np.mean(seeds))
    means = np.array([np.mean(drawn) for drawn in itertools.product(seeds, repeat=len(seeds))])
    widths = []
    for bound, level in zip(ci95, (0.025, 0.975), strict=True):
        sign = 1 if level > 0.5 else -1

        def excess(sigma: float, bound: float = bound, level: float = level) -> float:
            return float(stats.norm.cdf((bound - means) / sigma).mean()) - level

        # Not monotone where one of the k^k means alone exceeds the level: the widest sigma is
        # the right one.
        grid = np.geomspace(1e-9, 10 * abs(bound - mean) + 1e-6, 200)
        too_narrow = [i for i, sigma in enumerate(grid[:-1]) if sign * excess(sigma) > 0]
        found = optimize.brentq(excess, *grid[too_narrow[-1] :][:2]) if too_narrow else 0.0
        widths.append(Z * found)
    # No sigma gives a bound that lies inside the means: then the other side's width is used.
    low, high = (width or max(widths) for width in widths)
    return [mean - low, mean + high]


def text(figure: Mapping[str, Any], digits: int = 2, sign: str = "") -> str:
    """A figure and its interval as a table's cell; sign "+" for a difference."""
    low, high = figure["ci95"]
    return f"{figure['mean']:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def commit() -> str:
    """The commit that is checked out, with a plus where files have changed."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
