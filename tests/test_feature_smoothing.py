"""Feature distribution smoothing against its formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

from agejax.errors import UserError
from agejax.models.feature_smoothing import FeatureSmoothing, SmoothingOptions

WINDOW = np.array([0.8583, 0.9458, 1, 0.9458, 0.8583])  # of imbalanced-regression
WINDOW /= WINDOW.sum()


def smoother(**options):
    return FeatureSmoothing(SmoothingOptions.of({"oldest": 9} | options, "here"), 3)


def data(n=400, seed=0):
    rng = np.random.default_rng(seed)
    ages = np.concatenate([np.arange(10), rng.integers(0, 10, n - 10)]).astype(np.float32)
    x = rng.normal(ages[:, None] ** 0.5, 1 + ages[:, None] / 5, (n, 3)).astype(np.float32)
    return x, ages


def statistics(x, ages):
    by_age = [x[ages == age].astype(np.float64) for age in range(10)]
    return np.array([g.mean(0) for g in by_age]), np.array([g.var(0, ddof=1) for g in by_age])


def smoothed(values):
    return scipy.ndimage.convolve1d(values, WINDOW, axis=0, mode="mirror")


def test_the_first_epoch_leaves_features_alone():
    x, ages = data()
    np.testing.assert_array_equal(smoother()(jnp.array(x), jnp.array(ages), 0), x)


def test_features_move_to_the_smoothed_statistics_of_the_epoch_before():
    (x, ages), model = data(), smoother()
    for part in np.split(np.arange(400), 4):  # gathered batch by batch
        model(jnp.array(x[part]), jnp.array(ages[part]), 0)
    mean, var = statistics(x, ages)
    ratio = np.clip(smoothed(var) / var, 0.1, 10)
    at = ages.astype(int)
    expected = (x - mean[at]) * np.sqrt(ratio[at]) + smoothed(mean)[at]
    np.testing.assert_allclose(model(jnp.array(x), jnp.array(ages), 1), expected, atol=1e-4)


def test_statistics_run_with_momentum_from_the_second_epoch_on():
    model = smoother(momentum=0.75)
    for epoch in range(3):
        x, ages = data(seed=epoch)
        model(jnp.array(x), jnp.array(ages), epoch)
    one, other = (statistics(*data(seed=epoch))[0] for epoch in range(2))
    np.testing.assert_allclose(model.mean[...], 0.75 * one + 0.25 * other, atol=1e-4)


def test_an_age_that_is_first_seen_later_begins_with_its_own_statistics():
    (x, ages), model = data(), smoother()
    early = ages != 4
    model(jnp.array(x[early]), jnp.array(ages[early]), 0)
    for epoch in (1, 2):
        model(jnp.array(x), jnp.array(ages), epoch)
    mean, var = statistics(x, ages)
    np.testing.assert_allclose(model.mean[...], mean, atol=1e-4)
    np.testing.assert_allclose(model.var[...], var, rtol=1e-3)


def test_ages_that_were_never_seen_lend_nothing():
    model, ages = smoother(), jnp.array([2.0, 2.0, 3.0, 3.0])
    x = jnp.array([[1.0] * 3, [3.0] * 3, [5.0] * 3, [7.0] * 3])
    model(x, ages, 0)
    moved = model(x, jnp.array([2.0, 2.0, 3.0, 8.0]), 1)
    w = WINDOW
    np.testing.assert_allclose(moved[:2].mean(), (w[2] * 2 + w[3] * 6) / (w[2] + w[3]), rtol=1e-5)
    np.testing.assert_array_equal(moved[3], x[3])


def test_an_unknown_age_is_left_alone_and_counts_nowhere():
    (x, ages), model = data(), smoother()
    model(jnp.array(x), jnp.array(ages), 0)
    before = float(model.count[...].sum())
    out = model(jnp.full((2, 3), 9.0), jnp.full(2, jnp.nan), 1)
    np.testing.assert_array_equal(out, 9.0)
    assert before == 400
    assert float(model.count[...].sum()) == 0


def test_no_gradient_flows_into_statistics():
    (x, ages), model = data(), smoother()
    model(jnp.array(x), jnp.array(ages), 0)
    graphdef, state = nnx.split(model)
    state = nnx.to_pure_dict(state)

    def loss(x):
        return nnx.merge(graphdef, state)(x, jnp.array(ages), 1).sum()

    gradient = jax.grad(loss)(jnp.array(x))
    _, var = statistics(x, ages)
    ratio = np.sqrt(np.clip(smoothed(var) / var, 0.1, 10))
    np.testing.assert_allclose(gradient, ratio[ages.astype(int)], rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 4}, "odd number"),
        ({"sigma": 0}, "a number above 0"),
        ({"sgima": 1}, "did you mean"),
    ],
)
def test_wrong_options_are_one_clear_line(given, message):
    with pytest.raises(UserError, match=message):
        SmoothingOptions.of(given, "config.heads.age.fds")
