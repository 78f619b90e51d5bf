"""NASNet and PNASNet: the inputs of cells, and the two ways to pad max pooling."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agejax.models import nasnet
from agejax.models.layers import BatchNorm, Conv
from agejax.models.nasnet import FactorizedReduction, Pool, ReluConvNorm


def abstract(make):
    return nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))


def test_a_cell_after_a_reduction_looks_past_it_in_the_large_network_alone():
    mobile, large = abstract(nasnet.nasnet_mobile), abstract(nasnet.nasnet_large)
    assert mobile.previous == (0, *range(15))
    # Cells 8 and 15 reduce; the ones after them take the same previous input.
    assert large.previous == (0, *range(8), 7, *range(9, 15), 14, *range(16, 21))
    for network, reductions in ((mobile, (0, 1, 6, 11)), (large, (0, 1, 8, 15))):
        for i, cell in enumerate(network.cells):
            assert (cell.stride == 2) is (i in reductions)
            halves = isinstance(cell.adjust, FactorizedReduction)
            assert halves is (i - 1 in reductions)
            assert halves or isinstance(cell.adjust, ReluConvNorm) or i == 0


@pytest.mark.parametrize(("border", "expected"), [(0.0, [-1, 0]), (-np.inf, [-1, -3])])
def test_padding_with_zeros_wins_over_negative_values(border, expected):
    pool = Pool(1, 1, 3, kind="max", stride=2, border=border, conv=Conv, norm=BatchNorm)
    # Of an even size: all padding is at the end, so that the first window has none.
    x = -jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    y = pool(x, train=False)
    assert y.shape == (1, 2, 2, 1)
    np.testing.assert_array_equal(y[0, 0, :, 0], expected)


def test_a_factorized_reduction_takes_even_pixels_and_their_odd_neighbours():
    make = {"conv": lambda i, o, k: Conv(i, o, k, rngs=nnx.Rngs(0)), "norm": BatchNorm}
    reduction = FactorizedReduction(1, 2, **make)
    for path in reduction.paths:
        path.kernel[...] = jnp.ones((1, 1, 1, 1))
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    y = reduction(x, train=False)[0] * np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(y[..., 0], [[1, 3], [7, 9]], rtol=1e-6)
    np.testing.assert_allclose(y[..., 1], [[5, 0], [0, 0]], rtol=1e-6)
