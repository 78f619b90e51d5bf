"""The val split of a run, scored while it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from agejax import heads as heads_lib
from agejax.data import pipeline
from agejax.data.features import CachedFeatures
from agejax.data.sources import Source
from agejax.evaluation import metrics
from agejax.training.prediction import predict_batches
from agejax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Validation:
    """Scores the val split of a run.

    Attributes:
      eval_step: of `make_eval_step` with losses.
      rows: the split, int64 [N]; None where the run has none.
      batch_size: images in a batch, over all devices.
      floor_age: predicted for every image, it gives the error to beat; years.
      features: in place of the images, where the backbone is frozen.
      look: called with the step of each evaluation and its predictions, by label.
    """

    eval_step: Callable[..., dict[str, jax.Array]]
    heads: Mapping[str, heads_lib.Head]
    source: Source
    rows: np.ndarray | None
    batch_size: int
    mesh: Mesh
    floor_age: float | None
    features: CachedFeatures | None
    look: Callable[[int, Mapping[str, np.ndarray]], None] = lambda step, predictions: None

    def __call__(
        self, state: TrainState, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """Metrics of the split, and its "loss"; None without val, or where `stop()` became true."""
        if self.rows is None:
            return None
        val = pipeline.evaluation_batches(self.source, self.rows, self.batch_size, self.features)
        predictions = predict_batches(self.eval_step, *state.averaged(), val, self.mesh, stop=stop)
        if predictions is None:
            return None
        losses = {name: predictions.pop(f"{name}/loss") for name in self.heads}
        self.look(int(state.step), predictions)
        labels = {k: v[self.rows] for k, v in self.source.labels.items()}
        found = metrics.evaluate(
            predictions,
            *heads_lib.derive(self.heads, labels, self.source.label_names),
            duplicates=self.source.groups[self.rows],
            floor_age=self.floor_age,
        )
        return {**found, "loss": self._loss(losses)}

    def _loss(self, losses: Mapping[str, np.ndarray]) -> float:
        """What training minimises, here over the labels alone: the weighted sum of head losses.

        Args:
          losses: of each head's known labels [N]; NaN where a label is unknown.
        """
        total = 0.0
        for name, loss in losses.items():
            known = loss[~np.isnan(loss)]
            total += self.heads[name].weight * float(known.mean(dtype=float)) if known.size else 0.0
        return total
