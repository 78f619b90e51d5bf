"""The interface of teachers, which a train step uses besides labels; `distillation` has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from agejax.heads import Head
from agejax.training.augment import Mix


class Target(NamedTuple):
    """What is taught about a batch: probabilities of a head [B, K], or features [B, D].

    values: float32; finite even where they are not known.
    known: bool [B].
    """

    values: jax.Array
    known: jax.Array

    def mixed(self, mix: Mix) -> Target:
        """The target of mixed images: known where those of the images that it shows are."""
        lam, partner = mix.lam[:, None], mix.partner
        values = lam * self.values + (1 - lam) * self.values[partner]
        own, other = self.known | (mix.lam == 0), self.known[partner] | (mix.lam == 1)
        return Target(values, own & other)


class Teaching(Protocol):
    """Targets of a batch, and the loss terms by which a student learns them."""

    @property
    def share(self) -> float:
        """The share of the loss that does not come from labels."""
        ...

    @property
    def sizes(self) -> set[int]:
        """Edges of the augmented images that `targets` sees, pixels."""
        ...

    @property
    def width(self) -> int:
        """The number of a teacher's features that the student learns; 0: none."""
        ...

    def targets(
        self, batch: Mapping[str, Any], see: Callable[[int], jax.Array], mix: Mix | None
    ) -> dict[str, Target]:
        """Name -> what is taught about a batch.

        Args:
          batch: the input of the step.
          see: size -> the batch's augmented images of that size.
          mix: how they were mixed.
        """
        ...

    def terms(
        self,
        heads: Mapping[str, Head],
        outputs: Mapping[str, jax.Array],
        params: Mapping[str, jax.Array],
        targets: Mapping[str, Target],
    ) -> dict[str, tuple[float, jax.Array]]:
        """Target -> (its weight in the loss, the loss per image [B]).

        Args:
          outputs: the student's, with its pooled features if it learns features.
          params: all parameters.
          targets: as returned by `targets`.
        """
        ...
