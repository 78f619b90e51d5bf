"""Images inside a table: a column of grey values, as in Kaggle's UTKFace."""

from __future__ import annotations

import math
import re

import cv2
import numpy as np

from agejax.data.builders.base import LONGEST_HEADER

COLUMN = "pixels"


def in_table(data: bytes) -> bool:
    """Whether the header of a table names a column of pixels."""
    header = re.split(rb"[\r\n]", data[:LONGEST_HEADER], maxsplit=1)[0]
    return COLUMN.encode() in re.split(rb"[,;\t\"' ]+", header.lower())


def encoded(text: str) -> bytes:
    """A cell "128 127 ..." of S x S grey values, row by row -> a grey PNG file of S x S pixels.

    Raises:
      ValueError: other text, or a number of values that does not fill a square.
    """
    try:
        values = np.array(text.split(), np.uint8)
    except (ValueError, OverflowError) as error:
        raise ValueError("its pixels are not numbers from 0 to 255") from error
    edge = math.isqrt(len(values))
    if not edge or edge * edge != len(values):
        raise ValueError(f"{len(values):,} pixels do not make a square")
    done, data = cv2.imencode(".png", values.reshape(edge, edge))
    assert done
    return data.tobytes()
