"""The position of a face in an image, and how to warp it to its position in training images.

Points are (x, y), x to the right and y down, in pixels or in edges of a square crop; (0, 0) is the
upper left corner of an image, so that the centre of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import cv2
import numpy as np

from agejax.errors import UserError

FEWEST = 10  # faces that are enough to measure a geometry
# Of the chips of UTKFace or AAF, 98 % are within the three limits measured on 300 others (95 % in
# the worst of 20 divisions).
LIMIT = 0.995
# The detector's own variation: over edges of 64 to 256 pixels, that of 19 of 20 chips is smaller.
NOISE = {"scale": 1.03, "shift": 0.015, "rotation": 2.0}


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """A face in an image, in its pixels.

    Attributes:
      box: left, top, right, bottom; inside the image.
      landmarks: float64 [5, 2]: the eye on the left side of the image, the other eye, the tip of
        the nose, the left corner of the mouth, the right one. May be outside the image.
      score: of the detector, `SCORE` to 1.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    score: float


class Finder(Protocol):
    """The interface of a face detector: `detection.Detector`."""

    def find(self, image: np.ndarray) -> list[Face]:
        """The faces in uint8 [H, W, 3] RGB, the largest first."""


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """The position of faces in the square crops that a model was trained on.

    Attributes:
      landmarks: float64 [5, 2], in edges of the crop: the medians over the faces found.
      spread: float64 [5, 2], their median absolute deviations.
      limits: {"scale", "shift", "rotation"}: for each, the limit that `LIMIT` of the faces keep; a
        ratio of 1 or more, edges, degrees. At least `NOISE`.
      images, found: how many images were searched, and in how many a face was found.
    """

    landmarks: np.ndarray
    spread: np.ndarray
    limits: Mapping[str, float]
    images: int
    found: int

    @classmethod
    def of(cls, images: Iterable[np.ndarray], detector: Finder) -> Geometry:
        """Measures the largest face of each of uint8 [N, S, S, 3]; a few hundred are enough.

        Raises:
          UserError: faces in fewer than `FEWEST` images.
        """
        count, rows = 0, []
        for image in images:
            count += 1
            rows += [face.landmarks / len(image) for face in detector.find(image)[:1]]
        if len(rows) < FEWEST:
            raise UserError(
                f"a face was found in {len(rows)} of {count:,} training images; at least {FEWEST} "
                "are needed to measure how faces are framed: use more images, or images of faces"
            )
        landmarks = np.stack(rows)
        middle = np.median(landmarks, axis=0)
        sizes = [_sizes(_framing(row, middle)) for row in landmarks]
        limits = {
            name: max(float(np.quantile([size[name] for size in sizes], LIMIT)), noise)
            for name, noise in NOISE.items()
        }
        spread = np.median(np.abs(landmarks - middle), axis=0)
        return cls(middle, spread, limits, count, len(rows))

    def as_json(self) -> dict[str, Any]:
        return {
            "landmarks": self.landmarks.tolist(),
            "spread": self.spread.tolist(),
            "limits": dict(self.limits),
            "images": self.images,
            "found": self.found,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Geometry:
        landmarks, spread = (np.array(values[k], np.float64) for k in ("landmarks", "spread"))
        return cls(landmarks, spread, values["limits"], values["images"], values["found"])


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift, without reflection, that best map points [K, 2] to others.

    Least squares (Umeyama 1991). In the plane such a transform is z -> a z + b of complex numbers,
    so that its closed form by singular values is an ordinary linear fit.

    Returns:
      float64 [2, 3], for `apply`.

    Raises:
      ValueError: all source points are the same.
    """
    z, w = (points[:, 0] + 1j * points[:, 1].astype(np.float64) for points in (source, target))
    centred = z - z.mean()
    spread = np.vdot(centred, centred).real
    if spread == 0:
        raise ValueError("all points of the source are the same")
    a = np.vdot(centred, w) / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 2] moved by a transform [2, 3]."""
    moved: np.ndarray = points @ transform[:, :2].T + transform[:, 2]
    return moved


def align(image: np.ndarray, face: Face, geometry: Geometry, size: int) -> np.ndarray:
    """Crops uint8 [H, W, 3] so that the face has its position in the training images.

    The least-squares similarity moves the landmarks onto the geometry's. If that shrinks the photo,
    every pixel of the crop is the mean of samples no further apart than the photo's pixels. Outside
    the photo its border is replicated: a reflected one would show parts of a second face.

    Returns:
      uint8 [size, size, 3].
    """
    transform = from_crop(face, geometry, size)
    # Samples per pixel, in x and in y; a crop much larger than the photo needs no more.
    step = min(math.hypot(*transform[:, 0]), max(image.shape[:2]) / size)
    fine = max(math.ceil(step - 1e-6), 1)
    matrix = transform / (fine, fine, 1)
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # cv2 puts (0, 0) at the first pixel's centre
    samples = cv2.warpAffine(
        image,
        matrix,
        (fine * size, fine * size),
        # Cubic, as in `sources` for enlarging. Bilinear samples would blur wrinkles: they keep 89 %
        # of the gradients of a chip pasted at half its size, cubic ones 94 %.
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.resize(samples, (size, size), interpolation=cv2.INTER_AREA)


def from_crop(face: Face, geometry: Geometry, size: int) -> np.ndarray:
    """The transform [2, 3] from the pixels of `align`'s crop to the image's."""
    to_crop = similarity(face.landmarks, geometry.landmarks * size)
    return cv2.invertAffineTransform(to_crop)


def mismatch(face: Face, size: int, geometry: Geometry) -> dict[str, float]:
    """How the frame of a face in a square crop of `size` pixels differs from training images.

    Returns:
      {"scale": its size divided by that in the training images, "shift_x", "shift_y": of the middle
      of the landmarks, in edges, to the right and down, "rotation": degrees, clockwise}. A face
      that the crop cuts off seems smaller: UTKFace's chips enlarged 1.3-fold measure 1.12.
    """
    return _framing(face.landmarks / size, geometry.landmarks)


def _framing(landmarks: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """`mismatch` for landmarks [5, 2] in edges."""
    transform = similarity(reference, landmarks)
    shift = (landmarks - reference).mean(axis=0)
    return {
        "scale": math.hypot(*transform[:, 0]),
        "shift_x": float(shift[0]),
        "shift_y": float(shift[1]),
        "rotation": math.degrees(math.atan2(transform[1, 0], transform[0, 0])),
    }


def _sizes(framing: Mapping[str, float]) -> dict[str, float]:
    """How large a `mismatch` is: a ratio of 1 or more, edges, degrees; named as the limits."""
    return {
        "scale": max(framing["scale"], 1 / framing["scale"]),
        "shift": math.hypot(framing["shift_x"], framing["shift_y"]),
        "rotation": abs(framing["rotation"]),
    }


def fits(framing: Mapping[str, float], geometry: Geometry) -> bool:
    """Whether a `mismatch` is within the geometry's limits, as for about 98 % of its own images.

    Judge a set of crops by the share that fits: a single crop may differ and still be fine.
    """
    return all(size <= geometry.limits[name] for name, size in _sizes(framing).items())
