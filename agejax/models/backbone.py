"""The base of all backbones: images to feature maps and pooled features, or to published logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Features(NamedTuple):
    """The inputs of heads.

    maps: [B, h, w, C], before pooling; C is the backbone's `feature_dim`.
    pooled: [B, C], float32.
    """

    maps: jax.Array
    pooled: jax.Array

    @classmethod
    def of_pooled(cls, pooled: jax.Array) -> Features:
        """Features from pooled ones [B, C] that were kept without maps: maps of 1 px."""
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

        As in timm, a layer is a block with all that follows it up to the next; the first layer is
        the stem. The published classifier belongs to no layer.
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
        """Pooled features, or logits if the model has a classifier."""
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
        """Returns block(*args, train=train), with `rngs` too if they are given.

        With `remat`, training keeps only `args` for the backward pass, and runs the block again
        there (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost). Dropout draws the
        same masks, and batch-norm statistics are updated once.

        Args:
          block: a module, or a function.
          args: the activations; for a function, its modules before them.
        """
        given = {} if rngs is None else {"rngs": rngs}
        if not (train and self.remat):
            return block(*args, train=train, **given)
        if isinstance(block, nnx.Module):  # as arguments, so that the modules' state is updated
            block, args = type(block).__call__, (block, *args)
        inputs = tuple(x for x in args if isinstance(x, jax.Array))
        nodes: dict[str, Any] = {"modules": args[: len(args) - len(inputs)], "given": given}
        graphdef, state = nnx.split(nodes)
        arrays, tree = jax.tree.flatten(state)  # plain arrays: no module may update one in place

        @recomputed
        def pure(arrays: list[jax.Array], inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
            # Constants arrive as numpy arrays, which a random stream would increment in place.
            arrays = [jnp.asarray(x) for x in arrays]
            copies: dict[str, Any] = nnx.merge(graphdef, jax.tree.unflatten(tree, arrays))
            y = block(*copies["modules"], *inputs, train=True, **copies["given"])
            return y, jax.tree.leaves(nnx.state(copies))

        y: jax.Array
        y, moved = pure(arrays, inputs)
        nnx.update(nodes, jax.tree.unflatten(tree, moved))
        return y


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes (arrays, inputs) -> (y, arrays) keep only its arguments for the backward pass.

    jax.checkpoint uses barriers, which XLA:CPU removes before it merges equal computations: the
    recomputed part is then merged with the forward pass, and no memory is saved. Here the backward
    pass adds 0 times the cotangent to the inputs, so that nothing can be merged, or computed before
    the cotangent is known.
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
    """Parameter -> how many layers below the heads it is: 1 for the backbone's last layer.

    0 for parameters outside the backbone's layers: heads, necks, the hidden layer.

    Args:
      names: flat names of parameters; the backbone's begin with `backbone/`.
    """
    result = dict.fromkeys(names, 0)
    for height, paths in enumerate(reversed(backbone.layer_paths()), 1):
        prefixes = tuple(f"backbone/{path}/" for path in paths)
        result |= {name: height for name in names if f"{name}/".startswith(prefixes)}
    return result
