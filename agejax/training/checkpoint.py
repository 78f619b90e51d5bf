"""Checkpoints by orbax: the newest ones and the best; restored onto any devices.

`Checkpoints` reads a run's checkpoints and changes nothing, so that any number of processes may
read a run while it trains. `CheckpointWriter` is for the process that holds the run's claim (or the
processes of one run): only it saves, removes, cleans up and sets damaged checkpoints aside.
"""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from agejax import files
from agejax.errors import UserError, brief, of_the_machine
from agejax.files import full_disk, no_room
from agejax.logging import console
from agejax.training import vectors
from agejax.training.state import TrainState

if TYPE_CHECKING:  # orbax is imported where it is used: a released model does not need it
    from orbax.checkpoint import checkpoint_managers as managers

SPARE = 2**20  # bytes of a checkpoint besides its arrays
SIGNS = {"min": 1.0, "max": -1.0}  # factors that make the best value the smallest
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written
DELETED = "deleted"  # the folder to which checkpoints are moved before they are removed
PARTS = ("meta/metadata", "state/_METADATA", "state/manifest.ocdbt")  # in every complete checkpoint
# The keys of `meta` before it had a digest.
KEYS_WITHOUT_DIGEST = {
    "config", "fingerprint", "facts", "best", "evaluated", "seconds", "versions", "checksum",
}  # fmt: skip

LEAST = 2  # newest checkpoints that a run keeps: one may be damaged
READS = 20  # how often a reader tries another checkpoint if its own was removed

Restored = tuple[TrainState, dict[str, Any]]
T = TypeVar("T")


class VanishedError(UserError):
    """A checkpoint was removed while it was read: the training run keeps only the newest ones."""


