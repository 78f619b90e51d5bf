"""Durations in the unit that suits: steps, epochs, examples or percent of the run, exactly one."""

from __future__ import annotations

from collections.abc import Mapping

from agejax.errors import UserError

UNITS = ("steps", "epochs", "examples", "percent")


def to_steps(
    duration: Mapping[str, float],
    *,
    name: str,
    batch_size: int,
    examples: int,
    total_steps: int | None = None,
) -> int:
    """A duration as a number of steps, rounded, at least 1 (0 stays 0).

    Args:
      duration: one of `{"steps": n}`, `{"epochs": x}`, `{"examples": n}`, `{"percent": p}`.
      name: the config key, for the error message.
      batch_size: the global batch size.
      examples: how many training examples an epoch has.
      total_steps: what percent refers to; None where percent makes no sense.

    Raises:
      UserError: not exactly one known unit, a negative value, or percent of an unknown total.
    """
    given = {unit: value for unit, value in dict(duration).items() if value is not None}
    if len(given) != 1 or next(iter(given)) not in UNITS:
        raise UserError(f"config.{name}: give exactly one of {', '.join(UNITS)}, got {given}")
    ((unit, value),) = given.items()
    if value < 0:
        raise UserError(f"config.{name}: {unit} must not be negative, got {value}")
    if unit == "percent" and total_steps is None:
        raise UserError(f"config.{name}: percent needs a total to refer to; use steps or epochs")
    steps = {
        "steps": lambda: value,
        "epochs": lambda: value * examples / batch_size,
        "examples": lambda: value / batch_size,
        "percent": lambda: value / 100 * (total_steps or 0),
    }[unit]()
    return max(1, round(steps)) if value else 0
