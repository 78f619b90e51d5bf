"""Which groups a config's sampling draws, compared with their shares of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax.data import draws, sampling
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.evaluation import metrics

CHUNK = 2**20  # draws computed at a time
Table = dict[str, dict[str, float]]  # group -> n, share, expected, drawn, distinct, copies


def measure(
    config: Any, source: Source, rows: np.ndarray, seed: int, epochs: int
) -> dict[str, Any]:
    """Counts what `config.sampling` draws from the training rows int64 [N], before its `keep`.

    Returns:
      {rows, draws (per epoch), epochs, tables: {decade, gender, ethnicity, gender x ethnicity,
      part: {group: {n: images, share: of the images, expected: share of the draws, drawn: share of
      the draws made, distinct: images drawn, copies: draws of an image already drawn in its
      epoch}}}}. The table of a label that no image has is left out.

    Raises:
      UserError: as `draws.keep` and `draws.weigh`, or fewer epochs than 1.
    """
    if epochs < 1:
        raise UserError(f"--epochs={epochs}: draw at least one")
    rows = draws.keep(config, source, rows)
    chosen = draws.weigh(config, source, rows)
    sampler = sampling.Sampler(*chosen, seed)
    expected = chosen.expected(len(rows))
    drawn = np.zeros(len(rows), np.int64)
    copies = np.zeros(len(rows), np.int64)
    for start in range(0, epochs * chosen.size, CHUNK):
        positions = np.arange(start, min(start + CHUNK, epochs * chosen.size))
        at = sampler.indices(positions)
        drawn += np.bincount(at, minlength=len(rows))
        copies += np.bincount(at[sampler.occurrence(positions) > 0], minlength=len(rows))

    tables: dict[str, Table] = {}
    for name, groups in partitions(source, rows).items():
        tables[name] = {
            group: {
                "n": int(mask.sum()),
                "share": float(mask.mean()),
                "expected": float(expected[mask].sum() / chosen.size),
                "drawn": float(drawn[mask].sum() / (epochs * chosen.size)),
                "distinct": int((drawn[mask] > 0).sum()),
                "copies": int(copies[mask].sum()),
            }
            for group, mask in groups.items()
            if mask.any()
        }
    return {"rows": len(rows), "draws": chosen.size, "epochs": epochs, "tables": tables}


def partitions(source: Source, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The ways to divide `rows` [N] into groups: {label: {group: bool [N]}}."""
    labels = {name: values[rows] for name, values in source.labels.items()}
    parts = metrics.partitions(labels, source.label_names)
    result = {
        label: dict(groups)
        for label, groups in parts.items()
        if any(mask.any() for _, mask in groups)
    }
    for groups in result.values():
        groups["unknown"] = ~np.any(list(groups.values()), axis=0)
    if source.part is not None:
        part = source.part[rows]
        result["part"] = {name: part == i for i, name in enumerate(source.parts)}
    return result


def text(measured: Mapping[str, Any], title: str) -> str:
    """The tables of `measure` as text to print."""
    epochs = measured["epochs"]
    lines = [
        f"{title}: {measured['rows']:,} training images, {measured['draws']:,} draws per epoch, "
        f"{epochs:,} epoch{'s' * (epochs > 1)} drawn"
    ]
    for label, table in measured["tables"].items():
        width = max(len(name) for name in (label, *table))
        lines += ["", f"{label:{width}}  images   share  expected   drawn  distinct   copies"]
        lines += [
            f"{name:{width}} {row['n']:7,}  {row['share']:5.1%}   {row['expected']:6.1%}  "
            f"{row['drawn']:6.1%}  {row['distinct']:8,} {row['copies']:8,}"
            for name, row in table.items()
        ]
    return "\n".join(lines)
