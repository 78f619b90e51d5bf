"""Weights & Biases, where config.loggers names it."""

from __future__ import annotations

import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import wandb

from agejax.logging import console


class Wandb:
    """A `Logger` to wandb: the service, or with WANDB_MODE=offline the folder `wandb` of the run.

    The project is $WANDB_PROJECT or "agejax", the run's name that of its folder.

    Args:
      workdir: the folder of the run.
      run_id: the wandb run to continue; None starts a new one.
    """

    def __init__(self, workdir: pathlib.Path, run_id: str | None) -> None:
        self.run_id = run_id or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "agejax"),
            name=workdir.name,
            id=self.run_id,
            resume="allow",
            dir=workdir,
            # Lines of its own would break the progress line.
            settings=wandb.Settings(silent=True, console="off"),
        )
        # wandb's own step cannot go back, as a resumed run does.
        self._run.define_metric("*", step_metric="step")
        console.note(f"wandb: {self._run.dir if self._run.offline else self._run.url}")

    def config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({"step": step, name: wandb.Image(image)})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
