"""Our side of a comparison: the backbone, filled from a weights file, and its outputs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx

from agejax.models import pretrained, registry
from experiments.parity.case import Case


class Ours:
    """The case's backbone with the weights of the file at `path`."""

    def __init__(self, case: Case, path: str) -> None:
        self.layout = pretrained.identify(path, case.model)[1].layout
        model = nnx.eval_shape(
            lambda: registry.create(
                case.model,
                image_size=case.size,
                num_classes=case.num_classes,
                rngs=nnx.Rngs(0),
                **{**self.layout.options, **case.options},
            )
        )
        self.graphdef, state = nnx.split(model)
        flat = {_name(where): (where, array) for where, array in nnx.to_flat_state(state)}
        shapes = {name: tuple(array.get_value().shape) for name, (_, array) in flat.items()}
        loaded = pretrained.load(path, case.model, shapes, prefix="")
        self.parameters = sum(array.size for array in loaded.arrays.values())
        self.state = nnx.from_flat_state(
            [
                (where, v.replace(jax.numpy.asarray(loaded.arrays[k])))
                for k, (where, v) in flat.items()
            ]
        )

    def answer(self, x: np.ndarray) -> np.ndarray:
        """Logits, or pooled features, of normalised images."""
        return np.asarray(
            jax.jit(lambda state, x: nnx.merge(self.graphdef, state)(x))(self.state, x)
        )

    def statistics(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The batch-norm statistics after one training step on `x`, by agejax's names."""

        def step(state: Any, x: jax.Array) -> Any:
            model = nnx.merge(self.graphdef, state)
            model(x, train=True)
            return nnx.state(model, nnx.BatchStat)

        moved = nnx.to_flat_state(jax.jit(step)(self.state, x))
        return {_name(where): np.asarray(value.get_value()) for where, value in moved}


def _name(where: tuple[Any, ...]) -> str:
    return "/".join(map(str, where))
