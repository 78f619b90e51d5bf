"""Threads that work ahead of the use of their results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 16  # items per thread, begun or done before their results are used


def ahead(
    work: Callable[[T], R], items: Iterable[T], workers: int
) -> Iterator[tuple[T, Future[R]]]:
    """Yields every item with the future of `work(item)`, in order.

    Takes items only as threads need them, so that results do not fill the memory. A future's
    `result()` raises what the work raised.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
