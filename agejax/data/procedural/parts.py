"""The parts of a face, each drawn from its traits."""

from __future__ import annotations

import math

import cv2
import numpy as np

from agejax.data.procedural.canvas import CIRCLE, Canvas, closed, curve, ellipse, symmetric
from agejax.data.procedural.people import Traits, ramp

Array = np.ndarray


def background(rng: np.random.Generator, side: int) -> Array:
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


def body(c: Canvas, f: Traits, cloth: Array) -> None:
    neck = 0.40 + 0.16 * f.adult + 0.16 * (f.manly - 0.5) * f.adult
    low = f.chin + 0.34
    c.fill(np.array([(-neck, 0.5), (neck, 0.5), (neck, low + 0.2), (-neck, low + 0.2)]),
           f.skin * 0.9, 0)  # fmt: skip
    wide = 1.0 + 0.55 * f.adult + 0.2 * f.manly * f.adult
    c.fill(symmetric((0, low + 0.1), (neck, low - 0.04), (wide * 0.8, low + 0.14),
                      (wide, low + 0.5), (wide, 3.0), (0, 3.2)), cloth, 0)  # fmt: skip
    c.stroke(curve((-neck, low - 0.04), (0, low + 0.12), (neck, low - 0.04)), cloth * 0.75, 0.05, 0)
    c.shade(symmetric((0, f.chin - 0.1), (neck * 1.1, f.chin - 0.2), (neck, low), (0, low)), 0.6,
            0)  # fmt: skip


def head(c: Canvas, f: Traits) -> None:
    for side in (-1, 1):
        x = side * (f.width + 0.02)
        c.fill(ellipse(x, f.eye_y + 0.2, 0.12, f.ear * 1.15), f.skin * 0.9, 0)
        c.fill(ellipse(x + side * 0.01, f.eye_y + 0.2, 0.06, f.ear * 0.7), f.skin * 0.74, 0)
    sag = min(f.old, 1.2)
    cheek = 0.99 + 0.03 * (1 - f.adult)
    w, chin = f.width, f.chin
    outline = symmetric(
        (0, -f.top), (0.55 * w, -0.92 * f.top), (0.92 * w, -0.55 * f.top), (w, -0.05),
        (cheek * w, 0.35), (f.jaw * w * (1 + 0.02 * sag), 0.74 * chin - 0.04 + 0.04 * sag),
        (0.42 * w * (0.85 + 0.3 * f.manly), 0.955 * chin), (0, chin),
    )  # fmt: skip
    c.fill(outline, f.skin, 0)
    c.shade(outline, 0.86, 0)
    c.shade(outline * (0.8, 0.9) + (0, 0.02), 1.02)
    c.shade(ellipse(0, -0.5, 0.5, 0.25), 1.08)
    blush = 0.05 + 0.10 * (1 - f.adult)
    for side in (-1, 1):
        c.shade(ellipse(side * 0.55, f.nose_y - 0.02, 0.22, 0.16),
                np.array([1.09, 1.06 - blush, 1.06 - blush]))  # fmt: skip


def eyes(c: Canvas, f: Traits) -> None:
    sag = min(f.old, 1.2)
    h = f.eye * f.openness
    brow_y = f.eye_y - 0.17 - h * 0.5 - 0.03 * (1 - f.manly)
    hair = f.hair * 0.7 + (f.skin * 0.3 if f.grey < 0.5 else 40.0)
    if f.looks < 4:
        hair = 0.5 * hair + 0.5 * f.skin
    for side in (-1, 1):
        x, y = side * f.eye_x, f.eye_y
        c.shade(ellipse(x, y - 0.06, f.eye * 1.25, 0.2), 0.9 - 0.05 * f.manly * f.adult)
        bag = ramp(f.looks, 24, 80)
        c.shade(ellipse(x, y + h + 0.09, f.eye * 0.9, 0.055), 0.98 - 0.24 * bag)
        inner, outer = x - side * f.eye, x + side * f.eye
        droop = 0.05 * sag - 0.02
        upper = [(inner, y + 0.02), (x - side * 0.08, y - h * 0.85), (x + side * 0.07, y - h * 0.85
                 + 0.04 * sag), (outer, y + droop)]  # fmt: skip
        c.fill(closed(*upper, (x + side * 0.07, y + h * 0.75), (x - side * 0.08, y + h * 0.75)),
               np.array([238.0, 236, 232]) - np.array([6.0, 14, 30]) * sag)  # fmt: skip
        r = min(f.eye * 0.50, 0.115)
        top, bottom = y - h * 0.8, y + h * 0.72  # the lids cut the iris
        for radius, colour in ((r, f.iris * 0.75), (r * 0.8, f.iris), (r * 0.45, f.iris * 0.15)):
            disc = ellipse(x, y, radius, radius)
            disc[:, 1] = np.minimum(np.maximum(disc[:, 1], top), bottom)
            c.fill(disc, colour)
        c.fill(ellipse(x - 0.035, y - 0.04, 0.026, 0.026), np.array([250.0] * 3))
        lash = f.skin * (0.42 - 0.3 * (1 - min(max(f.manly, 0), 1)) * f.adult)
        c.stroke(curve(*upper), lash, 0.035 + 0.02 * (1 - f.manly) * f.adult)
        lid = 0.05 + 0.02 * sag
        c.line(curve(*[(px, py - lid) for px, py in upper]), 0.22 + 0.25 * sag, 0.022)
        thick = f.brow
        arch = 0.07 - 0.05 * f.manly
        dip = 0.05 * sag
        a, b = x - side * f.eye * 1.15, x + side * f.eye * 1.35
        c.fill(closed((a, brow_y + thick), (a, brow_y - thick * 0.5), (x + side * 0.06, brow_y
               - arch - thick), (b, brow_y + 0.04 + dip), (x + side * 0.06, brow_y - arch + thick)),
               hair)  # fmt: skip


