"""A run's calibration: read from its folder, or fitted now to held-out images."""

from __future__ import annotations

import dataclasses

import numpy as np

from agejax.data import opening, splits
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.scored import score_rows
from agejax.faces import detection
from agejax.faces.geometry import Geometry
from agejax.logging import console
from agejax.runs import box
from agejax.runs.run import Run

FRAMED = 300  # images that show how the training data frames faces


def calibrate(run: Run, source: Source | None = None) -> Calibration | None:
    """Reads the run's calibration, or fits it now and writes it.

    It is fitted to the split "calibration" where there is one, else to val.

    Args:
      source: the run's data, where it is already open.

    Returns:
      None where val is empty, or the run's data is gone, which is reported on stderr.
    """
    image_size = run.config.eval.get("image_size", 0)
    known = Calibration.read(run.workdir, run.step, image_size)
    if known is not None:
        return known
    try:
        source = source or opening.open_source(run.config.data)
    except UserError as error:
        console.note(f"no calibration: the run's validation images are not here: {error}")
        return None
    if source.fingerprint != run.fingerprint:
        console.note("no calibration: the run's validation images are not here")
        return None
    by_name = splits.make(source, run.config.data.split)
    name = splits.CALIBRATION if splits.CALIBRATION in by_name else "val"
    rows = by_name.get(name)
    if rows is None:
        console.note("no calibration: the run was trained without a val split")
        return None
    held = score_rows(run, source, rows, name)
    fitted = Calibration.fit(held.predictions, held.labels, held.duplicates, run.step)
    fitted = dataclasses.replace(
        fitted, geometry=framing(source, rows), split=name, image_size=image_size
    )
    if box.is_release(run.workdir):  # read-only
        return fitted
    try:
        fitted.save(run.workdir)
    except UserError as error:  # the folder may be another user's
        console.note(f"the calibration is used here but not kept: {error}")
    return fitted


def framing(source: Source, rows: np.ndarray) -> Geometry | None:
    """Measures how images of a source frame faces; None without a detector or without faces.

    predict reports what is missing when it needs the frame.
    """
    detector = detection.Detector.if_installed()
    try:
        return Geometry.of(source.take(rows[:FRAMED]), detector) if detector else None
    except UserError:  # no faces
        return None
