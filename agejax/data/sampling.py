"""Weights -> an endless stream of row numbers, any part of which can be computed on its own.

The stream has no state: to resume, ask for later positions. Each process of a run takes its slice
of the same stream.
"""

from __future__ import annotations

import numpy as np

from agejax.errors import UserError

ROUNDS = 8  # of the permutation; each half of a number is changed four times
BLOCK = 32  # rows searched together, in 4 cache lines


class Sampler:
    """An endless stream of draws: position p is draw p % size of epoch p // size.

    Draws are systematic: an epoch visits the points (k + u) / size, k = 0..size-1, in random order
    with one random shift u in [0, 1), and a draw's row is the inverse distribution function of the
    weights at its point. So a row comes up size * weight / sum(weights) times in an epoch, give or
    take less than one, and without weights every row comes up exactly once.
    """

    def __init__(self, weights: np.ndarray | None, size: int, seed: int) -> None:
        """Prepares the stream.

        Args:
          weights: f64 [N], not negative, of any sum; None: as many rows as draws, all alike.
          size: draws in an epoch.
          seed: any integer; the stream is a pure function of (weights, size, seed).

        Raises:
          UserError: size below 1; a negative or non-finite weight; no weight above 0.
        """
        if size < 1:
            raise UserError(f"sampling: an epoch of {size} examples; is the training split empty?")
        self._size = size
        self._seed = seed % 2**64
        self._line = None if weights is None else _Line(weights, size)

    @property
    def size(self) -> int:
        """Draws in an epoch."""
        return self._size

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions of the stream: int64 [B] -> int64 [B]."""
        k, u = self._points(positions)
        return k if self._line is None else self._line.rows(k + u)

    def occurrence(self, positions: np.ndarray) -> np.ndarray:
        """Which copy of its row in its epoch each draw is: int64 [B] -> int64 [B], 0, 1, 2 ...

        Copies are counted over the whole epoch and come in any order: exactly one is the original.
        """
        k, u = self._points(positions)
        if self._line is None:
            return np.zeros_like(k)
        begins = self._line.begins(self._line.rows(k + u))
        copy: np.ndarray = k - np.maximum(np.ceil(begins - u), 0).astype(np.int64)
        return copy

    def _points(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Point numbers k (int64) and shifts u (f64) at positions int64 [B]."""
        epoch, i = np.divmod(positions, self._size)
        first, last = (epoch.min(), epoch.max()) if len(epoch) else (0, 0)
        raw = np.stack(
            [
                np.random.Philox(key=np.array([self._seed, e], np.uint64)).random_raw(ROUNDS + 1)
                for e in range(first, last + 1)
            ]
        )[epoch - first]
        return _permute(i, self._size, raw[:, 1:]), (raw[:, 0] >> np.uint64(11)) * 2.0**-53


class _Line:
    """The line from 0 to size, cut into one piece per row, proportional to the row's weight."""

    def __init__(self, weights: np.ndarray, size: int) -> None:
        weights = np.asarray(weights, np.float64)
        if not (len(weights) and np.isfinite(weights).all() and weights.min() >= 0):
            raise UserError("sampling: every weight must be a number of 0 or above")
        if weights.max() == 0:
            raise UserError("sampling: all weights are 0; at least one must be above")
        rows = len(weights) - int(np.argmax(weights[::-1] > 0))  # up to the last with a weight
        self._ends = np.full(-(-rows // BLOCK) * BLOCK, np.inf)
        np.cumsum(weights[:rows], out=self._ends[:rows])
        self._ends *= size / self._ends[rows - 1]
        self._ends[rows - 1] = np.inf  # whatever the rounding, no point lies beyond it
        self._coarse = self._ends[BLOCK - 1 :: BLOCK].copy()

    def rows(self, points: np.ndarray) -> np.ndarray:
        """The row whose piece holds each point: f64 [B] -> int64 [B]."""
        # In two levels: the coarse one stays in the processor's cache, so that a point costs one
        # memory access, not one for each halving of a table of 10 million rows.
        block = np.searchsorted(self._coarse, points, side="right")
        around = np.take(self._ends.reshape(-1, BLOCK), block, axis=0)
        rows: np.ndarray = BLOCK * block + np.count_nonzero(around <= points[:, None], axis=1)
        return rows

    def begins(self, rows: np.ndarray) -> np.ndarray:
        """Where each row's piece begins: int64 [B] -> f64 [B]."""
        return np.where(rows > 0, self._ends[rows - 1], 0.0)


def _permute(i: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """A random permutation of range(size) at i: int64 [B], round keys uint64 [B, ROUNDS] -> [B].

    A Feistel network on pairs (left, right) of a square just above size, whose halves add a hash of
    the other; a result outside range(size) goes through again (cycle walking, Black and Rogaway
    2002). No table: any element costs the same, whatever the size.
    """
    side = np.uint64(np.ceil(np.sqrt(size)))
    side += np.uint64(int(side) ** 2 < size)
    out = i.astype(np.uint64)
    todo = np.arange(len(i))
    while len(todo):
        left, right = np.divmod(out[todo], side)
        for key in keys[todo].T:
            left, right = right, (left + _hash(right ^ key, side)) % side
        out[todo] = left * side + right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)


def _hash(x: np.ndarray, below: np.uint64) -> np.ndarray:
    """splitmix64's mixing function, scaled to range(below): uint64 [B] -> uint64 [B]."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(32)) * below) >> np.uint64(32)
