"""A study: trials stored by Optuna, and the files written about them."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import shlex
import sqlite3
from collections.abc import Mapping
from typing import Any

from agejax import files, tables
from agejax.errors import UserError
from agejax.reporting import sweep_page
from agejax.sweeps.space import Space, distribution
from agejax.sweeps.workers import HEARTBEAT, go_on_with

SAMPLERS = ("tpe", "random")  # Optuna's Gaussian process would need torch
PRUNERS = ("none", "asha", "hyperband", "median")


def create_study(folder: pathlib.Path, storage: str, sampler: Any, pruner: Any, mode: str) -> Any:
    """Opens a study to continue, or creates one.

    Raises:
      UserError: the database is not one of Optuna's, is of another version or cannot be opened, or
        its study searches in the other direction.
    """
    import optuna
    import sqlalchemy

    place = f"--storage={storage}" if storage else str(folder / "study.db")
    remedy = f"use another {'--storage' if storage else '--study'}"
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
            f"{place} cannot be opened as an Optuna study: {reason}; {remedy}"
        ) from error
    if study.direction != direction:
        raise UserError(
            f"{place}: its study searches to {study.direction.name.lower()} and "
            f"config.eval.best_mode is {mode!r}; use another --study"
        )
    return study


def _check_database(path: pathlib.Path) -> None:
    """Raises `UserError` for another program's SQLite file: Optuna would add tables to it."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as db:
            tables = {name for (name,) in db.execute("select name from sqlite_master")}
    except sqlite3.Error as error:
        raise UserError(f"{path} is not a study ({error}); use another --study") from error
    if tables and "studies" not in tables:
        raise UserError(f"{path} is a database of something else; use another --study")


def check_space(study: Any, space: Space) -> None:
    """Raises `UserError` where the study's trials were drawn from other choices or another scale.

    Trials hold the numbers of choices, which would now mean others. Limits may change.
    """
    import optuna

    for trial in study.get_trials(deepcopy=False):
        settings = trial.user_attrs.get("settings", {})
        for name in trial.params.keys() & space.keys():
            given = space[name]
            try:
                optuna.distributions.check_distribution_compatibility(
                    trial.distributions[name], distribution(given)
                )
                same = "choices" not in given or name not in settings or (
                    settings[name] == _stored(given["choices"][trial.params[name]])
                )  # fmt: skip
            except ValueError:
                same = False
            if not same:
                raise UserError(
                    f"--space: {name}: the trials of this study were drawn from other choices, or "
                    "on another scale; give the space that they were drawn from, or use another "
                    "--study"
                )


def _stored(value: Any) -> Any:
    """A value as Optuna's storage gives it back."""
    return json.loads(json.dumps(files.clean(value)))


def create_sampler(name: str, start: int, seed: int) -> Any:
    """A sampler that draws `start` random points first."""
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


def write(study: Any, folder: pathlib.Path, space: Space) -> None:
    """Writes trials.csv, best.json and index.html about the trials so far."""
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
    names = dict.fromkeys([*space, *sweep_page.settings_of(rows)])
    header = ["number", "state", "value", "steps", *names, "error"]
    tables.write(text, header, ([row.get(name, "") for name in header] for row in rows))
    files.write_text(folder / "trials.csv", text.getvalue())
    best = None
    with contextlib.suppress(ValueError):  # no complete trial yet
        trial = study.best_trial
        settings = trial.user_attrs["settings"]
        best = {
            "number": trial.number,
            "value": trial.value,
            "workdir": trial.user_attrs["workdir"],
            "settings": settings,
            "flags": _flags(settings),
        }
        files.write_json(folder / "best.json", best)
    files.write_text(
        folder / "index.html",
        sweep_page.sweep(
            study.study_name, rows, best, importances(study), study.direction.name == "MINIMIZE"
        ),
    )


def first_line(trial: Any) -> str:
    """One line about a trial that begins: its settings and its folder."""
    attributes = trial.user_attrs
    return f"trial {trial.number} begins, {_flags(attributes['settings'])}: {attributes['workdir']}"


def line(trial: Any, metric: str) -> str:
    """One line about a finished trial: its settings, then its result or why it has none.

    Args:
      metric: the name of the trial's value.
    """
    attributes = trial.user_attrs
    if error := attributes.get("error"):
        result = error
    else:
        result = f"{metric} {trial.value:.4f}"  # of a pruned trial: its last one
        if trial.state.name == "PRUNED":
            result = f"pruned at step {max(trial.intermediate_values)}, {result}"
    return f"trial {trial.number}, {_flags(attributes['settings'])}: {result}"


def importances(study: Any) -> dict[str, float]:
    """Setting -> its share of the variance between trials (fANOVA, Hutter et al. 2014); {} while
    there are too few."""
    import optuna

    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    return dict(optuna.importance.get_param_importances(study))


def _flags(settings: Mapping[str, Any]) -> str:
    """The settings of a trial as they are typed on a command line."""
    return shlex.join(f"--config.{name}={value}" for name, value in settings.items())


def _last(trial: Any) -> float | None:
    """The last value that a pruned trial reported."""
    values: Mapping[int, float] = trial.intermediate_values
    return values[max(values)] if values else None
