"""Keras' weights files: one naming scheme for all formats, and no reads from other files."""

import io
import json
import os
import pathlib
import re
import struct
import zipfile

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agejax.config import default
from agejax.errors import UserError
from agejax.models import pretrained, registry, vgg
from agejax.models.pretrained import files, hdf5, keras

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "mobilenet_v3_small_minimalistic_keras.json"
# layer -> class in Keras 3's snake case, shapes in Keras' order
LAYERS = {
    "stem": ("conv2d", {"kernel": (3, 3, 3, 4)}),
    "stem_bn": (
        "batch_normalization",
        {"gamma": (4,), "beta": (4,), "moving_mean": (4,), "moving_variance": (4,)},
    ),
    "block/depthwise": ("depthwise_conv2d", {"kernel": (3, 3, 4, 1), "bias": (4,)}),
    "block/depthwise/sep": (
        "separable_conv2d",
        {"depthwise_kernel": (3, 3, 4, 1), "pointwise_kernel": (1, 1, 4, 5), "bias": (5,)},
    ),
    "head": ("conv2d", {"kernel": (1, 1, 5, 6), "bias": (6,)}),
    "top": ("dense", {"kernel": (6, 2), "bias": (2,)}),
}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        f"{layer}/{leaf}": rng.normal(size=shape).astype(np.float32)
        for layer, (_, shapes) in LAYERS.items()
        for leaf, shape in shapes.items()
    }


def grouped(arrays):
    layers = {}
    for name, array in arrays.items():
        layer, leaf = name.rsplit("/", 1)
        layers.setdefault(layer, {})[leaf] = array
    return layers


def write_legacy(group, arrays, name="{layer}/{leaf}:0"):
    layers = {"input": {}} | grouped(arrays)
    group.attrs["layer_names"] = [layer.encode() for layer in layers]
    for layer, leaves in sorted(layers.items()):  # a group before what is in it
        inner = group.create_group(layer)
        names = {leaf: name.format(layer=layer, leaf=leaf) for leaf in leaves}
        inner.attrs["weight_names"] = [n.encode() for n in names.values()]
        for leaf, array in leaves.items():
            inner[names[leaf]] = array


def write_modern(file, arrays, named=True):
    for number, (layer, leaves) in enumerate(grouped(arrays).items()):
        inner = file.create_group(f"layers/{LAYERS[layer][0]}_{number}/vars")
        if named:
            inner.attrs["name"] = layer
        for i, array in enumerate(leaves.values()):
            inner[str(i)] = array


def read(path):
    return files.read(str(path), "weights")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# ---- formats -------------------------------------------------------------------------------------


def test_all_formats_give_the_same_names(arrays, tmp_path):
    with h5py.File(tmp_path / "keras3.weights.h5", "w") as file:
        write_modern(file, arrays)
        file["optimizer/vars/0"] = np.zeros(3)
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_legacy(file, arrays)
    with h5py.File(tmp_path / "model.h5", "w") as file:  # from model.save: no ":0" in Keras 3
        write_legacy(file.create_group("model_weights"), arrays, "{layer}/{leaf}")
        file["optimizer_weights/adam/iterations"] = np.zeros(3)
    for name in ("keras3.weights.h5", "weights.h5", "model.h5"):
        assert_equal(read(tmp_path / name), arrays)


def test_keras_2_calls_the_kernel_of_a_depthwise_convolution_otherwise(arrays, tmp_path):
    theirs = {
        name.replace("depthwise/kernel", "depthwise/depthwise_kernel"): array
        for name, array in arrays.items()
    }
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_legacy(file, theirs)
    assert_equal(read(tmp_path / "weights.h5"), arrays)


def test_keras_1_has_letters_for_names(arrays, tmp_path):
    dense = {name: array for name, array in arrays.items() if name.startswith("top/")}
    theirs = {"top/W": dense["top/kernel"], "top/b": dense["top/bias"]}
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_legacy(file, theirs, "{layer}_{leaf}_1:0")
    assert_equal(read(tmp_path / "weights.h5"), dense)


