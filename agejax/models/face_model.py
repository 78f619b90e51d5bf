"""The whole network: a backbone, an optional dense layer, and one linear output per head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models import layers


class FaceModel(nnx.Module):
    """Normalised images [B, H, W, 3] -> {head: raw outputs [B, width], float32}."""

    def __init__(
        self,
        backbone: Any,
        widths: Mapping[str, int],
        *,
        hidden: int,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.backbone = backbone
        features: int = backbone.feature_dim
        self.hidden = layers.Linear(features, hidden, rngs=rngs) if hidden else None
        self.dropout = layers.Dropout(dropout)
        # Heads compute in float32 whatever the backbone does: logits must not lose digits.
        self.heads = nnx.Dict(
            {name: layers.Linear(hidden or features, width, rngs=rngs)
             for name, width in widths.items()}
        )  # fmt: skip

    def __call__(
        self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> dict[str, jax.Array]:
        features = self.backbone(x, train=train, rngs=rngs)
        if self.hidden is not None:
            features = jax.nn.hard_swish(self.hidden(features))
        features = self.dropout(features.astype(jnp.float32), train=train, rngs=rngs)
        return {name: head(features) for name, head in self.heads.items()}
