"""Progress: a live bar on a terminal, a plain line of the logger now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from agejax.logging import console

# Of the metrics on a line; the others are in metrics.jsonl.
SHOWN = ("/mae", "/accuracy")
SHOWN_OF_VAL = (*SHOWN, "/cs5")
WIDTH = 20  # characters of a bar
EVERY = 0.2  # seconds between two drawings of a bar
EVERY_LINE = 10.0  # seconds between two plain lines of `Count`
Clock = Callable[[], float]


class Bar:
    """The live line of a terminal: how much is done, and a text; elsewhere nothing."""

    def __init__(self, out: TextIO, clock: Clock) -> None:
        self._out, self._clock = out, clock
        self._next = clock() + EVERY

    def due(self) -> bool:
        """Whether it is time to draw it again."""
        return self._clock() >= self._next and console.draws_on(self._out)

    def draw(self, share: float | None, text: str) -> None:
        """Draws it now.

        Args:
          share: how much is done, 0..1; None: nobody knows, and there is no bar beside the text.
        """
        if not console.draws_on(self._out):
            return
        self._next = self._clock() + EVERY
        done = "" if share is None else f"[{'#' * int(share * WIDTH):.<{WIDTH}}] {share:4.0%}  "
        console.printer.draw(done + text, self._out)

    def close(self) -> None:
        """Removes it."""
        console.printer.erase()


class Progress:
    """Says where a training is, how it does, how fast it goes and how long it will take.

    Args:
      total_steps: of the whole run.
      epochs: how many these are.
      start_step: where this process began.
      clock: seconds; a test's own.
    """

    def __init__(
        self, total_steps: int, epochs: float, start_step: int = 0, clock: Clock = time.monotonic
    ) -> None:
        self._total, self._epochs = total_steps, epochs
        self._step, self._pace, self._shown = start_step, 0.0, ""
        self._out = sys.stdout
        self._bar = Bar(self._out, clock)
        self.due = self._bar.due

    def at(self, step: int, pace: float) -> None:
        """The run has done `step` steps, and one takes `pace` seconds; 0: not known yet."""
        self._step, self._pace = step, pace
        self._draw()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Reports one window of training that ended at `step`.

        Shown of `values`: loss, metrics named in `SHOWN`, images_per_second, learning_rate.
        """
        parts = _figures(values, SHOWN)
        if "images_per_second" in values:
            parts.append(f"{values['images_per_second']:,.0f} images/s")
        if "learning_rate" in values:
            parts.append(f"lr {values['learning_rate']:.2e}")
        self._shown = "  ".join(parts)
        if console.draws_on(self._out):
            self._draw()
        else:
            self.note(step, "  ".join(filter(None, (self._shown, self._left()))))

    def evaluation(
        self, step: int, values: Mapping[str, float], best_by: str, *, best: bool
    ) -> None:
        """Reports one evaluation: its loss, metrics named in `SHOWN_OF_VAL`, and `best_by`.

        Args:
          best_by: the metric that decides which step is the best.
          best: whether it is this one so far.
        """
        parts = ["val", *_figures(values, (*SHOWN_OF_VAL, best_by)), "best so far" if best else ""]
        self.note(step, "  ".join(filter(None, parts)))

    def note(self, step: int, text: str) -> None:
        """Prints one line about the run at a step."""
        console.result(f"{self._place(step)}  {text}")

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()

    def _draw(self) -> None:
        # The time left comes first, for a narrow terminal shows no more of the line than fits.
        parts = self._place(self._step), self._left(), self._shown
        self._bar.draw(self._step / self._total, "  ".join(filter(None, parts)))

    def _left(self) -> str:
        return f"left {duration(self._pace * (self._total - self._step))}" if self._pace else ""

    def _place(self, step: int) -> str:
        epoch, total = step / self._total * self._epochs, f"{self._total:,}"
        return f"epoch {epoch:5.1f}/{self._epochs:.4g}  step {step:>{len(total)},}/{total}"


class Count:
    """Reports on stderr how many are done. A context: its bar goes when it ends.

    Args:
      what: what is done to them, such as "utkface: decoded".
      total: how many there are; None: nobody knows.
      unit: what they are.
      clock: seconds; a test's own.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str = "images",
        clock: Clock = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit, self._clock = what, total, unit, clock
        self._done, self._start = 0, clock()
        self._next_line = self._start + EVERY_LINE
        self._bar = Bar(sys.stderr, clock)

    def __enter__(self) -> Count:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def add(self, done: int = 1) -> None:
        """Counts some that were done."""
        self._done += done
        if self._bar.due():
            self._bar.draw(self._done / self._total if self._total else None, self._text())
        elif self._clock() >= self._next_line and not console.draws_on(sys.stderr):
            self._next_line = self._clock() + EVERY_LINE
            console.note(self._text())

    def leave_out(self, some: int) -> None:
        """Takes some that need not be done from the total."""
        if self._total is not None:
            self._total -= some

    def _text(self) -> str:
        speed = self._done / max(self._clock() - self._start, 1e-9)
        text = f"{self._what} {self._done:,}"
        if self._total is None:
            return f"{text}, {speed:,.0f} {self._unit}/s"
        left = duration((self._total - self._done) / max(speed, 1e-9))
        return f"{text} of {self._total:,}, {speed:,.0f} {self._unit}/s, left {left}"


def _figures(values: Mapping[str, float], names: tuple[str, ...]) -> list[str]:
    """The loss, and the values whose names end in one of `names`."""
    loss = [f"loss {values['loss']:.4f}"] if "loss" in values else []
    return loss + [f"{k} {v:.3f}" for k, v in values.items() if k.endswith(names) and k != "loss"]


def duration(seconds: float) -> str:
    """45s, 3m07s, 2h05m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
