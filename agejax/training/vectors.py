"""Named arrays kept in few long vectors: a step then reads and writes 20 arrays, not 700.

Each array of a state costs time: to dispatch, to compile, and on a GPU a launch for each operation
of the optimizer and the average. Arrays that are updated alike therefore share one vector. Names
and shapes stay at every border: checkpoints, opened runs and weight files hold dicts (`unpacked`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
OHWI, HWIO = (3, 0, 1, 2), (1, 2, 3, 0)  # of a kernel [H, W, I, O], and back


@dataclasses.dataclass(frozen=True)
class Group:
    """The names and shapes of the arrays of one vector, in order. A lone array keeps its shape.

    Attributes:
      by_output: convolution kernels [H, W, I, O] lie in the vector as [O, H, W, I].
    """

    arrays: tuple[tuple[str, Shape], ...]
    by_output: bool = False

    @functools.cached_property
    def places(self) -> dict[str, tuple[int, int, Shape]]:
        """Name -> (start and end in the vector, shape)."""
        sizes = [math.prod(shape) for _, shape in self.arrays]
        ends = list(itertools.accumulate(sizes))
        return {
            name: (end - size, end, shape)
            for (name, shape), size, end in zip(self.arrays, sizes, ends, strict=True)
        }

    def join(self, arrays: Mapping[str, Any]) -> Any:
        """{name: array} -> the vector."""
        if len(self.arrays) == 1:
            return arrays[self.arrays[0][0]]
        ordered = (arrays[name] for name, _ in self.arrays)
        if self.by_output:
            ordered = (x.transpose(OHWI) if x.ndim == 4 else x for x in ordered)
        flat = [x.reshape(-1) for x in ordered]
        # What is on the host stays there.
        on_host = all(isinstance(x, np.ndarray) for x in flat)
        return np.concatenate(flat) if on_host else jnp.concatenate(flat)

    def take(self, vector: Any, name: str) -> Any:
        """The array of this name: a slice of the vector."""
        start, end, shape = self.places[name]
        if isinstance(vector, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, vector.dtype, sharding=vector.sharding)
        if len(self.arrays) == 1:
            return vector
        part = vector[start:end]
        if self.by_output and len(shape) == 4:
            return part.reshape([shape[axis] for axis in OHWI]).transpose(HWIO)
        return part.reshape(shape)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["vectors"], meta_fields=["groups"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Vectors(Mapping[str, Any]):
    """A dict of arrays, as a pytree of few vectors: `tree.map` over it is of whole vectors.

    Attributes:
      vectors: of each group. A lone array has its own shape.
      groups: ordered by their names.
    """

    vectors: tuple[Any, ...]
    groups: tuple[Group, ...]

    @classmethod
    def of(
        cls, arrays: Mapping[str, Any], keys: Mapping[str, Hashable], by_output: bool = False
    ) -> Vectors:
        """Puts arrays with equal keys into one vector.

        Args:
          by_output: the order of convolution kernels there, as in `Group`.
        """
        names: dict[Hashable, list[str]] = {}
        for name in sorted(arrays):
            names.setdefault(keys[name], []).append(name)
        groups = [
            Group(tuple((name, arrays[name].shape) for name in each), by_output)
            for each in names.values()
        ]
        return cls._ordered({group: group.join(arrays) for group in groups})

    @classmethod
    def _ordered(cls, vectors: Mapping[Group, Any]) -> Vectors:
        groups = tuple(sorted(vectors, key=lambda group: group.arrays))
        return cls(tuple(vectors[group] for group in groups), groups)

    def __getitem__(self, name: str) -> Any:
        for group, vector in zip(self.groups, self.vectors, strict=True):
            if name in group.places:
                return group.take(vector, name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(group.places for group in self.groups)

    def __len__(self) -> int:
        return sum(len(group.arrays) for group in self.groups)

    def __or__(self, other: Vectors) -> Vectors:
        """The groups of both; of equal ones, the vector of `other`."""
        pairs = (zip(each.groups, each.vectors, strict=True) for each in (self, other))
        return self._ordered(dict(itertools.chain(*pairs)))

    def pack(self, arrays: Mapping[str, Any]) -> Vectors:
        """Other arrays of the same names and shapes, in the same groups."""
        return Vectors(tuple(group.join(arrays) for group in self.groups), self.groups)

    def split(self, names: Collection[str]) -> tuple[Vectors, Vectors]:
        """(the groups of other names, those of `names`); no group holds both."""
        pairs = list(zip(self.groups, self.vectors, strict=True))
        parts = (
            {g: v for g, v in pairs if (g.arrays[0][0] in names) is chosen}
            for chosen in (False, True)
        )
        others, chosen = map(self._ordered, parts)
        return others, chosen

    def spread(self, values: Mapping[str, Any]) -> Vectors:
        """The value of each vector, where all its names have the same one."""
        return Vectors(tuple(values[group.arrays[0][0]] for group in self.groups), self.groups)


def unpacked(tree: Any) -> Any:
    """A pytree with every `Vectors` in it as a dict of its arrays."""
    return _each(dict, tree)


def packed(tree: Any, like: Any) -> Any:
    """The inverse of `unpacked` and `on_host`: the vectors are on the devices of `like`."""
    return _each(_placed, like, tree)


def on_host(tree: Any) -> Any:
    """A pytree with all vectors of several arrays on the host, to be sliced and joined there.

    On a device this would hold all arrays twice. An array alone, which devices may share, stays
    where it is. Abstract vectors become arrays of zeros that take no memory.
    """
    return _each(_fetched, tree)


def _each(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` of each `Vectors` in a pytree, and of what is there in other trees."""
    return jax.tree.map(
        lambda x, *rest: function(x, *rest) if isinstance(x, Vectors) else (x, *rest)[-1],
        tree, *others, is_leaf=lambda x: isinstance(x, Vectors),
    )  # fmt: skip


def _fetched(x: Vectors) -> Vectors:
    def fetch(vector: Any) -> np.ndarray:
        if isinstance(vector, jax.ShapeDtypeStruct):
            return np.broadcast_to(np.zeros((), vector.dtype), vector.shape)
        fetched: np.ndarray = jax.device_get(vector)
        return fetched

    pairs = zip(x.groups, x.vectors, strict=True)
    return Vectors(tuple(fetch(v) if len(g.arrays) > 1 else v for g, v in pairs), x.groups)


def _placed(like: Vectors, arrays: Mapping[str, Any]) -> Vectors:
    def put(vector: Any, at: jax.sharding.Sharding) -> jax.Array:
        if isinstance(vector, jax.Array):
            return vector  # an array alone, which never left them
        # Every process has all of it, and puts what its devices need.
        return jax.make_array_from_callback(vector.shape, at, lambda index: vector[index])

    placed: Vectors = jax.tree.map(
        lambda vector, x: put(vector, x.sharding), like.pack(arrays), like
    )
    return placed
