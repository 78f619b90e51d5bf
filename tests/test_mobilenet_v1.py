"""MobileNetV1 and its face-pretrained weights, against a forward pass of the file's own graph."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import SHARED
from flax import nnx
from jax import lax

from agejax.errors import UserError
from agejax.models import pretrained, registry
from agejax.models.mobilenet_v1 import BLOCKS
from agejax.models.pretrained import files

FACES = SHARED / "weights" / "mobilenet_v1_faces.safetensors"
MEANS = np.float32([103.939, 116.779, 123.68])  # of blue, green, red


@pytest.fixture(scope="module")
def model():
    return nnx.eval_shape(
        lambda: registry.create("mobilenet_v1", image_size=64, folded=True, rngs=nnx.Rngs(0))
    )


@pytest.fixture(scope="module")
def shapes(model):
    return {
        "/".join(map(str, path)): variable.get_value().shape
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }


def features(model, loaded, images):
    """Our pooled features of RGB images uint8, normalised with the mean and std of the weights."""
    filled = nnx.clone(model)
    for path, variable in nnx.to_flat_state(nnx.state(filled)):
        variable.set_value(jnp.asarray(loaded.arrays["/".join(map(str, path))]))
    layout = next(
        layout for layout in pretrained.LAYOUTS["mobilenet_v1"] if layout.library == loaded.library
    )
    x = (images / np.float32(255) - np.float32(layout.mean)) / np.float32(layout.std)
    return np.asarray(jax.jit(lambda x: filled(x))(x))


def graph(images, kernel, bias):
    """The features that the file's own graph computes for RGB images uint8.

    Args:
      kernel, bias: name of a layer (conv1, dw1, pw1, ...) -> array, as in the file.
    """

    def layer(x, name, stride, groups=1):
        x = lax.conv_general_dilated(
            x, kernel(name), (stride, stride), "SAME", feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip
        return jnp.clip(x + bias(name), 0, 6)

    x = layer(images[..., ::-1].astype(np.float32) - MEANS, "conv1", 2)
    for i, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), 1):
        x = layer(x, f"dw{i}", stride, x.shape[-1])
        x = layer(x, f"pw{i}", 1)
    return np.asarray(x.mean((1, 2)))


def tensorflow_js(folder, seed=0):
    """Random weights in the npm package's format: (path, {name: array})."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)  # noqa: E731
    arrays = {"feats/kernel": draw(1024, 256), "age_pred/kernel": draw(256, 100),
              "conv1/convolution/merged_input": draw(3, 3, 3, 32) / 60,
              "conv1_bn/batchnorm_1/sub": draw(32),
              "conv1_relu/Const_1": np.float32(6)}  # fmt: skip
    channels = 32
    for i, (outputs, _) in enumerate(BLOCKS, 1):
        arrays |= {
            f"conv_dw_{i}/depthwise_kernel": rng.normal(0, 0.5, (3, 3, channels, 1)),
            f"conv_dw_{i}_bn/batchnorm_1/mul": rng.uniform(0.5, 1.5, channels),
            f"conv_dw_{i}_bn/batchnorm_1/sub": rng.normal(0, 0.1, channels),
            f"conv_pw_{i}/convolution/merged_input": draw(1, 1, channels, outputs),
            f"conv_pw_{i}_bn/batchnorm_1/sub": rng.normal(0, 0.1, outputs),
        }
        channels = outputs
    arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    return written(folder, arrays), arrays


