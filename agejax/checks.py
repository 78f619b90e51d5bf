"""Checks of a run's settings, as early as possible: before the data is read, or just after."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import optax

from agejax import heads as heads_lib
from agejax.data import draws, sources, splits
from agejax.distillation import setup as distillation
from agejax.errors import UserError
from agejax.evaluation import metrics
from agejax.heads import ages, weights
from agejax.labels import LABELS, is_known
from agejax.logging import console, loggers
from agejax.models import pretrained
from agejax.runs import box
from agejax.training import augment, durations, frozen, image_sizes, optim, state

DURATIONS = ("total", "log_every", "eval.every", "checkpoint.every")


def before_data(config: Any, *, resumes: bool = False) -> None:
    """Raises `UserError` for a setting that is wrong with any data.

    Builds all that a run builds from its config, from stand-in labels and without arrays: it takes
    half a second, and finds a wrong setting before hours of preparation.

    Args:
      config: as `pretrained.settle` returns it.
      resumes: the run resumes from its checkpoint, and needs no pretrained weights.
    """
    loggers.check(config.loggers)
    splits.way_of(config.data.split)
    distillation.check(config.distill, config.heads)

    batch = config.data.batch_size
    to_steps = durations.ToSteps(batch, examples=batch, total_steps=1)
    duration_of_run = dataclasses.replace(to_steps, total_steps=None)
    for name in DURATIONS:
        duration = config
        for key in name.split("."):
            duration = duration[key]
        (duration_of_run if name == "total" else to_steps)(duration, name)
    # The number of steps is not known yet: any warm-up fits this one.
    optim.lr_scale(config)
    optim.create_schedule(config.schedule, 2, lambda d, name: min(to_steps(d, name), 1))

    stand_in = _stand_in(config.heads)
    labels, rows = stand_in.labels, np.arange(len(stand_in.ids))
    heads = heads_lib.create(config.heads, heads_lib.Facts.of(labels, stand_in.label_names))
    weights.switches(config.heads, to_steps)
    draws.weigh(config.sampling, stand_in, rows)
    weights.of(config.heads, heads, labels, rows)
    for duration, _ in image_sizes.stages(config):
        to_steps(duration, image_sizes.KEY)
    augment.build(config.augment, config.model.image_size)
    model, _ = state.create_model(config, heads)
    image_sizes.check(config, model)
    path = config.model.pretrained
    if path and not resumes and not box.locate(path, "config.model.pretrained").is_dir():
        pretrained.load(config.model.pretrained, config.model.name, model.shapes)
    optimizer = optim.create_optimizer(config.optim, optax.constant_schedule(0.0), model.parameters)
    frozen.check(config, model, optimizer.frozen)
    optim.create_penalty(config.optim, model.parameters)
    perfect = metrics.lookup(_perfect_scores(heads, stand_in), config.eval.best)
    _check_direction(config.eval, perfect)


def _check_direction(config: Any, perfect: float) -> None:
    """Warns where the worst checkpoint would be kept as the best.

    Args:
      config: config.eval.
      perfect: its metric of perfect predictions: 0 of errors, 1 of shares that are right.
    """
    right = "max" if perfect > 0 else "min"
    if config.best_mode != right and jax.process_index() == 0:
        console.warning(
            f"config.eval.best_mode: {config.best_mode} keeps the checkpoint with the worst "
            f"{config.best} as the best one; set it to {right}"
        )


def with_data(config: Any, rows: Mapping[str, np.ndarray]) -> None:
    """Raises `UserError` for settings that do not fit the splits {name: rows int64 [N]}."""
    batch, images = config.data.batch_size, len(rows["train"])
    if batch > images:
        raise UserError(
            f"config.data.batch_size: {batch} is more than the {images:,} training images; lower it"
        )
    if "val" not in rows and config.eval.patience:
        raise UserError(
            "config.eval.patience: early stopping needs a val split, and "
            "config.data.split.val_of_train=0 leaves none; change one of the two"
        )
    final = config.eval.final_split
    if final and final not in (*rows, "all"):
        raise UserError(
            f"config.eval.final_split: the splits are {', '.join(rows)}; name one of them, all, or "
            f"'' for none, not {final!r}"
        )
    if "val" not in rows:
        console.note(
            "no val split: nothing is evaluated during the training, the last checkpoint counts "
            "as the best, and nothing is calibrated"
        )


def with_labels(
    config: Any,
    heads: Mapping[str, heads_lib.Head],
    source: sources.Source,
    rows: Mapping[str, np.ndarray],
) -> None:
    """Raises `UserError` where val or the final split has no label to be scored by.

    Args:
      heads: of the run; config.eval.best is one of their metrics.
      rows: of each split, int64 [N]; `with_data` has checked their names.
    """
    labels, _ = heads_lib.derive(heads, source.labels, source.label_names)
    predicted = dict.fromkeys(head.label for head in heads.values())

    def lacks(split: str, names: Collection[str]) -> bool:
        some = rows.get(split, slice(None))  # "all"
        return not any(is_known(labels[name][some]).any() for name in names)

    best, final = config.eval.best, config.eval.final_split
    judged = predicted if best == "loss" else (best.partition("/")[0],)
    if "val" in rows and lacks("val", judged):
        raise UserError(
            f"config.eval.best: {best} needs val images with a known {' or '.join(judged)}, and "
            "there are none; name another metric, or change config.data.split"
        )
    if final and lacks(final, predicted):
        raise UserError(
            f"config.eval.final_split: no image of {final} has a known {' or '.join(predicted)}; "
            "name another split, or '' for none"
        )


def _stand_in(heads: Mapping[str, Any]) -> sources.Source:
    """A source with every label and every age, of images of one pixel.

    A label has two classes where a head needs two, else five: the true number is not known yet.
    """
    years = np.arange(ages.MOST_YEARS + 1)
    binary = {
        head.get("label", name)
        for name, head in heads.items()
        if hasattr(head, "items") and head.get("kind") == "binary"
    }
    counts = {name: 2 if name in binary else 5 for name in ("gender", "ethnicity")}
    labels = {
        name: (years % counts[name] if name in counts else years).astype(dtype)
        for name, dtype in LABELS.items()
    }
    return sources.Source(
        name="stand-in",
        images=np.zeros((len(years), 1, 1, 3), np.uint8),
        labels=labels,
        ids=years.astype(str),
        groups=years,
        label_names={name: tuple(map(str, range(count))) for name, count in counts.items()},
        fingerprint="",
        skipped=(),
    )


def _perfect_scores(heads: Mapping[str, heads_lib.Head], source: sources.Source) -> dict[str, Any]:
    """What a validation finds for perfect predictions: it has the same names as any other one."""
    labels, names = heads_lib.derive(heads, source.labels, source.label_names)
    targets = {head.label for head in heads.values()} | (labels.keys() - source.labels.keys())
    predictions = {
        name: np.eye(len(names[name]))[labels[name]] if name in names else labels[name]
        for name in sorted(targets)
    }
    return {**metrics.evaluate(predictions, labels, names, resamples=1), "loss": 0.0}
