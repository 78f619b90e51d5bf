"""Images of drawn faces, and a sheet of them."""

from __future__ import annotations

import math
import pathlib

import cv2
import numpy as np

from agejax.data.procedural import parts
from agejax.data.procedural.canvas import Canvas
from agejax.data.procedural.people import COLOURINGS, Labels, draw_labels, draw_traits, within
from agejax.errors import UserError
from agejax.paths import expand

SIZE = 112
SMALLEST = 32  # pixels; smaller images have no room for lines and soft shade
SHEET_AGES = (2, 5, 9, 14, 19, 25, 32, 40, 48, 56, 65, 75, 85, 95)

Array = np.ndarray


def draw_face(
    rng: np.random.Generator, looks: float, gender: int, colouring: int, size: int = SIZE
) -> Array:
    """Draws an RGB face, uint8 [size, size, 3]; the same generator state gives the same picture.

    Two calls that differ only in looks (years) draw one person at two ages, in one pose and light.
    """
    f = draw_traits(rng, looks, gender, colouring)
    scale = size * 2 * 0.325 * math.exp(0.05 * rng.standard_normal())
    roll = within(rng.standard_normal() * 0.09, -0.3, 0.3)
    cos, sin = math.cos(roll) * scale, math.sin(roll) * scale
    yaw, pitch = rng.standard_normal(2) * (0.09, 0.04)
    c = Canvas(
        parts.background(rng, size * 2),
        np.array([[cos * (1 - 0.5 * abs(yaw)), sin], [-sin, cos]]),
        size * (np.array([1.0, 1.03]) + rng.standard_normal(2) * 0.03),
        np.array([within(yaw, -0.2, 0.2), pitch]),
    )
    cloth, frame = rng.uniform(15, 235, 3), rng.uniform(15, 110) * np.array([1.0, 0.9, 0.85])
    part, slope, gain = rng.uniform(-1, 1), rng.uniform(-0.22, 0.22, 2), rng.normal(0.97, 0.1)
    cast, bias = 1 + rng.normal(0, 0.03, 3), rng.normal(0, 7)
    grain, blur = rng.uniform(1.0, 6.0), rng.uniform(0, 1)

    parts.hair_behind(c, f)
    parts.body(c, f, cloth)
    parts.head(c, f)
    parts.spots(c, f, rng)
    parts.beard(c, f)
    parts.eyes(c, f)
    parts.nose(c, f)
    parts.mouth(c, f)
    parts.wrinkles(c, f, rng)
    parts.hair_front(c, f, rng, part)
    if f.glasses:
        parts.glasses(c, f, frame)

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
    np.clip(lit, 0, 255, out=lit)
    drawn: Array = lit.astype(np.uint8)
    return drawn


def draw(seed: int, index: int, size: int = SIZE) -> tuple[Array, Labels]:
    """Draws face number index: RGB uint8 [size, size, 3] and labels, from seed and index alone."""
    rng = generator(seed, index)
    labels = draw_labels(rng)
    return draw_face(rng, labels.looks, labels.gender, labels.colouring, size), labels


def generator(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, index]))


def contact_sheet(path: str | pathlib.Path, seed: int = 0) -> None:
    """Writes a picture of eight people, a man and a woman of each colouring, one per row, each
    ageing from 2 to 95 years.

    Raises:
      UserError: the file's name ends in no known picture format.
    """
    rows = []
    for person in range(2 * len(COLOURINGS)):
        colouring, gender = divmod(person, 2)
        rows.append([draw_face(generator(seed, person), age, gender, colouring, SIZE)
                     for age in SHEET_AGES])  # fmt: skip
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    path = expand(path)
    if not cv2.haveImageWriter(str(path)):
        raise UserError(f"{path}: not the name of a picture; end it in .png or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1])
