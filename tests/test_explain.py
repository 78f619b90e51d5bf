"""Explanations find what was planted, add up to the prediction, and repeat byte for byte."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import tiny
from agejax import explain, heads
from agejax.explanations.explanation import backdrop, values_of
from agejax.explanations.grad_cam import _cam, grad_cam
from agejax.explanations.integrated_gradients import integrated_gradients
from agejax.explanations.lime import lime
from agejax.explanations.subject import Subject
from agejax.explanations.superpixels import superpixels
from agejax.models import registry, vit
from agejax.process.command import run_command
from agejax.runs.run import Run
from agejax.train import train
from agejax.training import state

SIZE, CELL = 32, 4  # 8 x 8 segments
SQUARE = np.s_[8:16, 20:28]  # four segments


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A dark image with a bright square."""
    image = np.full((SIZE, SIZE, 3), 40, np.uint8)
    image[SQUARE] = 200
    return image + np.random.default_rng(0).integers(0, 3, image.shape, np.uint8)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """An image of smooth random colours."""
    rough = np.random.default_rng(1).random((1, 5, 5, 3))
    return np.uint8(255 * jax.image.resize(rough, (1, SIZE, SIZE, 3), "linear"))[0]


@pytest.fixture(scope="module")
def run(faces, cache, tmp_path_factory):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 2}
    config.eval.every = {"steps": 2}
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(config, workdir)
    return workdir


def brightness(images):
    """Predicts 20 years, and 30 more for a white square."""
    return 20 + 30 * images[(slice(None), *SQUARE)].astype(np.float64).mean(axis=(1, 2, 3)) / 255


def test_superpixels_are_connected_pieces_of_like_colour(image):
    segments = superpixels(image)
    count = segments.max() + 1
    assert 48 <= count <= 64
    assert np.array_equal(np.unique(segments), np.arange(count))
    assert all(ndimage.label(segments == k)[1] == 1 for k in range(count))
    bright = image[..., 0] > 100
    assert not set(segments[bright]) & set(segments[~bright])


def test_lime_finds_the_square_that_is_looked_at(image):
    found = lime(brightness, image, fill="mean")
    inside = np.zeros((SIZE, SIZE), bool)
    inside[SQUARE] = True
    there = brightness(image[None])[0]
    hidden = 20 + 30 * np.rint(image.mean(axis=(0, 1))).mean() / 255
    assert found.prediction == pytest.approx(there)
    # The predictor is linear in the segments, so the weights are its own.
    assert found.weights.sum() == pytest.approx(there - hidden, rel=0.01)
    assert found.heat[inside].min() > 10 * np.abs(found.heat[~inside]).max()
    assert found.checks["r2"] > 0.999


def test_lime_repeats_with_its_seed_and_compiles_once(photo):
    traces = []

    @jax.jit
    def predict(images):
        traces.append(images.shape)
        x = images / 255.0
        return 50 * jnp.tanh(x[:, :16].mean(axis=(1, 2, 3)) * x[:, :, 16:].mean(axis=(1, 2, 3)))

    first, again, other = (
        lime(predict, photo, seed=seed, samples=150, batch=16) for seed in (0, 0, 1)
    )
    assert traces == [(16, SIZE, SIZE, 3)]
    assert first.weights.tobytes() == again.weights.tobytes()
    assert not np.array_equal(first.weights, other.weights)
    assert 0.5 < first.checks["r2"] <= 1
    assert np.array_equal(first.heat, first.weights[first.segments])


def test_integrated_gradients_of_a_linear_model_are_exact(photo):
    weights = np.random.default_rng(2).normal(size=photo.shape).astype(np.float32) / 100
    found = integrated_gradients(
        lambda images: jnp.sum(images * weights, axis=(1, 2, 3)), photo, steps=5, batch=4
    )
    change = photo.astype(np.float32) - backdrop(photo).astype(np.float32)
    np.testing.assert_allclose(found.heat, (weights * change).sum(axis=2), atol=1e-5)
    assert abs(found.checks["gap"]) < 1e-3


