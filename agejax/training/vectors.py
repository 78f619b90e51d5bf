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
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

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

    def join(self, arrays: Mapping[str, Any]) -> jax.Array:
        """{name: array} -> the vector."""
        if len(self.arrays) == 1:
            lone: jax.Array = arrays[self.arrays[0][0]]
            return lone
        ordered = (arrays[name] for name, _ in self.arrays)
        if self.by_output:
            ordered = (x.transpose(OHWI) if x.ndim == 4 else x for x in ordered)
        return jnp.concatenate([x.reshape(-1) for x in ordered])

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
    """A pytree with every `Vectors` in it as a dict of arrays; abstract arrays stay abstract."""
    return jax.tree.map(
        lambda x: _as_dict(x) if isinstance(x, Vectors) else x, tree, is_leaf=_is_vectors
    )


def packed(tree: Any, like: Any) -> Any:
    """The inverse of `unpacked`, for a tree like this one."""
    return jax.tree.map(
        lambda x, arrays: _joined(x, arrays) if isinstance(x, Vectors) else arrays,
        like, tree, is_leaf=_is_vectors,
    )  # fmt: skip


def _is_vectors(x: Any) -> bool:
    return isinstance(x, Vectors)


def _as_dict(x: Vectors) -> dict[str, Any]:
    if any(isinstance(each, jax.ShapeDtypeStruct) for each in x.vectors):
        return dict(x)
    arrays: dict[str, Any] = _slices(x)
    return arrays


@jax.jit  # one program, not one for each array
def _slices(x: Vectors) -> dict[str, jax.Array]:
    return dict(x)


def _joined(like: Vectors, arrays: Mapping[str, Any]) -> Vectors:
    shardings = jax.tree.map(lambda x: x.sharding, like)
    vectors: Vectors = jax.jit(like.pack, out_shardings=shardings)(dict(arrays))
    return vectors
