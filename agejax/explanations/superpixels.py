"""Superpixels: connected segments of similar colour."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

GRID = 8  # segments along an edge
COMPACTNESS = 10.0  # the CIELAB distance that a grid cell's width equals; higher is squarer


def superpixels(image: np.ndarray) -> np.ndarray:
    """SLIC (Achanta et al. 2012): about `GRID`² connected segments of similar colour.

    Args:
      image: uint8 [S, S, 3].

    Returns:
      int32 [S, S], 0..K-1.
    """
    size = len(image)
    grid = min(GRID, size)
    step = size / grid
    y, x = np.mgrid[:size, :size].astype(np.float32)
    places = np.stack([y, x], axis=-1) * (COMPACTNESS / step)
    # k-means over colours and places in one space; searches only the 3 x 3 nearest cells.
    points = np.dstack([cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), places])
    points = points.astype(np.float64)
    row, column = (((z + 0.5) / step).astype(int).clip(0, grid - 1) for z in (y, x))
    labels = row * grid + column
    candidates = [
        (row + dy).clip(0, grid - 1) * grid + (column + dx).clip(0, grid - 1)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    centres = np.zeros((grid * grid, points.shape[-1]))
    for _ in range(5):
        counts = np.bincount(labels.ravel(), minlength=grid * grid)
        for i in range(points.shape[-1]):
            sums = np.bincount(labels.ravel(), points[..., i].ravel(), minlength=grid * grid)
            centres[:, i] = np.where(counts > 0, sums / np.maximum(counts, 1), centres[:, i])
        far = [np.square(points - centres[c]).sum(axis=-1) for c in candidates]
        nearest = np.argmin(far, axis=0)
        labels = np.choose(nearest, candidates)
    return _connected(labels)


def _connected(labels: np.ndarray) -> np.ndarray:
    """Keeps each segment's largest piece, and gives the other pixels to the nearest piece."""
    kept = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        pieces, _ = ndimage.label(labels == label)
        kept |= pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    y, x = ndimage.distance_transform_edt(~kept, return_distances=False, return_indices=True)
    return np.unique(labels[y, x], return_inverse=True)[1].reshape(labels.shape).astype(np.int32)
