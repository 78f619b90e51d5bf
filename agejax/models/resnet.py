"""ResNet 18 to 152 (He et al. 2015), v1.5 as in torchvision: the 3x3 of a bottleneck strides."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models.backbone import Backbone, Features
from agejax.models.layers import BatchNorm, Conv, Linear, global_mean, max_pool


class Basic(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        make = functools.partial(Conv, dtype=dtype, rngs=rngs)
        self.conv1, self.bn1 = make(inputs, width, 3, stride=stride), BatchNorm(width)
        self.conv2, self.bn2 = make(width, width, 3), BatchNorm(width)
        self.downsample = _shortcut(inputs, width, stride, make)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        return jax.nn.relu(y + _shorten(self.downsample, x, train))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        make = functools.partial(Conv, dtype=dtype, rngs=rngs)
        outputs = width * self.expansion
        self.conv1, self.bn1 = make(inputs, width, 1), BatchNorm(width)
        self.conv2, self.bn2 = make(width, width, 3, stride=stride), BatchNorm(width)
        self.conv3, self.bn3 = make(width, outputs, 1), BatchNorm(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, make)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = jax.nn.relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        return jax.nn.relu(y + _shorten(self.downsample, x, train))


def _shortcut(
    inputs: int, outputs: int, stride: int, make: functools.partial[Conv]
) -> nnx.List | None:
    if stride == 1 and inputs == outputs:
        return None
    return nnx.List([make(inputs, outputs, 1, stride=stride), BatchNorm(outputs)])


def _shorten(downsample: nnx.List | None, x: jax.Array, train: bool) -> jax.Array:
    return x if downsample is None else downsample[1](downsample[0](x), train=train)


class ResNet(Backbone):
    """Images [B, H, W, 3] -> pooled features [B, 512 or 2048], or logits."""

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck],
        depths: tuple[int, ...],
        *,
        num_classes: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv1 = Conv(3, 64, 7, stride=2, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(64)
        channels, layers = 64, []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(channels, 64 * 2**i, stride, dtype=dtype, rngs=rngs))
                channels = 64 * 2**i * block.expansion
            layers.append(nnx.List(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.feature_dim, self.num_classes = channels, num_classes
        self.fc = Linear(channels, num_classes, rngs=rngs) if num_classes is not None else None

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        x = max_pool(x, 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x, train=train)
        return Features(x, global_mean(x))

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        assert self.fc is not None
        return self.fc(features.pooled)


resnet18 = functools.partial(ResNet, Basic, (2, 2, 2, 2))
resnet34 = functools.partial(ResNet, Basic, (3, 4, 6, 3))
resnet50 = functools.partial(ResNet, Bottleneck, (3, 4, 6, 3))
resnet101 = functools.partial(ResNet, Bottleneck, (3, 4, 23, 3))
resnet152 = functools.partial(ResNet, Bottleneck, (3, 8, 36, 3))
