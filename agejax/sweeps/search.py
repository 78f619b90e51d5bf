"""The search: trains trials until enough are complete."""

from __future__ import annotations

import contextlib
import pathlib
import time
from typing import Any

import jax
import ml_collections

from agejax import files
from agejax.config import replaced
from agejax.errors import NotFiniteError, UserError
from agejax.logging import console
from agejax.sweeps import study as study_lib
from agejax.sweeps.space import Space, suggest
from agejax.sweeps.workers import Worker, go_on_with, revive
from agejax.train import train

FAILURES_IN_A_ROW = 3  # failed trials, after which something else than their settings is wrong
POLL = 2.0  # seconds between two checks of other workers' trials


def search(
    config: ml_collections.ConfigDict, space: Space, folder: pathlib.Path, study: Any, trials: int
) -> None:
    """Runs trials until `trials` are complete or pruned.

    Prints a line before each and one after it, and then writes the page.

    Every trial trains in FOLDER/trials/NUMBER. If its settings make it fail, for example with a
    loss that is not finite, the trial counts as failed and the study continues. If its worker was
    killed, its settings are tried again, from the last checkpoint. No more trials are started than
    are missing: at the end a worker waits for the trials of the others.

    Raises:
      UserError: the study has trials of another space; the very first trial failed: then the config
        is wrong, not a setting; or `FAILURES_IN_A_ROW` trials failed for another reason than a loss
        that is not finite, such as a full disk; or more than `trials` failed in all.
      SystemExit: a signal stopped it; the same command continues.
    """
    import optuna

    study_lib.check_space(study, space)
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)

    failed: Exception | None = None
    stopped = False
    begun = in_a_row = failures = 0

    def objective(trial: Any) -> float:
        nonlocal failed, stopped, begun, in_a_row, failures
        trial.set_user_attr("worker", worker.name)
        if trial.number != begun:
            # Another worker uses, or used, this seed: it would draw the same random points.
            study.sampler.reseed_rng()
        begun += 1
        values = {name: suggest(trial, name, given) for name, given in space.items()}
        number = trial.user_attrs.get("goes_on", trial.number)
        workdir = folder / "trials" / f"{number:04d}"
        trial.set_user_attr("workdir", str(workdir))
        trial.set_user_attr("settings", files.clean(values))
        console.result(study_lib.first_line(trial))
        pruned = False

        def stop_after(step: int, value: float) -> bool:
            nonlocal pruned
            trial.report(value, step)
            pruned = bool(trial.should_prune())
            return pruned

        try:
            with console.without_openings():
                summary = train(replaced(config, values), workdir, stop_after)
            if summary is None:
                go_on_with(study, trial)
                stopped = True
                raise Stopped("stopped by a signal; goes on as another trial")
            in_a_row = 0
        except (UserError, Stopped) as error:
            failed = error
            if isinstance(error, UserError):
                failures += 1
                # A loss that is not finite is caused by the settings: the machine works.
                in_a_row = 0 if isinstance(error, NotFiniteError) else in_a_row + 1
            trial.set_user_attr("error", str(error))
            raise
        finally:
            jax.clear_caches()  # else compiled programs of many trials fill the memory
        if pruned:
            raise optuna.TrialPruned
        return float(summary["best"]["value"])

    def after(study: Any, trial: Any) -> None:
        console.result(study_lib.line(trial, config.eval.best))
        study_lib.write(study, folder, space)
        # If the first trial fails, the config is wrong, not a setting. If trial after trial fails,
        # the machine is at fault: the trials that replace them would fail too.
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
                console.result(f"waiting for the trials of other workers: {others}")
            waits = True
            time.sleep(POLL)
        worker.forget(worker.name)
    study_lib.write(study, folder, space)
    if stopped:
        raise SystemExit(1)


class Stopped(Exception):
    """Trial interrupted by SIGTERM or SIGINT."""
