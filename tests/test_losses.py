"""Losses against scipy, published values, and each other where they must be equal.

experiments/parity/losses.py compares them with the libraries and the papers' formulas in torch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from agejax.heads import losses

AGES = jnp.arange(0.0, 11.0)
LOGITS = np.random.default_rng(0).normal(size=(6, 11)).astype(np.float32) * 2
CLASSES = jnp.array([0, 3, 10, 5, 5, 7])
YEARS = jnp.array([0.0, 3.4, 10.0, 5.0, 5.5, 7.0])
MARGINS = jnp.array(losses.ldam_margins(np.arange(1, 12) ** 3, 0.5), jnp.float32)
KNOWN = jnp.array([True, True, False, True, True, True])


def log_p(logits=LOGITS):
    return scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)


def own(table, classes=CLASSES):
    return table[np.arange(len(table)), np.asarray(classes)]


# ---- classes -------------------------------------------------------------------------------------


def test_focal_is_the_formula_and_with_gamma_0_cross_entropy():
    p = np.exp(own(log_p()))
    for gamma in (0.0, 0.5, 2.0, 4.0):
        expected = (1 - p) ** gamma * -np.log(p)
        np.testing.assert_allclose(losses.focal(LOGITS, CLASSES, gamma), expected, rtol=2e-5)
    np.testing.assert_allclose(
        losses.focal(LOGITS, CLASSES, 0.0), losses.cross_entropy(LOGITS, CLASSES), rtol=1e-6
    )


def test_binary_losses_are_those_of_two_classes():
    logit, target = LOGITS[:, 0], jnp.array([0, 1, 1, 0, 1, 0])
    two = jnp.stack([jnp.zeros(6), logit], axis=1)
    np.testing.assert_allclose(
        losses.binary_focal(logit, target, 2.0), losses.focal(two, target, 2.0), rtol=1e-5
    )
    for smoothing in (0.0, 0.2):
        np.testing.assert_allclose(
            losses.binary_cross_entropy(logit, target, smoothing),
            losses.cross_entropy(two, target, smoothing),
            rtol=1e-5,
        )


def test_smoothing_gives_some_mass_to_every_class():
    q = np.full((6, 11), 0.1 / 11)
    q[np.arange(6), np.asarray(CLASSES)] += 0.9
    np.testing.assert_allclose(
        losses.cross_entropy(LOGITS, CLASSES, 0.1), -(q * log_p()).sum(axis=1), rtol=1e-5
    )


def test_margins_are_the_published_ones():
    # formulas: UTKFace's ethnicities
    got = losses.ldam_margins([10078, 4525, 3434, 3975, 1692], 0.5)
    np.testing.assert_allclose(got, [0.320, 0.391, 0.419, 0.404, 0.5], atol=5e-4)


def test_ldam_takes_the_margin_off_the_true_class():
    shifted = LOGITS.astype(np.float64).copy()
    shifted[np.arange(6), np.asarray(CLASSES)] -= np.asarray(MARGINS)[np.asarray(CLASSES)]
    np.testing.assert_allclose(
        losses.ldam(LOGITS, CLASSES, MARGINS, 30.0), -own(log_p(30 * shifted)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        losses.ldam(LOGITS, CLASSES, 0 * MARGINS, 1.0), -own(log_p()), rtol=1e-5
    )


def test_a_class_without_examples_has_the_margin_of_one_with_one():
    np.testing.assert_allclose(losses.ldam_margins([0, 1, 16], 0.4), [0.4, 0.4, 0.2])


@given(
    scale=st.sampled_from([1.0, 30.0]), gamma=st.floats(0, 5),
    alpha=st.floats(0, 3), beta=st.floats(0, 3),
)  # fmt: skip
def test_lmf_is_the_sum_of_its_two_parts(scale, gamma, alpha, beta):
    z = LOGITS / 10  # about as large as cosines
    got = losses.lmf(z, CLASSES, MARGINS, scale, gamma, alpha, beta)
    ldam = losses.ldam(z, CLASSES, MARGINS, scale)
    focal = losses.focal(scale * z, CLASSES, gamma)
    np.testing.assert_allclose(got, alpha * ldam + beta * focal, rtol=1e-5, atol=1e-6)


def test_focal_by_hand():
    # p = 3/4 and 1/4; (1/4)^2 log 4/3 and (3/4)^2 log 4
    z = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0]]))
    got = losses.focal(z, jnp.array([0, 1]), 2.0)
    np.testing.assert_allclose(got, [0.01798013, 0.77979058], rtol=1e-6)


# ---- distributions -------------------------------------------------------------------------------


def test_gaussian_targets_take_a_spread_for_each_image():
    together = losses.gaussian_targets(YEARS, AGES, jnp.arange(1.0, 7.0))
    for i in range(6):
        alone = losses.gaussian_targets(YEARS[i : i + 1], AGES, i + 1.0)
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-6)


@given(st.floats(0, 10), st.floats(0.3, 5))
def test_targets_are_distributions_around_the_age(age, sigma):
    density = scipy.stats.norm.pdf(np.arange(11), age, sigma)
    q = losses.gaussian_targets(jnp.array([age]), AGES, sigma)
    np.testing.assert_allclose(q[0], density / density.sum(), rtol=1e-3, atol=1e-6)
    assert float(q.sum()) == pytest.approx(1, abs=1e-6)
    for power in (1, 2):
        weight = np.exp(-(np.abs(np.arange(11) - age) ** power))
        q = losses.sord_targets(jnp.array([age], jnp.float32), AGES, power)
        np.testing.assert_allclose(q[0], weight / weight.sum(), rtol=1e-3, atol=1e-6)
        assert float(q.sum()) == pytest.approx(1, abs=1e-6)


def test_sord_has_a_scale_and_with_power_2_is_the_gaussian():
    ages, age = jnp.arange(4.0), jnp.array([1.0, 2.5])
    q = losses.sord_targets(age, ages, 1, 0.5)
    one = np.exp(-0.5 * np.array([1.0, 0.0, 1.0, 2.0]))
    np.testing.assert_allclose(q[0], one / one.sum(), rtol=1e-6)
    sigma = 1.7
    np.testing.assert_allclose(
        losses.sord_targets(age, ages, 2, 1 / (2 * sigma**2)),
        losses.gaussian_targets(age, ages, sigma),
        rtol=1e-5,
    )


def test_dldl_is_a_divergence_and_the_error_of_the_expectation():
    q = scipy.stats.norm.pdf(np.arange(11), np.asarray(YEARS)[:, None], 2.0)
    q /= q.sum(axis=1, keepdims=True)
    p = np.exp(log_p())
    error = np.abs(p @ np.arange(11) - np.asarray(YEARS))
    expected = scipy.special.rel_entr(q, p).sum(axis=1) + 0.7 * error
    np.testing.assert_allclose(losses.dldl(LOGITS, YEARS, AGES, 2.0, 0.7), expected, rtol=1e-4)
    assert losses.dldl(jnp.log(q), YEARS, AGES, 2.0, 0.0).max() < 1e-5


def test_mean_variance_is_the_formula():
    p, ages = np.exp(log_p()), np.arange(11)
    mean = p @ ages
    variance = (p * (ages - mean[:, None]) ** 2).sum(axis=1)
    nearest = np.array([0, 3, 10, 5, 5, 7])
    expected = (
        -own(log_p(), nearest) + 0.2 * 0.5 * (mean - np.asarray(YEARS)) ** 2 + 0.05 * variance
    )
    np.testing.assert_allclose(losses.mean_variance(LOGITS, YEARS, AGES), expected, rtol=1e-4)


# ---- ranks ---------------------------------------------------------------------------------------


def test_ordinal_losses_are_sums_of_binary_ones():
    logits, rank = LOGITS[:, :10], CLASSES
    above = np.asarray(rank)[:, None] > np.arange(10)
    p = scipy.special.expit(logits.astype(np.float64))
    terms = -np.where(above, np.log(p), np.log1p(-p))
    np.testing.assert_allclose(losses.coral(logits, rank), terms.sum(axis=1), rtol=1e-5)
    asked = np.arange(10) <= np.asarray(rank)[:, None]
    np.testing.assert_allclose(losses.corn(logits, rank), (terms * asked).sum(axis=1), rtol=1e-5)
    # OR-CNN: two classes per question; only the difference of their logits is given
    two = jnp.stack([0 * logits, logits], axis=-1).reshape(-1, 2)
    each = losses.cross_entropy(two, jnp.array(above.ravel(), int)).reshape(6, 10)
    np.testing.assert_allclose(losses.or_cnn(logits, rank), each.sum(axis=1), rtol=1e-5)


def test_coral_is_the_documented_value_of_coral_pytorch():
    z = [[2.1, 1.8, -2.1, -1.8], [1.9, -1.0, -1.5, -1.3], [1.9, 1.8, 1.7, 1.6]]
    loss = losses.coral(jnp.array(z), jnp.array([2, 1, 4]))
    assert float(loss.mean()) == pytest.approx(0.6920, abs=5e-5)


def test_corn_is_the_documented_value_of_coral_pytorch():
    # Its docstring's logits: torch 2.13, seed 123.
    z = [
        [-0.3226, -0.4738, -0.0684, 0.3288], [0.3810, -0.4518, 0.0785, 0.0109],
        [-0.0666, 0.0892, 0.2487, 0.1706], [0.1858, -0.4273, 0.1903, -0.0023],
        [-0.0677, -0.1201, 0.3401, 0.0773], [-0.1294, -0.3859, -0.0572, 0.2476],
        [0.0310, -0.3191, -0.1749, 0.1757], [0.1281, 0.0250, 0.0315, 0.3799],
    ]  # fmt: skip
    rank = np.array([0, 1, 2, 2, 2, 3, 4, 4])
    loss = losses.corn(jnp.array(z), jnp.array(rank))
    pairs = np.minimum(rank + 1, 4).sum()
    assert float(loss.sum()) / pairs == pytest.approx(0.7127, abs=5e-5)


def test_ranks_that_are_right_and_sure_cost_nothing():
    rank = jnp.arange(11)
    sure = jnp.where(rank[:, None] > jnp.arange(10), 20.0, -20.0)
    assert losses.coral(sure, rank).max() < 1e-6
    assert losses.or_cnn(sure, rank).max() < 1e-6
    assert losses.corn(sure, rank).max() < 1e-6


# ---- a number ------------------------------------------------------------------------------------


def test_gaussian_nll_is_the_density_of_a_normal_but_for_a_constant():
    mean, log_variance, y = (jnp.array(v) for v in ([0.0, 1.0], [0.3, -2.0], [2.0, 0.5]))
    exact = -scipy.stats.norm.logpdf(y, mean, np.exp(0.5 * log_variance)) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(losses.gaussian_nll(mean, log_variance, y, 0.0), exact, rtol=1e-5)
    np.testing.assert_allclose(
        losses.gaussian_nll(mean, log_variance, y, 0.5),
        exact * np.exp(0.5 * log_variance),
        rtol=1e-5,
    )


def test_beta_1_gives_the_mean_the_gradient_of_squared_errors():
    gradient = jax.grad(lambda m: losses.gaussian_nll(m, jnp.full(3, 1.7), YEARS[:3], 1.0).sum())
    np.testing.assert_allclose(gradient(jnp.ones(3)), 1 - YEARS[:3], rtol=1e-5)


def test_bmc_is_a_cross_entropy_over_the_known_labels_of_the_batch():
    prediction, sigma = jnp.array([1.0, 3.0, 2.0, 4.5, 5.0, 8.0]), 1.5
    logits = -0.5 * (np.asarray(prediction)[:, None] - np.asarray(YEARS)) ** 2 / sigma**2
    got = losses.balanced_mse_bmc(prediction, YEARS, KNOWN, jnp.float32(sigma))
    # The value of an unknown target does not matter, NaN included.
    for filled in (jnp.nan, 1e6):
        other = jnp.where(KNOWN, YEARS, filled)

        def known_loss(p, target=other):
            return jnp.where(KNOWN, losses.balanced_mse_bmc(p, target, KNOWN, sigma), 0)

        np.testing.assert_array_equal(known_loss(prediction), jnp.where(KNOWN, got, 0))
        assert jnp.isfinite(jax.grad(lambda p, f=known_loss: f(p).sum())(prediction)).all()
    for i in np.flatnonzero(KNOWN):
        candidates = logits[i][np.asarray(KNOWN)]
        expected = scipy.special.logsumexp(candidates) - logits[i, i]
        assert float(got[i]) == pytest.approx(2 * sigma**2 * expected, rel=1e-4, abs=1e-5)
    # The deviation learns from the cross-entropy, not from the factor before it.
    slope = jax.grad(lambda s: losses.balanced_mse_bmc(prediction, YEARS, KNOWN, s)[0])(1.5)
    step = 1e-3
    entropy = lambda s: losses.balanced_mse_bmc(prediction, YEARS, KNOWN, s)[0] / (2 * s * s)  # noqa: E731
    numeric = (entropy(1.5 + step) - entropy(1.5 - step)) / (2 * step)
    assert float(slope) == pytest.approx(2 * 1.5**2 * float(numeric), rel=1e-2)


def test_gai_normalises_by_the_integral_over_the_label_distribution():
    means, variances, weights = (jnp.array(v) for v in ([2.0, 7.0], [1.0, 4.0], [0.3, 0.7]))
    prediction, sigma = jnp.array([1.0, 6.0, 9.0]), 1.3
    got = losses.balanced_mse_gai(
        prediction, YEARS[:3], jnp.float32(sigma), means, variances, weights
    )

    def labels(y):
        spread = np.sqrt(np.asarray(variances))
        return float(np.asarray(weights) @ scipy.stats.norm.pdf(y, np.asarray(means), spread))

    for i in range(3):
        noise = functools.partial(scipy.stats.norm.pdf, loc=float(prediction[i]), scale=sigma)
        integral, _ = scipy.integrate.quad(lambda y, f=noise: f(y) * labels(y), -20, 30)
        own_term = -scipy.stats.norm.logpdf(YEARS[i], prediction[i], sigma)
        assert float(got[i]) == pytest.approx(
            2 * sigma**2 * (own_term + np.log(integral)), rel=1e-3
        )


def test_gai_learns_the_deviation_of_the_errors():
    """For labels of equal frequency the best deviation is the likelihood's."""
    rng = np.random.default_rng(0)
    target = jnp.array(rng.uniform(0, 100, 2000), jnp.float32)
    prediction = target + jnp.array(rng.normal(0, 3.0, 2000), jnp.float32)
    flat = tuple(jnp.array(v) for v in ([50.0], [1e6], [1.0]))

    @jax.jit
    @jax.grad
    def slope(sigma):
        return losses.balanced_mse_gai(prediction, target, sigma, *flat).mean()

    assert slope(2.0) < 0 < slope(4.0)
    assert abs(slope(jnp.std(prediction - target))) < 0.05


