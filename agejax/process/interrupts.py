"""Ctrl-C, from the first import of a command to its end. Imports next to nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130  # the exit code of a process that Ctrl-C ended, as shells have it

Handler = Callable[[int, FrameType | None], Any]


def leave(number: int, frame: FrameType | None) -> None:
    """Handles SIGINT by ending the process with one line: nothing was begun yet, or all is done."""
    with contextlib.suppress(OSError):  # nobody reads stderr
        os.write(2, b"agejax: interrupted\n")
    os._exit(INTERRUPTED)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handles the first SIGINT as Python does, and the next by `leave`: a library may lose one."""
    signal.signal(signal.SIGINT, leave)
    raise KeyboardInterrupt


@contextlib.contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """A handler of SIGINT for a while; a program that ignores or handles it itself goes on to."""
    previous = signal.getsignal(signal.SIGINT)
    ours = previous in (signal.default_int_handler, leave, interrupt)
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def repeat() -> None:
    """Interrupts the main thread anew, where a library's callback has lost a KeyboardInterrupt.

    To be called by `sys.unraisablehook`. It comes from another thread, for what is raised in the
    hook is lost as well.
    """
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, interrupt)
    almost_out = threading.Event()
    threading.Thread(target=_interrupt_main_thread, args=(almost_out,), daemon=True).start()
    almost_out.set()


def _interrupt_main_thread(almost_out: threading.Event) -> None:
    almost_out.wait()
    time.sleep(0.1)  # until the main thread has left the hook
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
