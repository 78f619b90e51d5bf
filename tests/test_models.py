"""Every backbone: published size, any image size, platforms, precision, and its options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from scipy import signal

from agejax.errors import UserError
from agejax.models import backbone, efficientnet, layers, mobilenet_v3, registry, resnet, vgg, vit
from agejax.models.backbone import heights

# Of the published classifiers with 1,000 classes: torchvision's tables, timm's for ViT-Ti and -S,
# trainable weights of keras.applications (3.15) for the minimalistic ones.
PARAMETERS = {
    "mobilenet_v1": 4_231_976,  # trainable weights of keras.applications.MobileNet
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_small_minimalistic": 2_044_736,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_large_minimalistic": 3_924_288,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    # The networks themselves in timm 1.0.31, where senet50 is legacy_seresnet50.
    "seresnet50": 28_088_024,
    "seresnext50_32x4d": 27_559_896,
    "senet50": 28_088_024,
    "legacy_seresnext50_32x4d": 27_559_896,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    # The same of NASNet and PNASNet; keras.applications' (3.15) trainable ones for the mobile one.
    "nasnet_mobile": 5_289_978,
    "nasnet_large": 88_753_150,
    "pnasnet5_large": 86_057_668,
    # The networks themselves in timm 1.0.31; torchvision's table agrees for efficientnet_b0.
    "efficientnet_b0": 5_288_548,
    "tf_efficientnet_b0": 5_288_548,
    "efficientnet_lite0": 4_652_008,
    "tf_efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "tf_efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "tf_efficientnet_lite2": 6_092_072,
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_b16": 86_567_656,
    "vit_l16": 304_326_632,
}

OURS = {"cnn", "mlp"}  # not published
# One of every family.
FAMILIES = [
    *("mlp", "cnn", "mobilenet_v1", "mobilenet_v3_small", "resnet18", "seresnext50_32x4d"),
    *("vgg16_bn", "efficientnet_b0", "efficientnet_lite0", "nasnet_mobile", "pnasnet5_large"),
    "vit_ti16",
]


@pytest.fixture
def shallow(monkeypatch):
    """Reduces the largest networks to one cell per stage, in place of four and six."""
    for name in ("nasnet_mobile", "pnasnet5_large"):
        make = registry.MODELS[name]
        *designs, stem, filters, _, skip_reduction = make.args
        arguments = (*designs, stem, filters, (1, 1, 1), skip_reduction)
        monkeypatch.setitem(registry.MODELS, name, functools.partial(make.func, *arguments))


def abstract(name, size=224, **options):
    return nnx.eval_shape(
        lambda: registry.create(name, image_size=size, rngs=nnx.Rngs(0), **options)
    )


@functools.cache
def of_any_size(name):
    """A model for images of an odd size, without arrays; built once, since large ones take long."""
    return abstract(name, 96 if name.startswith("vit") else 75)


def shapes(model):
    """{"features/0/conv/kernel": shape}, parameters only."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): variable.get_value().shape for path, variable in flat}


def count(model):
    return sum(int(np.prod(shape)) for shape in shapes(model).values())