def test_a_mixture_is_fitted_to_the_labels():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-3, 0.5, 4000), rng.normal(4, 1.0, 12000)])
    means, variances, weights = losses.fit_mixture(values, 2, seed=0)
    order = np.argsort(means)
    np.testing.assert_allclose(means[order], [-3, 4], atol=0.05)
    np.testing.assert_allclose(variances[order], [0.25, 1.0], rtol=0.1)
    np.testing.assert_allclose(weights[order], [0.25, 0.75], atol=0.02)
    assert len(losses.fit_mixture(np.array([1.0, 2.0, 2.0]), 8, seed=0)[0]) == 2
    (mean,), (variance,), (weight,) = losses.fit_mixture(np.array([40.0]), 8, seed=0)
    assert (mean, weight) == (pytest.approx(40), pytest.approx(1))
    assert 0 < variance < 1e-3
    # A part of many values is enough.
    many = losses.fit_mixture(np.repeat(values, 20), 2, seed=0)
    np.testing.assert_allclose(np.sort(many[0]), np.sort(means), atol=0.01)


# ---- all of them ---------------------------------------------------------------------------------

NUMBER = {
    "l1": lambda z: losses.l1(z[:, 0], YEARS),
    "l2": lambda z: losses.l2(z[:, 0], YEARS),
    "huber": lambda z: losses.huber(z[:, 0], YEARS, 1.0),
    "bmc": lambda z: losses.balanced_mse_bmc(z[:, 0], YEARS, KNOWN, jnp.float32(0.5)),
    "gai": lambda z: losses.balanced_mse_gai(
        z[:, 0], YEARS, jnp.float32(0.5), *(jnp.array(v) for v in ([2.0], [1.0], [1.0]))
    ),
    "gaussian_nll": lambda z: losses.gaussian_nll(z[:, 0], z[:, 1], YEARS, 0.5),
}
ALL = NUMBER | {
    "binary_cross_entropy": lambda z: losses.binary_cross_entropy(z[:, 0], CLASSES > 4, 0.1),
    "binary_focal": lambda z: losses.binary_focal(z[:, 0], CLASSES > 4, 0.5),
    "cross_entropy": lambda z: losses.cross_entropy(z, CLASSES),
    "smoothed": lambda z: losses.cross_entropy(z, CLASSES, 0.1),
    "soft_cross_entropy": lambda z: losses.soft_cross_entropy(
        z, losses.sord_targets(YEARS, AGES, 2)
    ),
    "focal": lambda z: losses.focal(z, CLASSES, 0.5),
    "ldam": lambda z: losses.ldam(z, CLASSES, MARGINS, 30.0),
    "lmf": lambda z: losses.lmf(z, CLASSES, MARGINS, 1.0, 4.0, 2.5, 0.05),
    "dldl": lambda z: losses.dldl(z, YEARS, AGES, 2.0),
    "mean_variance": lambda z: losses.mean_variance(z, YEARS, AGES),
    "coral": lambda z: losses.coral(z[:, :10], CLASSES),
    "or_cnn": lambda z: losses.or_cnn(z[:, :10], CLASSES),
    "corn": lambda z: losses.corn(z[:, :10], CLASSES),
}
SOFTMAX = (
    "cross_entropy", "smoothed", "soft_cross_entropy", "focal", "ldam", "lmf", "dldl",
    "mean_variance",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_every_loss_and_its_gradient_are_finite_at_extreme_logits(name, dtype):
    @jax.jit
    def value_and_gradient(z):
        value, back = jax.vjp(ALL[name], z)
        return value, back(jnp.ones_like(value))[0]

    signs = np.random.default_rng(1).choice([-1, 0, 1], (6, 11))
    for z in (1e4 * signs, -1e4 * signs, np.full((6, 11), 1e4), 0 * signs, 40 * np.eye(6, 11)):
        value, gradient = value_and_gradient(jnp.array(z, dtype))
        assert value.shape == (6,)
        assert value.dtype == jnp.float32
        assert gradient.dtype == dtype
        assert jnp.isfinite(value).all()
        assert jnp.isfinite(gradient.astype(jnp.float32)).all()


@pytest.mark.parametrize("name", ALL)
def test_every_loss_of_bfloat16_logits_is_that_of_the_same_in_float32(name):
    z = jnp.array(LOGITS, jnp.bfloat16)
    np.testing.assert_allclose(ALL[name](z), ALL[name](z.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in ALL if name not in NUMBER])
def test_no_loss_of_probabilities_is_negative(name):
    assert (ALL[name](jnp.array(LOGITS)) >= 0).all()


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_shift_of_all_logits_changes_no_softmax_loss(name):
    np.testing.assert_allclose(ALL[name](LOGITS + 7), ALL[name](LOGITS), rtol=1e-4, atol=1e-5)


def test_a_shift_of_ages_and_their_grid_changes_no_loss():
    z = jnp.array(LOGITS)
    for loss in (
        lambda by: losses.dldl(z, YEARS + by, AGES + by, 2.0),
        lambda by: losses.mean_variance(z, YEARS + by, AGES + by),
        lambda by: losses.sord_targets(YEARS + by, AGES + by, 2)[:, 3],
        lambda by: losses.l2(z[:, 0] + by, YEARS + by),
        lambda by: losses.gaussian_nll(z[:, 0] + by, z[:, 1], YEARS + by, 0.5),
        lambda by: losses.balanced_mse_bmc(z[:, 0] + by, YEARS + by, KNOWN, jnp.float32(2)),
        lambda by: losses.balanced_mse_gai(
            z[:, 0] + by, YEARS + by, jnp.float32(2), jnp.array([2.0]) + by, *jnp.ones((2, 1))
        ),
    ):
        np.testing.assert_allclose(loss(30.0), loss(0.0), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_examples_does_not_matter(name, monkeypatch):
    """Also for losses that compare examples with each other."""
    order = np.array([3, 0, 5, 1, 4, 2])
    expected = ALL[name](jnp.array(LOGITS))[order]
    for label in ("CLASSES", "YEARS", "KNOWN"):
        monkeypatch.setitem(globals(), label, globals()[label][order])
    np.testing.assert_allclose(ALL[name](jnp.array(LOGITS[order])), expected, rtol=1e-5, atol=1e-6)
