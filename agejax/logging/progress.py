"""Progress lines: rewritten in place on a terminal, a plain line now and then in a file."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from agejax.logging import console

SHOWN = ("/mae", "/accuracy")  # of a window's metrics; the others are in metrics.jsonl


class Progress:
    """Says where a run is, how it does, how fast it goes and how long it will take.

    Args:
      total_steps: of the whole run.
      start_step: where this process began; after a resume the steps before it took other time.
      steps_per_epoch: may be a fraction.
      out: default: standard output.
      clock: seconds; a test's own.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        steps_per_epoch: float,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._clock = clock
        self._since = start_step, clock()
        self._logged = False
        self._open = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One window of training, a line that the next one replaces on a terminal.

        Shown of `values`: loss, metrics named in `SHOWN`, images_per_second, learning_rate.
        """
        parts = [self._place(step)]
        if "loss" in values:
            parts.append(f"loss {values['loss']:.4f}")
        parts += [f"{k} {v:.3f}" for k, v in values.items() if k.endswith(SHOWN)]
        if "images_per_second" in values:
            parts.append(f"{values['images_per_second']:,.0f} images/s")
        if "learning_rate" in values:
            parts.append(f"lr {values['learning_rate']:.2e}")
        parts.append(f"left {duration(self._left(step))}")
        self._write("  ".join(parts), stays=not self._terminal)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """One evaluation, on a line that stays."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        self._write(f"{self._place(step)}  val {shown}", stays=True)

    def note(self, step: int, text: str) -> None:
        """One line about the run that stays."""
        self._write(f"{self._place(step)}  {text}", stays=True)

    def close(self) -> None:
        """Leaves the terminal's last line standing, for whatever is printed next."""
        if self._open:
            self._out.write("\n")
            self._out.flush()
            self._open = False

    def _write(self, line: str, *, stays: bool) -> None:
        if not console.wanted():
            return
        if not stays:
            # A line that wraps could not be rewritten.
            line = line[: shutil.get_terminal_size().columns - 1]
        start = "\r\x1b[K" if self._terminal else ""
        self._out.write(start + line + ("\n" if stays else ""))
        self._out.flush()
        self._open = not stays

    def _place(self, step: int) -> str:
        epoch, epochs = step / self._per_epoch, f"{self._total / self._per_epoch:.4g}"
        total = f"{self._total:,}"
        return f"epoch {epoch:5.1f}/{epochs}  step {step:>{len(total)},}/{total}"

    def _left(self, step: int) -> float:
        """Seconds, at the pace since the first log: before it lies the compilation."""
        since, began = self._since
        now = self._clock()
        if not self._logged:
            self._logged, self._since = True, (step, now)
        return (now - began) / max(step - since, 1) * (self._total - step)


class Count:
    """Reports on stderr how many images are done: on one line, or as one line every 10 s.

    Args:
      what: what is done to them, such as "utkface: decoded".
      total: how many images there are.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._live = sys.stderr.isatty()
        self._start = self._reported = time.monotonic()

    def add(self, images: int = 1) -> None:
        """Counts images that were done."""
        self._done += images
        now, last = time.monotonic(), self._done >= self._total
        due = now - self._reported > (0.2 if self._live else 10) or (self._live and last)
        if due and console.wanted():
            self._reported = now
            speed = self._done / (now - self._start)
            text = f"{self._what} {self._done:,} of {self._total:,}, {speed:,.0f} images/s"
            end = "\r" if self._live and not last else "\n"
            print(text, end=end, file=sys.stderr, flush=True)

    def leave_out(self, images: int) -> None:
        """Takes images that need not be done from the total."""
        self._total -= images


def duration(seconds: float) -> str:
    """45s, 3m07s, 2h05m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