def nose(c: Canvas, f: Traits) -> None:
    y, w = f.nose_y, f.nose
    c.shade(closed((-0.06, f.eye_y), (0.02, f.eye_y), (0.07, y), (-0.07, y)), 1.13)
    c.shade(closed((0.06, f.eye_y), (0.11, f.eye_y + 0.1), (w + 0.05, y), (0.08, y)),
            0.9 - 0.04 * f.adult)  # fmt: skip
    c.fill(closed((-w, y - 0.03), (-w * 0.5, y - 0.11), (0, y - 0.14), (w * 0.5, y - 0.11),
                   (w, y - 0.03), (w * 0.55, y + 0.045), (0, y + 0.07), (-w * 0.55, y + 0.045)),
           f.skin * np.array([1.0, 0.965, 0.95]))  # fmt: skip
    for side in (-1, 1):
        c.fill(ellipse(side * w * 0.48, y + 0.02, w * 0.23, 0.028), f.skin * 0.45)
        c.line(curve((side * w * 0.9, y - 0.1), (side * w * 1.05, y - 0.03),
                     (side * w * 0.85, y + 0.04)), 0.28, 0.025)  # fmt: skip


def mouth(c: Canvas, f: Traits) -> None:
    y, w, t = f.mouth_y, f.mouth * (1 + 0.12 * max(f.smile, 0)), f.lips
    lift = 0.06 * f.smile - 0.03 * min(f.old, 1.2)
    lip = f.skin * np.array([0.86, 0.64, 0.64]) + np.array([6.0, 0, 4.0])
    lip = lip + f.lipstick * 0.7 * (np.array([172.0, 36, 58]) - lip)
    pale = 0.35 * min(f.old, 1.0) * (1 - f.lipstick)
    lip = lip + pale * (f.skin * 0.88 - lip)
    c.shade(ellipse(0, y + t + 0.11, w * 0.6, 0.05), 0.86)
    left, right = (-w, y - lift), (w, y - lift)
    low = y + 0.03 * f.smile
    c.fill(closed(left, (-w * 0.35, y - t * 0.95), (0, y - t * 0.7), (w * 0.35, y - t * 0.95),
                   right, (w * 0.45, low + t * 0.95), (0, low + t * 1.2), (-w * 0.45,
                   low + t * 0.95)), lip)  # fmt: skip
    if f.smile > 0.75:  # an open smile
        c.fill(closed((-w * 0.8, y - lift * 0.7), (0, y + 0.0), (w * 0.8, y - lift * 0.7),
                       (w * 0.4, low + 0.055), (0, low + 0.075), (-w * 0.4, low + 0.055)),
               np.array([240.0, 236, 228]) - np.array([10.0, 22, 50]) * min(f.old, 1))  # fmt: skip
    else:
        c.stroke(curve(left, (-w * 0.4, low), (0, low + 0.015), (w * 0.4, low), right),
                 lip * 0.5, 0.03)  # fmt: skip


