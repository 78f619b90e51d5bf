"""Durations in exactly one unit: steps, epochs, examples or percent of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from agejax.errors import UserError, is_number

MOST = 2**31 - 1  # steps; they are counted in 32 bits
UNITS = ("steps", "epochs", "examples", "percent")


@dataclasses.dataclass(frozen=True)
class ToSteps:
    """Turns the durations of one run into steps: `to_steps({"epochs": 2}, "eval.every")`.

    Attributes:
      batch_size: the global batch size.
      examples: training examples per epoch.
      total_steps: what percent refers to; None if percent makes no sense.
    """

    batch_size: int
    examples: int
    total_steps: int | None = None

    def __call__(self, duration: Mapping[str, float], name: str, least: int = 0) -> int:
        """A duration as a number of steps, rounded, at least 1 (0 stays 0).

        Args:
          duration: one of `{"steps": n}`, `{"epochs": x}`, `{"examples": n}`, `{"percent": p}`.
          name: the config key, for the error message.
          least: steps; fewer are an error.

        Raises:
          UserError: not exactly one known unit, a value that is not a number, negative or too
            large, or percent of an unknown total.
        """
        if not hasattr(duration, "items"):
            raise UserError(f"config.{name}: {duration!r}; give exactly one of {', '.join(UNITS)}")
        given = {unit: value for unit, value in dict(duration).items() if value is not None}
        if len(given) != 1 or next(iter(given)) not in UNITS:
            raise UserError(f"config.{name}: give exactly one of {', '.join(UNITS)}, got {given}")
        ((unit, value),) = given.items()
        if not is_number(value):
            raise UserError(f"config.{name}: {unit} must be a number, got {value!r}")
        if value < 0:
            raise UserError(f"config.{name}: {unit} must not be negative, got {value}")
        if unit == "percent" and self.total_steps is None:
            raise UserError(
                f"config.{name}: percent needs a total to refer to; use steps or epochs"
            )
        steps = {
            "steps": lambda: value,
            "epochs": lambda: value * self.examples / self.batch_size,
            "examples": lambda: value / self.batch_size,
            "percent": lambda: value / 100 * (self.total_steps or 0),
        }[unit]()
        if steps > MOST:
            raise UserError(f"config.{name}: {value:g} {unit} are more than {MOST:,} steps")
        if value == 0 and least:
            raise UserError(f"config.{name}: {unit} must be above 0")
        return max(1, round(steps)) if value else 0