class Checkpoints:
    """The checkpoints of one run, each with the items `state` and `meta` (JSON), read-only.

    Every call lists the folder again, since another process may save and remove checkpoints there.

    Args:
      folder: holds one folder per step.
      best_mode: "min" or "max" of the value given to `CheckpointWriter.save`.
    """

    def __init__(self, folder: pathlib.Path, best_mode: str = "min") -> None:
        self._folder, self._mode = folder, best_mode

    @property
    def steps(self) -> list[int]:
        """The saved steps, ascending, without partly removed ones that a killed process left."""
        leftovers = self._leftovers()
        return [step for step in self._folders() if step not in leftovers]

    @property
    def last(self) -> int | None:
        """The newest step."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step with the best value; the newest one if none was evaluated.

        Of equal values the earliest is the best, as in `best.Best`. If the value of an older step
        is damaged, the newest step records which is the best.

        Raises:
          UserError: the value of a step is damaged, and the newest step does not name the best.
        """
        steps = self.steps
        try:
            ranked = self._ranked(steps)
        except VanishedError:
            raise
        except UserError:
            named: int | None = self.meta(steps[-1])["best"]["step"]
            if named not in steps:
                raise
            return named
        return ranked[0] if ranked else None

    def value(self, step: int) -> float | None:
        """The metric that config.eval.best names, at a step; None if it was not evaluated.

        Raises:
          UserError: it is damaged.
        """
        meta = self.meta(step)
        value = meta["value"] if "value" in meta else self._value_beside(step)
        return None if value is None or math.isnan(value) else value

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON data saved with a step.

        Raises:
          UserError: it is damaged: it differs from what was saved.
        """
        meta: dict[str, Any] = self._read(
            step, lambda folder: json.loads((folder / "meta/metadata").read_text())
        )
        known = isinstance(meta, dict) and (
            meta.keys() <= KEYS_WITHOUT_DIGEST
            if "digest" not in meta
            else meta["digest"] == files.digest(meta)
        )
        if not known:
            raise self._damaged(step, "its facts and settings are not those that were saved")
        return meta

    def restore(self, like: Any, step: int) -> Restored:
        """(state, meta) of a step.

        Args:
          like: a TrainState of jax.ShapeDtypeStruct with shardings, as `state.abstract` makes, or
            the same `vectors.unpacked`, to get dicts of arrays.

        Raises:
          UserError: it is damaged.
          VanishedError: it was removed in the meantime.
        """
        meta = self.meta(step)
        import orbax.checkpoint as ocp

        reader = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        arguments = ocp.args.StandardRestore(vectors.unpacked(vectors.on_host(like)))
        state = self._read(
            step, lambda folder: reader.restore((folder / "state").absolute(), args=arguments)
        )
        if "checksum" in meta and checksum(state) != meta["checksum"]:
            raise self._damaged(step, "its numbers are not those that were saved")
        return vectors.packed(state, like), meta

    def _read(self, step: int, read: Callable[[pathlib.Path], T]) -> T:
        folder = self._folder / str(step)
        before = _identity(folder)
        try:
            return read(folder)
        except Exception as error:  # of any kind, as each layer below raises its own
            if before is None or _identity(folder) != before:
                raise VanishedError(
                    f"{folder} is not there any more; the run that trains there removed it"
                ) from error
            if of_the_machine(error):
                raise  # the checkpoint may be intact
            raise self._damaged(step, brief(error)) from error

    def _value_beside(self, step: int) -> float | None:
        """The value in orbax's own file."""

        def read(folder: pathlib.Path) -> float | None:
            path = folder / "metrics" / "metrics"
            return float(json.loads(path.read_text())["value"]) if path.exists() else None

        return self._read(step, read)

    def _ranked(self, steps: Iterable[int]) -> list[int]:
        return rank({step: self.value(step) for step in steps}, self._mode)

    def _folders(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def _leftovers(self) -> set[int]:
        """The steps of which an interrupted removal left a part.

        Nothing removes the newest step or the best one: if these lack a part, they are damaged.
        """
        steps = self._folders()
        parts = {step for step in steps if not _is_whole(self._folder / str(step))}
        whole = [step for step in steps if step not in parts]
        if not parts or not whole:
            return set()
        try:
            best = self.meta(whole[-1])["best"]["step"]
        except UserError:
            return set()
        return {step for step in parts if step < whole[-1] and step != best}

    def _damaged(self, step: int, reason: str) -> UserError:
        others = ", ".join(str(s) for s in self._folders() if s != step) or "none left"
        return UserError(
            f"{self._folder / str(step)} cannot be restored: {reason}; remove it to resume from "
            f"another ({others})"
        )


def again_if_vanished(read: Callable[[], T]) -> T:
    """Returns `read()`, called again whenever a checkpoint was removed while it read.

    Raises:
      VanishedError: this happened every time.
    """
    for _ in range(READS - 1):
        try:
            return read()
        except VanishedError:
            continue
    return read()


class CheckpointWriter(Checkpoints):
    """The checkpoints of the run that this process trains; it already holds the run's claim.

    Opening removes what a killed process left, and moves checkpoints with damaged facts or value to
    `damaged`, beside the folder.

    Args:
      folder, best_mode: as for `Checkpoints`.
      keep: how many of the newest ones stay; the best one stays too.

    Raises:
      UserError: every checkpoint is damaged. Nothing is moved then.
    """

    def __init__(self, folder: pathlib.Path, best_mode: str = "min", keep: int = LEAST) -> None:
        import orbax.checkpoint as ocp

        super().__init__(folder, best_mode)
        self._full = (
            f"cannot save a checkpoint in {folder}",
            "; the run resumes from the checkpoint before",
        )
        damaged = {}
        for step in self.steps:
            try:
                self._check_value(step)
            except UserError as error:
                damaged[step] = error
        if damaged and len(damaged) == len(self.steps):
            raise damaged[max(damaged)]
        leftovers = self._leftovers()
        self._set_aside(damaged)
        if jax.process_index() == 0:
            self._remove_deleted()
            for path in [*(folder / str(s) for s in leftovers), *folder.glob(f"*{UNFINISHED}*")]:
                shutil.rmtree(path)
        _wait_for_others("leftovers are removed")
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                # best_fn makes orbax store the metrics; the policy decides what stays.
                best_fn=lambda metrics: metrics["value"],
                preservation_policy=_NewestAndBest(best_mode, keep),
                # Renamed before it is removed, so that no reader takes a part for a checkpoint.
                todelete_subdir=DELETED,
                enable_async_checkpointing=True,
                # orbax uses the wall clock, which never jumps this far. The watchdog finds
                # what really hangs.
                async_options=ocp.AsyncOptions(timeout_secs=10**10),
            ),
        )

    def save(self, state: TrainState, meta: Mapping[str, Any], value: float | None = None) -> None:
        """Writes a checkpoint of `state`; returns once the state may be donated.

        Args:
          meta: JSON data.
          value: the metric that config.eval.best names, if this step was evaluated.

        Raises:
          UserError: the disk is full. Earlier checkpoints stay intact.
        """
        import orbax.checkpoint as ocp

        step = int(state.step)
        value = None if value is None else float(value)
        arrays = vectors.unpacked(vectors.on_host(state))
        kept = json.loads(json.dumps({**meta, "value": value, "checksum": checksum(arrays)}))
        kept["digest"] = files.digest(kept)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(kept)
        )
        if step in self._manager.all_steps():
            if value is None:
                return
            # It was saved when a signal interrupted its evaluation; now it has a value.
            self._manager.delete(step)
        # Checked first, since a disk that fills up later fails in many threads of orbax.
        size = sum(part.nbytes for leaf in jax.tree.leaves(arrays) for part in _own_parts(leaf))
        self.wait()
        if shutil.disk_usage(self._folder).free < size + SPARE:
            raise no_room(*self._full)
        metrics = None if value is None else {"value": value}
        with full_disk(*self._full):
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def resume(self, like: Any) -> Restored:
        """(state, meta) of the newest intact checkpoint.

        The best checkpoint is verified too, since predictions use it. Damaged ones are moved to
        `damaged`, beside the folder, and reported on stderr.

        Args:
          like: as for `restore`.

        Raises:
          UserError: every checkpoint is damaged. Nothing is moved then.
        """
        damaged: dict[int, UserError] = {}
        steps = self.steps
        restored = self._first_whole(like, self._ranked(steps), damaged)
        if restored is None:
            raise damaged[max(damaged)]
        newest = [step for step in reversed(steps) if step not in damaged]
        if int(restored[0].step) != newest[0]:
            del restored  # two states may not fit on the devices
            restored = self._first_whole(like, newest, damaged)
            assert restored is not None  # the best one is intact
        self._set_aside(damaged)
        if damaged:
            self._manager.reload()
        return restored

    def wait(self) -> None:
        """Blocks until everything saved is on disk; raises `UserError` if the disk was full."""
        with full_disk(*self._full):
            self._manager.wait_until_finished()
        if jax.process_index() == 0:
            self._remove_deleted()

    def close(self) -> None:
        """Waits and raises like `wait`."""
        with full_disk(*self._full):
            self._manager.close()
        if jax.process_index() == 0:
            self._remove_deleted()

    def _first_whole(
        self, like: Any, steps: Iterable[int], damaged: dict[int, UserError]
    ) -> Restored | None:
        """The first of `steps` that can be restored; adds those that cannot to `damaged`."""
        for step in steps:
            try:
                return self.restore(like, step)
            except UserError as error:
                damaged[step] = error
        return None

    def _check_value(self, step: int) -> None:
        """Raises `UserError` if a step's facts, or the value that orbax reads, are damaged."""
        meta, beside = self.meta(step), self._value_beside(step)
        value = meta.get("value", beside)
        if value != beside and not (value is not None and math.isnan(value)):
            raise self._damaged(step, "its value is not the one that was saved")

    def _set_aside(self, damaged: Mapping[int, Exception]) -> None:
        """Moves damaged checkpoints; all processes call it together, and the first one moves."""
        _wait_for_others("damaged checkpoints are found")
        for step, error in damaged.items():
            console.warning(f"{error}: set aside")
            if jax.process_index() == 0:
                target = self._folder.parent / "damaged"
                target.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(target / f"{step}-{len(list(target.iterdir()))}")
        _wait_for_others("damaged checkpoints are set aside")

    def _remove_deleted(self) -> None:
        shutil.rmtree(self._folder / DELETED, ignore_errors=True)


