"""Groups of exact and near duplicates, so that no split, fold or bootstrap tears them apart.

A perceptual hash (64 bits of a DCT, as the package imagehash's phash, here for all images at once)
proposes pairs; the pixels of small grey thumbnails decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import scipy.fft
import scipy.sparse
import scipy.sparse.csgraph

THUMB = 32  # edge of a thumbnail, pixels
# Set by looking at pairs of UTKFace: above .965 all are one photo (cropped, filtered, mirrored), at
# .95 to .965 about half are, and no pair above .96 differs in more than 12 of the 64 bits.
HASH_DISTANCE = 14
CORRELATION = 0.965
BLOCK = 2048  # images compared with all others at once
VERSION = 1  # raise it when the same images would get other groups


def groups(images: np.ndarray, hints: Sequence[str] | None = None) -> np.ndarray:
    """The group number of every image; duplicates, also mirrored ones, share one.

    Args:
      images: uint8 [N, S, S, 3].
      hints: [N] what the data set itself says of groups, such as a person's name; "" says nothing.

    Returns:
      int64 [N], numbered by first member from 0.
    """
    thumbs = np.stack([thumbnail(image) for image in images])
    rows, columns = [], []
    for i, j in _duplicate_pairs(thumbs):
        rows.append(i)
        columns.append(j)
    first: dict[str, int] = {}
    for i, hint in enumerate(hints if hints is not None else ()):
        if hint:
            rows.append(np.array([i]))
            columns.append(np.array([first.setdefault(hint, i)]))
    n = len(images)
    i = np.concatenate(rows) if rows else np.empty(0, int)
    j = np.concatenate(columns) if columns else np.empty(0, int)
    graph = scipy.sparse.coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1].astype(np.int64)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 [S, S, 3] -> grey float32 [THUMB, THUMB]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.float32)


def _hashes(thumbs: np.ndarray) -> np.ndarray:
    """uint64 [N]: which of the 64 lowest frequencies lie above their median."""
    low = scipy.fft.dctn(thumbs, axes=(1, 2))[:, :8, :8].reshape(len(thumbs), 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _duplicate_pairs(thumbs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (i, j) arrays of duplicate pairs, i < j."""
    flat = thumbs.reshape(len(thumbs), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    # A flat image correlates with nothing: give it length 1 so that it equals only exact copies.
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    mirrored = thumbs[:, :, ::-1]
    mirrored_flat = flat.reshape(thumbs.shape)[:, :, ::-1].reshape(flat.shape)
    hashes = _hashes(thumbs)
    for other_hashes, other in ((hashes, flat), (_hashes(mirrored), mirrored_flat)):
        for start in range(0, len(hashes), BLOCK):
            block = hashes[start : start + BLOCK]
            distance = np.bitwise_count(block[:, None] ^ other_hashes[None, start:])
            i, j = np.nonzero(distance <= HASH_DISTANCE)
            i, j = i + start, j + start
            i, j = i[i < j], j[i < j]
            alike = np.einsum("nd,nd->n", flat[i], other[j]) >= CORRELATION
            yield i[alike], j[alike]
