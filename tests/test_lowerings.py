"""Every lowering equals XLA's own operation, values and gradients."""

import functools
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from agejax.errors import UserError
from agejax.models import lowerings, registry
from agejax.models.lowerings import conv as conv_lib
from agejax.models.lowerings.activation import gelu
from agejax.models.lowerings.attention import attention
from agejax.models.lowerings.conv import conv, matmul
from agejax.models.lowerings.norm import batch_norm, layer_norm
from agejax.models.lowerings.pool import max_pool, mean_pool
from agejax.models.lowerings.windows import plain_conv
from agejax.process.command import run_command
from experiments.benchmarks import lowerings as benchmark


def random(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def assert_same_with_gradients(f, g, *arguments, rtol=2e-5, atol=2e-5):
    """Checks that values of f and g, and gradients of a random functional of them, are equal."""

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
        lambda x, k: conv(x, k, stride, size // 2, groups=4),
        lambda x, k: plain_conv(x, k, stride, size // 2, groups=4),
        x,
        kernel,
    )


@pytest.mark.parametrize(
    ("channels", "size", "stride"), [(8, 1, 1), (8, 1, 2), (3, 3, 2), (3, 7, 2)]
)
def test_pointwise_and_stem_equal_the_convolution(channels, size, stride):
    x, kernel = random(2, 11, 9, channels), random(size, size, channels, 6, seed=1)
    assert_same_with_gradients(
        lambda x, k: conv(x, k, stride, size // 2),
        lambda x, k: plain_conv(x, k, stride, size // 2),
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
    jaxpr = str(jax.make_jaxpr(lambda x, k: conv(x, k, stride, padding))(x, kernel))
    assert "dot_general" in jaxpr
    assert_same_with_gradients(
        lambda x, k: conv(x, k, stride, padding),
        lambda x, k: plain_conv(x, k, stride, padding),
        x,
        kernel,
        atol=1e-3,
    )


@pytest.mark.parametrize(("size", "stride", "groups"), [(3, 1, 2), (3, 2, 4), (1, 2, 2), (3, 2, 8)])
def test_a_convolution_in_groups_equals_the_plain_one(size, stride, groups):
    x, kernel = random(2, 7, 10, 8), random(size, size, 8 // groups, 16, seed=1)
    assert_same_with_gradients(
        lambda x, k: conv(x, k, stride, size // 2, groups),
        lambda x, k: plain_conv(x, k, stride, size // 2, groups),
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
        y = conv(x, k, 2, size // 2, groups)
        assert y.dtype == jnp.bfloat16
        return y

    def full(x, k):
        x, k = x.astype(jnp.float32), k.astype(jnp.float32)
        return plain_conv(x, k, 2, size // 2, groups).astype(jnp.bfloat16)

    # Sums of up to 25 products, each rounded to 8 bits.
    assert_same_with_gradients(half, full, x, kernel, rtol=0.03, atol=0.05)


@pytest.mark.parametrize(("size", "stride", "parts"), [(3, 1, 1), (3, 2, 2), (5, 2, 1), (1, 2, 3)])
def test_the_kernel_gradient_of_many_pixels_equals_the_convolution_s(
    size, stride, parts, monkeypatch
):
    monkeypatch.setattr(conv_lib, "TAP_GRADIENT_MIN_PIXELS", 0)
    monkeypatch.setattr(conv_lib, "TILE_BYTES", 2**11)  # two images at a time, at most
    x, kernel = random(6, 8, 7, 5), random(size, size, 5, 6, seed=1)

    def ours(x, k):
        return conv_lib.dense(x, k, stride, size // 2)

    with lowerings.batch_split(parts):
        jaxpr = str(jax.make_jaxpr(jax.grad(lambda k: ours(x, k).sum()))(kernel))
        assert "scan" in jaxpr
        assert_same_with_gradients(
            ours, lambda x, k: plain_conv(x, k, stride, size // 2), x, kernel, atol=1e-4
        )


def test_one_pass_batch_norm_equals_the_definition():
    x, scale, bias = random(4, 5, 6, 7) * 3 + 2, random(7, seed=1), random(7, seed=2)

    def by_definition(x, scale, bias):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias

    assert_same_with_gradients(
        lambda *a: batch_norm(*a, 1e-3)[0], by_definition, x, scale, bias, atol=1e-4
    )
    _, mean, variance = batch_norm(x, scale, bias, 1e-3)
    np.testing.assert_allclose(mean, np.asarray(x, np.float64).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, np.asarray(x, np.float64).var((0, 1, 2)), rtol=1e-4)


def block(x, kernel, pointwise, scale):
    """MobileNet's building block; the sum's gradient passes through every lowering."""
    x, mean, variance = batch_norm(x, scale, scale, 1e-3)
    x = jax.nn.hard_swish(conv(x, kernel, 2, 2, groups=8))
    return conv(x, pointwise), mean, variance


BLOCK = (random(16, 9, 9, 8) + 1, random(5, 5, 1, 8), random(1, 1, 8, 6), random(8))


def block_loss(*arguments):
    y, mean, variance = block(*arguments)
    return jnp.sum(jnp.sin(y)), (mean, variance)


def test_batch_on_eight_devices_gives_the_statistics_and_gradients_of_one_batch():
    step = jax.value_and_grad(block_loss, (0, 1, 2, 3), has_aux=True)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    with lowerings.batch_split(8):
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
    assert_same_with_gradients(attention, plain, qkv, **near)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_equals_that_of_jax(dtype):
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype == jnp.bfloat16 else {}
    x = jnp.concatenate([random(500, dtype=dtype) * 3, jnp.array([0, -30, 30], dtype)])
    exact = functools.partial(jax.nn.gelu, approximate=False)
    assert_same_with_gradients(gelu, exact, x, **near)


# Functions, with arguments for which the fast form is another one than JAX's own.
FORMS = {
    "depthwise": (lambda x, k: conv(x, k, 1, 1, groups=4), (2, 8, 8, 4), (3, 3, 1, 4)),
    "groups": (lambda x, k: conv(x, k, 1, 1, groups=2), (2, 8, 8, 4), (3, 3, 2, 4)),
    "pointwise": (conv, (2, 8, 8, 5), (1, 1, 5, 6)),
    "stem": (lambda x, k: conv(x, k, 2, 1), (2, 8, 8, 3), (3, 3, 3, 4)),
    "dense": (lambda x, k: conv(x, k, 1, 1), (2, 70, 70, 5), (3, 3, 5, 6)),
    "matmul": (matmul, (2, 3, 5), (5, 4)),
    "batch norm": (lambda x, a, b: batch_norm(x, a, b, 1e-3)[0], (2, 5, 4, 3), (3,), (3,)),
    "layer norm": (lambda x, a, b: layer_norm(x, a, b, 1e-6), (4, 5, 6), (6,), (6,)),
    "gelu": (gelu, (50,)),
    "attention": (attention, (2, 7, 3, 2, 4)),
    "max pool": (lambda x: max_pool(x, 3, 2, 1), (2, 7, 8, 3)),
    "mean pool": (lambda x: mean_pool(x, 3, 2, count_padding=False), (2, 7, 8, 3)),
}


@pytest.mark.parametrize("name", FORMS)
def test_plain_reaches_every_lowering_and_changes_no_value(name):
    function, *shapes = FORMS[name]
    arguments = [random(*shape, seed=i) for i, shape in enumerate(shapes)]

    def program():  # a new function each time: JAX keeps traced ones
        def loss(*a):
            return function(*a).sum()

        return str(jax.make_jaxpr(jax.value_and_grad(lambda *a: loss(*a)))(*arguments))

    def plainly(*a):
        with lowerings.plain():
            return function(*a)

    ours = program()
    with lowerings.plain():
        plain = program()
        with lowerings.by_platform():
            assert program() == ours
    assert plain != ours
    for trace in ("custom_vjp", "platform_index"):
        assert trace not in plain
    assert_same_with_gradients(function, plainly, *arguments, atol=1e-4)


def test_plain_in_one_thread_leaves_the_others_alone():
    with lowerings.plain(), lowerings.batch_split(4), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lowerings.is_plain).result() is False
        assert pool.submit(lowerings.batch_parts).result() == 1
        assert (lowerings.is_plain(), lowerings.batch_parts()) == (True, 4)
    assert (lowerings.is_plain(), lowerings.batch_parts()) == (False, 1)


def test_a_gpu_gets_the_plain_convolution():
    x, kernel = random(2, 8, 8, 4), random(3, 3, 1, 4, seed=1)

    def loss(x, k):
        return conv(x, k, 1, 1, groups=4).sum()

    def text(platform):
        return export.export(jax.jit(jax.grad(loss)), platforms=[platform])(x, kernel).mlir_module()

    def traced(platform):
        with lowerings.platform(platform):
            return str(jax.make_jaxpr(jax.grad(lambda *a: loss(*a)))(x, kernel))

    assert "stablehlo.convolution" in text("cuda")
    assert "stablehlo.convolution" not in text("cpu")
    for other, used in (("gpu", True), ("cpu", False)):
        assert ("conv_general_dilated" in traced(other)) is used
        assert "platform_index" not in traced(other)


def test_max_pool_pads_below_every_value():
    y = max_pool(-jnp.ones((1, 4, 4, 1)), 3, 2, 1)
    np.testing.assert_array_equal(y, -np.ones((1, 2, 2, 1)))


@pytest.mark.parametrize(("n", "expected"), [(7, [2, 4, 6]), (8, [2, 4, 6, 7])])
def test_a_ceiled_max_pool_counts_the_last_window_that_is_not_full(n, expected):
    x = jnp.arange(float(n)).reshape(1, 1, n, 1)
    y = max_pool(jnp.broadcast_to(x, (1, n, n, 1)), 3, 2, ceil=True)
    np.testing.assert_array_equal(y[0, :, :, 0], np.tile(expected, (len(expected), 1)))


def test_a_pool_of_more_pixels_than_are_left_is_refused():
    cnn = registry.create("cnn", image_size=4, rngs=nnx.Rngs(0), widths=(2, 2, 2))
    with pytest.raises(UserError, match="image_size: a pool of 2x2 pixels gets maps of only 1x1"):
        cnn(random(1, 4, 4, 3))
    assert max_pool(random(1, 1, 1, 2), 3, 2, 1).shape == (1, 1, 1, 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pool_sends_its_gradient_to_the_maximum(dtype):
    x = jnp.arange(16, dtype=dtype).reshape(1, 4, 4, 1)
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, 2, 2).sum()))(x)
    np.testing.assert_array_equal(
        gradient[0, :, :, 0], [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]
    )


@pytest.mark.parametrize(
    ("size", "stride", "padding", "ceil"),
    [(2, 2, 0, False), (3, 2, 1, False), (3, 2, 0, True), (3, 1, 1, False)],
)
def test_max_pool_equals_xla_s_with_equal_values_and_nan(size, stride, padding, ceil):
    """The first of equal values gets the gradient, bit for bit; a NaN stays NaN."""
    values = jnp.round(random(2, 9, 8, 3))  # many are equal
    scale = random(*max_pool(values, size, stride, padding, ceil=ceil).shape, seed=1)

    def pool(x):
        return max_pool(x, size, stride, padding, ceil=ceil)

    def results():
        gradient = jax.jit(jax.grad(lambda x: (pool(x) * scale).sum()))(values)
        return pool(values), pool(values.at[0, 4, 4].set(jnp.nan)), gradient

    ours = results()
    with lowerings.plain():
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
        pooled = mean_pool(x, size, stride, count_padding=count_padding)
        np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


def test_the_benchmark_sets_ours_beside_xla_s_and_a_constant_beside_other_values(tmp_path, capsys):
    flags = ["--batch=2", "--turns=2", "--seconds=0", f"--output={tmp_path / 'out.json'}"]
    only = "--only=FEW_CHANNELS: [45]|ROWS_PER_SUM.* 7 x 7|GELU"
    assert run_command(benchmark.main, ["lowerings", *flags, only]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    stem, wider, rows_per_sum, gelu_row = result["rows"]
    assert (stem["threshold"], wider["threshold"]) == ("FEW_CHANNELS: 4", "FEW_CHANNELS: 5")
    assert stem["ms"].keys() == {"ours", "XLA", "agejax"}
    assert gelu_row["ms"].keys() == {"ours", "XLA"}
    assert rows_per_sum["ms"].keys() == {"4", "8", "16", "32", "64"}
    text = (tmp_path / "out.md").read_text()
    assert "| im2col | 2 x 64 x 64 x 4, 3 x 3 x 4 x 32 / 2 | FEW_CHANNELS: 4 |" in text
    assert "| ROWS_PER_SUM | 2 x 7 x 7 x 240, 5 x 5 | 4: " in text

    capsys.readouterr()
    assert run_command(benchmark.main, ["lowerings", *flags, "--only=nothing"]) == 2
    assert "--only=nothing: no such case; there are im2col, 2 x 64" in capsys.readouterr().err


def test_a_choice_that_loses_every_turn_by_both_clocks_is_called_wrong():
    row = {"operation": "im2col", "shape": "s", "threshold": "t", "ms": {"ours": 2.0, "XLA": 1.0}}
    row["XLA / ours, ms"] = {"median": 0.5, "min": 0.4, "max": 0.6}
    row["XLA / ours, cpu_ms"] = {"median": 0.7, "min": 0.6, "max": 0.8}
    lost = {"median": 2.0, "min": 1.1, "max": 2.5}
    at_times = {"median": 1.2, "min": 1.0, "max": 2.5}
    line = "| im2col | s | t | 2 | 1 | 0.50 (0.40 to 0.60) | 0.70 (0.60 to 0.80) | 2 |"
    for ms, cpu_ms, choice in (
        (lost, lost, "wrong: 2.00 x"), (lost, at_times, "right"), (at_times, lost, "right"),
    ):  # fmt: skip
        losses = {"agejax / faster, ms": ms, "agejax / faster, cpu_ms": cpu_ms}
        assert f"{line} {choice} |" in benchmark.table([row | losses])


def test_contestants_that_compute_other_things_are_not_compared():
    contestants = {"ours": lambda x: x, "XLA": lambda x: 1.01 * x}
    with pytest.raises(UserError, match="no, 5: XLA computes other values"):
        benchmark.measure(benchmark.Case("no", "5", "", ((5,),), contestants), 1, 0)
