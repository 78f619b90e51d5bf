"""What a run says while it trains: the progress line, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jax

from agejax import metrics
from agejax.errors import UserError
from agejax.logging import progress, records, tensorboard
from agejax.logging.stopwatch import Stopwatch

Sums = Mapping[str, jax.Array]
Window = tuple[list[Sums], Mapping[str, float]]  # of some steps, and the seconds they took by phase


class TrainLog:
    """Takes every step's device sums, and fetches those of the window before.

    So the host never waits for the step it has just sent off. A loss or gradient that is not finite
    raises `UserError` with its exact step. Of several processes the first one writes.
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
    ) -> None:
        self._writes = jax.process_index() == 0
        if self._writes:
            self._history = records.MetricsFile(workdir / "metrics.jsonl", resume_step=start_step)
            self._writer = tensorboard.create_writer(workdir, resume_step=start_step)
            self._progress = progress.Progress(total_steps, start_step, steps_per_epoch)
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._clock = clock
        self._reported = start_step  # the last step fetched
        self._previous: Window = ([], {})
        self._sums: list[Sums] = []
        self._since = clock.seconds

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
            self._writer.close()
            self._history.close()

    def add(self, sums: Sums) -> None:
        """Remembers one step's sums; fetches nothing."""
        self._sums.append(sums)

    def report(self) -> None:
        """Fetches and writes the window before, and starts a new one."""
        self._write(*self._previous)
        # The host may be far ahead of the device. Once the last step but one is done, the clock is
        # right to within a step, and the device still has work.
        jax.block_until_ready(self._sums[-2:-1])
        now = self._clock.seconds
        spent = {phase: now[phase] - self._since.get(phase, 0.0) for phase in now}
        self._previous, self._sums, self._since = (self._sums, spent), [], now

    def flush(self) -> None:
        """Waits for every step so far and writes it."""
        jax.block_until_ready(self._sums)
        self.report()
        self.report()

    def evaluation(self, step: int, evaluated: Mapping[str, Any]) -> None:
        """Writes the metrics of an evaluation."""
        if not self._writes:
            return
        values = metrics.scalars(evaluated)
        self._progress.evaluation(step, values)
        self._record(step, {f"val/{name}": value for name, value in values.items()})

    def _write(self, window: list[Sums], spent: Mapping[str, float]) -> None:
        if not window:
            return
        steps = jax.device_get(window)
        for i, sums in enumerate(steps, self._reported + 1):
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(sums[name][0]):
                    raise UserError(
                        f"{name} is {sums[name][0]} at step {i}: training stopped, the last good "
                        "checkpoint is kept; lower config.schedule.lr or set config.optim.clip_norm"
                    )
        self._reported += len(steps)
        if not self._writes:
            return
        values = metrics.ratios({name: sum(sums[name] for sums in steps) for name in steps[0]})
        # Throughput counts waiting for input, but neither compiling nor evaluating nor saving.
        seconds = spent.get("step", 0.0) + spent.get("input", 0.0)
        values["images_per_second"] = len(steps) * self._batch_size / max(seconds, 1e-9)
        values["input_wait"] = spent.get("input", 0.0) / max(seconds, 1e-9)
        self._progress.log(self._reported, values)
        self._record(self._reported, values)

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._writer.write_scalars(step, values)
        self._history.append({"step": step, "epoch": step / self._steps_per_epoch, **values})