def test_a_list_of_names_may_be_cut_in_pieces(arrays, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_legacy(file, arrays)
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:2], names[2:]
    assert_equal(read(tmp_path / "weights.h5"), arrays)


def test_a_norm_without_scale_keeps_numbers_rather_than_wrong_names(arrays, tmp_path):
    norm = {k: v for k, v in arrays.items() if k.startswith("stem_bn/") and "gamma" not in k}
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        write_modern(file, norm)
    assert list(read(tmp_path / "w.weights.h5")) == ["stem_bn/0", "stem_bn/1", "stem_bn/2"]


# ---- safety --------------------------------------------------------------------------------------


def refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["top", "top/top/kernel:0"])
@pytest.mark.parametrize("link", [h5py.SoftLink("/head"), h5py.ExternalLink("other.h5", "/x")])
def test_links_are_not_followed(arrays, where, link, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros((6, 2), np.float32)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_legacy(file, arrays)
        del file[where]
        file[where] = link
    refused(tmp_path / "weights.h5", "does not hold top.* itself; save it with Keras again")


def plainly_elsewhere(file, kind):
    if kind == "external":
        external = [(os.fsencode("/etc/hostname"), 0, 8)]
        file.create_dataset("0", (2,), "f4", external=external)
    elif kind == "virtual":
        layout = h5py.VirtualLayout((2,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
        file.create_virtual_dataset("0", layout)
    else:
        file.create_dataset("0", (2**20,), "f4", compression="gzip")


@pytest.mark.parametrize("kind", ["external", "virtual", "compressed"])
def test_arrays_that_the_file_does_not_hold_plainly_are_refused(kind, tmp_path):
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "top"
        plainly_elsewhere(group, kind)
    refused(tmp_path / "w.weights.h5", "does not hold top/kernel plainly in itself")


def test_a_file_that_claims_more_than_its_size_is_refused_unread(tmp_path):
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "top"
        group.create_dataset("0", (2**20, 2**22), "f4")  # 16 TiB that were never written
    refused(tmp_path / "w.weights.h5", "claims arrays larger than itself")


def test_a_list_in_a_circle_ends_another_process_and_not_this_one(arrays, tmp_path, monkeypatch):
    """The free list of each group's heap, which HDF5 would follow forever."""
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_legacy(file, arrays)
    data, at = bytearray((tmp_path / "weights.h5").read_bytes()), -1
    while (at := data.find(b"HEAP", at + 1)) >= 0:
        size, free, address = struct.unpack_from("<QQQ", data, at + 8)
        if free < size:
            struct.pack_into("<Q", data, address + free, free)
    (tmp_path / "weights.h5").write_bytes(data)
    monkeypatch.setattr(hdf5, "CPU_SECONDS", 2)
    refused(tmp_path / "weights.h5", "its HDF5 structure has no end; get it again")


def test_what_is_no_weights_file_of_keras_is_one_clear_line(arrays, tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = np.zeros(3)
    with h5py.File(tmp_path / "unnamed.weights.h5", "w") as file:
        write_modern(file, arrays, named=False)
    with h5py.File(tmp_path / "text.weights.h5", "w") as file:
        write_modern(file, {"top/kernel": np.array([b"a", b"b"])})
    with h5py.File(tmp_path / "nested.h5", "w") as file:
        write_legacy(file, {"vgg16/conv1/kernel": np.zeros(2), "vgg16/conv2/kernel": np.zeros(2)})
        file.attrs["layer_names"] = [b"vgg16"]
        names = [b"conv1/kernel:0", b"conv2/kernel:0"]
        file["vgg16"].attrs["weight_names"] = names
        for name in names:
            file[f"vgg16/{name.decode()}"] = np.zeros(2)
    whole = (tmp_path / "unnamed.weights.h5").read_bytes()
    (tmp_path / "short.h5").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "data.h5", "HDF5 without weights of Keras")
    refused(tmp_path / "unnamed.weights.h5", "layers without names; save it with a newer Keras")
    refused(tmp_path / "text.weights.h5", "has top/kernel in .*; save it in float32")
    refused(tmp_path / "nested.h5", "has vgg16/kernel twice, from a model inside of a layer")
    refused(tmp_path / "short.h5", "is damaged")


# ---- networks ------------------------------------------------------------------------------------


def abstract(name, **options):
    model = nnx.eval_shape(
        lambda: registry.create(name, image_size=64, rngs=nnx.Rngs(0), **options)
    )
    flat = nnx.to_flat_state(nnx.state(model))
    return {"/".join(map(str, path)): v.get_value().shape for path, v in flat}


def keras_2_name(name):
    """As in the published files of MobileNetV3: expanded_conv_1/expand/BatchNorm/gamma."""
    layer, leaf = name.rsplit("/", 1)
    norm = layer.endswith("_bn")
    layer = layer.removesuffix("_bn")
    if layer.startswith("expanded"):
        block, part = re.fullmatch(r"(expanded_conv(?:_\d+)?)_(.+)", layer).groups()
        layer = f"{block}/{part.replace('squeeze_excite_conv', 'squeeze_excite/Conv')}"
    else:
        layer = layer.capitalize()
    return f"{layer}/BatchNorm/{leaf}" if norm else f"{layer}/{leaf}"


def test_the_published_names_of_mobilenet_v3_are_read_as_todays(tmp_path):
    rng, name = np.random.default_rng(0), "mobilenet_v3_small_minimalistic"
    keys = json.loads(GOLDEN.read_text())["keys"]
    today = {key: rng.normal(size=shape).astype(np.float32) for key, shape in keys.items()}
    shapes, loaded = abstract(name, num_classes=1000), []
    for file_name, weights in (
        ("today.h5", today),
        ("published.h5", {keras_2_name(key): array for key, array in today.items()}),
    ):
        with h5py.File(tmp_path / file_name, "w") as file:
            write_legacy(file, weights)
        path = str(tmp_path / file_name)
        loaded.append(pretrained.load(path, name, shapes, prefix="").arrays)
    assert_equal(*loaded)
    assert loaded[0].keys() == shapes.keys()
    assert keras_2_name("expanded_conv_1_expand_bn/beta") == "expanded_conv_1/expand/BatchNorm/beta"

    config = default()
    config.model.update({"name": name, "pretrained": path})
    model = pretrained.settle(config).model
    assert (model.options.padding, model.mean, model.std) == ("same", (0.5,) * 3, (0.5,) * 3)


def test_vgg_takes_rgb_and_pixels_without_a_scale():
    rng = np.random.default_rng(0)
    layout, stem = keras.LAYOUTS["vgg16"], "block1_conv1/kernel"
    weights = {stem: rng.normal(size=(3, 3, 3, 64)).astype(np.float32)}
    pixels = rng.integers(0, 256, (3, 3, 3))
    caffe = pixels[..., ::-1] - np.array([103.939, 116.779, 123.68])
    ours = (pixels / 255 - layout.mean) / layout.std
    np.testing.assert_allclose(
        np.einsum("hwi,hwio->o", ours, layout.prepare(weights)[stem]),
        np.einsum("hwi,hwio->o", caffe, weights[stem]),
        rtol=1e-5,
    )
    assert (
        layout.prepare({"features.0.weight": weights[stem]})["features.0.weight"] is weights[stem]
    )


def test_the_first_dense_layer_of_vgg_sees_the_same_features():
    rng = np.random.default_rng(0)
    maps, kernel = rng.normal(size=(2, 7, 7, 512)), rng.normal(size=(7 * 7 * 512, 3))
    ours = keras.LAYOUTS["vgg16"].transform("classifier/0/kernel", kernel, kernel.shape)
    flat = np.asarray(vgg.adaptive_mean(jnp.asarray(maps, jnp.float32), 7)).reshape(2, -1)
    np.testing.assert_allclose(flat @ ours, maps.reshape(2, -1) @ kernel, rtol=1e-3, atol=1e-2)


def test_biases_and_epsilon_of_resnet_move_into_the_norm():
    rng = np.random.default_rng(0)
    theirs = {
        "conv1_conv/kernel": np.zeros((7, 7, 3, 4), np.float32),
        "conv1_conv/bias": rng.normal(size=4).astype(np.float32),
        "conv1_bn/moving_mean": rng.normal(size=4).astype(np.float32),
        "conv1_bn/moving_variance": np.array([0, 1e-6, 1e-3, 1], np.float32),
    }
    ours, x = keras.LAYOUTS["resnet50"].prepare(theirs), rng.normal(size=4)
    assert "conv1_conv/bias" not in ours
    variance = theirs["conv1_bn/moving_variance"].astype(np.float64)
    np.testing.assert_allclose(
        (x - ours["conv1_bn/moving_mean"]) / np.sqrt(ours["conv1_bn/moving_variance"] + 1e-5),
        (x + theirs["conv1_conv/bias"] - theirs["conv1_bn/moving_mean"])
        / np.sqrt(variance + 1.001e-5),
        rtol=1e-5,
    )


# ---- Keras 3's archive of a whole model ----------------------------------------------------------


def write_archive(path, weights, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in ("metadata.json", "config.json"):
            archive.writestr(name, "{}")
        archive.writestr("model.weights.h5", weights)


def test_the_archive_of_model_save_gives_the_arrays_in_it(arrays, tmp_path):
    with h5py.File(file := io.BytesIO(), "w") as h5:
        write_modern(h5, arrays)
        h5["optimizer/vars/0"] = np.zeros(3)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_archive(tmp_path / "x.keras", file.getvalue(), compression)
        assert_equal(read(tmp_path / "x.keras"), arrays)


def test_a_backbone_in_a_layer_and_heads_beside_it_are_found_in_an_archive(tmp_path):
    """As Keras 3 writes Model(input, Dense(1)(backbone(input)))."""
    rng, name = np.random.default_rng(0), "mobilenet_v3_small_minimalistic"
    keys = json.loads(GOLDEN.read_text())["keys"]
    kinds = {
        "gamma": "batch_normalization", "beta": "batch_normalization", "kernel": "conv2d",
        "bias": "conv2d", "moving_mean": "batch_normalization",
        "moving_variance": "batch_normalization",
    }  # fmt: skip
    layers = {}
    for key, shape in keys.items():
        layer, leaf = key.rsplit("/", 1)
        layers.setdefault(layer, {})[leaf] = rng.normal(size=shape).astype(np.float32)
    with h5py.File(file := io.BytesIO(), "w") as h5:
        for i, (layer, leaves) in enumerate(layers.items()):
            kind = kinds[next(iter(leaves))]
            kind = "depthwise_conv2d" if "depthwise" in layer and kind == "conv2d" else kind
            group = h5.create_group(f"layers/functional/layers/{kind}_{i}/vars")
            group.attrs["name"] = layer
            for j, leaf in enumerate(hdf5.LEAVES[kind][: len(leaves)]):
                group[str(j)] = leaves[leaf]
        group = h5.create_group("layers/dense/vars")
        group.attrs["name"] = "age"
        group["0"], group["1"] = np.zeros((576, 1), np.float32), np.zeros(1, np.float32)
    write_archive(tmp_path / "x.keras", file.getvalue())
    loaded = pretrained.load(str(tmp_path / "x.keras"), name, abstract(name), prefix="")
    assert loaded.arrays.keys() == abstract(name).keys()
    np.testing.assert_array_equal(loaded.arrays["features/0/conv/kernel"], layers["conv"]["kernel"])
    assert {"age/kernel", "age/bias"} <= set(loaded.left_out)


def test_an_archive_without_hdf5_says_how_to_save_the_weights(tmp_path):
    write_archive(tmp_path / "x.keras", "{}")
    refused(tmp_path / "x.keras", r"is not HDF5; .*model\.save_weights\('x\.weights\.h5'\)")


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    write_archive(tmp_path / "x.keras", bytes(10_000_000), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "x.keras", "holds far more than its own size")
