"""Opens and checks the teachers that config.distill names."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from agejax.data.sources import Source
from agejax.distillation import networks, onnx_models, seen
from agejax.distillation.files import FileTeacher, TargetFile
from agejax.distillation.teachers import FEATURES, Teacher, Teachers
from agejax.errors import UserError, few
from agejax.files import digest
from agejax.heads import Facts, Head, training
from agejax.logging import console
from agejax.paths import expand
from agejax.runs import box
from agejax.runs.run_folder import opened_config
from agejax.training import frozen

WHERE = "config.distill"


def check(config: Any, heads: Mapping[str, Any]) -> None:
    """Raises `UserError` for settings of config.distill that are wrong with any data.

    Args:
      heads: config.heads.
    """
    for path in config.runs:
        folder = box.locate(path, f"{WHERE}.runs")
        if not box.is_ensemble(folder) and opened_config(folder) is None:
            raise UserError(f"{WHERE}.runs: {path} holds no run with a checkpoint")
    for path in config.files:
        if not expand(path).is_file():
            raise UserError(f"{WHERE}.files: there is no file {path}")
    onnx_models.check(config.onnx, heads)
    if not (named := _named(config)):
        if config.features.weight:
            raise UserError(
                f"{WHERE}.features: no teacher is named; set {WHERE}.runs, .files or .onnx"
            )
        return
    if not config.probabilities.weight and not config.features.weight:
        raise UserError(
            f"{WHERE}: the weights of probabilities and features are 0, so the teachers teach "
            "nothing; set one above 0"
        )
    if config.features.teacher and config.features.teacher not in named:
        raise UserError(
            f"{WHERE}.features.teacher: {config.features.teacher} is none of {few(named)}"
        )


def open_teachers(
    config: Any,
    heads: Mapping[str, Head],
    facts: Facts,
    source: Source,
    rows: Mapping[str, np.ndarray],
) -> Teachers:
    """Opens the teachers of a run; `Teachers()` where config.distill names none.

    Args:
      config: the whole config of the student.
      heads, facts: the student's, as `training.prepare` returns them.
      source, rows: the student's data and splits.

    Raises:
      UserError: no such run or file; a teacher that may have seen images that the student is
        judged on; a head with other classes or without probabilities; or a training image
        without a target.
    """
    c = config.distill
    if not c.runs and not c.files and not c.onnx:
        return Teachers()
    files = {path: TargetFile.read(path) for path in c.files}
    taught: dict[str, Head] = {}
    gives = [bool(file.probabilities) for file in files.values()]
    gives += [any(given.get(kind) for kind in onnx_models.KINDS) for given in c.onnx.values()]
    if c.probabilities.weight and (c.runs or any(gives)):
        taught = dict(heads)
        if wrong := [name for name, head in heads.items() if not networks.outcomes(head)]:
            raise UserError(
                f"{WHERE}: head {wrong[0]} gives no probabilities to learn; set its kind to "
                f"distribution, categorical, binary or buckets, or {WHERE}.probabilities.weight=0"
            )
    ratios = training.log_ratios(config.heads, facts)
    found: list[tuple[str, Teacher, dict[str, Any]]] = []  # (name, teacher, facts)
    for path in c.runs:
        for run, weights, views in networks.opened(path, config.sharding.devices):
            where = f"{WHERE}.runs: {run.workdir}"
            known = _judge(where, seen.trained_on(run), source, config, rows)
            ways = networks.for_student(run, weights, taught, ratios, config.sampling)
            member = networks.of_run(run, weights, views, ways, run.config.model.image_size)
            identity = {
                "step": run.step,
                "digest": frozen.digest({**run.params, **run.batch_stats})[:16],
                "weights": dict(member.heads),
                "views": list(views),
            }
            found.append((path, member, {"name": str(run.workdir)} | identity | known))
    for path, file in files.items():
        known = _judge(f"{WHERE}.files: {path}", _of_file(file), source, config, rows)
        given = FileTeacher.of(file, source, taught, ratios)
        identity = {"digest": file.digest(), "outcomes": digest(file.outcomes)[:16]}
        found.append((path, given, {"name": str(file.path)} | identity | known))
    for name, options in c.onnx.items():
        # A model does not tell what it was trained on.
        known = _judge(f"{WHERE}.onnx.{name}", [None], source, config, rows)
        model = onnx_models.opened(name, options, taught, ratios)
        identity = {"digest": onnx_models.digest(options.path)}
        found.append((name, model, {"name": str(options.path)} | identity | known))

    members = [member for _, member, _ in found]
    giver = _giver(c.features, [path for path, *_ in found], members)
    members = [
        member if i == giver else _without_features(member) for i, member in enumerate(members)
    ]
    teachers = Teachers(
        members,
        c.share,
        c.probabilities.weight,
        c.probabilities.temperature,
        c.features.weight,
        c.features.loss,
    )
    if teachers.width and FEATURES in heads:
        raise UserError(
            f"config.heads.{FEATURES}: the teachers' features have this name; choose another"
        )
    _check_complete(teachers, taught, source, rows["train"], c)
    known = {
        "features": teachers.width,
        "features_of": giver,
        "teachers": [facts for _, _, facts in found],
    }
    return dataclasses.replace(teachers, facts=known)


def check_same(
    workdir: pathlib.Path, meta: Mapping[str, Any], config: Any, teachers: Teachers
) -> None:
    """Raises `UserError` where a run resumes with other teachers than it began with.

    Args:
      meta: of its checkpoint; of a run with teachers from before these were stored, they are not
        checked.
      config: config.distill.
      teachers: that it names.
    """
    stored = meta.get("config", {}).get("distill") or {}
    before = meta.get("distill", teachers.facts if _named(stored) else {})
    same = _alike(before, teachers.facts)
    if before.get("features") and "features_of" not in before:  # of an earlier version
        same = same and _named_giver(stored) == _named_giver(config)
    if not same:
        raise UserError(
            f"{workdir}: the teachers of {WHERE} are not those that it started with (another step "
            "of a run, or a changed file); restore them, or use another --workdir"
        )


def _alike(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether facts are of the same teachers, which may have moved."""

    def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        # Runs of earlier versions lack facts, such as the digest of a teacher that is a run.
        both = one.keys() & other.keys()
        if "digest" in both:
            both -= {"name", "seen"}  # they depend on where it and its own teachers lie
        return all(one[key] == other[key] for key in both)

    teachers = before.get("teachers", ()), now.get("teachers", ())
    giver = now.get("features_of")
    return (
        len(teachers[0]) == len(teachers[1])
        and all(map(same, *teachers))
        and before.get("features") == now.get("features")
        and before.get("features_of", giver) == giver
    )


