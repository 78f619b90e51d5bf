import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from agejax import heads
from agejax.errors import UserError
from agejax.heads import weights
from agejax.labels import density

LABELS = {
    "age": np.array([1.0, 26.0, 90.0, np.nan], np.float32),
    "gender": np.array([0, 1, -1, 1], np.int32),
    "ethnicity": np.array([0, 2, 1, -1], np.int32),
}
NAMES = {"gender": ("male", "female"), "ethnicity": ("a", "b", "c")}
FACTS = heads.Facts.of(LABELS, NAMES)


def make(name="age", **options):
    return heads.create({name: options}, FACTS)[name]


def width(head):
    return head.output(3, nnx.Rngs(0))(jnp.zeros((1, 3))).shape[1]


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
    np.testing.assert_allclose(head.decode(head.scale.encode(y)[:, None]), y, rtol=1e-4, atol=1e-3)


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


def test_settings_of_heads_reach_their_losses():
    """Each loss by hand, for an age of 26 years and the second class."""
    one = {k: v[1:2] for k, v in LABELS.items()}
    z = (26 - 39) / np.std([1, 26, 90])
    for beta in (0.0, 1.0):  # mean 0.5, variance 4
        loss = make("age", kind="gaussian", beta=beta).loss(jnp.array([[0.5, np.log(4)]]), one)
        assert float(loss[0]) == pytest.approx(0.5 * ((z - 0.5) ** 2 / 4 + np.log(4)) * 4**beta)
    for delta in (0.5, 2.0):
        loss = regression(loss="huber", huber_delta=delta).loss(jnp.array([[z + 3]]), one)
        assert float(loss[0]) == pytest.approx(delta * (3 - delta / 2), rel=1e-5)
    head = make("age", kind="distribution", loss="sord", scale=0.5, range=(25.0, 27.0))
    target = np.exp([-0.5, 0, -0.5]) / np.exp([-0.5, 0, -0.5]).sum()
    expected = np.log(3)  # equal logits, with any target
    assert float(head.loss(jnp.zeros((1, 3)), one)[0]) == pytest.approx(expected, rel=1e-5)
    said = -np.log(np.exp([1.0, 0, 0]) / np.exp([1.0, 0, 0]).sum())
    loss = head.loss(jnp.array([[1.0, 0, 0]]), one)
    assert float(loss[0]) == pytest.approx((target * said).sum(), rel=1e-5)
    p = 1 / (1 + np.exp(-0.7))
    loss = make("gender", kind="binary", smoothing=0.2).loss(jnp.array([[0.7]]), one)
    assert float(loss[0]) == pytest.approx(-0.9 * np.log(p) - 0.1 * np.log(1 - p), rel=1e-5)
    loss = make("gender", kind="binary", loss="focal", gamma=3.0).loss(jnp.array([[0.7]]), one)
    assert float(loss[0]) == pytest.approx((1 - p) ** 3 * -np.log(p), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "decode", "years"),
    # The chance of an age above 0, 1 and 2 years: asked alone, or of those above the year before.
    [
        ("coral", "count", 3),
        ("coral", "expectation", 0.7 + 0.7 + 0.9),
        ("corn", "count", 1),
        ("corn", "expectation", 0.7 + 0.49 + 0.441),
    ],
)
def test_ranks_are_decoded_by_hand(method, decode, years):
    head = make("age", kind="ordinal", method=method, decode=decode, range=(0.0, 3.0))
    output = jnp.array([scipy.special.logit([0.7, 0.7, 0.9])])
    assert float(head.decode(output)[0]) == pytest.approx(years, rel=1e-5)


def test_a_distributions_sigma_is_about_its_mean():
    head = make("age", kind="distribution", range=(0.0, 3.0))
    p = np.array([0.6, 0.1, 0.1, 0.2])  # a mean of 0.9, a variance of 1.49
    sigma = head.extras(jnp.log(p)[None])["sigma"]
    assert float(sigma[0]) == pytest.approx(1.49**0.5, rel=1e-5)


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
        gradient = jax.grad(masked)(jnp.ones((4, width(head))))
        assert jnp.isfinite(gradient).all()
        assert (gradient[~np.array(known)] == 0).all()


