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
from agejax.evaluation import bootstrap, metrics, replicates
from agejax.evaluation.bootstrap import RESAMPLES
from agejax.labels import LABELS
from agejax.process import usage
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
      make: called with that folder, a seed and the folder for its scores, in place of scoring the
        run; without a config in place of training too.
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
    parser.add_argument("--seeds", type=usage.at_least(1), default=3)
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
      groups, resamples, seed: as in `replicates.mean_interval`.

    Returns:
      (that of `predicted`, the paired difference to `reference`), each as from
      `replicates.mean_interval`.
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
        replicates.joined(ours, resampled[:, 0], len(true)),
        replicates.joined(ours - theirs, resampled[:, 0] - resampled[:, 1], len(true)),
    )


def _resampled(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each image is drawn, [N], when groups of copies are resampled."""
    _, group = np.unique(groups, return_inverse=True)
    n = int(group.max(initial=-1)) + 1
    for times in bootstrap.draws(n, resamples, seed):
        yield times[group]


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
        widths.append(replicates.Z * found)
    # No sigma gives a bound that lies inside the means: then the other side's width is used.
    low, high = (width or max(widths) for width in widths)
    return [mean - low, mean + high]


def commit(tree: pathlib.Path | None = None) -> str:
    """The commit that is checked out, with a plus where files have changed.

    Args:
      tree: a working tree; default: the current folder's.
    """
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    return done.stdout.strip()
