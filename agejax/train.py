"""train(config, workdir): the one loop. Read it top to bottom and you know the system."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from agejax import checks, run_data
from agejax.config import check
from agejax.distillation import setup as distillation
from agejax.errors import NotFiniteError
from agejax.evaluation import metrics
from agejax.evaluation.validation import Validation
from agejax.heads import weights
from agejax.logging import console, loggers
from agejax.logging.profile import Profile
from agejax.logging.stopwatch import Stopwatch
from agejax.logging.train_log import TrainLog
from agejax.logging.watchdog import Watchdog
from agejax.paths import expand
from agejax.runs import run_folder, warm_start
from agejax.runs import summary as summaries
from agejax.runs.plan import Plan
from agejax.training import (
    durations,
    feature_map,
    frozen,
    image_sizes,
    optim,
    peers,
    resident,
    sharding,
)
from agejax.training import state as state_lib
from agejax.training import step as step_lib
from agejax.training.best import Best
from agejax.training.calls import Calls, Feed
from agejax.training.checkpoint import CheckpointWriter
from agejax.training.first_call import FirstCall
from agejax.training.image_sheets import ImageSheets
from agejax.training.signals import StopOnSignal

StopAfter = Callable[[int, float], bool]


def train(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    stop_after: StopAfter = lambda step, value: False,
    *,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Trains what `config` says in `workdir`, from the start or from its last checkpoint.

    Args:
      stop_after: asked after every evaluation, with the step and the value of config.eval.best,
        whether to end there, as `config.eval.patience` may: so a sweep prunes its trials.
      dry_run: only finds out what would be done: `Plan.dry_run` says what it returns.

    Returns:
      The contents of summary.json, or None where SIGTERM stopped the run early: the same call then
      goes on from where it stopped, with the same result as without the stop.

    Raises:
      UserError: bad input, or a loss that is not finite (the last good checkpoint stays).
    """
    workdir = expand(workdir)
    run_folder.check(workdir)
    check(config)
    rolled_back = False
    while True:
        try:
            with contextlib.ExitStack() as held:
                return _train(config, workdir, stop_after, dry_run, held, rolled_back)
        except NotFiniteError as error:
            if config.nonfinite != "rollback":
                raise
            run_folder.roll_back(workdir, error)
            rolled_back = True


