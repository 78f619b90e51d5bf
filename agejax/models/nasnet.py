"""NASNet-A (Zoph et al. 2018) and PNASNet-5 (Liu et al. 2018): cells found by search, as tables.

Numerics are timm's, or with an option Keras'. All layers use TensorFlow's "same" padding, except
the first convolution, which has none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agejax.models.backbone import Backbone, Features
from agejax.models.layers import (
    BatchNorm,
    Conv,
    Linear,
    global_mean,
)
from agejax.models.lowerings.pool import max_pool, mean_pool
from agejax.models.lowerings.windows import pad_same

# The start of a branch: the input before the last, the last input, or an earlier block's sum.
Source = Literal["previous", "current"] | int
P: Literal["previous"] = "previous"
H: Literal["current"] = "current"
Branch = tuple[Source, Literal["separable", "mean", "max", "identity"], int]  # the size comes last


class Design(NamedTuple):
    """A cell: each block is the sum of two branches; `joined` lists the parts of the output."""

    blocks: tuple[tuple[Branch, Branch], ...]
    joined: tuple[Source, ...]


# Figure 4 of NASNet.
NASNET_NORMAL = Design(
    (
        ((H, "separable", 5), (P, "separable", 3)),
        ((P, "separable", 5), (P, "separable", 3)),
        ((H, "mean", 3), (P, "identity", 1)),
        ((P, "mean", 3), (P, "mean", 3)),
        ((H, "separable", 3), (H, "identity", 1)),
    ),
    (P, 0, 1, 2, 3, 4),
)
NASNET_REDUCTION = Design(
    (
        ((H, "separable", 5), (P, "separable", 7)),
        ((H, "max", 3), (P, "separable", 7)),
        ((H, "mean", 3), (P, "separable", 5)),
        ((1, "identity", 1), (0, "mean", 3)),
        ((0, "separable", 3), (H, "max", 3)),
    ),
    (1, 2, 3, 4),
)
# Figure 1 of PNASNet, which has only one cell.
PNASNET = Design(
    (
        ((P, "separable", 5), (P, "max", 3)),
        ((H, "separable", 7), (H, "max", 3)),
        ((H, "separable", 5), (H, "separable", 3)),
        ((2, "separable", 3), (H, "max", 3)),
        ((P, "separable", 3), (H, "identity", 1)),
    ),
    (0, 1, 2, 3, 4),
)
EPSILON = 1e-3  # of the batch norms
MakeConv = Callable[..., Conv]  # given widths, size and stride
MakeNorm = Callable[..., BatchNorm]  # given the width


class ReluConvNorm(nnx.Module):
    """ReLU, 1x1 convolution, batch norm."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, conv: MakeConv, norm: MakeNorm
    ) -> None:
        self.conv, self.norm = conv(inputs, outputs, 1, stride=stride), norm(outputs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(self.conv(jax.nn.relu(x)), train=train)


class FactorizedReduction(nnx.Module):
    """ReLU; halves maps: half of the channels come from even pixels, half from odd ones."""

    def __init__(self, inputs: int, outputs: int, *, conv: MakeConv, norm: MakeNorm) -> None:
        self.paths = nnx.List([conv(inputs, outputs // 2, 1) for _ in range(2)])
        self.norm = norm(outputs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = jax.nn.relu(x)
        shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        halves = [path(y[:, ::2, ::2]) for path, y in zip(self.paths, (x, shifted), strict=True)]
        return self.norm(jnp.concatenate(halves, axis=-1), train=train)


Adjust = type[ReluConvNorm] | type[FactorizedReduction]


class SeparableConv(nnx.Module):
    """ReLU, depthwise convolution, 1x1 convolution, batch norm."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int, conv: MakeConv, norm: MakeNorm
    ) -> None:
        self.depthwise = conv(inputs, inputs, size, stride=stride, groups=inputs)
        self.pointwise, self.norm = conv(inputs, outputs, 1), norm(outputs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(self.pointwise(self.depthwise(jax.nn.relu(x))), train=train)


class Separable(nnx.Module):
    """Two separable convolutions; the first one has the stride."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, **make: Any) -> None:
        first = SeparableConv(inputs, outputs, size, stride=stride, **make)
        self.convs = nnx.List([first, SeparableConv(outputs, outputs, size, stride=1, **make)])

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for conv in self.convs:
            x = conv(x, train=train)
        return x


class Pool(nnx.Module):
    """Maximum or mean; if the width changes, also a 1x1 convolution and batch norm.

    Args:
      border: padding value of maxima.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        kind: str,
        stride: int,
        border: float,
        conv: MakeConv,
        norm: MakeNorm,
    ) -> None:
        self.kind, self.size, self.stride, self.border = kind, size, stride, border
        self.conv = conv(inputs, outputs, 1) if inputs != outputs else None
        self.norm = norm(outputs) if inputs != outputs else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.kind == "mean":
            # Keras and timm pad before pooling with a stride.
            x = mean_pool(x, self.size, self.stride, count_padding=self.stride > 1)
        else:
            x = max_pool(pad_same(x, self.size, self.stride, self.border), self.size, self.stride)
        if self.conv is None or self.norm is None:
            return x
        return self.norm(self.conv(x), train=train)


class Identity(nnx.Module):
    """The input itself."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x


class Cell(nnx.Module):
    """Computes one map from two, by a design.

    Args:
      filters: channels of every block.
      previous, current: channels of the inputs.
      stride: 2 in a reduction cell, for all branches that start from the inputs.
      adjust: how the input before the last gets `filters` channels and the size of the last; None
        leaves it as it is.
      border: padding value of maxima.
    """

    def __init__(
        self,
        design: Design,
        filters: int,
        previous: int,
        current: int,
        *,
        stride: int,
        adjust: Adjust | None,
        border: float,
        **make: Any,
    ) -> None:
        self.design, self.stride = design, stride
        self.adjust = None if adjust is None else adjust(previous, filters, **make)
        self.squeeze = ReluConvNorm(current, filters, **make)

        def branch(source: Source, kind: str, size: int) -> nnx.Module:
            inputs = previous if source == P and adjust is None else filters
            step = stride if source in (P, H) else 1
            if kind == "separable":
                return Separable(inputs, filters, size, stride=step, **make)
            if kind == "identity":
                return ReluConvNorm(inputs, filters, stride=2, **make) if step > 1 else Identity()
            return Pool(inputs, filters, size, kind=kind, stride=step, border=border, **make)

        self.blocks = nnx.List(
            [nnx.List([branch(*row) for row in block]) for block in design.blocks]
        )

    def __call__(self, previous: jax.Array, current: jax.Array, *, train: bool) -> jax.Array:
        if self.adjust is not None:
            previous = self.adjust(previous, train=train)
        maps: dict[Source, jax.Array] = {P: previous, H: self.squeeze(current, train=train)}
        for i, (block, rows) in enumerate(zip(self.blocks, self.design.blocks, strict=True)):
            left, right = (
                branch(maps[source], train=train)
                for branch, (source, _, _) in zip(block, rows, strict=True)
            )
            maps[i] = left + right
        return jnp.concatenate([maps[source] for source in self.design.joined], axis=-1)


class NASNet(Backbone):
    """Images [B, H, W, 3] -> pooled features [B, 1056, 4032 or 4320], or logits.

    Args:
      normal, reduction: designs of the cells.
      stem: channels of the first convolution.
      filters: of the first stage's cells; each further stage has twice as many.
      repeats: normal cells in each stage.
      skip_reduction: whether the cell after a reduction cell skips it, and has the same input
        before the last as the reduction cell itself.
      zero_padded_max: Keras pads with zeros before maxima, and zeros win over negative values;
        timm and TensorFlow ignore the padding.
      norm_momentum: the new value's share in the batch-norm statistics; Keras' 0.0003 suits very
        long runs, and lags behind in a run of a few thousand steps.
    """

    def __init__(
        self,
        normal: Design,
        reduction: Design,
        stem: int,
        filters: int,
        repeats: tuple[int, ...],
        skip_reduction: bool,
        *,
        zero_padded_max: bool = False,
        norm_momentum: float = 0.1,
        num_classes: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        make: dict[str, Any] = {
            "conv": functools.partial(Conv, padding="same", dtype=dtype, rngs=rngs),
            "norm": functools.partial(BatchNorm, epsilon=EPSILON, momentum=norm_momentum),
        }
        self.conv = Conv(3, stem, 3, stride=2, padding=0, dtype=dtype, rngs=rngs)
        self.norm = make["norm"](stem)
        rows = cell_rows(filters, repeats)
        self.previous = previous_maps([stride for _, stride in rows], skip_reduction)
        channels = [stem]  # of the stem's map, then of each cell's
        cells: list[Cell] = []
        for (width, stride), before in zip(rows, self.previous, strict=True):
            design = normal if stride == 1 else reduction
            cells.append(
                Cell(
                    design,
                    width,
                    channels[before],
                    channels[-1],
                    stride=stride,
                    adjust=adjustment(cells),
                    border=0.0 if zero_padded_max else -np.inf,
                    **make,
                )
            )
            channels.append(width * len(design.joined))
        self.cells = nnx.List(cells)
        self.feature_dim, self.num_classes = channels[-1], num_classes
        self.classifier = (
            None if num_classes is None else Linear(self.feature_dim, num_classes, rngs=rngs)
        )

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        maps = [self.norm(self.conv(x), train=train)]
        for cell, before in zip(self.cells, self.previous, strict=True):
            maps.append(self.run(cell, maps[before], maps[-1], train=train))
        x = jax.nn.relu(maps[-1])
        return Features(x, global_mean(x))

    def layer_paths(self) -> list[tuple[str, ...]]:
        return [("conv", "norm"), *((f"cells/{i}",) for i in range(len(self.cells)))]

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        assert self.classifier is not None
        return self.classifier(features.pooled)


def adjustment(before: list[Cell]) -> Adjust | None:
    """For the next cell's input before the last; the first cell gets its only input twice."""
    if not before:
        return None
    return FactorizedReduction if before[-1].stride == 2 else ReluConvNorm


def cell_rows(filters: int, repeats: tuple[int, ...]) -> list[tuple[int, int]]:
    """(filters, stride) of every cell: two halving cells of the stem, then the stages."""
    rows = [(filters // 4, 2), (filters // 2, 2)]
    for stage, normal in enumerate(repeats):
        width = filters * 2**stage
        rows += [(width, 2)] * (stage > 0) + [(width, 1)] * normal
    return rows


def previous_maps(strides: list[int], skip_reduction: bool) -> tuple[int, ...]:
    """Each cell's input before the last: 0 is the stem's map, 1 that of the first cell."""
    return tuple(
        max(0, i - 2 if skip_reduction and i > 2 and strides[i - 1] == 2 else i - 1)
        for i in range(len(strides))
    )


NASNET_A = functools.partial(NASNet, NASNET_NORMAL, NASNET_REDUCTION)
MOBILE, LARGE, PNASNET5_LARGE = (4, 4, 4), (6, 6, 6), (4, 3, 3)  # normal cells per stage
nasnet_mobile = functools.partial(NASNET_A, 32, 44, MOBILE, False)
nasnet_large = functools.partial(NASNET_A, 96, 168, LARGE, True)
pnasnet5_large = functools.partial(NASNet, PNASNET, PNASNET, 96, 216, PNASNET5_LARGE, False)
