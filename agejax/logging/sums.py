"""The sums of a step's metrics in one array: one result to keep and to fetch, not one per name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.tree_util.register_dataclass, data_fields=["pairs"], meta_fields=["names"])
@dataclasses.dataclass(frozen=True, eq=False)
class Sums(Mapping[str, Any]):
    """A mapping: name -> float32 [2], a sum and its count; of several steps [steps, 2].

    Attributes:
      pairs: float32 [names, 2]; of several steps [steps, names, 2].
    """

    pairs: Any
    names: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Mapping[str, Any]) -> Sums:
        """Joins {name: float32 [2] or [steps, 2]}; NumPy's arrays stay NumPy's."""
        names = tuple(sorted(pairs))
        traced = any(isinstance(pair, jax.Array) for pair in pairs.values())
        stack = jnp.stack if traced else np.stack
        return cls(stack([pairs[name] for name in names], axis=-2), names)

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        return self.pairs[..., self.names.index(name), :]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
