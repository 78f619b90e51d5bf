"""How far a run can be trusted: probabilities and age intervals fitted to held-out images.

These are the split "calibration" where there is one, else val. Val has also chosen the checkpoint,
so its errors are a little too small, and intervals fitted to them a little too narrow.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax import files
from agejax.errors import DAMAGE, UserError, is_number
from agejax.evaluation import metrics, uncertainty
from agejax.evaluation.uncertainty import ByGroup, GroupQuantile
from agejax.faces.detection import Detector
from agejax.faces.geometry import Geometry
from agejax.runs import box

FILE = "calibration.json"
ALPHA = 0.1  # the share of images that an interval may miss
SMALLEST_SIGMA = 1e-3  # years; an interval in multiples of 0 would have no width


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What held-out images tell about a checkpoint.

    Attributes:
      step: of the checkpoint.
      n: how many images, one per group of copies.
      temperatures: class label -> what its logits are divided by.
      widths: age label -> half widths of intervals, years, or multiples of the predicted sigma
        where the head gives one: for all images, and by the decade of the prediction. A label with
        too few images is absent.
      alpha: the share that intervals may miss.
      geometry: how the training images frame faces; None where no detector is installed, or it
        finds no face.
      split: the images' split, "calibration" or "val".
      image_size: the run's config.eval.image_size at the time of fitting.
    """

    step: int
    n: int
    temperatures: Mapping[str, float]
    widths: Mapping[str, ByGroup]
    alpha: float = ALPHA
    geometry: Geometry | None = None
    split: str = "val"
    image_size: int = 0

    @classmethod
    def fit(
        cls,
        predictions: Mapping[str, np.ndarray],
        labels: Mapping[str, np.ndarray],
        duplicates: np.ndarray,
        step: int,
        alpha: float = ALPHA,
    ) -> Calibration:
        """Fits temperatures and interval widths to held-out images.

        Args:
          predictions, labels: of held-out images, as `metrics.evaluate` takes them.
          duplicates: int [N], equal within a group of copies: only the first of each counts.
        """
        _, first = np.unique(duplicates, return_index=True)
        temperatures, widths = {}, {}
        for name in (name for name in predictions if name in labels):
            predicted, label = predictions[name][first], labels[name][first]
            if predicted.ndim == 2 and (label >= 0).any():
                temperatures[name] = uncertainty.temperature(predicted, label)
            elif predicted.ndim == 1 and np.isfinite(label).sum() > 1 / alpha:
                sigma = _sigma(predictions, name)
                widths[name] = uncertainty.conformal_by_group(
                    predicted.astype(np.float64) - label,
                    metrics.decades(predicted),
                    alpha,
                    None if sigma is None else sigma[first],
                )
        return cls(step, len(first), temperatures, widths, alpha)

    def intervals(
        self, predictions: Mapping[str, np.ndarray], *, by_decade: bool = True
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Label -> (lower, upper), years [N] each, that hold the true age 1 - alpha of the time.

        Args:
          by_decade: use one width per decade of the prediction, so that the young and the old are
            each covered; else one width for all.
        """
        result = {}
        for name, fitted in self.widths.items():
            if name in predictions:
                predicted = predictions[name].astype(np.float64)
                q = fitted.of(metrics.decades(predicted)) if by_decade else fitted.everybody.q
                result[name] = uncertainty.interval(predicted, q, _sigma(predictions, name))
        return result

    def probabilities(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Label -> calibrated probabilities, float64 [N, K]; the most probable class stays so."""
        return {
            name: uncertainty.scaled(predictions[name], temperature)
            for name, temperature in self.temperatures.items()
            if name in predictions
        }

    def as_json(self) -> dict[str, Any]:
        """JSON data from which `from_json` makes it again."""
        values = dataclasses.asdict(dataclasses.replace(self, geometry=None))
        if self.geometry is not None:
            values["geometry"] = self.geometry.as_json()
        cleaned: dict[str, Any] = files.clean(values)
        return cleaned

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration | None:
        """The calibration in JSON data; None where the data is damaged."""
        try:
            widths = {
                name: ByGroup(
                    GroupQuantile(**fitted["everybody"]),
                    {group: GroupQuantile(**one) for group, one in fitted["groups"].items()},
                )
                for name, fitted in values["widths"].items()
            }
            framing = values["geometry"]
            geometry = None if framing is None else Geometry.from_json(framing)
            read = cls(**{**values, "widths": widths, "geometry": geometry})
            return read if read._is_right() else None
        except (*DAMAGE, AttributeError):
            return None

    def save(self, folder: pathlib.Path) -> None:
        values = self.as_json()
        files.write_json(folder / FILE, values | {"digest": files.digest(values)})

    @classmethod
    def read(
        cls, folder: pathlib.Path, step: int, image_size: int | None = None
    ) -> Calibration | None:
        """Reads the calibration of a run's folder.

        Args:
          step: of the checkpoint.
          image_size: config.eval.image_size; None: any.

        Returns:
          None where there is none, or only one of another checkpoint or image size.
        """
        try:
            stored: dict[str, Any] = json.loads((folder / FILE).read_text())
            # Older versions wrote no digest.
            if "digest" in stored and files.digest(stored) != stored.pop("digest"):
                return None
            if stored["step"] != step:
                return None
            if image_size not in (None, stored.get("image_size", 0)):
                return None
            return cls.from_json(stored)
        except (OSError, *DAMAGE, AttributeError):  # missing or damaged: it is made again
            return None

    def _is_right(self) -> bool:
        """Whether every number is a number, and in its range."""
        quantiles = [
            one for fitted in self.widths.values()
            for one in (fitted.everybody, *fitted.groups.values())
        ]  # fmt: skip
        numbers = [self.n, self.alpha, *self.temperatures.values()]
        numbers += [value for one in quantiles for value in (one.n, one.q)]
        if self.geometry is not None:
            framing = self.geometry
            numbers += [framing.images, framing.found, *framing.limits.values()]
            numbers += [*framing.landmarks.ravel().tolist(), *framing.spread.ravel().tolist()]
            if framing.landmarks.shape != (5, 2) or framing.spread.shape != (5, 2):
                return False
        return (
            all(map(is_number, numbers))
            and 0 < self.alpha < 1
            and all(value > 0 for value in self.temperatures.values())
        )


def known_geometry(workdir: pathlib.Path, step: int) -> Geometry:
    """Reads how a run's training images frame faces.

    Raises:
      UserError: no detector is installed, or the run was not evaluated since it was installed.
    """
    Detector.installed()  # its error names what to install
    calibration = Calibration.read(workdir, step)
    if calibration is None or calibration.geometry is None:
        if box.is_release(workdir):
            raise UserError(
                f"{workdir}: this model was released without the frame of its training images, so "
                "faces in photos cannot be framed for it; give crops, or use another model"
            )
        undo = "" if calibration is None else f"delete {FILE} there, and "
        raise UserError(
            f"{workdir}: how faces are framed in its training images is not known; {undo}run "
            f"python -m agejax.evaluate --workdir={shlex.quote(str(workdir))} where the training "
            "data is"
        )
    return calibration.geometry


def _sigma(predictions: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    sigma = predictions.get(f"{name}_sigma")
    return None if sigma is None else np.maximum(sigma.astype(np.float64), SMALLEST_SIGMA)
