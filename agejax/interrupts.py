"""Ctrl-C while a command imports its modules: this one is the first and imports next to nothing."""

from __future__ import annotations

import contextlib
import os
from typing import Any

INTERRUPTED = 130  # the exit code of a process that Ctrl-C ended, as shells have it


def leave(number: int, frame: Any) -> None:
    """Handles SIGINT by ending the process with one line; nothing was begun yet.

    A KeyboardInterrupt raised there would come out of some library's import, or be lost in it.
    """
    with contextlib.suppress(OSError):  # nobody reads stderr
        os.write(2, b"agejax: interrupted\n")
    os._exit(INTERRUPTED)
