"""What every backbone is: images to feature maps and pooled features, or to published logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
          block: a module, or a function.
          args: for a function its modules first; then the activations.
        """
        given = {} if rngs is None else {"rngs": rngs}
        if not (train and self.remat):
            return block(*args, train=train, **given)
        if isinstance(block, nnx.Module):  # modules must be arguments, so that their state moves
            block, args = type(block).__call__, (block, *args)
        inputs = tuple(x for x in args if isinstance(x, jax.Array))
        nodes: dict[str, Any] = {"modules": args[: len(args) - len(inputs)], "given": given}
        graphdef, state = nnx.split(nodes)
        arrays, tree = jax.tree.flatten(state)  # plain arrays: no module may move one in place

        @recomputed
        def pure(arrays: list[jax.Array], inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
            # Constants come as arrays of numpy, which a random stream would count up in place.
            arrays = [jnp.asarray(x) for x in arrays]
            copies: dict[str, Any] = nnx.merge(graphdef, jax.tree.unflatten(tree, arrays))
            y = block(*copies["modules"], *inputs, train=True, **copies["given"])
            return y, jax.tree.leaves(nnx.state(copies))

        y: jax.Array
        y, moved = pure(arrays, inputs)
        nnx.update(nodes, jax.tree.unflatten(tree, moved))
        return y


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes (arrays, inputs) -> (y, arrays) keep its arguments alone for the backward pass.

    jax.checkpoint does so with barriers, which XLA:CPU takes away before it looks for equal
    computations: what was recomputed is then shared with the forward pass, and all memory is kept.
    Here the backward pass adds 0 times the cotangent to the inputs, so that nothing can be shared,
    or computed before the cotangent is there.
    """

    def forward(arrays: Any, inputs: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        return function(arrays, inputs), (arrays, inputs)

    def backward(kept: Any, cotangents: Any) -> Any:
        arrays, inputs = kept
        nothing = 0 * cotangents[0].ravel()[0]
        inputs = tuple(x + nothing.astype(x.dtype) for x in inputs)
        return jax.vjp(function, arrays, inputs)[1](cotangents)

    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(forward, backward)
    return wrapped


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
