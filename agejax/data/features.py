"""Image features that a network computes once: cached in blocks, read by row.

    CACHE/features/KEY/00000/features.f32   float32 [1024, C] of rows 0 to 1,023 of a source
    CACHE/features/KEY/00001/features.f32   of the next rows, and so on

KEY is a digest of everything that the features of one view depend on. A block is complete or
absent: a killed process loses only the block it was computing, and the next one continues there.
"""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from agejax.data.cache import cached
from agejax.data.mapped import MappedArray
from agejax.logging import console, progress

ROWS = 1024  # per block
FILES, MORE = 2, 256  # open files of a block (Python's map has one of its own), and of all else
FILE = "features.f32"
# (view, rows int [B]) -> features of these rows, f32 [b, C] at a time
Compute = Callable[[int, np.ndarray], Iterator[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class CachedFeatures:
    """Features of N images in V views.

    Attributes:
      width: C, the number of features.
      views: for each view: the number of a block -> its features, f32 [rows, C].
    """

    width: int
    views: Sequence[Mapping[int, MappedArray]]

    def take(self, rows: np.ndarray, view: np.ndarray | int = 0) -> np.ndarray:
        """The features of rows int [B], each in its own view int [B], f32 [B, C]."""
        features = np.empty((len(rows), self.width), np.float32)
        block, inside = np.divmod(rows, ROWS)
        places = np.stack([np.broadcast_to(view, block.shape), block])
        kinds, of_kind = np.unique(places, axis=1, return_inverse=True)
        for i, (v, b) in enumerate(kinds.T):
            here = of_kind == i
            features[here] = self.views[v][int(b)][inside[here]]
        return features


def load(
    keys: Sequence[str],
    rows: Sequence[np.ndarray],
    total: int,
    width: int,
    compute: Compute,
    *,
    name: str,
    cache_dir: str | None = None,
) -> CachedFeatures:
    """Opens the features of V views; computes missing or damaged blocks, with lines on stderr.

    The processes of one run begin at different blocks, so that processes with a common cache share
    the work.

    Args:
      keys: one per view.
      rows: for each view the rows that are needed, int [M]. Their blocks are computed completely,
        so that another split of the same images finds most of them.
      total: N, the number of images in the source.
      width: C.
      name: what the lines call these features.
      cache_dir: default: $AGEJAX_CACHE, else ~/.cache/agejax.

    Raises:
      UserError: a disk that is full, read-only or failing.
    """
    wanted = [(view, int(b)) for view, need in enumerate(rows) for b in np.unique(need // ROWS)]
    first = jax.process_index() * len(wanted) // jax.process_count()
    _allow_open_files(FILES * len(wanted) + MORE)
    views: list[dict[int, MappedArray]] = [{} for _ in keys]
    sizes = {b: min(ROWS, total - b * ROWS) for _, b in wanted}
    made, start = 0, time.monotonic()
    with progress.Count(f"{name}: computed", sum(sizes[b] for _, b in wanted)) as count:
        for view, b in wanted[first:] + wanted[:first]:
            shape, found = (sizes[b], width), True

            def make(folder: pathlib.Path, view: int = view, b: int = b) -> None:
                nonlocal found
                found = False
                with (folder / FILE).open("wb") as file:
                    for part in compute(view, np.arange(b * ROWS, b * ROWS + sizes[b])):
                        file.write(np.ascontiguousarray(part, np.float32).data)
                        count.add(len(part))

            def read(folder: pathlib.Path, shape: tuple[int, int] = shape) -> MappedArray:
                return MappedArray(folder / FILE, shape, np.float32)

            views[view][b] = cached(f"features/{keys[view]}/{b:05d}", make, read, cache_dir)
            if found:
                count.leave_out(sizes[b])
            else:
                made += sizes[b]
    if made:
        seconds = time.monotonic() - start
        console.note(f"{name}: computed {made:,} in {seconds:.0f} s")
    return CachedFeatures(width, views)


def _allow_open_files(count: int) -> None:
    """Raises this process's limit on open files, often 1,024, so far as its hard limit lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
