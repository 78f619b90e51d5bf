"""The whole network: a backbone, shared or own layers above it, and one output per head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.models import layers
from agejax.models.backbone import Backbone, Features
from agejax.models.feature_smoothing import FeatureSmoothing, SmoothingOptions
from agejax.models.inputs import luminance
from agejax.models.necks import Neck, NeckOptions

Output = Callable[[int, nnx.Rngs], nnx.Module]
POOLED = "backbone/pooled"  # the key of pooled features among the heads' outputs


class FaceModel(nnx.Module):
    """Images [B, H, W, 3] in 0..1 -> {head: raw outputs [B, width], float32}.

    Args:
      outputs: head -> makes its last layer from (number of inputs, rngs).
      necks: for heads with a neck of their own; the others share `hidden` and `dropout`.
      smoothing: for heads whose features are smoothed over ages in training.
      mean, std: of RGB in 0..1, with which the backbone expects images to be normalised.
      hidden: width of the dense layer between backbone and heads; 0: none.
    """

    def __init__(
        self,
        backbone: Backbone,
        outputs: Mapping[str, Output],
        necks: Mapping[str, NeckOptions],
        smoothing: Mapping[str, SmoothingOptions],
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        hidden: int,
        dropout: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self.backbone = backbone
        features = backbone.feature_dim
        self.hidden = layers.Linear(features, hidden, rngs=rngs) if hidden else None
        self.dropout = layers.Dropout(dropout)
        made: dict[str, Neck] = {}
        if necks:
            image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
            maps = jax.eval_shape(lambda x: backbone.embed(x).maps, image).shape[1:]
            for name, options in necks.items():
                made[name] = Neck(options, maps, dtype=dtype, rngs=rngs)
        self.necks = nnx.Dict(made)
        inputs = dict.fromkeys(outputs, hidden or features)
        inputs |= {name: neck.width for name, neck in made.items()}
        self.smoothing = nnx.Dict(
            {name: FeatureSmoothing(options, inputs[name]) for name, options in smoothing.items()}
        )
        self.heads = nnx.Dict({name: make(inputs[name], rngs) for name, make in outputs.items()})

    def __call__(
        self,
        images: jax.Array | Features,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        ages: Mapping[str, jax.Array] | None = None,
        epoch: jax.Array | None = None,
        pooled: bool = False,
    ) -> dict[str, jax.Array]:
        """Computes the outputs of every head from images, or from the backbone's features of them.

        In training, heads with smoothing need `ages` ([B] per head) and the epoch's number. With
        `pooled` the result also holds the backbone's pooled features [B, C], as `POOLED`.
        """
        seen: dict[bool, Features] = {}  # greyscale or not -> features, each computed once
        if isinstance(images, Features):
            seen[False] = images
        shared: jax.Array | None = None
        dropped: jax.Array | None = None  # heads that share features share the mask too
        outputs = {}
        for name, head in self.heads.items():
            neck = self.necks.get(name)
            grey = neck is not None and neck.options.greyscale
            if grey not in seen:
                assert not isinstance(images, Features)
                seen[grey] = self.backbone.embed(
                    self._normalise(images, grey), train=train, rngs=rngs
                )
            if neck is not None:
                x, dropout = neck(seen[grey], train=train, rngs=rngs), neck.dropout
            else:
                if shared is None:
                    shared = self._share(seen[grey].pooled)
                x, dropout = shared, self.dropout
            if train and name in self.smoothing:
                assert ages is not None
                assert epoch is not None
                # Before dropout, as in the paper's code: its zeros would enter the statistics.
                x = self.smoothing[name](x, ages[name], epoch)
                x = dropout(x, train=train, rngs=rngs)
            elif neck is not None:
                x = dropout(x, train=train, rngs=rngs)
            else:
                if dropped is None:
                    dropped = dropout(x, train=train, rngs=rngs)
                x = dropped
            outputs[name] = head(x)
        if pooled:
            # If every head uses grey images, the backbone has only those features.
            outputs[POOLED] = (seen.get(False) or seen[True]).pooled.astype(jnp.float32)
        return outputs

    def features(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] in 0..1 -> the backbone's pooled features [B, C], float32."""
        return self.backbone.embed(self._normalise(images, grey=False)).pooled

    def _normalise(self, images: jax.Array, grey: bool) -> jax.Array:
        if grey:
            images = jnp.broadcast_to(luminance(images), images.shape)
        return (images - jnp.array(self.mean)) / jnp.array(self.std)

    def _share(self, pooled: jax.Array) -> jax.Array:
        if self.hidden is not None:
            pooled = jax.nn.hard_swish(self.hidden(pooled))
        return pooled.astype(jnp.float32)
