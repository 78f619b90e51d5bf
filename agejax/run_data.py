"""The data of a run: its source, splits and facts, and what follows from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from agejax import checks
from agejax import heads as heads_lib
from agejax.data import draws, opening, pipeline, sampling, splits
from agejax.data.sources import Source
from agejax.distillation import setup as distillation
from agejax.distillation.teachers import Teachers
from agejax.heads import training
from agejax.runs import summary as summaries
from agejax.settings import to_json


@dataclasses.dataclass(frozen=True)
class RunData:
    """All that a run's data decides.

    Attributes:
      rows: of each split, int64 [N]; those of "train" without what sampling.keep leaves out.
      facts: of the training split.
      heads: with their priors.
      batches: of training, as a function of the step.
    """

    source: Source
    rows: Mapping[str, np.ndarray]
    facts: heads_lib.Facts
    heads: Mapping[str, heads_lib.Head]
    teachers: Teachers
    batches: pipeline.TrainBatches

    def kept(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """What every checkpoint of the run keeps, as JSON data."""
        return {
            "config": to_json(config),
            "fingerprint": self.source.fingerprint,
            "facts": dataclasses.asdict(self.facts),
            "distill": self.teachers.facts,
            "versions": summaries.versions(),
        }


def open_data(config: ml_collections.ConfigDict) -> RunData:
    """Opens the source, splits it, weighs its rows, and makes the heads from the training split.

    Raises:
      UserError: the data cannot be used, or does not fit the config.
    """
    source = opening.open_source(config.data)
    rows = splits.make(source, config.data.split)
    rows["train"] = train_rows = draws.keep(config.sampling, source, rows["train"])
    checks.with_data(config, rows)
    facts = heads_lib.Facts.of(
        {k: v[train_rows] for k, v in source.labels.items()}, source.label_names
    )
    drawn = draws.weigh(config.sampling, source, train_rows)
    heads, facts, example_weights = training.prepare(
        config.heads, facts, source.labels, train_rows,
        *(each.expected(len(train_rows)) for each in (drawn, draws.even(source, train_rows))),
    )  # fmt: skip
    checks.with_labels(config, heads, source, rows)
    teachers = distillation.open_teachers(config, heads, facts, source, rows)
    columns = source.labels | example_weights | teachers.columns
    batches = pipeline.TrainBatches(
        dataclasses.replace(source, labels=columns), train_rows,
        sampling.Sampler(*drawn, config.seed), config.data.batch_size,
        config.sampling.copy_strength, bool(config.augment.copies), jax.process_index(),
        jax.process_count(),
    )  # fmt: skip
    return RunData(source, rows, facts, heads, teachers, batches)
