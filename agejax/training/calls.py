"""Calls of the device: how many steps each takes, and their batches, which are put there ahead."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from agejax.data.pipeline import TrainBatches
from agejax.logging import console
from agejax.logging.stopwatch import Stopwatch
from agejax.training import sharding

IN_FLIGHT = 2  # calls that the host is ahead of the device, each with its batch


@dataclasses.dataclass(frozen=True)
class Calls:
    """How many steps a call takes: a function of the step alone, so a resumed run repeats them.

    Attributes:
      most: steps of a whole call. It ends at the latest where something is due; what then remains
        goes in calls of one step, so that two programs are enough.
      periods: something is due at every multiple of these, in steps.
      ends: and at these steps.
      skipped: steps, 1-based, that are left out; each has a call of its own.
    """

    most: int
    periods: Collection[int]
    ends: Collection[int]
    skipped: Collection[int] = ()

    @classmethod
    def of_run(
        cls, most: int, periods: Collection[int], ends: Collection[int], skipped: Collection[int]
    ) -> Calls:
        """The calls of a run; warns where none of them can be whole."""
        if most > min(periods) and jax.process_index() == 0:
            console.warning(
                f"config.steps_per_call: something is due every {min(periods)} steps, so no call "
                f"takes {most}; raise log_every, eval.every or checkpoint.every to multiples of it"
            )
        return cls(most, periods, ends, skipped)

    def __call__(self, step: int) -> int:
        """How many steps the call from `step` on takes."""
        end = step + self.most
        whole = (
            all((step // period + 1) * period >= end for period in self.periods)
            and not any(step < each < end for each in self.ends)
            and not any(step < each <= end for each in self.skipped)
        )
        return self.most if whole else 1


class Feed:
    """The batches of a run's calls, on the devices: the next one is put there while they work.

    Args:
      start, stop: steps.
      workers: as of `TrainBatches.iterate`.
      shared: part of every batch, on the devices.
      clock: takes the time of reading and putting as "input".
    """

    def __init__(
        self,
        batches: TrainBatches,
        calls: Calls,
        start: int,
        stop: int,
        workers: int,
        mesh: Mesh,
        shared: Mapping[str, Any],
        clock: Stopwatch,
    ) -> None:
        self._read = batches.iterate(start, stop, workers, calls if calls.most > 1 else None)
        self._calls, self._step, self._stop = calls, start, stop
        self._mesh, self._shared, self._clock = mesh, shared, clock
        self._next: tuple[int, dict[str, Any]] | None = None
        self._sent: collections.deque[jax.Array] = collections.deque()

    def take(self) -> tuple[int, dict[str, Any]]:
        """The number of steps of the next call, and its batch."""
        if self._next is None:
            self._put()
        assert self._next is not None
        taken, self._next = self._next, None
        return taken

    def ahead(self, sent: jax.Array) -> None:
        """Puts the batch of the next call on the devices, if there is one.

        Args:
          sent: a result of the call that was just sent off. It is not waited for, but the one
            before the last is: otherwise batches for many calls ahead would take memory.
        """
        self._sent.append(sent)
        if len(self._sent) > IN_FLIGHT:
            jax.block_until_ready(self._sent.popleft())
        if self._step < self._stop:
            self._put()

    def close(self) -> None:
        """Ends what reads."""
        self._read.close()

    def _put(self) -> None:
        count = self._calls(self._step)
        with self._clock("input"):
            batch = sharding.put_batch(next(self._read), self._mesh, int(count > 1))
        self._next = count, {**batch, **self._shared}
        self._step += count
