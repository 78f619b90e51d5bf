"""Signals that ask a run to stop, honoured between two calls of the device."""

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
    _asked = 0

    def __enter__(self) -> StopOnSignal:
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._previous = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def now(self) -> bool:
        """Whether to stop here; every process asks before every call of the device."""
        if jax.process_count() > 1:
            # The processes agree on one of the next numbers, so none may be left out.
            self.requested = multihost_utils.reached_preemption_sync_point(self._asked)
            self._asked += 1
        return self.requested

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        # A second signal stops at once.
        signal.signal(number, self._previous[signal.Signals(number)])
