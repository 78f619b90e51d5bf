"""Heads on cached features of a frozen backbone: the results are those on images, computed once."""

import dataclasses
import json
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interrupted_run import signal_before
from test_resume import last_checkpoint

import tiny
from agejax import checks
from agejax import heads as heads_lib
from agejax.data import features, opening, pipeline, sampling, splits
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.models import inputs, pretrained
from agejax.reporting import results
from agejax.runs.run import Run
from agejax.train import train
from agejax.training import augment, frozen, optim, sharding, state
from experiments.frozen import scored

NECK = {"hidden": (8,), "dropout": 0.5, "input_dropout": 0.3}


def frozen_config(faces, cache, views):
    """`tiny`'s config with a frozen backbone and without augmentation."""
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 8}
    config.eval.every = {"steps": 4}
    config.augment = augment.SETTINGS.config()
    config.sampling.copy_strength = 1.0
    config.optim.lr_multipliers = (("backbone/.*", None), (".*", 1.0))
    config.heads.gender.neck = NECK
    config.model.cached_views = views
    return config


def augmented(config):
    config.augment.flip = 0.5
    config.augment.crop = (0.5, 0.9)
    return config


class Images:
    """Images of a source that counts how many are read."""

    def __init__(self, images):
        self.images, self.shape, self.read = images, images.shape, 0

    def __getitem__(self, rows):
        self.read += len(rows)
        return self.images[rows]


class Bench:
    """What `frozen.compute` needs, with blocks of 16 images."""

    def __init__(self, config, devices=1):
        self.config = pretrained.settle(config)
        source = opening.open_source(config.data)
        self.images = Images(source.images)
        self.source = dataclasses.replace(source, images=self.images)
        self.rows = {"train": np.arange(0, 60), "val": np.arange(60, 70)}
        self.mesh = sharding.create_mesh(devices, 1)
        facts = heads_lib.Facts.of(source.labels, source.label_names)
        heads = heads_lib.create(self.config.heads, facts)
        self.model, initialise = state.create_model(self.config, heads)
        optimizer = optim.create_optimizer(
            self.config.optim, optax.constant_schedule(0.0), self.model.parameters
        )
        self.state = state.create(self.config, initialise, optimizer, self.mesh)

    def compute(self, **settings):
        """The features under changed settings, and how many images were read."""
        config = self.config.copy_and_resolve_references()
        config.update_from_flattened_dict(settings)
        before = self.images.read
        state = self.state
        found = frozen.compute(
            config, self.model, state.params, state.batch_stats, self.source, self.rows, self.mesh
        )
        return found, self.images.read - before


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(features, "ROWS", 16)


@pytest.fixture
def bench(faces, cache, tmp_path, small_blocks):
    config = augmented(frozen_config(faces, cache, 3))
    bench = Bench(config)
    bench.config.data.cache_dir = str(tmp_path)
    return bench


@pytest.fixture(scope="module")
def runs(faces, cache, tmp_path_factory):
    """(run on images, run on cached features), otherwise equal."""
    folder = tmp_path_factory.mktemp("runs")
    for views in (0, 1):
        train(frozen_config(faces, cache, views), folder / str(views))
    return folder / "0", folder / "1"


def test_heads_that_train_on_cached_features_end_where_they_end_on_images(runs):
    (_, images), (_, cached) = map(last_checkpoint, runs)
    for name, value in images["params"].items():
        np.testing.assert_allclose(cached["params"][name], value, atol=1e-5, err_msg=name)


def test_the_evaluation_of_cached_features_is_that_of_the_images(runs, faces, cache):
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    ]
    mae = [[row["val/age/mae"] for row in of_run if "val/age/mae" in row] for of_run in rows]
    assert len(mae[0]) == 2
    np.testing.assert_allclose(mae[1], mae[0], atol=1e-4)
    # The same for the checkpoint, opened as commands do.
    run = Run.open(runs[1], devices=1)
    source = opening.open_source(run.config.data)
    val = splits.make(source, run.config.data.split)["val"]
    predicted = run.predict(pipeline.evaluation_batches(source, val, 16))["age"]
    best = json.loads((runs[1] / "summary.json").read_text())["best"]["value"]
    assert np.abs(predicted - source.labels["age"][val]).mean() == pytest.approx(best, abs=1e-4)


