"""What a train step asks of whatever teaches it beside the labels; `distillation` answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from agejax.heads import Head
from agejax.training.augment import Mix


class Target(NamedTuple):
    """What is taught about a batch: probabilities of a head [B, K], or features [B, D].

    values: float32; finite also where they are not known.
    known: bool [B].
    """

    values: jax.Array
    known: jax.Array

    def mixed(self, mix: Mix) -> Target:
        """The target of images that were mixed: known where those of both images are."""
        lam, partner = mix.lam[:, None], mix.partner
        values = lam * self.values + (1 - lam) * self.values[partner]
        return Target(values, self.known & self.known[partner])


class Teaching(Protocol):
    """Targets of a batch, and the loss terms that a student learns them by."""

    @property
    def share(self) -> float:
        """The share of the loss that is not the labels'."""
        ...

    @property
    def sizes(self) -> set[int]:
        """Edges of the augmented images that `targets` sees, pixels."""
        ...

    @property
    def width(self) -> int:
        """How many features of the backbone the student learns; 0: none."""
        ...

    def targets(
        self, batch: Mapping[str, Any], see: Callable[[int], jax.Array], mix: Mix | None
    ) -> dict[str, Target]:
        """Name -> what a batch is taught.

        Args:
          batch: what the step is given.
          see: size -> the batch's augmented images of that size.
          mix: as they were mixed.
        """
        ...

    def terms(
        self,
        heads: Mapping[str, Head],
        outputs: Mapping[str, jax.Array],
        params: Mapping[str, jax.Array],
        targets: Mapping[str, Target],
    ) -> dict[str, tuple[float, jax.Array]]:
        """Target -> (its weight in the loss, the loss of each image [B]).

        Args:
          outputs: the student's, with its pooled features where it learns features.
          params: all parameters.
          targets: as `targets` gives them.
        """
        ...
