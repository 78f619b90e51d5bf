"""Where a comparison runs, and at which scale."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import ml_collections

from agejax.config import replaced
from agejax.errors import UserError

SCALES = ("smoke", "cpu", "full")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where a comparison runs.

    Attributes:
      scale: "full" is the published setting; "cpu" is one that two cores can finish; "smoke" takes
        seconds, on a small network, and shows only that every arm runs.
      dataset, source: the data; source None: where the builder looks.
      weights: a folder of published weights, each file's name beginning with the backbone's.
      folder: where the arms train.
      synthetic: a folder or archive of faces without labels.
      genders: a trained run that predicts the gender of faces; None: the data's labels.
    """

    scale: str
    dataset: str = "utkface"
    source: str | None = None
    weights: pathlib.Path | None = None
    folder: pathlib.Path = pathlib.Path("runs")
    synthetic: str | None = None
    genders: str | None = None

    def pretrained(self, backbone: str) -> str | None:
        """The weights file of a backbone; None at scale "smoke", which needs none.

        Raises:
          UserError: there is no such file.
        """
        if self.scale == "smoke":
            return None
        found = self._files(backbone)
        if not found:
            raise UserError(
                f"--weights={self._folder}: no file whose name begins with {backbone}; "
                "docs/models.md names what can be read"
            )
        return str(found[0])

    def has(self, backbone: str) -> bool:
        """Whether `pretrained` would find what it needs."""
        return self.scale == "smoke" or bool(self._files(backbone))

    @property
    def _folder(self) -> pathlib.Path:
        return self.weights or pathlib.Path("weights")

    def _files(self, backbone: str) -> list[pathlib.Path]:
        return sorted(self._folder.glob(f"{backbone}*")) if self._folder.is_dir() else []

    def place(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """The config with this data at this scale; "full" configs stay as published."""
        config.data.name, config.data.source = self.dataset, self.source
        if self.scale == "smoke":
            config.total = {"steps": 2}
            config.eval.every = config.checkpoint.every = {"steps": 2}
            config.data.image_size = config.model.image_size = 32
            config.schedule.image_size = ()
            config.data.batch_size = 8
            config.eval.batch_size = 16
            config.model.name, config.model.options = "cnn", {"widths": (8,)}
            config.model.hidden = min(config.model.hidden, 8)
            config.sharding.devices = 1
        return config


def changed(config: ml_collections.ConfigDict, **changes: Any) -> ml_collections.ConfigDict:
    """A copy with settings replaced; `heads__age` stands for heads.age."""
    return replaced(config, {path.replace("__", "."): v for path, v in changes.items()})
