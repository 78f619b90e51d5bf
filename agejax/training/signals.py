"""Signals that ask a run to stop, honoured between two steps."""

from __future__ import annotations

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopOnSignal:
    """Turns SIGTERM and SIGINT into a request to stop, inside its context.

    Several processes must stop at the same step: for them JAX listens for SIGTERM.
    """

    requested = False

    def __enter__(self) -> StopOnSignal:
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._previous = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def before(self, step: int) -> bool:
        """Whether to stop before this step; every process asks before every step."""
        if jax.process_count() > 1:
            self.requested = multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        # A second signal stops at once.
        signal.signal(number, self._previous[signal.Signals(number)])
