"""What the C library does with memory that was freed: keeps it for the next step."""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed() -> None:
    """Makes glibc keep freed memory in one heap, in place of giving it back to the kernel.

    XLA:CPU allocates a step's temporaries anew at every step. glibc gets blocks of that size from
    the kernel and returns them at once, so a third of a small network's step went into page faults.
    It must be called before a thread has an arena of its own: later it changes nothing. Where
    another C library is at work, or an environment variable MALLOC_... says otherwise, nothing is
    done. Nor beside a GPU: there a step's temporaries are on the device, and XLA compiles with as
    many threads as there are cores, which would wait for the one heap.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    if any(pathlib.Path("/dev").glob("nvidia[0-9]*")):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
