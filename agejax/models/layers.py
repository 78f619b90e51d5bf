"""The layers that all models share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from agejax.models import lowerings
from agejax.models.lowerings.conv import conv, matmul
from agejax.models.lowerings.norm import batch_norm, layer_norm
from agejax.models.lowerings.windows import pad_same, same_pads

Activation = Callable[[jax.Array], jax.Array]
Initializer = jax.nn.initializers.Initializer

trunc_normal = jax.nn.initializers.truncated_normal(0.02)
# torchvision's default for convolutions (He et al. 2015): N(0, 2 / fan out).
kaiming_fan_out = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nnx.Module):
    """Square convolution; parameters float32.

    Args:
      padding: on every side, as in torch; None for size // 2; "same" for TensorFlow's, which at
        stride 2 depends on the input's size and may be one larger after than before.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: int | Literal["same"] | None = None,
        groups: int = 1,
        use_bias: bool = False,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.size, self.stride, self.groups, self.dtype = size, stride, groups, dtype
        self.padding: int | str = size // 2 if padding is None else padding
        shape = (size, size, inputs // groups, outputs)
        self.kernel = nnx.Param(kaiming_fan_out(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, x, padding = self.kernel[...].astype(self.dtype), x.astype(self.dtype), self.padding
        if isinstance(padding, str):
            pads = {same_pads(n, self.size, self.stride) for n in x.shape[1:3]}
            before, after = next(iter(pads))
            if len(pads) == 1 and before == after:
                padding = before
            else:
                x, padding = pad_same(x, self.size, self.stride), 0
        y = conv(x, kernel, self.stride, padding, self.groups)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class BatchNorm(nnx.Module):
    """Batch norm with torch's conventions: momentum is the new value's share, variance unbiased.

    With `frozen` it uses its running statistics in training too, and does not update them. With
    `observing` it uses and updates them. With `per_device` each device of a training step
    normalises its own images by their own statistics, and the running ones follow their average
    over the devices.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        self.epsilon, self.momentum = epsilon, momentum
        self.frozen = self.observing = self.per_device = False
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale, bias = self.scale[...], self.bias[...]
        parts = lowerings.batch_parts() if self.per_device else 1
        fixed = not train or self.frozen
        if fixed or self.observing:
            a = scale * lax.rsqrt(self.var[...] + self.epsilon)
            y = (x * a + (bias - self.mean[...] * a)).astype(x.dtype)
            if fixed:
                return y
            _, mean, variance = batch_norm(x, scale, bias, self.epsilon, parts)
        else:
            y, mean, variance = batch_norm(x, scale, bias, self.epsilon, parts)
        n = x.size // x.shape[-1] // parts
        unbiased = variance * (n / max(n - 1, 1))
        # Not `self.mean[...] = `: flax then asks for a sharding, for which JAX searches everything
        # traced so far, so that tracing a deep network takes four times as long.
        self.mean.set_value((1 - self.momentum) * self.mean[...] + self.momentum * mean)
        self.var.set_value((1 - self.momentum) * self.var[...] + self.momentum * unbiased)
        return y


def batch_norms(network: nnx.Module) -> dict[str, BatchNorm]:
    """The batch norms of a network by their paths, such as "backbone/norms/0"."""
    return {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_modules(network)
        if isinstance(module, BatchNorm)
    }


class Linear(nnx.Module):
    """Dense layer; parameters float32."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        init: Initializer = trunc_normal,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return matmul(x.astype(self.dtype), kernel) + bias


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed in float32."""

    def __init__(self, features: int, *, epsilon: float = 1e-6) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


class Dropout(nnx.Module):
    """Inverted dropout; draws from the `dropout` stream of the rngs given at the call."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        if not train or self.rate == 0 or rngs is None:
            return x
        keep = jax.random.bernoulli(rngs.dropout(), 1 - self.rate, self.mask_shape(x))
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))

    def mask_shape(self, x: jax.Array) -> tuple[int, ...]:
        """Shape of the draws, which broadcast to x."""
        return x.shape


class DropPath(Dropout):
    """Stochastic depth (Huang et al. 2016): drops a residual branch for random examples.

    The kept ones are scaled up, so that the expectation stays the same, as in timm.
    """

    def mask_shape(self, x: jax.Array) -> tuple[int, ...]:
        return (x.shape[0],) + (1,) * (x.ndim - 1)


def drop_path_rates(rate: float, blocks: int) -> list[float]:
    """The rate of each block: from 0 for the first linearly to `rate` for the last, as in timm."""
    rates: list[float] = np.linspace(0, rate, blocks).tolist()
    return rates


class SqueezeExcite(nnx.Module):
    """Channel attention (Hu et al. 2018): `act` inside, and `gate` on the multipliers."""

    def __init__(
        self,
        features: int,
        squeezed: int,
        *,
        act: Activation = jax.nn.relu,
        gate: Activation = jax.nn.hard_sigmoid,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.act, self.gate = act, gate
        # 1x1 convolutions in torchvision, so initialised like its convolutions.
        make = functools.partial(Linear, init=kaiming_fan_out, dtype=dtype, rngs=rngs)
        self.fc1, self.fc2 = make(features, squeezed), make(squeezed, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = self.gate(self.fc2(self.act(self.fc1(global_mean(x)))))
        return x * gate[:, None, None, :]


def global_mean(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, C], float32."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
