"""What is known of a face: the labels and their types, and the decades that ages are told in."""

from __future__ import annotations

import numpy as np

# name -> type: ages in years, NaN unknown; numbers of classes, -1 unknown.
LABELS = {
    "age": np.float32,
    "gender": np.int32,
    "ethnicity": np.int32,
    "apparent_age": np.float32,
    "apparent_age_std": np.float32,
}
DECADES = ("0-9", *(f"{d}0-{d}9" for d in range(1, 9)), "90+")


def is_known(labels: np.ndarray) -> np.ndarray:
    """bool [N]: which ages (years) are not NaN, or which class numbers are not -1."""
    return np.isfinite(labels) if labels.dtype.kind == "f" else labels >= 0
