"""Stylised faces drawn with OpenCV, with age, gender and colouring to be read from them: the
embedded data set of the quickstart and the tests. No picture of a person is in it.

    python -m agejax.data.builders.procedural_faces --output=docs/procedural_faces.png
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds

from agejax.data.builders import archives
from agejax.data.builders.base import Face, FaceBuilder
from agejax.errors import UserError
from agejax.paths import expand
from agejax.process.command import run_command
from agejax.settings import Group, Setting

GENDERS = ("male", "female")
COLOURINGS = ("fair", "tan", "brown", "dark")  # of skin, hair and eyes; not groups of people
SIZE = 112
SMALLEST = 32  # pixels; lines and soft shade have no room below

Array = np.ndarray


# --------------------------------------------------------------------------------------- labels

# A mixture close to UTKFace's age histogram: (share, kind, mean or low, deviation or high).
AGE_MIXTURE = (
    (0.10, "exponential", 1.0, 2.0),  # babies and toddlers
    (0.07, "uniform", 4.0, 19.0),
    (0.30, "normal", 26.0, 2.7),  # the mode
    (0.32, "normal", 34.5, 8.5),
    (0.15, "normal", 55.0, 8.0),
    (0.06, "normal", 77.0, 11.0),  # the tail
)
OLDEST = 100
COLOURING_SHARES = (0.42, 0.20, 0.20, 0.18)


@dataclasses.dataclass(frozen=True)
class Labels:
    """age in whole years, 1 to 100; looks, the years the face is drawn with; class indices."""

    age: int
    looks: float
    gender: int
    colouring: int


def draw_labels(rng: np.random.Generator) -> Labels:
    """Labels of one face; ages long-tailed.

    A face looks .5 years + 10 % of its age (at most 4.5 years) younger or older, one standard
    deviation, so that no predictor comes much under a mean absolute error of 2.5 years.
    """
    _, kind, a, b = AGE_MIXTURE[_choice(rng, [share for share, *_ in AGE_MIXTURE])]
    if kind == "exponential":
        age = a + rng.exponential(b)
    elif kind == "uniform":
        age = rng.uniform(a, b)
    else:
        age = rng.normal(a, b)
    years = int(_within(round(age), 1, OLDEST))
    looks = max(years + rng.standard_normal() * min(0.5 + 0.1 * years, 4.5), 0.5)
    return Labels(years, looks, int(rng.random() < 0.48), _choice(rng, COLOURING_SHARES))


def _choice(rng: np.random.Generator, shares: list[float] | tuple[float, ...]) -> int:
    """Index drawn with the given probabilities (rng.choice costs 20 µs, this 2)."""
    u = rng.random() * sum(shares)
    for i, share in enumerate(shares):
        u -= share
        if u < 0:
            return i
    return len(shares) - 1


# --------------------------------------------------------------------------------------- traits

SKIN = np.array([[234, 198, 176], [214, 168, 132], [166, 116, 82], [100, 68, 50]], np.float64)
HAIR = np.array(
    [[218, 182, 118], [172, 92, 50], [146, 104, 66], [78, 50, 34], [32, 26, 26]], np.float64
)  # blond, red, light brown, dark brown, black
HAIR_SHARES = ((0.32, 0.1, 0.33, 0.2, 0.05), (0.03, 0.02, 0.2, 0.4, 0.35),
               (0, 0, 0.05, 0.35, 0.6), (0, 0, 0.01, 0.14, 0.85))  # fmt: skip
GREY = np.array([206, 204, 202], np.float64)
IRIS = np.array([[86, 136, 176], [98, 128, 84], [128, 92, 54], [66, 42, 28]], np.float64)
IRIS_SHARES = ((0.42, 0.22, 0.22, 0.14), (0.08, 0.14, 0.3, 0.48),
               (0.01, 0.04, 0.25, 0.7), (0, 0.01, 0.09, 0.9))  # fmt: skip


def _ramp(x: float, low: float, high: float) -> float:
    """0 below low, 1 above high, linear between."""
    return min(max((x - low) / (high - low), 0.0), 1.0)


def _within(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@dataclasses.dataclass(frozen=True)
class Traits:
    """What one face looks like; lengths in units of about half a face's width, y downwards."""

    looks: float  # years
    adult: float  # 0 newborn, 1 grown up
    old: float  # 0 to 25 years, 1 at 85
    manly: float  # about 0 for women, 1 for men, with overlap
    skin: Array
    hair: Array
    grey: float  # share of grey hair
    iris: Array
    style: str  # bald, short, fringe, long, bun, curly
    hairline: float  # y of the hairline
    recede: float  # how far the temples have receded
    beard: float  # 0 none, 1 full
    moustache: bool
    lipstick: float
    glasses: bool
    smile: float
    width: float
    top: float
    chin: float
    jaw: float
    eye_y: float
    eye_x: float
    eye: float  # half the width of an eye
    openness: float
    nose_y: float
    nose: float  # half its width
    mouth_y: float
    mouth: float  # half its width
    lips: float  # thickness
    brow: float  # thickness
    ear: float


