"""grain: step -> this process's slice of the global batch. Random access makes resume exact."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from multiprocessing import resource_tracker

import grain
import jax
import numpy as np
from absl import flags

from agejax.data import sampling
from agejax.data.features import CachedFeatures
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.logging import console, progress
from agejax.process import memory

HostBatch = dict[str, np.ndarray]

READ_AHEAD = 4  # batches
WORKER_DIED = "Worker process was terminated unexpectedly"  # in grain's error message


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """`TrainBatches(...)[step]` is this process's slice of the global batch of `step`, 0-based.

    Attributes:
      rows: of the source, the training split.
      batch_size: global.
      copy_strength: augmentation strength of a row's second and later draws in an epoch.
      copy_recipe: whether those have an augmentation of their own; a batch's strengths then are
        [B, 2], of the originals' recipe and of the copies'.
      features: the frozen backbone's features, in place of the images. A row's draws cycle through
        its views, from epoch to epoch and from copy to copy.
      resident: batches are only the `draws`: images and labels lie on the devices.
      process_index, process_count: which slice. Not asked of JAX here: in a grain worker process
        that would start a backend, which on a GPU takes its memory.
    """

    source: Source
    rows: np.ndarray
    sampler: sampling.Sampler
    batch_size: int
    copy_strength: float = 1.0
    copy_recipe: bool = False
    process_index: int = 0
    process_count: int = 1
    features: CachedFeatures | None = None
    resident: bool = False

    def __getitem__(self, step: int) -> HostBatch:
        return self._of(self.draws(step))

    def several(self, step: int, count: int) -> HostBatch:
        """The batches of `count` steps from `step` on, every array with a first axis [count]."""
        batch = self._of(self.draws(step, count))
        return {name: v.reshape(count, -1, *v.shape[1:]) for name, v in batch.items()}

    def draws(self, step: int, count: int = 1) -> HostBatch:
        """Which rows each of `count` steps from `step` on draws, one after the other, and how.

        Returns:
          {"row": int32 [B], numbers in `rows`; "strength": float32 [B] or [B, 2]; with features
          "view": int32 [B]}.
        """
        share = self.batch_size // self.process_count
        # Between two steps' slices lie those of the other processes.
        start = np.arange(step, step + count) * self.batch_size + self.process_index * share
        positions = (start[:, None] + np.arange(share)).reshape(-1)
        row = self.sampler.indices(positions)
        drawn = {"row": row.astype(np.int32), "strength": np.ones(len(row), np.float32)}
        if self.features is not None:
            drawn["view"] = np.zeros(len(row), np.int32)
        if self.features is not None and len(self.features.views) > 1:
            rows, epoch = self.rows[row], positions // self.sampler.size
            turn = rows + epoch + self.sampler.occurrence(positions)
            drawn["view"] = (turn % len(self.features.views)).astype(np.int32)
        if self.copy_strength != 1.0 or self.copy_recipe:
            later = self.sampler.occurrence(positions) > 0
            strength = np.where(later, np.float32(self.copy_strength), np.float32(1))
            if self.copy_recipe:
                strength = strength[:, None] * np.stack([~later, later], axis=1)
            drawn["strength"] = strength
        return drawn

    def _of(self, draws: HostBatch) -> HostBatch:
        if self.resident:
            return draws
        rows = self.rows[draws["row"]]
        batch = gather(self.source, rows, self.features, draws.get("view", 0))
        return batch | {"strength": draws["strength"]}

    def iterate(
        self, start: int, stop: int, workers: int, calls: Callable[[int], int] | None = None
    ) -> Generator[HostBatch, None, None]:
        """Batches of steps `start` to `stop`, read ahead by threads or grain worker processes.

        The position is the step itself, not grain's iterator state, which would bind a checkpoint
        to the number of workers. If a worker dies, for example out of memory, new ones continue.

        Args:
          calls: step -> how many steps from there on share a batch: those of `several` where they
            are more than one; None: one.

        Raises:
          UserError: workers died twice without a batch in between.
        """
        step, died_at = start, -1
        while step < stop:
            try:
                for batch in self._read(step, stop, workers, calls):
                    yield batch
                    step += calls(step) if calls else 1
            except RuntimeError as error:
                if WORKER_DIED not in str(error):
                    raise
                if step == died_at:
                    raise UserError(
                        f"config.data.workers: {workers}; they died before they had read the batch "
                        f"of step {step + 1}, perhaps for lack of memory; set fewer, or 0 to read "
                        "in threads"
                    ) from error
                died_at = step
                console.warning(
                    f"an input worker died before step {step + 1}; new workers continue from there"
                )

    def _read(
        self, start: int, stop: int, workers: int, calls: Callable[[int], int] | None
    ) -> Generator[HostBatch, None, None]:
        if calls is None:
            parts = grain.MapDataset.range(start, stop).map(self.__getitem__)
        else:
            places = []
            while start < stop:
                places.append((start, calls(start)))
                start += places[-1][1]
            parts = grain.MapDataset.source(places).map(self._at)
        dataset = parts.to_iter_dataset(
            grain.ReadOptions(num_threads=2, prefetch_buffer_size=READ_AHEAD)
        )
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain passes absl's flags to its workers
            options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
        iterator = iter(dataset)
        try:
            if workers:
                yield _first(iterator)
            yield from iterator
        finally:
            iterator.close()

    def _at(self, place: tuple[int, int]) -> HostBatch:
        step, count = place
        return self[step] if count == 1 else self.several(step, count)


def _first(iterator: Iterator[HostBatch]) -> HostBatch:
    """The first batch of grain's iterator, which starts its workers at the first request.

    Ctrl-C reaches every process of a terminal; workers must ignore it, as their parent closes them.
    Threads and processes inherit the mask of blocked signals, and all that grain starts come from
    the thread that asks here, with SIGINT blocked. The main thread still gets its Ctrl-C.
    """
    first: futures.Future[HostBatch] = futures.Future()

    def read() -> None:
        try:
            first.set_result(next(iterator))
        except BaseException as error:  # raised in the waiting thread
            first.set_exception(error)

    resource_tracker.ensure_running()  # started in grain's thread, it would unblock SIGINT there
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        threading.Thread(target=read, name="first_batch", daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return first.result()


def _start_worker(worker: int, count: int) -> None:
    """Sets up a worker process: it keeps freed memory, and ends when its parent has died.

    grain itself does not watch the parent.
    """
    memory.keep_freed()
    parent = multiprocessing.parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, name="end_with_parent", daemon=True).start()


def evaluation_batches(
    source: Source, rows: np.ndarray, batch_size: int, features: CachedFeatures | None = None
) -> Iterator[HostBatch]:
    """Every row once, in order; the last batch is padded with rows of weight 0.

    With several processes each takes its slice of every global batch.

    Args:
      features: in place of the images.
    """
    share = batch_size // jax.process_count()
    for start in range(0, len(rows), batch_size):
        mine = rows[start : start + batch_size]
        real = np.arange(batch_size) < len(mine)
        mine = np.pad(mine, (0, batch_size - len(mine)), mode="edge")
        part = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        yield gather(source, mine[part], features) | {"weight": real[part].astype(np.float32)}


def counted(batches: Iterable[HostBatch], what: str, total: int) -> Iterator[HostBatch]:
    """Passes evaluation batches on, and reports how many of their `total` images are done.

    Args:
      what: is done to them, such as "scored".
    """
    with progress.Count(what, total) as count:
        for batch in batches:
            yield batch
            count.add(int(batch["weight"].sum()))


def gather(
    source: Source,
    rows: np.ndarray,
    features: CachedFeatures | None = None,
    view: np.ndarray | int = 0,
) -> HostBatch:
    """The batch of `rows` [B]: every label, unit weights, and images uint8 [B, S, S, 3].

    Args:
      features: their features f32 [B, C] take the place of the images.
      view: of the features, int [B] or [].
    """
    if features is None:
        inputs = {"image": source.take(rows)}
    else:
        inputs = {"features": features.take(rows, view)}
    return {
        **inputs,
        **{name: values[rows] for name, values in source.labels.items()},
        "weight": np.ones(len(rows), np.float32),
        "strength": np.ones(len(rows), np.float32),
        "index": rows.astype(np.int32),
    }
