"""Fits weights with batch norms folded into convolutions to a network that has batch norms.

Exported networks have convolutions with a bias. Here that bias becomes the bias of a batch norm
that changes nothing else; `batch_statistics.calibrated` then gives it statistics.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# sqrt(var + epsilon) equals the scale exactly: epsilon is too small to change the sum in float32.
NEUTRAL = {"scale": 2.0**10, "mean": 0.0, "var": 2.0**20}


def folded(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the same network with folded batch norms: NAME/norm/bias is NAME/conv/bias."""
    return {
        name.replace("/norm/bias", "/conv/bias"): shape
        for name, shape in shapes.items()
        if not name.endswith(tuple(f"/norm/{leaf}" for leaf in NEUTRAL))
    }


def unfolded(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Arrays of `shapes` from those of a folded network; the same function at evaluation."""
    result = {}
    for name, shape in shapes.items():
        leaf = name.rpartition("/")[2]
        if "/norm/" in name and leaf in NEUTRAL:
            result[name] = np.full(shape, NEUTRAL[leaf], np.float32)
        elif (source := name.replace("/norm/bias", "/conv/bias")) in arrays:
            result[name] = arrays[source]
    return result
