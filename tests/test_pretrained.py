"""torchvision's weights: strict loading, and features equal to an independent computation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.special
from conftest import SHARED
from flax import nnx
from jax import lax

from agejax.config import default
from agejax.errors import UserError
from agejax.models import pretrained, registry, vit
from agejax.models.mobilenet_v3 import SMALL
from agejax.train import train

WEIGHTS = SHARED / "weights" / "mobilenet_v3_small_imagenet_features.safetensors"


def shapes_of(model):
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return {"/".join(map(str, p)): v.get_value().shape for p, v in nnx.to_flat_state(state)}


def abstract_shapes(name):
    return shapes_of(nnx.eval_shape(lambda: registry.create(name, image_size=64, rngs=nnx.Rngs(0))))


def fill(model, loaded):
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        variable.set_value(jnp.asarray(loaded.arrays["/".join(map(str, path))]))


@pytest.fixture(scope="module")
def model():
    """A model without arrays, which the weights provide."""
    return nnx.eval_shape(
        lambda: registry.create("mobilenet_v3_small", image_size=64, rngs=nnx.Rngs(0))
    )


@pytest.fixture(scope="module")
def shapes(model):
    return shapes_of(model)


def torch_features(weights, x):
    """torchvision's MobileNetV3-Small `features`, rewritten from its source, with its own keys.

    Uses agejax's table of kernel, stride and kind only: plain NCHW convolutions.
    """

    def conv(x, key, stride=1, groups=1):
        w = weights[f"{key}.weight"]
        pad = (w.shape[-1] - 1) // 2
        return lax.conv_general_dilated(
            x, w, (stride, stride), [(pad, pad)] * 2, feature_group_count=groups,
            dimension_numbers=("NCHW", "OIHW", "NCHW"), precision="highest",
        )  # fmt: skip

    def norm(x, key):
        scale, bias, mean, var = (
            weights[f"{key}.{leaf}"][:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / jnp.sqrt(var + 1e-3) * scale + bias

    def relu6(x):
        return jnp.clip(x, 0, 6)

    def act(x, name):
        return jnp.maximum(x, 0) if name == "relu" else x * relu6(x + 3) / 6

    x = act(norm(conv(x, "features.0.0", 2), "features.0.1"), "hard_swish")
    for i, (_, _, _, squeeze, name, stride) in enumerate(SMALL, 1):
        block, j, start = f"features.{i}.block", 0, x
        if weights[f"{block}.0.0.weight"].shape[1] != 1:  # expands
            x = act(norm(conv(x, f"{block}.0.0"), f"{block}.0.1"), name)
            j = 1
        depthwise = conv(x, f"{block}.{j}.0", stride, groups=x.shape[1])
        x = act(norm(depthwise, f"{block}.{j}.1"), name)
        if squeeze:
            j += 1
            gate = x.mean((2, 3), keepdims=True)
            for fc in ("fc1", "fc2"):
                bias = weights[f"{block}.{j}.{fc}.bias"][:, None, None]
                gate = conv(gate, f"{block}.{j}.{fc}") + bias
                gate = jnp.maximum(gate, 0) if fc == "fc1" else relu6(gate + 3) / 6
            x = x * gate
        x = norm(conv(x, f"{block}.{j + 1}.0"), f"{block}.{j + 1}.1")
        if stride == 1 and x.shape == start.shape:
            x = x + start
    return act(norm(conv(x, "features.12.0"), "features.12.1"), "hard_swish").mean((2, 3))


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the ImageNet weights are not in ../shared")
@pytest.mark.parametrize("size", [64, 100])
def test_features_of_the_imagenet_weights_equal_an_independent_computation(model, shapes, size):
    loaded = pretrained.load(str(WEIGHTS), "mobilenet_v3_small", shapes, prefix="")
    assert loaded.arrays.keys() == shapes.keys()
    parameters = [v for k, v in loaded.arrays.items() if not k.endswith(("/mean", "/var"))]
    assert sum(v.size for v in parameters) == 927_008

    filled = nnx.clone(model)
    fill(filled, loaded)
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    ours = jax.jit(lambda x: filled(x, train=False))(x)
    weights = safetensors.numpy.load_file(WEIGHTS)
    reference = jax.jit(torch_features)(weights, x.transpose(0, 3, 1, 2))
    error = np.abs(ours - reference).max() / np.abs(reference).max()
    assert error < 1e-5, error


def torch_state():
    """A torchvision state dict with the right keys and shapes, and arbitrary values."""
    rng = np.random.default_rng(0)
    keys = {}
    if WEIGHTS.exists():
        keys = {k: v.shape for k, v in safetensors.numpy.load_file(WEIGHTS).items()}
    else:
        pytest.skip("the key list comes from the ImageNet weights in ../shared")
    return {k: rng.normal(size=s).astype(np.float32) for k, s in keys.items()}


def test_every_kind_of_mismatch_is_named_in_one_error(shapes, tmp_path):
    state = torch_state()
    del state["features.3.block.0.0.weight"]
    state["features.99.0.weight"] = np.zeros((1, 1, 1, 1), np.float32)
    state["features.0.0.weight"] = np.zeros((16, 3, 5, 5), np.float32)
    safetensors.numpy.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as error:
        pretrained.load(str(tmp_path / "w.safetensors"), "mobilenet_v3_small", shapes, prefix="")
    message = str(error.value)
    assert "features.99.0.weight has no place" in message
    assert "features/3/block/0/conv/kernel is missing" in message
    assert "features.0.0.weight is (5, 5, 3, 16), features/0/conv/kernel needs" in message
    assert message.count("features/0/conv/kernel") == 1
    assert "\n" not in message


def test_a_classifier_of_another_task_is_left_out(shapes, tmp_path):
    state = torch_state()
    state["classifier.3.weight"] = np.zeros((1000, 1024), np.float32)
    safetensors.numpy.save_file(state, tmp_path / "w.safetensors")
    loaded = pretrained.load(
        str(tmp_path / "w.safetensors"), "mobilenet_v3_small", shapes, prefix=""
    )
    assert loaded.left_out == ("classifier.3.weight",)


def saved(tensors, folder):
    path = folder / "w.safetensors"
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return str(path)


def loaded_from(tensors, shapes, folder, name="mobilenet_v3_small"):
    return pretrained.load(saved(tensors, folder), name, shapes, prefix="")


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "encoder.net.", "model._orig_mod."])
def test_a_prefix_that_all_keys_of_the_backbone_have_is_taken_off_and_said(
    prefix, shapes, tmp_path
):
    state = torch_state()
    plain = loaded_from(state, shapes, tmp_path)
    head = {"age_head.weight": np.zeros((1, 576), np.float32)}
    loaded = loaded_from({prefix + k: v for k, v in state.items()} | head, shapes, tmp_path)
    assert loaded.arrays.keys() == plain.arrays.keys() == shapes.keys()
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert loaded.left_out == ("age_head.weight",)
    said = prefix.replace("_orig_mod.", "")
    assert f"its keys begin with '{said}'; not used: age_head.weight" in str(loaded)
    assert "its keys begin" not in str(plain)


def test_heads_beside_a_complete_backbone_are_left_out(shapes, tmp_path):
    heads = {f"heads_of_{i:02}.weight": np.zeros((1, 576), np.float32) for i in range(12)}
    loaded = loaded_from(torch_state() | heads, shapes, tmp_path)
    assert set(loaded.left_out) == set(heads)
    assert str(loaded).endswith(" and 4 more")
    state = torch_state() | heads
    del state["features.0.0.weight"]
    with pytest.raises(UserError, match=r"features/0/conv/kernel is missing; heads_of_.* and 10"):
        loaded_from(state, shapes, tmp_path)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("features.3.block.9.new.weight", (3,)),  # of the backbone's own modules
        ("features.99.0.weight", (1, 1, 1, 1)),  # one more of its layers
        ("input_norm.weight", (3,)),  # in front of it
    ],
)
def test_what_changes_the_backbone_is_no_head_beside_it(key, shape, shapes, tmp_path):
    state = torch_state() | {key: np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match=rf"does not fit: {re.escape(key)} has no place"):
        loaded_from(state, shapes, tmp_path)


def test_a_file_with_the_backbone_twice_is_an_error(shapes, tmp_path):
    state = torch_state()
    twice = {f"{who}.{k}": v for who in ("student", "teacher") for k, v in state.items()}
    with pytest.raises(UserError, match=r"once, under '(student|teacher).' and '.*'; keep one"):
        loaded_from(twice, shapes, tmp_path)


def test_weights_of_another_model_are_named_by_what_they_look_like(tmp_path):
    path = saved({f"model.{k}": v for k, v in torch_state().items()}, tmp_path)
    shapes = abstract_shapes("resnet18")
    with pytest.raises(UserError) as error:
        pretrained.load(path, "resnet18", shapes, prefix="")
    assert "looks like mobilenet_v3_small; config.model.name is resnet18" in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the ImageNet weights are not in ../shared")
def test_weights_that_do_not_fit_are_found_before_the_data(tmp_path):
    config = default()
    config.data.source = str(tmp_path / "none")
    config.model.name, config.model.pretrained = "resnet18", str(WEIGHTS)
    config.heads.age = {"kind": "regression"}
    with pytest.raises(UserError, match=r"like mobilenet_v3_small; config\.model\.name is res"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keys_of_no_model_are_counted_and_the_first_named(shapes, tmp_path):
    keys = {f"{'x' * 200}{i}.weight": np.zeros(1, np.float32) for i in range(500)}
    with pytest.raises(
        UserError, match=r"not look like a model of agejax .* and 497 more"
    ) as error:
        loaded_from(keys, shapes, tmp_path)
    assert len(str(error.value)) < 600


def test_a_file_of_no_model_is_refused_with_what_to_give(tmp_path):
    path = saved({f"x{i}.weight": np.zeros(1, np.float32) for i in range(9)}, tmp_path)
    with pytest.raises(UserError) as error:
        pretrained.load(path, "resnet50", abstract_shapes("resnet50"), prefix="")
    assert str(error.value).endswith(
        "give the weights of resnet50, whose keys begin like 'conv1' (torchvision) or "
        "'conv1_conv' (keras)"
    )


@pytest.mark.parametrize("model", pretrained.LAYOUTS)
def test_the_example_of_a_layouts_keys_is_one_of_them(model):
    for layout in pretrained.LAYOUTS[model]:
        name = layout.example()
        assert re.fullmatch(r"[\w./]+", name)
        assert layout.our_name(f"{name}.weight", np.zeros(1))
        assert not re.fullmatch(layout.classifier, name)


def test_a_file_with_many_misfits_is_still_a_short_line(shapes, tmp_path):
    state = {k: v[..., None] for k, v in torch_state().items()}
    with pytest.raises(UserError, match=r"does not fit: .* more") as error:
        loaded_from(state, shapes, tmp_path)
    assert len(str(error.value)) - len(str(tmp_path)) < 500


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("mobilenet_v3_small", {"Conv/kernel": (), "kernel": (3,)}),
        ("resnet50", {"conv1_conv/kernel": (2, 2, 3, 4), "conv1_bn/moving_mean": (4,)}),
        ("resnet50", {"conv1_conv/kernel": (2,), "predictions/bias": ()}),
        ("vgg16", {"block1_conv1/kernel": (3,)}),
        ("vgg16", {"fc1/kernel": (2, 2), "classifier.0.weight": (2, 2)}),
        ("vit_ti16", {"embedding/kernel": (), "pos_embed": (1, 0, 3)}),
        ("vit_ti16", {"Transformer/encoder_norm/scale": (), "Transformer/encoderblock/x": ()}),
    ],
)
def test_keys_of_a_library_with_shapes_that_are_not_its_own_are_one_line(name, arrays, tmp_path):
    tensors = {key: np.ones(shape, np.float32) for key, shape in arrays.items()}
    (tmp_path / "w.safetensors").write_bytes(safetensors.numpy.save(tensors))
    ours = shapes_of(nnx.eval_shape(lambda: registry.create(name, image_size=32, rngs=nnx.Rngs(0))))
    with pytest.raises(UserError, match=r"does not (fit|write|look like a model)") as error:
        pretrained.load(str(tmp_path / "w.safetensors"), name, ours, prefix="")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the ImageNet weights are not in ../shared")
def test_our_own_classifier_stays_fresh_when_the_file_has_none():
    model = nnx.eval_shape(
        lambda: registry.create(
            "mobilenet_v3_small", image_size=64, rngs=nnx.Rngs(0), num_classes=7
        )
    )
    shapes = {f"backbone/{name}": shape for name, shape in shapes_of(model).items()}
    loaded = pretrained.load(str(WEIGHTS), "mobilenet_v3_small", shapes)
    assert loaded.fresh == tuple(
        f"backbone/classifier/{i}/{leaf}" for i in (0, 1) for leaf in ("bias", "kernel")
    )
    assert loaded.arrays.keys() == shapes.keys() - set(loaded.fresh)


def torch_vit_features(weights, images, heads):
    """The class token of torchvision's VisionTransformer, in float64 numpy, with its own keys."""
    weights = {key: value.astype(np.float64) for key, value in weights.items()}

    def dense(x, key, weight="weight", bias="bias"):
        return x @ weights[f"{key}{weight}"].T + weights[f"{key}{bias}"]

    def norm(x, key):
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return z * weights[f"{key}.weight"] + weights[f"{key}.bias"]

    kernel = weights["conv_proj.weight"]
    dim, patch = kernel.shape[0], kernel.shape[-1]
    rows = []
    for i in range(0, images.shape[1], patch):
        for j in range(0, images.shape[2], patch):
            part = images[:, i : i + patch, j : j + patch]
            rows.append(np.einsum("bhwc,ochw->bo", part, kernel) + weights["conv_proj.bias"])
    first = np.broadcast_to(weights["class_token"], (len(images), 1, dim))
    x = np.concatenate([first, np.stack(rows, 1)], 1) + weights["encoder.pos_embedding"]
    for i in range(sum(key.endswith("ln_1.weight") for key in weights)):
        block = f"encoder.layers.encoder_layer_{i}"
        qkv = dense(norm(x, f"{block}.ln_1"), f"{block}.self_attention.in_proj_", "weight", "bias")
        q, k, v = (
            part.reshape(len(x), -1, heads, dim // heads) for part in np.split(qkv, 3, axis=-1)
        )
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(dim // heads)
        share = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", share, v).reshape(x.shape)
        x = x + dense(mixed, f"{block}.self_attention.out_proj.")
        y = dense(norm(x, f"{block}.ln_2"), f"{block}.mlp.0.")
        y = y * (1 + scipy.special.erf(y / np.sqrt(2))) / 2
        x = x + dense(y, f"{block}.mlp.3.")
    return norm(x, "encoder.ln")[:, 0]


def test_a_small_vision_transformer_equals_an_independent_computation(tmp_path):
    dim, depth, rng = 32, 2, np.random.default_rng(0)
    keys = {
        "class_token": (1, 1, dim),
        "conv_proj.weight": (dim, 3, 16, 16),
        "conv_proj.bias": (dim,),
        "encoder.pos_embedding": (1, 5, dim),
        "encoder.ln.weight": (dim,),
        "encoder.ln.bias": (dim,),
        "heads.head.weight": (1000, dim),
    }
    for i in range(depth):
        block = f"encoder.layers.encoder_layer_{i}"
        for part, outputs, inputs in (
            ("self_attention.in_proj_", 3 * dim, dim),
            ("self_attention.out_proj.", dim, dim),
            ("mlp.0.", 4 * dim, dim),
            ("mlp.3.", dim, 4 * dim),
        ):
            keys[f"{block}.{part}weight"], keys[f"{block}.{part}bias"] = (
                (outputs, inputs),
                (outputs,),
            )
        for ln in ("ln_1", "ln_2"):
            keys[f"{block}.{ln}.weight"] = keys[f"{block}.{ln}.bias"] = (dim,)
    weights = {k: rng.normal(0, 0.3, size=s).astype(np.float32) for k, s in keys.items()}
    safetensors.numpy.save_file(weights, tmp_path / "w.safetensors")

    model = nnx.eval_shape(lambda: vit.ViT(dim, depth, 4, image_size=32, rngs=nnx.Rngs(0)))
    shapes = shapes_of(model)
    loaded = pretrained.load(str(tmp_path / "w.safetensors"), "vit_b16", shapes, prefix="")
    assert loaded.arrays.keys() == shapes.keys()
    assert loaded.left_out == ("heads.head.weight",)
    fill(model, loaded)
    x = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    ours = jax.jit(lambda x: model(x))(x)
    np.testing.assert_allclose(ours, torch_vit_features(weights, x, 4), rtol=1e-4, atol=1e-4)


def test_a_file_that_is_missing_or_broken_is_one_clear_line(shapes, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x80\x04not safetensors")
    for path, model, message in (
        (tmp_path / "none", "mobilenet_v3_small", "does not exist"),
        (broken, "mobilenet_v3_small", "is damaged"),
        (broken, "mobilenet", "no model 'mobilenet'; did you mean"),
        (broken, "cnn", "no rules to read weights of 'cnn'"),
    ):
        with pytest.raises(UserError, match=message):
            pretrained.load(str(path), model, shapes)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16_bn"])
def test_the_rules_of_a_family_cover_torchvisions_names(name, tmp_path):
    """Keys as torchvision writes them, generated from its module structure."""
    model = nnx.eval_shape(lambda: registry.create(name, image_size=64, rngs=nnx.Rngs(0)))
    shapes, state = shapes_of(model), {}

    def add_conv(key, outputs, inputs, size, bias=False):
        state[f"{key}.weight"] = np.zeros((outputs, inputs, size, size), np.float32)
        if bias:
            state[f"{key}.bias"] = np.zeros(outputs, np.float32)

    def add_norm(key, n):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{key}.{leaf}"] = np.zeros(n, np.float32)
        state[f"{key}.num_batches_tracked"] = np.zeros((), np.int64)

    if name == "vgg16_bn":
        channels, index = 3, 0
        for entry in (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3):
            if entry == "M":
                index += 1
                continue
            add_conv(f"features.{index}", entry, channels, 3, bias=True)
            add_norm(f"features.{index + 1}", entry)
            channels, index = entry, index + 3
    else:
        add_conv("conv1", 64, 3, 7)
        add_norm("bn1", 64)
        basic = name == "resnet18"
        depths, channels = ((2, 2, 2, 2) if basic else (3, 4, 6, 3)), 64
        for i, depth in enumerate(depths):
            width = 64 * 2**i
            out = width * (1 if basic else 4)
            for j in range(depth):
                block = f"layer{i + 1}.{j}"
                convs = (
                    [(width, channels, 3), (width, width, 3)]
                    if basic
                    else [(width, channels, 1), (width, width, 3), (out, width, 1)]
                )
                for k, (o, c, size) in enumerate(convs, 1):
                    add_conv(f"{block}.conv{k}", o, c, size)
                    add_norm(f"{block}.bn{k}", o)
                if j == 0 and (channels != out or i > 0):
                    add_conv(f"{block}.downsample.0", out, channels, 1)
                    add_norm(f"{block}.downsample.1", out)
                channels = out
    safetensors.numpy.save_file(state, tmp_path / "w.safetensors")
    loaded = pretrained.load(str(tmp_path / "w.safetensors"), name, shapes, prefix="")
    assert loaded.arrays.keys() == shapes.keys()


def settled(stored=None, **model):
    config = default()
    config.model.update({"pretrained": str(WEIGHTS)} | model)
    return pretrained.settle(config, stored)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the ImageNet weights are not in ../shared")
def test_images_are_normalised_as_the_weights_expect():
    assert settled().model.mean == (0.485, 0.456, 0.406)
    assert settled(mean=(0.485, 0.456, 0.406)).model.std == (0.229, 0.224, 0.225)
    with pytest.raises(UserError, match=r"config\.model\.mean: .* expects \(0\.485"):
        settled(mean=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "key", "stride_first"),
    [
        ("resnet50", "layer1.0.conv1.weight", False),
        ("seresnet50", "layer1.0.se.fc1.weight", False),
        ("senet50", "layer1.0.se_module.fc1.weight", True),
    ],
)
def test_the_stride_of_bottlenecks_is_where_the_weights_expect_it(
    name, key, stride_first, tmp_path
):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({key: np.zeros((1, 1, 1, 1), np.float32)}, path)
    config = settled(name=name, pretrained=str(path))
    assert config.model.options.stride_first is stride_first
    with pytest.raises(UserError, match=r"config\.model\.options\.stride_first: "):
        settled(name=name, pretrained=str(path), options={"stride_first": not stride_first})


def test_a_restart_keeps_what_the_run_was_started_with_and_needs_no_weights():
    stored = default()
    stored.model.mean, stored.model.std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]  # lists, as from JSON
    stored.model.options = {"padding": "same"}
    config = settled(stored, pretrained="/gone.pth")
    assert config.model.mean == (0.1, 0.2, 0.3)
    assert config.model.options.padding == "same"
