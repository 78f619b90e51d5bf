"""Says where a run hangs: every thread's stack, once nothing has happened for too long."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from types import TracebackType
from typing import TextIO


class Watchdog:
    """Unless fed again within `seconds`, writes all threads' stacks; the process is left alone.

    A process that waits for another (a collective, a disk, a worker) says nothing by itself. Not
    `faulthandler.dump_traceback_later`: each feeding would start a thread, of 0.7 ms on a busy CPU.

    Args:
      seconds: 0: never.
      out: a file of the system's; default: stderr.
    """

    def __init__(self, seconds: float, out: TextIO | None = None) -> None:
        self._seconds, self._out = seconds, out or sys.__stderr__
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def feed(self) -> None:
        """Something has happened; the wait begins anew."""
        self._fed = time.monotonic()  # no jump of the wall clock counts

    def __enter__(self) -> Watchdog:
        self.feed()
        if self._seconds > 0 and self._out is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()

    def _watch(self) -> None:
        assert self._out is not None
        while not self._done.wait(max(self._fed + self._seconds - time.monotonic(), 0)):
            waited = time.monotonic() - self._fed
            if waited >= self._seconds:
                print(f"agejax: nothing has happened for {waited:.0f} s; what every thread does:",
                      file=self._out, flush=True)  # fmt: skip
                faulthandler.dump_traceback(self._out, all_threads=True)
                self.feed()
