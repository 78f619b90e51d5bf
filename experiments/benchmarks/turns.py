"""Contestants take turns, so that a noisy machine spoils all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def alternate(turns: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """What each contestant's turns gave, A B C, C B A, A B C, ..."""
    given: dict[str, list[T]] = {name: [] for name in turns}
    for i in range(repeats):
        for name in list(turns)[:: 1 if i % 2 == 0 else -1]:
            given[name].append(turns[name]())
    return given


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median, minimum and maximum of the per-turn ratios.

    From 6 turns on, the least and the most are an interval of at least 95 % of the true median,
    whatever the distribution: it misses only where all turns fall on one side, 2 / 2^n.
    """
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
