"""Distillation (Hinton et al. 2015): runs that were trained before teach this one.

Teachers see the very images that the student does, as augmented and mixed for it ("consistent" in
Beyer et al. 2022), and say the mean of their probabilities. Those are the targets of a share of
each head's loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from flax import nnx

from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.heads import Head
from agejax.run import Run
from agejax.state import Flat, Model

Arrays = tuple[tuple[Flat, Flat], ...]  # (params, batch_stats) of each teacher


@dataclasses.dataclass(frozen=True)
class Teachers:
    """Trained networks, their arrays, the heads that learn of them, and their share of the loss."""

    models: Sequence[Model]
    arrays: Arrays
    heads: Sequence[str]
    share: float

    @classmethod
    def open(
        cls, config: ml_collections.ConfigDict, heads: Mapping[str, Head], source: Source
    ) -> Teachers | None:
        """Of config.distill; None where it names no runs.

        Raises:
          UserError: no such run, one of other data, splits, heads or image size, or a head without
            probabilities.
        """
        if not config.distill.runs:
            return None
        for name, head in heads.items():
            if type(head).logits is Head.logits:
                raise UserError(
                    f"config.distill: head {name} gives no probabilities to learn; set its kind to "
                    "distribution, categorical, binary or buckets"
                )
        runs = [Run.open(path, config.sharding.devices) for path in config.distill.runs]
        size = config.model.image_size
        for run in runs:
            where = f"config.distill.runs: {run.workdir}"
            if not run.has_splits(source.fingerprint, config):
                raise UserError(
                    f"{where} was trained on other data or another split, and may have seen what "
                    "this run is judged on; train it on this one's"
                )
            if run.config.model.image_size != size:
                raise UserError(f"{where} sees {run.config.model.image_size} px; this one {size}")
            for name, head in heads.items():
                other = run.heads.get(name)
                if type(other) is not type(head) or _shapes(other) != _shapes(head):
                    raise UserError(f"{where} has no head {name} with the same classes")
        models = [run.model for run in runs if run.model is not None]
        arrays = tuple((run.params, run.batch_stats) for run in runs)
        return cls(models, arrays, tuple(heads), config.distill.share)

    def say(self, arrays: Arrays, images: jax.Array) -> dict[str, jax.Array]:
        """Images [B, S, S, 3] in 0..1 -> head -> the mean of their probabilities, f32 [B, K]."""
        said: dict[str, jax.Array] = {}
        for model, (params, batch_stats) in zip(self.models, arrays, strict=True):
            outputs, _ = model.apply(params, batch_stats, images)
            for name in self.heads:  # a teacher may have others
                p = jax.nn.softmax(model.heads[name].logits(outputs[name])) / len(self.models)
                said[name] = said[name] + p if name in said else p
        return said


def _shapes(head: Head) -> Any:
    """Of the last layer of one feature: it has an output for each class."""
    return jax.tree.map(
        lambda x: x.shape, nnx.state(nnx.eval_shape(lambda: head.output(1, nnx.Rngs(0))))
    )
