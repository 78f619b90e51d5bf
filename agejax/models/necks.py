"""A head's own layers between backbone and output: convolutions, dense layers, dropout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models import layers
from agejax.models.backbone import Features
from agejax.models.lowerings.pool import max_pool
from agejax.settings import Group, Setting

ACTIVATIONS: dict[str, layers.Activation] = {
    "relu": jax.nn.relu,
    "hard_swish": jax.nn.hard_swish,
    "gelu": jax.nn.gelu,
}
MOST_WIDTH = 2**16

# config.heads.NAME.neck; the defaults are those of a dense layer.
SETTINGS = Group(
    "Layers of a head's own between backbone and output.",
    greyscale=Setting(False, "The head uses the backbone's features of the greyscale image."),
    convs=Setting(
        (),
        "Channels of 3x3 convolutions over the backbone's maps, each with batch norm.",
        item=int,
        limits=(1, MOST_WIDTH),
    ),
    max_pool=Setting(False, "A 2x2 max pool follows each convolution."),
    pool=Setting(
        "mean",
        "How maps become features; mean without convolutions is the backbone's own pooling.",
        choices=("mean", "flatten"),
    ),
    hidden=Setting((), "Widths of dense layers.", item=int, limits=(1, MOST_WIDTH)),
    activation=Setting(
        "relu", "Activation after each of these layers.", choices=tuple(ACTIVATIONS)
    ),
    dropout=Setting(
        0.0,
        "Dropout rate before each dense layer but the first, and before the output.",
        limits=(0, None),
        below=1,
    ),
    input_dropout=Setting(
        0.0,
        "Dropout rate of the input of the first dense layer.",
        limits=(0, None),
        below=1,
    ),
)


@dataclasses.dataclass(frozen=True)
class NeckOptions:
    """The values of `SETTINGS`."""

    greyscale: bool
    convs: tuple[int, ...]
    max_pool: bool
    pool: str
    hidden: tuple[int, ...]
    activation: str
    dropout: float
    input_dropout: float

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> NeckOptions:
        """Raises `UserError` for an unknown key or an invalid value."""
        SETTINGS.check(given, where)
        values = SETTINGS.defaults() | dict(given)
        return cls(**values | {k: tuple(values[k]) for k in ("convs", "hidden")})


class Neck(nnx.Module):
    """`Features` -> the inputs [B, width] of one head's linear output, float32.

    The caller applies the last dropout, before the output: feature smoothing (`FeatureSmoothing`)
    comes before it.

    Args:
      maps: shape [h, w, C] of the backbone's maps.
    """

    def __init__(
        self,
        options: NeckOptions,
        maps: tuple[int, int, int],
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.options = options
        height, width, channels = maps
        convs, norms = [], []
        for outputs in options.convs:
            convs.append(layers.Conv(channels, outputs, 3, dtype=dtype, rngs=rngs))
            norms.append(layers.BatchNorm(outputs))
            channels = outputs
            if self._pools(height, width):
                height, width = height // 2, width // 2
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        inputs = height * width * channels if options.pool == "flatten" else channels
        hidden = []
        for outputs in options.hidden:
            hidden.append(
                layers.Linear(inputs, outputs, init=layers.kaiming_fan_out, dtype=dtype, rngs=rngs)
            )
            inputs = outputs
        self.hidden = nnx.List(hidden)
        self.dropout = layers.Dropout(options.dropout)
        self.input_dropout = layers.Dropout(options.input_dropout)
        self.width = inputs

    def _pools(self, height: int, width: int) -> bool:
        # A map of one pixel cannot be pooled further.
        return self.options.max_pool and min(height, width) > 1

    def __call__(
        self, features: Features, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        activation, x = ACTIVATIONS[self.options.activation], features.maps
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = activation(norm(conv(x), train=train))
            if self._pools(*x.shape[1:3]):
                x = max_pool(x, 2, 2)
        if self.options.pool == "flatten":
            x = x.reshape(x.shape[0], -1)
        else:
            x = layers.global_mean(x) if self.options.convs else features.pooled
        x = self.input_dropout(x, train=train, rngs=rngs)
        for i, dense in enumerate(self.hidden):
            x = x if i == 0 else self.dropout(x, train=train, rngs=rngs)
            x = activation(dense(x))
        return x.astype(jnp.float32)
