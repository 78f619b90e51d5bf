"""The first call of a jitted step compiles it, which may take minutes: said, and timed apart."""

from __future__ import annotations

from typing import Any

import jax

from agejax.logging import console
from agejax.logging.stopwatch import Stopwatch


class FirstCall:
    """A jitted function whose first call is announced, and counts as compiling.

    Args:
      what: what is compiled, such as "the train step".
      clock: takes the time of that call as "compile".
    """

    def __init__(self, function: jax.stages.Wrapped, what: str, clock: Stopwatch) -> None:
        self._function, self._what, self._clock = function, what, clock
        self._called = False
        self.lower = function.lower

    def __call__(self, *args: Any) -> Any:
        if self._called:
            return self._function(*args)
        self._called = True
        if jax.process_index() == 0:
            console.note(f"compiling {self._what}")
        with self._clock("compile"):
            return self._function(*args)
