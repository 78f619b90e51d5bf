"""agejax: train and judge face-age models in JAX. Import what you need from its rooms."""

import signal
import sys

from agejax import interrupts

# `python -m agejax.X` imports this package first, and then JAX, which takes seconds: until the
# command runs, Ctrl-C ends it with one line. Any other program keeps its own handler.
if (
    sys.argv[:1] == ["-m"]
    and any(a.removeprefix("-m").startswith(("agejax.", "experiments.")) for a in sys.orig_argv)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, interrupts.leave)

from agejax import memory

__version__ = "0.1.0"

memory.keep_freed()  # here, before other packages start threads
