"""Heads' own necks: what a head reads, what it owns, and what it shares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agejax.errors import UserError
from agejax.models import layers, outputs, registry
from agejax.models.backbone import Backbone, Features
from agejax.models.face_model import FaceModel
from agejax.models.feature_smoothing import SmoothingOptions
from agejax.models.lowerings.pool import max_pool
from agejax.models.necks import Neck, NeckOptions

BRANCH = {"convs": (8, 4), "max_pool": True, "pool": "flatten", "hidden": (6,), "dropout": 0.3}


WIDTHS = {"age": 1, "gender": 2}


def output(inputs, rngs, width):
    return outputs.linear(inputs, width, rngs)


def build(necks, name="cnn", size=32, smoothing=(), **options):
    options = {"widths": (4, 8)} if name == "cnn" else options
    rngs = nnx.Rngs(0)
    backbone = registry.create(name, image_size=size, rngs=rngs, **options)
    parsed = {k: NeckOptions.of(v, f"config.heads.{k}.neck") for k, v in necks.items()}
    return FaceModel(
        backbone, {k: functools.partial(output, width=n) for k, n in WIDTHS.items()}, parsed,
        {name: SmoothingOptions.of({}, "") for name in smoothing},
        image_size=size,
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), hidden=5, dropout=0.1,
        dtype=jnp.float32, rngs=rngs,
    )  # fmt: skip


def images(size=32):
    return jax.random.uniform(jax.random.key(1), (3, size, size, 3))


def run(model, x, **arguments):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda s, x: nnx.merge(graphdef, s)(x, **arguments))(state, x)


def names(model):
    return {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def test_a_neck_belongs_to_its_head_and_the_others_share_the_hidden_layer():
    model = build({"gender": BRANCH})
    assert {"necks/gender/convs/1/kernel", "necks/gender/hidden/0/kernel"} <= names(model)
    # 32 px, two pools in the trunk, two in the branch: 2 x 2 x 4 into the dense layer.
    assert model.necks["gender"].hidden[0].kernel.shape == (16, 6)
    assert model.heads["gender"].kernel.shape == (6, 2)
    assert model.heads["age"].kernel.shape == (5, 1)
    out = run(model, images())
    assert {k: v.shape for k, v in out.items()} == {"age": (3, 1), "gender": (3, 2)}


def test_a_branch_equals_its_layers_one_by_one():
    model = build({"gender": BRANCH})
    x = (images() - jnp.array([0.5, 0.4, 0.3])) / jnp.array([0.2, 0.3, 0.4])
    neck, y = model.necks["gender"], model.backbone.embed(x).maps
    for conv, norm in zip(neck.convs, neck.norms, strict=True):
        y = max_pool(jnp.maximum(norm(conv(y), train=False), 0), 2, 2)
    y = jnp.maximum(neck.hidden[0](y.reshape(3, -1)), 0)
    np.testing.assert_allclose(
        run(model, images())["gender"], model.heads["gender"](y), rtol=1e-5, atol=1e-6
    )


def test_a_greyscale_head_does_not_see_colour_and_the_other_does():
    model = build({"gender": {"greyscale": True}})
    x = images()
    # Another colour of the same luminance: + t / 0.299 red, - t / 0.587 green.
    shift = jnp.array([0.1 / 0.299, -0.1 / 0.587, 0.0])
    one, other = run(model, x), run(model, x + shift)
    np.testing.assert_allclose(one["gender"], other["gender"], rtol=1e-4, atol=1e-7)
    assert np.abs(one["age"] / other["age"] - 1).max() > 0.01


def test_dropout_of_a_neck_works_in_training_only():
    model = build({"gender": BRANCH})
    keys = [nnx.Rngs(dropout=i) for i in range(2)]
    first, second = (model(images(), train=True, rngs=k)["gender"] for k in keys)
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_array_equal(run(model, images())["gender"], run(model, images())["gender"])


class Ones(Backbone):
    """A backbone whose features are all 1, whatever the image."""

    feature_dim = 64

    def embed(self, x, *, train=False, rngs=None):
        return Features(jnp.ones((len(x), 1, 1, self.feature_dim)), jnp.ones((len(x), 64)))


def outputs_of_ones(necks, kernels, hidden=0):
    """Outputs in training with dropout 0.5, where the last layer passes on its inputs, [8, 64]."""
    dropped = {name: NeckOptions.of(v | {"dropout": 0.5}, name) for name, v in necks.items()}
    model = FaceModel(
        Ones(), {"age": functools.partial(output, width=64)}, dropped, {}, image_size=8,
        mean=(0.5,) * 3, std=(1.0,) * 3, hidden=hidden, dropout=0.5, dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    layers_ = [*model.necks["age"].hidden] if necks else [model.hidden]
    for layer, kernel in zip([*layers_, model.heads["age"]], [*kernels, np.eye(64)], strict=True):
        layer.kernel.set_value(jnp.float32(kernel))
        layer.bias.set_value(jnp.zeros(64))
    x = jnp.zeros((8, 8, 8, 3))
    return np.asarray(model(x, train=True, rngs=nnx.Rngs(dropout=3))["age"])


MEAN = np.full((64, 64), 1 / 64)


def test_a_neck_drops_before_each_dense_layer_but_the_first_and_before_the_output():
    # The first layer's mean is 1 only if nothing was dropped before. Kept twice: 2 x 2.
    out = outputs_of_ones({"age": {"hidden": (64, 64)}}, [MEAN, np.eye(64)])
    np.testing.assert_allclose(np.unique(out.round(4)), [0, 4])
    assert 0.15 < (out > 0).mean() < 0.35
    # The second layer's mean is that of the kept inputs, equal for all; kept outputs are twice it.
    out = outputs_of_ones({"age": {"hidden": (64, 64)}}, [np.eye(64), MEAN])
    for row in out:
        (mean,) = np.unique((row[row > 0] / 2).round(4))
        assert 0.5 < mean < 1.5
        assert mean * 32 == pytest.approx(round(mean * 32), abs=0.01)  # so many were kept
        assert 0.25 < (row > 0).mean() < 0.75
    assert len(np.unique(out.round(4))) > 3


def test_the_shared_layer_is_before_the_dropout():
    out = outputs_of_ones({}, [MEAN], hidden=64)
    np.testing.assert_allclose(np.unique(out.round(3)), [0, 1.333])  # hard swish of 1, times 2


@pytest.mark.parametrize("neck", [{}, {"gender": {"hidden": (6,), "dropout": 0.5}}])
def test_features_are_smoothed_before_dropout(monkeypatch, neck):
    monkeypatch.setattr(layers.Dropout, "__call__", lambda self, x, train, rngs=None: 2 * x)
    model = build(neck, smoothing=("gender",))
    ages = {"gender": jnp.array([1.0, 1.0, 1.0])}
    out = model(images(), train=True, ages=ages, epoch=jnp.int32(0))["gender"]
    gathered = model.smoothing["gender"].sum[...][1]
    # The statistics are of the features, and the head sees them doubled.
    mean = model.heads["gender"](2 * gathered[None] / 3)[0]
    np.testing.assert_allclose(out.mean(axis=0), mean, rtol=1e-4, atol=1e-6)


def test_heads_that_share_features_share_the_mask_of_their_dropout():
    model = build({})
    model.dropout.rate = 0.5
    outputs_of = {}
    for name in WIDTHS:
        head = model.heads[name]
        model.heads[name] = lambda x, name=name: outputs_of.setdefault(name, x)
        del head
    model(images(), train=True, rngs=nnx.Rngs(dropout=0))
    np.testing.assert_array_equal(outputs_of["age"], outputs_of["gender"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("mobilenet_v3_small", {"width": 0.25}), ("resnet18", {}), ("vit_ti16", {}), ("mlp", {})],
)
def test_every_kind_of_backbone_carries_a_branch(name, options):
    model = nnx.eval_shape(lambda: build({"age": BRANCH}, name, 64, **options))
    graphdef, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    out = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x, train=True), state, x)
    assert out["age"].shape == (2, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hiden": (4,)}, r"config\.heads\.age\.neck: unknown key 'hiden'; did you mean 'hidden'"),
        ({"pool": "max"}, r"neck\.pool: 'max' is not one of mean, flatten"),
        ({"activation": "tanh"}, r"neck\.activation: 'tanh' is not one of"),
        ({"dropout": 1.0}, r"neck\.dropout: 1\.0; set it to a number of 0 or more and below 1"),
        ({"convs": (0,)}, r"neck\.convs: \(0,\); set it to a list of whole numbers in 1\.\.65536"),
        ({"hidden": ("a",)}, r"neck\.hidden: \('a',\); set it to a list"),
    ],
)
def test_a_wrong_neck_is_one_clear_line(given, message):
    with pytest.raises(UserError, match=message):
        NeckOptions.of(given, "config.heads.age.neck")


def test_input_dropout_drops_what_enters_the_dense_layers():
    options = NeckOptions.of({"hidden": (3,), "input_dropout": 0.5}, "neck")
    neck = Neck(options, (1, 1, 400), dtype=jnp.float32, rngs=nnx.Rngs(0))
    neck.hidden[0].kernel.set_value(jnp.ones((400, 3)))
    seen = Features.of_pooled(jnp.ones((64, 400)))
    np.testing.assert_allclose(neck(seen, train=False), 400)
    kept = np.asarray(neck(seen, train=True, rngs=nnx.Rngs(dropout=0)))[:, 0] / 2
    assert (kept == np.round(kept)).all()  # 1s that are doubled or dropped
    assert abs(kept.mean() - 200) < 5
    assert len(set(kept.tolist())) > 10
