"""What a training is about to do: the lines it opens with, and what a dry run finds out."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from agejax.config import default
from agejax.data.features import CachedFeatures
from agejax.data.pipeline import TrainBatches
from agejax.data.sources import Source
from agejax.logging import console
from agejax.logging.cost import Cost
from agejax.settings import leaves, to_json
from agejax.training import resident, sharding
from agejax.training.checkpoint import Checkpoints
from agejax.training.first_call import FirstCall
from agejax.training.state import Model, TrainState


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training is about to do.

    Attributes:
      config: all settings, resolved.
      workdir: where it writes.
      rows: of each split, int64 [N].
      frozen: the parameters that never change.
      total_steps: of the whole run.
      epochs: what these are.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    source: Source
    rows: Mapping[str, np.ndarray]
    model: Model
    frozen: Collection[str]
    mesh: Mesh
    total_steps: int
    epochs: float

    def announce(self) -> None:
        """Prints it; of several processes the first one does."""
        if jax.process_index() == 0:
            console.opening(_aligned(self._facts()))

    def dry_run(
        self, step: FirstCall, state: TrainState, batches: TrainBatches, teachers: Any
    ) -> dict[str, Any]:
        """Compiles the train step, and prints the plan with its cost and the resolved config.

        No step is taken, and nothing is written to the run's folder.

        Args:
          step: the train step for the largest images.
          state: abstract.
          batches: of images; nothing computes a frozen backbone's features.
          teachers: the arrays of the run's teachers.

        Returns:
          {"images": of each split, "parameters", "steps", "epochs", "workdir", "flops" of a step,
          "argument_bytes", "temporary_bytes": memory of a step on each device, None where the
          platform does not tell, "settings": those that differ from their default}.
        """
        placed = self._placed(batches) | {"teachers": teachers}
        if jax.process_index() == 0:
            console.note("compiling the train step")
        cost = Cost.of(step.lower(state, placed).compile())
        settings = self._settings()
        each = " on each device" if self.mesh.size > 1 else ""
        held = "state, batch and resident data" if resident.TABLE in placed else "state and batch"
        memory = _memory(cost, held) + each
        facts = self._facts() | {"compute": _compute(cost) + each, "memory": memory}
        lines = [f"  config.{path} = {json.dumps(value)}" for path, value in settings.items()]
        if jax.process_index() == 0:
            console.result(_aligned(facts))
            console.result("\n".join(["settings that differ from their defaults:", *lines]))
            console.result(f"dry run: no step was taken, nothing was written to {self.workdir}")
        return {
            "images": {name: len(rows) for name, rows in self.rows.items()},
            "parameters": self._parameters(),
            "steps": self.total_steps,
            "epochs": self.epochs,
            "workdir": str(self.workdir),
            "flops": cost.flops,
            "argument_bytes": cost.argument_bytes,
            "temporary_bytes": cost.temporary_bytes,
            "settings": settings,
        }

    def _facts(self) -> dict[str, str]:
        c, total = self.config, self._parameters()
        trained = total - self._parameters(self.frozen)
        of_them = "" if trained == total else f", {trained:,} of them trained"
        done = Checkpoints(self.workdir / "checkpoints").last
        start = c.model.pretrained or "random"
        names = sorted(self.rows, key=lambda name: (name != "train", name != "val"))
        splits = ", ".join(f"{name} {len(self.rows[name]):,}" for name in names)
        steps = f"{self.total_steps:,} of {c.data.batch_size} images"
        kind = self.mesh.devices.flat[0].device_kind
        return {
            "model": f"{c.model.name} at {c.model.image_size} px; heads {', '.join(c.heads)}",
            "parameters": f"{total:,}{of_them}",
            "weights": start if done is None else f"those of step {done:,} in the workdir",
            "data": f"{self.source.name}, {len(self.source.ids):,} images: {splits}",
            "device": f"{self.mesh.size} x {kind}",
            "steps": f"{steps}, {self.epochs:.4g} epochs",
            "workdir": str(self.workdir),
        }

    def _parameters(self, names: Collection[str] | None = None) -> int:
        """How many numbers the model's parameters have, or those of them in `names`."""
        return sum(
            int(np.prod(self.model.shapes[name]))
            for name in self.model.parameters
            if names is None or name in names
        )

    def _placed(self, batches: TrainBatches) -> dict[str, Any]:
        """A batch on the mesh; resident data, and features not computed yet, as shapes."""
        views = self.config.model.cached_views
        features = CachedFeatures(self.model.feature_dim, [{}] * views) if views else None
        drawn = dataclasses.replace(batches, features=features, resident=True)
        if resident.wanted(self.config.data.resident, drawn, self.mesh):
            table = resident.abstract(drawn, self.mesh)
            return {**sharding.put_batch(drawn[0], self.mesh), resident.TABLE: table}
        placed: dict[str, Any] = dict(sharding.put_batch(batches[0], self.mesh))
        if views:
            image = placed.pop("image")
            placed["features"] = jax.ShapeDtypeStruct(
                (len(image), self.model.feature_dim), np.float32, sharding=image.sharding
            )
        return placed

    def _settings(self) -> dict[str, Any]:
        """The settings that differ from their default, by path."""
        usual = leaves(to_json(default()))
        given = leaves(to_json(self.config))
        return {path: value for path, value in given.items() if usual.get(path) != value}


def _aligned(facts: Mapping[str, str]) -> str:
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {value}" for name, value in facts.items())


def _compute(cost: Cost) -> str:
    return "not known" if cost.flops is None else f"{cost.flops / 1e9:,.2f} GFLOP per step"


def _memory(cost: Cost, what: str) -> str:
    if cost.argument_bytes is None or cost.temporary_bytes is None:
        return "not known"
    held, more = (size / 2**20 for size in (cost.argument_bytes, cost.temporary_bytes))
    return f"{held:,.0f} MiB of {what}, {more:,.0f} MiB more during a step"
