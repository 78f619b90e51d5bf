"""What every backbone is: images to feature maps and pooled features, or to published logits."""

from __future__ import annotations

from typing import NamedTuple

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
    """Subclasses set `feature_dim` and `num_classes`, and write the two methods below.

    Attributes:
      feature_dim: channels of the features.
      num_classes: of the published classifier; None where the model has none.
    """

    feature_dim: int
    num_classes: int | None

    def embed(self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Normalised images [B, H, W, 3] -> `Features`."""
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
