import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agejax.config import default
from agejax.errors import UserError
from agejax.training import optim
from agejax.training.vectors import Vectors

NAMES = ("backbone/conv/kernel", "backbone/bn/scale", "heads/age/kernel", "heads/age/bias")
HEIGHTS = dict(zip(NAMES, (3, 1, 0, 0), strict=True))


def config(**changes):
    c = default().optim
    c.clip_norm = 0.0
    c.update(changes)
    return c


def updates_of(c, grads, params, lr=0.1):
    optimizer = optim.create_optimizer(c, optax.constant_schedule(lr), HEIGHTS)
    trainable, _ = optimizer.split(Vectors.of(params, optimizer.rates))
    state = optimizer.transform.init(trainable)
    return dict(optimizer.transform.update(trainable.pack(grads), state, trainable, step=0)[0])


PARAMS = {k: jnp.full(3, i + 1.0) for i, k in enumerate(NAMES)}
GRADS = {k: jnp.array([1.0, -2.0, 0.5]) for k in NAMES}


def test_adamw_equals_optax():
    c = config(weight_decay=0.3, decay_multipliers=((".*", 1.0),))
    reference = optax.adamw(0.1, weight_decay=0.3)
    expected = reference.update(GRADS, reference.init(PARAMS), PARAMS)[0]
    for name, update in updates_of(c, GRADS, PARAMS).items():
        np.testing.assert_allclose(update, expected[name], rtol=1e-6)


def test_groups_scale_decay_and_freeze():
    c = config(
        name="sgd", b1=0.0, weight_decay=0.5,
        lr_multipliers=(("backbone/bn/.*", None), ("backbone/.*", 0.1), (".*", 1.0)),
    )  # fmt: skip
    u = updates_of(c, GRADS, PARAMS)
    assert "backbone/bn/scale" not in u
    # lr · multiplier · (gradient + decay · parameter); biases do not decay.
    np.testing.assert_allclose(u["backbone/conv/kernel"], -0.01 * (GRADS[NAMES[0]] + 0.5 * 1))
    np.testing.assert_allclose(u["heads/age/kernel"], -0.1 * (GRADS[NAMES[2]] + 0.5 * 3), rtol=1e-6)
    np.testing.assert_allclose(u["heads/age/bias"], -0.1 * GRADS[NAMES[3]])


def test_layer_decay_lowers_the_rate_with_every_layer_below_the_heads_and_leaves_what_is_frozen():
    c = config(
        name="sgd", b1=0.0, layer_decay=0.5, weight_decay=0.5,
        lr_multipliers=(("backbone/bn/.*", None), ("backbone/.*", 0.4), (".*", 1.0)),
    )  # fmt: skip
    u = updates_of(c, GRADS, PARAMS)
    assert "backbone/bn/scale" not in u
    # lr 0.1 · multiplier 0.4 · 0.5³ · (gradient + decay · parameter)
    np.testing.assert_allclose(u[NAMES[0]], -0.005 * (GRADS[NAMES[0]] + 0.5 * 1), rtol=1e-6)
    np.testing.assert_allclose(u[NAMES[3]], -0.1 * GRADS[NAMES[3]], rtol=1e-6)


