"""Workers of a study: detects dead ones, and continues their trials."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
import time
from typing import Any

HEARTBEAT = 60  # seconds; a worker silent for twice as long is dead


class Worker:
    """This process as a worker of a study: it locks a file as long as it lives.

    So other workers on the same machine see at once that it has died. On other machines Optuna's
    heartbeat shows it after two minutes.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder / "workers"
        self._folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._file = (self._folder / self.name).open("w")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def has_died(self, name: str) -> bool:
        """Whether a worker is known to have died; False where nothing is known of it."""
        if name.rsplit("-", 2)[0] != socket.gethostname():  # one may begin like another
            return False
        try:
            with (self._folder / name).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # alive, or in a folder elsewhere
            return False
        return True

    def forget(self, name: str) -> None:
        """Removes the file of a worker without an unfinished trial."""
        (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def revive(study: Any, worker: Worker) -> None:
    """Marks trials of dead workers as failed, and queues their settings before all others."""
    import optuna

    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        name = trial.user_attrs.get("worker")
        if name is None:  # killed right after its start
            silent = datetime.datetime.now() - trial.datetime_start
            dead = silent > datetime.timedelta(seconds=2 * HEARTBEAT)
        else:
            dead = worker.has_died(name)
        if not dead:
            continue
        # Several workers may notice it; only one of them succeeds.
        with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            go_on_with(study, trial)
        if name is not None:
            worker.forget(name)


def go_on_with(study: Any, trial: Any) -> None:
    """Queues an interrupted trial before all others, in its own folder."""
    number = trial.user_attrs.get("goes_on", trial.number)
    study.enqueue_trial(trial.params, user_attrs={"goes_on": number})
