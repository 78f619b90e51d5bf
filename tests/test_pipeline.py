import contextlib
import multiprocessing
import os
import signal
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from agejax.config import check
from agejax.data import draws, pipeline, sampling, sources
from agejax.errors import UserError


@pytest.fixture(scope="module")
def source(faces, cache):
    return sources.load("utkface", str(faces), image_size=32, cache_dir=str(cache))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def batches_of(source, **changes):
    rows = np.arange(0, len(source.ids), 2)
    sampler = sampling.Sampler(np.linspace(1, 5, len(rows)), len(rows), seed=3)
    return pipeline.TrainBatches(source, rows, sampler, batch_size=8, **changes)


@given(n=st.integers(1, 96), batch_size=st.integers(1, 40))
def test_an_evaluation_counts_every_row_once_and_in_order(source, n, batch_size):
    rows = np.arange(n)[::-1]
    seen = []
    for batch in pipeline.evaluation_batches(source, rows, batch_size):
        assert len(batch["image"]) == batch_size
        seen += batch["index"][batch["weight"] > 0].tolist()
    assert seen == rows.tolist()


def test_a_batch_holds_the_images_and_labels_of_its_rows(source):
    batch = batches_of(source)[5]
    np.testing.assert_array_equal(batch["image"], source.images[batch["index"]])
    np.testing.assert_array_equal(batch["age"], source.labels["age"][batch["index"]])
    assert (batch["index"] % 2 == 0).all()
    assert batch["image"].dtype == np.uint8
    assert batch["index"].dtype == np.int32


def test_the_slices_of_all_processes_make_the_batch_of_one(source):
    whole = batches_of(source, copy_strength=2.0)[7]
    parts = [
        batches_of(source, copy_strength=2.0, process_index=i, process_count=4)[7] for i in range(4)
    ]
    same({k: np.concatenate([p[k] for p in parts]) for k in whole}, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_from_any_step_with_any_workers_gives_the_same_batches(source, workers):
    batches = batches_of(source, copy_strength=2.0)
    read = batches.iterate(11, 15, workers)
    for step, batch in zip(range(11, 15), read, strict=True):
        same(batch, batches[step])


def test_ctrl_c_leaves_workers_alone_from_their_start(source, capfd):
    done = threading.Event()
    struck = set()

    def strike():
        while not done.wait(0.002):
            for worker in multiprocessing.active_children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGINT)
                    struck.add(worker.pid)

    thread = threading.Thread(target=strike)
    thread.start()
    read = batches_of(source).iterate(0, 9, workers=2)
    try:
        same(next(read), batches_of(source)[0])
        same(next(read), batches_of(source)[1])
    finally:
        done.set()
        thread.join()
        read.close()
    assert len(struck) == 2
    assert capfd.readouterr().err == ""
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


class Deadly(pipeline.TrainBatches):
    """Ends the process that reads it."""

    def __getitem__(self, step):
        os._exit(1)


def test_others_go_on_where_a_worker_died(source, capsys):
    batches = batches_of(source)
    read = batches.iterate(0, 60, workers=1)
    same(next(read), batches[0])
    for worker in multiprocessing.active_children():
        worker.kill()
    for step, batch in zip(range(1, 60), read, strict=True):
        same(batch, batches[step])
    assert "an input worker died before step" in capsys.readouterr().err


def test_workers_that_die_of_the_same_batch_are_an_error(source):
    made = batches_of(source)
    read = Deadly(made.source, made.rows, made.sampler, made.batch_size).iterate(0, 9, workers=1)
    with pytest.raises(
        UserError, match=r"config\.data\.workers: 1; they died before .* of step 1,"
    ):
        list(read)


def test_later_draws_of_a_row_in_an_epoch_are_augmented_harder(source):
    batches = batches_of(source, copy_strength=2.0)
    drawn = [batches[step] for step in range(len(batches.rows) // 8)]
    index = np.concatenate([b["index"] for b in drawn])
    strength = np.concatenate([b["strength"] for b in drawn])
    assert set(strength) == {1.0, 2.0}
    rows, counts = np.unique(index, return_counts=True)
    for row, count in zip(rows, counts, strict=True):
        assert sorted(strength[index == row]) == [1.0] + [2.0] * (count - 1)


def test_density_sampling_draws_rare_ages_more_often(source):
    config = tiny.get_config().sampling
    rows = np.arange(len(source.ids))
    sampler = sampling.Sampler(*draws.weigh(config, source, rows), 0)
    counts = np.bincount(sampler.indices(np.arange(100 * len(rows))), minlength=len(rows)) / 100
    age = source.labels["age"]
    neighbours = (np.abs(age[:, None] - age[None]) <= 5).sum(axis=1)
    assert counts[neighbours <= 6].mean() > counts[neighbours >= 12].mean()
    unknown = tiny.get_config()
    unknown.sampling.kind = "dense"
    with pytest.raises(UserError, match=r"config\.sampling\.kind"):
        check(unknown)