def test_a_head_starts_at_the_mean_age():
    for transform in ("identity", "log", "unit", "standard"):
        head = regression(transform=transform)
        start = head.output(5, nnx.Rngs(0))(jnp.zeros((1, 5)))
        np.testing.assert_allclose(head.decode(start), 39.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ({}, "config.heads is empty"),
        ({"age": {"kind": "regresion"}}, "config.heads.age.kind"),
        ({"age": {"kind": "regression", "lose": "l1"}}, "did you mean 'loss'"),
        ({"age": {"kind": "regression", "loss": "l3"}}, "config.heads.age.loss: 'l3'"),
        ({"age": {"kind": "regression", "range": (5, 1)}}, r"set it to \(low, high\) in 0\.\.1000"),
        ({"age": {"kind": "regression", "range": (5, 5)}}, "low must be below high"),
        ({"age": {"kind": "ordinal", "range": (9.6, 10.4)}}, r"\(9\.6, 10\.4\) is one year, 10"),
        ({"age": {"kind": "distribution", "range": (0, 0.5)}}, r"range: .* is one year, 0; set it"),
        (
            {"age": {"kind": "regression", "weight": -1.0}},
            r"weight: -1\.0; set it to .* of 0 or more",
        ),
        ({"age": {"kind": "regression", "huber_delta": 0.0}}, r"huber_delta: 0\.0; .* above 0"),
        ({"age": {"kind": "distribution", "mean_weight": -0.2}}, r"mean_weight: -0\.2; set it"),
        ({"iq": {"kind": "regression"}}, "no 'iq' label"),
        ({"apparent_age": {"kind": "regression"}}, "no 'apparent_age' label"),
        ({"ethnicity": {"kind": "binary"}}, "binary needs two classes"),
        ({"gender": {"kind": "regression"}}, "'gender' is not a number"),
        ({"gender": {"kind": "ordinal"}}, "'gender' is not a number"),
        ({"age": {"kind": "ordinal", "method": "coarl"}}, "'coarl' is not one of coral, corn"),
        ({"age": {"kind": "distribution", "power": 3}}, r"power: 3 is not one of 1, 2"),
        ({"age": {"kind": "distribution", "sigma": 0}}, "sigma: 0; set it to a number above 0"),
        ({"age": {"kind": "distribution", "scale": 0}}, "scale: 0; set it to a number above 0"),
        (
            {"age": {"kind": "ordinal", "decode_prior": "own"}},
            "'own' is not one of natural, sampled",
        ),
        ({"gender": {"kind": "binary", "decode_prior": "x"}}, "'x' is not one of natural, sampled"),
        ({"age": {"kind": "distribution", "votes": "iq"}}, "no 'iq' label"),
        ({"age": {"kind": "distribution", "votes": "gender"}}, "no 'gender' label in years"),
        (
            {"age": {"kind": "buckets", "edges": (10, 3)}},
            "a list of rising numbers above 0",
        ),
        ({"age": {"kind": "buckets", "edges": (3, 3)}}, "increasing ages"),
        ({"age": {"kind": "buckets", "edges": (30, 40)}}, "no training image of age 30-39"),
        ({"age": {"kind": "gaussian", "beta": 2}}, "beta: 2; set it to a number in 0..1"),
        (
            {"gender": {"kind": "binary", "smoothing": 1.0}},
            "of 0 or more and below 1",
        ),
        ({"gender": {"kind": "binary", "loss": "focal", "smoothing": 0.1}}, "is for the loss ce"),
        ({"ethnicity": {"kind": "categorical", "cosine": True}}, "is for the losses ldam and lmf"),
        ({"ethnicity": {"kind": "categorical", "loss": "focal", "gamma": -1}}, "of 0 or more"),
    ],
)
def test_a_wrong_head_is_one_clear_line(configs, message):
    with pytest.raises(UserError, match=message):
        heads.create(configs, FACTS)