def beard(c: Canvas, f: Traits) -> None:
    if f.beard:
        mix = min(f.beard, 0.85)
        colour = f.skin + mix * (f.hair * 0.85 - f.skin)
        w, chin, y = f.width, f.chin, f.mouth_y
        low = f.lips + 0.07
        right = curve(
            (0, chin * 1.02), (0.45 * w, chin * 0.98), (f.jaw * w * 1.02, 0.77 * chin),
            (w * 1.0, 0.36), (w * 1.0, 0.02), (w * 0.9, 0.02), (w * 0.84, 0.34),
            (f.mouth * 1.6, y - 0.16), (f.mouth * 1.1, y + 0.02), (f.mouth * 0.8, y + low),
            (0, y + low + 0.03),
        )  # fmt: skip
        c.fill(np.concatenate([right, right[::-1] * (-1, 1)]), colour, 0.3)
    if f.moustache or f.beard > 0.5:
        y = f.mouth_y - f.lips - 0.02
        c.fill(symmetric((0, y - 0.1), (f.mouth * 0.6, y - 0.06), (f.mouth * 1.15, y + 0.07),
                          (f.mouth * 0.5, y + 0.01), (0, y)), f.hair * 0.85)  # fmt: skip


def _skull_curve(f: Traits, thick: float, low: float) -> list[tuple[float, float]]:
    """Right half of the hair's outer edge, from the crown down to y = low."""
    w, t = f.width + thick, f.top + thick
    return [(0, -t), (0.58 * w, -0.91 * t), (0.95 * w, -0.52 * t), (1.02 * w, -0.05), (w, low)]


def hair_behind(c: Canvas, f: Traits) -> None:
    dark = f.hair * 0.72
    if f.style in ("long", "fringe") and f.manly < 0.55 and f.looks > 2.5:
        low = f.chin + 0.45
        c.fill(symmetric(*_skull_curve(f, 0.18, 0.4), (f.width + 0.22, low), (0, low)), dark, 0)
    elif f.style == "bun":
        c.fill(ellipse(0, -f.top - 0.18, 0.36, 0.3), dark, 0)
    elif f.style == "curly":
        big = 0.2 if f.manly > 0.5 else 0.42
        for a in np.linspace(0.86, 2.14, 13) * np.pi:
            c.fill(ellipse((f.width + big * 0.55) * math.cos(a), -0.15 + (f.top - 0.02
                   + big * 0.3) * math.sin(a), big * 0.75, big * 0.75), dark, 0)  # fmt: skip


def hair_front(c: Canvas, f: Traits, rng: np.random.Generator, part: float) -> None:
    w = f.width
    grey = np.minimum(f.hair + 60 * f.grey + 26, 255)
    if f.style == "bald":
        c.shade(ellipse(0.1, -1.0, 0.3, 0.12), 1.18)
        if f.looks > 10:  # a ring of hair remains
            for side in (-1, 1):
                tuft = closed((w * 0.9, -0.62), (w + 0.09, -0.4), (w + 0.08, 0.12), (w, 0.1))
                c.fill(tuft * (side, 1), f.hair, 0)
        return
    thick = {"short": 0.1, "fringe": 0.13, "curly": 0.16}.get(f.style, 0.15)
    thick = (thick - 0.05 * min(f.old, 1.0)) * (0.35 + 0.65 * ramp(f.looks, 0, 4))
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
    halves = [(curve(*p[:k]), curve(*p[:k - 1:-1])) for p in (right, left)]  # fmt: skip
    ring = np.concatenate([halves[0][0], halves[0][1][::-1], halves[1][1], halves[1][0][::-1]])
    c.fill(ring, f.hair, 0.25)
    # strands from the hairline outwards; the light ones turn grey with age
    u = np.sort(rng.random((2, 22)), 1)
    for at, (edge, line) in zip(u, halves, strict=True):
        a = line[(at * (len(line) - 1)).astype(int)]
        b = edge[(at * (len(edge) - 1)).astype(int)]
        strands = np.stack([a, 0.5 * (a + b) + (0.03, -0.02), b], 1) * 0.985
        c.stroke(strands[::2], f.hair * 0.8, 0.014, 0.25)
        c.stroke(strands[1::2], grey, 0.014, 0.25)


