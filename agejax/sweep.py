"""python -m agejax.sweep --config=FILE --space=FILE --study=DIR [--trials=25] [--config.x.y=v ...]

Searches a config's settings for the best validation metric. A space is a Python file whose
get_space() returns {"optim.weight_decay": {"low": 1e-4, "high": 1.0, "log": True},
"heads.age.loss": {"choices": ["l1", "huber"]}, ...}. The same command goes on with a study that was
stopped, and any number of workers, on any number of machines, may be given it at once.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import importlib.machinery
import importlib.util
import io
import json
import os
import pathlib
import socket
import sqlite3
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from agejax import command_line, tables, train
from agejax import config as config_lib
from agejax.errors import NotFiniteError, UserError, check_keys, line_in, run_command
from agejax.logging import records
from agejax.paths import expand
from agejax.reporting import sweep_page
from agejax.training import sharding

KEYS = ("low", "high", "log", "step", "choices")
SAMPLERS = ("tpe", "random")  # Optuna's Gaussian process would need torch
PRUNERS = ("none", "asha", "hyperband", "median")
HEARTBEAT = 60  # seconds; a worker that has been silent for twice as long is dead
FAILURES_IN_A_ROW = 3  # of trials, after which it is not their settings that are wrong
POLL = 2.0  # seconds between two looks at the trials of others

Space = Mapping[str, Mapping[str, Any]]


def read_space(path: str) -> dict[str, dict[str, Any]]:
    """get_space() of a Python file.

    Raises:
      UserError: no such file, no get_space() in it, or a range that makes no sense.
    """
    file = expand(path)
    if not file.is_file():
        raise UserError(f"--space={path}: no such file")
    loader = importlib.machinery.SourceFileLoader("space", str(file))  # whatever its name ends in
    spec = importlib.util.spec_from_loader("space", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
        get_space = getattr(module, "get_space", dict)
        space: dict[str, dict[str, Any]] = dict(get_space())
    except (Exception, SystemExit) as error:
        where = line_in(str(file), error)
        raise UserError(
            f"--space={path}, {where}" if where else f"--space={path} cannot be loaded: {error!r}"
        ) from error
    if not space:
        raise UserError(f"--space={path} has no get_space(), or it names no setting")
    for name, given in space.items():
        where = f"--space={path}: {name}"
        check_keys(given, KEYS, where)
        if "choices" in given:
            if not given["choices"]:
                raise UserError(f"{where}: no choices")
        elif not {"low", "high"} <= given.keys() or not given["low"] <= given["high"]:
            raise UserError(f"{where}: set low and high, low first, or choices")
    return space


def suggest(trial: Any, name: str, given: Mapping[str, Any]) -> Any:
    """A value of a setting: of its choices, or a whole or real number of its range."""
    if "choices" in given:
        # By number: Optuna keeps names and numbers only, and a choice may be a table.
        k = trial.suggest_categorical(name, list(range(len(given["choices"]))))
        return given["choices"][k]
    whole = all(isinstance(given[key], int) for key in ("low", "high"))
    options = {key: given[key] for key in ("log", "step") if key in given}
    return (trial.suggest_int if whole else trial.suggest_float)(
        name, given["low"], given["high"], **options
    )


def create_study(folder: pathlib.Path, storage: str, sampler: Any, pruner: Any, mode: str) -> Any:
    """A study to go on with, or a new one.

    Raises:
      UserError: the database is none of Optuna's, of another version of it, or cannot be opened,
        or its study searches in the other direction.
    """
    import optuna
    import sqlalchemy

    place = f"--storage={storage}" if storage else str(folder / "study.db")
    if not storage:
        _check_database(folder / "study.db")
    directions = optuna.study.StudyDirection
    direction = directions.MINIMIZE if mode == "min" else directions.MAXIMIZE
    try:
        study = optuna.create_study(
            study_name=folder.resolve().name,
            storage=optuna.storages.RDBStorage(
                storage or f"sqlite:///{folder.absolute()}/study.db",
                heartbeat_interval=HEARTBEAT,
                heartbeat_stale_trial_callback=go_on_with,
            ),
            sampler=sampler,
            pruner=pruner,
            direction=direction,
            load_if_exists=True,
        )
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"{place} cannot be opened as an Optuna study: {reason}; use another --study"
        ) from error
    if study.direction != direction:
        raise UserError(
            f"{place}: its study searches to {study.direction.name.lower()} and "
            f"config.eval.best_mode is {mode!r}; use another --study"
        )
    return study


def _check_database(path: pathlib.Path) -> None:
    """Raises `UserError` for an SQLite file of something else, to which Optuna would add tables."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as db:
            tables = {name for (name,) in db.execute("select name from sqlite_master")}
    except sqlite3.Error as error:
        raise UserError(f"{path} is no study ({error}); use another --study") from error
    if tables and "studies" not in tables:
        raise UserError(f"{path} is a database of something else; use another --study")