def draw_traits(rng: np.random.Generator, looks: float, gender: int, colouring: int) -> Traits:
    """A face that looks that many years old; hair, jaw and brows overlap between genders, skin
    tones between colourings, and greying and balding vary by person."""

    def n(scale: float = 1.0) -> float:
        return float(rng.standard_normal() * scale)

    adult = 1.0 - math.exp(-looks / 7.5)
    old = max(looks - 25.0, 0.0) / 60.0
    manly = (0.8 if gender == 0 else 0.2) + n(0.16)
    manly = 0.5 + (manly - 0.5) * (0.35 + 0.65 * _ramp(looks, 6, 18))  # children differ less

    tone = _within(colouring + n(0.3), 0.0, 3.0)
    step = min(int(tone), 2)
    skin = SKIN[step] + (tone - step) * (SKIN[step + 1] - SKIN[step])
    skin = skin * (1 + n(0.03)) + np.array([n(3), n(2), n(4)])
    pale = min(old, 1.2)  # old skin is duller and yellower
    skin = skin * (1 - 0.05 * pale) + pale * np.array([-4.0, -2.0, -10.0])
    natural = HAIR[_choice(rng, HAIR_SHARES[colouring])] * (1 + n(0.1))
    natural = natural + (1 - adult) * (0.35 if colouring == 0 else 0.1) * (HAIR[0] - natural)
    grey = _sigmoid((looks - 52 + n(5)) / 6.5)
    dyed = rng.random() < (0.22 if gender == 1 else 0.04)
    grey = grey * (0.3 if dyed else 1.0)
    iris = IRIS[_choice(rng, IRIS_SHARES[colouring])] * (1 + n(0.08))

    u_style, u_length, u_beard, u_stache, u_lip, u_glass = rng.random(6)
    longish = u_length < ((0.82 - 0.4 * _ramp(looks, 55, 85)) if gender == 1 else 0.1)
    if looks < 2.5:
        longish = False
    if longish:
        style = ("long", "long", "bun", "fringe")[int(u_style * 4)]
    else:
        style = "fringe" if u_style < 0.22 else "short"
    if u_style > (0.55 if colouring == 3 else 0.93):
        style = "curly"
    baldness = max(0.0, n(0.25) + 0.55) * _ramp(looks, 22, 85) * (1.6 if gender == 0 else 0.25)
    if baldness > 0.85 or (looks < 1.6 and u_style < 0.5):
        style = "bald"
    bearded = gender == 0 and looks > 18
    beard = (0.5 + u_beard) if bearded and u_beard < 0.3 else 0.0
    stubble = 0.22 if bearded and u_beard > 0.7 else 0.0
    return Traits(
        looks=looks, adult=adult, old=old, manly=manly, skin=skin, grey=grey, iris=iris,
        hair=natural + grey * (GREY - natural), style=style,
        hairline=-0.80 + 0.14 * (1 - adult) + n(0.03) - 0.16 * min(baldness, 1.0),
        recede=min(baldness, 1.0), beard=max(beard, stubble),
        moustache=bool(bearded and u_stache < 0.25),
        lipstick=float(0.3 + 0.7 * u_lip) if gender == 1 and looks > 16 and u_lip < 0.5 else 0.0,
        glasses=bool(u_glass < 0.06 + 0.25 * _ramp(looks, 30, 70)),
        smile=_within(n(0.5) + 0.3, -0.5, 1.2),
        width=1.04 - 0.11 * adult + 0.05 * (manly - 0.5) + n(0.025) + 0.03 * old,
        top=1.24 + 0.05 * adult + n(0.02),
        chin=1.02 + 0.27 * adult + 0.07 * (manly - 0.5) * adult + n(0.025) + 0.05 * old,
        jaw=0.76 + 0.02 * adult + 0.16 * (manly - 0.5) * adult + 0.05 * min(old, 1) + n(0.02),
        eye_y=0.23 - 0.25 * adult + n(0.015), eye_x=0.42 - 0.02 * adult + n(0.012),
        eye=0.25 - 0.065 * adult - 0.02 * min(old, 1) - 0.015 * (manly - 0.5) + n(0.008),
        openness=_within(0.72 - 0.2 * adult - 0.17 * min(old, 1.2) + n(0.05), 0.15, 0.9),
        nose_y=0.54 - 0.03 * adult + 0.06 * old + n(0.015),
        nose=0.125 + 0.055 * adult + 0.05 * old + 0.02 * colouring / 3 + n(0.012),
        mouth_y=0.75 + 0.08 * adult + 0.02 * old + n(0.015),
        mouth=0.21 + 0.11 * adult + n(0.02),
        lips=max(0.125 - 0.07 * min(old, 1.2) - 0.02 * manly + 0.012 * colouring + n(0.01), 0.025),
        brow=max(0.035 + 0.05 * manly * adult + n(0.01), 0.022) * (1 - 0.3 * min(old, 1)),
        ear=0.20 + 0.07 * old + n(0.015),
    )  # fmt: skip


# --------------------------------------------------------------------------------------- canvas


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


def _closed(*points: tuple[float, float]) -> Array:
    return _spline(len(points), True) @ np.array(points)


