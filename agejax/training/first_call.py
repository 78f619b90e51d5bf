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
        self._shapes: tuple[Any, ...] | None = None  # of its arguments
        self.lower = function.lower

    @property
    def called(self) -> bool:
        return self._shapes is not None

    def compiled(self) -> jax.stages.Compiled:
        """The program of the first call."""
        assert self._shapes is not None
        return self.lower(*self._shapes).compile()

    def __call__(self, *args: Any) -> Any:
        if self.called:
            return self._function(*args)
        self._shapes = jax.tree.map(_shape, args)
        if jax.process_index() == 0:
            console.note(f"compiling {self._what}")
        with self._clock("compile"):
            return self._function(*args)


def _shape(x: Any) -> Any:
    if not isinstance(x, jax.Array):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
