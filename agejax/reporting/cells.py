"""Figures as the texts of a table's cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agejax.evaluation.metrics import SMALLEST_GROUP

FEW = f"“few” marks fewer than {SMALLEST_GROUP} images: such a figure is hardly known."


def interval(bounds: Sequence[float | None], digits: int = 3) -> str:
    """A bound that is not finite, which JSON holds as null, is unknown."""
    texts = (
        f"{bound:.{digits}f}" if bound is not None and math.isfinite(bound) else "unknown"
        for bound in bounds
    )
    return f"[{', '.join(texts)}]"


def band(bounds: Sequence[float]) -> str:
    """A range of shares, in percent."""
    return " to ".join(f"{bound:.1%}" for bound in bounds)


def count(n: int) -> int | str:
    """A number of images, marked where it is small."""
    return n if n >= SMALLEST_GROUP else f"{n} (few)"


def rate(found: Mapping[str, Any]) -> tuple[str, int | str]:
    """A share {"n", "rate", "ci95"} in percent with its interval, and n."""
    if not found["n"]:
        return "no image", 0
    low, high = found["ci95"]
    return f"{found['rate']:.1%} [{100 * low:.1f}, {100 * high:.1f}]", count(found["n"])