def _open(*points: tuple[float, float]) -> Array:
    return _spline(len(points), False) @ np.array(points)


def _symmetric(*half: tuple[float, float]) -> Array:
    """Closed curve through half and its mirror image; the first and last points lie on x = 0."""
    mirrored = [(-x, y) for x, y in half[-2:0:-1]]
    return _closed(*half, *mirrored)


_CIRCLE = np.stack([np.cos(a := np.arange(20) * 0.1 * np.pi), np.sin(a)], 1)


def _ellipse(x: float, y: float, rx: float, ry: float) -> Array:
    return _CIRCLE * (rx, ry) + (x, y)


class Canvas:
    """Three layers in face units: colours and fine lines at twice the size, soft shade at half."""

    def __init__(self, background: Array, pose: Array, shift: Array, turn: Array):
        """background uint8 [2S, 2S, 3]; pose [2, 2] and shift [2] map units to 2S pixels."""
        self.colour = background
        side = background.shape[0]
        self.fine = np.zeros((side, side), np.uint8)  # darkness of lines
        self.soft = np.full((side // 4, side // 4, 3), 128, np.uint8)  # 128 leaves as is
        self.pose, self.shift, self.turn = pose * 16, shift * 16, turn @ pose * 16
        self.maps: dict[float, tuple[Array, Array]] = {}  # depth → matrix on (x, y, x²), offset
        self.pixels = float(np.sqrt(abs(np.linalg.det(pose))))

    def _place(self, points: Array, depth: float, scale: float = 1.0) -> Array:
        """Pixels in 1/16; depth 1 lies on the face's front and turns with the head, 0 does not."""
        terms = np.empty((len(points), 3))
        terms[:, :2] = points
        terms[:, 2] = points[:, 0] ** 2
        if depth not in self.maps:
            by = depth * self.turn
            self.maps[depth] = np.vstack([self.pose, -by]), self.shift + by
        linear, shift = self.maps[depth]
        at = terms.dot(linear)
        at += shift
        if scale != 1.0:
            at *= scale
        return at.astype(np.int32)

    def fill(self, points: Array, colour: Array, depth: float = 1.0) -> None:
        cv2.fillPoly(self.colour, [self._place(points, depth)], colour.tolist(), cv2.LINE_AA, 4)

    def stroke(self, points: Array, colour: Array, width: float, depth: float = 1.0) -> None:
        """A curve [n, 2], or several at once [m, n, 2]."""
        flat = self._place(points.reshape(-1, 2), depth).reshape(-1, *points.shape[-2:])
        px = max(1, round(width * self.pixels))
        cv2.polylines(self.colour, list(flat), False, colour.tolist(), px, cv2.LINE_AA, 4)

    def line(self, points: Array, dark: float, width: float = 0.02) -> None:
        """A wrinkle: darkens by dark (0 to 1)."""
        px = max(1, round(width * self.pixels))
        at = [self._place(points, 1.0)]
        cv2.polylines(self.fine, at, False, min(255 * dark, 255), px, cv2.LINE_AA, 4)

    def shade(self, points: Array, factor: float | Array, depth: float = 1.0) -> None:
        """Soft-edged area whose brightness is multiplied by factor (a number or RGB)."""
        value = [128.0 * factor] * 3 if isinstance(factor, float) else (128.0 * factor).tolist()
        cv2.fillPoly(self.soft, [self._place(points, depth, 0.25)], value, cv2.LINE_AA, 4)


# ---------------------------------------------------------------------------------------- parts


def _background(rng: np.random.Generator, side: int) -> Array:
    """Blurred coloured areas: a coarse random picture, enlarged."""
    base, other = rng.uniform(25, 225, (2, 1)) + rng.normal(0, 20, (2, 3))
    coarse = np.empty((16, 16, 3), np.float32)
    coarse[:] = base
    kind = rng.random()
    if kind < 0.35:  # gradient
        ramp = (np.arange(16) / 15.0)[:, None]
        coarse += (ramp[:, None] if rng.random() < 0.5 else ramp[None]) * (other - base)
    elif kind < 0.75:  # shapes
        for _ in range(int(rng.integers(2, 7))):
            x, y, w, h = rng.integers(0, 14, 2).tolist() + rng.integers(2, 8, 2).tolist()
            coarse[y : y + h, x : x + w] = base + (other - base) * rng.random() + rng.normal(0, 14)
    else:  # foliage
        coarse += rng.normal(0, 1, (16, 16, 1)) * (other - base) * 0.25
    coarse = np.clip(coarse, 0, 255).astype(np.uint8)
    how = cv2.INTER_LINEAR if rng.random() < 0.7 else cv2.INTER_CUBIC
    return cv2.resize(coarse, (side, side), interpolation=how)


def _body(c: Canvas, f: Traits, cloth: Array) -> None:
    neck = 0.40 + 0.16 * f.adult + 0.16 * (f.manly - 0.5) * f.adult
    low = f.chin + 0.34
    c.fill(np.array([(-neck, 0.5), (neck, 0.5), (neck, low + 0.2), (-neck, low + 0.2)]),
           f.skin * 0.9, 0)  # fmt: skip
    wide = 1.0 + 0.55 * f.adult + 0.2 * f.manly * f.adult
    c.fill(_symmetric((0, low + 0.1), (neck, low - 0.04), (wide * 0.8, low + 0.14),
                      (wide, low + 0.5), (wide, 3.0), (0, 3.2)), cloth, 0)  # fmt: skip
    c.stroke(_open((-neck, low - 0.04), (0, low + 0.12), (neck, low - 0.04)), cloth * 0.75, 0.05, 0)
    c.shade(_symmetric((0, f.chin - 0.1), (neck * 1.1, f.chin - 0.2), (neck, low), (0, low)), 0.6,
            0)  # fmt: skip


def _head(c: Canvas, f: Traits) -> None:
    for side in (-1, 1):
        x = side * (f.width + 0.02)
        c.fill(_ellipse(x, f.eye_y + 0.2, 0.12, f.ear * 1.15), f.skin * 0.9, 0)
        c.fill(_ellipse(x + side * 0.01, f.eye_y + 0.2, 0.06, f.ear * 0.7), f.skin * 0.74, 0)
    sag = min(f.old, 1.2)
    cheek = 0.99 + 0.03 * (1 - f.adult)
    w, chin = f.width, f.chin
    outline = _symmetric(
        (0, -f.top), (0.55 * w, -0.92 * f.top), (0.92 * w, -0.55 * f.top), (w, -0.05),
        (cheek * w, 0.35), (f.jaw * w * (1 + 0.02 * sag), 0.74 * chin - 0.04 + 0.04 * sag),
        (0.42 * w * (0.85 + 0.3 * f.manly), 0.955 * chin), (0, chin),
    )  # fmt: skip
    c.fill(outline, f.skin, 0)
    c.shade(outline, 0.86, 0)
    c.shade(outline * (0.8, 0.9) + (0, 0.02), 1.02)
    c.shade(_ellipse(0, -0.5, 0.5, 0.25), 1.08)
    blush = 0.05 + 0.10 * (1 - f.adult)
    for side in (-1, 1):
        c.shade(_ellipse(side * 0.55, f.nose_y - 0.02, 0.22, 0.16),
                np.array([1.09, 1.06 - blush, 1.06 - blush]))  # fmt: skip


def _eyes(c: Canvas, f: Traits) -> None:
    sag = min(f.old, 1.2)
    h = f.eye * f.openness
    brow_y = f.eye_y - 0.17 - h * 0.5 - 0.03 * (1 - f.manly)
    hair = f.hair * 0.7 + (f.skin * 0.3 if f.grey < 0.5 else 40.0)
    if f.looks < 4:
        hair = 0.5 * hair + 0.5 * f.skin
    for side in (-1, 1):
        x, y = side * f.eye_x, f.eye_y
        c.shade(_ellipse(x, y - 0.06, f.eye * 1.25, 0.2), 0.9 - 0.05 * f.manly * f.adult)
        bag = _ramp(f.looks, 24, 80)
        c.shade(_ellipse(x, y + h + 0.09, f.eye * 0.9, 0.055), 0.98 - 0.24 * bag)
        inner, outer = x - side * f.eye, x + side * f.eye
        droop = 0.05 * sag - 0.02
        upper = [(inner, y + 0.02), (x - side * 0.08, y - h * 0.85), (x + side * 0.07, y - h * 0.85
                 + 0.04 * sag), (outer, y + droop)]  # fmt: skip
        c.fill(_closed(*upper, (x + side * 0.07, y + h * 0.75), (x - side * 0.08, y + h * 0.75)),
               np.array([238.0, 236, 232]) - np.array([6.0, 14, 30]) * sag)  # fmt: skip
        r = min(f.eye * 0.50, 0.115)
        top, bottom = y - h * 0.8, y + h * 0.72  # the lids cut the iris
        for radius, colour in ((r, f.iris * 0.75), (r * 0.8, f.iris), (r * 0.45, f.iris * 0.15)):
            disc = _ellipse(x, y, radius, radius)
            disc[:, 1] = np.minimum(np.maximum(disc[:, 1], top), bottom)
            c.fill(disc, colour)
        c.fill(_ellipse(x - 0.035, y - 0.04, 0.026, 0.026), np.array([250.0] * 3))
        lash = f.skin * (0.42 - 0.3 * (1 - min(max(f.manly, 0), 1)) * f.adult)
        c.stroke(_open(*upper), lash, 0.035 + 0.02 * (1 - f.manly) * f.adult)
        lid = 0.05 + 0.02 * sag
        c.line(_open(*[(px, py - lid) for px, py in upper]), 0.22 + 0.25 * sag, 0.022)
        thick = f.brow
        arch = 0.07 - 0.05 * f.manly
        dip = 0.05 * sag
        a, b = x - side * f.eye * 1.15, x + side * f.eye * 1.35
        c.fill(_closed((a, brow_y + thick), (a, brow_y - thick * 0.5), (x + side * 0.06, brow_y
               - arch - thick), (b, brow_y + 0.04 + dip), (x + side * 0.06, brow_y - arch + thick)),
               hair)  # fmt: skip


def _nose(c: Canvas, f: Traits) -> None:
    y, w = f.nose_y, f.nose
    c.shade(_closed((-0.06, f.eye_y), (0.02, f.eye_y), (0.07, y), (-0.07, y)), 1.13)
    c.shade(_closed((0.06, f.eye_y), (0.11, f.eye_y + 0.1), (w + 0.05, y), (0.08, y)),
            0.9 - 0.04 * f.adult)  # fmt: skip
    c.fill(_closed((-w, y - 0.03), (-w * 0.5, y - 0.11), (0, y - 0.14), (w * 0.5, y - 0.11),
                   (w, y - 0.03), (w * 0.55, y + 0.045), (0, y + 0.07), (-w * 0.55, y + 0.045)),
           f.skin * np.array([1.0, 0.965, 0.95]))  # fmt: skip
    for side in (-1, 1):
        c.fill(_ellipse(side * w * 0.48, y + 0.02, w * 0.23, 0.028), f.skin * 0.45)
        c.line(_open((side * w * 0.9, y - 0.1), (side * w * 1.05, y - 0.03),
                     (side * w * 0.85, y + 0.04)), 0.28, 0.025)  # fmt: skip


def _mouth(c: Canvas, f: Traits) -> None:
    y, w, t = f.mouth_y, f.mouth * (1 + 0.12 * max(f.smile, 0)), f.lips
    lift = 0.06 * f.smile - 0.03 * min(f.old, 1.2)
    lip = f.skin * np.array([0.86, 0.64, 0.64]) + np.array([6.0, 0, 4.0])
    lip = lip + f.lipstick * 0.7 * (np.array([172.0, 36, 58]) - lip)
    pale = 0.35 * min(f.old, 1.0) * (1 - f.lipstick)
    lip = lip + pale * (f.skin * 0.88 - lip)
    c.shade(_ellipse(0, y + t + 0.11, w * 0.6, 0.05), 0.86)
    left, right = (-w, y - lift), (w, y - lift)
    low = y + 0.03 * f.smile
    c.fill(_closed(left, (-w * 0.35, y - t * 0.95), (0, y - t * 0.7), (w * 0.35, y - t * 0.95),
                   right, (w * 0.45, low + t * 0.95), (0, low + t * 1.2), (-w * 0.45,
                   low + t * 0.95)), lip)  # fmt: skip
    if f.smile > 0.75:  # an open smile
        c.fill(_closed((-w * 0.8, y - lift * 0.7), (0, y + 0.0), (w * 0.8, y - lift * 0.7),
                       (w * 0.4, low + 0.055), (0, low + 0.075), (-w * 0.4, low + 0.055)),
               np.array([240.0, 236, 228]) - np.array([10.0, 22, 50]) * min(f.old, 1))  # fmt: skip
    else:
        c.stroke(_open(left, (-w * 0.4, low), (0, low + 0.015), (w * 0.4, low), right),
                 lip * 0.5, 0.03)  # fmt: skip


def _beard(c: Canvas, f: Traits) -> None:
    if f.beard:
        mix = min(f.beard, 0.85)
        colour = f.skin + mix * (f.hair * 0.85 - f.skin)
        w, chin, y = f.width, f.chin, f.mouth_y
        low = f.lips + 0.07
        right = _open(
            (0, chin * 1.02), (0.45 * w, chin * 0.98), (f.jaw * w * 1.02, 0.77 * chin),
            (w * 1.0, 0.36), (w * 1.0, 0.02), (w * 0.9, 0.02), (w * 0.84, 0.34),
            (f.mouth * 1.6, y - 0.16), (f.mouth * 1.1, y + 0.02), (f.mouth * 0.8, y + low),
            (0, y + low + 0.03),
        )  # fmt: skip
        c.fill(np.concatenate([right, right[::-1] * (-1, 1)]), colour, 0.3)
    if f.moustache or f.beard > 0.5:
        y = f.mouth_y - f.lips - 0.02
        c.fill(_symmetric((0, y - 0.1), (f.mouth * 0.6, y - 0.06), (f.mouth * 1.15, y + 0.07),
                          (f.mouth * 0.5, y + 0.01), (0, y)), f.hair * 0.85)  # fmt: skip


def _skull_curve(f: Traits, thick: float, low: float) -> list[tuple[float, float]]:
    """Right half of the hair's outer edge, from the crown down to y = low."""
    w, t = f.width + thick, f.top + thick
    return [(0, -t), (0.58 * w, -0.91 * t), (0.95 * w, -0.52 * t), (1.02 * w, -0.05), (w, low)]


def _hair_behind(c: Canvas, f: Traits) -> None:
    dark = f.hair * 0.72
    if f.style in ("long", "fringe") and f.manly < 0.55 and f.looks > 2.5:
        low = f.chin + 0.45
        c.fill(_symmetric(*_skull_curve(f, 0.18, 0.4), (f.width + 0.22, low), (0, low)), dark, 0)
    elif f.style == "bun":
        c.fill(_ellipse(0, -f.top - 0.18, 0.36, 0.3), dark, 0)
    elif f.style == "curly":
        big = 0.2 if f.manly > 0.5 else 0.42
        for a in np.linspace(0.86, 2.14, 13) * np.pi:
            c.fill(_ellipse((f.width + big * 0.55) * math.cos(a), -0.15 + (f.top - 0.02
                   + big * 0.3) * math.sin(a), big * 0.75, big * 0.75), dark, 0)  # fmt: skip


def _hair_front(c: Canvas, f: Traits, rng: np.random.Generator, part: float) -> None:
    w = f.width
    grey = np.minimum(f.hair + 60 * f.grey + 26, 255)
    if f.style == "bald":
        c.shade(_ellipse(0.1, -1.0, 0.3, 0.12), 1.18)
        if f.looks > 10:  # a ring of hair is left
            for side in (-1, 1):
                tuft = _closed((w * 0.9, -0.62), (w + 0.09, -0.4), (w + 0.08, 0.12), (w, 0.1))
                c.fill(tuft * (side, 1), f.hair, 0)
        return
    thick = {"short": 0.1, "fringe": 0.13, "curly": 0.16}.get(f.style, 0.15)
    thick = (thick - 0.05 * min(f.old, 1.0)) * (0.35 + 0.65 * _ramp(f.looks, 0, 4))
    low = 0.95 if f.style == "long" and f.manly < 0.55 else 0.1
    y = f.hairline + (0.34 if f.style == "fringe" else 0.0)
    temple = 0.62 - 0.25 * f.recede  # x where the hairline turns down
    outer = _skull_curve(f, thick, low)
    inner = [(w * 0.97, low), (w * 0.95, -0.2), (w * (temple + 0.22), -0.48 - 0.32 * f.recede),
             (w * temple, y - 0.22 * f.recede), (w * 0.3, y + 0.02), (0, y - 0.02)]  # fmt: skip
    right, left = np.array([*outer, *inner]), np.array([*outer, *inner])
    left[:, 0] *= -1
    bend = np.array([0.0] * (len(outer) + 3) + [0.0, 0.08 * part, 0.0])
    right[:, 1] += bend
    left[:, 1] -= bend
    k = len(outer)
    halves = [(_open(*p[:k]), _open(*p[:k - 1:-1])) for p in (right, left)]  # fmt: skip
    ring = np.concatenate([halves[0][0], halves[0][1][::-1], halves[1][1], halves[1][0][::-1]])
    c.fill(ring, f.hair, 0.25)
    # strands from the hairline outwards, light ones the greyer the older
    u = np.sort(rng.random((2, 22)), 1)
    for at, (edge, line) in zip(u, halves, strict=True):
        a = line[(at * (len(line) - 1)).astype(int)]
        b = edge[(at * (len(edge) - 1)).astype(int)]
        strands = np.stack([a, 0.5 * (a + b) + (0.03, -0.02), b], 1) * 0.985
        c.stroke(strands[::2], f.hair * 0.8, 0.014, 0.25)
        c.stroke(strands[1::2], grey, 0.014, 0.25)


def _wrinkles(c: Canvas, f: Traits, rng: np.random.Generator) -> None:
    forehead = _ramp(f.looks, 22, 86)
    if forehead and f.style != "fringe":
        room = f.eye_y - 0.44 - (f.hairline - 0.1 * f.recede) - 0.08
        for k in range(min(1 + int(forehead * 4.5), 1 + int(room / 0.1))):
            y = f.eye_y - 0.42 - 0.1 * k
            half = 0.34 + 0.16 * forehead + 0.05 * rng.standard_normal()
            j = 0.011 * rng.standard_normal(4)
            c.line(_open((-half, y + j[0]), (-half * 0.4, y - 0.03 + j[1]),
                         (half * 0.4, y - 0.03 + j[2]), (half, y + j[3])),
                   0.08 + 0.42 * forehead, 0.022)  # fmt: skip
    frown = _ramp(f.looks, 30, 92)
    feet = _ramp(f.looks, 25, 86)
    fold = _ramp(f.looks, 15, 82)
    mouth = _ramp(f.looks, 42, 96)
    for side in (-1, 1):
        if frown:
            c.line(_open((side * 0.07, f.eye_y - 0.3), (side * 0.055, f.eye_y - 0.14)),
                   0.45 * frown, 0.025)  # fmt: skip
        x = side * (f.eye_x + f.eye + 0.05)
        for k in range(int(1 + feet * 3.9) if feet else 0):
            d = (k - 1.2) * 0.09
            c.line(_open((x, f.eye_y + 0.3 * d), (x + side * (0.08 + 0.09 * feet), f.eye_y + d
                   + 0.02)), 0.1 + 0.45 * feet, 0.02)  # fmt: skip
        if feet > 0.15:
            y = f.eye_y + f.eye * f.openness + 0.06
            for k in range(1 + int(feet * 2.2)):
                c.line(_open((side * (f.eye_x - f.eye * 0.9), y + 0.05 * k), (side * f.eye_x,
                       y + 0.05 + 0.055 * k), (side * (f.eye_x + f.eye * 0.8), y + 0.05 * k)),
                       0.38 * feet, 0.02)  # fmt: skip
        if fold:
            a, b = f.nose + 0.06, f.mouth + 0.07 + 0.03 * fold
            curve = _open((side * a, f.nose_y - 0.04), (side * (b + 0.02), f.nose_y + 0.14),
                          (side * (b + 0.04), f.nose_y + 0.15 + 0.2 * fold))  # fmt: skip
            c.line(curve, 0.06 + 0.5 * fold, 0.03 + 0.01 * fold)
            beside = curve + np.array([side * 0.07, 0.01])
            c.shade(np.concatenate([curve, beside[::-1]]), 1.02 - 0.18 * fold)
        if mouth:
            m = f.mouth + 0.03
            c.line(_open((side * m, f.mouth_y + 0.04), (side * (m + 0.05), f.mouth_y + 0.2),
                         (side * (m + 0.02), f.chin - 0.16)), 0.36 * mouth, 0.03)  # fmt: skip
            for k in range(3):
                lx = side * (0.05 + 0.08 * k)
                y = f.mouth_y - f.lips - 0.02
                c.line(np.array([(lx, y), (lx * 1.08, y - 0.09)]), 0.4 * mouth, 0.018)
            c.line(_open((side * 0.62, f.nose_y + 0.02), (side * 0.68, f.nose_y + 0.2),
                         (side * 0.62, f.nose_y + 0.42)), 0.32 * mouth, 0.022)  # fmt: skip
            c.line(_open((side * 0.12, f.chin + 0.06), (side * 0.18, f.chin + 0.34)),
                   0.5 * mouth, 0.03)  # fmt: skip


def _spots(c: Canvas, f: Traits, rng: np.random.Generator) -> None:
    spots = int(rng.poisson(14 * _ramp(f.looks, 38, 95)))
    freckles = int(rng.poisson(18)) if rng.random() < 0.08 and f.skin[0] > 200 else 0
    for k in range(spots + freckles):
        r, a = 0.85 * math.sqrt(rng.random()), rng.random() * 2 * np.pi
        x, y = r * math.cos(a) * 0.9, r * math.sin(a) * 1.05
        size = rng.uniform(0.018, 0.05) if k < spots else 0.013
        c.fill(_CIRCLE[::2] * (size, size * 0.8) + (x, y), f.skin * (0.8, 0.72, 0.66))


def _glasses(c: Canvas, f: Traits, frame: Array) -> None:
    r = 0.29
    for side in (-1, 1):
        ring = _ellipse(side * (f.eye_x + 0.01), f.eye_y + 0.03, r, r * 0.82)
        c.stroke(np.concatenate([ring, ring[:1]]), frame, 0.035)
        c.stroke(np.array([(side * (f.eye_x + r), f.eye_y), (side * (f.width + 0.02), f.eye_y)]),
                 frame, 0.035, 0.6)  # fmt: skip
    c.stroke(_open((-f.eye_x + r - 0.01, f.eye_y), (0, f.eye_y - 0.05),
                   (f.eye_x - r + 0.01, f.eye_y)), frame, 0.035)  # fmt: skip


# ------------------------------------------------------------------------------------- the image


def draw_face(
    rng: np.random.Generator, looks: float, gender: int, colouring: int, size: int = SIZE
) -> Array:
    """An RGB face, uint8 [size, size, 3]; the same generator state gives the same picture.

    Two calls that differ in looks (years) only draw one person at two ages, in one pose and light.
    """
    f = draw_traits(rng, looks, gender, colouring)
    scale = size * 2 * 0.325 * math.exp(0.05 * rng.standard_normal())
    roll = _within(rng.standard_normal() * 0.09, -0.3, 0.3)
    cos, sin = math.cos(roll) * scale, math.sin(roll) * scale
    yaw, pitch = rng.standard_normal(2) * (0.09, 0.04)
    c = Canvas(
        _background(rng, size * 2),
        np.array([[cos * (1 - 0.5 * abs(yaw)), sin], [-sin, cos]]),
        size * (np.array([1.0, 1.03]) + rng.standard_normal(2) * 0.03),
        np.array([_within(yaw, -0.2, 0.2), pitch]),
    )
    cloth, frame = rng.uniform(15, 235, 3), rng.uniform(15, 110) * np.array([1.0, 0.9, 0.85])
    part, slope, gain = rng.uniform(-1, 1), rng.uniform(-0.22, 0.22, 2), rng.normal(0.97, 0.1)
    cast, bias = 1 + rng.normal(0, 0.03, 3), rng.normal(0, 7)
    grain, blur = rng.uniform(1.0, 6.0), rng.uniform(0, 1)

    _hair_behind(c, f)
    _body(c, f, cloth)
    _head(c, f)
    _spots(c, f, rng)
    _beard(c, f)
    _eyes(c, f)
    _nose(c, f)
    _mouth(c, f)
    _wrinkles(c, f, rng)
    _hair_front(c, f, rng, part)
    if f.glasses:
        _glasses(c, f, frame)

    to = (size, size)
    image = cv2.resize(c.colour, to, interpolation=cv2.INTER_AREA)
    fine = cv2.resize(cv2.GaussianBlur(c.fine, (3, 3), 0), to, interpolation=cv2.INTER_AREA)
    reach = (size // 24 | 1,) * 2
    soft = cv2.resize(cv2.blur(cv2.blur(c.soft, reach), reach), to)
    xy = np.linspace(-1, 1, size, dtype=np.float32)
    light = slope[0] * xy + (slope[1] * xy + gain)[:, None]
    light = light.astype(np.float32) * (255 - fine)
    lit = cv2.cvtColor(light, cv2.COLOR_GRAY2RGB)
    lit *= soft
    lit *= image
    lit = np.asarray(cv2.multiply(lit, np.append(cast / (255 * 128), 0.0)))  # four: a colour
    if blur > 0.55:
        lit = cv2.GaussianBlur(lit, (0, 0), blur - 0.3)
    noise = np.frombuffer(rng.bytes(2 * size * size), np.uint8).reshape(2, size, size)
    noise = np.subtract(*noise, dtype=np.float32)  # triangular, deviation 104
    noise *= np.float32(grain / 104)
    noise += np.float32(bias)
    lit += cv2.cvtColor(noise, cv2.COLOR_GRAY2RGB)
    return np.clip(lit, 0, 255, out=lit).astype(np.uint8)


def draw(seed: int, index: int, size: int = SIZE) -> tuple[Array, Labels]:
    """Face number index of a seed: RGB uint8 [size, size, 3] and its labels, from these alone."""
    rng = _generator(seed, index)
    labels = draw_labels(rng)
    return draw_face(rng, labels.looks, labels.gender, labels.colouring, size), labels


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, index]))


