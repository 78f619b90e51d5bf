"""Degraded and slightly different views of face crops: what cameras, networks and hands do to them.

All functions take and give uint8 RGB [S, S, 3], and are deterministic: the noise of an image
depends on its number alone. Lengths are in edges of the crop, so that they mean the same at every
image size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from agejax.faces.geometry import Geometry

Change = Callable[[np.ndarray, int], np.ndarray]  # image, its number -> image

GAMMA = 2.2  # between stored and linear light
CLOTH, GLASS = (160, 190, 210), (25, 25, 25)  # colours of a mask and of sunglasses


def kinds(geometry: Geometry | None) -> Mapping[str, Mapping[str, Change]]:
    """Kind of degradation -> severity, mild first -> change.

    Args:
      geometry: where the crops have eyes and mouth; None, where that is not known, leaves out what
        covers them.
    """
    found: dict[str, dict[str, Change]] = {
        "blur": {
            f"σ {sigma:.1%} of the edge": functools.partial(blur, sigma=sigma)
            for sigma in (0.005, 0.01, 0.02, 0.04)
        },
        "noise": {
            f"σ {sigma} grey values": functools.partial(noise, sigma=sigma)
            for sigma in (8, 16, 32, 64)
        },
        "JPEG": {f"quality {q}": functools.partial(jpeg, quality=q) for q in (50, 20, 10, 5)},
        "exposure": {
            f"{stops:+d} stops": functools.partial(expose, stops=stops) for stops in (1, 2, -1, -2)
        },
        "low resolution": {
            f"{edge} pixels": functools.partial(shrink, edge=edge) for edge in (64, 32, 24, 16)
        },
    }
    if geometry is not None:
        marks = geometry.landmarks
        found["occlusion"] = {
            "sunglasses": functools.partial(sunglasses, marks=marks),
            "mask": functools.partial(mask, marks=marks),
            "hand over a cheek": functools.partial(hand, marks=marks),
        }
    return found


def views() -> Mapping[str, Change]:
    """Views in which a person would see the same face at the same age; name -> change."""
    return {
        "as it is": lambda image, number: image,
        "mirrored": lambda image, number: image[:, ::-1],
        "turned left": functools.partial(move, degrees=5.0),
        "turned right": functools.partial(move, degrees=-5.0),
        "nearer": functools.partial(move, zoom=1.05),
        "farther": functools.partial(move, zoom=0.95),
        "moved left": functools.partial(move, right=-0.03),
        "moved down": functools.partial(move, down=0.03),
        "brighter": functools.partial(expose, stops=0.5),
        "darker": functools.partial(expose, stops=-0.5),
        "JPEG quality 75": functools.partial(jpeg, quality=75),
    }


def blur(image: np.ndarray, number: int, *, sigma: float) -> np.ndarray:
    """Gaussian blur; sigma in edges."""
    blurred: np.ndarray = cv2.GaussianBlur(
        image, (0, 0), sigma * len(image), borderType=cv2.BORDER_REFLECT
    )
    return blurred


def noise(image: np.ndarray, number: int, *, sigma: float) -> np.ndarray:
    """Gaussian noise of each value; sigma in grey values."""
    rng = np.random.default_rng([number, int(sigma)])
    noisy = np.rint(image + sigma * rng.standard_normal(image.shape, np.float32))
    stored: np.ndarray = np.clip(noisy, 0, 255).astype(np.uint8)
    return stored


def jpeg(image: np.ndarray, number: int, *, quality: int) -> np.ndarray:
    """The image after JPEG compression."""
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))


def expose(image: np.ndarray, number: int, *, stops: float) -> np.ndarray:
    """2 ** stops times the light; what is brighter than white is white."""
    table = 255 * np.minimum(2**stops * (np.arange(256) / 255) ** GAMMA, 1) ** (1 / GAMMA)
    exposed: np.ndarray = np.rint(table).astype(np.uint8)[image]
    return exposed


def shrink(image: np.ndarray, number: int, *, edge: int) -> np.ndarray:
    """The image from so many pixels an edge, enlarged again; unchanged where it has no more."""
    size = len(image)
    if size <= edge:
        return image
    small = cv2.resize(image, (edge, edge), interpolation=cv2.INTER_AREA)
    large: np.ndarray = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
    return large


def move(
    image: np.ndarray,
    number: int,
    *,
    degrees: float = 0.0,
    zoom: float = 1.0,
    right: float = 0.0,
    down: float = 0.0,
) -> np.ndarray:
    """Turns, enlarges and shifts about the centre; the shifts in edges. Borders are mirrored."""
    size = len(image)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, zoom)
    matrix[:, 2] += np.array([right, down]) * size
    moved: np.ndarray = cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return moved


def sunglasses(image: np.ndarray, number: int, *, marks: np.ndarray) -> np.ndarray:
    """Dark glasses over both eyes; marks [5, 2] in edges, as `Geometry.landmarks`."""
    left, right = marks[:2]
    apart = float(np.linalg.norm(right - left))
    worn = _draw(image, [left, right], (0.36 * apart, 0.27 * apart), GLASS)
    ends = [tuple(np.rint(eye * len(image)).astype(int).tolist()) for eye in (left, right)]
    return cv2.line(worn, ends[0], ends[1], GLASS, max(round(0.06 * apart * len(image)), 1))


def mask(image: np.ndarray, number: int, *, marks: np.ndarray) -> np.ndarray:
    """A cloth over nose, mouth and chin; marks as for `sunglasses`."""
    nose, mouth = marks[2], marks[3:].mean(axis=0)
    apart = float(np.linalg.norm(marks[1] - marks[0]))
    height = float(mouth[1] - nose[1])
    top, bottom = nose[1] - 0.2 * height, mouth[1] + 1.5 * height
    half = 0.85 * apart
    corners = np.array([
        (nose[0] - half, top), (nose[0], nose[1] - 0.6 * height), (nose[0] + half, top),
        (mouth[0] + 0.75 * half, bottom), (mouth[0] - 0.75 * half, bottom),
    ])  # fmt: skip
    covered: np.ndarray = cv2.fillConvexPoly(
        image.copy(), np.rint(corners * len(image)).astype(np.int32), CLOTH, cv2.LINE_AA
    )
    return covered


def hand(image: np.ndarray, number: int, *, marks: np.ndarray) -> np.ndarray:
    """A disc of the image's mean colour over one cheek and a corner of the mouth."""
    apart = float(np.linalg.norm(marks[1] - marks[0]))
    mean = np.rint(image.mean(axis=(0, 1))).astype(int).tolist()
    middle = marks[3] + np.array([-0.1, -0.15]) * apart
    return _draw(image, [middle], (0.55 * apart, 0.55 * apart), (mean[0], mean[1], mean[2]))


def _draw(
    image: np.ndarray,
    centres: list[np.ndarray],
    axes: tuple[float, float],
    colour: tuple[int, int, int],
) -> np.ndarray:
    """A copy with filled ellipses; centres and half axes in edges."""
    drawn, size = image.copy(), len(image)
    lengths = (max(round(axes[0] * size), 1), max(round(axes[1] * size), 1))
    for centre in centres:
        at = tuple(np.rint(centre * size).astype(int).tolist())
        cv2.ellipse(drawn, at, lengths, 0, 0, 360, colour, cv2.FILLED, cv2.LINE_AA)
    return drawn