def test_every_model_has_its_published_number_of_parameters():
    assert set(PARAMETERS) == set(registry.MODELS) - OURS
    for name, published in PARAMETERS.items():
        assert count(abstract(name, num_classes=1000)) == published, name


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_model_maps_images_of_any_size_to_features(name):
    size, model = 96 if name.startswith("vit") else 75, of_any_size(name)
    graphdef, state = nnx.split(model)

    def apply(state, x):
        return nnx.merge(graphdef, state)(x, train=True, rngs=nnx.Rngs(dropout=1))

    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    out = jax.eval_shape(apply, state, x)
    assert out.shape == (2, model.feature_dim)
    assert out.dtype == jnp.float32


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_train_step_lowers_for_gpu_and_tpu_without_one(name):
    model = abstract(name, 32)
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, rest = (nnx.to_pure_dict(state) for state in states)

    def loss(params, rest, x):
        return nnx.merge(graphdef, params, rest)(x, train=True).sum()

    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    exported = export.export(jax.jit(jax.grad(loss)), platforms=["cuda", "tpu"])(params, rest, x)
    assert exported.platforms == ("cuda", "tpu")
    if not name.startswith(("vit", "mlp")):
        assert "stablehlo.convolution" in exported.mlir_module()


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_parameters_and_batch_statistics_and_nothing_else(name):
    _, params, _, rest = nnx.split(abstract(name, 32), nnx.Param, nnx.BatchStat, ...)
    assert jax.tree.leaves(params)
    assert not jax.tree.leaves(rest)


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_parameter_of_every_model_belongs_to_a_layer(name):
    model = of_any_size(name)
    parameters = [f"backbone/{path}" for path in shapes(model)]
    found = heights(model, [*parameters, "heads/age/kernel"])
    assert found.pop("heads/age/kernel") == 0
    assert set(found.values()) == set(range(1, len(model.layer_paths()) + 1))


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", [*FAMILIES, "mobilenet_v1", "vgg16"])
def test_layers_are_in_the_order_of_the_forward_pass(name):
    """Compares with the order in which the traced program first reads the parameters."""
    model = abstract(name, 32)
    graphdef, params, rest = nnx.split(model, nnx.Param, nnx.BatchStat)
    paths = [f"backbone/{'/'.join(map(str, path))}" for path, _ in nnx.to_flat_state(params)]
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda params, rest, x: nnx.merge(graphdef, params, rest)(x))(
        params, rest, x
    ).jaxpr
    read = [v for equation in jaxpr.eqns for v in equation.invars]
    first = {path: read.index(v) for path, v in zip(paths, jaxpr.invars, strict=False)}
    found = heights(model, paths)
    in_order = [found[path] for path in sorted(paths, key=first.__getitem__)]
    assert in_order == sorted(in_order, reverse=True)


def test_layers_are_timms_blocks_with_what_follows_the_last_one():
    found = heights(of_any_size("vit_ti16"), ["backbone/pos_embed", "backbone/norm/scale",
                    "backbone/blocks/11/fc1/bias", "backbone/blocks/1/fc1/bias"])  # fmt: skip
    assert list(found.values()) == [13, 1, 1, 11]
    convolutional = shallow_network("vit of convolutions")
    found = heights(convolutional, [f"backbone/{path}" for path in shapes(convolutional)])
    assert {found[f"backbone/patch_embed/{x}"] for x in ("convs/0/kernel", "norms/3/scale",
                                                         "proj/bias")} == {3}  # fmt: skip
    resnet50 = of_any_size("resnet50")
    found = heights(resnet50, ["backbone/bn1/scale", "backbone/layer4/0/downsample/0/kernel"])
    assert list(found.values()) == [17, 3]


# ---- what training does to blocks ----------------------------------------------------------------


def shallow_network(name, **options):
    """Small networks of the residual families, each with a block that has drop path."""
    common = {"rngs": nnx.Rngs(0)} | options
    match name:
        case "vit":
            return vit.ViT(16, 2, 2, image_size=32, **common)
        case "vit of convolutions":
            return vit.ViT(16, 2, 2, image_size=32, stem="convolutions", **common)
        case "resnet":
            return resnet.ResNet(resnet.Basic, (1, 1, 1, 1), **common)
        case "mobilenet_v3":
            return mobilenet_v3.MobileNetV3(mobilenet_v3.SMALL[:3], 8, **common)
        case "efficientnet":
            return efficientnet.EfficientNet(((1, 3, 2, 1, 8), (2, 3, 2, 2, 8)), False, **common)
        case "vgg16_bn":
            return vgg.VGG((1, 1, 1, 1, 2), batch_norm=True, **common)
    return registry.create(name, image_size=32, **common)


RESIDUAL = ("vit", "vit of convolutions", "resnet", "mobilenet_v3", "efficientnet")


@pytest.mark.parametrize("name", RESIDUAL)
def test_drop_path_drops_the_branches_of_each_example_alone_and_only_in_training(name):
    model, off = shallow_network(name, drop_path=0.9), shallow_network(name)
    assert shapes(model) == shapes(off)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, layers.BatchNorm):
            module.frozen = True  # else examples depend on each other
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 32, 32, 3)), (16, 32, 32, 3))
    np.testing.assert_array_equal(model(x), off(x))
    out = model(x, train=True, rngs=nnx.Rngs(dropout=1))
    kinds = np.unique(np.asarray(out).round(4), axis=0)
    assert 1 < len(kinds) < 16  # some are equal: they dropped the same
    plain = model(x, train=True)  # without keys nothing is dropped
    np.testing.assert_allclose(plain, jnp.broadcast_to(plain[:1], plain.shape), atol=1e-4)