def written(folder, arrays, kind="graph-model"):
    """Writes a TensorFlow.js model of these arrays in two files; returns its manifest's path."""
    entries = [
        {"name": name, "shape": list(value.shape), "dtype": "float32"}
        for name, value in arrays.items()
    ]
    data = b"".join(value.tobytes() for value in arrays.values())
    (folder / "a.bin").write_bytes(data[: len(data) // 3 + 1])  # cut where no array ends
    (folder / "b.bin").write_bytes(data[len(data) // 3 + 1 :])
    manifest = [{"paths": ["a.bin", "b.bin"], "weights": entries}]
    path = folder / "model.json"
    path.write_text(json.dumps({"format": kind, "weightsManifest": manifest}))
    return path


@pytest.mark.parametrize("size", [64, 75])  # "same" pads an even and an odd size differently
def test_features_of_the_tensorflow_js_files_are_those_of_their_graph(
    model, shapes, tmp_path, size
):
    path, arrays = tensorflow_js(tmp_path)
    loaded = pretrained.load(str(path), "mobilenet_v1", shapes, prefix="")
    images = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), dtype=np.uint8)

    def kernel(name):
        if name.startswith("dw"):
            layer = f"conv_dw_{name[2:]}"
            kernel = (
                arrays[f"{layer}/depthwise_kernel"]
                * (arrays[f"{layer}_bn/batchnorm_1/mul"][:, None])
            )
            return kernel.transpose(0, 1, 3, 2)
        layer = name if name == "conv1" else f"conv_pw_{name[2:]}"
        return arrays[f"{layer}/convolution/merged_input"]

    def bias(name):
        layer = name if name == "conv1" else f"conv_{name[:2]}_{name[2:]}"
        return arrays[f"{layer}_bn/batchnorm_1/sub"]

    expected = graph(images, kernel, bias)
    assert np.abs(expected).max() > 0.1
    error = np.abs(features(model, loaded, images) - expected).max() / np.abs(expected).max()
    assert error < 1e-4, error
    assert "not used: dense.kernel, age.kernel" in str(loaded)


@pytest.mark.skipif(not FACES.exists(), reason="the face weights are not in ../shared")
def test_features_of_the_face_weights_are_those_of_an_independent_forward_pass(model, shapes):
    loaded = pretrained.load(str(FACES), "mobilenet_v1", shapes, prefix="")
    tensors = safetensors.numpy.load_file(FACES)
    images = np.random.default_rng(1).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    expected = graph(
        images, lambda name: tensors[f"{name}.kernel"], lambda name: tensors[f"{name}.bias"]
    )
    error = np.abs(features(model, loaded, images) - expected).max() / np.abs(expected).max()
    assert error < 1e-4, error


def test_quantised_arrays_stand_for_real_numbers(tmp_path):
    weights = [
        {"name": "a", "shape": [2, 2], "dtype": "float32",
         "quantization": {"dtype": "uint8", "min": -1.0, "scale": 0.5}},
        {"name": "b", "shape": [1], "dtype": "float32",
         "quantization": {"dtype": "uint16", "min": 2.0, "scale": 0.25}},
        {"name": "c", "shape": [], "dtype": "int32"},
        {"name": "d", "shape": [1], "dtype": "float32", "quantization": {"dtype": "float16"}},
    ]  # fmt: skip
    data = bytes([0, 1, 2, 255]) + np.uint16(1000).tobytes() + np.int32(-7).tobytes()
    (tmp_path / "w.bin").write_bytes(data + np.float16(1.5).tobytes())
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"weightsManifest": [{"paths": ["w.bin"], "weights": weights}]}))
    tensors = files.read(str(path), "weights")
    np.testing.assert_array_equal(tensors["a"], np.float32([[-1, -0.5], [0, 126.5]]))
    np.testing.assert_array_equal(tensors["b"], np.float32([252]))
    assert tensors["c"] == -7
    np.testing.assert_array_equal(tensors["d"], np.float32([1.5]))


def group(paths=("w.bin",), **entry):
    """A manifest of one array, "a", valid except for the given entries."""
    weights = [{"name": "a", "shape": [2], "dtype": "float32"} | entry]
    return json.dumps({"weightsManifest": [{"paths": list(paths), "weights": weights}]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "JSON without the weightsManifest"),
        ('{"w": {"a": "b"}}', "JSON without the weightsManifest"),
        ('{"a": [\n{}]}', "JSON without the weightsManifest"),  # "{" where safetensors has one
        ('{"weightsManifest": 3}', "is damaged"),
        ('{"weightsManifest": [', "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"weightsManifest": []}', "holds no arrays"),
        ('{"weightsManifest": [{"paths": ["../w.bin"], "weights": []}]}', "in another folder"),
        ('{"weightsManifest": [{"paths": ["none.bin"], "weights": []}]}', "not beside it"),
        ('{"weightsManifest": [{"paths": ["w.bin"], "weights": []}]}', "larger than their arrays"),
        (
            '{"weightsManifest": [{"paths": ["w.bin"], "weights": [{"name": "a", "shape": [9], '
            '"dtype": "float32"}]}]}',
            "end before a",
        ),
        (
            '{"weightsManifest": [{"paths": ["w.bin"], "weights": [{"name": "a", "shape": [1], '
            '"dtype": "string"}]}]}',
            "a in string",
        ),
        (group(paths=[".."]), "in another folder"),
        (group(paths=["."]), "in another folder"),
        (group(paths=["/etc/passwd"]), "in another folder"),
        (group(paths=["w.bin", "w.bin"], shape=[4]), "names one file twice"),
        (group(paths=["w.bin"] * 100_000), "names one file twice"),
        (group(shape=[2**62, 2**62]), "end before a"),
        (group(shape=[0, 2**62]), "larger than their arrays"),
        (group(shape=[1] * 100_000), "a in the shape"),
        (group(shape=[2.0]), "a in the shape"),
        (group(shape=[-1]), "a in the shape"),
        (group(name=7), "an array without a name"),
        (group(dtype=["float32"]), "is damaged"),
        (group(dtype="string"), "a in string"),
        (group(quantization={"dtype": "int32", "scale": 1, "min": 0}), "a in int32"),
        (group(quantization={"dtype": "uint8"}, shape=[8]), "is damaged"),
        (group(quantization={"dtype": "uint8", "scale": None, "min": 0}, shape=[8]), "is damaged"),
    ],
)
def test_a_manifest_that_is_wrong_is_one_line(tmp_path, content, message):
    (tmp_path / "w.bin").write_bytes(bytes(8))
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        files.read(str(tmp_path / "m.json"), "config.model.pretrained: m.json")
    assert len(str(error.value)) < 400