class Worker:
    """This process as a worker of a study: it holds a locked file as long as it lives.

    So whoever shares the folder, on the same machine, sees at once that it has died. On other
    machines its silence tells, after two minutes: Optuna's heartbeat.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder / "workers"
        self._folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._file = (self._folder / self.name).open("w")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def has_died(self, name: str) -> bool:
        """Whether a worker is known to have died; False as well where nothing is known of it."""
        if not name.startswith(f"{socket.gethostname()}-"):
            return False
        try:
            with (self._folder / name).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # alive, or its folder is elsewhere
            return False
        return True

    def forget(self, name: str) -> None:
        """Removes the file of a worker that has left no trial behind."""
        (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def revive(study: Any, worker: Worker) -> None:
    """Fails the trials whose workers have died, and queues their settings before all others."""
    import optuna

    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        name = trial.user_attrs.get("worker")
        if name is None:  # killed in its first moment
            silent = datetime.datetime.now() - trial.datetime_start
            dead = silent > datetime.timedelta(seconds=2 * HEARTBEAT)
        else:
            dead = worker.has_died(name)
        if not dead:
            continue
        # Of several workers that notice it, one comes first.
        with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            go_on_with(study, trial)
        if name is not None:
            worker.forget(name)


def go_on_with(study: Any, trial: Any) -> None:
    """Puts a trial that was cut off in front of all others, in the folder that it began."""
    number = trial.user_attrs.get("goes_on", trial.number)
    study.enqueue_trial(trial.params, user_attrs={"goes_on": number})


def create_sampler(name: str, start: int, seed: int) -> Any:
    """`start` random points first, then the sampler's own."""
    import optuna

    if name == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=start, seed=seed, multivariate=True)
    return optuna.samplers.RandomSampler(seed=seed)


def create_pruner(name: str) -> Any:
    import optuna

    match name:
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner()
        case "hyperband":
            return optuna.pruners.HyperbandPruner()
        case "median":
            return optuna.pruners.MedianPruner()
    return optuna.pruners.NopPruner()


def sweep(
    config: ml_collections.ConfigDict, space: Space, folder: pathlib.Path, study: Any, trials: int
) -> None:
    """Runs trials until `trials` are complete or pruned, and writes the study's page after each.

    Every trial trains in FOLDER/trials/NUMBER. If its settings make it fail, for example by a loss
    that is not finite, the trial has failed and the study goes on. If its worker was killed, its
    settings are tried again, from the last checkpoint. No more trials are started than are
    missing: at the end a worker waits for the trials of the others.

    Raises:
      UserError: the first trial of all failed: then the config is wrong, not a setting; or
        `FAILURES_IN_A_ROW` trials failed for another reason than a loss that is not finite, such as
        a full disk; or more than `trials` failed in all.
      SystemExit: a signal stopped it; the same command goes on.
    """
    import optuna

    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)

    failed: Exception | None = None
    stopped = False
    begun = in_a_row = failures = 0

    def objective(trial: Any) -> float:
        nonlocal failed, stopped, begun, in_a_row, failures
        trial.set_user_attr("worker", worker.name)
        if trial.number != begun:
            # Another worker is at it, or was: the seed would draw its random points again.
            study.sampler.reseed_rng()
        begun += 1
        values = {name: suggest(trial, name, given) for name, given in space.items()}
        number = trial.user_attrs.get("goes_on", trial.number)
        workdir = folder / "trials" / f"{number:04d}"
        trial.set_user_attr("workdir", str(workdir))
        trial.set_user_attr("settings", records.clean(values))
        pruned = False

        def stop_after(step: int, value: float) -> bool:
            nonlocal pruned
            trial.report(value, step)
            pruned = trial.should_prune()
            return pruned

        try:
            summary = train.train(config_lib.replaced(config, values), workdir, stop_after)
            if summary is None:
                go_on_with(study, trial)
                stopped = True
                raise Stopped("stopped by a signal; goes on as another trial")
            in_a_row = 0
        except (UserError, Stopped) as error:
            failed = error
            if isinstance(error, UserError):
                failures += 1
                # A loss that is not finite is its settings' own failure: the machine has trained.
                in_a_row = 0 if isinstance(error, NotFiniteError) else in_a_row + 1
            trial.set_user_attr("error", str(error))
            print(f"trial {trial.number}: {error}", file=sys.stderr)
            raise
        finally:
            jax.clear_caches()  # many trials would fill the memory with programs
        if pruned:
            raise optuna.TrialPruned
        return float(summary["best"]["value"])

    def after(study: Any, trial: Any) -> None:
        write(study, folder, space)
        # The first trial's failure is the config's, not a setting's. That of one trial after the
        # other is the machine's: each of the trials that replace them would fail as well.
        if isinstance(failed, UserError) and (
            in_a_row >= FAILURES_IN_A_ROW
            or failures > trials
            or not len(study.get_trials(states=ended))
        ):
            raise failed

    waits = False
    worker = Worker(folder)
    with contextlib.closing(worker):
        while not stopped:
            revive(study, worker)
            all_ = study.get_trials(deepcopy=False)
            missing = trials - sum(trial.state in ended for trial in all_)
            if missing <= 0:
                break
            others = sum(
                trial.state == optuna.trial.TrialState.RUNNING and "worker" in trial.user_attrs
                for trial in all_
            )
            if missing > others:
                study.optimize(objective, n_trials=1, callbacks=[after], catch=(UserError, Stopped))
                continue
            if not waits:
                print(f"waiting for the trials of other workers: {others}", flush=True)
            waits = True
            time.sleep(POLL)
        worker.forget(worker.name)
    write(study, folder, space)
    if stopped:
        raise SystemExit(1)


