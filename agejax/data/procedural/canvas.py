"""Curves and areas in units of a face, drawn on three layers."""

from __future__ import annotations

import functools

import cv2
import numpy as np

Array = np.ndarray


@functools.lru_cache
def _spline(k: int, closed: bool) -> Array:
    """[5k, k] or [5(k-1)+1, k] matrix from k control points to a Catmull-Rom curve."""
    steps = 5
    n = k * steps if closed else (k - 1) * steps + 1
    basis = np.zeros((n, k))
    for row in range(n):
        i, t = divmod(row / steps, 1.0)
        weights = (
            (-t + 2 * t**2 - t**3) / 2, (2 - 5 * t**2 + 3 * t**3) / 2,
            (t + 4 * t**2 - 3 * t**3) / 2, (t**3 - t**2) / 2,
        )  # fmt: skip
        for offset, w in zip((-1, 0, 1, 2), weights, strict=True):
            j = int(i) + offset
            basis[row, j % k if closed else min(max(j, 0), k - 1)] += w
    return basis


def closed(*points: tuple[float, float]) -> Array:
    points_on: Array = _spline(len(points), True) @ np.array(points)
    return points_on


def curve(*points: tuple[float, float]) -> Array:
    points_on: Array = _spline(len(points), False) @ np.array(points)
    return points_on


def symmetric(*half: tuple[float, float]) -> Array:
    """Closed curve through half and its mirror image; the first and last points lie on x = 0."""
    mirrored = [(-x, y) for x, y in half[-2:0:-1]]
    return closed(*half, *mirrored)


CIRCLE = np.stack([np.cos(a := np.arange(20) * 0.1 * np.pi), np.sin(a)], 1)


def ellipse(x: float, y: float, rx: float, ry: float) -> Array:
    return CIRCLE * (rx, ry) + (x, y)


class Canvas:
    """Three layers in face units: colours and fine lines at twice the size, soft shade at half."""

    def __init__(self, background: Array, pose: Array, shift: Array, turn: Array):
        """background uint8 [2S, 2S, 3]; pose [2, 2] and shift [2] map units to 2S pixels."""
        self.colour = background
        side = background.shape[0]
        self.fine = np.zeros((side, side), np.uint8)  # darkness of lines
        self.soft = np.full((side // 4, side // 4, 3), 128, np.uint8)  # 128 changes nothing
        self.pose, self.shift, self.turn = pose * 16, shift * 16, turn @ pose * 16
        self.maps: dict[float, tuple[Array, Array]] = {}  # depth → matrix on (x, y, x²), offset
        self.pixels = float(np.sqrt(abs(np.linalg.det(pose))))

    def _place(self, points: Array, depth: float, scale: float = 1.0) -> Array:
        """Points to 1/16 pixels; depth 1 is the face's front, which turns with the head, 0 not."""
        terms = np.empty((len(points), 3))
        terms[:, :2] = points
        terms[:, 2] = points[:, 0] ** 2
        if depth not in self.maps:
            by = depth * self.turn
            self.maps[depth] = np.vstack([self.pose, -by]), self.shift + by
        linear, shift = self.maps[depth]
        at: Array = terms.dot(linear)
        at += shift
        if scale != 1.0:
            at *= scale
        return at.astype(np.int32)

    def fill(self, points: Array, colour: Array, depth: float = 1.0) -> None:
        cv2.fillPoly(self.colour, [self._place(points, depth)], colour.tolist(), cv2.LINE_AA, 4)

    def stroke(self, points: Array, colour: Array, width: float, depth: float = 1.0) -> None:
        """Draws a curve [n, 2], or several at once [m, n, 2]."""
        flat = self._place(points.reshape(-1, 2), depth).reshape(-1, *points.shape[-2:])
        px = max(1, round(width * self.pixels))
        cv2.polylines(self.colour, list(flat), False, colour.tolist(), px, cv2.LINE_AA, 4)

    def line(self, points: Array, dark: float, width: float = 0.02) -> None:
        """Draws a wrinkle: darkens by dark (0 to 1)."""
        px = max(1, round(width * self.pixels))
        at = [self._place(points, 1.0)]
        cv2.polylines(self.fine, at, False, min(255 * dark, 255), px, cv2.LINE_AA, 4)

    def shade(self, points: Array, factor: float | Array, depth: float = 1.0) -> None:
        """Multiplies the brightness of a soft-edged area by factor (a number or RGB)."""
        value = [128.0 * factor] * 3 if isinstance(factor, float) else (128.0 * factor).tolist()
        cv2.fillPoly(self.soft, [self._place(points, depth, 0.25)], value, cv2.LINE_AA, 4)
