"""What predicts: a run, a released model, an ensemble, or an exported file."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agejax.errors import DAMAGE, UserError
from agejax.evaluation.calibration import Calibration, known_geometry
from agejax.exporting import loading
from agejax.faces.geometry import Geometry
from agejax.paths import expand
from agejax.runs import box
from agejax.runs.ensembles import open_run
from agejax.runs.run import Run

if TYPE_CHECKING:
    from agejax.data.pipeline import HostBatch

LARGEST_BATCH = 256  # images that an exported file predicts at once


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model, as far as predictions need it.

    Attributes:
      name: as a user names it.
      run: None for an exported file.
      image_size: the edge of the images that it takes, pixels.
      classes: target -> the names of its classes.
      calibration: what its intervals and probabilities come from; None where it has none.
      geometry: returns how the training images frame faces; raises `UserError` where that is not
        known.
      predict: a batch -> {label: years [N] or probabilities [N, K]} of its rows with weight > 0.
      batch_size: images at once, at most.
      devices: how many share them.
    """

    name: str
    run: Run | None
    image_size: int
    classes: Mapping[str, Sequence[str]]
    calibration: Calibration | None
    geometry: Callable[[], Geometry]
    predict: Callable[[HostBatch], dict[str, np.ndarray]]
    batch_size: int
    devices: int = 1


def open_model(given: str | os.PathLike[str]) -> Model:
    """Opens the folder of a run, a released model or an ensemble, "box:NAME", or an exported file.

    Raises:
      UserError: as `open_run` and `loading.load`.
    """
    path = pathlib.Path(given)
    if not box.is_name(given) and path.suffix in loading.SUFFIXES and not expand(path).is_dir():
        return of_file(expand(path))
    return of_run(open_run(given if isinstance(given, str) else path))


def of_run(run: Run) -> Model:
    """The run, with its calibration where it has one."""
    return Model(
        name=box.name_of(run.workdir),
        run=run,
        image_size=run.config.data.image_size,
        classes=run.classes,
        calibration=Calibration.read(
            run.workdir, run.step, run.config.eval.get("image_size", 0)
        ),
        geometry=lambda: known_geometry(run.workdir, run.step),
        predict=lambda batch: run.predict([batch]),
        batch_size=run.batch_size,
        devices=run.mesh.size,
    )  # fmt: skip


def of_file(path: pathlib.Path) -> Model:
    """An exported file.

    Raises:
      UserError: as `loading.load`.
    """
    info, call = loading.load(path)
    try:
        size = int(info["input"]["shape"][1])
        classes = {k: out["classes"] for k, out in info["outputs"].items() if "classes" in out}
    except (*DAMAGE, AttributeError) as error:
        raise UserError(f"{path}: its description is damaged; {loading.REMEDY}") from error
    stored = info.get("calibration")
    calibration = None if stored is None else Calibration.from_json(stored)

    def geometry() -> Geometry:
        if calibration is None or calibration.geometry is None:
            raise UserError(
                f"{path}: the file does not know how its training images frame faces; give crops, "
                "or evaluate the run where a face detector is installed, and export it again"
            )
        return calibration.geometry

    def predict(batch: HostBatch) -> dict[str, np.ndarray]:
        known = batch["weight"] > 0
        return {label: np.asarray(values)[known] for label, values in call(batch["image"]).items()}

    return Model(str(path), None, size, classes, calibration, geometry, predict, LARGEST_BATCH)
