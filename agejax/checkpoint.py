"""Checkpoints by orbax: the last two and the best; restored onto whatever devices are there."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from agejax.errors import UserError, full_disk
from agejax.state import TrainState

SPARE = 2**20  # bytes that a checkpoint takes beside its arrays


class Checkpoints:
    """The checkpoints of one run, in `folder`, each with items `state` and `meta` (JSON).

    Args:
      best_mode: "min" or "max" of the value given to `save`.

    orbax reads the value of every step when it opens the folder, and ends where it cannot: such a
    step is set aside first, as `restore` does with others that are damaged.
    """

    def __init__(self, folder: pathlib.Path, best_mode: str = "min") -> None:
        sign = {"min": -1.0, "max": 1.0}.get(best_mode)
        if sign is None:
            raise UserError(f"config.eval.best_mode: {best_mode!r} is not one of min, max")
        self._sign, self._folder = sign, folder
        self._full = (
            f"disk full while saving a checkpoint in {folder}: free some space and start again; "
            "the run resumes from the checkpoint before"
        )
        values = sorted(folder.glob("[0-9]*/metrics/metrics")) if jax.process_index() == 0 else []
        self._set_aside(
            {
                int(path.parents[1].name): ValueError(f"{path} is damaged")
                for path in values
                if not _is_json(path)
            }
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
                # orbax asks the wall clock: no jump of it is as wide as this. The watchdog sees
                # what really hangs.
                async_options=ocp.AsyncOptions(timeout_secs=10**10),
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
        meta = meta | {"checksum": checksum(state)}
        metrics = None if value is None else {"value": float(value)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        # Asked first, as what a disk that fills up meanwhile ends is many threads of orbax.
        size = sum(shard.data.nbytes for leaf in jax.tree.leaves(state)
                   for shard in leaf.addressable_shards if shard.replica_id == 0)  # fmt: skip
        if shutil.disk_usage(self._folder).free < size + SPARE:
            raise UserError(self._full)
        with full_disk(self._full):
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, like: Any, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """(state, meta) of a step, by default the last; where that is damaged, the one before it.

        What is damaged is set aside in `damaged`, beside the folder, and said on stderr.

        Args:
          like: a TrainState of jax.ShapeDtypeStruct with shardings, as `state.abstract` makes.

        Raises:
          UserError: that step, or every step, is damaged. Nothing is moved then.
        """
        if step is not None:
            return self._restore(like, step)
        damaged: dict[int, Exception] = {}
        for each in reversed(self.steps):
            try:
                restored = self._restore(like, each)
            except UserError as error:
                damaged[each] = error
                continue
            self._set_aside(damaged)
            if damaged:
                self._manager.reload()
            return restored
        raise next(iter(damaged.values()))

    def _restore(self, like: Any, step: int) -> tuple[TrainState, dict[str, Any]]:
        items = self._read(step, state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
        if checksum(items.state) != items.meta.get("checksum", checksum(items.state)):
            raise self._damaged(step, "its numbers are not those that were saved")
        return items.state, items.meta

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON data saved with a step.

        Raises:
          UserError: it is damaged.
        """
        return self._read(step, meta=ocp.args.JsonRestore()).meta

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # of every kind, as each layer below has its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self._damaged(step, reason) from error

    def _damaged(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self._folder / str(step)} cannot be restored: {reason[:200]}; remove it to go on "
            f"from another ({', '.join(str(s) for s in self.steps if s != step) or 'none left'})"
        )

    def _set_aside(self, damaged: dict[int, Exception]) -> None:
        """Called by all processes at once; it is the first one that moves them."""
        for step, error in damaged.items():
            print(f"{error}: set aside", file=sys.stderr, flush=True)
            if jax.process_index() == 0:
                target = self._folder.parent / "damaged"
                target.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(target / f"{step}-{len(list(target.iterdir()))}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")

    def wait(self) -> None:
        """Blocks until everything saved is on disk; raises `UserError` if the disk was full."""
        with full_disk(self._full):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and raises what it does."""
        with full_disk(self._full):
            self._manager.close()


def _is_json(path: pathlib.Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def checksum(state: Any) -> int:
    """A number that any changed bit of any array changes, the same however these are sharded.

    Formats below keep none: a flipped bit in a compressed block comes out as another number.
    """
    total = 0
    for i, leaf in enumerate(jax.tree.leaves(state)):
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:  # each part of an array once
                data = np.ascontiguousarray(shard.data)
                words = data.reshape(-1).view(f"u{data.dtype.itemsize}")
                total += (2 * i + 1) * int(words.sum(dtype=np.uint64))
    if jax.process_count() > 1:
        total = int(multihost_utils.process_allgather(np.uint32(total % 2**32)).astype(int).sum())
    return total % 2**32
