"""Which evaluation of a run is the best so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from agejax.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far, and how many came after it."""

    value: float | None = None
    step: int | None = None
    stale: int = 0

    def update(self, value: float, step: int, mode: str) -> Best:
        """The best after another evaluation; a tie is not better."""
        sign = 1 if mode == "min" else -1
        if self.value is None or sign * value < sign * self.value:
            return Best(value, step)
        return dataclasses.replace(self, stale=self.stale + 1)

    @classmethod
    def resumed(
        cls, stored: Mapping[str, Any], checkpoints: Checkpoints, step: int, eval_every: int
    ) -> Best:
        """The best of a run that resumes; of the rest, if the best was set aside as damaged.

        Args:
          stored: the best as recorded in the newest checkpoint.
          step: up to which the run has evaluated.
          eval_every: in steps.
        """
        if stored["step"] in (None, *checkpoints.steps):
            return cls(**stored)
        best = checkpoints.best
        value = None if best is None else checkpoints.value(best)
        if best is None or value is None:
            return cls()
        return cls(value, best, step // eval_every - best // eval_every)

    def __str__(self) -> str:
        return "none" if self.step is None else f"step {self.step:,} with {self.value:.4g}"
