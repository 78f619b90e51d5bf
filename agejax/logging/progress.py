"""The progress line: rewritten in place on a terminal, one plain line a log in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO


class Progress:
    """Says where a run is, how it does, how fast it goes and how long it will take."""

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        steps_per_epoch: float,
        out: TextIO | None = None,
    ) -> None:
        self._total, self._start, self._per_epoch = total_steps, start_step, steps_per_epoch
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._began = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One window of training: `loss`, `images_per_second` and `learning_rate` are shown."""
        line = "  ".join(
            [
                self._place(step),
                f"loss {values['loss']:.4f}",
                *(f"{k} {v:.3f}" for k, v in values.items() if k.endswith(("/mae", "/accuracy"))),
                f"lr {values['learning_rate']:.2e}",
                f"{values['images_per_second']:,.0f} images/s",
                f"left {duration(self._left(step))}",
            ]
        )
        if self._terminal:
            self._out.write(f"\r\x1b[K{line}")
        else:
            self._out.write(line + "\n")
        self._out.flush()

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """One evaluation, on a line that stays."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        self._out.write(
            ("\r\x1b[K" if self._terminal else "") + f"{self._place(step)}  val {shown}\n"
        )
        self._out.flush()

    def _place(self, step: int) -> str:
        epochs = self._total / self._per_epoch
        epoch = step / self._per_epoch
        return f"epoch {epoch:5.2f}/{epochs:.4g}  step {step:,}/{self._total:,}"

    def _left(self, step: int) -> float:
        done = max(step - self._start, 1)
        return (time.monotonic() - self._began) / done * (self._total - step)


def duration(seconds: float) -> str:
    """45s, 3m07s, 2h05m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
