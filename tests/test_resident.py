"""Data on the devices, and several steps per call: the batches and results of a step at a time."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupted_run import signal_before
from test_frozen import augmented, frozen_config
from test_resume import last_checkpoint

import tiny
from agejax.data import opening, pipeline, sampling
from agejax.data.features import CachedFeatures
from agejax.errors import UserError
from agejax.logging.stopwatch import Stopwatch
from agejax.train import train
from agejax.training import calls, resident, sharding
from agejax.training.calls import Calls, Feed

MODES = [("off", 8), ("on", 1), ("on", 8)]


@pytest.fixture(scope="module")
def config_of(faces, cache):
    """28 steps of which calls of 8 leave 6 over before each row of the log."""

    def make(mode, **changes):
        config = tiny.get_config()
        config.data.source, config.data.cache_dir = str(faces), str(cache)
        config.data.resident, config.steps_per_call = mode
        config.total, config.eval.every = {"steps": 28}, {"steps": 28}
        config.log_every = config.checkpoint.every = {"steps": 14}
        config.optim.name, config.schedule.lr = "sgd", 0.01
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return config.lock()

    return make


@pytest.fixture(scope="module")
def plain(config_of, tmp_path_factory):
    """The run of a step at a time, with batches from the host."""
    workdir = tmp_path_factory.mktemp("plain") / "run"
    train(config_of(("off", 1)), workdir)
    return workdir


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("images_per_second", "input_wait")}
        for line in lines
    ]


def close(one, other):
    """Runs with the same rows and the same arrays, but for rounding.

    Batch norm over 16 images of one pixel each multiplies it from step to step.
    """
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-3)
    (step, arrays), (other_step, others) = last_checkpoint(one), last_checkpoint(other)
    assert step == other_step
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), arrays, others
    )


@pytest.fixture(scope="module")
def resident_8(config_of, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("resident") / "run"
    train(config_of(("on", 8)), workdir)
    return workdir


@pytest.mark.parametrize("mode", MODES[:2])
def test_streamed_and_resident_one_step_or_eight_train_the_same(config_of, plain, tmp_path, mode):
    train(config_of(mode), tmp_path / "run")
    close(tmp_path / "run", plain)


def test_eight_steps_a_call_on_resident_data_train_the_same(plain, resident_8):
    close(resident_8, plain)


@pytest.mark.parametrize("devices", [2, 8])
def test_several_devices_train_the_same(config_of, plain, tmp_path, devices):
    train(config_of(("on", 8), sharding__devices=devices), tmp_path / "run")
    close(tmp_path / "run", plain)


def test_a_run_stopped_between_calls_ends_bit_equal(config_of, resident_8, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "put_batch", sharding.put_batch)  # undone at the end
    put_batch = sharding.put_batch
    for at in (2, 3):  # batches: the second is put while the first call runs
        signal_before(at, "SIGTERM")
        assert train(config_of(("on", 8)), tmp_path / "run") is None
        monkeypatch.setattr(sharding, "put_batch", put_batch)
    assert train(config_of(("on", 8)), tmp_path / "run") is not None
    assert rows(tmp_path / "run") == rows(resident_8)
    jax.tree.map(
        np.testing.assert_array_equal,
        last_checkpoint(tmp_path / "run")[1],
        last_checkpoint(resident_8)[1],
    )


@pytest.fixture
def bad_step(monkeypatch):
    """Makes the loss of the fourth step NaN."""
    of = pipeline.TrainBatches.several

    def spoilt(self, step, count):
        weight = np.ones((count, self.batch_size), np.float32)
        weight[3 - step : 4 - step] = np.nan
        return of(self, step, count) | ({"weight": weight} if step <= 3 else {})

    monkeypatch.setattr(pipeline.TrainBatches, "several", spoilt)


@pytest.mark.parametrize("where", ["on", "off"])
def test_a_step_that_is_not_finite_keeps_its_number_within_a_call(
    config_of, bad_step, tmp_path, capsys, where
):
    short = {"total": {"steps": 14}}
    with pytest.raises(UserError, match="loss is nan at step 4: training stopped"):
        train(config_of((where, 8), **short), tmp_path / "run")
    train(config_of((where, 8), nonfinite="rollback", **short), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "skipped_steps.json").read_text()) == [4]
    train(config_of((where, 8), nonfinite="skip", **short), tmp_path / "skip")
    (row,) = [row for row in rows(tmp_path / "skip") if "skipped" in row]
    assert row["skipped"] == pytest.approx(1 / 14)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4),
        last_checkpoint(tmp_path / "skip")[1],
        last_checkpoint(tmp_path / "run")[1],
    )


def test_calls_end_where_the_image_size_changes(config_of, tmp_path, capsys):
    sizes = {"schedule__image_size": (({"steps": 5}, 16),), "total": {"steps": 14}, "profile": 2}
    train(config_of(("off", 1), **sizes), tmp_path / "one")
    train(config_of(("on", 4), **sizes), tmp_path / "four")
    close(tmp_path / "four", tmp_path / "one")
    out = capsys.readouterr().out
    # The trace begins after whole calls, and is of whole ones: 4 + 1 steps of 16 px, then 4.
    assert "profile of 2 steps" in out
    assert "profile of 5 steps" in out
    page = (tmp_path / "four" / "profile" / "summary.md").read_text()
    shares = dict(re.findall(r"^\| (\w+) \|.* ([\d.]+)% \|$", page, re.MULTILINE))
    assert {"augmentation", "forward", "backward", "update"} <= shares.keys()


def test_cached_features_lie_on_the_devices(faces, cache, tmp_path):
    config = augmented(frozen_config(faces, cache, 3))
    config.log_every = {"steps": 4}
    train(config, tmp_path / "one")
    config.data.resident, config.steps_per_call = "on", 2
    train(config, tmp_path / "two")
    close(tmp_path / "two", tmp_path / "one")


# ---- the batches --------------------------------------------------------------------------------


class Features(CachedFeatures):
    """Features of `views` views whose values tell row and view."""

    def __init__(self, views):
        super().__init__(2, [{}] * views)

    def take(self, rows, view=0):
        return np.stack(np.broadcast_arrays(np.float32(rows), np.float32(view)), axis=1)


@pytest.fixture(scope="module")
def batches(config_of):
    source = opening.open_source(config_of(("off", 1)).data)
    columns = {"teacher/0/age": np.arange(len(source.ids) * 3).reshape(-1, 3).astype(np.float16)}
    source = dataclasses.replace(source, labels=source.labels | columns)
    rows = np.arange(0, len(source.ids), 2)
    sampler = sampling.Sampler(np.linspace(1, 5, len(rows)), len(rows), seed=3)
    return pipeline.TrainBatches(source, rows, sampler, 8, 1.5, True)


@pytest.mark.parametrize("features", [None, Features(1), Features(3)])
def test_several_steps_have_the_batches_of_each(batches, features):
    for process in range(2):
        mine = dataclasses.replace(
            batches, features=features, process_index=process, process_count=2
        )
        joined = mine.several(4, 3)
        for i in range(3):
            alone = mine[4 + i]
            assert alone.keys() == joined.keys()
            for name, values in alone.items():
                np.testing.assert_array_equal(joined[name][i], values, err_msg=name)


def test_a_process_computes_no_draws_of_the_others(batches, monkeypatch):
    asked, indices = [], sampling.Sampler.indices
    monkeypatch.setattr(
        sampling.Sampler, "indices", lambda self, at: asked.append(list(at)) or indices(self, at)
    )
    for process in range(2):
        dataclasses.replace(batches, process_index=process, process_count=2).several(4, 2)
    # Of 8 rows per step; those of step 4 are 32 to 39.
    assert asked == [[32, 33, 34, 35, 40, 41, 42, 43], [36, 37, 38, 39, 44, 45, 46, 47]]


@pytest.mark.parametrize("features", [None, Features(1), Features(3)])
@pytest.mark.parametrize("chunk", [resident.CHUNK, 7 * 32 * 32 * 3])  # whole columns, or 7 images
def test_rows_on_the_devices_give_the_batch_of_the_host(batches, monkeypatch, chunk, features):
    monkeypatch.setattr(resident, "CHUNK", chunk)
    mesh = sharding.create_mesh(2, 1)
    batches = dataclasses.replace(batches, features=features)
    table = resident.put(batches, mesh)
    assert sum(x.nbytes for x in table.values()) == resident.size_of(batches)
    draws = dataclasses.replace(batches, resident=True)[5]
    assert sum(x.nbytes for x in draws.values()) <= 8 * (4 + 4 + 8)
    step = jax.jit(resident.gathered)
    given_ = sharding.put_batch(draws, mesh) | {resident.TABLE: table}
    got, expected = step(given_), batches[5]
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
        assert got[name].dtype == values.dtype
    # Each device takes its rows from its own copy.
    program = step.lower(given_).compile().as_text()
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", program)
    assert got["index"].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 1)


@given(
    most=st.integers(1, 9),
    periods=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    ends=st.lists(st.integers(1, 40), min_size=1),
    skipped=st.sets(st.integers(1, 40), max_size=3),
)
def test_a_call_holds_no_step_at_which_something_is_due(most, periods, ends, skipped):
    """Compares with the rule for single steps; the loop looks at what is due between two calls."""
    chosen, step = Calls(most, periods, ends, skipped), 0

    def due(at):
        return at in ends or any(at % period == 0 for period in periods)

    def fits(count):
        return not any(map(due, range(step + 1, step + count))) and not (
            skipped.intersection(range(step + 1, step + count + 1)) and count > 1
        )

    while step < max(ends):
        assert chosen(step) == (most if fits(most) else 1)
        step += chosen(step)
    assert step == max(ends)


def test_the_next_batch_is_put_before_a_call_is_waited_for(batches, monkeypatch):
    events = []
    put_batch = sharding.put_batch
    monkeypatch.setattr(sharding, "put_batch", lambda *a: events.append("put") or put_batch(*a))
    monkeypatch.setattr(jax, "block_until_ready", events.append)
    feed = Feed(batches, Calls(2, (6,), (14,)), 0, 14, 0, sharding.create_mesh(1, 1),
                {"teachers": ()}, Stopwatch())  # fmt: skip
    shapes = []
    for call in range(7):
        count, batch = feed.take()
        shapes.append((count, batch["weight"].shape))
        assert batch["teachers"] == ()
        feed.ahead(call)
    feed.close()
    assert shapes == [(2, (2, 8))] * 7
    assert events == ["put", "put", "put", 0, "put", 1, "put", 2, "put", 3, "put", 4]
    assert calls.IN_FLIGHT == 2


# ---- whether they lie there ---------------------------------------------------------------------


class Device:
    """A device of a GPU's kind, with so much memory."""

    platform, process_index = "gpu", 0

    def __init__(self, memory):
        self.memory = memory

    def memory_stats(self):
        return self.memory and {"bytes_limit": self.memory}


class Mesh:
    def __init__(self, *memory):
        self.devices = np.array([Device(each) for each in memory])


def test_auto_takes_an_accelerator_with_four_times_the_memory(batches, capsys):
    size = resident.size_of(batches)
    images = len(batches.rows) * 32 * 32 * 3
    assert images < size < 1.05 * images
    assert not resident.wanted("auto", batches, sharding.create_mesh(2, 1))
    assert capsys.readouterr().err == ""
    assert resident.wanted("auto", batches, Mesh(4 * size, 5 * size))
    assert "config.data.resident: the training data takes 0 MiB" in capsys.readouterr().err
    assert not resident.wanted("auto", batches, Mesh(4 * size, 4 * size - 1))
    assert "MiB; batches are streamed\n" in capsys.readouterr().err
    assert not resident.wanted("auto", batches, Mesh(None))
    assert "a device has memory of unknown size; batches are" in capsys.readouterr().err
    assert resident.wanted("on", batches, Mesh(2 * size))
    assert not resident.wanted("off", batches, Mesh(8 * size))
    with pytest.raises(UserError, match=r"config\.data\.resident: .*; set it to auto or off"):
        resident.wanted("on", batches, Mesh(size))
