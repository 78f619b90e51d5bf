"""What a run reports while it trains: the progress line, metrics.jsonl, and its loggers."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any

import jax
import numpy as np

from agejax.errors import NotFiniteError
from agejax.logging import metrics_file, progress
from agejax.logging.loggers import Loggers
from agejax.logging.stopwatch import Stopwatch
from agejax.logging.sums import Sums

REMEDY = (
    "training stopped, the last good checkpoint is kept; lower config.schedule.lr, set "
    "config.optim.clip_norm, or set config.nonfinite to skip or rollback, which leave single "
    "steps out"
)

# Last step (1-based) of a call -> its sums, and the seconds these steps took by phase.
Window = tuple[dict[int, Sums], Mapping[str, float]]


class TrainLog:
    """Takes every call's device sums, and fetches those of the window before.

    So the host never waits for the call it has just sent off. A loss or gradient that is not finite
    raises `NotFiniteError` with its exact step. Of several processes the first one writes.

    Args:
      epochs: what progress calls `total_steps`, which are rounded; None: what they are.
      pending: what `take_pending` gave to the run that is resumed.
      loggers: get every number too, under "train/" or "val/".

    Attributes:
      finished: set when the training is complete; the loggers report a run without it as stopped.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start_step: int,
        total_steps: int,
        batch_size: int,
        steps_per_epoch: float,
        clock: Stopwatch,
        epochs: float | None = None,
        pending: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        loggers: Loggers | None = None,
    ) -> None:
        self.finished = False
        self._loggers = loggers or Loggers()
        self._writes = jax.process_index() == 0
        if self._writes:
            self._history = metrics_file.MetricsFile(
                workdir / "metrics.jsonl", resume_step=start_step
            )
            self._progress = progress.Progress(
                total_steps, epochs or total_steps / steps_per_epoch, start_step
            )
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._clock = clock
        self._previous: Window = ({}, {})
        self._sums: dict[int, Sums] = {
            int(step): Sums.of({name: np.asarray(pair, np.float32) for name, pair in sums.items()})
            for step, sums in pending.items()
        }
        self._start_step, self._done, self._pace = start_step, start_step, 0.0
        self._began = self._since = clock.seconds

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.flush()
        if self._writes:
            self._progress.close()
            self._history.close()
        self._loggers.close(finished=self.finished)

    def add(self, step: int, sums: Sums) -> None:
        """Remembers the sums of a call, of one step or of several; fetches nothing.

        Args:
          step: its last, 1-based.
        """
        self._sums[step] = sums
        if self._writes and self._progress.due():
            ready = (s for s, sums in self._sums.items() if _is_ready(sums.pairs))
            self._progress.at(max(ready, default=self._done), self._pace)

    def report(self) -> None:
        """Fetches and writes the window before, and starts a new one."""
        self._write(*self._previous)
        # The host may be ahead of the device. Once the last call but one is done, the clock is
        # right to within a call, and the device still has work.
        jax.block_until_ready(list(self._sums.values())[-2:-1])
        now = self._clock.seconds
        spent = {phase: now[phase] - self._since.get(phase, 0.0) for phase in now}
        self._keep_pace(now)
        self._previous, self._sums, self._since = (self._sums, spent), {}, now

    def take_pending(self) -> dict[str, dict[str, list[float]]]:
        """Writes the windows that are complete; hands over the sums of the steps after them.

        A signal stops a run between two rows. The checkpoint keeps these sums, so that the run that
        goes on from it writes the same rows as a run that nothing stops.

        Returns:
          JSON data: step -> name -> [sum, count].

        Raises:
          NotFiniteError: a loss or gradient of theirs is not finite.
        """
        self._write(*self._previous)
        pending = _by_step(jax.device_get(self._sums))
        self._previous, self._sums, self._since = ({}, {}), {}, self._clock.seconds
        _check_finite(pending)
        return {
            str(step): {name: np.asarray(pair).tolist() for name, pair in sums.items()}
            for step, sums in pending.items()
        }

    def flush(self) -> None:
        """Waits for every step so far and writes it."""
        jax.block_until_ready(self._sums)
        self.report()
        self.report()

    def evaluation(
        self, step: int, values: Mapping[str, float], best_by: str, *, best: bool
    ) -> None:
        """Writes the metrics of an evaluation, as `metrics.scalars` names them.

        Args:
          best_by, best: the metric that decides which step is the best, and whether it is this one.
        """
        if not self._writes:
            return
        self._progress.evaluation(step, values, best_by, best=best)
        named = {f"val/{name}": value for name, value in values.items()}
        self._record(step, named)
        self._loggers.scalars(step, named)

    def note(self, step: int, text: str) -> None:
        """Prints one line about the run at a step."""
        if self._writes:
            self._progress.note(step, text)

    def _keep_pace(self, now: Mapping[str, float]) -> None:
        """Measures how long a step takes since the run began, evaluations and saving included."""
        self._done = max(self._sums, default=self._done)
        if self._done > self._start_step:
            spent = sum(now.values()) - sum(self._began.values())
            compiling = now.get("compile", 0.0) - self._began.get("compile", 0.0)
            self._pace = (spent - compiling) / (self._done - self._start_step)
        if self._writes:
            self._progress.at(self._done, self._pace)

    def _write(self, window: dict[int, Sums], spent: Mapping[str, float]) -> None:
        if not window:
            return
        steps = _by_step(jax.device_get(window))
        _check_finite(steps)
        last = max(steps)
        values = ratios({k: sum(sums[k] for sums in steps.values()) for k in steps[last]})
        if len(steps) > 1 and values.get("skipped") == 1:
            raise NotFiniteError(
                f"no loss is finite in the {len(steps)} steps up to {last}: {REMEDY}", last
            )
        if not self._writes:
            return
        # Throughput counts waiting for input, but neither compiling nor evaluating nor saving.
        seconds = spent.get("step", 0.0) + spent.get("input", 0.0)
        values["images_per_second"] = len(steps) * self._batch_size / max(seconds, 1e-9)
        values["input_wait"] = spent.get("input", 0.0) / max(seconds, 1e-9)
        self._progress.log(last, values)
        self._record(last, values)
        self._loggers.scalars(last, {f"train/{name}": value for name, value in values.items()})

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._history.append({"step": step, "epoch": step / self._steps_per_epoch, **values})


def _is_ready(array: Any) -> bool:
    """Whether the device has computed it; NumPy's arrays are there."""
    return not isinstance(array, jax.Array) or bool(array.is_ready())  # type: ignore[attr-defined]


def _by_step(calls: Mapping[int, Sums]) -> dict[int, Sums]:
    """Last step of a call -> its sums; as step -> its own."""
    steps: dict[int, Sums] = {}
    for last, sums in calls.items():
        each = sums.pairs if sums.pairs.ndim == 3 else sums.pairs[None]
        for i, pairs in enumerate(each):
            steps[last - len(each) + 1 + i] = Sums(pairs, sums.names)
    return steps


def _check_finite(steps: Mapping[int, Sums]) -> None:
    for step, sums in steps.items():
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(sums[name][0]):
                raise NotFiniteError(f"{name} is {sums[name][0]} at step {step}: {REMEDY}", step)


def ratios(sums: Mapping[str, Any]) -> dict[str, float]:
    """{name: (sum, count)} -> {name: sum / count}; what was never counted is left out."""
    return {name: float(s[0] / s[1]) for name, s in sums.items() if s[1] > 0}