# One head of every kind that predicts an age.
AGE_HEADS = [
    {"kind": "regression", "loss": "bmc"},
    {"kind": "regression", "loss": "gai"},
    {"kind": "gaussian"},
    {"kind": "distribution", "loss": "ce", "smoothing": 0.1},
    {"kind": "distribution", "loss": "dldl"},
    {"kind": "distribution", "loss": "mean_variance", "decode": "expectation"},
    {"kind": "distribution", "loss": "sord"},
    {"kind": "distribution", "loss": "sord", "power": 2},
    {"kind": "ordinal", "method": "coral"},
    {"kind": "ordinal", "method": "corn", "decode": "expectation"},
    {"kind": "ordinal", "method": "or_cnn"},
    {"kind": "buckets", "edges": (10, 40, 60), "loss": "ldam", "cosine": True},
    {"kind": "buckets", "edges": (10, 40, 60), "loss": "lmf"},
    {"kind": "buckets", "edges": (10, 40, 60), "loss": "focal"},
]
MANY = {"age": np.repeat(np.arange(0, 90, dtype=np.float32), 3)}
MANY_FACTS = heads.Facts.of(MANY, {})


def of_many(options):
    return heads.create({"age": options}, MANY_FACTS)["age"]


@pytest.mark.parametrize("options", AGE_HEADS, ids=str)
def test_every_age_head_learns_to_say_the_age_in_years(options):
    head = of_many(options)
    ages = jnp.array([3.0, 25.0, 47.0, 83.0])
    layer = head.output(4, nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    x, labels = 3 * jnp.eye(4), {"age": ages}

    def loss(state):
        return head.loss(nnx.merge(graphdef, state)(x), labels).mean()

    optimizer = optax.adam(0.1)

    def step(carry, _):
        state, opt_state = carry
        value, grads = jax.value_and_grad(loss)(state)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(state, updates), opt_state), value

    (state, _), values = jax.jit(
        lambda state: jax.lax.scan(step, (state, optimizer.init(state)), None, 600)
    )(state)
    years = head.decode(nnx.merge(graphdef, state)(x))
    if options.get("loss") in ("bmc", "gai"):  # these separate four ages by pushing them apart
        assert (np.diff(years) > 10).all()
    elif options["kind"] == "buckets":  # each stands for the mean age of its training images
        np.testing.assert_allclose(years, [4.5, 24.5, 49.5, 74.5], atol=1.5)
    else:
        np.testing.assert_allclose(years, ages, atol=3.0)
    assert values[-1] < values[0]


@pytest.mark.parametrize(
    "options", [o for o in AGE_HEADS if o["kind"] in ("distribution", "ordinal")], ids=str
)
def test_an_output_of_many_ages_starts_at_those_of_training(options):
    ages = {"age": np.repeat([20.0, 30.0, 31.0, 60.0], [300, 350, 300, 100]).astype(np.float32)}
    facts = heads.Facts.of(ages, {})
    head = heads.create({"age": options}, facts)["age"]
    start = head.decode(head.output(5, nnx.Rngs(0))(jnp.zeros((1, 5))))
    expected = ages["age"].mean() if options.get("decode") == "expectation" else 30.0
    # One more image of each of the hundred ages moves the mean.
    assert abs(float(start[0]) - expected) < 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("options", AGE_HEADS, ids=str)
def test_every_age_head_stays_finite_and_in_range_at_extreme_outputs(options, dtype):
    head = of_many(options)
    n = width(head)
    extremes = jnp.array([1e4, -1e4, 0.0, 1e4])[:, None] * jnp.where(jnp.arange(n) % 2, 1, -1)
    if options.get("cosine"):
        extremes = jnp.sign(extremes)
    if options.get("loss") in ("bmc", "gai"):  # the second is a logarithm of a deviation
        extremes = extremes.at[:, 1].set(0.5)
    output = extremes.astype(dtype)
    labels = {"age": jnp.array([0.0, 88.0, jnp.nan, 40.0])}
    loss = lambda o: jnp.where(head.known(labels), head.loss(o, labels), 0).sum()  # noqa: E731
    assert jnp.isfinite(loss(output))
    assert jnp.isfinite(jax.grad(loss)(output).astype(jnp.float32)).all()
    years = head.decode(output)
    assert ((years >= 0) & (years <= 116)).all()
    for extra in head.extras(output).values():
        assert jnp.isfinite(extra).all()


