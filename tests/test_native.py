"""The kernels that this machine's compiler builds: values, gradients, where they are used."""

import functools
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_export import images, with_model
from test_step import Bench, batch_of

from agejax.config import replaced
from agejax.exporting.prediction import prediction
from agejax.models import lowerings, mobilenet_v3, registry, vit
from agejax.models.lowerings import attention, native
from agejax.models.lowerings.conv import conv
from agejax.models.lowerings.windows import plain_conv
from agejax.runs.run import Run
from agejax.training import sharding
from agejax.training import state as state_lib
from agejax.training import step as step_lib

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="no C++ compiler"
)


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def plain(qkv):
    return jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))


def with_gradient(function):
    def both(*arrays):
        *arguments, dy = arrays
        y, pull = jax.vjp(function, *arguments)
        return y, *pull(dy)

    return jax.jit(both)


def is_called(function, *arguments):
    """Whether a program, jitted or not, calls a kernel."""
    return "target_name=agejax_" in str(jax.make_jaxpr(function)(*arguments))


@needs_compiler
@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "scale"),
    [(1, 1, 16, 1.0), (48, 2, 32, 8.0), (65, 3, 64, 1.0), (197, 1, 48, 8.0)],
)
def test_values_and_gradients_are_those_of_jax(tokens, heads, dim, scale):
    assert native.is_ready()
    qkv, dy = scale * random(2, tokens, 3, heads, dim), random(2, tokens, heads, dim, seed=1)
    ours, theirs = (with_gradient(f)(qkv, dy) for f in (native.attention, plain))
    for a, b in zip(ours, theirs, strict=True):
        # A larger scale makes scores of some hundreds, which a float32 holds to 1e-5.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * scale**2 * float(jnp.abs(b).max()))


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "size", "stride", "padding"),
    [(19, 7, 10, 24, 3, 2, 1), (16, 5, 4, 72, 5, 1, 2), (2, 1, 2, 16, 5, 2, 2),
     (2, 6, 6, 17, 5, 3, 4)],
)  # fmt: skip
def test_a_depthwise_convolution_is_xla_s(batch, height, width, channels, size, stride, padding):
    @lowerings.native_kernels(True)
    def ours(x, kernel):
        return conv(x, kernel, stride, padding, channels)

    def theirs(x, kernel):
        return plain_conv(x, kernel, stride, padding, channels)

    x, kernel = random(batch, height, width, channels), random(size, size, 1, channels, seed=1)
    dy = random(*jax.eval_shape(theirs, x, kernel).shape, seed=2)
    assert is_called(ours, x, kernel)
    with lowerings.native_kernels(True):  # the gradient is traced here
        found = with_gradient(ours)(x, kernel, dy)
    for a, b in zip(found, with_gradient(theirs)(x, kernel, dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "height", "width", "filters", "stride", "padding"),
    [(19, 8, 11, 16, 2, 1), (2, 7, 6, 40, 1, 0)],
)
def test_a_convolution_of_rgb_is_xla_s(batch, height, width, filters, stride, padding):
    def ours(x, kernel):
        with lowerings.native_kernels(True):
            return conv(x, kernel, stride, padding)

    def theirs(x, kernel):
        return plain_conv(x, kernel, stride, padding)

    x, kernel = random(batch, height, width, 3), random(3, 3, 3, filters, seed=1)
    dy = random(*jax.eval_shape(theirs, x, kernel).shape, seed=2)
    assert is_called(ours, x, kernel)
    found, expected = (with_gradient(f)(x, kernel, dy) for f in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


@needs_compiler
def test_scores_that_differ_by_thousands_share_nothing():
    qkv = np.zeros((1, 3, 3, 1, 16), np.float32)
    qkv[0, :, 0, 0, 0] = 100  # queries
    qkv[0, :, 1, 0, 0] = [-100, 100, 0]  # keys: scores of -2,500, 2,500 and 0
    qkv[0, :, 2, 0] = np.array([3, 5, 7])[:, None]
    y, gradient = with_gradient(native.attention)(qkv, jnp.ones((1, 3, 1, 16)))
    np.testing.assert_array_equal(y, np.full((1, 3, 1, 16), 5))
    np.testing.assert_array_equal(gradient[0, :, 2, 0, 0], [0, 3, 0])
    np.testing.assert_array_equal(gradient[0, :, :2], 0)


@needs_compiler
def test_what_is_not_a_number_stays_so():
    qkv = random(2, 20, 3, 2, 16).at[0, 3, 0, 1, 5].set(jnp.nan)
    y, gradient = with_gradient(native.attention)(qkv, jnp.ones((2, 20, 2, 16)))
    nan = np.isnan(y).any(axis=-1)
    assert nan[0, 3, 1]
    assert nan.sum() == 1
    assert np.isnan(gradient[0, :, :2, 1]).any()
    assert np.isfinite(gradient[1]).all()


@needs_compiler
def test_many_calls_at_a_time_do_not_wait_for_each_other():
    # More calls than the pool has threads, each of which waits for its own tasks.
    qkv = random(8, 2, 33, 3, 2, 16)
    each = jax.jit(lambda qkv: [native.attention(x) for x in qkv])
    for a, b in zip(each(qkv), map(plain, qkv), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@needs_compiler
def test_an_evaluation_uses_them_and_an_exported_model_does_not(trained, monkeypatch):
    monkeypatch.setitem(registry.MODELS, "mlp", functools.partial(vit.ViT, 32, 1, 2))
    run = with_model(Run.open(trained, devices=1), name="mlp", options={})

    def step(**settings):
        config = replaced(run.config, settings)
        model, _ = state_lib.create_model(config, run.heads)
        return functools.partial(
            step_lib.make_eval_step(config, model), run.params, run.batch_stats
        )

    batch = {"image": images(2)}
    assert not is_called(step(), batch)  # on eight devices
    only = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: only)
    assert is_called(step(), batch)
    assert not is_called(step(native=False), batch)
    assert not is_called(step(**{"model.dtype": "bfloat16"}), batch)
    assert not is_called(prediction(run), images(2))


NETWORKS = {
    "vit": functools.partial(vit.ViT, 32, 1, 2),
    "mobilenet": functools.partial(mobilenet_v3.MobileNetV3, mobilenet_v3.SMALL[:2], 8),
}
KERNELS = {
    "vit": ["attention", "attention_back"],
    "mobilenet": ["depthwise", "depthwise_back", "rgb", "rgb_back"],
}


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_a_train_step_uses_them_on_one_device(name, monkeypatch):
    monkeypatch.setitem(registry.MODELS, "mlp", NETWORKS[name])
    changes = {"model__name": "mlp", "model__options": {}, "model__image_size": 16}
    bench = Bench(**changes, optim__lr_multipliers=((".*", 1.0),))

    def calls(devices, **settings):
        config = replaced(bench.config, settings)
        mesh = sharding.create_mesh(devices, 1)
        like = state_lib.abstract(config, bench.initialise, bench.optimizer, mesh)
        step = step_lib.make_train_step(config, bench.model, bench.optimizer, like)
        text = str(jax.make_jaxpr(step)(bench.start, batch_of()))
        return sorted(set(re.findall(r"target_name=agejax_(\w+)", text)))

    assert calls(1) == KERNELS[name]
    assert calls(1, native=False) == calls(2) == []


@pytest.mark.parametrize(
    ("compiler", "why"),
    [("", "no C++ compiler"), ("false -x", "false failed"), ("/nowhere/c++", "/nowhere/c++")],
)
def test_without_a_compiler_attention_stays_xla_s(compiler, why, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("AGEJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(native, "COMPILERS", ())
    monkeypatch.setattr(native, "is_ready", native.is_ready.__wrapped__)
    qkv = random(2, 5, 3, 2, 16)
    with lowerings.native_kernels(True):
        assert not is_called(attention.attention, qkv)
        np.testing.assert_allclose(attention.attention(qkv), plain(qkv), atol=1e-6)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "not built" in said
    assert why in said


@needs_compiler
def test_it_is_built_once(monkeypatch):
    library = native.build()
    monkeypatch.setattr(subprocess, "run", None)
    assert native.build() == library
    assert [path.name for path in library.parent.iterdir()] == [library.name]