def _named(config: Mapping[str, Any]) -> list[str]:
    """The teachers that config.distill names, by path, or by name of an ONNX model."""
    return [name for kind in ("runs", "files", "onnx") for name in config.get(kind) or ()]


def _named_giver(config: Mapping[str, Any]) -> int | None:
    """Which of `_named` config.distill.features.teacher is; None where it names none."""
    names, name = _named(config), config.get("features", {}).get("teacher")
    return names.index(name) if name in names else None


def _without_features(member: Any) -> Any:
    """The teacher without its features, which are then neither computed nor carried."""
    columns = {k: v for k, v in member.columns.items() if k != FEATURES}
    return dataclasses.replace(member, features=0, columns=columns)


def _giver(config: Any, names: Sequence[str], members: Sequence[Teacher]) -> int | None:
    """Which teacher gives the features; None for none."""
    if not config.weight:
        return None
    having = [i for i, member in enumerate(members) if member.features]
    if config.teacher:
        having = [i for i in having if names[i] == config.teacher]
    if len(having) == 1:
        return having[0]
    where = f"{WHERE}.features"
    if not having:
        raise UserError(f"{where}: no teacher has features; its weight must be 0")
    raise UserError(
        f"{where}.teacher: {len(having)} networks have features; name one of "
        f"{few(dict.fromkeys(names[i] for i in having))}, which must be a single network"
    )


def _check_complete(
    teachers: Teachers,
    heads: Mapping[str, Head],
    source: Source,
    train: np.ndarray,
    config: Any,
) -> None:
    """Raises `UserError` where training images lack a target, unless config.distill allows it.

    Args:
      heads: the heads to be taught.
    """
    for name in [*heads, FEATURES] if teachers.width else heads:
        giving = [
            member
            for member in teachers.members
            if (member.features if name == FEATURES else name in member.heads)
        ]
        if not giving:
            console.note(f"{WHERE}: no teacher has the head {name}; it learns from labels only")
            continue
        if any(member.size for member in giving):  # it sees every image
            continue
        lacking = np.ones(len(train), bool)
        for member in giving:
            lacking &= ~np.isfinite(member.columns[name][train]).all(axis=1)
        if not lacking.any():
            continue
        what = f"{lacking.sum():,} of the {len(train):,} training images have no {name} in "
        what += few([member.name for member in giving])
        first = source.ids[train[lacking]][0]
        if lacking.all() or config.missing == "error":
            raise UserError(
                f"{WHERE}.files: {what}, such as {first}; write them with python -m agejax.distill"
                + ("" if lacking.all() else f", or set {WHERE}.missing=labels to do without")
            )
        if jax.process_index() == 0:
            console.note(f"{WHERE}: {what}; they learn from their labels only")


def _of_file(file: TargetFile) -> list[Any]:
    """What a file's teachers were trained on, as `seen.trained_on`; [None] if it is unknown."""
    given = file.facts.get("trained_on")
    known = isinstance(given, list) and all(
        isinstance(each, dict) and isinstance(each.get("split"), dict) and "fingerprint" in each
        for each in given
    )
    return given if known and given else [None]


def _judge(
    where: str,
    data: Sequence[Any],
    source: Source,
    config: Any,
    rows: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Checks that a teacher has not trained on images that the student is judged on.

    Args:
      data: the teacher's, as `seen.trained_on` gives it.
      config: the student's.

    Raises:
      UserError: it has trained on some, or that is unknown, and config.distill does not allow it.
    """
    counted = seen.count(source, config.data, rows, data)
    if counted == 0:
        return {"seen": 0}
    if counted is None:
        what = "was trained on data that is not known, or on another version or part of this run's"
        what += ", and may have seen what this run is evaluated on"
    else:
        what = (
            f"was trained on another split of this data: it has seen {counted:,} of the images "
            "that this run is evaluated on, or copies of them"
        )
    if not config.distill.allow_seen:
        raise UserError(
            f"{where} {what}; train it on this run's data and split, or set "
            f"{WHERE}.allow_seen=True, which the summary states"
        )
    if jax.process_index() == 0:
        console.warning(f"{where} {what}; scores on these are too good")
    return {"seen": counted}