@given(st.integers(0, 2**31))
def test_the_median_halves_the_mass(seed):
    p = np.random.default_rng(seed).dirichlet(np.full(20, 0.3), 5)
    got = heads.ages.median(jnp.array(p), jnp.arange(20.0))
    for row, middle in zip(p, np.asarray(got, np.float64), strict=True):
        edges = np.arange(-0.5, 20)
        mass = np.interp(middle, edges, np.concatenate([[0], np.cumsum(row)]))
        assert abs(mass - 0.5) < 1e-4


def test_a_distribution_may_be_as_wide_as_the_votes():
    labels = MANY | {"apparent_age_std": np.full(270, 6.0, np.float32)}
    head = heads.create(
        {"age": {"kind": "distribution", "votes": "apparent_age_std", "expectation_weight": 0.0}},
        heads.Facts.of(labels, {}),
    )["age"]
    votes = jnp.array([6.0, 1.0, jnp.nan, 0.0])
    given = {"age": jnp.full(4, 40.0), "apparent_age_std": votes}
    for row, sigma in enumerate((6.0, 1.0, 2.0, 2.0)):
        density = jnp.exp(-jnp.square(head.ages - 40) / (2 * sigma**2))
        output = jnp.log(density / density.sum() + 1e-30)[None].repeat(4, axis=0)
        assert head.loss(output, given)[row] < 1e-3
        np.testing.assert_allclose(head.extras(output)["sigma"], sigma, rtol=1e-3)


def test_buckets_come_with_labels_to_score_them_by():
    head = of_many({"kind": "buckets", "edges": (3, 10)})
    labels, names = heads.derive(
        {"age": head}, {"age": np.array([2.9, 3.0, 9.0, 50.0, np.nan])}, {"gender": ("a", "b")}
    )
    assert labels["age_bucket"].tolist() == [0, 1, 1, 2, -1]
    assert names["age_bucket"] == ["0-2", "3-9", "10+"]
    assert names["gender"] == ("a", "b")


def test_of_two_heads_with_buckets_of_one_label_the_first_is_scored_as_it_predicts():
    first, other = (of_many({"kind": "buckets", "edges": edges}) for edges in ((3, 10, 20), (5,)))
    labels, names = heads.derive({"a": first, "b": other}, {"age": np.array([2.0, 50.0])}, {})
    assert labels["age_bucket"].tolist() == [0, 3]
    assert names["age_bucket"] == ["0-2", "3-9", "10-19", "20+"]


def test_example_weights_have_mean_one_and_favour_the_rare():
    rng = np.random.default_rng(0)
    ages = np.round(rng.gamma(4, 8, 3000)).astype(np.float32)
    ages[:5] = np.nan
    gender = (rng.random(3000) < 0.2).astype(np.int32)
    labels, rows = {"age": ages, "gender": gender}, np.arange(2000)
    facts = heads.Facts.of({k: v[rows] for k, v in labels.items()}, NAMES)
    for name, kind in (
        *(("age", kind) for kind in ("dense", "lds", "inverse", "class_balanced")),
        *(("gender", kind) for kind in ("inverse", "class_balanced")),
    ):
        config = {
            "age": {"kind": "regression"},
            "gender": {"kind": "binary"},
        }
        config[name]["example_weights"] = {"kind": kind}
        made = weights.of(config, heads.create(config, facts), labels, rows)
        assert set(made) == {f"example_weight/{name}"}
        w = made[f"example_weight/{name}"]
        known = rows[np.isfinite(labels[name][rows])]
        assert w[known].mean() == pytest.approx(1, abs=1e-4)
        assert (w[2000:] == 1).all()
        common, rare = (gender == 0, gender == 1) if name == "gender" else (ages == 28, ages > 75)
        assert w[known][rare[known]].min() > w[known][common[known]].max()


def test_example_weights_have_mean_one_over_what_is_drawn():
    ages = np.repeat([20.0, 60.0, np.nan], [6, 2, 2]).astype(np.float32)
    config = {"age": {"kind": "regression", "example_weights": {"kind": "inverse"}}}
    made = heads.create(config, heads.Facts.of({"age": ages}, {}))
    drawn = np.repeat([0.5, 3.0, 7.0], [6, 2, 2])  # 3 draws of the young, 6 of the old
    w = weights.of(config, made, {"age": ages}, np.arange(10), drawn)["example_weight/age"]
    # 1/6 and 1/2 of a common factor c, where 3 c/6 + 6 c/2 = 9.
    np.testing.assert_allclose(w[:8], np.repeat([9 / 3.5 / 6, 9 / 3.5 / 2], [6, 2]), rtol=1e-6)
    assert (w[8:] == 1).all()


