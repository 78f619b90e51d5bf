"""The memory of a process, as benchmarks measure it."""

import mmap
import time

import numpy as np

from experiments.memory import Peak


def test_the_peak_is_of_memory_and_not_of_files(tmp_path):
    n = 2**26
    np.zeros(n, np.uint8).tofile(tmp_path / "images")
    with Peak() as nothing:
        time.sleep(0.1)
    with Peak() as peak:
        # Given back before the end, whatever malloc would keep.
        with mmap.mmap(-1, n, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
            np.frombuffer(taken, np.uint8).fill(1)
            time.sleep(0.1)
        mapped = np.memmap(tmp_path / "images", np.uint8, "r")
        assert mapped.sum() == 0
        time.sleep(0.1)
    assert n / 2 < peak.bytes - nothing.bytes < 1.5 * n
