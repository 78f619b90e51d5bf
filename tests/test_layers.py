"""The CPU lowerings equal the plain convolution and batch norm, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from agejax.errors import UserError
from agejax.models import layers, registry


def random(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def assert_same_with_gradients(f, g, *arguments, rtol=2e-5, atol=2e-5):
    """Values, and gradients of a random functional, of f and g agree."""

    def values_and_gradients(h):
        out, pull = jax.vjp(h, *arguments)
        probe = random(*out.shape, seed=9).astype(out.dtype)
        return [x.astype(jnp.float32) for x in (out, *pull(probe))]

    ours, theirs = (jax.jit(values_and_gradients, static_argnums=0)(h) for h in (f, g))
    for a, b in zip(ours, theirs, strict=True):
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * max(scale, 1))


@pytest.mark.parametrize(
    ("height", "width", "size", "stride"),
    [(8, 8, 3, 1), (7, 10, 3, 2), (8, 5, 3, 2), (6, 9, 5, 1), (11, 8, 5, 2), (2, 1, 5, 2)],
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


@pytest.mark.parametrize(
    ("height", "width", "channels", "size", "stride", "padding"),
    [(1, 1, 8, 3, 1, 1), (2, 3, 8, 3, 1, 1), (5, 5, 8, 3, 2, 1), (7, 6, 384, 3, 1, 1),
     (9, 8, 384, 3, 2, 1), (6, 4, 8, 5, 2, 1), (4, 4, 8, 2, 2, 0)],
)  # fmt: skip
def test_a_convolution_to_few_pixels_equals_the_plain_one(
    height, width, channels, size, stride, padding
):
    x, kernel = random(2, height, width, channels), random(size, size, channels, 6, seed=1)
    jaxpr = str(jax.make_jaxpr(lambda x, k: layers.conv(x, k, stride, padding))(x, kernel))
    assert "dot_general" in jaxpr
    assert_same_with_gradients(
        lambda x, k: layers.conv(x, k, stride, padding),
        lambda x, k: layers.plain_conv(x, k, stride, padding),
        x,
        kernel,
        atol=1e-3,
    )


@pytest.mark.parametrize(("size", "stride", "groups"), [(3, 1, 2), (3, 2, 4), (1, 2, 2), (3, 2, 8)])
def test_a_convolution_in_groups_equals_the_plain_one(size, stride, groups):
    x, kernel = random(2, 7, 10, 8), random(size, size, 8 // groups, 16, seed=1)
    assert_same_with_gradients(
        lambda x, k: layers.conv(x, k, stride, size // 2, groups),
        lambda x, k: layers.plain_conv(x, k, stride, size // 2, groups),
        x,
        kernel,
    )


@pytest.mark.parametrize(
    ("channels", "size", "groups"), [(4, 3, 4), (4, 5, 4), (8, 1, 1), (3, 3, 1)]
)
def test_bfloat16_is_near_float32_and_stays_bfloat16(channels, size, groups):
    x = random(2, 8, 8, channels).astype(jnp.bfloat16)
    kernel = random(size, size, channels // groups, channels, seed=1).astype(jnp.bfloat16)

    def half(x, k):
        y = layers.conv(x, k, 2, size // 2, groups)
        assert y.dtype == jnp.bfloat16
        return y

    def full(x, k):
        x, k = x.astype(jnp.float32), k.astype(jnp.float32)
        return layers.plain_conv(x, k, 2, size // 2, groups).astype(jnp.bfloat16)

    # Sums of up to 25 products, each rounded to 8 bits.
    assert_same_with_gradients(half, full, x, kernel, rtol=0.03, atol=0.05)


@pytest.mark.parametrize(("size", "stride", "parts"), [(3, 1, 1), (3, 2, 2), (5, 2, 1), (1, 2, 3)])
def test_the_kernel_gradient_of_many_pixels_equals_the_convolution_s(
    size, stride, parts, monkeypatch
):
    monkeypatch.setattr(layers, "PIXELS", 0)
    monkeypatch.setattr(layers, "CACHE", 2**11)  # two images at a time, at most
    monkeypatch.setattr(layers, "_parts", parts)
    x, kernel = random(6, 8, 7, 5), random(size, size, 5, 6, seed=1)

    def ours(x, k):
        return layers._dense(x, k, stride, size // 2)

    jaxpr = str(jax.make_jaxpr(jax.grad(lambda k: ours(x, k).sum()))(kernel))
    assert "scan" in jaxpr
    assert_same_with_gradients(
        ours, lambda x, k: layers.plain_conv(x, k, stride, size // 2), x, kernel, atol=1e-4
    )


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


def block(x, kernel, pointwise, scale):
    """What MobileNet is made of; the sum's gradient passes through every lowering."""
    x, mean, variance = layers.batch_norm(x, scale, scale, 1e-3)
    x = jax.nn.hard_swish(layers.conv(x, kernel, 2, 2, groups=8))
    return layers.conv(x, pointwise), mean, variance


