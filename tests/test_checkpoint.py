"""Checkpoints: which are kept, which is best, what readers leave alone, and effects of damage."""

import dataclasses
import errno
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from agejax import files
from agejax import heads as heads_lib
from agejax.errors import UserError
from agejax.runs import run_folder
from agejax.runs.run import Run
from agejax.settings import to_json
from agejax.train import train
from agejax.training import optim, sharding, vectors
from agejax.training import state as state_lib
from agejax.training.checkpoint import Checkpoints, CheckpointWriter, VanishedError, rank
from agejax.training.state import TrainState

META = {
    "config": {"seed": 0}, "fingerprint": "f", "facts": {"means": {"age": 33.5}},
    "best": {"value": None, "step": None, "stale": 0}, "evaluated": True, "seconds": {},
    "versions": {},
}  # fmt: skip


def state(step):
    return TrainState(
        step=jnp.int32(step), params={"w": jnp.arange(64.0) + step}, batch_stats={},
        opt_state=(), ema=None,
    )  # fmt: skip


def like():
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state(0))


def written(folder, values, mode="min", meta=META, **options):
    """A folder with a checkpoint of each step and value."""
    writer = CheckpointWriter(folder, mode, **options)
    for step, value in values.items():
        writer.save(state(step), meta, value)
    writer.close()
    return folder