class Stopped(Exception):
    """Trial interrupted by SIGTERM or SIGINT."""


def write(study: Any, folder: pathlib.Path, space: Space) -> None:
    """trials.csv, best.json and index.html of what there is so far."""
    rows = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.value is not None else _last(trial),
            "steps": max(trial.intermediate_values, default=0),
            **trial.user_attrs.get("settings", {}),
            "error": trial.user_attrs.get("error", ""),
        }
        for trial in study.trials
        if trial.state.is_finished()
    ]
    text = io.StringIO()
    header = ["number", "state", "value", "steps", *space, "error"]
    tables.write(text, header, ([row.get(name, "") for name in header] for row in rows))
    records.write_text(folder / "trials.csv", text.getvalue())
    best = None
    with contextlib.suppress(ValueError):  # no trial is complete yet
        trial = study.best_trial
        settings = trial.user_attrs["settings"]
        best = {
            "number": trial.number,
            "value": trial.value,
            "workdir": trial.user_attrs["workdir"],
            "settings": settings,
            "flags": " ".join(f"--config.{k}={json.dumps(v)}" for k, v in settings.items()),
        }
        records.write_json(folder / "best.json", best)
    records.write_text(
        folder / "index.html",
        sweep_page.sweep(
            study.study_name, rows, best, importances(study), study.direction.name == "MINIMIZE"
        ),
    )


def importances(study: Any) -> dict[str, float]:
    """Setting -> its share of what differs between trials (fANOVA, Hutter et al. 2014); {} before
    there are enough."""
    import optuna

    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    return dict(optuna.importance.get_param_importances(study))


def _last(trial: Any) -> float | None:
    """The last value that a pruned trial reported."""
    values: Mapping[int, float] = trial.intermediate_values
    return values[max(values)] if values else None


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m agejax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--space", required=True, help="the Python file of the settings to search")
    parser.add_argument("--study", required=True, help="the folder of the study")
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    parser.add_argument("--start", type=int, default=5, help="random trials to start with")
    parser.add_argument("--pruner", choices=PRUNERS, default="none")
    parser.add_argument("--storage", default="", help="a database's URL; default: sqlite in DIR")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler")
    args, rest = parser.parse_known_args(argv[1:])
    folder = expand(args.study)
    records.check_folder(folder, "--study")
    _quiet()
    space = read_space(args.space)
    config = command_line.parse([argv[0], *rest])
    firsts = {k: v["choices"][0] if "choices" in v else v["low"] for k, v in space.items()}
    config_lib.replaced(config, firsts)  # raises where a setting is not there
    if not config.data.split.val_of_train:
        raise UserError(
            "config.data.split.val_of_train: 0 leaves no val split to compare trials on; set it "
            "above 0"
        )
    sharding.start()
    folder.mkdir(parents=True, exist_ok=True)
    study = create_study(
        folder,
        args.storage,
        create_sampler(args.sampler, args.start, args.seed),
        create_pruner(args.pruner),
        config.eval.best_mode,
    )
    sweep(config, space, folder, study, args.trials)
    if (folder / "best.json").exists():  # else all were pruned
        best = json.loads((folder / "best.json").read_text())
        print(f"best of {args.trials}: {config.eval.best} {best['value']:.4f} with {best['flags']}")
    print(f"written to {folder}/: index.html, trials.csv, best.json")


def _quiet() -> None:
    """Raises `UserError` without Optuna; with it, errors are printed and nothing else."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("the package optuna is missing; pip install -e '.[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
