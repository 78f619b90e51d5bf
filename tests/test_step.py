"""One train step against arithmetic by hand.

The backbone is frozen, so its features are constants and every head is a linear layer of them. A
few lines of numpy then give what a step changes. The age is standardised with a mean of 40 and a
deviation of 20 years, and its loss is half the squared error.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from agejax.distillation.networks import Columns, Network
from agejax.distillation.teachers import Teachers
from agejax.errors import NotFiniteError
from agejax.heads import Facts, create, weights
from agejax.logging.stopwatch import Stopwatch
from agejax.logging.train_log import TrainLog
from agejax.training import augment, optim, sharding
from agejax.training import state as state_lib
from agejax.training import step as step_lib

SIZE, ROWS = 8, 8
FROZEN = (("backbone/.*", None), (".*", 1.0))
GENDER_WEIGHT = 0.25
NAN = np.nan
KEYS = ("heads/age/kernel", "heads/age/bias", "heads/gender/kernel", "heads/gender/bias")
TOTAL = 100  # steps that a schedule is made for


class Bench:
    """A train step with its model and initial state; states given to it stay usable."""

    def __init__(self, options: dict[str, Any] | None = None, **changes: Any) -> None:
        c = tiny.get_config()
        c.augment = augment.SETTINGS.config()
        c.model.image_size = SIZE
        c.model.options = {"widths": (4,)}
        c.model.mean, c.model.std, c.model.dropout = (0.5,) * 3, (0.25,) * 3, 0.0
        c.heads = {
            "age": {"kind": "regression", "loss": "l2"},
            "gender": {"kind": "binary", "weight": GENDER_WEIGHT},
        }
        c.optim.lr_multipliers = FROZEN
        c.optim.name, c.optim.b1, c.optim.clip_norm, c.optim.ema = "sgd", 0.0, 0.0, 0.0
        c.schedule.kind, c.schedule.lr = "constant", 1.0
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        facts = Facts.of(
            {"age": np.float32([20, 60]), "gender": np.int32([0, 1])},
            {"gender": ["male", "female"]},
        )
        self.config = c
        self.model, initialise = state_lib.create_model(c, create(c.heads, facts))
        self.initialise = initialise
        mesh = sharding.create_mesh(1, 1)
        schedule = optim.create_schedule(c.schedule, TOTAL, lambda d, _: int(d["steps"]))
        self.optimizer = optim.create_optimizer(c.optim, schedule, self.model.parameters)
        self.like = state_lib.abstract(c, initialise, self.optimizer, mesh)
        self.start = state_lib.create(c, initialise, self.optimizer, mesh)
        self._step = step_lib.make_train_step(
            c, self.model, self.optimizer, self.like, **(options or {})
        )

    def step(
        self, batch: dict[str, np.ndarray], state: Any = None, at: int | None = None
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """(new state, sums) of one step from `state`, or from the start at step number `at`."""
        state = self.start if state is None else state
        if at is not None:
            state = dataclasses.replace(state, step=jnp.int32(at))
        # A copy, as the step donates what it is given.
        return jax.device_get(self._step(jax.tree.map(jnp.copy, state), batch))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Images uint8, or f32 in 0..1 -> the features that heads read, f64 [B, C]."""
        images = jnp.float32(images) / (255 if images.dtype == np.uint8 else 1)
        network = self.model.network(self.start.params, self.start.batch_stats)
        return np.float64(network.features(images))


def batch_of(rows: int = ROWS, **labels: Any) -> dict[str, np.ndarray]:
    """A batch of noise, with another brightness in each row, and these labels."""
    rng = np.random.default_rng(5)
    images = (
        rng.uniform(0, 255, (rows, SIZE, SIZE, 3)) * np.linspace(0.2, 1, rows)[:, None, None, None]
    )
    return {
        "image": images.astype(np.uint8),
        "weight": np.ones(rows, np.float32),
        "strength": np.ones(rows, np.float32),
        "age": np.linspace(10, 80, rows).astype(np.float32),
        "gender": (np.arange(rows) % 2).astype(np.int32),
    } | labels  # fmt: skip