def tree(folder):
    """{path: (time of change, size)} of everything in a folder."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in [folder, *folder.rglob("*")]
    }


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def arrays(checkpoint):
    return max((checkpoint / "state").rglob("d/*"), key=lambda p: p.stat().st_size)


# ---- which are kept, which is best ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "values", "best", "kept"),
    [
        ("min", {1: 3.0, 2: 1.0, 3: 2.0}, 2, [2, 3]),
        ("max", {1: 3.0, 2: 1.0, 3: 2.0}, 1, [1, 2, 3]),
        ("min", {1: 1.0, 2: 3.0, 3: 2.0, 4: 2.0}, 1, [1, 3, 4]),
        ("min", {1: 1.0, 2: 1.0, 3: 2.0, 4: None}, 1, [1, 3, 4]),  # the earliest of equal ones
        ("min", {1: 2.0, 2: float("nan"), 3: None, 4: None}, 1, [1, 3, 4]),
        ("min", {1: None, 2: None, 3: None}, 3, [2, 3]),
    ],
)
def test_the_last_two_and_the_best_are_kept(tmp_path, mode, values, best, kept):
    checkpoints = Checkpoints(written(tmp_path / "c", values, mode), mode)
    assert checkpoints.best == best
    assert checkpoints.steps == kept
    assert checkpoints.last == max(values)


def test_more_of_the_newest_are_kept_where_the_config_says_so(trained, tmp_path):
    values = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0}
    assert Checkpoints(written(tmp_path / "c", values, keep=3)).steps == [1, 3, 4, 5]
    config = run_folder.read_config(trained)
    config.checkpoint.every, config.checkpoint.keep = {"steps": 1}, 3
    train(config, tmp_path / "run")
    assert Checkpoints(tmp_path / "run/checkpoints").steps == [2, 3, 4]


def test_equal_values_rank_by_their_step_and_unknown_ones_last():
    assert rank({1: 2.0, 2: 1.0, 3: 1.0, 4: None, 5: None}, "min") == [2, 3, 1, 5, 4]
    assert rank({1: 2.0, 2: 1.0, 3: 1.0, 4: None, 5: None}, "max") == [1, 2, 3, 5, 4]


def test_an_evaluation_that_was_cut_short_replaces_the_checkpoint_that_lacks_its_value(tmp_path):
    folder = written(tmp_path / "c", {1: None})
    written(folder, {1: 4.0})
    assert Checkpoints(folder).value(1) == 4.0
    assert not (folder / "deleted").exists()


def test_a_checkpoint_is_out_of_the_listing_before_any_of_it_is_removed(tmp_path, monkeypatch):
    folder = written(tmp_path / "c", {1: 2.0, 2: 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *a, **k: None)  # killed before anything is removed
        written(folder, {3: 3.0})
    assert Checkpoints(folder).steps == [2, 3]
    assert [path.name for path in (folder / "deleted").iterdir()] == ["1"]
    CheckpointWriter(folder).close()
    assert not (folder / "deleted").exists()


# ---- readers and the holder ----------------------------------------------------------------------


def test_reading_leaves_what_the_trainer_is_writing(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    folder = workdir / "checkpoints"
    for name in ("5.orbax-checkpoint-tmp", "deleted/3", "2"):
        (folder / name / "state").mkdir(parents=True)
        (folder / name / "state" / "_METADATA").write_text("{}")
    (workdir / ".summary.json.0a1b2c3d").write_text("{")
    before = tree(workdir)
    assert Run.open(workdir, devices=1).step == 4
    assert Checkpoints(folder).steps == [4]
    assert tree(workdir) == before


def test_the_holder_removes_what_killed_processes_left(tmp_path):
    folder = written(tmp_path / "c", {3: 2.0, 4: 1.0})
    for name in ("5.orbax-checkpoint-tmp", "deleted/1", "2"):
        (folder / name / "state").mkdir(parents=True)
    (folder / "3" / "meta" / "metadata").unlink()  # a removal killed half way
    CheckpointWriter(folder).close()
    assert sorted(path.name for path in folder.iterdir()) == ["4"]


@pytest.mark.parametrize("missing", ["meta/metadata", "state/_METADATA", "state/manifest.ocdbt"])
def test_the_best_and_the_newest_are_damaged_where_they_lack_a_part(tmp_path, missing, capsys):
    named = META | {"best": {"value": 1.0, "step": 1, "stale": 1}}
    folder = written(tmp_path / "c", {1: 1.0, 2: 3.0, 3: 2.0}, meta=named)
    for step in (1, 3):
        (folder / str(step) / missing).unlink()
    reader = Checkpoints(folder)
    assert reader.steps == [1, 2, 3]
    with pytest.raises(UserError, match=r"c/1 cannot be restored"):
        reader.restore(like(), 1)
    writer = CheckpointWriter(folder)
    assert int(writer.resume(like())[0].step) == 2
    writer.close()
    assert writer.steps == [2]
    assert {path.name.partition("-")[0] for path in (tmp_path / "damaged").iterdir()} == {"1", "3"}
    assert capsys.readouterr().err.count(": set aside\n") == 2


def removing(monkeypatch, folder, steps):
    """Lets orbax find, while reading, that the next of `steps` was just removed."""
    restore, steps = ocp.Checkpointer.restore, list(steps)

    def interrupted(self, *args, **kwargs):
        if steps:
            shutil.rmtree(folder / str(steps.pop(0)))
        return restore(self, *args, **kwargs)

    monkeypatch.setattr(ocp.Checkpointer, "restore", interrupted)


def test_a_step_that_is_removed_while_it_is_read_is_no_damage(tmp_path, monkeypatch):
    folder = written(tmp_path / "c", {1: 1.0, 2: 2.0})
    removing(monkeypatch, folder, [1])
    with pytest.raises(VanishedError, match=r"c/1 is not there any more"):
        Checkpoints(folder).restore(like(), 1)
    with pytest.raises(VanishedError):
        Checkpoints(folder).meta(1)
    assert Checkpoints(folder).best == 2


# ---- a run's folder with several checkpoints, whose heads tell them apart ------------------------


@pytest.fixture(scope="module")
def several(trained, tmp_path_factory):
    """make(values, mode) -> a run's folder; the age's bias in a checkpoint is its step."""
    config = run_folder.read_config(trained)
    meta = Checkpoints(trained / "checkpoints").meta(4)
    heads = heads_lib.create(config.heads, heads_lib.Facts(**meta["facts"]))
    model, initialise = state_lib.create_model(config, heads)
    optimizer = optim.create_optimizer(config.optim, optax.constant_schedule(0.0), model.parameters)
    shapes = state_lib.abstract(config, initialise, optimizer, sharding.create_mesh(1, 1))
    whole, _ = Checkpoints(trained / "checkpoints").restore(vectors.unpacked(shapes), 4)

    def make(values, mode="min"):
        workdir = tmp_path_factory.mktemp("several") / "run"
        config.eval.best_mode = mode
        writer = CheckpointWriter(workdir / "checkpoints", mode)
        for step, value in values.items():
            bias = {"heads/age/bias": jnp.full(1, float(step))}
            one = dataclasses.replace(
                whole, step=jnp.int32(step), ema=whole.ema | {"params": whole.ema["params"] | bias}
            )
            writer.save(one, meta | {"config": to_json(config)}, value)
        writer.close()
        (workdir / "config.json").write_text(json.dumps(to_json(config)))
        return workdir

    return make


def bias(opened):
    return float(opened.params["heads/age/bias"][0])


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 1)])
def test_a_run_opens_at_its_best_checkpoint_or_at_the_step_it_is_told(several, mode, best):
    workdir = several({1: 3.0, 2: 1.0, 3: 2.0}, mode)
    opened = Run.open(workdir, devices=1)
    assert (opened.step, bias(opened)) == (best, best)
    opened = Run.open(workdir, devices=1, step=3)
    assert (opened.step, bias(opened)) == (3, 3)
    with pytest.raises(UserError, match=r"has no checkpoint of step 9; .*2, 3"):
        Run.open(workdir, devices=1, step=9)


def test_the_next_best_is_opened_where_the_best_is_removed_meanwhile(several, monkeypatch):
    workdir = several({1: 1.0, 2: 3.0, 3: 2.0})
    removing(monkeypatch, workdir / "checkpoints", [1])
    opened = Run.open(workdir, devices=1)
    assert (opened.step, bias(opened)) == (3, 3)
    removing(monkeypatch, workdir / "checkpoints", [2])
    with pytest.raises(UserError, match="has no checkpoint of step 2; it has 3"):
        Run.open(workdir, devices=1, step=2)


def test_a_lost_config_json_changes_no_prediction_and_another_one_is_refused(several):
    workdir = several({1: 1.0, 2: 3.0, 3: 2.0})
    path = workdir / "config.json"
    before = Run.open(workdir, devices=1)
    path.unlink()
    opened = Run.open(workdir, devices=1)
    assert to_json(opened.config) == to_json(before.config)
    assert (opened.step, bias(opened)) == (1, 1)

    config = to_json(before.config)
    for group, key, other in [
        ("model", "mean", [0.5, 0.5, 0.5]),
        ("eval", "best_mode", "max"),
        ("data", "image_size", 33),
    ]:
        path.write_text(json.dumps(config | {group: config[group] | {key: other}}))
        with pytest.raises(UserError, match=rf"config.json differs from .*{group}.{key} \("):
            Run.open(workdir, devices=1)
    moved = config | {"data": config["data"] | {"source": "elsewhere"}}
    path.write_text(json.dumps(moved))
    assert Run.open(workdir, devices=1).config.data.source == "elsewhere"


def test_a_damaged_config_json_beside_a_checkpoint_is_to_be_removed(several):
    workdir = several({1: 1.0})
    path = workdir / "config.json"
    path.write_text('{"heads": [')
    with pytest.raises(UserError, match=r"is not JSON .*; remove it: the checkpoint has the conf"):
        Run.open(workdir, devices=1)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"is not a file; remove it: the checkpoint has the conf"):
        Run.open(workdir, devices=1)


def test_no_flipped_bit_of_the_facts_goes_unseen(several):
    folder = several({1: 1.0}) / "checkpoints"
    path = folder / "1" / "meta" / "metadata"
    whole, meta = path.read_bytes(), Checkpoints(folder).meta(1)
    rng, caught = np.random.default_rng(0), 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            read = Checkpoints(folder).meta(1)
        except UserError:
            caught += 1
        else:
            assert read == meta  # the bit had no effect, such as in an escape
    assert caught > 0.9 * len(whole)
    with pytest.raises(UserError, match="checkpoints/1 cannot be restored"):
        Run.open(folder.parent, devices=1)


def test_a_checkpoint_without_a_digest_loads_as_it_did(tmp_path):
    folder = written(tmp_path / "c", {1: 1.0, 2: 5.0, 3: 2.0})
    for step in (1, 2, 3):
        path = folder / str(step) / "meta" / "metadata" if (folder / str(step)).exists() else None
        if path:
            meta = json.loads(path.read_text())
            del meta["digest"], meta["value"]
            path.write_text(json.dumps(meta))
    writer = CheckpointWriter(folder)
    assert (writer.best, writer.value(1), writer.value(3)) == (1, 1.0, 2.0)
    assert int(writer.resume(like())[0].step) == 3
    writer.close()


def test_the_newest_step_knows_the_best_where_an_older_one_is_damaged(tmp_path):
    named = META | {"best": {"value": 1.0, "step": 1, "stale": 2}}
    folder = written(tmp_path / "c", {1: 1.0, 2: 3.0, 3: 2.0}, meta=named)
    change_facts(folder / "2")
    assert Checkpoints(folder).best == 1
    change_facts(folder / "3")
    with pytest.raises(UserError, match=r"c/3 cannot be restored"):
        _ = Checkpoints(folder).best


def test_a_key_that_is_missing_in_a_damaged_checkpoint_is_told_as_one(tmp_path):
    folder = written(tmp_path / "c", {1: 1.0})

    def read(folder):
        raise KeyError("value_metadata")

    with pytest.raises(UserError, match=r"restored: KeyError\('value_metadata'\); remove it"):
        Checkpoints(folder)._read(1, read)


# ---- damage --------------------------------------------------------------------------------------


def flip_arrays(checkpoint):
    for place in (0.25, 0.5, 0.75):  # one may be in unused bytes
        flip(arrays(checkpoint), place)


def change_facts(checkpoint):
    path = checkpoint / "meta" / "metadata"
    path.write_text(path.read_text().replace("33.5", "73.5"))


def change_value(checkpoint):
    (checkpoint / "metrics" / "metrics").write_text('{"value": 9.0}')


@pytest.mark.parametrize("damage", [flip_arrays, change_facts, change_value])
def test_a_damaged_best_checkpoint_is_set_aside_when_training_goes_on(tmp_path, damage, capsys):
    folder = written(tmp_path / "c", {1: 1.0, 2: 3.0, 3: 2.0})
    damage(folder / "1")
    writer = CheckpointWriter(folder)
    restored, meta = writer.resume(like())
    assert int(restored.step) == 3
    np.testing.assert_array_equal(restored.params["w"], state(3).params["w"])
    assert (writer.best, writer.steps) == (3, [2, 3])
    writer.save(state(4), meta, 2.5)
    writer.close()
    assert writer.steps == [3, 4]
    assert "c/1 cannot be restored" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["1-0"]


@pytest.mark.parametrize("damage", [flip_arrays, change_facts])
def test_where_every_checkpoint_is_damaged_nothing_is_moved(tmp_path, damage):
    folder = written(tmp_path / "c", {1: 1.0, 2: 3.0})
    for step in (1, 2):
        damage(folder / str(step))
    before = sorted(pathlib.Path(tmp_path).rglob("*"))
    with pytest.raises(UserError, match=r"c/2 cannot be restored: .*\(1\)"):
        CheckpointWriter(folder).resume(like())
    assert sorted(pathlib.Path(tmp_path).rglob("*")) == before


def test_the_digest_of_facts_is_sha256_of_their_json_in_the_order_of_the_keys():
    # printf '{"a": 1.5, "b": [2, null]}' | sha256sum
    expected = "577de9195f0aaea092b514d2bdfe34e2da19758346593b6913fa0aaf6e6e26b2"
    assert files.digest({"b": [2, None], "digest": "any", "a": 1.5}) == expected


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "no"), OSError(errno.EMFILE, "many"), MemoryError()],
    ids=["rights", "open files", "memory"],
)
def test_a_checkpoint_that_the_machine_cannot_read_now_is_not_set_aside(
    tmp_path, monkeypatch, error
):
    folder = written(tmp_path / "checkpoints", {1: 2.0, 2: 1.0})
    read_text = pathlib.Path.read_text

    def fails(path, *args, **kwargs):
        if path.parts[-3:] == ("2", "meta", "metadata"):
            raise error
        return read_text(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_text", fails)
        with pytest.raises(type(error)):
            CheckpointWriter(folder)
    assert Checkpoints(folder).steps == [1, 2]
    assert not (tmp_path / "damaged").exists()
