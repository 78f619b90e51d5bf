"""Predictions for many batches: one is computed while the next is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from agejax.training import sharding

if TYPE_CHECKING:
    from agejax.data.pipeline import HostBatch


def predict_batches(
    eval_step: Callable[..., dict[str, jax.Array]],
    params: Any,
    batch_stats: Any,
    batches: Iterable[HostBatch],
    mesh: Mesh,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, np.ndarray] | None:
    """Predictions for every row with weight > 0, in order; None if `stop()` became true."""
    parts: list[dict[str, np.ndarray]] = []
    running: deque[tuple[dict[str, jax.Array], jax.Array]] = deque()

    def fetch() -> None:
        out, weight = multihost_utils.process_allgather(running.popleft(), tiled=True)
        parts.append({k: v[weight > 0] for k, v in out.items()})

    for host_batch in batches:
        if stop():
            return None
        batch = sharding.put_batch(host_batch, mesh)
        running.append((eval_step(params, batch_stats, batch), batch["weight"]))
        # One batch is computed while the next is read; more would only take memory.
        if len(running) > 2:
            fetch()
    while running:
        fetch()
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} if parts else {}