def outputs(bench: Bench, features: np.ndarray, head: str) -> np.ndarray:
    params = jax.device_get(bench.start.params)
    return (features @ params[f"heads/{head}/kernel"] + params[f"heads/{head}/bias"])[:, 0]


def errors(bench: Bench, features: np.ndarray, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """The gradient of each head's loss by its output [B], 0 where the label is unknown."""
    age, gender = np.float64(batch["age"]), batch["gender"]
    of_age = outputs(bench, features, "age") - (age - 40) / 20
    of_gender = 1 / (1 + np.exp(-outputs(bench, features, "gender"))) - gender
    return {
        "age": np.where(np.isnan(age), 0, of_age),
        "gender": np.where(gender < 0, 0, of_gender),
    }


def gradient(features: np.ndarray, slopes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gradient from slopes [B] that are already divided."""
    weight = {"age": 1.0, "gender": GENDER_WEIGHT}
    return {
        f"heads/{name}/{part}": weight[name] * value
        for name, slope in slopes.items()
        for part, value in (
            ("kernel", features.T @ slope[:, None]),
            ("bias", slope.sum(keepdims=True)),
        )
    }


def taken(bench: Bench, state: Any) -> dict[str, np.ndarray]:
    """The gradient that the step used: what plain SGD with a rate of 1 subtracted."""
    before = jax.device_get(bench.start.params)
    return {k: np.float64(before[k]) - np.float64(state.params[k]) for k in KEYS}


def check(given: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name in expected:
        np.testing.assert_allclose(given[name], expected[name], rtol=2e-4, atol=2e-6, err_msg=name)


HALF = {
    "age": np.float32([15, NAN, 70, NAN, 31, NAN, NAN, NAN]),
    "gender": np.int32([-1, 1, 0, 1, -1, 0, 0, -1]),
}


@pytest.fixture(scope="module")
def plain():
    return Bench()


def test_a_half_labelled_batch_teaches_what_its_labelled_rows_alone_would(plain):
    batch = batch_of(**HALF)
    state, sums = plain.step(batch)
    features = plain.features(batch["image"])
    slopes = errors(plain, features, batch)
    check(taken(plain, state), gradient(features, {
        "age": slopes["age"] / 3, "gender": slopes["gender"] / 5,
    }))  # fmt: skip
    # And the frozen backbone stays, bit for bit.
    for name, value in plain.start.params.items():
        if name not in KEYS:
            np.testing.assert_array_equal(state.params[name], value)
    assert state.step == 1

    mean, known = sums["age/loss"], np.isfinite(batch["age"])
    assert mean[0] == pytest.approx(np.square(slopes["age"]).sum() / 2 / 3, rel=1e-4)
    assert mean[1] == 1
    error = 20 * np.abs(slopes["age"][known])  # years
    np.testing.assert_allclose(sums["age/mae"], [error.sum(), 3], rtol=1e-4)
    hits = (outputs(plain, features, "gender") > 0) == (batch["gender"] == 1)
    np.testing.assert_array_equal(
        sums["gender/accuracy"], [hits[batch["gender"] >= 0].sum(), 5]
    )  # fmt: skip
    assert sums["loss"][0] == pytest.approx(
        mean[0] + GENDER_WEIGHT * sums["gender/loss"][0], rel=1e-5
    )
    norm = np.sqrt(sum(np.square(g).sum() for g in taken(plain, state).values()))
    assert sums["gradient_norm"][0] == pytest.approx(norm, rel=1e-3)


def test_a_row_of_weight_0_counts_nowhere(plain):
    weight = np.float32([0, 1, 1, 1, 1, 0, 1, 1])
    batch = batch_of(**HALF, weight=weight)
    state, sums = plain.step(batch)
    features = plain.features(batch["image"])
    slopes = errors(plain, features, batch)
    check(taken(plain, state), gradient(features, {
        "age": weight * slopes["age"] / 2, "gender": weight * slopes["gender"] / 4,
    }))  # fmt: skip
    assert sums["age/mae"][1] == 2


def test_a_batch_without_a_label_moves_nothing_of_its_head(plain):
    batch = batch_of(age=np.full(ROWS, NAN, np.float32))
    state, sums = plain.step(batch)
    assert (taken(plain, state)["heads/age/kernel"] == 0).all()
    assert (taken(plain, state)["heads/gender/kernel"] != 0).all()
    assert sums["age/loss"][0] == 0


def test_example_weights_multiply_the_loss_and_divide_nothing():
    weights = np.float32([3, 1, 0.5, 1, 2, 1, 1, 1])
    bench = Bench({"switches": {"age": 5}})
    batch = batch_of(**HALF) | {"example_weight/age": weights}
    features = bench.features(batch["image"])
    slopes = errors(bench, features, batch)
    for at, factor in ((4, 1.0), (5, weights)):  # they count from step 5 on
        state, _ = bench.step(batch, at=at)
        check(taken(bench, state), gradient(features, {
            "age": factor * slopes["age"] / 3, "gender": slopes["gender"] / 5,
        }))  # fmt: skip


def test_micro_batches_with_all_labels_on_one_side_add_up_to_the_whole():
    """So does a penalty, which each of them has."""
    bench = Bench(optim__accumulate=2, optim__l2=(("heads/age/kernel", 0.5),))
    # A micro-batch takes every second row: here the known ages are all in the first.
    batch = batch_of(**HALF)
    assert np.isnan(batch["age"][1::2]).all()
    state, sums = bench.step(batch)
    features = bench.features(batch["image"])
    slopes = errors(bench, features, batch)
    expected = gradient(features, {"age": slopes["age"] / 3, "gender": slopes["gender"] / 5})
    kernel = np.asarray(bench.start.params["heads/age/kernel"])
    expected["heads/age/kernel"] = expected["heads/age/kernel"] + 0.5 * kernel
    check(taken(bench, state), expected)
    penalty = 0.5 * 0.5 * np.square(kernel).sum()
    assert sums["penalty"][0] / sums["penalty"][1] == pytest.approx(penalty, rel=1e-4)
    loss = np.square(slopes["age"]).sum() / 2 / 3
    assert sums["age/loss"][0] / sums["age/loss"][1] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_a_mixed_row_learns_the_labels_of_the_row_it_is_mixed_with(how):
    bench = Bench(**{f"augment__{how}": 1.0})
    # Even greys: what each image holds of the row before it can be seen.
    grey = np.array([10, 240, 60, 200, 30, 120, 220, 90])
    images = np.broadcast_to(grey[:, None, None, None], (ROWS, SIZE, SIZE, 3)).astype(np.uint8)
    weights = np.float32([1, 2, 0.5, 1, 1, 3, 1, 1])
    batch = batch_of(**HALF, image=images) | {"example_weight/age": weights}
    state, _ = bench.step(batch)

    key = jax.random.split(jax.random.fold_in(jax.random.key(bench.config.seed), 0))[0]
    mixed, _ = jax.jit(augment.build(bench.config.augment, SIZE))(key, images, batch["strength"])
    before = np.roll(grey, 1)
    # Of the row itself, in the mean over its pixels.
    share = (255 * np.float64(mixed).mean(axis=(1, 2, 3)) - before) / (grey - before)
    assert (share < 0.99).sum() >= 4
    if how == "mixup":
        assert (share >= 0.5).all()
        np.testing.assert_allclose(
            255 * mixed[:, 3, 4, 1], share * grey + (1 - share) * before, rtol=1e-4
        )

    features = bench.features(np.asarray(mixed))
    partner = {k: np.roll(batch[k], 1) for k in ("age", "gender")}
    own, other = errors(bench, features, batch), errors(bench, features, partner)
    slopes = {
        "age": share * weights * own["age"] + (1 - share) * np.roll(weights, 1) * other["age"],
        "gender": share * own["gender"] + (1 - share) * other["gender"],
    }
    known = {"age": np.isfinite(batch["age"]), "gender": batch["gender"] >= 0}
    counts = {k: (share * v + (1 - share) * np.roll(v, 1)).sum() for k, v in known.items()}
    check(taken(bench, state), gradient(features, {k: v / counts[k] for k, v in slopes.items()}))


@pytest.mark.parametrize(
    "changes",
    [{"model__dropout": 0.5}, {"augment__brightness": 0.5}],
    ids=["dropout", "augmentation"],
)
def test_every_step_draws_anew_and_the_same_step_the_same(changes):
    bench = Bench(**changes)
    batch = batch_of()
    losses = [float(bench.step(batch, at=at)[1]["loss"][0]) for at in (0, 1, 2, 1)]
    assert len(set(losses)) == 3
    assert losses[3] == losses[1]


def test_micro_batches_drop_features_of_their_own():
    bench = Bench(
        model__dropout=0.5, model__options={"widths": (32,)}, optim__accumulate=2,
        heads={"age": {"kind": "regression", "loss": "l1"}},
    )  # fmt: skip
    batch = batch_of()
    batch["image"][:] = batch["image"][-1]
    batch["age"][:] = 116  # every output is below, so every slope is -1 / 20 of a year
    state, _ = bench.step(batch)
    features = bench.features(batch["image"])[0]
    change = bench.start.params["heads/age/kernel"][:, 0] - state.params["heads/age/kernel"][:, 0]
    seen = features > 1e-3
    assert seen.sum() >= 10
    # Each row that keeps a feature adds 2 f / 8: of two parts alike the number would be even.
    kept = -change[seen] / (2 * features[seen] / ROWS)
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-2)
    assert (np.round(kept) % 2 == 1).any()
    assert 0.25 < kept.mean() / ROWS < 0.75


def test_layer_decay_and_recomputing_reach_the_step_of_a_run():
    """Recomputed gradients are the same, so updates differ only by the layers' rates."""
    common = {
        "model__options": {"widths": (4, 4), "dropout": 0.3}, "optim__accumulate": 2,
        "optim__lr_multipliers": ((".*", 1.0),),
    }  # fmt: skip
    plain = Bench(**common)
    other = Bench(**common, optim__layer_decay=0.5, model__remat=True)
    batch = batch_of()
    before, (one, _), (two, _) = plain.start, plain.step(batch), other.step(batch)
    for name, start in jax.device_get(before.params).items():
        rate = 0.25 if "/0/" in name else 0.5 if "backbone" in name else 1
        moved = rate * (one.params[name] - start)
        np.testing.assert_allclose(two.params[name] - start, moved, rtol=1e-3, atol=1e-6)
    for name, value in one.batch_stats.items():
        np.testing.assert_allclose(two.batch_stats[name], value, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_of_each_step_is_the_one_that_is_applied_and_logged():
    rates = [0.1, 0.05, 0.025, 0.0125]
    bench = Bench(
        schedule__kind="exponential", schedule__lr=0.1, schedule__decay_rate=0.5,
        schedule__decay_every={"steps": 1}, heads={"age": {"kind": "regression", "loss": "l1"}},
    )  # fmt: skip
    batch = batch_of(age=np.full(ROWS, 116, np.float32))  # far above: the slope stays -1
    mean = bench.features(batch["image"]).mean(axis=0)
    state = bench.start
    for rate in rates:
        before = np.float64(state.params["heads/age/kernel"][:, 0])
        state, sums = bench.step(batch, state)
        np.testing.assert_allclose(
            state.params["heads/age/kernel"][:, 0] - before, rate * mean, rtol=1e-3, atol=1e-6
        )
        assert sums["learning_rate"][0] == pytest.approx(rate)
    # A run that has skipped its first three steps has the rate of the fourth.
    state, sums = bench.step(batch, at=3)
    before = np.float64(bench.start.params["heads/age/kernel"][:, 0])
    change = state.params["heads/age/kernel"][:, 0] - before
    np.testing.assert_allclose(change, rates[3] * mean, rtol=1e-3, atol=1e-6)
    assert sums["learning_rate"][0] == pytest.approx(rates[3])


def test_averages_warm_up_and_are_of_parameters_and_statistics():
    bench = Bench(
        optim__ema=0.9, optim__lr_multipliers=((".*", 1.0),), schedule__lr=0.05,
    )  # fmt: skip
    batch = batch_of()
    flat = lambda state: state.params | state.batch_stats  # noqa: E731
    p0 = jax.device_get(flat(bench.start))
    one, _ = bench.step(batch)
    two, _ = bench.step(batch, one)
    p1, p2 = flat(one), flat(two)
    assert any("norms" in name and (p0[name] != p1[name]).any() for name in bench.start.batch_stats)
    first, second = (s.ema["params"] | s.ema["batch_stats"] for s in (one, two))
    assert first.keys() == p0.keys()
    for name in p0:
        # (1 + t) / (10 + t) of the old average at step t: 1/10, then 2/11.
        a1 = np.float64(p0[name]) / 10 + 9 / 10 * np.float64(p1[name])
        np.testing.assert_allclose(first[name], a1, rtol=1e-5, atol=1e-6, err_msg=name)
        a2 = 2 / 11 * a1 + 9 / 11 * np.float64(p2[name])
        np.testing.assert_allclose(second[name], a2, rtol=1e-5, atol=1e-6, err_msg=name)
    # From step 80 on it is config.optim.ema.
    late, _ = bench.step(batch, at=500)
    for name, value in flat(late).items():
        average = (late.ema["params"] | late.ema["batch_stats"])[name]
        np.testing.assert_allclose(
            average, 0.9 * np.float64(p0[name]) + 0.1 * value, rtol=1e-5, atol=1e-6, err_msg=name
        )


def test_two_steps_of_adamw_by_hand_clip_the_gradient_before_its_moments():
    clip, rate, decay, b1, b2 = 0.02, 0.1, 0.3, 0.8, 0.95
    bench = Bench(
        optim__name="adamw", optim__b1=b1, optim__b2=b2, optim__eps=1e-8, optim__clip_norm=clip,
        optim__weight_decay=decay, schedule__lr=rate,
    )  # fmt: skip
    batch = batch_of()
    features = bench.features(batch["image"])
    params = {k: np.float64(bench.start.params[k]) for k in KEYS}
    mu, nu = ({k: np.zeros_like(v) for k, v in params.items()} for _ in range(2))
    state = bench.start
    for t in (1, 2):
        state, sums = bench.step(batch, state)
        at = lambda head: (  # noqa: E731
            features @ params[f"heads/{head}/kernel"] + params[f"heads/{head}/bias"]
        )[:, 0]
        slopes = {
            "age": (at("age") - (batch["age"] - 40) / 20) / ROWS,
            "gender": (1 / (1 + np.exp(-at("gender"))) - batch["gender"]) / ROWS,
        }
        g = gradient(features, slopes)
        norm = np.sqrt(sum(np.square(x).sum() for x in g.values()))
        assert sums["gradient_norm"][0] == pytest.approx(norm, rel=1e-3)  # as it was before
        assert norm > 3 * clip
        for k in KEYS:
            g[k] *= clip / norm
            mu[k] = b1 * mu[k] + (1 - b1) * g[k]
            nu[k] = b2 * nu[k] + (1 - b2) * np.square(g[k])
            direction = mu[k] / (1 - b1**t) / (np.sqrt(nu[k] / (1 - b2**t)) + 1e-8)
            if k.endswith("kernel"):  # biases do not decay
                direction = direction + decay * params[k]
            params[k] = params[k] - rate * direction
    adam = next(s for s in state.opt_state if isinstance(s, optax.ScaleByAdamState))
    for k in KEYS:
        np.testing.assert_allclose(adam.mu[k], mu[k], rtol=1e-3, atol=1e-8, err_msg=k)
        np.testing.assert_allclose(adam.nu[k], nu[k], rtol=2e-3, atol=1e-10, err_msg=k)
        np.testing.assert_allclose(state.params[k], params[k], rtol=1e-3, atol=1e-4, err_msg=k)


def explode(bench: Bench) -> Any:
    """An initial state with a finite loss but not a finite gradient: the head's kernel is 0, and
    its inputs are so large that the gradient's norm overflows."""
    params = dict(bench.start.params)
    for name, value in params.items():
        if name.startswith("backbone/norms/"):
            params[name] = jnp.full_like(value, 1e36)
    for name in ("heads/age/kernel", "heads/gender/kernel"):
        params[name] = jnp.zeros_like(params[name])
    return dataclasses.replace(bench.start, params=bench.start.params.pack(params))


def test_an_infinite_gradient_beside_a_finite_loss_stops_a_run(plain, tmp_path):
    _, sums = plain.step(batch_of(), explode(plain))
    assert np.isfinite(sums["loss"][0])
    assert not np.isfinite(sums["gradient_norm"][0])
    log = TrainLog(
        tmp_path, start_step=6, total_steps=10, batch_size=8, steps_per_epoch=1.0,
        clock=Stopwatch(),
    )  # fmt: skip
    with pytest.raises(NotFiniteError, match="gradient_norm is inf at step 7") as caught, log:
        log.add(7, sums)
    assert caught.value.step == 7


def test_an_infinite_gradient_beside_a_finite_loss_is_skipped_and_nothing_moves():
    bench = Bench(
        nonfinite="skip", optim__name="adamw", optim__b1=0.9, optim__ema=0.9, schedule__lr=0.1
    )
    start = explode(bench)
    state, sums = bench.step(batch_of(), start)
    assert state.step == 1
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(state, step=np.int32(0)), start)
    np.testing.assert_array_equal(sums["skipped"], [1, 1])
    np.testing.assert_array_equal(sums["loss"], [0, 0])  # in no mean over steps
    # A step that is finite is taken.
    state, sums = bench.step(batch_of())
    np.testing.assert_array_equal(sums["skipped"], [0, 1])
    assert (state.params["heads/age/bias"] != bench.start.params["heads/age/bias"]).all()


def test_feature_smoothing_counts_whole_epochs_and_takes_each_heads_ages():
    bench = Bench(
        {"steps_per_epoch": 2.5},
        heads={"age": {"kind": "regression", "loss": "l2", "fds": {}}},
    )  # fmt: skip
    batch = batch_of(age=np.float32([3, 3, 7, NAN, 50, 50, 50, 90]))
    for at, epoch in ((0, 0), (2, 0), (3, 1), (4, 1), (5, 2)):
        state, _ = bench.step(batch, at=at)
        stats = {k.rsplit("/", 1)[1]: v for k, v in state.batch_stats.items() if "smoothing" in k}
        assert stats["epoch"] == epoch
        counted = {int(age): n for age, n in enumerate(stats["count"][:, 0]) if n}
        assert counted == {3: 2, 7: 1, 50: 3, 90: 1}


def test_teachers_have_their_share_and_see_the_images_as_they_are_augmented():
    share = 0.3
    heads = {"gender": {"kind": "binary", "weight": GENDER_WEIGHT}}
    student = Bench(heads=heads)
    rng = np.random.default_rng(1)
    params = {k: v + rng.normal(0, 0.5, v.shape).astype(np.float32)
              for k, v in student.start.params.items()}  # fmt: skip
    ways = {"gender": Columns((0, 1), ())}
    arrays = (params, student.start.batch_stats)
    one = Network("teacher", SIZE, student.model, arrays, {"gender": 1.0}, ways)
    teachers = Teachers([one], share)
    bench = Bench({"teachers": teachers}, heads=heads, augment__brightness=0.5)
    weight = np.float32([1, 1, 1, 0, 1, 1, 1, 1])
    batch = batch_of(gender=HALF["gender"], weight=weight)
    state, _ = bench.step(batch | {"teachers": teachers.arrays})

    key = jax.random.split(jax.random.fold_in(jax.random.key(bench.config.seed), 0))[0]
    brighter, _ = jax.jit(augment.build(bench.config.augment, SIZE))(
        key, batch["image"], batch["strength"]
    )
    features = bench.features(np.asarray(brighter))
    network = student.model.network(params, student.start.batch_stats)
    theirs = np.float64(network.features(jnp.float32(brighter)))
    theirs = theirs @ params["heads/gender/kernel"] + params["heads/gender/bias"]
    ours = 1 / (1 + np.exp(-outputs(bench, features, "gender")))
    target = 1 / (1 + np.exp(-theirs[:, 0]))
    assert np.abs(target - ours).max() > 0.05
    known = weight * (batch["gender"] >= 0)
    slope = (1 - share) * known * (ours - batch["gender"]) / known.sum()
    slope += share * weight * (ours - target) / weight.sum()  # also where the label is unknown
    expected = gradient(features, {"gender": slope})
    check({k: bench.start.params[k] - state.params[k] for k in expected}, expected)


def test_predictions_are_in_years_and_the_first_of_two_heads_of_a_label_speaks_for_it():
    bench = Bench(
        heads={
            "age": {"kind": "regression", "loss": "l2"},
            "gender": {"kind": "binary"},
            "spread": {"kind": "gaussian", "label": "age"},
        }
    )
    batch = batch_of()
    said = step_lib.make_eval_step(bench.config, bench.model)(
        bench.start.params, bench.start.batch_stats, batch
    )
    features = bench.features(batch["image"])
    years = 40 + 20 * outputs(bench, features, "age")
    assert ((years > 0) & (years < 116)).all()
    np.testing.assert_allclose(said["age"], years, rtol=1e-4)
    female = 1 / (1 + np.exp(-outputs(bench, features, "gender")))
    np.testing.assert_allclose(said["gender"], np.stack([1 - female, female], axis=1), rtol=1e-4)
    params = jax.device_get(bench.start.params)
    log_variance = features @ params["heads/spread/kernel"][:, 1] + params["heads/spread/bias"][1]
    np.testing.assert_allclose(said["age_sigma"], 20 * np.exp(log_variance / 2), rtol=1e-4)
    assert said.keys() == {"age", "gender", "age_sigma"}


def test_only_on_gpus_are_steps_compiled_with_repeatable_algorithms(monkeypatch):
    bench = Bench(deterministic=True)
    monkeypatch.setattr(jax, "jit", lambda function, **options: options["compiler_options"])

    def asked(platform):
        device = types.SimpleNamespace(platform=platform)
        place = types.SimpleNamespace(device_set=[device], num_devices=1)
        like = dataclasses.replace(bench.like, step=types.SimpleNamespace(sharding=place))
        monkeypatch.setattr(jax, "devices", lambda: [device])
        return [
            step_lib.make_train_step(bench.config, bench.model, bench.optimizer, like),
            step_lib.make_eval_step(bench.config, bench.model),
        ]

    assert asked("gpu") == [{"xla_gpu_exclude_nondeterministic_ops": True}] * 2
    assert asked("cpu") == [{}] * 2
    bench.config.deterministic = False
    assert asked("gpu") == [{}] * 2


def test_a_step_is_traced_for_its_own_platform_alone(plain):
    def traced():
        return str(jax.make_jaxpr(plain.model.apply)(*arrays, images))

    arrays, images = (plain.start.params, plain.start.batch_stats), jnp.ones((ROWS, SIZE, SIZE, 3))
    assert "platform_index" in traced()
    assert "platform_index" not in str(plain._step.trace(plain.start, batch_of()).jaxpr)


SEX = {"kind": "binary", "label": "gender"}


def test_evaluation_gives_each_heads_loss_where_its_label_is_known():
    bench = Bench(heads={"age": {"kind": "regression", "loss": "l2"}, "sex": SEX})
    batch = batch_of()
    batch["age"][2], batch["gender"][3] = np.nan, -1
    batch[f"{weights.PREFIX}age"] = np.full(ROWS, 9, np.float32)
    said = step_lib.make_eval_step(bench.config, bench.model, losses=True)(
        bench.start.params, bench.start.batch_stats, batch
    )
    features = bench.features(batch["image"])
    off = outputs(bench, features, "age") - (np.float64(batch["age"]) - 40) / 20
    np.testing.assert_allclose(said["age/loss"], off**2 / 2, rtol=1e-4)  # NaN where it is unknown
    female = 1 / (1 + np.exp(-outputs(bench, features, "sex")))
    likelihood = np.where(batch["gender"] == 1, female, 1 - female)
    loss = np.where(batch["gender"] < 0, np.nan, -np.log(likelihood))
    np.testing.assert_allclose(said["sex/loss"], loss, rtol=1e-4)
    assert said.keys() == {"age", "gender", "age/loss", "sex/loss"}
