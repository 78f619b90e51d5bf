"""Every backbone: published size, any image size, platforms, precision, and how it is asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from agejax.errors import UserError
from agejax.models import mobilenet_v3, registry, vgg

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
    # The networks themselves in timm 1.0.31; torchvision's table for efficientnet_b0 says the same.
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

OURS = {"cnn", "mlp"}  # published by nobody
# One of every family.
FAMILIES = [
    *("mlp", "cnn", "mobilenet_v1", "mobilenet_v3_small", "resnet18", "seresnext50_32x4d"),
    *("vgg16_bn", "efficientnet_b0", "efficientnet_lite0", "nasnet_mobile", "pnasnet5_large"),
    "vit_ti16",
]


@pytest.fixture
def shallow(monkeypatch):
    """The networks of the largest programs, with one cell a stage for four and six."""
    for name in ("nasnet_mobile", "pnasnet5_large"):
        make = registry.MODELS[name]
        *designs, stem, filters, _, skip_reduction = make.args
        arguments = (*designs, stem, filters, (1, 1, 1), skip_reduction)
        monkeypatch.setitem(registry.MODELS, name, functools.partial(make.func, *arguments))


def abstract(name, size=224, **options):
    return nnx.eval_shape(
        lambda: registry.create(name, image_size=size, rngs=nnx.Rngs(0), **options)
    )


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
    size = 96 if name.startswith("vit") else 75
    model = abstract(name, size)
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
        ("mobilenet_v3_small", {"padding": "sam"}, r"options\.padding: .* did you mean 'same'"),
        ("efficientnet_b0", {"padding": "sam"}, r"options\.padding: .* did you mean 'same'"),
        ("mlp", {"widths": ()}, r"options\.widths: is empty"),
        ("vit_ti16", {"image_size": 100}, "multiple of 16"),
    ],
)
def test_a_wrong_model_is_one_clear_line(name, options, message):
    arguments = {"image_size": 64, "rngs": nnx.Rngs(0)} | options
    with pytest.raises(UserError, match=message):
        registry.create(name, **arguments)
