"""Checkpoints by orbax: the last two and the best; restored onto whatever devices are there."""

from __future__ import annotations

import pathlib
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from agejax.errors import UserError, full_disk
from agejax.state import TrainState


class Checkpoints:
    """The checkpoints of one run, in `folder`, each with items `state` and `meta` (JSON).

    Args:
      best_mode: "min" or "max" of the value given to `save`.
    """

    def __init__(self, folder: pathlib.Path, best_mode: str = "min") -> None:
        sign = {"min": -1.0, "max": 1.0}.get(best_mode)
        if sign is None:
            raise UserError(f"config.eval.best_mode: {best_mode!r} is not one of min, max")
        self._sign = sign
        self._full = (
            f"disk full while saving a checkpoint in {folder}: free some space and start again; "
            "the run resumes from the checkpoint before"
        )
        best = managers.BestN(get_metric_fn=self._rank, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                # best_fn makes orbax keep the metrics; the policy decides what stays.
                best_fn=self._rank,
                best_mode="max",
                preservation_policy=managers.AnyPreservationPolicy([managers.LatestN(2), best]),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )

    def _rank(self, metrics: dict[str, float]) -> float:
        return self._sign * metrics["value"]

    @property
    def last(self) -> int | None:
        """The newest complete step."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """All complete steps there are."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step with the best value, the newest one where none was evaluated."""
        return self._manager.best_step() or self.last

    def save(self, state: TrainState, meta: dict[str, Any], value: float | None = None) -> None:
        """Writes a checkpoint of `state`; returns once it may be donated.

        Args:
          meta: JSON data.
          value: what config.eval.best names, where this step was evaluated.

        Raises:
          UserError: the disk is full. Earlier checkpoints stay whole.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            if value is None:
                return
            # Saved when a signal cut its evaluation short; now it has a value.
            self._manager.delete(step)
        metrics = None if value is None else {"value": float(value)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        with full_disk(self._full):
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, like: Any, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """(state, meta) of a step, by default the last.

        Args:
          like: a TrainState of jax.ShapeDtypeStruct with shardings, as `state.abstract` makes.
        """
        step = self.last if step is None else step
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore()
            ),
        )
        return items.state, items.meta

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON data saved with a step."""
        return self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        ).meta

    def wait(self) -> None:
        """Blocks until everything saved is on disk; raises `UserError` if the disk was full."""
        with full_disk(self._full):
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
