"""The CPU lowerings equal the plain convolution and batch norm, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from agejax.models import layers


def random(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def assert_same_with_gradients(f, g, *arguments, rtol=2e-5, atol=2e-5):
    """Values, and gradients of a random functional, of f and g agree."""
    out = g(*arguments)
    probe = random(*out.shape, seed=9, dtype=out.dtype)
    np.testing.assert_allclose(f(*arguments), out, rtol=rtol, atol=atol)
    every = tuple(range(len(arguments)))
    ours, theirs = (
        jax.grad(lambda *a, h=h: jnp.sum(h(*a).astype(jnp.float32) * probe), every)(*arguments)
        for h in (f, g)
    )
    for a, b in zip(ours, theirs, strict=True):
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * max(scale, 1))


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(5, 12),
    width=st.integers(5, 12),
    size=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
)
def test_depthwise_equals_the_grouped_convolution(height, width, size, stride):
    x, kernel = random(2, height, width, 4), random(size, size, 1, 4, seed=1)
    assert_same_with_gradients(
        lambda x, k: layers.conv(x, k, stride, size // 2, groups=4),
        lambda x, k: layers.plain_conv(x, k, stride, size // 2, groups=4),
        x,
        kernel,
    )


@pytest.mark.parametrize(
    ("channels", "size", "stride"), [(8, 1, 1), (8, 1, 2), (3, 3, 2), (3, 7, 2)]
)
def test_pointwise_and_stem_equal_the_convolution(channels, size, stride):
    x, kernel = random(2, 11, 9, channels), random(size, size, channels, 6, seed=1)
    assert_same_with_gradients(
        lambda x, k: layers.conv(x, k, stride, size // 2),
        lambda x, k: layers.plain_conv(x, k, stride, size // 2),
        x,
        kernel,
        atol=1e-4,
    )


def test_depthwise_in_bfloat16_is_near_float32():
    x, kernel = random(2, 8, 8, 4), random(3, 3, 1, 4, seed=1)
    half = layers.conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), 1, 1, groups=4)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, layers.plain_conv(x, kernel, 1, 1, 4), rtol=0.05, atol=0.1)


def test_one_pass_batch_norm_equals_the_definition():
    x, scale, bias = random(4, 5, 6, 7) * 3 + 2, random(7, seed=1), random(7, seed=2)

    def by_definition(x, scale, bias):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias

    assert_same_with_gradients(
        lambda *a: layers.batch_norm(*a, 1e-3)[0], by_definition, x, scale, bias, atol=1e-4
    )
    _, mean, variance = layers.batch_norm(x, scale, bias, 1e-3)
    np.testing.assert_allclose(mean, np.asarray(x, np.float64).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, np.asarray(x, np.float64).var((0, 1, 2)), rtol=1e-4)


def test_batch_norm_moves_its_statistics_as_torch_does_and_not_when_frozen():
    norm, x = layers.BatchNorm(3, momentum=0.1), random(2, 4, 4, 3) + 5
    norm(x, train=False)
    np.testing.assert_array_equal(norm.mean[...], 0)
    norm(x, train=True)
    x64 = np.asarray(x, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x64.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x64.var(0, ddof=1), rtol=1e-5)

    frozen = layers.BatchNorm(3)
    frozen.frozen = True
    y = frozen(x, train=True)
    np.testing.assert_array_equal(frozen.mean[...], 0)
    np.testing.assert_allclose(y, frozen(x, train=False))


def test_plain_lowering_is_plain_and_equal():
    x, kernel = random(2, 8, 8, 4), random(3, 3, 1, 4, seed=1)

    def f(x, k):
        return layers.conv(x, k, 1, 1, groups=4)

    ours = jax.make_jaxpr(f)(x, kernel)
    with layers.plain_lowering():
        plain = jax.make_jaxpr(lambda x, k: f(x, k))(x, kernel)
    assert str(plain) != str(ours)
    assert "platform_index" not in str(plain)


def test_a_gpu_gets_the_plain_convolution():
    x, kernel = random(2, 8, 8, 4), random(3, 3, 1, 4, seed=1)

    def loss(x, k):
        return layers.conv(x, k, 1, 1, groups=4).sum()

    def text(platform):
        return export.export(jax.jit(jax.grad(loss)), platforms=[platform])(x, kernel).mlir_module()

    assert "stablehlo.convolution" in text("cuda")
    assert "stablehlo.convolution" not in text("cpu")


def test_dropout_keeps_the_mean_and_needs_no_state():
    drop, x = layers.Dropout(0.4), jnp.ones((200, 200))
    np.testing.assert_array_equal(drop(x, train=False, rngs=None), x)
    y = drop(x, train=True, rngs=nnx.Rngs(dropout=0))
    assert float(y.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((y == 0).mean()) == pytest.approx(0.4, abs=0.02)


def test_max_pool_pads_below_every_value():
    y = layers.max_pool(-jnp.ones((1, 4, 4, 1)), 3, 2, 1)
    np.testing.assert_array_equal(y, -np.ones((1, 2, 2, 1)))
