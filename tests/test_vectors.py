"""Named arrays in few vectors, and a train state of them."""

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_step import GENDER_WEIGHT, TOTAL, Bench, batch_of

import tiny
from agejax.heads import Facts, create
from agejax.training import checkpoint, optim, sharding, vectors
from agejax.training import state as state_lib
from agejax.training import step as step_lib
from agejax.training.checkpoint import Checkpoints, CheckpointWriter
from agejax.training.vectors import Vectors

KERNEL = np.arange(8.0, dtype=np.float32).reshape(1, 2, 2, 2)  # [H, W, I, O]
ARRAYS = {
    "b/kernel": jnp.asarray(KERNEL), "a/bias": jnp.float32([8, 9]), "c/kernel": jnp.eye(2) * 10,
}  # fmt: skip
KEYS = {"b/kernel": 1.0, "a/bias": 1.0, "c/kernel": None}


def test_arrays_of_one_key_share_a_vector_by_name_with_kernels_as_they_are_or_by_output():
    made = Vectors.of(ARRAYS, KEYS)
    shared, _ = made.vectors
    np.testing.assert_array_equal(shared, [8, 9, 0, 1, 2, 3, 4, 5, 6, 7])
    made = Vectors.of(ARRAYS, KEYS, by_output=True)
    shared, lone = made.vectors
    # Output 0 of the kernel is even: its two pixels, each with its two inputs.
    np.testing.assert_array_equal(shared, [8, 9, 0, 2, 4, 6, 1, 3, 5, 7])
    np.testing.assert_array_equal(lone, [[10, 0], [0, 10]])
    assert list(made) == ["a/bias", "b/kernel", "c/kernel"]
    assert len(made) == 3
    with pytest.raises(KeyError):
        made["d"]


def test_names_and_shapes_come_back():
    by_output = Vectors.of(ARRAYS, KEYS, by_output=True)
    for made in (Vectors.of(ARRAYS, KEYS), by_output, jax.device_get(by_output)):
        jax.tree.map(np.testing.assert_array_equal, dict(made), ARRAYS)
        jax.tree.map(np.testing.assert_array_equal, made.pack(ARRAYS), made)
    state = {"step": jnp.int32(3), "params": Vectors.of(ARRAYS, KEYS)}
    for named in (vectors.unpacked(state), vectors.unpacked(vectors.on_host(state))):
        jax.tree.map(np.testing.assert_array_equal, named, {"step": 3, "params": ARRAYS})
    again = vectors.packed(named, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_abstract_vectors_give_abstract_arrays_on_the_same_devices():
    placed = sharding.replicated(sharding.create_mesh(2, 1))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), Vectors.of(ARRAYS, KEYS)
    )
    named = vectors.unpacked(like)
    assert {k: (v.shape, v.dtype) for k, v in named.items()} == {
        k: (v.shape, v.dtype) for k, v in ARRAYS.items()
    }
    assert {v.sharding for v in named.values()} == {placed}


def test_vectors_are_split_joined_and_given_values_by_name():
    made = Vectors.of(ARRAYS, KEYS)
    trained, frozen = made.split({"c/kernel"})
    assert (set(trained), set(frozen)) == ({"a/bias", "b/kernel"}, {"c/kernel"})
    assert jax.tree.structure(frozen | trained) == jax.tree.structure(made)
    twice = made | jax.tree.map(lambda x: 2 * x, frozen)
    np.testing.assert_array_equal(twice["c/kernel"], 2 * ARRAYS["c/kernel"])
    np.testing.assert_array_equal(twice["b/kernel"], KERNEL)
    values = made.spread({"a/bias": 0.5, "b/kernel": 0.5, "c/kernel": 2.0})
    assert values.vectors == (0.5, 2.0)


