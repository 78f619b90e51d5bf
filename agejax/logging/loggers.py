"""The loggers that config.loggers names: a run's numbers and images, beside metrics.jsonl."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import jax
import numpy as np

from agejax import files
from agejax.errors import UserError, brief
from agejax.logging import console
from agejax.logging.tensorboard import TensorBoard
from agejax.settings import to_json

NAMES = ("tensorboard", "wandb", "mlflow")
IDS = "loggers.json"  # in a run's folder: name of the logger -> id of the run there


class Logger(Protocol):
    """A place that a run's numbers and images go to.

    Any method may raise any error: see `Loggers`.

    Attributes:
      run_id: what the run is called there, if a resumed run needs that to continue it.
    """

    @property
    def run_id(self) -> str | None: ...

    def config(self, config: Mapping[str, Any]) -> None:
        """Logs the config of the run, as JSON data."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by name, such as "train/loss" or "val/age/mae"."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs an image, uint8 [H, W, 3]."""

    def close(self, *, finished: bool) -> None:
        """Ends the log; finished: the training is complete, not stopped or failed."""


class Loggers:
    """The loggers of a run.

    If one fails, for example because the disk is full or the network is gone, it is left out from
    then on, with one warning: no training ends because of its log.

    Args:
      opened: name -> logger.
    """

    def __init__(self, opened: Mapping[str, Logger] = MappingProxyType({})) -> None:
        self._opened = dict(opened)

    def config(self, config: Mapping[str, Any]) -> None:
        self._each(lambda logger: logger.config(config))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda logger: logger.scalars(step, values))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._each(lambda logger: logger.image(step, name, image))

    def close(self, *, finished: bool) -> None:
        self._each(lambda logger: logger.close(finished=finished))
        self._opened.clear()

    def _each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list(self._opened.items()):
            try:
                act(logger)
            except Exception as error:
                del self._opened[name]
                console.warning(f"{name}: {brief(error)}; the training goes on without this logger")
                with contextlib.suppress(Exception):  # it has failed already
                    logger.close(finished=False)


def check(names: Sequence[str]) -> None:
    """Raises `UserError` for a logger that does not exist, or whose package is not installed."""
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"config.loggers: there is no logger {name!r}; list any of {', '.join(NAMES)}, "
                "such as --config.loggers=\"('tensorboard', 'wandb')\""
            )
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UserError(
                f"config.loggers: the package {name} is missing; pip install -e '.[{name}]', or "
                f"leave {name} out"
            )


def open_all(config: Any, workdir: pathlib.Path, start_step: int) -> Loggers:
    """Opens the loggers of a run and gives them its config; of several processes the first does.

    A run that is resumed continues the wandb or MLflow run that `IDS` names.

    Args:
      config: of the run.
      start_step: the step that it starts from.

    Raises:
      UserError: one does not open.
    """
    if jax.process_index() > 0:
        return Loggers()
    path = workdir / IDS
    ids = {}
    if start_step and path.exists():  # a run that starts anew is another one there, too
        ids = files.read_json(path, dict, "remove it to log as a new run")
    opened: dict[str, Logger] = {}
    for name in config.loggers:
        try:
            opened[name] = _open(name, workdir, start_step, ids.get(name))
        except Exception as error:
            Loggers(opened).close(finished=False)
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"config.loggers: {name} does not open: {brief(error)}; see to that, or leave "
                f"{name} out"
            ) from error
    new = {name: logger.run_id for name, logger in opened.items() if logger.run_id is not None}
    if new.items() - ids.items():
        files.write_json(path, ids | new)
    loggers = Loggers(opened)
    loggers.config(to_json(config))
    return loggers


def _open(name: str, workdir: pathlib.Path, start_step: int, run_id: str | None) -> Logger:
    if name == "tensorboard":
        return TensorBoard(workdir, start_step)
    # Only here: each takes seconds to import, and need not be installed.
    if name == "wandb":
        from agejax.logging.wandb import Wandb

        return Wandb(workdir, run_id)
    from agejax.logging.mlflow import MLflow

    return MLflow(workdir, run_id)
