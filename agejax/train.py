"""train(config, workdir): the one loop. Read it top to bottom and you know the system."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import signal
from collections.abc import Callable, Mapping
from importlib import metadata
from types import FrameType
from typing import Any

import jax
import ml_collections
from jax.experimental import multihost_utils

from agejax import checks, files
from agejax import heads as heads_lib
from agejax.config import check
from agejax.data import draws, opening, pipeline, sampling, splits
from agejax.distillation import setup as distillation
from agejax.errors import NotFiniteError, UserError
from agejax.evaluation import metrics
from agejax.heads import training, weights
from agejax.logging.profile import Profile
from agejax.logging.stopwatch import Stopwatch
from agejax.logging.train_log import TrainLog
from agejax.logging.watchdog import Watchdog
from agejax.paths import expand
from agejax.runs import run, warm_start
from agejax.settings import to_json
from agejax.training import durations, feature_map, frozen, image_sizes, optim, peers, sharding
from agejax.training import state as state_lib
from agejax.training import step as step_lib
from agejax.training.checkpoint import Checkpoints, CheckpointWriter
from agejax.training.prediction import predict_batches
from agejax.version import __version__

StopAfter = Callable[[int, float], bool]


def train(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    stop_after: StopAfter = lambda step, value: False,
) -> dict[str, Any] | None:
    """Trains what `config` says in `workdir`, from the start or from its last checkpoint.

    Args:
      stop_after: asked after every evaluation, with the step and the value of config.eval.best,
        whether to end there, as `config.eval.patience` may: so a sweep prunes its trials.

    Returns:
      The contents of summary.json, or None where SIGTERM stopped the run early: the same call then
      goes on from where it stopped, with the same result as without the stop.

    Raises:
      UserError: bad input, or a loss that is not finite (the last good checkpoint stays).
    """
    workdir = expand(workdir)
    run.check_workdir(workdir)
    check(config)
    while True:
        try:
            return _train(config, workdir, stop_after)
        except NotFiniteError as error:
            if config.nonfinite != "rollback":
                raise
            run.roll_back(workdir, error)


def _train(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, stop_after: StopAfter
) -> dict[str, Any] | None:
    clock = Stopwatch()
    stored = run.stored_config(workdir)
    config = warm_start.settle(config, workdir, stored)
    with config.unlocked():
        heads_lib.write_out(config.heads, stored.heads if stored else None)
    run.check_same_config(workdir, stored, config)
    mesh = sharding.create_mesh(config.sharding.devices, config.sharding.fsdp)
    sharding.check_batch_size(
        "data.batch_size", config.data.batch_size, mesh, config.optim.accumulate
    )
    sharding.check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    checks.before_data(config, resumes=stored is not None)

    # ---- data -----------------------------------------------------------------------------------
    with clock("data"):
        source = opening.open_source(config.data)
        rows = splits.make(source, config.data.split)
        rows["train"] = draws.keep(config.sampling, source, rows["train"])
        checks.with_data(config, rows)
        train_rows, val_rows = rows["train"], rows.get("val")
        facts = heads_lib.Facts.of(
            {k: v[train_rows] for k, v in source.labels.items()}, source.label_names
        )
        drawn = draws.weigh(config.sampling, source, train_rows)
        sampler = sampling.Sampler(*drawn, config.seed)
        heads, facts, example_weights = training.prepare(
            config.heads, facts, source.labels, train_rows,
            *(each.expected(len(train_rows)) for each in (drawn, draws.even(source, train_rows))),
        )  # fmt: skip
        teachers = distillation.open_teachers(config, heads, facts, source, rows)
        columns = source.labels | example_weights | teachers.columns
        batches = pipeline.TrainBatches(
            dataclasses.replace(source, labels=columns),
            train_rows,
            sampler,
            config.data.batch_size,
            config.sampling.copy_strength,
            bool(config.augment.copies),
            jax.process_index(),
            jax.process_count(),
        )

    peers.agree(config=to_json(config), data=source.fingerprint, versions=versions())

    # ---- durations, all in steps ----------------------------------------------------------------
    def to_steps(
        duration: Mapping[str, float], name: str, total: int | None = None, least: int = 0
    ) -> int:
        return durations.to_steps(
            duration,
            name=name,
            batch_size=config.data.batch_size,
            examples=sampler.size,
            total_steps=total,
            least=least,
        )

    total_steps = to_steps(config.total, "total", least=1)
    in_run = functools.partial(to_steps, total=total_steps)
    log_every = to_steps(config.log_every, "log_every", total_steps, 1)
    eval_every = to_steps(config.eval.every, "eval.every", total_steps, 1)
    checkpoint_every = to_steps(config.checkpoint.every, "checkpoint.every", total_steps, 1)

    # ---- model, optimizer, steps ----------------------------------------------------------------
    model, initialise = state_lib.create_model(config, heads)
    initialise = feature_map.added(initialise, model.feature_dim, teachers.width)
    scale = optim.lr_scale(config)
    schedule = optim.create_schedule(config.schedule, total_steps, in_run, scale)
    optimizer = optim.create_optimizer(
        config.optim, schedule, model.parameters, feature_map.names(teachers.width)
    )
    abstract = state_lib.abstract(config, initialise, optimizer, mesh)
    steps_per_epoch = sampler.size / config.data.batch_size
    train_steps = image_sizes.TrainSteps(
        config,
        in_run,
        functools.partial(
            step_lib.make_train_step,
            config,
            model,
            optimizer,
            abstract,
            steps_per_epoch=steps_per_epoch,
            switches=weights.switches(config.heads, in_run),
            teachers=teachers,
        ),
    )
    eval_step = step_lib.make_eval_step(config, model)

    # ---- start: from the last checkpoint, else fresh (random or pretrained weights) --------------
    claim = run.Claim(workdir)
    checkpoints = CheckpointWriter(workdir / "checkpoints", config.eval.best_mode)
    skipped = run.skipped_steps(workdir)
    peers.agree(workdir={"checkpoint": checkpoints.last, "skipped_steps": sorted(skipped)})
    if checkpoints.last is not None:
        state, meta = checkpoints.resume(abstract)
        if meta["fingerprint"] != source.fingerprint:
            raise UserError(
                f"{workdir} was trained on other data than {config.data.source or source.name}; "
                "give it that data again, or use another --workdir"
            )
        # Empty in runs from before there were counts.
        if meta["facts"].get("counts") and meta["facts"]["counts"] != facts.counts:
            raise UserError(
                f"{workdir} was trained on other images than config.data.split gives now; go on "
                "with the version of agejax that began it, or use another --workdir"
            )
        distillation.check_same(workdir, meta, teachers)
        best, evaluated = Best(**meta["best"]), meta["evaluated"]
        if best.step not in (None, *checkpoints.steps):
            best = Best.left(checkpoints, int(state.step) - (not evaluated), eval_every)
            if best != Best.summarised(workdir):  # a run that was finished saves nothing more
                print(f"the best checkpoint is lost; from now on it is {best}", flush=True)
        clock.add(meta["seconds"])
        print(f"resuming {workdir} at step {int(state.step):,}", flush=True)
    else:
        with clock("compile"):
            trained = warm_start.of(config, heads, source, train_rows)
            state = state_lib.create(config, initialise, optimizer, mesh, trained)
        peers.agree_on_weights(state.params)
        best, evaluated, meta = Best(), True, {}
    with clock("features"):
        features = frozen.compute(config, model, state, source, rows, mesh)
    batches = dataclasses.replace(batches, features=features)
    start_step = step = int(state.step)
    if jax.process_index() == 0:
        files.write_json(workdir / "config.json", to_json(config))
    log = TrainLog(
        workdir,
        start_step=start_step,
        total_steps=total_steps,
        batch_size=config.data.batch_size,
        steps_per_epoch=steps_per_epoch,
        clock=clock,
        pending=meta.get("pending", {}),
    )

    def evaluate() -> dict[str, Any] | None:
        """Metrics of the val split; None where there is none, or SIGTERM came first."""
        if val_rows is None:
            return None
        val = pipeline.evaluation_batches(source, val_rows, config.eval.batch_size, features)
        predictions = predict_batches(
            eval_step, *state.averaged(), val, mesh, stop=lambda: stop.requested
        )
        if predictions is None:
            return None
        labels = {k: v[val_rows] for k, v in source.labels.items()}
        return metrics.evaluate(
            predictions,
            *heads_lib.derive(heads, labels, source.label_names),
            duplicates=source.groups[val_rows],
            floor_age=facts.medians.get("age"),
        )

    profile = Profile(
        workdir,
        config.profile,
        start_step,
        lambda: train_steps.last.lower(abstract, batch).compile(),
        config.data.batch_size,
    )

    # ---- the loop -------------------------------------------------------------------------------
    val_metrics: dict[str, Any] | None = None
    with (
        contextlib.closing(claim),
        contextlib.closing(checkpoints),
        contextlib.closing(batches.iterate(start_step, total_steps, config.data.workers)) as read,
        StopOnSignal() as stop,
        Watchdog(config.watchdog) as watchdog,
        profile,
        log,
        clock("step"),
    ):
        while True:
            stop.agree(step)
            watchdog.feed()
            profile.at(step, state)
            value = None
            eval_due = step > 0 and (step % eval_every == 0 or step == total_steps)
            eval_due &= val_rows is not None
            stopping = stop.requested
            save_due = eval_due or step % checkpoint_every == 0 or step == total_steps
            # Where only a signal asks for a checkpoint, metrics.jsonl gets no row of its own.
            pending = log.take_pending() if stopping and not save_due else {}
            if (step > start_step and (save_due or stopping)) or not evaluated:
                log.flush()  # raises where a loss was not finite: such a state is never saved
                if eval_due:
                    with clock("eval"):
                        val_metrics = evaluate()
                    if val_metrics:
                        value = metrics.lookup(val_metrics, config.eval.best)
                        best = best.update(value, step, config.eval.best_mode)
                        log.evaluation(step, metrics.scalars(val_metrics))
                    else:
                        stopping = True  # a signal cut the evaluation short
                evaluated = value is not None or not eval_due
                with clock("checkpoint"):
                    checkpoints.save(
                        state,
                        {
                            "config": to_json(config),
                            "fingerprint": source.fingerprint,
                            "facts": dataclasses.asdict(facts),
                            "distill": teachers.facts,
                            "best": dataclasses.asdict(best),
                            "evaluated": evaluated,
                            "pending": pending,
                            "seconds": clock.seconds,
                            "versions": versions(),
                        },
                        value,
                    )
            enough = 0 < config.eval.patience <= best.stale
            if value is not None:
                enough |= stop_after(step, value)
            if step == total_steps or stopping or enough:
                break

            with clock("input"):
                batch = sharding.put_batch(next(read), mesh) | {"teachers": teachers.arrays}
            if step + 1 in skipped:
                step += 1
                state = dataclasses.replace(state, step=state.step + 1)
                continue
            with train_steps.at(step, clock, log) as train_step:
                state, sums = train_step(state, batch)
            step += 1
            log.add(step, sums)
            if step % log_every == 0:
                log.report()
        jax.block_until_ready(state)
        with clock("checkpoint"):
            checkpoints.wait()

    # ---- the end --------------------------------------------------------------------------------
    if stop.requested:
        print(f"stopped by a signal at step {step:,}; the same command goes on from there")
        return None
    seconds = {"input": 0.0} | clock.seconds
    summary = {
        "name": workdir.name,
        "steps": step,
        "epochs": step * config.data.batch_size / sampler.size,
        "best": dataclasses.asdict(best),
        "last": val_metrics or evaluate(),
        "images_per_second": step * config.data.batch_size / (seconds["step"] + seconds["input"]),
        "seconds": seconds,
        "parameters": sum(state.params[name].size for name in model.parameters),
        "examples": {name: len(r) for name, r in rows.items()},
        "facts": dataclasses.asdict(facts),
        "distill": teachers.facts,
        "skipped": len(source.skipped),
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": versions(),
    }
    if jax.process_index() == 0:
        files.write_json(workdir / "summary.json", summary)
    return summary


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far, and how many came after it."""

    value: float | None = None
    step: int | None = None
    stale: int = 0

    def update(self, value: float, step: int, mode: str) -> Best:
        """With one more evaluation; a tie is not better."""
        sign = 1 if mode == "min" else -1
        if self.value is None or sign * value < sign * self.value:
            return Best(value, step)
        return dataclasses.replace(self, stale=self.stale + 1)

    @classmethod
    def left(cls, checkpoints: Checkpoints, step: int, eval_every: int) -> Best:
        """The best of the checkpoints that are left, where the best one was set aside as damaged.

        Args:
          step: up to which the run has evaluated.
          eval_every: in steps.
        """
        best = checkpoints.best
        value = None if best is None else checkpoints.value(best)
        if best is None or value is None:
            return cls()
        return cls(value, best, step // eval_every - best // eval_every)

    @classmethod
    def summarised(cls, workdir: pathlib.Path) -> Best | None:
        """The best that a finished run wrote to its summary.json; None where it has none."""
        with contextlib.suppress(UserError, LookupError, TypeError):
            summary = files.read_json(workdir / "summary.json", dict, "")
            return cls(**summary["best"])
        return None

    def __str__(self) -> str:
        return "none" if self.step is None else f"step {self.step:,} with {self.value:.4g}"


class StopOnSignal:
    """Turns SIGTERM and SIGINT into a request that the loop honours between two steps.

    Several processes must stop at the same step: there JAX listens for SIGTERM in their stead.
    """

    requested = False

    def __enter__(self) -> StopOnSignal:
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._previous = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def agree(self, step: int) -> None:
        """Asks all processes, before every step, whether any of them was told to stop."""
        if jax.process_count() > 1:
            self.requested = multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        # A second signal means now.
        signal.signal(number, self._previous[signal.Signals(number)])


def versions() -> dict[str, str]:
    """Of the libraries that a result depends on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"agejax": __version__} | {name: metadata.version(name) for name in names}
