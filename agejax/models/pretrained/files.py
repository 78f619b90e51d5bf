"""Reads the arrays of a weights file. Never runs code from it, and needs neither torch nor Keras."""

from __future__ import annotations

import pathlib

import safetensors
import safetensors.numpy

from agejax.errors import UserError
from agejax.models.pretrained.layout import Tensors


def read(path: str, where: str) -> Tensors:
    """The arrays of a weights file by the names they have in it, in the file's order.

    Args:
      where: how a message begins.

    Raises:
      UserError: no such file, or one that cannot be read safely and wholly.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"{where} does not exist; name a weights file")
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{where} is damaged or not a .safetensors file ({error}); get it again"
        ) from error