def test_an_arm_scored_on_cached_features_predicts_as_from_the_images(runs, tmp_path, monkeypatch):
    images, features = tmp_path / "images", tmp_path / "features"
    results.evaluate(runs[1], split="val", output=images, write_report=False)
    monkeypatch.setattr(Source, "take", None)  # no image is read
    scored("val", lambda seed: ["1"])(runs[1].parent, 0, features)
    first, second = (
        np.genfromtxt(f / "predictions.csv", delimiter=",", names=True, dtype=None, encoding=None)
        for f in (images, features)
    )
    assert first.dtype.names == second.dtype.names
    assert (first["id"] == second["id"]).all()
    for name in ("age", "age_predicted", "gender_p1"):
        np.testing.assert_allclose(second[name], first[name], atol=1e-4, err_msg=name)


def test_a_frozen_parameter_is_its_own_average(runs):
    _, arrays = last_checkpoint(runs[1])
    for name, value in arrays["params"].items():
        same = np.array_equal(arrays["ema"]["params"][name], value)
        assert same == name.startswith("backbone/"), name


def test_a_run_that_is_stopped_and_resumed_ends_bit_equal(faces, cache, tmp_path, monkeypatch):
    config = augmented(frozen_config(faces, cache, 3))
    train(config, tmp_path / "whole")
    monkeypatch.setattr(sharding, "put_batch", sharding.put_batch)  # undone at the end
    put_batch = sharding.put_batch
    signal_before(6, "SIGTERM")
    assert train(config, tmp_path / "stopped") is None
    monkeypatch.setattr(sharding, "put_batch", put_batch)
    assert train(config, tmp_path / "stopped") is not None
    step, whole = last_checkpoint(tmp_path / "whole")
    assert last_checkpoint(tmp_path / "stopped")[0] == step == 8
    jax.tree.map(np.testing.assert_array_equal, last_checkpoint(tmp_path / "stopped")[1], whole)


def test_features_are_computed_once_and_only_where_they_are_missing(bench, capsys):
    first, read = bench.compute()
    # Rows 0 to 69 as evaluation sees them and twice rows 0 to 59, in whole blocks of 16.
    assert read == 80 + 2 * 64
    assert "features of cnn: computed 208 in" in capsys.readouterr().err
    rows, view = np.array([3, 59, 17, 3]), np.array([2, 1, 0, 0])
    again, read = bench.compute()
    assert read == 0
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(again.take(rows, view), first.take(rows, view))
    bench.rows["val"] = np.arange(60, 96)  # another split of the same images
    assert bench.compute()[1] == 16


def test_each_view_is_a_function_of_the_seed_and_the_image(bench):
    found, _ = bench.compute()
    config, rows = bench.config, np.array([40, 5, 21])
    embed = bench.model.network(bench.state.params, bench.state.batch_stats).features
    images = bench.images.images[rows]
    plain = embed(inputs.eval_images(jnp.asarray(images), config.model.image_size))
    np.testing.assert_allclose(found.take(rows), plain, rtol=1e-4, atol=1e-5)
    move = augment.build(config.augment, config.model.image_size)
    for view in (1, 2):
        keys = [
            jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), view), row)
            for row in rows
        ]
        moved = [
            embed(move(key, jnp.asarray(image[None]), jnp.ones(1))[0])[0]
            for key, image in zip(keys, images, strict=True)
        ]
        np.testing.assert_allclose(found.take(rows, view), moved, rtol=1e-4, atol=1e-5)
        assert np.abs(np.stack(moved) - plain).max() > 1e-2


