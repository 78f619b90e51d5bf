"""MLflow, where config.loggers names it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from agejax.logging import console
from agejax.settings import leaves

MOST_PARAMS = 100  # that MLflow takes in one call
MOST_CHARACTERS = 6000  # of a parameter


class MLflow:
    """A `Logger` to the MLflow server at $MLFLOW_TRACKING_URI, or to mlflow.db beside the run.

    The experiment is $MLFLOW_EXPERIMENT_NAME or "agejax", the run's name that of its folder. The
    client is used and not mlflow.log_metric and the like, which keep one active run per process.

    Args:
      workdir: the folder of the run.
      run_id: the MLflow run to continue; None starts a new one.
    """

    def __init__(self, workdir: pathlib.Path, run_id: str | None) -> None:
        for name in ("mlflow", "alembic"):  # which report every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        folder = workdir.absolute().parent
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        # Images of runs in mlflow.db would go to the folder in which the command is started.
        artifacts = None if uri else (folder / "mlartifacts").as_uri()
        uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        self._new = run_id is None
        with _alone(None if artifacts is None else folder):
            self._client = mlflow.MlflowClient(uri)
            if run_id is None:
                run_id = self._client.create_run(
                    self._experiment(artifacts), run_name=workdir.name
                ).info.run_id
            else:
                self._client.update_run(run_id, status="RUNNING")
        self.run_id: str = run_id
        console.note(f"mlflow: run {run_id} at {uri}")

    def _experiment(self, artifacts: str | None) -> str:
        """The id of the experiment, made if it is not there."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "agejax")
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name, artifacts))
            except MlflowException:
                # Another run may have made it on the server just now.
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def config(self, config: Mapping[str, Any]) -> None:
        """The settings as parameters, and config.json among the files of the MLflow run."""
        self._client.log_dict(self.run_id, dict(config), "config.json")
        if not self._new:  # parameters cannot change
            return
        settings = leaves(config).items()
        params = [Param(k, json.dumps(v)[:MOST_CHARACTERS]) for k, v in settings]
        for i in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[i : i + MOST_PARAMS])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._client.log_image(self.run_id, image, key=name, step=step)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


@contextlib.contextmanager
def _alone(folder: pathlib.Path | None) -> Iterator[None]:
    """Waits for other runs that open mlflow.db in this folder: two that make it at once both fail.

    Args:
      folder: None for a server, which sees to that itself.
    """
    if folder is None:
        yield
        return
    with (folder / ".mlflow.lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
