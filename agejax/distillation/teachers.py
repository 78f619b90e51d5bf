"""What a train step needs of teachers: the targets of a batch, and the student's loss terms.

The loss is

    (1 - share) · Σ_heads weight · label loss
    + share · (probabilities.weight · Σ_heads weight · cross-entropy + features.weight · distance)

where each term is the mean over the images for which its target is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from agejax.heads import Head, losses
from agejax.models.face_model import POOLED
from agejax.training import feature_map
from agejax.training.augment import Mix
from agejax.training.teaching import Target

FEATURES = "features"  # the target in addition to the heads' probabilities
PREFIX = "teacher/"  # of the batch's columns that a teacher reads
LOSSES = {"cosine": losses.cosine_distance, "l2": losses.mean_squared}


class Teacher(Protocol):
    """One source of targets.

    Attributes:
      name: its name in messages.
      size: edge of the images that it sees, pixels; 0: it sees none, and its targets belong to the
        images before they are mixed.
      arrays: its inputs to the jitted step.
      columns: its columns of the batches: name -> [N, ...], a row for each image of the source.
      heads: the student's heads that it teaches -> its weight among their teachers.
      features: how many features it gives; 0: none.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def arrays(self) -> Any: ...
    @property
    def columns(self) -> Mapping[str, np.ndarray]: ...
    @property
    def heads(self) -> Mapping[str, float]: ...
    @property
    def features(self) -> int: ...

    def teach(
        self, arrays: Any, images: jax.Array | None, columns: Mapping[str, jax.Array]
    ) -> dict[str, Target]:
        """Head -> its target, in the student's order of outcomes and under the prior of its
        sampler; also `FEATURES`, if it gives any. `images` are float32 [B, size, size, 3] in
        0..1."""
        ...


@dataclasses.dataclass(frozen=True)
class Teachers:
    """The teachers of a run, a `training.teaching.Teaching`; may be empty.

    Attributes:
      share, probabilities, features, temperature: as in config.distill.
      distance: the loss of features, a key of `LOSSES`.
      facts: {"features": how many a teacher gives, "features_of": the number of that teacher or
        None, "teachers": [the facts of each]}, stored with every checkpoint.
    """

    members: Sequence[Teacher] = ()
    share: float = 0.0
    probabilities: float = 1.0
    temperature: float = 1.0
    features: float = 0.0
    distance: str = "cosine"
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The entry "teachers" of every batch."""
        return tuple(member.arrays for member in self.members)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What the input pipeline adds to batches: name -> [N, ...]."""
        return {
            f"{PREFIX}{i}/{name}": values
            for i, member in enumerate(self.members)
            for name, values in member.columns.items()
        }

    @property
    def sizes(self) -> set[int]:
        """The sizes of the images that teachers see, pixels."""
        return {member.size for member in self.members if member.size}

    @property
    def width(self) -> int:
        """How many features the student learns; 0: none."""
        return max((member.features for member in self.members), default=0)

    def targets(
        self, batch: Mapping[str, Any], see: Callable[[int], jax.Array], mix: Mix | None
    ) -> dict[str, Target]:
        """The targets of a batch: head -> the mean of its teachers' probabilities; and `FEATURES`.

        Args:
          batch: with `arrays` as its entry "teachers", and with `columns`.
          see: size -> the batch's augmented images of that size.
          mix: how the images were mixed.
        """
        if not self.members:
            return {}
        lessons = []
        for i, (member, arrays) in enumerate(zip(self.members, batch["teachers"], strict=True)):
            columns = {name: batch[f"{PREFIX}{i}/{name}"] for name in member.columns}
            lesson = member.teach(arrays, see(member.size) if member.size else None, columns)
            if not member.size and mix is not None:
                lesson = {name: target.mixed(mix) for name, target in lesson.items()}
            lessons.append(lesson)
        result: dict[str, Target] = {}
        for name in dict.fromkeys(name for lesson in lessons for name in lesson):
            result[name] = _mean([
                (1.0 if name == FEATURES else member.heads[name], lesson[name])
                for member, lesson in zip(self.members, lessons, strict=True)
                if name in lesson
            ])  # fmt: skip
            if name != FEATURES and self.temperature != 1:
                result[name] = _tempered(result[name], self.temperature)
        return result

    def terms(
        self,
        heads: Mapping[str, Head],
        outputs: Mapping[str, jax.Array],
        params: Mapping[str, jax.Array],
        targets: Mapping[str, Target],
    ) -> dict[str, tuple[float, jax.Array]]:
        """Target -> (its weight in the loss, the loss per image [B]).

        Args:
          outputs: the student's, including `POOLED` where it learns features.
          params: all parameters, including the feature map's.
          targets: as `targets` gives them.
        """
        result = {}
        for name, target in targets.items():
            if name == FEATURES:
                mapped = feature_map.apply(params, outputs[POOLED])
                result[name] = (self.features, LOSSES[self.distance](mapped, target.values))
                continue
            # Gradients of softened probabilities are smaller by the temperature's square.
            t = self.temperature
            logits = heads[name].logits(outputs[name])
            loss = losses.soft_cross_entropy(logits if t == 1 else logits / t, target.values)
            result[name] = (self.probabilities * heads[name].weight * t**2, loss)
        return {name: (self.share * weight, loss) for name, (weight, loss) in result.items()}


def _mean(parts: Sequence[tuple[float, Target]]) -> Target:
    """The weighted mean of the known targets."""
    weights = [weight * target.known.astype(jnp.float32) for weight, target in parts]
    total = sum(weights[1:], weights[0])
    shares = [weight / jnp.maximum(total, 1e-30) for weight in weights]
    values = [
        share[:, None] * target.values for share, (_, target) in zip(shares, parts, strict=True)
    ]
    return Target(sum(values[1:], values[0]), total > 0)


def _tempered(target: Target, temperature: float) -> Target:
    """Probabilities p -> p^(1 / temperature), normalised."""
    p = target.values ** (1 / temperature)
    return Target(p / jnp.maximum(p.sum(axis=1, keepdims=True), 1e-30), target.known)
