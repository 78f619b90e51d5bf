"""Ensembles: the mean of several runs' predictions or weights; also over views of images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agejax import files
from agejax.errors import UserError, check_keys, is_number
from agejax.models import pretrained
from agejax.paths import expand
from agejax.runs import box
from agejax.runs.run import Run

FILE = box.ENSEMBLE
STATISTICS_FILE = "batch_stats.safetensors"  # statistics computed anew
COMBINE = ("predictions", "weights")
STATISTICS = ("averaged", "anew")
KEYS = ("members", "combine", "weights", "views", "statistics")
CROP = 0.9  # edge of a crop, as a share of the image's
# Name -> a function from uint8 images [B, S, S, 3] to views of them.
VIEWS: dict[str, Callable[[jax.Array], list[jax.Array]]] = {
    "plain": lambda images: [images],
    "flip": lambda images: [images[:, :, ::-1]],
    "crops": lambda images: _crops(images),
}


def networks(
    workdir: str | pathlib.Path, devices: int = 0
) -> tuple[list[Run], dict[str, list[float]], list[str]]:
    """Opens the single networks of a run or an ensemble.

    Returns:
      (runs, label -> the share of each, summing to 1, the views whose predictions are averaged).

    Raises:
      UserError: as `open_run`.
    """
    workdir = box.locate(workdir)
    if not box.is_ensemble(workdir):
        run = Run.open(workdir, devices)
        return [run], equal_weights([run]), ["plain"]
    spec = _read_spec(workdir)
    members = [open_member(member, devices) for member in spec["members"]]
    check_alike(members)
    shares = {
        label: [value / sum(values) for value in values]
        for label, values in spec["weights"].items()
    }
    if spec["combine"] == "weights":
        anew = _statistics(workdir, spec, members[0])
        members = [average(members, np.array(next(iter(shares.values()))), anew)]
        shares = {label: [1.0] for label in shares}
    return members, shares, spec["views"]


def open_run(workdir: str | pathlib.Path) -> Run:
    """Opens the folder of a run, a released model or an ensemble.

    Args:
      workdir: as `box.locate` takes it.

    Raises:
      UserError: none of these, or a member that is missing or has other classes than the first.
    """
    workdir = box.locate(workdir)
    if not box.is_ensemble(workdir):
        return Run.open(workdir)
    spec = _read_spec(workdir)
    for member in spec["members"]:
        path = member_of(member)[0]
        if not (box.is_name(path) or pathlib.Path(path).exists()):
            raise UserError(
                f"{workdir / FILE}: its member {path} is gone; move it back there, or make the "
                "ensemble again"
            )
    members = [open_member(member) for member in spec["members"]]
    anew = _statistics(workdir, spec, members[0])
    return join(workdir, members, spec["combine"], spec["weights"], spec["views"], anew)


def _read_spec(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads an ensemble's file. Raises `UserError` where it is damaged."""
    path, remedy = workdir / FILE, "make the ensemble again"
    spec = files.read_json(path, dict, remedy)
    check_keys(spec, KEYS, str(path))
    spec.setdefault("statistics", STATISTICS[0])  # older files have none
    if wrong := next((key for key in KEYS if not _is_right(key, spec)), None):
        raise UserError(f"{path}: its {wrong} are missing or damaged; {remedy}")
    return spec


def _statistics(workdir: pathlib.Path, spec: Mapping[str, Any], like: Run) -> Mapping[str, Any]:
    """The batch statistics computed anew for an ensemble; empty where they are averages.

    Raises:
      UserError: the file is missing, damaged, or of another network than `like`.
    """
    if spec["statistics"] != "anew":
        return {}
    path, expected = workdir / STATISTICS_FILE, like.batch_stats
    anew = pretrained.files.read(str(path), str(path))
    if any(name not in expected or expected[name].shape != a.shape for name, a in anew.items()):
        raise UserError(f"{path} is of another network; make the ensemble again")
    return anew


def _is_right(key: str, spec: Mapping[str, Any]) -> bool:
    """Whether a part of an ensemble's file is valid, as `ensembling.create` writes it."""
    value = spec.get(key)
    match key:
        case "members":
            return _all(value, lambda member: isinstance(member, str))
        case "combine":
            return value in COMBINE
        case "statistics":
            return value in STATISTICS
        case "views":
            return _all(value, lambda view: isinstance(view, str) and view in VIEWS)
    members = spec["members"]  # valid: it is checked first

    def shares(given: Any) -> bool:
        """Whether there is one for each member, none below 0, and not all 0."""
        right = _all(given, lambda share: is_number(share) and share >= 0)
        return right and len(given) == len(members) and sum(given) > 0

    return isinstance(value, dict) and _all(list(value.values()), shares)


def _all(values: Any, is_right: Callable[[Any], bool]) -> bool:
    """Whether it is a non-empty list of valid items."""
    return isinstance(values, list) and bool(values) and all(map(is_right, values))


