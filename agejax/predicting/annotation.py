"""Copies of images with the predicted faces drawn in: a box around each, and its age."""

from __future__ import annotations

import io
import itertools
import operator
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agejax import files
from agejax.errors import UserError
from agejax.predicting import images

COLOUR, INK = (255, 176, 0), (0, 0, 0)  # of boxes, and of the text on them
LETTER = 1 / 40  # height of the text, of the longest edge; less where the box is narrower than it
SMALLEST_LETTER = 12  # pixels
SLENDER = 1.8  # height of a letter to its mean width
LINE = 1 / 8  # width of a line, of the text's height
AGES = ("age", "apparent_age")  # of a face, the first that was predicted is drawn


def places(paths: Sequence[pathlib.Path], folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Image -> the path of its copy: below `folder` as the image is below all images' folder.

    So images of one name in two folders have two copies.

    Raises:
      UserError: a copy would replace a file.
    """
    whole = [pathlib.Path(os.path.abspath(path)) for path in paths]
    top = os.path.commonpath([path.parent for path in whole])
    found = {
        str(path): folder / full.relative_to(top) for path, full in zip(paths, whole, strict=True)
    }
    if there := [copy for copy in found.values() if copy.exists()]:
        raise UserError(f"--annotate: {there[0]} exists already; name another folder")
    return found


def annotated(
    records: Iterable[dict[str, Any]], copies: Mapping[str, pathlib.Path]
) -> Iterator[dict[str, Any]]:
    """Passes records on, and writes an image's copy after its last record.

    Args:
      records: of `predictions.of_faces`; those of an image follow each other.
      copies: of `places`.

    Raises:
      UserError: a copy cannot be written.
    """
    for path, of_image in itertools.groupby(records, key=operator.itemgetter("path")):
        faces = list(of_image)
        yield from faces
        image, copy = drawn(images.pixels(pathlib.Path(path)), faces), copies[path]
        kind = Image.registered_extensions().get(copy.suffix.lower())
        data = io.BytesIO()
        image.save(data, kind if kind in Image.SAVE else "JPEG", quality=95)
        with files.disk(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(copy, data.getvalue())


def drawn(image: np.ndarray, faces: Iterable[Mapping[str, Any]]) -> Image.Image:
    """Draws faces into an image.

    Args:
      image: uint8 [H, W, 3], RGB.
      faces: records; one without a box is the whole image, and has its text alone.
    """
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for face in faces:
        text = _text(face)
        left, top, right, bottom = face.get("box", (0, 0, *canvas.size))
        fits = SLENDER * (right - left) / max(len(text), 1)
        letter = max(min(fits, LETTER * max(canvas.size)), SMALLEST_LETTER)
        font = ImageFont.load_default(letter)
        if "box" in face:
            line = max(round(LINE * letter), 1)
            draw.rectangle((left, top, right, bottom), outline=COLOUR, width=line)
        x0, y0, x1, y1 = draw.textbbox((0, 0), text, font)
        width, height = x1 + x0, y1 + y0  # the same margin on all sides
        left = max(min(left, canvas.width - width), 0)
        top = top - height if top >= height else top  # above the box where there is room
        draw.rectangle((left, top, left + width, top + height), fill=COLOUR)
        draw.text((left, top), text, INK, font)
    return canvas


def _text(face: Mapping[str, Any]) -> str:
    """The age and its interval, in whole years; without an age, the most probable classes."""
    age = next((label for label in AGES if label in face), None)
    if age is None:
        classes = [values for values in face.values() if isinstance(values, Mapping)]
        return ", ".join(max(values, key=values.__getitem__) for values in classes)
    low, high = face.get(f"{age}_low"), face.get(f"{age}_high")
    return f"{face[age]:.0f}" + ("" if low is None else f" ({low:.0f}-{high:.0f})")
