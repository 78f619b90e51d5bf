"""The first thing that every command runs, before it imports NumPy and JAX.

    if __name__ == "__main__":
        from agejax.process import start

        start.as_command()

Importing agejax itself changes nothing in a process.
"""

from __future__ import annotations

import signal

from agejax.process import interrupts, memory


def as_command() -> None:
    """Makes Ctrl-C end the process with one line from now on, and keeps freed memory.

    Importing JAX takes seconds, and starts threads: until the command runs, a KeyboardInterrupt
    would come out of some library's import, and after that malloc no longer listens. A handler of
    SIGINT that somebody else has set stays.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupts.leave)
    memory.keep_freed()
