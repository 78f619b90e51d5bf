import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from agejax import heads
from agejax.errors import UserError

LABELS = {
    "age": np.array([1.0, 26.0, 90.0, np.nan], np.float32),
    "gender": np.array([0, 1, -1, 1], np.int32),
    "ethnicity": np.array([0, 2, 1, -1], np.int32),
}
NAMES = {"gender": ("male", "female"), "ethnicity": ("a", "b", "c")}
FACTS = heads.Facts.of(LABELS, NAMES)


def make(name="age", **options):
    return heads.create({name: options}, FACTS)[name]


def regression(**options):
    return make("age", kind="regression", **options)


def test_facts_of_the_training_split():
    assert FACTS.means["age"] == pytest.approx(39.0)
    assert FACTS.medians["age"] == 26.0
    assert set(FACTS.labels) == {"age", "gender", "ethnicity"}


@pytest.mark.parametrize("transform", ["identity", "log", "unit", "standard"])
@given(years=st.lists(st.floats(0, 116, width=32), min_size=1, max_size=20))
def test_decode_undoes_encode(transform, years):
    head = regression(transform=transform)
    y = jnp.array(years, jnp.float32)
    np.testing.assert_allclose(head.decode(head.encode(y)[:, None]), y, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("transform", ["identity", "log", "unit", "standard"])
@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_extreme_outputs_decode_inside_the_range_and_have_finite_gradients(transform, loss):
    head = regression(transform=transform, loss=loss, range=(0, 100))
    output = jnp.array([[-1e4], [0.0], [1e4], [1e4]], jnp.float32)
    decoded = head.decode(output)
    assert (decoded >= 0).all()
    assert (decoded <= 100).all()
    gradient = jax.grad(lambda o: head.loss(o, LABELS).sum())(output)
    assert jnp.isfinite(gradient).all()


def test_regression_losses_are_the_formulas():
    output = jnp.array([[2.0], [20.0], [88.5], [0.0]])
    error = np.array([1.0, -6.0, -1.5])
    for loss, expected in {
        "l1": np.abs(error),
        "l2": 0.5 * error**2,
        "huber": np.where(np.abs(error) <= 2, 0.5 * error**2, 2 * (np.abs(error) - 1)),
    }.items():
        head = regression(transform="identity", loss=loss, huber_delta=2.0)
        np.testing.assert_allclose(head.loss(output, LABELS)[:3], expected, rtol=1e-6)


def test_class_losses_and_probabilities_equal_scipy():
    logits = np.array([[0.3], [-1.2], [5.0], [0.1]], np.float32)
    binary = make("gender", kind="binary")
    p = scipy.special.expit(logits[:, 0].astype(np.float64))
    np.testing.assert_allclose(binary.decode(logits)[:, 1], p, rtol=1e-6)
    np.testing.assert_allclose(
        binary.loss(logits, LABELS)[:2], [-np.log(1 - p[0]), -np.log(p[1])], rtol=1e-5
    )
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    categorical = make("ethnicity", kind="categorical")
    logp = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(categorical.decode(logits), np.exp(logp), rtol=1e-5)
    np.testing.assert_allclose(
        categorical.loss(logits, LABELS)[:3], -logp[[0, 1, 2], [0, 2, 1]], rtol=1e-5
    )


def test_unknown_labels_are_masked_and_never_spoil_a_gradient():
    for name, kind, known in (
        ("age", "regression", [True, True, True, False]),
        ("gender", "binary", [True, True, False, True]),
        ("ethnicity", "categorical", [True, True, True, False]),
    ):
        head = make(name, kind=kind)
        np.testing.assert_array_equal(head.known(LABELS), known)
        masked = lambda o: (head.known(LABELS) * head.loss(o, LABELS)).sum()  # noqa: B023, E731
        gradient = jax.grad(masked)(jnp.ones((4, head.width)))
        assert jnp.isfinite(gradient).all()
        assert (gradient[~np.array(known)] == 0).all()


def test_a_head_starts_at_the_mean_age():
    for transform in ("identity", "log", "unit", "standard"):
        head = regression(transform=transform)
        start = jnp.full((1, 1), head.initial_bias())
        np.testing.assert_allclose(head.decode(start), 39.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ({}, "config.heads is empty"),
        ({"age": {"kind": "regresion"}}, "config.heads.age.kind"),
        ({"age": {"kind": "regression", "lose": "l1"}}, "did you mean 'loss'"),
        ({"age": {"kind": "regression", "loss": "l3"}}, "config.heads.age.loss: 'l3'"),
        ({"age": {"kind": "regression", "range": (5, 1)}}, "low < high"),
        ({"iq": {"kind": "regression"}}, "no 'iq' label"),
        ({"apparent_age": {"kind": "regression"}}, "no 'apparent_age' label"),
        ({"ethnicity": {"kind": "binary"}}, "binary needs two classes"),
        ({"gender": {"kind": "regression"}}, "'gender' is not a number"),
    ],
)
def test_a_wrong_head_is_one_clear_line(configs, message):
    with pytest.raises(UserError, match=message):
        heads.create(configs, FACTS)
