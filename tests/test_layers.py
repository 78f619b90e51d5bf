"""Layers with statistics or random draws: what they keep, and what they drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_lowerings import random

from agejax.models import layers


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
    # Rows are drawn independently: two neighbours are both kept with probability 0.6².
    kept = np.asarray(rows[:, 0] > 0)
    assert (kept[1:] & kept[:-1]).mean() == pytest.approx(0.36, abs=0.03)


def test_drop_path_draws_the_same_rows_on_any_number_of_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    drop, x = layers.DropPath(0.5), jnp.ones((16, 3))

    def run(x):
        return drop(x, train=True, rngs=nnx.Rngs(dropout=3))

    np.testing.assert_array_equal(jax.jit(run)(jax.device_put(x, split)), jax.jit(run)(x))