def join(
    workdir: pathlib.Path,
    members: Sequence[Run],
    combine: str,
    weights: Mapping[str, Sequence[float]],
    views: Sequence[str],
    statistics: Mapping[str, np.ndarray] | None = None,
) -> Run:
    """Combines runs into one.

    Images have the size of the largest member's; each member resizes them to its own. Ages and
    probabilities are weighted means; an age's sigma is that of the mixture. Where a member gives no
    sigma, LABEL_spread is the standard deviation of the predictions, years.

    Args:
      weights: label -> the share of each member; a member with share 0 does not predict it.
      views: of `VIEWS`; predictions are averaged over them.
      statistics: batch statistics of the averaged network, in place of averaged ones.
    """
    check_alike(members)
    given = members
    first = max(members, key=lambda run: run.config.data.image_size)
    share = {label: np.array(values) / np.sum(values) for label, values in weights.items()}
    if combine == "weights":
        members = [average(members, next(iter(share.values())), statistics)]
        share = {label: np.ones(1) for label in share}

    @jax.jit
    def eval_step(params: Any, stats: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        seen = [view for name in views for view in VIEWS[name](batch["image"])]
        said: dict[str, list[tuple[float, dict[str, jax.Array]]]] = {}
        for i, member in enumerate(members):
            for view in seen:
                one = member.eval_step(params[i], stats[i], {"image": view})
                for label in share:
                    if share[label][i] > 0:
                        said.setdefault(label, []).append((share[label][i] / len(seen), one))
        return {name: mean for label, parts in said.items() for name, mean in _mean(label, parts)}

    # Where one member has trained on another's test images, no split is left for tests.
    alike = all(run.has_splits(first.fingerprint, first.config) for run in given)
    # The data of one member may lack a label that another one has.
    label_names = {k: v for run in (*given, first) for k, v in run.facts.label_names.items()}
    return dataclasses.replace(
        first,
        workdir=workdir,
        facts=dataclasses.replace(first.facts, label_names=label_names),
        heads={
            f"{i}/{name}": head
            for i, member in enumerate(members)
            for name, head in member.heads.items()
        },
        fingerprint=first.fingerprint if alike else "",
        step=sum(member.step for member in members),
        model=None,
        params=[member.params for member in members],
        batch_stats=[member.batch_stats for member in members],
        eval_step=eval_step,
    )


def check_alike(members: Sequence[Run]) -> None:
    """Raises `UserError` where members have different classes for a label."""
    known: dict[str, tuple[Run, Sequence[str]]] = {}
    for member in members:
        for label, names in member.classes.items():
            first, theirs = known.setdefault(label, (member, names))
            if tuple(names) != tuple(theirs):
                raise UserError(
                    f"{member.workdir}: its classes of {label} are {', '.join(names)}, those of "
                    f"{first.workdir} {', '.join(theirs)}; such runs cannot be combined"
                )


def equal_weights(members: Sequence[Run]) -> dict[str, list[float]]:
    """label -> 1 for each member that predicts it, 0 for the others."""
    said = [{head.label for head in run.heads.values()} for run in members]
    labels = dict.fromkeys(head.label for run in members for head in run.heads.values())
    return {label: [float(label in one) for one in said] for label in labels}


def _mean(
    label: str, parts: Sequence[tuple[float, Mapping[str, jax.Array]]]
) -> list[tuple[str, jax.Array]]:
    """[(name, weighted mean)] of a label, and of what all predict beside it, such as its sigma."""
    names = [
        name
        for name in parts[0][1]
        if f"{name}_".startswith(f"{label}_") and all(name in said for _, said in parts)
    ]
    means = {name: jnp.sum(jnp.stack([w * said[name] for w, said in parts]), 0) for name in names}
    if means[label].ndim == 1 and len(parts) > 1:
        # The variance of a mixture: that of each part, plus that of their means.
        sigma, spread = f"{label}_sigma", f"{label}_spread"
        name = sigma if sigma in means else spread
        squares = [
            w * (jnp.square(said.get(name, 0.0)) + jnp.square(said[label] - means[label]))
            for w, said in parts
        ]
        means[name] = jnp.sqrt(jnp.sum(jnp.stack(squares), 0))
    return list(means.items())


def average(
    members: Sequence[Run], share: np.ndarray, statistics: Mapping[str, Any] | None = None
) -> Run:
    """A network of mean weights and statistics (Izmailov et al. 2018; Wortsman et al. 2022).

    Args:
      share: of each member, f64 [M]; they sum to 1.
      statistics: batch statistics in place of averaged ones.

    Raises:
      UserError: networks that differ.
    """
    first = members[0]
    shapes = jax.tree.map(jnp.shape, (first.params, first.batch_stats))
    for member in members[1:]:
        if jax.tree.map(jnp.shape, (member.params, member.batch_stats)) != shapes:
            raise UserError(
                f"--combine=weights: {member.workdir} is another network than {first.workdir}; "
                "use --combine=predictions"
            )
    both = [(member.params, member.batch_stats) for member in members]
    params, batch_stats = jax.tree.map(
        lambda *arrays: sum(w * a for w, a in zip(share.tolist(), arrays, strict=True)), *both
    )
    return dataclasses.replace(
        first, params=params, batch_stats={**batch_stats, **(statistics or {})}
    )


def _crops(images: jax.Array) -> list[jax.Array]:
    """The four corners and the centre, `CROP` of the edge, in the images' size."""
    size = images.shape[1]
    edge = round(CROP * size)
    end = size - edge
    starts = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
    return [_resized(images[:, y : y + edge, x : x + edge], size) for y, x in starts]


def _resized(images: jax.Array, size: int) -> jax.Array:
    shape = (images.shape[0], size, size, 3)
    return (
        jnp.rint(jax.image.resize(images.astype(jnp.float32), shape, "cubic"))
        .clip(0, 255)
        .astype(jnp.uint8)
    )


def open_member(given: str, devices: int = 0) -> Run:
    """Opens RUN, or RUN@STEP."""
    path, step = member_of(given)
    return Run.open(path, devices, step)


def member_of(given: str) -> tuple[str, int | None]:
    """RUN, or RUN@STEP, as (run, step); a folder's own name may end like that."""
    path, at, step = given.rpartition("@")
    named = at and step.isdecimal() and not expand(given).exists()
    return (path, int(step)) if named else (given, None)