BLOCK = (random(16, 9, 9, 8) + 1, random(5, 5, 1, 8), random(1, 1, 8, 6), random(8))


def block_loss(*arguments):
    y, mean, variance = block(*arguments)
    return jnp.sum(jnp.sin(y)), (mean, variance)


def test_batch_on_eight_devices_gives_the_statistics_and_gradients_of_one_batch():
    step = jax.value_and_grad(block_loss, (0, 1, 2, 3), has_aux=True)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    with layers.batch_split(8):
        sharded = jax.jit(step, in_shardings=(split, whole, whole, whole)).lower(*BLOCK).compile()
    # Sums cross devices, images do not.
    assert "all-reduce" in sharded.as_text()
    assert "all-gather" not in sharded.as_text()
    placed = [jax.device_put(BLOCK[0], split), *(jax.device_put(a, whole) for a in BLOCK[1:])]
    for a, b in zip(
        jax.tree.leaves(sharded(*placed)), jax.tree.leaves(jax.jit(step)(*BLOCK)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_recomputing_in_the_backward_pass_changes_nothing():
    def gradients(loss):
        return jax.jit(jax.grad(lambda *a: loss(*a)[0], (0, 1, 2, 3)))(*BLOCK)

    for a, b in zip(gradients(jax.checkpoint(block_loss)), gradients(block_loss), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attention_equals_that_of_jax(dtype):
    def plain(qkv):
        return jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)))

    near = {"rtol": 2e-2, "atol": 2e-2} if dtype == jnp.bfloat16 else {}
    qkv = random(3, 11, 3, 2, 8, dtype=dtype)
    assert_same_with_gradients(layers.attention, plain, qkv, **near)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_equals_that_of_jax(dtype):
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype == jnp.bfloat16 else {}
    x = jnp.concatenate([random(500, dtype=dtype) * 3, jnp.array([0, -30, 30], dtype)])
    exact = functools.partial(jax.nn.gelu, approximate=False)
    assert_same_with_gradients(layers.gelu, exact, x, **near)


def test_plain_lowering_is_plain_and_equal():
    x, kernel = random(2, 8, 8, 4), random(3, 3, 1, 4, seed=1)

    def f(x, k):
        return layers.conv(x, k, 1, 1, groups=4)

    ours = jax.make_jaxpr(f)(x, kernel)
    with layers.plain_lowering():
        plain = jax.make_jaxpr(lambda x, k: f(x, k))(x, kernel)
        with layers.platform_lowering():
            again = jax.make_jaxpr(lambda x, k: f(x, k))(x, kernel)
    assert "platform_index" in str(ours)
    assert "platform_index" in str(again)
    assert "platform_index" not in str(plain)
    assert "conv_general_dilated" in str(plain)


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


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    drop, x = layers.DropPath(0.4), jnp.ones((4000, 2, 3, 2))
    np.testing.assert_array_equal(drop(x, train=False, rngs=None), x)
    rows = drop(x, train=True, rngs=nnx.Rngs(dropout=0)).reshape(4000, -1)
    np.testing.assert_array_equal(rows, jnp.broadcast_to(rows[:, :1], rows.shape))
    np.testing.assert_allclose(np.unique(rows[:, 0]), [0, 1 / 0.6], rtol=1e-6)
    assert float(rows.mean()) == pytest.approx(1.0, abs=0.04)  # 3 deviations
    # Rows are drawn independently: neighbours are both kept as often as 0.6² says.
    kept = np.asarray(rows[:, 0] > 0)
    assert (kept[1:] & kept[:-1]).mean() == pytest.approx(0.36, abs=0.03)


