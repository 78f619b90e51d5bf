"""Exported files, opened again to predict."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from agejax import files
from agejax.errors import DAMAGE, UserError, brief
from agejax.exporting import jax_export, onnx_export
from agejax.exporting.description import FILE
from agejax.exporting.prediction import Predict
from agejax.runs import box

SUFFIXES = (".onnx", ".jaxexport")
REMEDY = "export the run again"


def load(path: pathlib.Path) -> tuple[dict[str, Any], Predict]:
    """Opens a file that `files.export` wrote; an int8 one too.

    Returns:
      (what model.json describes, {label: years [B] or probabilities [B, K]} as a function of images
      uint8 [B, S, S, 3]).

    Raises:
      UserError: no such file, one that agejax did not write, a damaged one, or onnxruntime is
        missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix != ".onnx":
        info = files.read_json(path.with_name(FILE), dict, f"it describes {path.name}; {REMEDY}")
        data = path.read_bytes()
        if _sha256(info) not in (None, box.sha256(data)):
            raise UserError(
                f"{path}: the {FILE} beside it describes another file; put its own there, or "
                f"{REMEDY}"
            )
        try:
            return info, jax_export.load(data)
        except DAMAGE as error:
            raise UserError(f"{path} is damaged ({brief(error)}); {REMEDY}") from error
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path}: the package onnxruntime is missing; pip install onnxruntime"
        ) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        stored = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # of onnxruntime's own kinds
        raise UserError(f"{path} cannot be opened: {brief(error)}") from error
    try:
        keys = ("input", "outputs", *(["calibration"] if "calibration" in stored else []))
        return {key: json.loads(stored[key]) for key in keys}, onnx_export.prediction_of(session)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} was not written by agejax.export; {REMEDY}") from error


def _sha256(info: dict[str, Any]) -> str | None:
    """The SHA-256 of the JAX file that model.json describes; None where it does not tell."""
    try:
        return str(info["files"]["jax"]["sha256"])
    except (LookupError, TypeError):  # of an older version, or damaged
        return None