def test_arrays_of_one_name_and_groups_of_one_file_are_refused(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(8))
    entry = {"name": "a", "shape": [1], "dtype": "float32"}
    for groups, message in (
        ([{"paths": ["w.bin"], "weights": [entry, entry]}], "has a twice"),
        ([{"paths": ["w.bin"], "weights": [entry | {"shape": [2]}]}] * 2, "one file twice"),
    ):
        (tmp_path / "m.json").write_text(json.dumps({"weightsManifest": groups}))
        with pytest.raises(UserError, match=message):
            files.read(str(tmp_path / "m.json"), "m.json")


def test_the_binary_file_of_a_model_leads_to_its_manifest(tmp_path):
    path, _ = tensorflow_js(tmp_path)
    with pytest.raises(UserError, match=r"TensorFlow\.js model; name model\.json"):
        files.read(str(path.with_name("b.bin")), "b.bin")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(shapes, tmp_path, bad):
    path, _ = tensorflow_js(tmp_path)
    content = json.loads(path.read_text())
    places = content["weightsManifest"][0]["weights"]
    entry = next(entry for entry in places if entry["name"] == "conv_pw_3_bn/batchnorm_1/sub")
    # Half of the values are read as something else, so that the rest stays where it is.
    rest = {"name": "rest", "shape": entry["shape"], "dtype": "uint16"}
    places.insert(1 + places.index(entry), rest)
    entry["quantization"] = {"dtype": "uint16", "scale": bad, "min": 1.0}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"pw3\.bias has values that are not finite"):
        pretrained.load(str(path), "mobilenet_v1", shapes, prefix="")


def test_an_array_that_the_model_has_no_place_for_is_named(shapes, tmp_path):
    _, arrays = tensorflow_js(tmp_path)
    more = {"conv_dw_3/gate": np.zeros(3, np.float32)}
    path = written(tmp_path, arrays | more)
    with pytest.raises(UserError, match=r"dw3\.gate has no place"):
        pretrained.load(str(path), "mobilenet_v1", shapes, prefix="")


def test_a_file_of_another_model_is_named(tmp_path):
    path, _ = tensorflow_js(tmp_path)
    with pytest.raises(
        UserError, match=r"looks like mobilenet_v1; config\.model\.name is resnet18"
    ):
        pretrained.load(str(path), "resnet18", {"backbone/conv1/kernel": (7, 7, 3, 64)})


def test_keys_without_modules_look_like_no_model(tmp_path):
    arrays = {f"conv2d_{i}_kernel": np.zeros((3, 3, 3, 8), np.float32) for i in range(40)}
    path = written(tmp_path, arrays)
    with pytest.raises(UserError, match="does not look like a model of agejax"):
        pretrained.load(str(path), "resnet18", {"backbone/conv1/kernel": (7, 7, 3, 64)})


def test_a_layers_model_of_keras_has_kernels_and_batch_norms(tmp_path):
    """Names are those of Keras' layers and weights; the goldens compare the values."""
    network = nnx.eval_shape(
        lambda: registry.create("mobilenet_v1", image_size=64, width=0.25, rngs=nnx.Rngs(0))
    )
    shapes = {
        "/".join(map(str, path)): variable.get_value().shape
        for path, variable in nnx.to_flat_state(nnx.state(network))
    }
    rng = np.random.default_rng(0)
    layers = {"conv1": (3, 3, 3, 8), "conv_dw_1": (3, 3, 8, 1), "conv_pw_13": (1, 1, 256, 256)}
    channels = 8
    for i, (outputs, _) in enumerate(BLOCKS, 1):
        layers |= {f"conv_dw_{i}": (3, 3, channels, 1),
                   f"conv_pw_{i}": (1, 1, channels, outputs // 4)}  # fmt: skip
        channels = outputs // 4
    arrays = {}
    for layer, shape in layers.items():
        depthwise = layer.startswith("conv_dw")
        arrays[f"{layer}/{'depthwise_' * depthwise}kernel"] = rng.normal(size=shape)
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            width = shape[2] if depthwise else shape[3]
            arrays[f"{layer}_bn/{leaf}"] = rng.uniform(0.5, 1.5, width)
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    path = str(written(tmp_path, arrays, "layers-model"))
    loaded = pretrained.load(path, "mobilenet_v1", shapes, prefix="")
    assert loaded.library == "keras"
    assert loaded.arrays.keys() == shapes.keys()
    expected = {
        "stem/conv/kernel": arrays["conv1/kernel"],
        "depthwise/1/conv/kernel": arrays["conv_dw_2/depthwise_kernel"].transpose(0, 1, 3, 2),
        "pointwise/12/conv/kernel": arrays["conv_pw_13/kernel"],
        "depthwise/12/norm/var": arrays["conv_dw_13_bn/moving_variance"],
        "pointwise/0/norm/scale": arrays["conv_pw_1_bn/gamma"],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded.arrays[name], value.reshape(shapes[name]))
    layout = pretrained.identify(path, "mobilenet_v1")[1].layout
    assert layout.options == {"folded": False, "padding": "same", "epsilon": 1e-3}
    assert layout.mean == layout.std == (0.5, 0.5, 0.5)