def test_integrated_gradients_go_by_the_midpoint_rule(photo):
    start = jnp.asarray(backdrop(photo), jnp.float32)
    change = (photo.astype(np.float64) - np.asarray(start, np.float64)) / 100
    found = integrated_gradients(
        lambda images: jnp.sum(((images - start) / 100) ** 3, axis=(1, 2, 3)),
        photo,
        steps=2,
        batch=2,
    )
    # The slope along the line is 3 t² d³. The mean of t² at 1/4 and 3/4 is 5/16, and not 1/3.
    np.testing.assert_allclose(found.heat, (change**3 * 15 / 16).sum(axis=2), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fill", ["blur", "mean"])
def test_integrated_gradients_add_up_to_the_difference(photo, fill):
    def value(images):
        x = images / 255.0
        return 40 * jnp.exp(-3 * jnp.square(x - x[:, ::-1])).mean(axis=(1, 2, 3)) + 5 * jnp.sin(
            20 * x.std(axis=(1, 2, 3))
        )

    found = integrated_gradients(value, photo, fill=fill)
    difference = found.prediction - found.checks["baseline"]
    assert abs(difference) > 0.5
    assert abs(found.checks["gap"]) < 0.01 * abs(difference)
    assert found.heat.sum() == pytest.approx(difference, rel=0.01)
    assert found.weights.sum() == pytest.approx(found.heat.sum(), rel=1e-4)


def test_grad_cam_finds_the_planted_quadrant(photo):
    kernel = np.random.default_rng(3).normal(size=(3, 3, 3, 2)).astype(np.float32)
    dark = (photo // 8).copy()
    dark[:16, 16:] += 200

    def tapped(images, delta):
        maps = jax.lax.conv_general_dilated(
            images / 255.0,
            jnp.abs(kernel),
            (4, 4),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        maps = maps + delta
        return 3 + maps.mean(axis=(1, 2)) @ jnp.array([2.0, 1.0]), maps

    found = grad_cam(tapped, dark)
    assert found.heat.shape == (SIZE, SIZE)
    quadrants = found.heat.reshape(2, 16, 2, 16).sum(axis=(1, 3))
    assert quadrants.argmax() == 1
    assert quadrants[0, 1] > 2 * np.sort(quadrants.ravel())[-2]
    assert found.heat.sum() == pytest.approx(found.prediction - 3, rel=0.02)


def subject_of(run, **changes):
    """The age, as predicted by an untrained run whose config has these changes."""
    opened = Run.open(run, devices=1)
    config = opened.config.copy_and_resolve_references()
    for key, value in changes.items():
        *parents, last = key.split("__")
        functools.reduce(getattr, parents, config)[last] = value
    made = heads.create(config.heads, opened.facts)
    model, initialise = state.create_model(config, made)
    params, stats = jax.jit(initialise)(jax.random.key(0))
    fields = {"config": config, "heads": made, "model": model}
    fields |= {"params": params, "batch_stats": stats}
    opened = dataclasses.replace(opened, **fields)
    return Subject.of(opened, "age", smooth=True)


@pytest.mark.parametrize(
    ("changes", "edge"),
    [
        ({}, 8),
        ({"heads__age__neck": {"greyscale": True, "convs": (4,), "pool": "flatten"}}, 8),
        ({"model__name": "vit", "model__options": {}}, 2),
        ({"model__name": "vit", "model__options": {}, "heads__age__neck": {"convs": (4,)}}, 2),
    ],
    ids=["maps", "neck", "class token", "neck over patches"],
)
def test_grad_cam_goes_the_networks_own_way(run, photo, changes, edge, monkeypatch):
    monkeypatch.setitem(registry.MODELS, "vit", functools.partial(vit.ViT, 24, 2, 2))
    subject = subject_of(run, **changes)
    values, cells = map(np.asarray, _cam(subject.tapped(None), photo[None]))
    np.testing.assert_allclose(values, values_of(subject.value(None), photo[None]), rtol=1e-5)
    assert cells.shape == (1, edge, edge)
    assert np.isfinite(cells).all()
    assert np.ptp(cells) > 0


def test_a_count_of_ranks_is_explained_by_its_expectation(run, photo):
    subject = subject_of(run, heads__age={"kind": "ordinal", "decode": "count"})
    found = integrated_gradients(subject.value(None), photo)
    assert np.abs(found.heat).max() > 0
    assert abs(found.checks["gap"]) < 0.01 * abs(found.prediction - found.checks["baseline"]) + 1e-3


@pytest.mark.parametrize(
    ("method", "target"),
    [("lime", "age"), ("integrated_gradients", "gender"), ("grad_cam", "ethnicity")],
)
def test_the_command_writes_figures_and_arrays_and_repeats_them(
    run, faces, tmp_path, capsys, method, target
):
    stem = "f\udce4ce"  # not all names are UTF-8
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(min(faces.iterdir()), tmp_path / folder / f"{stem}.jpg")
    (tmp_path / "b" / "broken.jpg").write_bytes(b"no image")
    outputs = []
    for name in ("once", "twice"):
        outputs.append(tmp_path / name)
        arguments = [f"--workdir={run}", f"--method={method}", f"--target={target}"]
        arguments += [f"--output={outputs[-1]}", str(tmp_path / "a"), str(tmp_path / "b")]
        assert run_command(explain.main, ["explain", *arguments]) == 0
        out, err = capsys.readouterr()
        assert "skipped" in err
        assert "broken.jpg" in err
        assert out.count("f\\udce4ce.jpg: " + target) == 2
    names = [f"{stem}-2.npz", f"{stem}-2.png", f"{stem}.npz", f"{stem}.png"]
    assert sorted(path.name for path in outputs[0].iterdir()) == names
    for name in names:
        assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes()
    arrays = np.load(outputs[0] / f"{stem}.npz")
    assert arrays["heat"].shape == arrays["segments"].shape == (SIZE, SIZE)
    assert arrays["weights"].shape == (arrays["segments"].max() + 1,)
    assert np.isfinite(arrays["heat"]).all()
    opened = Run.open(run, devices=1)
    batch = {"image": arrays["image"][None], "weight": np.ones(1, np.float32)}
    expected = opened.predict([batch])[target][0].max()
    assert arrays["prediction"] == pytest.approx(float(expected), rel=1e-4)
    assert (outputs[0] / f"{stem}.png").stat().st_size > 10_000


def test_what_a_user_can_do_wrong_takes_one_line(run, tmp_path, capsys, faces):
    path = str(min(faces.iterdir()))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for arguments, message in (
        ([str(tmp_path / "empty")], "no image"),
        ([str(tmp_path / "broken.jpg")], "none of the 1 file(s) is a readable image"),
        (["--target=height", path], "this run predicts age, ethnicity, gender"),
    ):
        assert run_command(explain.main, ["explain", f"--workdir={run}", *arguments]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