def test_features_are_the_same_on_any_devices_and_for_any_batch_size(bench, faces, cache, tmp_path):
    rows = np.arange(60)
    one, _ = bench.compute()
    other = Bench(augmented(frozen_config(faces, cache, 3)), devices=2)
    two, read = other.compute(**{"data.cache_dir": str(tmp_path / "2"), "eval.batch_size": 6})
    assert read > 0
    for view in range(3):
        np.testing.assert_allclose(two.take(rows, view), one.take(rows, view), rtol=1e-4, atol=1e-5)


ALL, AUGMENTED = 80 + 2 * 64, 2 * 64


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        ({"eval.batch_size": 8, "model.dropout": 0.7, "schedule.lr": 1.0}, 0),
        ({"model.cached_views": 2}, 0),
        ({"model.cached_views": 4}, 64),
        ({"seed": 1}, AUGMENTED),
        ({"augment.rotate": 5.0}, AUGMENTED),
        ({"model.image_size": 24}, ALL),
        ({"model.mean": (0.5, 0.5, 0.5)}, ALL),
        ({"model.std": (0.5, 0.5, 0.5)}, ALL),
        ({"model.dtype": "bfloat16"}, ALL),
    ],
    ids=str,
)
def test_what_features_depend_on_is_what_they_are_kept_by(bench, settings, read):
    bench.compute()
    assert bench.compute(**settings)[1] == read


def test_other_images_have_other_features_even_under_the_same_names(bench):
    bench.compute()
    bench.source = dataclasses.replace(bench.source, fingerprint="edited")
    assert bench.compute()[1] == ALL


def test_other_weights_of_the_backbone_have_other_features_and_those_of_heads_have_not(bench):
    bench.compute()
    start = bench.state.params

    def change(name, by):
        changed = start.pack({**start, name: start[name] + by})
        bench.state = dataclasses.replace(bench.state, params=changed)

    change("heads/age/bias", 1)
    assert bench.compute()[1] == 0
    change("backbone/convs/0/bias", 1e-6)
    assert bench.compute()[1] == ALL


