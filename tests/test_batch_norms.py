"""Batch norm: whose statistics a step uses, and statistics of training images made anew; against
numpy."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_mobilenet_v1 import tensorflow_js

import tiny
from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.heads import Facts, create
from agejax.models import lowerings
from agejax.models.layers import BatchNorm
from agejax.models.layers import batch_norms as norms_of
from agejax.runs import batch_statistics, run_folder, warm_start
from agejax.runs.run import Run
from agejax.train import train
from agejax.training import augment, optim, sharding, state
from agejax.training import step as step_lib


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


# ---- statistics of each device's own images ------------------------------------------------------


@pytest.mark.parametrize("devices", [2, 8])
def test_a_device_s_images_are_normalised_by_their_own_statistics(devices):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (16, 3, 2, 4)) * np.linspace(0.5, 2, 16)[:, None, None, None]
    slopes, scale, bias = rng.normal(size=x.shape), rng.normal(1, 0.1, 4), rng.normal(size=4)
    norm = BatchNorm(4, momentum=0.25)
    norm.per_device = True
    norm.scale.set_value(jnp.float32(scale))
    norm.bias.set_value(jnp.float32(bias))
    graph, arrays = nnx.split(norm)

    def loss(arrays, x):
        norm = nnx.merge(graph, arrays)
        with lowerings.batch_split(devices):
            y = norm(x, train=True)
        return jnp.sum(y * jnp.float32(slopes)), (y, norm.mean[...], norm.var[...])

    placed = jax.device_put(
        jnp.float32(x), sharding.batch_sharding(sharding.create_mesh(devices, 1))
    )
    step = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (gradients, dx), (y, mean, variance) = step(arrays, placed)

    parts = x.reshape(devices, -1, 4)
    mu, var = parts.mean(1, keepdims=True), parts.var(1, keepdims=True)
    normal = (parts - mu) / np.sqrt(var + 1e-5)
    of_parts = slopes.reshape(parts.shape)
    # Ioffe & Szegedy 2015: what a shift and a stretch of a part's inputs do to its outputs.
    stretch = (of_parts * normal).mean(1, keepdims=True)
    expected = (of_parts - of_parts.mean(1, keepdims=True) - normal * stretch) * scale
    expected /= np.sqrt(var + 1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(y, (normal * scale + bias).reshape(x.shape))
    close(dx, expected.reshape(x.shape))
    close(gradients.scale[...], (of_parts * normal).sum((0, 1)))
    close(gradients.bias[...], of_parts.sum((0, 1)))
    close(mean, 0.25 * mu.mean((0, 1)))
    close(variance, 0.75 + 0.25 * parts.var(1, ddof=1).mean(0))


class Step:
    """A train step of a small network on 16 images; batch norms as config.sharding.batch_norm."""

    def __init__(self, devices, batch_norm, widths=(8, 16), **optimizer):
        config = tiny.get_config()
        config.model.options = {"widths": widths}
        config.augment = augment.SETTINGS.config()
        config.model.dropout, config.model.image_size = 0.0, 16
        config.model.mean, config.model.std = (0.5,) * 3, (0.25,) * 3
        config.heads = {"age": {"kind": "regression"}}
        config.sharding.batch_norm = batch_norm
        config.optim.update(optimizer)
        facts = Facts.of({"age": np.float32([20, 60])}, {})
        mesh = sharding.create_mesh(devices, 1)
        model, initialise = state.create_model(config, create(config.heads, facts))
        rate = optax.constant_schedule(1e-3)
        optimizer = optim.create_optimizer(config.optim, rate, model.parameters)
        like = state.abstract(config, initialise, optimizer, mesh)
        self.start = state.create(config, initialise, optimizer, mesh)
        rng = np.random.default_rng(0)
        brightness = np.linspace(0.2, 1, 16)[:, None, None, None]
        self.images = np.uint8(brightness * rng.integers(0, 256, (16, 16, 16, 3)))
        ones = np.ones(16, np.float32)
        batch = {"image": self.images, "age": 40 * ones, "weight": ones, "strength": ones}
        self.batch = sharding.put_batch(batch, mesh)
        self.step = step_lib.make_train_step(config, model, optimizer, like)
        self.compiled = self.step.lower(like, self.batch).compile()

    def taken(self):
        """The state after one step."""
        return jax.device_get(self.compiled(jax.tree.map(jnp.copy, self.start), self.batch)[0])

    def collectives(self):
        """{kind: its number in the compiled step}."""
        text = self.compiled.as_text()
        return collections.Counter(re.findall(r" (all-\w+|collective-\w+|reduce-scatter)", text))


@pytest.mark.parametrize(("devices", "micro"), [(2, 1), (8, 1), (4, 2)])
def test_running_statistics_follow_the_average_over_devices(devices, micro):
    step = Step(devices, "device", accumulate=micro)
    arrays = {k: np.float64(v) for k, v in {**step.start.params, **step.start.batch_stats}.items()}
    # A micro-batch has every second row, of which each device has its own.
    sets = step.images.reshape(devices, -1, micro, 16, 16, 3)
    for each in range(micro):
        parts = [(np.float64(images) / 255 - 0.5) / 0.25 for images in sets[:, :, each]]
        for i in range(2):
            name = f"backbone/norms/{i}"
            kernel, bias = (arrays[f"backbone/convs/{i}/{part}"] for part in ("kernel", "bias"))
            parts = [convolved(x, kernel, bias) for x in parts]
            for key, value in (("mean", [x.mean((0, 1, 2)) for x in parts]),
                               ("var", [x.var((0, 1, 2), ddof=1) for x in parts])):  # fmt: skip
                arrays[f"{name}/{key}"] = 0.9 * arrays[f"{name}/{key}"] + 0.1 * np.mean(value, 0)
            parts = [(x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) for x in parts]
    for name, value in step.taken().batch_stats.items():
        np.testing.assert_allclose(value, arrays[name], rtol=1e-4, atol=1e-5)


def test_one_device_s_own_statistics_are_the_global_ones_bit_for_bit():
    states = [Step(1, batch_norm).taken() for batch_norm in ("global", "device")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_run_with_statistics_per_device_resumes_on_as_many_devices_only(faces, cache, tmp_path):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.sharding.batch_norm, config.sharding.devices = "device", 2
    config.total = {"steps": 2}
    workdir = tmp_path / "run"
    train(config, workdir)
    config.sharding.devices = 4
    line = r"trained on 2 devices .* on 4 each would .* --config.sharding.devices=2, or start"
    with pytest.raises(UserError, match=line):
        train(config, workdir)
    config.sharding.batch_norm = "global"
    run_folder.check_same_devices(workdir, {"devices": 2}, config, 4)


def test_with_statistics_per_device_no_layer_adds_a_collective():
    def collectives(batch_norm, layers):
        return Step(8, batch_norm, widths=(4,) * layers).collectives()

    assert collectives("device", 2) == collectives("device", 4)
    # A sum over the devices forward and one backward, in which XLA joins mean and variance.
    two, four = (collectives("global", layers) for layers in (2, 4))
    assert four["all-reduce"] == two["all-reduce"] + 4
    assert collectives("device", 4)["all-reduce"] < two["all-reduce"]
