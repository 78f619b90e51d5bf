"""Contestants take turns, so that a noisy machine affects all alike."""

from __future__ import annotations

import os
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def alternate(turns: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Runs turns in the order A B C, C B A, A B C, ...; returns each contestant's results."""
    given: dict[str, list[T]] = {name: [] for name in turns}
    for i in range(repeats):
        for name in list(turns)[:: 1 if i % 2 == 0 else -1]:
            given[name].append(turns[name]())
    return given


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median, minimum and maximum of the per-turn ratios.

    With 6 or more turns, minimum and maximum are an interval of at least 95 % for the true median,
    for any distribution: it misses only if all turns fall on one side, with probability 2 / 2^n.
    """
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far, all threads together, from /proc (Linux)."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system
