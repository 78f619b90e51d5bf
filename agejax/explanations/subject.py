"""What is explained: the prediction of a label, as functions that JAX can differentiate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from agejax.errors import UserError
from agejax.explanations.explanation import BATCH, Explanation, values_of
from agejax.explanations.grad_cam import grad_cam
from agejax.explanations.integrated_gradients import integrated_gradients
from agejax.explanations.lime import lime
from agejax.heads import Head
from agejax.models import inputs
from agejax.models.backbone import Backbone, Features
from agejax.models.layers import global_mean
from agejax.models.vit import ViT
from agejax.runs.run import Run
from agejax.training import image_sizes

Method = Literal["lime", "integrated_gradients", "grad_cam"]


class Subject(NamedTuple):
    """A run's prediction of one label, as functions of images [B, S, S, 3].

    Images are uint8, or f32 in 0..255.

    decoded: -> years [B] or probabilities [B, K].
    value: k -> the probability of class k [B]; None -> years [B].
    tapped: k -> the same as a `Tapped`.
    """

    decoded: Partial
    value: Callable[[int | None], Partial]
    tapped: Callable[[int | None], Partial]

    @classmethod
    def of(cls, run: Run, label: str, *, smooth: bool) -> Subject:
        """The prediction of a label by a run's single network.

        Args:
          smooth: decode counts and modes, which have no gradient, as expectations.

        Raises:
          UserError: the run has no head for the label, or is not a single network.
        """
        name, head = find_head(run, label)
        head = smoothed(head) if smooth else head
        model = run.model
        if model is None:
            raise UserError(
                f"{run.workdir}: this is not a single network; explain one of its members"
            )
        size = image_sizes.of_evaluation(run.config)

        def decoded(params: Any, stats: Any, images: jax.Array) -> jax.Array:
            outputs, _ = model.apply(params, stats, inputs.eval_images(images, size))
            return head.decode(outputs[name])

        def value(params: Any, stats: Any, k: jax.Array, images: jax.Array) -> jax.Array:
            return decoded(params, stats, images)[:, k]

        def tapped(
            params: Any, stats: Any, k: jax.Array, images: jax.Array, delta: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            network = model.network(params, stats)
            maps = _tap(network, name, delta)
            outputs = network(inputs.eval_images(images, size))
            said = head.decode(outputs[name])
            return said if said.ndim == 1 else said[:, k], maps[0]

        # Bound, not closed over: k may change, and parameters must not become constants.
        bound = run.params, run.batch_stats
        whole = Partial(decoded, *bound)
        return cls(
            whole,
            lambda k: whole if k is None else Partial(value, *bound, np.int32(k)),
            lambda k: Partial(tapped, *bound, np.int32(k or 0)),
        )


def find_head(run: Run, label: str) -> tuple[str, Head]:
    """The first head of a label. Raises `UserError` where there is none."""
    for name, head in run.heads.items():
        if head.label == label:
            return name, head
    labels = dict.fromkeys(head.label for head in run.heads.values())
    raise UserError(f"--target={label}: this run predicts {', '.join(labels)}")


def smoothed(head: Head) -> Head:
    """The head with an expectation in place of a count of ranks or a mode (no gradient)."""
    options: dict[str, Any] = {"count": False, "expectation": True}
    names = {field.name for field in dataclasses.fields(head)}
    return dataclasses.replace(head, **{k: v for k, v in options.items() if k in names})


def _tap(network: Any, name: str, delta: jax.Array) -> list[jax.Array]:
    """Reduces a `FaceModel` to its head `name`, and adds `delta` to its last maps.

    These are what the backbone pools. Where it reads a class token, they are the patches before the
    last block's attention, unless the head's neck reads the maps themselves.

    Returns:
      A list to which each call of the network appends the maps.
    """
    seen: list[jax.Array] = []
    backbone, neck = network.backbone, network.necks.get(name)
    # The others may need other features: greyscale ones.
    network.heads = nnx.Dict({name: network.heads[name]})
    reads_maps = neck is not None and (neck.options.convs or neck.options.pool == "flatten")
    if isinstance(backbone, ViT) and not reads_maps:
        block: Any = backbone.blocks[-1]
        norm = block.norm1

        def tapped_norm(tokens: jax.Array) -> jax.Array:
            tokens = norm(tokens)
            edge = round((tokens.shape[1] - 1) ** 0.5)
            maps = tokens[:, 1:].reshape(len(tokens), edge, edge, -1) + delta.astype(tokens.dtype)
            seen.append(maps)
            return jnp.concatenate([tokens[:, :1], maps.reshape(tokens[:, 1:].shape)], axis=1)

        block.norm1 = tapped_norm
    else:
        network.backbone = _TappedBackbone(backbone, delta, seen)
    return seen


class _TappedBackbone:
    """A backbone that adds `delta` to its maps before it pools them, and records the maps."""

    def __init__(self, backbone: Backbone, delta: jax.Array, seen: list[jax.Array]) -> None:
        self.backbone, self.delta, self.seen = backbone, delta, seen

    def embed(self, x: jax.Array, **how: Any) -> Features:
        features = self.backbone.embed(x, **how)
        maps = features.maps + self.delta.astype(features.maps.dtype)
        self.seen.append(maps)
        return Features(maps, global_mean(maps))


def explainer(
    run: Run, target: str, method: Method, seed: int = 0
) -> Callable[[np.ndarray], tuple[Explanation, int | None]]:
    """Makes a function: image uint8 [S, S, 3] -> its `Explanation` and the explained class.

    The network compiles at the first image only.

    Raises:
      UserError: the run has no head for the target.
    """
    subject = Subject.of(run, target, smooth=method != "lime")

    def explain_one(image: np.ndarray) -> tuple[Explanation, int | None]:
        # A full batch, as the methods use: for years they then share the compiled program.
        decoded = np.asarray(values_of(subject.decoded, np.repeat(image[None], BATCH, axis=0)))[0]
        k = int(decoded.argmax()) if decoded.ndim else None
        value = subject.value(k)
        match method:
            case "integrated_gradients":
                return integrated_gradients(value, image), k
            case "grad_cam":
                return grad_cam(subject.tapped(k), image), k
        return lime(lambda images: values_of(value, images), image, seed=seed), k

    return explain_one