class _NewestAndBest:
    """Which checkpoints orbax keeps."""

    def __init__(self, mode: str, keep: int) -> None:
        self._mode, self._keep = mode, keep

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: managers.PreservationContext
    ) -> Sequence[bool]:
        values = {c.step: c.metrics["value"] if c.metrics else None for c in checkpoints}
        kept = {*sorted(values)[-self._keep :], *rank(values, self._mode)[:1]}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def rank(values: Mapping[int, float | None], mode: str) -> list[int]:
    """Steps, the best first; of equal values the earliest first; those without a value last.

    Args:
      values: step -> its value, None if it was not evaluated; of those the newest comes first.
      mode: "min" or "max".
    """
    known = {step: v for step, v in values.items() if v is not None and not math.isnan(v)}
    best_first = sorted(known, key=lambda step: (SIGNS[mode] * known[step], step))
    return best_first + sorted(values.keys() - known.keys(), reverse=True)


def checksum(state: Any) -> int:
    """A number that changes with any bit of any array, and does not depend on the sharding.

    The formats below have no checksum: a flipped bit in a compressed block gives another number.
    """
    total = 0
    for i, leaf in enumerate(jax.tree.leaves(state)):
        for part in _own_parts(leaf):
            data = np.ascontiguousarray(part)
            words = data.reshape(-1).view(f"u{data.dtype.itemsize}")
            total += (2 * i + 1) * int(words.sum(dtype=np.uint64))
    if jax.process_count() > 1:
        total = int(multihost_utils.process_allgather(np.uint32(total % 2**32)).astype(int).sum())
    return total % 2**32


def _own_parts(array: jax.Array | np.ndarray) -> list[Any]:
    """The parts of an array that this process counts and writes, of several with the same ones."""
    if isinstance(array, np.ndarray):  # every process has all of it
        return [array] if jax.process_index() == 0 else []
    return [shard.data for shard in array.addressable_shards if shard.replica_id == 0]


def _wait_for_others(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _is_whole(folder: pathlib.Path) -> bool:
    return all((folder / part).exists() for part in PARTS)


def _identity(folder: pathlib.Path) -> tuple[int, int] | None:
    """What distinguishes a folder from another of the same name, None if there is no folder."""
    try:
        state = folder.stat()
    except OSError:
        return None
    return state.st_ino, state.st_ctime_ns
