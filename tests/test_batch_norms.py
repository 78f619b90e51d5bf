"""Batch statistics of training images, compared with a forward pass in numpy."""

import dataclasses

import jax
import numpy as np
import pytest
from test_mobilenet_v1 import tensorflow_js

import tiny
from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.models.layers import batch_norms as norms_of
from agejax.runs import batch_statistics, warm_start
from agejax.runs.run import Run
from agejax.training import augment, state


@pytest.fixture(scope="module")
def run(trained):
    return Run.open(trained, devices=1)


@pytest.fixture(scope="module")
def source(run):
    return opening.open_source(run.config.data)


@pytest.fixture(scope="module")
def rows(run, source):
    return splits.make(source, run.config.data.split)["train"]


@pytest.fixture(scope="module")
def batches(run, source, rows):
    return list(batch_statistics.training_batches(run.config, source, rows, 3))


def convolved(x, kernel, bias):
    """A 3x3 convolution, ReLU and 2x2 max pool of f64 [B, H, W, C]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    y = np.maximum(np.einsum("bhwcij,ijcf->bhwf", windows, kernel) + bias, 0)
    batch, height, width, channels = y.shape
    return y.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def test_statistics_made_anew_are_means_over_batches_of_what_goes_into_each_norm(run, batches):
    arrays = {k: np.float64(v) for k, v in {**run.params, **run.batch_stats}.items()}
    mean, std = (np.float64(run.config.model[name]) for name in ("mean", "std"))
    expected = {}
    for images, _ in batches:
        x = (np.float64(images) - mean) / std
        for i in range(2):
            part = lambda name: arrays[f"backbone/{name}"]  # noqa: E731
            x = convolved(x, part(f"convs/{i}/kernel"), part(f"convs/{i}/bias"))
            mu, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            for name, value in (("mean", mu), ("var", x.var((0, 1, 2), ddof=1))):
                expected.setdefault(f"backbone/norms/{i}/{name}", []).append(value)
            x = (x - mu) / np.sqrt(variance + 1e-5)
            x = x * part(f"norms/{i}/scale") + part(f"norms/{i}/bias")
    anew = batch_statistics.anew(run, count=3)
    assert anew.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(anew[name], np.mean(values, axis=0), rtol=1e-3, atol=1e-4)
        assert np.abs(anew[name] - arrays[name]).max() > 0.01  # differs from the short run's


def test_batches_are_of_training_images_alone_as_training_augments_them(run, source, rows):
    config = run.config.copy_and_resolve_references()
    (seen, _), = batch_statistics.training_batches(config, source, rows, 1)  # fmt: skip
    assert seen.shape == (16, 32, 32, 3)
    config.augment = augment.SETTINGS.config()
    (plain, _), = batch_statistics.training_batches(config, source, rows, 1)  # fmt: skip
    assert np.abs(seen - plain).max() > 0.05
    known = {image.tobytes() for image in source.take(rows)}
    others = {image.tobytes() for image in source.take(np.arange(len(source.ids)))} - known
    drawn = {image.tobytes() for image in np.rint(255 * np.asarray(plain)).astype(np.uint8)}
    assert drawn <= known
    assert others


def test_frozen_norms_keep_their_statistics(run):
    config = run.config.copy_and_resolve_references()
    config.optim.lr_multipliers = (("backbone/norms/0/.*", None), (".*", 1.0))
    model, _ = state.create_model(config, run.heads)
    names = {"backbone/norms/1/mean", "backbone/norms/1/var"}
    assert batch_statistics.anew(dataclasses.replace(run, model=model), count=1).keys() == names
    config.optim.lr_multipliers = (("backbone/.*", None), (".*", 1.0))
    model, _ = state.create_model(config, run.heads)
    assert batch_statistics.anew(dataclasses.replace(run, model=model)) == {}


def test_other_images_than_those_of_the_run_are_refused(run):
    with pytest.raises(UserError, match=r"was trained on other data .* use --statistics=averaged"):
        batch_statistics.anew(dataclasses.replace(run, fingerprint="another"))


def test_calibrated_norms_have_other_statistics_and_the_network_predicts_the_same(run, batches):
    params, stats = batch_statistics.calibrated(run.model, run.params, run.batch_stats, batches)
    first = "backbone/norms/0/mean"
    assert np.abs(stats[first] - run.batch_stats[first]).max() > 0.01
    images = batches[0][0]
    before, _ = run.model.apply(run.params, run.batch_stats, images)
    after, _ = run.model.apply(params, stats, images)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-4)


def test_a_folded_network_gets_batch_norms_back_and_predicts_the_same(
    run, source, rows, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(warm_start, "CALIBRATION", 4)
    config = tiny.get_config()
    config.model.name, config.model.options = "mobilenet_v1", {"folded": False}
    config.model.pretrained = str(tensorflow_js(tmp_path)[0])
    config.model.image_size, config.model.dropout = 64, 0.0
    config.data.batch_size = 32
    config = warm_start.settle(config, tmp_path / "run", None)
    assert config.model.options.to_dict() == {"folded": False, "padding": "same"}
    model, initialise = state.create_model(config, run.heads)
    fresh = initialise(jax.random.key(0))
    loaded = state.from_file(config.model, *fresh)
    given_back = warm_start.of(config, run.heads, source, rows)(*fresh)
    assert "gave the network batch norms" in capsys.readouterr().out

    folded_config = config.copy_and_resolve_references()
    folded_config.model.options.folded = True
    assert warm_start.of(folded_config, run.heads, source, rows) is None
    folded_model, initialise = state.create_model(folded_config, run.heads)
    folded = state.from_file(folded_config.model, *initialise(jax.random.key(0)))
    assert not norms_of(folded_model.network(*folded))

    images = next(batch_statistics.training_batches(config, source, rows, 1))[0]

    def features(model, arrays, **options):
        embed = jax.jit(lambda p, s, x: model.network(p, s).backbone.embed(x, **options).pooled)
        normal = (images - np.float32(config.model.mean)) / np.float32(config.model.std)
        return np.float64(embed(*arrays, normal))

    expected = features(folded_model, folded)
    scale = np.abs(expected).max()
    for arrays in (loaded, given_back):
        assert np.abs(features(model, arrays) - expected).max() < 1e-4 * scale

    def off(arrays):
        return np.abs(features(model, arrays, train=True) - expected).mean() / expected.mean()

    # In training a batch's statistics differ from those of all images; without any it fails.
    assert off(given_back) < 0.2 < off(loaded)
