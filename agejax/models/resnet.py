"""ResNet (He et al. 2015), ResNeXt (Xie et al. 2017), SE-ResNet and SE-ResNeXt (Hu et al. 2018).

Numerics and names are those of torchvision and timm; `senet50` and `legacy_*` come from Caffe.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models.backbone import Backbone, Features
from agejax.models.layers import (
    BatchNorm,
    Conv,
    DropPath,
    Linear,
    SqueezeExcite,
    drop_path_rates,
    global_mean,
)
from agejax.models.lowerings.pool import max_pool


class Block(nnx.Module):
    """A residual branch and a shortcut; subclasses write the branch.

    Args:
      squeeze: factor by which squeeze-excite at the branch's end reduces channels; 0: none.
      drop_path: rate at which training drops the branch of an example.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        squeeze: int = 0,
        *,
        drop_path: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        se = downsample = None
        if squeeze:
            attend = functools.partial(SqueezeExcite, gate=jax.nn.sigmoid, dtype=dtype, rngs=rngs)
            se = attend(outputs, outputs // squeeze)
        if stride != 1 or inputs != outputs:
            conv = Conv(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)
            downsample = nnx.List([conv, BatchNorm(outputs)])
        self.outputs, self.se, self.downsample = outputs, se, downsample
        self.drop_path = DropPath(drop_path)

    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        raise NotImplementedError

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.branch(x, train=train)
        if self.se is not None:
            y = self.se(y)
        y = self.drop_path(y, train=train, rngs=rngs)
        if self.downsample is not None:
            conv, norm = self.downsample
            x = norm(conv(x), train=train)
        return jax.nn.relu(y + x)


class Basic(Block):
    """Two 3x3 convolutions; the first one has the stride, whatever `stride_first` is."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        *,
        stride_first: bool = False,
        drop_path: float = 0.0,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(inputs, width, stride, drop_path=drop_path, dtype=dtype, rngs=rngs)
        make = functools.partial(Conv, dtype=dtype, rngs=rngs)
        self.conv1, self.bn1 = make(inputs, width, 3, stride=stride), BatchNorm(width)
        self.conv2, self.bn2 = make(width, width, 3), BatchNorm(width)

    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        return self.bn2(self.conv2(y), train=train)


class Bottleneck(Block):
    """1x1, 3x3 in groups, 1x1 convolutions; four times as many outputs as `width`.

    Args:
      groups, group_width: of the 3x3 if `width` is 64; they scale with other widths.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        *,
        groups: int = 1,
        group_width: int = 64,
        squeeze: int = 0,
        stride_first: bool = False,
        drop_path: float = 0.0,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        outputs, inner = 4 * width, width * group_width // 64 * groups
        super().__init__(
            inputs, outputs, stride, squeeze, drop_path=drop_path, dtype=dtype, rngs=rngs
        )
        make = functools.partial(Conv, dtype=dtype, rngs=rngs)
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1, self.bn1 = make(inputs, inner, 1, stride=first), BatchNorm(inner)
        self.conv2 = make(inner, inner, 3, stride=second, groups=groups)
        self.bn2 = BatchNorm(inner)
        self.conv3, self.bn3 = make(inner, outputs, 1), BatchNorm(outputs)

    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = jax.nn.relu(self.bn2(self.conv2(y), train=train))
        return self.bn3(self.conv3(y), train=train)


class ResNet(Backbone):
    """Images [B, H, W, 3] -> pooled features [B, 512 or 2048], or logits.

    Args:
      block: called with inputs, width and stride.
      depths: blocks in each of the four stages.
      ceil_pool: the stem's max pool as in Caffe: no padding, and a last window that extends past
        the image counts too. False: one pixel of padding on every side.
      stride_first: the first 1x1 of a bottleneck has the stride, as in the paper, Caffe and Keras.
        False: its 3x3 has it, which is called v1.5.
      drop_path: rate of the last block's `DropPath`; it grows from 0 at the first.
    """

    def __init__(
        self,
        block: Callable[..., Block],
        depths: tuple[int, ...],
        ceil_pool: bool = False,
        *,
        stride_first: bool = False,
        num_classes: int | None = None,
        drop_path: float = 0.0,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv1 = Conv(3, 64, 7, stride=2, dtype=dtype, rngs=rngs)
        self.bn1, self.ceil_pool = BatchNorm(64), ceil_pool
        make = functools.partial(block, stride_first=stride_first, dtype=dtype, rngs=rngs)
        channels, layers = 64, []
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(make(channels, 64 * 2**i, stride, drop_path=next(rates)))
                channels = blocks[-1].outputs
            layers.append(nnx.List(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.feature_dim, self.num_classes = channels, num_classes
        self.fc = Linear(channels, num_classes, rngs=rngs) if num_classes is not None else None

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        x = max_pool(x, 3, 2, ceil=True) if self.ceil_pool else max_pool(x, 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = self.run(block, x, train=train, rngs=rngs)
        return Features(x, global_mean(x))

    def layer_paths(self) -> list[tuple[str, ...]]:
        stages = enumerate((self.layer1, self.layer2, self.layer3, self.layer4), 1)
        blocks = [(f"layer{i}/{j}",) for i, stage in stages for j in range(len(stage))]
        return [("conv1", "bn1"), *blocks]

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

ResNeXt = functools.partial(Bottleneck, groups=32, group_width=4)
SE = functools.partial(Bottleneck, squeeze=16)
SEResNeXt = functools.partial(ResNeXt, squeeze=16)
resnext50_32x4d = functools.partial(ResNet, ResNeXt, (3, 4, 6, 3))
seresnet50 = functools.partial(ResNet, SE, (3, 4, 6, 3))
seresnext50_32x4d = functools.partial(ResNet, SEResNeXt, (3, 4, 6, 3))
senet50 = functools.partial(ResNet, SE, (3, 4, 6, 3), True, stride_first=True)
legacy_seresnext50_32x4d = functools.partial(ResNet, SEResNeXt, (3, 4, 6, 3), True)