def _jpeg(image: Array) -> bytes:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    return data.tobytes()


class ProceduralFaces(FaceBuilder):
    """Faces drawn by a program: stylised, deterministic, with UTKFace's long-tailed ages.

    Age shows in proportions, wrinkles, spots and hair; gender in hair, jaw, brows and beard;
    "ethnicity" is the colouring of skin, hair and eyes. Apparent age is the age a face is drawn
    with, a few years off its age. The same OpenCV gives the same bytes.
    """

    name = "procedural_faces"
    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES = {"gender": GENDERS, "ethnicity": COLOURINGS}  # noqa: RUF012
    FIND_DUPLICATES = False
    OPTIONS = Group(
        "Options of procedural_faces.",
        count=Setting(4000, "How many images.", limits=(1, None)),
        seed=Setting(0, "Image i depends on seed, i and size alone.", limits=(0, None)),
        size=Setting(SIZE, "Edge of the images.", limits=(SMALLEST, None), unit="pixels"),
    )

    def faces(self) -> Iterator[Face]:
        seed = self.options["seed"]
        for i in range(self.options["count"]):
            name = f"{seed}-{i:06d}"
            if not self.mine(name):
                yield Face(id=name, image=archives.ELSEWHERE)
                continue
            image, labels = draw(seed, i, self.options["size"])
            yield Face(
                id=name, image=_jpeg(image), age=float(labels.age),
                gender=labels.gender, ethnicity=labels.colouring, apparent_age=labels.looks,
            )  # fmt: skip