class Training:
    """A train step on four devices, of which `fsdp` share the state, and its state after a step."""

    def __init__(self, fsdp):
        config = tiny.get_config()
        config.model.image_size = config.data.image_size = 8
        config.model.mean = config.model.std = (0.5,) * 3
        config.optim.accumulate = 2
        config.optim.weight_decay = 0.1
        rates = (("backbone/convs/0/.*", None), ("heads/.*", 2.0), (".*", 1.0))
        config.optim.lr_multipliers = rates
        del config.heads.ethnicity
        names = {"gender": ["male", "female"]}
        facts = Facts.of({"age": np.float32([20, 60]), "gender": np.int32([0, 1])}, names)
        model, initialise = state_lib.create_model(config, create(config.heads, facts))
        schedule = optim.create_schedule(config.schedule, 100, lambda d, _: 10)
        optimizer = optim.create_optimizer(config.optim, schedule, model.parameters)
        self.mesh = sharding.create_mesh(4, fsdp)
        self.like = state_lib.abstract(config, initialise, optimizer, self.mesh)
        self.step = step_lib.make_train_step(config, model, optimizer, self.like)
        self.start = self.after(1, state_lib.create(config, initialise, optimizer, self.mesh))

    def after(self, steps, state):
        """The state some steps later; the given one stays usable."""
        state = jax.tree.map(jnp.copy, state)
        for _ in range(steps):
            ages = np.linspace(5 + int(state.step), 90, 16, dtype=np.float32)
            state, _ = self.step(state, sharding.put_batch(batch_of(16, age=ages), self.mesh))
        return state


@pytest.fixture(scope="module")
def together():
    return Training(fsdp=1)


@pytest.fixture(scope="module")
def alone():
    return Training(fsdp=2)


STEPS, RATE, WARMUP, DECAY, EMA, CLIP = 50, 0.02, 10, 0.1, 0.9, 1.0


def bench():
    """Frozen parameters, two learning rates, weight decay on kernels alone."""
    rates = (("backbone/convs/0/.*", None), ("backbone/.*", 0.3), (".*", 1.0))
    return Bench(
        model__options={"widths": (4, 4)}, optim__name="adamw", optim__b1=0.9,
        optim__clip_norm=CLIP, optim__weight_decay=DECAY, optim__ema=EMA,
        optim__lr_multipliers=rates, schedule__kind="warmup_cosine", schedule__lr=RATE,
        schedule__warmup={"steps": WARMUP},
    )  # fmt: skip


def batch_at(step):
    batch = batch_of(16, age=np.linspace(5 + step, 90, 16, dtype=np.float32))
    return batch | {"image": np.roll(batch["image"], step, axis=2)}


@pytest.fixture(scope="module")
def by_optax():
    """(arrays, averages) after `STEPS` steps of optax alone, over plain dicts."""
    plain = bench()
    end = RATE / plain.config.schedule.final_div
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, WARMUP, TOTAL, end)
    start = jax.device_get(plain.start)
    params, stats = dict(start.params), dict(start.batch_stats)
    kernels = {name: name.endswith("kernel") for name in params}
    groups = {
        name: "frozen" if "convs/0" in name else "slow" if "backbone" in name else "full"
        for name in params
    }
    transforms = {
        "frozen": optax.set_to_zero(),
        "slow": optax.adamw(lambda t: 0.3 * rate(t), weight_decay=DECAY, mask=kernels),
        "full": optax.adamw(rate, weight_decay=DECAY, mask=kernels),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.partition(transforms, groups))

    def loss(params, stats, batch):
        fixed = {k: jax.lax.stop_gradient(v) for k, v in params.items() if groups[k] == "frozen"}
        images = jnp.float32(batch["image"]) / 255
        outputs, stats = plain.model.apply(params | fixed, stats, images, train=True)
        of_age = 0.5 * jnp.square(outputs["age"][:, 0] - (batch["age"] - 40) / 20)
        of_gender = optax.sigmoid_binary_cross_entropy(outputs["gender"][:, 0], batch["gender"])
        return jnp.mean(of_age + GENDER_WEIGHT * of_gender), stats

    @jax.jit
    def step(t, params, stats, state, average, batch):
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, batch)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        share = 1 - jnp.minimum(EMA, (1 + t) / (10 + t))
        average = optax.incremental_update(params | stats, average, share)
        return params, stats, state, average, optax.global_norm(grads)

    state, average, norms = optimizer.init(params), params | stats, []
    for t in range(STEPS):
        params, stats, state, average, norm = step(t, params, stats, state, average, batch_at(t))
        norms.append(float(norm))
    assert min(norms) < CLIP < max(norms)
    return params | stats, average


