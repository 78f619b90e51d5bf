"""Writes the outputs of a trained run to a file of targets that teaches another run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from agejax import files
from agejax.data import pipeline, splits
from agejax.data.sources import Source
from agejax.distillation import networks, seen
from agejax.distillation.files import TargetFile
from agejax.distillation.teachers import FEATURES
from agejax.errors import UserError
from agejax.evaluation.scored import open_data
from agejax.heads import Head
from agejax.models import inputs
from agejax.paths import expand
from agejax.runs import ensembles
from agejax.runs.run import Run
from agejax.training import image_sizes
from agejax.training.prediction import predict_batches

TARGETS = ("probabilities", "features")


def write_targets(
    workdir: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    dataset: str | None = None,
    source_path: str | None = None,
    options: Mapping[str, Any] | None = None,
    split: Sequence[str] = ("all",),
    views: Sequence[str] = ("plain",),
    targets: Sequence[str] = TARGETS,
) -> TargetFile:
    """Writes a file of targets; `agejax.distillation.files` describes the format.

    Probabilities are under the natural prior: the effect of the run's sampler is undone. Those of
    an ensemble are the weighted mean over the members that give any; they share no features.

    Args:
      dataset, source_path, options: the images, as for `results.evaluate`.
      split: which of the run's splits; "all" for every image.
      views: of `ensembles.VIEWS`, averaged, in addition to those of the ensemble.
      targets: which of `TARGETS`.

    Raises:
      UserError: no run, no such data or split, a run without such targets, or members of an
        ensemble with different outcomes.
    """
    output = expand(output)
    files.check_file(output, "--output")
    if output.suffix != ".npz":
        raise UserError(f"--output: {output} must end in .npz")
    opened = networks.opened(str(workdir), 0)
    first = max((run for run, *_ in opened), key=lambda run: run.config.data.image_size)
    source = open_data(first, dataset, source_path, options)
    rows = _rows(source, first.config, first.fingerprint, split)
    members = []
    for run, weights, own_views in opened:
        size = image_sizes.of_evaluation(run.config)  # no random crop enlarges these faces
        ways = networks.natural(run, weights) if "probabilities" in targets else {}
        members.append(networks.of_run(run, weights, own_views, ways, size))
    run_heads = _heads(opened, members)
    heads = {name: sum(member.heads.get(name, 0.0) for member in members) for name in run_heads}
    with_features = "features" in targets and len(members) == 1
    if not heads and not with_features:
        raise UserError(
            f"--targets={','.join(targets)}: {workdir} has none: probabilities come from heads of "
            "kind distribution, categorical, binary and buckets, features from single runs"
        )

    @jax.jit
    def answer(arrays: Any, _: None, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        images = [view for name in views for view in ensembles.VIEWS[name](batch["image"])]
        total: dict[str, Any] = {}
        for member, mine in zip(members, arrays, strict=True):
            for view in images:
                seen_by_it = inputs.eval_images(view, member.size)
                for name, target in member.teach(mine, seen_by_it, {}).items():
                    weight = 1.0 if name == FEATURES else member.heads[name] / heads[name]
                    total[name] = total.get(name, 0) + weight / len(images) * target.values
        return {name: value for name, value in total.items() if name != FEATURES or with_features}

    batches = pipeline.evaluation_batches(source, rows, first.batch_size)
    batches = pipeline.counted(batches, "answered", len(rows))
    arrays = [member.arrays for member in members]
    answers = predict_batches(answer, arrays, None, batches, first.mesh)
    assert answers is not None
    small = {name: _small(values) for name, values in answers.items()}
    file = TargetFile(
        path=output,
        ids=source.ids[rows],
        probabilities={name: small[name] for name in heads},
        outcomes={name: run_heads[name].outcomes for name in heads},
        features=small.get(FEATURES),
        facts={
            "run": str(workdir),
            "steps": [run.step for run, *_ in opened],
            "views": [*views],
            "split": [*split],
            "data": source.name,
            "images": source.fingerprint,
            "trained_on": [data for run, *_ in opened for data in seen.trained_on(run)],
        },
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    file.write()
    return file


def _heads(
    opened: Sequence[tuple[Run, Any, Any]], members: Sequence[networks.Network]
) -> dict[str, Head]:
    """The heads whose probabilities the members give.

    Raises:
      UserError: members that have different outcomes for one.
    """
    found: dict[str, tuple[Run, Head]] = {}
    for (run, *_), member in zip(opened, members, strict=True):
        for name in member.heads:
            first, head = found.setdefault(name, (run, run.heads[name]))
            if run.heads[name].outcomes != head.outcomes:
                raise UserError(
                    f"--workdir: head {name} of {run.workdir} has other outcomes than that of "
                    f"{first.workdir}, such as another range of ages; make the ensemble of runs "
                    "that have the same"
                )
    return {name: head for name, (_, head) in found.items()}


def _rows(source: Source, config: Any, fingerprint: str, split: Sequence[str]) -> np.ndarray:
    """The rows of some of a run's splits, int64, ascending."""
    if "all" in split:
        return np.arange(len(source.ids))
    named = f"--split={','.join(split)}"
    if source.fingerprint != fingerprint:
        raise UserError(f"{named}: not the data this run was trained on; use --split=all")
    by_name = splits.make(source, config.data.split)
    if unknown := [name for name in split if name not in by_name]:
        raise UserError(f"{named}: the run has {', '.join(by_name)}, and all, not {unknown[0]!r}")
    return np.sort(np.concatenate([by_name[name] for name in split]))


def _small(values: np.ndarray) -> np.ndarray:
    """The values as float16, where they fit."""
    half = values.astype(np.float16)
    return half if np.isfinite(half).all() else values.astype(np.float32)