# ------------------------------------------------------------------ the contact sheet, and files

SHEET_AGES = (2, 5, 9, 14, 19, 25, 32, 40, 48, 56, 65, 75, 85, 95)


def contact_sheet(path: str | pathlib.Path, seed: int = 0, size: int = SIZE) -> None:
    """Writes a picture of eight people, a man and a woman of each colouring, one a row, each
    ageing from 2 to 95 years.

    Raises:
      UserError: the file's name ends in no known picture format.
    """
    rows = []
    for person in range(2 * len(COLOURINGS)):
        colouring, gender = divmod(person, 2)
        rows.append([draw_face(_generator(seed, person), age, gender, colouring, size)
                     for age in SHEET_AGES])  # fmt: skip
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    path = expand(path)
    if not cv2.haveImageWriter(str(path)):
        raise UserError(f"{path}: not a name of a picture; end it in .png or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1])


def write(folder: pathlib.Path, count: int, seed: int = 0, size: int = SIZE) -> None:
    """Writes the first faces of the data set as files without labels, such as a generator's."""
    folder.mkdir(parents=True, exist_ok=True)
    for face in ProceduralFaces(count=count, seed=seed, size=size).faces():
        (folder / f"{face.id}.jpg").write_bytes(face.image)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m agejax.data.builders.procedural_faces",
        description="Writes a contact sheet of procedural faces, or a folder of them.",
    )
    parser.add_argument("--output", required=True, help="a picture, .png or .jpg; or a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=0, help="faces for a folder; 0: a sheet")
    args = parser.parse_args(argv[1:])
    if args.count < 0:
        raise UserError(f"--count={args.count}: must be 0 or more")
    if args.count:
        write(expand(args.output), args.count, args.seed)
    else:
        contact_sheet(args.output, args.seed)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