def wrinkles(c: Canvas, f: Traits, rng: np.random.Generator) -> None:
    forehead = ramp(f.looks, 22, 86)
    if forehead and f.style != "fringe":
        room = f.eye_y - 0.44 - (f.hairline - 0.1 * f.recede) - 0.08
        for k in range(min(1 + int(forehead * 4.5), 1 + int(room / 0.1))):
            y = f.eye_y - 0.42 - 0.1 * k
            half = 0.34 + 0.16 * forehead + 0.05 * rng.standard_normal()
            j = 0.011 * rng.standard_normal(4)
            c.line(curve((-half, y + j[0]), (-half * 0.4, y - 0.03 + j[1]),
                         (half * 0.4, y - 0.03 + j[2]), (half, y + j[3])),
                   0.08 + 0.42 * forehead, 0.022)  # fmt: skip
    frown = ramp(f.looks, 30, 92)
    feet = ramp(f.looks, 25, 86)
    fold = ramp(f.looks, 15, 82)
    mouth = ramp(f.looks, 42, 96)
    for side in (-1, 1):
        if frown:
            c.line(curve((side * 0.07, f.eye_y - 0.3), (side * 0.055, f.eye_y - 0.14)),
                   0.45 * frown, 0.025)  # fmt: skip
        x = side * (f.eye_x + f.eye + 0.05)
        for k in range(int(1 + feet * 3.9) if feet else 0):
            d = (k - 1.2) * 0.09
            c.line(curve((x, f.eye_y + 0.3 * d), (x + side * (0.08 + 0.09 * feet), f.eye_y + d
                   + 0.02)), 0.1 + 0.45 * feet, 0.02)  # fmt: skip
        if feet > 0.15:
            y = f.eye_y + f.eye * f.openness + 0.06
            for k in range(1 + int(feet * 2.2)):
                c.line(curve((side * (f.eye_x - f.eye * 0.9), y + 0.05 * k), (side * f.eye_x,
                       y + 0.05 + 0.055 * k), (side * (f.eye_x + f.eye * 0.8), y + 0.05 * k)),
                       0.38 * feet, 0.02)  # fmt: skip
        if fold:
            a, b = f.nose + 0.06, f.mouth + 0.07 + 0.03 * fold
            crease = curve((side * a, f.nose_y - 0.04), (side * (b + 0.02), f.nose_y + 0.14),
                          (side * (b + 0.04), f.nose_y + 0.15 + 0.2 * fold))  # fmt: skip
            c.line(crease, 0.06 + 0.5 * fold, 0.03 + 0.01 * fold)
            beside = crease + np.array([side * 0.07, 0.01])
            c.shade(np.concatenate([crease, beside[::-1]]), 1.02 - 0.18 * fold)
        if mouth:
            m = f.mouth + 0.03
            c.line(curve((side * m, f.mouth_y + 0.04), (side * (m + 0.05), f.mouth_y + 0.2),
                         (side * (m + 0.02), f.chin - 0.16)), 0.36 * mouth, 0.03)  # fmt: skip
            for k in range(3):
                lx = side * (0.05 + 0.08 * k)
                y = f.mouth_y - f.lips - 0.02
                c.line(np.array([(lx, y), (lx * 1.08, y - 0.09)]), 0.4 * mouth, 0.018)
            c.line(curve((side * 0.62, f.nose_y + 0.02), (side * 0.68, f.nose_y + 0.2),
                         (side * 0.62, f.nose_y + 0.42)), 0.32 * mouth, 0.022)  # fmt: skip
            c.line(curve((side * 0.12, f.chin + 0.06), (side * 0.18, f.chin + 0.34)),
                   0.5 * mouth, 0.03)  # fmt: skip


def spots(c: Canvas, f: Traits, rng: np.random.Generator) -> None:
    spots = int(rng.poisson(14 * ramp(f.looks, 38, 95)))
    freckles = int(rng.poisson(18)) if rng.random() < 0.08 and f.skin[0] > 200 else 0
    for k in range(spots + freckles):
        r, a = 0.85 * math.sqrt(rng.random()), rng.random() * 2 * np.pi
        x, y = r * math.cos(a) * 0.9, r * math.sin(a) * 1.05
        size = rng.uniform(0.018, 0.05) if k < spots else 0.013
        c.fill(CIRCLE[::2] * (size, size * 0.8) + (x, y), f.skin * (0.8, 0.72, 0.66))


def glasses(c: Canvas, f: Traits, frame: Array) -> None:
    r = 0.29
    for side in (-1, 1):
        ring = ellipse(side * (f.eye_x + 0.01), f.eye_y + 0.03, r, r * 0.82)
        c.stroke(np.concatenate([ring, ring[:1]]), frame, 0.035)
        c.stroke(np.array([(side * (f.eye_x + r), f.eye_y), (side * (f.width + 0.02), f.eye_y)]),
                 frame, 0.035, 0.6)  # fmt: skip
    c.stroke(curve((-f.eye_x + r - 0.01, f.eye_y), (0, f.eye_y - 0.05),
                   (f.eye_x - r + 0.01, f.eye_y)), frame, 0.035)  # fmt: skip
