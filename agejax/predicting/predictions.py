"""Predicts faces, one record each: age with its interval, and probabilities of classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from agejax.predicting.images import Crop
from agejax.predicting.model import Model

if TYPE_CHECKING:
    from agejax.data.pipeline import HostBatch


def of_faces(model: Model, faces: Iterable[Crop], batch_size: int) -> Iterator[dict[str, Any]]:
    """Yields one record per face.

    A record holds the face's path and place, where known, age (years) and
    {target: {class: probability}}; where the model has a calibration, the probabilities are
    calibrated, and age_low and age_high (years) are added.
    """
    calibration = model.calibration
    for batch in _batches(faces, batch_size):
        said = model.predict(_pad(np.stack([face.image for face in batch]), batch_size))
        intervals = calibration.intervals(said) if calibration else {}
        said = said | (calibration.probabilities(said) if calibration else {})
        for i, face in enumerate(batch):
            record: dict[str, Any] = {} if face.path is None else {"path": str(face.path)}
            record |= face.where
            for name, values in said.items():
                if values.ndim == 1:
                    record[name] = round(float(values[i]), 2)
                    if name in intervals:
                        low, high = intervals[name]
                        record[f"{name}_low"] = round(float(low[i]), 2)
                        record[f"{name}_high"] = round(float(high[i]), 2)
                else:
                    shares = zip(model.classes[name], values[i], strict=True)
                    record[name] = {c: round(float(p), 4) for c, p in shares}
            yield record


def batch_size_of(images: int, model: Model) -> int:
    """Rows of a batch: a power of two per device, so that few sizes are compiled."""
    rows = 2 ** math.ceil(math.log2(max(images / model.devices, 1))) * model.devices
    return int(min(model.batch_size, rows))


def _batches(faces: Iterable[Crop], size: int) -> Iterator[list[Crop]]:
    batch: list[Crop] = []
    for face in faces:
        batch.append(face)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _pad(images: np.ndarray, batch_size: int) -> HostBatch:
    """Pads to a full batch, so that one compiled program serves all; padding has weight 0."""
    missing = batch_size - len(images)
    return {
        "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
        "weight": (np.arange(batch_size) < len(images)).astype(np.float32),
    }