def test_dense_weight_is_that_of_the_scale_that_the_loss_lives_on():
    ages = np.round(np.random.default_rng(0).gamma(4, 8, 300)).astype(np.float32)
    config = {
        "age": {
            "kind": "regression",
            "transform": "log",
            "example_weights": {"kind": "dense", "alpha": 0.7},
        }
    }
    made = heads.create(config, heads.Facts.of({"age": ages}, {}))
    w = weights.of(config, made, {"age": ages}, np.arange(300))["example_weight/age"]
    np.testing.assert_allclose(w, density.dense_weight(np.log1p(ages), 0.7), rtol=1e-3)
    assert np.abs(w - density.dense_weight(ages, 0.7)).max() > 0.1


def test_the_sigma_of_a_gaussian_is_in_years():
    head = make("age", kind="gaussian")
    years = np.nanstd(LABELS["age"].astype(np.float64))
    output = jnp.array([[0.3, 0.0], [0.3, 2 * np.log(0.25)], [0.3, 99.0], [0.3, -99.0]])
    # The second output is the logarithm of a variance on the labels' standard scale, in -12..6.
    expected = years * np.array([1, 0.25, np.exp(3.0), np.exp(-6.0)])
    np.testing.assert_allclose(head.extras(output)["sigma"], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["distribution", "ordinal", "regression", "gaussian"])
def test_ages_up_to_116_can_be_said(kind):
    head = make("age", kind=kind)
    n = width(head)
    best = {"distribution": 1e3 * jnp.eye(117)[-1:], "ordinal": jnp.full((1, 116), 1e3)}
    assert {"distribution": 117, "ordinal": 116}.get(kind, n) == n
    assert head.decode(best.get(kind, jnp.full((1, n), 1e3)))[0] == pytest.approx(116, abs=0.51)


def test_a_stored_run_keeps_the_defaults_it_was_started_with():
    old = {"age": {"kind": "distribution"}, "gender": {"kind": "binary"}, "x": {"kind": "buckets"}}
    heads.write_out(old, former=True)
    assert old["age"] == {"kind": "distribution", "range": [0, 100], "decode_prior": "sampled"}
    assert old["gender"] == {"kind": "binary"}
    assert old["x"]["decode_prior"] == "sampled"
    # The same command resumes with the old defaults; a new run uses and stores the new ones.
    again, new = {"age": {"kind": "distribution"}}, {"age": {"kind": "distribution"}}
    heads.write_out(again, old)
    assert again["age"] == old["age"]
    heads.write_out(new)
    assert new["age"] == {"kind": "distribution", "range": (0, 116), "decode_prior": "natural"}
    given = {"age": {"kind": "ordinal", "range": (5, 50)}}
    heads.write_out(given, old)
    assert given["age"]["range"] == (5, 50)


@pytest.mark.parametrize(
    ("example_weights", "message"),
    [
        ({"kind": "dens"}, r"example_weights\.kind: 'dens' is not one of dense"),
        ({"kind": "dense", "alpah": 1}, "did you mean 'alpha'"),
        ({"kind": "lds"}, "lds is for ages; 'gender' has classes"),
    ],
)
def test_wrong_example_weights_are_one_clear_line(example_weights, message):
    config = {"gender": {"kind": "binary", "example_weights": example_weights}}
    with pytest.raises(UserError, match=message):
        weights.of(config, heads.create(config, FACTS), LABELS, np.arange(4))


def test_an_even_window_of_example_weights_is_named():
    config = {"age": {"kind": "regression", "example_weights": {"kind": "lds", "size": 4}}}
    with pytest.raises(UserError, match=r"^config\.heads\.age\.example_weights\.size: need"):
        weights.of(config, heads.create(config, FACTS), LABELS, np.arange(4))
