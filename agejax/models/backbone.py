"""What every backbone is: images to feature maps and pooled features, or to published logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx


class Features(NamedTuple):
    """What heads build on.

    maps: [B, h, w, C], before pooling; C is the backbone's `feature_dim`.
    pooled: [B, C], float32.
    """

    maps: jax.Array
    pooled: jax.Array

    @classmethod
    def of_pooled(cls, pooled: jax.Array) -> Features:
        """Pooled features [B, C] that were kept without their maps: they become maps of 1 px."""
        return cls(pooled[:, None, None], pooled)


class Backbone(nnx.Module):
    """Subclasses set `feature_dim` and `num_classes`, and write the three methods below.

    Attributes:
      feature_dim: channels of the features.
      num_classes: of the published classifier; None where the model has none.
      remat: whether training recomputes the activations of each block in the backward pass.
    """

    feature_dim: int
    num_classes: int | None
    remat: bool = False

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Normalised images [B, H, W, 3] -> `Features`."""
        raise NotImplementedError

    def layer_paths(self) -> Sequence[Sequence[str]]:
        """The layers from input to output: the paths of the modules and parameters of each.

        As in timm, a layer is a block with all that follows it up to the next; the first one is
        the stem. The published classifier belongs to none.
        """
        raise NotImplementedError

    def classify(
        self, features: Features, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Logits [B, num_classes], float32, of the published classifier."""
        raise NotImplementedError

    def __call__(
        self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Pooled features, or logits where there is a classifier."""
        features = self.embed(x, train=train, rngs=rngs)
        if self.num_classes is None:
            return features.pooled
        return self.classify(features, train=train, rngs=rngs)

    def run(
        self,
        block: Callable[..., jax.Array],
        *args: Any,
        train: bool,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Returns block(*args, train=train), with `rngs` too where they are given.

        With `remat`, training keeps only `args` for the backward pass, and runs the block again
        there (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost). Dropout draws the
        same masks, and batch-norm statistics move once.

        Args:
          block: a module, or a function whose modules are among `args`.
        """
        given = {} if rngs is None else {"rngs": rngs}
        if not (train and self.remat):
            return block(*args, train=train, **given)
        if isinstance(block, nnx.Module):  # modules must be arguments, so that their state moves
            block, args = type(block).__call__, (block, *args)

        @nnx.remat
        def again(args: tuple[Any, ...], given: dict[str, Any]) -> jax.Array:
            return block(*args, train=True, **given)

        return again(args, given)


def heights(backbone: Backbone, names: Sequence[str]) -> dict[str, int]:
    """Parameter -> how far its layer lies below the heads: 1 for the last layer of the backbone.

    0 for parameters outside of the backbone's layers: heads, necks, the hidden layer.

    Args:
      names: flat names of parameters, those of the backbone under `backbone/`.
    """
    result = dict.fromkeys(names, 0)
    for height, paths in enumerate(reversed(backbone.layer_paths()), 1):
        prefixes = tuple(f"backbone/{path}/" for path in paths)
        result |= {name: height for name in names if f"{name}/".startswith(prefixes)}
    return result
