"""What a head may put between the backbone and its output: convolutions, dense layers, dropout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.errors import UserError, check_values
from agejax.models import layers
from agejax.models.backbone import Features

ACTIVATIONS: dict[str, layers.Activation] = {
    "relu": jax.nn.relu,
    "hard_swish": jax.nn.hard_swish,
    "gelu": jax.nn.gelu,
}
POOLS = ("mean", "flatten")
MOST_WIDTH = 2**16


@dataclasses.dataclass(frozen=True)
class NeckOptions:
    """config.heads.NAME.neck; the defaults are a dense layer's.

    Attributes:
      greyscale: the head sees what the backbone makes of the image without colours.
      convs: channels of 3x3 convolutions over the backbone's maps, each with batch norm.
      max_pool: whether each convolution is followed by a 2x2 max pool.
      pool: "mean" (without convolutions: the backbone's own pooling) or "flatten".
      hidden: widths of dense layers.
      activation: relu | hard_swish | gelu, after each of them.
      dropout: before each dense layer but the first, and before the output.
      input_dropout: of what enters the dense layers, before the first of them.
    """

    greyscale: bool = False
    convs: tuple[int, ...] = ()
    max_pool: bool = False
    pool: str = "mean"
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    dropout: float = 0.0
    input_dropout: float = 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> NeckOptions:
        """Raises `UserError` for an unknown key or a value that cannot be."""
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        widths = {"convs": (0,), "hidden": (0,)}  # such as these
        check_values(given, defaults | widths, where, dict.fromkeys(widths, (1, MOST_WIDTH)))
        values: dict[str, Any] = {
            k: tuple(v) if k in ("convs", "hidden") else v for k, v in given.items()
        }
        options = cls(**values)
        for key, known in (("pool", POOLS), ("activation", tuple(ACTIVATIONS))):
            if getattr(options, key) not in known:
                raise UserError(
                    f"{where}.{key}: {getattr(options, key)!r} is not one of {', '.join(known)}"
                )
        for key in ("dropout", "input_dropout"):
            if not 0 <= getattr(options, key) < 1:
                raise UserError(f"{where}.{key}: need 0 <= {key} < 1, got {getattr(options, key)}")
        return options


class Neck(nnx.Module):
    """`Features` -> the inputs [B, width] of one head's linear output, float32.

    The last dropout, the one before the output, is left to the caller: what smooths features
    (`FeatureSmoothing`) comes before it.

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
        # A map of one pixel has nothing left to pool.
        return self.options.max_pool and min(height, width) > 1

    def __call__(
        self, features: Features, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        activation, x = ACTIVATIONS[self.options.activation], features.maps
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = activation(norm(conv(x), train=train))
            if self._pools(*x.shape[1:3]):
                x = layers.max_pool(x, 2, 2)
        if self.options.pool == "flatten":
            x = x.reshape(x.shape[0], -1)
        else:
            x = layers.global_mean(x) if self.options.convs else features.pooled
        x = self.input_dropout(x, train=train, rngs=rngs)
        for i, dense in enumerate(self.hidden):
            x = x if i == 0 else self.dropout(x, train=train, rngs=rngs)
            x = activation(dense(x))
        return x.astype(jnp.float32)