def _train(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, stop_after: StopAfter, dry_run: bool,
    held: contextlib.ExitStack, rolled_back: bool,
) -> dict[str, Any] | None:  # fmt: skip
    # ---- 1. the config, as it is or as a run there was started with -----------------------------
    clock = Stopwatch()
    stored = run_folder.stored_config(workdir)
    config = warm_start.settle(config, workdir, stored)
    run_folder.check_same_config(workdir, stored, config)
    mesh = sharding.of_run(config)
    checks.before_data(config, resumes=stored is not None)

    # ---- 2. data --------------------------------------------------------------------------------
    with clock("data"):
        data = run_data.open_data(config)
    kept = data.kept(config)
    peers.agree(config=kept["config"], data=kept["fingerprint"], versions=kept["versions"])
    if (started := run_folder.stored_meta(workdir)) is not None:
        run_folder.check_same_data(workdir, started, data.source, config.data.source, data.facts)
        run_folder.check_same_devices(workdir, started, config, mesh.size)
        distillation.check_same(workdir, started, config.distill, data.teachers)

    # ---- 3. durations, all in steps -------------------------------------------------------------
    sampler, batch_size = data.batches.sampler, config.data.batch_size
    steps_per_epoch = sampler.size / batch_size
    to_steps = durations.ToSteps(batch_size, examples=sampler.size)
    total_steps = to_steps(config.total, "total", least=1)
    epochs = config.total.get("epochs") or total_steps / steps_per_epoch  # as they were asked for
    to_steps = dataclasses.replace(to_steps, total_steps=total_steps)
    log_every = to_steps(config.log_every, "log_every", least=1)
    eval_every = to_steps(config.eval.every, "eval.every", least=1)
    checkpoint_every = to_steps(config.checkpoint.every, "checkpoint.every", least=1)

    # ---- 4. model, optimizer, steps -------------------------------------------------------------
    model, initialise = state_lib.create_model(config, data.heads)
    initialise = feature_map.added(initialise, model.feature_dim, data.teachers.width)
    scale = optim.lr_scale(config)
    schedule = optim.create_schedule(config.schedule, total_steps, to_steps, scale)
    optimizer = optim.create_optimizer(
        config.optim, schedule, model.parameters, feature_map.names(data.teachers.width)
    )
    abstract = state_lib.abstract(config, initialise, optimizer, mesh)
    make_train_step = functools.partial(
        step_lib.make_train_step, config, model, optimizer, abstract,
        steps_per_epoch=steps_per_epoch, switches=weights.switches(config.heads, to_steps),
        teachers=data.teachers,
    )  # fmt: skip
    train_steps = image_sizes.TrainSteps(config, to_steps, make_train_step, clock)

    # ---- 5. what will be done; a dry run ends here ----------------------------------------------
    plan = Plan(config, workdir, data.source, data.rows, model, optimizer.frozen, mesh,
                total_steps, epochs)  # fmt: skip
    if dry_run:
        return plan.dry_run(train_steps.largest, abstract, data.batches, data.teachers.arrays)
    plan.announce()

    # ---- 6. start: from the last checkpoint, else fresh (random or pretrained weights) ----------
    held.callback(run_folder.Claim(workdir).close)
    checkpoints = CheckpointWriter(
        workdir / "checkpoints", config.eval.best_mode, config.checkpoint.keep
    )
    held.callback(checkpoints.close)
    skipped = run_folder.skipped_steps(workdir)
    peers.agree(workdir={"checkpoint": checkpoints.last, "skipped_steps": sorted(skipped)})
    if skipped and checkpoints.last is None and not rolled_back:
        run_folder.forget_skipped_steps(workdir)
        skipped = set()
    if checkpoints.last is not None:
        state, meta = checkpoints.resume(abstract)
        step = int(state.step)
        saved_step = step if meta["evaluated"] else step - 1
        best = Best.resumed(meta["best"], checkpoints, saved_step, eval_every)
        if best not in (Best(**meta["best"]), summaries.best(workdir)):
            console.result(f"the best checkpoint is lost; from now on it is {best}")
        clock.add(meta["seconds"])
        console.result(f"resuming {workdir} at step {step:,}")
    else:
        with clock("compile"):
            trained = warm_start.of(config, data.heads, data.source, data.rows["train"])
            state = state_lib.create(config, initialise, optimizer, mesh, trained)
        peers.agree_on_weights(state.params)
        best, meta, step, saved_step = Best(), {}, 0, 0
    with clock("features"):
        features = frozen.compute(
            config, model, state.params, state.batch_stats, data.source, data.rows, mesh
        )

    # ---- 7. what reads, looks at val, and reports -----------------------------------------------
    run_folder.write_config(workdir, config)
    batches = dataclasses.replace(data.batches, features=features)
    shared: dict[str, Any] = {"teachers": data.teachers.arrays}
    if resident.wanted(config.data.resident, batches, mesh):
        with clock("data"):
            shared[resident.TABLE] = resident.put(batches, mesh)
        batches = dataclasses.replace(batches, resident=True)
    calls = Calls.of_run(
        config.steps_per_call, (log_every, eval_every, checkpoint_every),
        (*train_steps.ends, total_steps), skipped,
    )  # fmt: skip
    logs = loggers.open_all(config, workdir, step)
    held.callback(logs.close, finished=False)  # if an error comes before `log` closes them
    sheets = ImageSheets(config, data.source, data.rows.get("val"), data.heads, logs)
    validate = Validation(
        FirstCall(step_lib.make_eval_step(config, model, losses=True), "the eval step", clock),
        data.heads, data.source, data.rows.get("val"), config.eval.batch_size, mesh,
        data.facts.medians.get("age"), features, sheets.worst,
    )  # fmt: skip
    log = TrainLog(
        workdir, start_step=step, total_steps=total_steps, batch_size=batch_size, clock=clock,
        steps_per_epoch=steps_per_epoch, epochs=epochs, pending=meta.get("pending", {}),
        loggers=logs,
    )  # fmt: skip
    profile = Profile(workdir, config.profile, step, lambda: train_steps.compiled, batch_size)
    feed = Feed(batches, calls, step, total_steps, config.data.workers, mesh, shared, clock)
    val_metrics: dict[str, Any] | None = None

    # ---- 8. the loop ----------------------------------------------------------------------------
    with (
        contextlib.closing(feed),
        StopOnSignal() as stop,
        Watchdog(config.watchdog) as watchdog,
        profile,
        log,
        clock("step"),
    ):
        while True:
            stopping = stop.now()
            watchdog.feed()
            profile.at(step, state)

            # -- look at val and save, where it is due or a signal asks --
            eval_due = "val" in data.rows and (step % eval_every == 0 or step == total_steps)
            save_due = eval_due or step % checkpoint_every == 0 or step == total_steps
            # Where only a signal asks for a checkpoint, metrics.jsonl gets no row of its own.
            pending = log.take_pending() if stopping and not save_due else {}
            value = None
            if step > saved_step and (save_due or stopping):
                log.flush()  # raises where a loss was not finite: such a state is never saved
                if eval_due:
                    with clock("eval"):
                        val_metrics = validate(state, lambda: stop.requested)
                    if val_metrics is not None:
                        value = metrics.lookup(val_metrics, config.eval.best)
                        best = best.update(value, step, config.eval.best_mode)
                        scores = metrics.scalars(val_metrics)
                        log.evaluation(step, scores, config.eval.best, best=best.step == step)
                    else:
                        stopping = True  # a signal cut the evaluation short
                with clock("checkpoint"):
                    meta = kept | {
                        "best": dataclasses.asdict(best),
                        "evaluated": value is not None or not eval_due,
                        "pending": pending,
                        "seconds": clock.seconds,
                        "devices": mesh.size,
                    }
                    checkpoints.save(state, meta, value)
            enough = value is not None and stop_after(step, value)
            if step == total_steps or stopping or enough or 0 < config.eval.patience <= best.stale:
                break

            # -- one call: a step, or config.steps_per_call of them --
            if step == 0:
                with clock("compile"):
                    sheets.augmented(data.batches, mesh, train_steps.size(0))
            count, batch = feed.take()
            step += count
            if step in skipped:
                state = dataclasses.replace(state, step=state.step + 1)
                continue
            state, sums = train_steps.at(step - count, count, log)(state, batch)
            log.add(step, sums)
            feed.ahead(sums.pairs)
            if step % log_every == 0:
                log.report()
        jax.block_until_ready(state)
        with clock("checkpoint"):
            checkpoints.wait()
        log.finished = not stop.requested

    # ---- 9. the end -----------------------------------------------------------------------------
    if stop.requested:
        console.result(f"stopped by a signal at step {step:,}; the same command goes on from there")
        return None
    return summaries.write(
        workdir, kept, step=step, batch_size=batch_size, epoch_size=sampler.size, best=best,
        last=val_metrics or validate(state), seconds=clock.seconds, mesh=mesh,
        parameters=sum(math.prod(model.shapes[name]) for name in model.parameters),
        rows=data.rows, skipped=len(data.source.skipped),
    )  # fmt: skip