def test_drop_path_draws_the_same_rows_on_any_number_of_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    drop, x = layers.DropPath(0.5), jnp.ones((16, 3))

    def run(x):
        return drop(x, train=True, rngs=nnx.Rngs(dropout=3))

    np.testing.assert_array_equal(jax.jit(run)(jax.device_put(x, split)), jax.jit(run)(x))


def test_max_pool_pads_below_every_value():
    y = layers.max_pool(-jnp.ones((1, 4, 4, 1)), 3, 2, 1)
    np.testing.assert_array_equal(y, -np.ones((1, 2, 2, 1)))


@pytest.mark.parametrize(("n", "expected"), [(7, [2, 4, 6]), (8, [2, 4, 6, 7])])
def test_a_ceiled_max_pool_counts_the_last_window_that_is_not_full(n, expected):
    x = jnp.arange(float(n)).reshape(1, 1, n, 1)
    y = layers.max_pool(jnp.broadcast_to(x, (1, n, n, 1)), 3, 2, ceil=True)
    np.testing.assert_array_equal(y[0, :, :, 0], np.tile(expected, (len(expected), 1)))


def test_a_pool_of_more_pixels_than_are_left_is_refused():
    cnn = registry.create("cnn", image_size=4, rngs=nnx.Rngs(0), widths=(2, 2, 2))
    with pytest.raises(UserError, match="image_size: at a pool of 2x2 pixels 1x1 are left"):
        cnn(random(1, 4, 4, 3))
    assert layers.max_pool(random(1, 1, 1, 2), 3, 2, 1).shape == (1, 1, 1, 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pool_sends_its_gradient_to_the_maximum(dtype):
    x = jnp.arange(16, dtype=dtype).reshape(1, 4, 4, 1)
    gradient = jax.jit(jax.grad(lambda x: layers.max_pool(x, 2, 2).sum()))(x)
    np.testing.assert_array_equal(
        gradient[0, :, :, 0], [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]
    )


@pytest.mark.parametrize(
    ("size", "stride", "padding", "ceil"),
    [(2, 2, 0, False), (3, 2, 1, False), (3, 2, 0, True), (3, 1, 1, False)],
)
def test_max_pool_equals_xla_s_with_equal_values_and_nan(size, stride, padding, ceil):
    """Of equal values the first has the gradient, bit for bit; a NaN stays one."""
    values = jnp.round(random(2, 9, 8, 3))  # many are equal
    scale = random(*layers.max_pool(values, size, stride, padding, ceil=ceil).shape, seed=1)

    def pool(x):
        return layers.max_pool(x, size, stride, padding, ceil=ceil)

    def results():
        gradient = jax.jit(jax.grad(lambda x: (pool(x) * scale).sum()))(values)
        return pool(values), pool(values.at[0, 4, 4].set(jnp.nan)), gradient

    ours = results()
    with layers.plain_lowering():
        for a, b in zip(ours, results(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(("n", "stride"), [(1, 1), (4, 1), (5, 1), (4, 2), (5, 2)])
def test_mean_pool_equals_the_mean_of_its_windows(n, stride):
    x = random(2, n, n + 1, 3)
    size, inputs, padding = 3, np.asarray(x), {}
    for axis in (1, 2):
        length = x.shape[axis]
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        padding[axis] = (total // 2, total - total // 2)
    padded = np.pad(inputs, [(0, 0), padding[1], padding[2], (0, 0)], constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    for count_padding, expected in (
        (False, np.nanmean(windows, axis=(-2, -1))),
        (True, np.nansum(windows, axis=(-2, -1)) / 9),
    ):
        pooled = layers.mean_pool(x, size, stride, count_padding=count_padding)
        np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