def test_without_layer_decay_the_optimizer_is_that_of_runs_from_before_the_setting():
    old, new = config(), config()
    del old["layer_decay"]
    states = [
        optim.create_optimizer(c, optax.constant_schedule(0.1), HEIGHTS).transform.init(PARAMS)
        for c in (old, new)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    jax.tree.map(np.testing.assert_array_equal, *(updates_of(c, GRADS, PARAMS) for c in (old, new)))


def test_clipping_bounds_the_global_norm():
    c = config(name="sgd", b1=0.0, clip_norm=1.0)
    u = updates_of(c, GRADS, PARAMS, lr=1.0)
    assert float(optax.global_norm(u)) == pytest.approx(1.0, rel=1e-6)


def test_a_parameter_that_no_group_covers_is_an_error_that_names_it():
    with pytest.raises(UserError, match=r"no group covers heads/age/kernel, heads/age/bias"):
        optim.match_groups(NAMES, (("backbone/.*", 1.0),), "optim.lr_multipliers")
    with pytest.raises(UserError, match="regex"):
        optim.match_groups(NAMES, (("(", 1.0),), "optim.lr_multipliers")


def schedule(total=100, **changes):
    c = default().schedule
    for key, value in changes.items():
        c[key] = value

    def to_steps(duration, name):
        ((unit, value),) = dict(duration).items()
        return round(value * total / 100) if unit == "percent" else value

    return optim.create_schedule(c, total, to_steps)


def test_one_cycle_follows_its_definition():
    lr = schedule(kind="one_cycle", lr=1.0, warmup={"percent": 40}, div=20.0, final_div=100.0)
    assert float(lr(0)) == pytest.approx(1 / 20)
    assert float(lr(20)) == pytest.approx((1 / 20 + 1) / 2)  # half-way up a cosine
    assert float(lr(40)) == pytest.approx(1.0)
    assert float(lr(100)) == pytest.approx(1 / 2000, rel=1e-3)


@given(st.data())
def test_one_cycle_peaks_at_exactly_the_step_where_the_warm_up_ends(data):
    total = data.draw(st.integers(2, 3000))
    peak = data.draw(st.integers(0, total - 1))
    lr = schedule(total, kind="one_cycle", lr=1.0, warmup={"steps": peak})
    around = {step: float(lr(step)) for step in (peak - 1, peak, peak + 1) if step >= 0}
    assert around[peak] == pytest.approx(1.0, rel=1e-6)
    # A cosine is flat at its top: in float32 the next step may be as high.
    assert max(around.values()) <= around[peak] + 1e-6
    rising, falling = max(peak, 1), total - peak
    if peak and rising < 500:
        before = 0.5 * (1 - np.cos(np.pi * (peak - 1) / rising))
        assert around[peak - 1] == pytest.approx(1 / 25 + (1 - 1 / 25) * before, abs=1e-5)
    if falling < 500:
        after = 0.5 * (1 + np.cos(np.pi / falling))
        assert around[peak + 1] == pytest.approx(after, abs=1e-4)


def test_the_other_schedules():
    lr = schedule(kind="warmup_cosine", lr=1.0, warmup={"steps": 10}, final_div=100.0)
    assert float(lr(5)) == pytest.approx(0.5)
    assert float(lr(10)) == pytest.approx(1.0)
    assert float(lr(100)) == pytest.approx(0.01, rel=1e-4)
    lr = schedule(kind="exponential", lr=1.0, decay_every={"steps": 10}, decay_rate=0.5)
    assert float(lr(20)) == pytest.approx(0.25)
    assert float(schedule(kind="constant", lr=0.3)(77)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("kind", "lr"), [("one_cycle", 1 / 25), ("warmup_cosine", 0.0), ("constant", 1.0)]
)
def test_a_run_of_one_step_has_the_rate_that_its_schedule_starts_from(kind, lr):
    of_run = schedule(1, kind=kind, lr=1.0, warmup={"steps": 1})
    assert float(of_run(0)) == pytest.approx(lr)


def test_a_decay_that_never_comes_is_one_clear_line():
    with pytest.raises(UserError, match=r"decay_every: it is 0; set it above 0"):
        schedule(kind="exponential", decay_every={"epochs": 0.0})


def test_a_warm_up_longer_than_the_run_is_one_clear_line():
    with pytest.raises(UserError, match="do not fit a run of 100"):
        schedule(warmup={"steps": 500})


def test_a_wrong_optimizer_is_one_clear_line():
    for c, message in (
        (config(name="adam", weight_decay=0.1), "use adamw"),
        (config(lr_multipliers=((".*", None),)), "nothing to train"),
    ):
        with pytest.raises(UserError, match=message):
            optim.create_optimizer(c, optax.constant_schedule(0.1), HEIGHTS)


def test_penalties_are_the_norms_of_what_their_regex_covers():
    c = config(l1=(("heads/.*/kernel", 0.5),), l2=(("heads/age/.*", 2.0), (".*/bias", 1.0)))
    params = {
        "backbone/kernel": jnp.ones(3),
        "backbone/bias": jnp.full(2, 3.0),
        "heads/age/kernel": jnp.array([-1.0, 2.0]),
        "heads/gender/kernel": jnp.array([-4.0]),
    }
    expected = 0.5 * (3 + 4) + 0.5 * 2.0 * 5 + 0.5 * 1.0 * 18
    assert float(optim.create_penalty(c, list(params))(params)) == pytest.approx(expected)
    assert optim.create_penalty(config(), list(params)) is None
    with pytest.raises(UserError, match=r"config\.optim\.l1: not a list"):
        optim.create_penalty(config(l1=(("(", 1.0),)), list(params))


@pytest.mark.parametrize(("name", "times"), [("sgd", 16.0), ("adamw", 4.0), ("adam", 4.0)])
def test_a_larger_batch_scales_the_learning_rate_by_its_optimizers_rule(name, times):
    c = default()
    c.optim.name, c.data.batch_size = name, 1024
    assert optim.lr_scale(c) == 1
    c.schedule.lr_batch_size = 64
    assert optim.lr_scale(c) == times
    c.schedule.kind = "warmup_cosine"
    c.schedule.warmup = {"steps": 10}
    schedule = optim.create_schedule(c.schedule, 100, lambda d, _: d["steps"], optim.lr_scale(c))
    assert float(schedule(10)) == pytest.approx(times * c.schedule.lr)
    assert float(schedule(100)) == pytest.approx(times * c.schedule.lr / c.schedule.final_div)
