"""Images that could not be processed, by group: a system that fails on some people more often than
on others is unfair before it predicts anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax.evaluation import metrics
from agejax.evaluation.uncertainty import wilson


def measure(
    labels: Mapping[str, np.ndarray],
    label_names: Mapping[str, Sequence[str]],
    lost: Sequence[Mapping[str, float | str]],
) -> dict[str, Any]:
    """The share of each group's images that could not be decoded.

    Args:
      labels, label_names: of the images that could, as `metrics.evaluate` takes them.
      lost: the known labels of the others, as `Source.undecoded`.

    Returns:
      {by: [{"name", "n": images of the group, with the lost ones, "lost", "rate", "ci95":
      Wilson's}]}; an image counts only where its label is known. {} where nothing is lost.
    """
    if not lost:
        return {}
    every = {}
    for label, known in labels.items():
        names = list(label_names.get(label, ()))
        unknown = np.nan if known.dtype.kind == "f" else -1
        more = [
            unknown
            if (value := one.get(label)) is None or (names and value not in names)
            else names.index(str(value)) if names else value
            for one in lost
        ]  # fmt: skip
        every[label] = np.concatenate([known, np.array(more, known.dtype)])
    is_lost = np.arange(len(next(iter(every.values())))) >= len(next(iter(labels.values())))
    return by_group(is_lost, metrics.partitions(every, label_names))


def by_group(
    lost: np.ndarray, parts: Mapping[str, metrics.Partition]
) -> dict[str, list[dict[str, Any]]]:
    """The share of each group that is lost, bool [N]: the rows of `measure`."""
    return {
        by: [
            {"name": name, **_share(int((part & lost).sum()), int(part.sum()))}
            for name, part in of
            if part.any()
        ]
        for by, of in parts.items()
    }


def _share(k: int, n: int) -> dict[str, Any]:
    return {"n": n, "lost": k, "rate": k / n, "ci95": wilson(k, n)}
