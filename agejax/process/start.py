"""The first thing that every command runs, before it imports NumPy and JAX.

    if __name__ == "__main__":
        from agejax.process import start

        start.as_command()

Importing agejax itself changes nothing in a process.
"""

from __future__ import annotations

import io
import os
import signal
import sys

from agejax.process import interrupts, memory


def as_command() -> None:
    """Makes Ctrl-C end the process with one line from now on, keeps freed memory, quietens logs.

    Importing JAX takes seconds, and starts threads: until the command runs, a KeyboardInterrupt
    would come out of some library's import, and after that malloc no longer listens. A handler of
    SIGINT that somebody else has set stays, and so do log levels in the environment. XLA would log
    as errors, over many lines, that a compilation is slow; its real errors are exceptions too.
    OpenCV would warn of an image that it cannot decode, without its name; our line names it. What
    stdout cannot show, such as a file's name in another encoding, is printed with escapes, as
    Python does on stderr.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupts.leave)
    memory.keep_freed()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