@pytest.mark.parametrize("by_output", [False, True])  # as on a CPU, and as on a GPU
def test_fifty_steps_in_vectors_train_as_optax_does_over_a_dict(by_optax, by_output, monkeypatch):
    of = Vectors.of
    monkeypatch.setattr(Vectors, "of", lambda arrays, keys, *_: of(arrays, keys, by_output))
    in_vectors = bench()
    state = in_vectors.start
    for t in range(STEPS):
        state, _ = in_vectors.step(batch_at(t), state)
    averages = state.ema["params"] | state.ema["batch_stats"]
    for given, arrays in zip((state.params | state.batch_stats, averages), by_optax, strict=True):
        assert given.keys() == arrays.keys()
        for name, value in arrays.items():
            # They differ by the order of sums alone: by 5e-7 at most where this was written.
            np.testing.assert_allclose(given[name], value, rtol=0, atol=5e-6, err_msg=name)


def test_a_state_in_vectors_trains_as_one_of_arrays_does(together, alone):
    # Frozen, and at two rates with decay or without; where devices share, each array by itself.
    assert len(together.like.params.vectors) == 5
    assert len(together.like.batch_stats.vectors) == 1
    assert len(alone.like.params.vectors) == len(alone.like.params) > 5
    one, other = (
        vectors.unpacked(jax.device_get(each.after(4, each.start))) for each in (together, alone)
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), one, other)


@pytest.mark.parametrize("back", [False, True])
def test_a_checkpoint_has_names_and_shapes_and_continues_in_either_form(
    together, alone, back, tmp_path
):
    first, then = (alone, together) if back else (together, alone)
    saved = vectors.unpacked(jax.device_get(first.start))
    writer = CheckpointWriter(tmp_path / "checkpoints")
    writer.save(first.start, {})
    writer.close()
    on_disk = by_hand.saved(tmp_path, 1)
    for group in ("params", "batch_stats"):
        assert on_disk[group].keys() == getattr(saved, group).keys()
        jax.tree.map(np.testing.assert_array_equal, on_disk[group], getattr(saved, group))
    restored, _ = Checkpoints(tmp_path / "checkpoints").restore(then.like, 1)
    assert jax.tree.structure(restored) == jax.tree.structure(then.start)
    again = vectors.unpacked(jax.device_get(restored))
    jax.tree.map(np.testing.assert_array_equal, again, saved)
    assert int(then.after(1, restored).step) == 2


def test_the_devices_never_hold_a_state_twice_to_save_and_to_restore_it(
    together, tmp_path, monkeypatch
):
    def on_devices(arrays):
        return sum(x.nbytes for x in jax.tree.leaves(arrays) if isinstance(x, jax.Array))

    # Where the arrays have their names: before they are written, and after they are read.
    seen, of_arrays = [], checkpoint.checksum
    monkeypatch.setattr(
        checkpoint, "checksum", lambda x: seen.append(on_devices(x)) or of_arrays(x)
    )
    writer = CheckpointWriter(tmp_path / "checkpoints")
    writer.save(together.start, {})
    writer.close()
    restored, _ = Checkpoints(tmp_path / "checkpoints").restore(together.like, 1)
    assert on_devices(restored) == on_devices(together.start)
    shared = [
        vector.nbytes
        for each in jax.tree.leaves(restored, is_leaf=lambda x: isinstance(x, Vectors))
        if isinstance(each, Vectors)
        for group, vector in zip(each.groups, each.vectors, strict=True)
        if len(group.arrays) > 1
    ]
    assert len(shared) > 5
    # The others are no copies: the state's own, and those that it is restored to.
    assert seen == [on_devices(restored) - sum(shared)] * 2
