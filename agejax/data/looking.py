"""Measuring many images in threads, and the sharpness of one image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2
import numpy as np

from agejax.logging import progress

CHUNK = 256  # images per task of a thread
SHARPNESS_EDGE = 128  # pixels; larger images are shrunk to it, so that sharpness is comparable
T = TypeVar("T")


def by_chunks(look: Callable[[np.ndarray], Iterable[T]], rows: np.ndarray) -> Iterator[T]:
    """Yields what `look` returns for each `CHUNK` of rows int [N], in order; runs in threads."""
    chunks = (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
    with ThreadPoolExecutor() as pool, progress.Count("looked at", len(rows)) as count:
        for results in pool.map(look, chunks):
            found = [*results]
            count.add(len(found))  # after one image the time left would be that of a chunk each
            yield from found


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian of uint8 [S, S]: low if blurred (Pech-Pacheco et al. 2000)."""
    return float(cv2.meanStdDev(cv2.Laplacian(comparable(grey), cv2.CV_32F))[1][0, 0]) ** 2


def comparable(grey: np.ndarray) -> np.ndarray:
    """A grey image of at most `SHARPNESS_EDGE` pixels."""
    if len(grey) <= SHARPNESS_EDGE:
        return grey
    return cv2.resize(grey, (SHARPNESS_EDGE, SHARPNESS_EDGE), interpolation=cv2.INTER_AREA)