def test_a_damaged_block_is_found_and_computed_anew(bench, tmp_path, capsys):
    rows = np.arange(60)
    first, _ = bench.compute()
    before = first.take(rows)
    path = sorted((tmp_path / "features").glob("*/00001/features.f32"))[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    again, read = bench.compute()
    assert read == 16
    assert "00001 is damaged (features.f32 has changed since it was written)" in (
        capsys.readouterr().err
    )
    np.testing.assert_array_equal(again.take(rows), before)


def test_what_an_interrupted_process_has_computed_is_not_computed_again(bench, monkeypatch):
    take = type(bench.source).take

    def interrupted(source, rows):
        if bench.images.read >= 48:
            raise KeyboardInterrupt
        return take(source, rows)

    with monkeypatch.context() as patch:
        patch.setattr(type(bench.source), "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.compute()
    assert bench.images.read == 48
    assert bench.compute()[1] == ALL - 48


def test_many_blocks_need_no_higher_limit_on_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "ROWS", 2)
    monkeypatch.setattr(features, "MORE", 80)
    rows = np.arange(200)

    def compute(view, of):
        yield np.repeat(of[:, None], 2, axis=1).astype(np.float32)

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        cached = features.load(["a"], [rows], 200, 2, compute, name="test", cache_dir=str(tmp_path))
        np.testing.assert_array_equal(cached.take(rows)[:, 0], rows)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_processes_of_one_run_begin_at_different_blocks(tmp_path, monkeypatch, small_blocks):
    began = []

    def compute(view, rows):
        began.append((view, int(rows[0])))
        yield np.zeros((len(rows), 2), np.float32)

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    rows = [np.arange(50), np.arange(32)]
    features.load(["a", "b"], rows, 50, 2, compute, name="test", cache_dir=str(tmp_path))
    assert began == [(0, 48), (1, 0), (1, 16), (0, 0), (0, 16), (0, 32)]


def test_a_row_goes_through_its_views_from_epoch_to_epoch(faces, cache):
    source = opening.open_source(frozen_config(faces, cache, 3).data)
    rows = np.arange(10, 26)
    views = [{0: np.stack([np.arange(96.0), np.full(96, float(v))], 1)} for v in range(3)]
    batches = pipeline.TrainBatches(
        source, rows, sampling.Sampler(None, 16, 0), 8,
        features=features.CachedFeatures(2, views),
    )  # fmt: skip
    seen = {}
    for step in range(6):
        batch = batches[step]
        assert "image" not in batch
        np.testing.assert_array_equal(batch["features"][:, 0], batch["index"])
        for row, view in batch["features"]:
            seen.setdefault(row, []).append(view)
    assert set(seen) == set(rows)
    assert all(sorted(of_row) == [0, 1, 2] for of_row in seen.values())
    assert len({of_row[0] for of_row in seen.values()}) == 3  # an epoch has all views


VIT = {"model.name": "vit_ti16", "model.options": {"dropout": 0.1}}


@pytest.mark.parametrize(
    ("views", "changes", "message"),
    [
        (1, {"optim.lr_multipliers": (("backbone/convs.*", None), (".*", 1.0))},
         r"backbone is trained \(backbone/norms/0/bias and 3 more\); freeze it with config.optim"),
        (1, {"heads.gender.neck": {"greyscale": True}}, "heads.gender.neck.greyscale needs more"),
        (1, {"heads.gender.neck": {"convs": (8,)}}, "heads.gender.neck.convs needs more"),
        (1, {"heads.gender.neck": {"pool": "flatten"}}, "heads.gender.neck.pool needs more"),
        (2, {"augment.mixup": 0.2}, "config.augment.mixup needs the images"),
        (2, {"augment.cutmix": 0.2}, "config.augment.cutmix needs the images"),
        (2, {"augment.copies": {"flip": 0.5}}, "config.augment.copies needs the images"),
        (2, {"augment.flip": 0.5, "sampling.copy_strength": 1.5}, "copy_strength needs the images"),
        (1, {"schedule.image_size": (({"percent": 50.0}, 16),)}, "of one image size"),
        (1, {"eval.image_size": 48}, "set config.model.image_size in place of config.eval"),
        (1, {"augment.flip": 0.5}, r"config.augment.flip would do nothing; .* cached_views to 2"),
        (2, {}, "all views would be alike"),
        (1, VIT, "the backbone drops a part of its features"),
    ],
)  # fmt: skip
def test_settings_that_need_images_in_the_step_are_refused(faces, cache, views, changes, message):
    config = frozen_config(faces, cache, views)
    if "model.name" in changes:
        config.model.options = {}
    with config.unlocked():
        for path, value in changes.items():
            *groups, key = path.split(".")
            group = config
            for name in groups:
                group = group[name]
            group[key] = value
    with pytest.raises(UserError, match=message):
        checks.before_data(pretrained.settle(config))


def test_a_file_of_targets_teaches_heads_on_cached_features_as_on_images(faces, cache, tmp_path):
    source = opening.open_source(frozen_config(faces, cache, 1).data)
    second = np.linspace(0.1, 0.9, len(source.ids), dtype=np.float32)
    targets = np.stack([1 - second, second], axis=1)
    np.savez(tmp_path / "targets.npz", **{"ids": source.ids, "probabilities/gender": targets})
    ends = []
    for views in (0, 1):
        config = frozen_config(faces, cache, views)
        config.heads.age = {"kind": "distribution"}
        config.heads.gender = {"kind": "binary"}
        config.distill.files = (str(tmp_path / "targets.npz"),)
        config.distill.allow_seen = True
        train(config, tmp_path / str(views))
        ends.append(last_checkpoint(tmp_path / str(views))[1]["params"])
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, atol=1e-5, err_msg=name)
    lines = (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()
    assert "gender/distill" in json.loads(lines[0])


def test_teachers_of_images_are_refused(runs, faces, cache):
    config = frozen_config(faces, cache, 1)
    config.distill.runs = (str(runs[0]),)
    with pytest.raises(UserError, match=r"teachers of config\.distill\.runs need the images"):
        checks.before_data(pretrained.settle(config))
