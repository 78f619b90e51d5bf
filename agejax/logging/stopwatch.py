"""Where a run's wall time goes, by phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping


class Stopwatch:
    """Adds up seconds by phase: `with stopwatch("eval"): ...`; an inner phase pauses the outer."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._phases: list[str] = []
        self._last = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._credit()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._credit()
            self._phases.pop()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase until now."""
        self._credit()
        return dict(self._seconds)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what an earlier session of the same run has spent."""
        for phase, value in seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + value

    def _credit(self) -> None:
        now = time.perf_counter()
        if self._phases:
            phase = self._phases[-1]
            self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now
