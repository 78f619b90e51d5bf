"""Creates an ensemble: its folder, and its members' weights, given, equal, or fitted on val."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from scipy import optimize, sparse

from agejax import files
from agejax.errors import UserError
from agejax.evaluation import calibration, comparison
from agejax.evaluation.scored import Scored, score
from agejax.labels import is_known
from agejax.logging import console
from agejax.paths import expand
from agejax.runs import batch_statistics, box, ensembles, warm_start
from agejax.runs.ensembles import COMBINE, FILE, STATISTICS, STATISTICS_FILE, open_member
from agejax.runs.run import Run


def create(
    output: pathlib.Path,
    given: Sequence[str | pathlib.Path],
    combine: str = COMBINE[0],
    weights: str = "",
    views: Sequence[str] = ("plain",),
    statistics: str = STATISTICS[0],
    batches: int = batch_statistics.BATCHES,
) -> dict[str, list[float]]:
    """Writes an ensemble's folder, which `ensembles.open_run` opens.

    Args:
      given: folders of runs, or FOLDER@STEP.
      combine, weights, views, statistics, batches: as on the command line.

    Returns:
      label -> the weight of each member.

    Raises:
      UserError: members that do not fit together, invalid weights, statistics that cannot be
        computed anew, or a folder that holds a run, which the ensemble would hide, or evaluations
        of another ensemble.
    """
    if batches < 1:
        raise UserError(f"--batches={batches}: give 1 or more")
    if statistics == "anew" and combine != "weights":
        raise UserError("--statistics=anew: only --combine=weights makes a network that needs them")
    files.check_folder(output, "--output")
    if any((output / name).exists() for name in ("config.json", "checkpoints")):
        raise UserError(f"--output: {output} holds a run; name another folder")
    members = [open_member(str(path)) for path in given]
    shares = parse_weights(weights, members, views)
    ensembles.join(output, members, combine, shares, views)  # raises where they do not fit
    if combine == "weights" and len(set(map(_start, members))) > 1:
        console.warning(
            "the members started from different weights (config.seed, config.model.pretrained); "
            "the mean of such weights often predicts badly: compare it with a member on val"
        )
    share = next(iter(shares.values()))
    anew = {}
    if statistics == "anew":
        averaged = ensembles.average(members, np.array(share) / np.sum(share))
        if anew := batch_statistics.anew(averaged, batches):
            size = averaged.config.data.batch_size
            console.result(
                f"batch statistics: computed on {batches} batches of {size} training images"
            )
        else:
            console.result(
                "batch statistics: no batch norm is trained, so there is nothing to compute"
            )
    paths = [str(p if box.is_name(p) else expand(p).absolute()) for p in given]
    spec = {
        "members": paths, "combine": combine, "weights": shares, "views": list(views),
        "statistics": "anew" if anew else "averaged",
    }  # fmt: skip
    _check_scores(output, spec)
    output.mkdir(parents=True, exist_ok=True)
    (output / STATISTICS_FILE).unlink(missing_ok=True)
    if anew:
        files.write_bytes(output / STATISTICS_FILE, safetensors.numpy.save(anew))
    (output / calibration.FILE).unlink(missing_ok=True)  # it was fitted to a former ensemble
    files.write_json(output / FILE, spec)
    return shares


def _check_scores(output: pathlib.Path, spec: Mapping[str, Any]) -> None:
    """Raises `UserError` where evaluations of another ensemble would pass for those of this one.

    Their steps, the sums of the members', may be equal.
    """
    former = output / FILE
    if not (former.exists() and any(output.glob("evaluation/*/metrics.json"))):
        return
    of = {"statistics": STATISTICS[0]} | files.read_json(former, dict, "remove it")
    if of != spec or spec["statistics"] == "anew":  # which may be of other batches
        raise UserError(
            f"--output: {output} holds evaluations of another ensemble; name another folder, or "
            f"remove {output / 'evaluation'}"
        )


def _start(run: Run) -> tuple[pathlib.Path | None, int | None]:
    """What decides a run's first weights: the file or run that it started from, and its seed.

    The seed does not count where it started from a run, which has weights for heads too.
    """
    given, seed = run.config.model.pretrained, run.config.seed
    if not given:
        return None, seed
    start = pathlib.Path(given)
    with contextlib.suppress(UserError):  # the box may have lost it
        start = box.locate(given).resolve()
    return start, None if warm_start.is_run(start) else seed


def parse_weights(
    text: str, members: Sequence[Run], views: Sequence[str]
) -> dict[str, list[float]]:
    """Reads --weights, for each label: "" for equal ones, "fit", or one number per member."""
    if text == "fit":
        return fit_weights(members, views)
    weights = ensembles.equal_weights(members)
    if not text:
        return weights
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    valid = all(0 <= number < np.inf for number in numbers) and sum(numbers) > 0
    if len(numbers) != len(members) or not valid:
        raise UserError(
            f"--weights={text}: give {len(members)} numbers of 0 or above, such as 0.4,0.6, or fit"
        )
    return {
        label: [n * has for n, has in zip(numbers, given, strict=True)]
        for label, given in weights.items()
    }


def fit_weights(members: Sequence[Run], views: Sequence[str]) -> dict[str, list[float]]:
    """Fits each label's weights on the validation images that the members share.

    For ages they minimise the mean absolute error (a linear program), for classes the negative
    log-likelihood. A label that no validation image has keeps equal weights.

    Raises:
      UserError: members with other data or splits: one may have trained on another's val images.
    """
    first = members[0]
    if not first.config.data.split.val_of_train:
        raise UserError(
            f"--weights=fit: {first.workdir} was trained without a val split; give the weights"
        )
    for member in members:
        if not member.has_splits(first.fingerprint, first.config):
            raise UserError(
                f"--weights=fit: {member.workdir} was trained on other data or another split than "
                f"{first.workdir}; give the weights"
            )
    scored: list[Scored] = []
    for member in members:
        alone = ensembles.join(
            member.workdir, [member], "predictions", ensembles.equal_weights([member]), views
        )
        if scored:
            scored.append(comparison.score_again(scored[0], alone))
        else:
            scored.append(score(alone, split="val"))
    weights = ensembles.equal_weights(members)
    for label, given in weights.items():
        having = [i for i, weight in enumerate(given) if weight]
        said = np.stack([scored[i].predictions[label].astype(np.float64) for i in having])
        truth = scored[0].labels[label]
        if not is_known(truth).any():
            console.note(f"{label}: no val image has it, so its weights stay equal")
            continue
        fit = _fit_years if said.ndim == 2 else _fit_classes
        for i, weight in zip(having, fit(said, truth), strict=True):
            given[i] = weight
    return weights


def _fit_years(said: np.ndarray, truth: np.ndarray) -> list[float]:
    """The simplex weights w [M] that minimise mean |w · said - truth|; [M, N], [N] -> [M]."""
    known = np.isfinite(truth)
    said, truth = said[:, known], truth[known].astype(np.float64)
    m, n = said.shape
    # min Σ t  with  -t <= w · said - truth <= t,  w >= 0,  Σ w = 1
    fits = sparse.hstack([sparse.csr_array(said.T), -sparse.eye_array(n)])
    other = sparse.hstack([sparse.csr_array(-said.T), -sparse.eye_array(n)])
    best = optimize.linprog(
        np.repeat([0.0, 1.0], [m, n]),
        A_ub=sparse.vstack([fits, other]),
        b_ub=np.concatenate([truth, -truth]),
        A_eq=np.repeat([[1.0, 0.0]], [m, n], axis=1),
        b_eq=[1.0],
    )
    weights: list[float] = best.x[:m].tolist()
    return weights


def _fit_classes(said: np.ndarray, truth: np.ndarray) -> list[float]:
    """The simplex weights [M] that minimise -log of w · said of the true class; [M, N, K], [N]."""
    known = truth >= 0
    p = said[:, known, truth[known]]  # [M, N]
    m = len(p)
    best = optimize.minimize(
        lambda w: -np.log(np.maximum(w @ p, 1e-12)).mean(),
        np.full(m, 1 / m),
        jac=lambda w: -(p / np.maximum(w @ p, 1e-12)).mean(axis=1),
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(m)},
        method="SLSQP",
    )
    weights: list[float] = best.x.clip(0).tolist()
    return weights
