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


class TrainLog:
    """Takes every step's device sums, and fetches those of the window before.

    So the host never waits for the step it has just sent off. A loss or gradient that is not finite
    raises `UserError` with its exact step.
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
        self._history = records.MetricsFile(workdir / "metrics.jsonl", resume_step=start_step)
        self._writer = tensorboard.create_writer(workdir, just_logging=jax.process_index() > 0)
        self._progress = progress.Progress(total_steps, start_step, steps_per_epoch)
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._clock = clock
        self._reported = start_step  # the last step fetched
        self._previous: list[Sums] = []
        self._window: list[Sums] = []
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
        self._writer.close()
        self._history.close()

    def add(self, sums: Sums) -> None:
        """Remembers one step's sums; fetches nothing."""
        self._window.append(sums)

    def report(self) -> None:
        """Fetches and writes the window before, and starts a new one."""
        self._write(self._previous)
        self._previous, self._window = self._window, []

    def flush(self) -> None:
        """Waits for every step so far and writes it."""
        self.report()
        self.report()

    def evaluation(self, step: int, evaluated: Mapping[str, Any]) -> None:
        """Writes the metrics of an evaluation."""
        values = metrics.scalars(evaluated)
        self._progress.evaluation(step, values)
        self._record(step, {f"val/{name}": value for name, value in values.items()})

    def _write(self, window: list[Sums]) -> None:
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
        values = metrics.ratios({name: sum(sums[name] for sums in steps) for name in steps[0]})
        # Throughput counts waiting for input, but neither compiling nor evaluating nor saving.
        now = self._clock.seconds
        spent = {k: v - self._since.get(k, 0.0) for k, v in now.items()}
        self._since = now
        seconds = spent.get("step", 0.0) + spent.get("input", 0.0)
        values["images_per_second"] = len(steps) * self._batch_size / max(seconds, 1e-9)
        values["input_wait"] = spent.get("input", 0.0) / max(seconds, 1e-9)
        self._progress.log(self._reported, values)
        self._record(self._reported, values)

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._writer.write_scalars(step, values)
        self._history.append({"step": step, "epoch": step / self._steps_per_epoch, **values})
