"""Groups of exact and near duplicates, so that no split, fold or bootstrap separates them.

A perceptual hash (64 low frequencies of a DCT against their median, Zauner 2010) proposes pairs;
the pixels decide, after one thumbnail is aligned to the other. The thresholds were chosen by
looking at pairs of UTKFace: the fine detail of aligned faces of two people correlates up to 0.81;
two copies of one photo (other crop, contrast, size, watermark or mirrored) reach 0.82 or more,
nearly all above 0.9.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import scipy  # imports its parts when they are first used: predict needs none of them

EDGE = 64  # of a thumbnail, pixels
HASH_DISTANCE = 10  # bits in which the hashes of a proposed pair may differ
PROPOSED = 0.88  # correlation of a proposed pair's 32 px thumbnails, before they are aligned
ALIKE = 0.84  # correlation of two copies' fine detail, aligned
BLOCK = 2048  # images compared with all others at once, at most
PAIRS = 2**26  # of images, at once: half a million images would otherwise take 8 GB
Described = tuple[np.ndarray, np.ndarray]  # hashes uint64 [N]; pixels f32 [N, 1024], mean 0, norm 1


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> grey uint8 [EDGE, EDGE], what `groups` compares."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (EDGE, EDGE), interpolation=cv2.INTER_AREA)


def groups(n: int, thumbnails: np.ndarray | None, same: Sequence[Sequence[str]] = ()) -> np.ndarray:
    """Numbers the images so that copies of one picture, also mirrored ones, share a number.

    Takes time in the square of N: 10 s for 19,000 images on 2 cores.

    Args:
      n: N, the number of images.
      thumbnails: uint8 [N, EDGE, EDGE]; None: only `same` counts.
      same: sequences of N strings; images with equal strings share a group (the digest of the
        file, the person); "" matches nothing.

    Returns:
      int64 [N], the row of the first member of each image's group.
    """
    pairs = [np.empty((0, 2), np.int64) if thumbnails is None else near_pairs(thumbnails)]
    for strings in same:
        first: dict[str, int] = {}
        links = [(first.setdefault(s, i), i) for i, s in enumerate(strings) if s]
        pairs.append(np.array(links, np.int64).reshape(-1, 2))
    return merge(np.concatenate(pairs), n)


def merge(pairs: np.ndarray, n: int) -> np.ndarray:
    """Pairs of rows int [P, 2] -> int64 [n]: for each row the first row connected with it."""
    graph = scipy.sparse.coo_array(
        (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n)
    )
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    merged: np.ndarray = first[component].astype(np.int64)
    return merged


def near_pairs(thumbnails: np.ndarray, part: np.ndarray | None = None) -> np.ndarray:
    """int64 [P, 2]: pairs (i, j), i < j, that show one picture.

    Args:
      thumbnails: uint8 [N, EDGE, EDGE].
      part: int [N]; only pairs of different parts are compared.
    """
    found, described = [], _describe(thumbnails)
    for mirrored in (False, True):
        others = thumbnails[:, :, ::-1] if mirrored else thumbnails
        theirs = _describe(others) if mirrored else described
        pairs = np.concatenate(list(_proposed(described, theirs)))
        if part is not None:
            pairs = pairs[part[pairs[:, 0]] != part[pairs[:, 1]]]
        with ThreadPoolExecutor() as pool:
            alike = pool.map(lambda ij, others=others: _detail(thumbnails[ij[0]], others[ij[1]]),
                             pairs)  # fmt: skip
            found.append(pairs[np.fromiter(alike, float, len(pairs)) >= ALIKE])
    return np.concatenate(found)


def _proposed(described: Described, others: Described) -> Iterator[np.ndarray]:
    """Pairs (i, j), i < j, of described[i] and others[j] with similar hashes and pixels."""
    (hashes, pixels), (other_hashes, other_pixels) = described, others
    step = max(min(BLOCK, PAIRS // max(len(hashes), 1)), 1)
    for start in range(0, len(hashes), step):
        block = slice(start, start + step)
        distance = np.bitwise_count(hashes[block, None] ^ other_hashes[None, start:])
        i, j = start + np.array(np.nonzero(distance <= HASH_DISTANCE))
        i, j = i[i < j], j[i < j]
        near = [
            np.einsum("pd,pd->p", pixels[i[part]], other_pixels[j[part]]) >= PROPOSED
            for part in (slice(k, k + BLOCK) for k in range(0, len(i), BLOCK))
        ]
        keep = np.concatenate(near) if near else np.zeros(0, bool)
        yield np.stack([i[keep], j[keep]], axis=1)


def _describe(thumbnails: np.ndarray) -> Described:
    """Describes uint8 [N, EDGE, EDGE]; the pixels of a uniform one are 0."""
    hashes, pixels = [], []
    for start in range(0, len(thumbnails), BLOCK):
        batch = thumbnails[start : start + BLOCK].astype(np.float32)
        small = batch.reshape(-1, 32, 2, 32, 2).mean(axis=(2, 4))
        low = scipy.fft.dctn(small, axes=(1, 2))[:, :8, :8].reshape(-1, 64)
        bits = low > np.median(low, axis=1, keepdims=True)
        hashes.append(np.packbits(bits, axis=1).view(np.uint64)[:, 0])
        flat = small.reshape(-1, 1024)
        flat = flat - flat.mean(axis=1, keepdims=True)
        pixels.append(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 32.0))
    return np.concatenate(hashes), np.concatenate(pixels)


_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
_ALL = np.full((EDGE, EDGE), 255, np.uint8)
_INNER = (slice(8, -8), slice(8, -8))  # alignment does not move this part over the edge


def _detail(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the fine detail of two thumbnails, b aligned to a by an affine map."""
    b = np.ascontiguousarray(b)
    try:
        _, affine = cv2.findTransformECC(
            a, b, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, _STOP, _ALL, 3
        )
        b = cv2.warpAffine(
            b, affine, (EDGE, EDGE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
    except cv2.error:  # it did not converge: compare them as they are
        pass
    detail = []
    for image in (a, b):
        image = image.astype(np.float32)
        image = (image - cv2.GaussianBlur(image, (0, 0), 3))[_INNER]
        detail.append((image - image.mean()) / max(float(image.std()), 1e-6))
    return float(np.mean(detail[0] * detail[1]))