@pytest.mark.parametrize("name", RESIDUAL)
def test_drop_path_grows_from_none_in_the_first_block_to_its_rate_in_the_last(name):
    model = shallow_network(name, drop_path=0.6)
    blocks = {
        "vit": lambda: model.blocks,
        "vit of convolutions": lambda: model.blocks,
        "resnet": lambda: [stage[0] for stage in (model.layer1, model.layer2, model.layer3,
                                                  model.layer4)],
        "mobilenet_v3": lambda: model.features[1:-1],
        "efficientnet": lambda: model.blocks,
    }[name]()  # fmt: skip
    rates = [block.drop_path.rate for block in blocks]
    expected = {2: [0, 0.6], 3: [0, 0.3, 0.6], 4: [0, 0.2, 0.4, 0.6]}[len(rates)]
    np.testing.assert_allclose(rates, expected)


BLOCKS = {
    "cnn": 3, "mlp": 2, "mobilenet_v1": 13, "vgg16_bn": 5, "resnet": 4, "efficientnet": 3,
    "nasnet_mobile": 7, "vit": 2, "mobilenet_v3": 3,
}  # fmt: skip


def pure(model):
    """(loss(params, statistics, images), params, statistics); one key gives the masks."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss(params, stats, x):
        network = nnx.merge(graphdef, params, stats)
        value = jnp.sum(jnp.square(network(x, train=True, rngs=nnx.Rngs(dropout=1))))
        return value, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    return loss, *map(nnx.to_pure_dict, states)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_of_every_family_is_recomputed_where_that_is_asked_for(name, monkeypatch):
    made, recomputed = [], backbone.recomputed
    monkeypatch.setattr(backbone, "recomputed", lambda f: made.append(f) or recomputed(f))
    model = nnx.eval_shape(lambda: shallow_network(name))
    x = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    found = []
    for remat in (False, True):
        model.remat = remat
        loss, *arrays = pure(model)
        jax.eval_shape(loss, *arrays, x)
        found.append(len(made))
    assert found == [0, BLOCKS[name]]


def test_recomputing_takes_less_memory_on_a_cpu_too():
    """XLA:CPU would merge equal computations, and so keep what should be recomputed."""
    x = jax.ShapeDtypeStruct((16, 64, 64, 3), jnp.float32)
    taken = []
    for remat in (False, True):
        model = nnx.eval_shape(
            lambda: vit.ViT(16, 6, 2, image_size=64, dropout=0.1, rngs=nnx.Rngs(0))
        )
        model.remat = remat
        loss, *arrays = pure(model)
        step = jax.jit(jax.grad(loss, has_aux=True)).lower(*arrays, x).compile()
        taken.append(step.memory_analysis().temp_size_in_bytes)
    assert taken[1] < 0.6 * taken[0]


@pytest.mark.parametrize("name", ["cnn", "vgg16_bn", "vit", "mobilenet_v3"])
def test_recomputing_blocks_changes_neither_gradients_nor_statistics(name):
    options = {"drop_path": 0.5} if name in RESIDUAL else {}
    options |= {"dropout": 0.3} if name in ("cnn", "vit") else {}
    model = shallow_network(name, **options)
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    results = []
    for remat in (False, True):
        model.remat = remat
        loss, *arrays = pure(model)
        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(*arrays, x))
    (kept, grads), (recomputed, same_grads) = results
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, kept, recomputed)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5 * largest)
    jax.tree.map(same, grads, same_grads)


def test_a_perceptron_sees_no_places():
    model = registry.create("mlp", image_size=8, widths=(16, 12), rngs=nnx.Rngs(0))
    features = model.embed(jnp.ones((2, 8, 8, 3)), train=True)
    assert features.maps.shape == (2, 1, 1, 12)
    assert features.pooled.shape == (2, 12)


def test_bfloat16_computes_in_halves_and_keeps_float32_around():
    rows = mobilenet_v3.SMALL[:4]  # every kind of layer is in the first four blocks
    half, full = (
        mobilenet_v3.MobileNetV3(rows, 64, dtype=dtype, rngs=nnx.Rngs(0))
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    x = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    run = nnx.jit(lambda model, x: model(x, train=True))
    out = run(half, x)
    assert out.dtype == jnp.float32
    assert "bf16" in str(jax.make_jaxpr(lambda x: half(x, train=False))(x))
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(nnx.state(half)))
    reference = run(full, x)
    error = jnp.linalg.norm(out - reference) / jnp.linalg.norm(reference)
    assert 1e-4 < float(error) < 0.1


def test_the_minimalistic_variant_has_neither_squeeze_excite_nor_large_kernels():
    model = abstract("mobilenet_v3_small_minimalistic")
    parameters = shapes(model)
    assert not any("fc1" in name for name in parameters)
    assert {shape[0] for shape in parameters.values() if len(shape) == 4} == {1, 3}
    # Trainable weights of keras.applications.MobileNetV3Small(minimalistic=True, no top), 3.15.
    assert count(model) == 428_888


@pytest.mark.parametrize(("name", "strides"), [("resnet50", (1, 2)), ("senet50", (2, 1))])
def test_a_bottleneck_strides_in_its_3x3_and_as_in_caffe_in_its_first_1x1(name, strides):
    first, other = abstract(name).layer2[:2]
    assert (first.conv1.stride, first.conv2.stride) == strides
    assert first.downsample[0].stride == 2
    assert (other.conv1.stride, other.conv2.stride) == (1, 1)


def test_a_stem_of_convolutions_makes_one_token_of_16x16_px():
    """Against scipy's correlation, with moved batch statistics and the class token left out."""
    stem = vit.ConvStem(16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for norm in stem.norms:
        norm.mean.set_value(jnp.asarray(rng.normal(size=norm.mean[...].shape), jnp.float32))
        norm.var.set_value(jnp.asarray(rng.uniform(1, 2, norm.var[...].shape), jnp.float32))
    image = rng.normal(size=(32, 48, 3))
    x = image
    for conv, norm, width in zip(stem.convs, stem.norms, (2, 4, 8, 16), strict=True):
        kernel, padded = np.asarray(conv.kernel[...]), np.pad(x, ((1, 1), (1, 1), (0, 0)))
        assert kernel.shape == (3, 3, x.shape[-1], width)
        y = np.stack([signal.correlate(padded, kernel[..., o], "valid")[::2, ::2, 0]
                      for o in range(width)], axis=-1)  # fmt: skip
        y = (y - norm.mean[...]) / np.sqrt(norm.var[...] + norm.epsilon)
        x = np.maximum(y, 0)
    expected = x @ np.asarray(stem.proj.kernel[0, 0])
    assert expected.shape == (2, 3, 16)
    found = stem(jnp.asarray(image[None], jnp.float32), train=False)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_a_vit_reads_the_tokens_of_its_convolutions_row_by_row():
    """A ViT of patches that is handed the same tokens in this order gives the same features."""
    make = functools.partial(vit.ViT, 16, 1, 2, image_size=32)
    plain, convolutional = (
        make(stem=stem, rngs=nnx.Rngs(0)) for stem in ("patches", "convolutions")
    )
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    tokens = convolutional.patch_embed(x, train=False).reshape(1, 4, 16)
    plain.patch_embed = lambda patches: tokens
    plain.cls_token, plain.pos_embed = convolutional.cls_token, convolutional.pos_embed
    plain.blocks, plain.norm = convolutional.blocks, convolutional.norm
    np.testing.assert_allclose(plain(x), convolutional(x), atol=1e-6)


def test_vgg_pools_other_sizes_as_torch_does():
    x = np.random.default_rng(0).normal(size=(2, 9, 5, 3)).astype(np.float32)
    pooled = np.asarray(vgg.adaptive_mean(jnp.asarray(x), 7))
    assert pooled.shape == (2, 3, 7, 7)
    # torch.nn.AdaptiveAvgPool2d: from floor(i n / 7) up to ceil((i + 1) n / 7).
    np.testing.assert_allclose(pooled[:, :, 0, 0], x[:, 0:2, 0:1].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(pooled[:, :, 3, 6], x[:, 3:6, 4:5].mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilenet_v3_smal", {}, "did you mean 'mobilenet_v3_small'"),
        ("mobilenet_v3_small", {"widht": 0.5}, "did you mean 'width'"),
        (
            "mobilenet_v3_small",
            {"padding": "sam"},
            r"padding: 'sam' is not one of torch, same",
        ),
        (
            "efficientnet_b0",
            {"padding": "sam"},
            r"padding: 'sam' is not one of torch, same",
        ),
        ("mlp", {"widths": ()}, r"options\.widths: it is empty"),
        ("vit_ti16", {"image_size": 100}, "multiple of 16"),
    ],
)
def test_a_wrong_model_is_one_clear_line(name, options, message):
    arguments = {"image_size": 64, "rngs": nnx.Rngs(0)} | options
    with pytest.raises(UserError, match=message):
        registry.create(name, **arguments)
