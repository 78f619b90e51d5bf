"""int8: ONNX models a quarter as large, and their loss of accuracy on val."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from test_export import with_model

from agejax import export
from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.exporting import files, onnx_export, quantize
from agejax.exporting.prediction import any_batch, prediction
from agejax.process.command import run_command
from agejax.runs.run import Run

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def arrays(data: bytes):
    graph = onnx.load_from_string(data).graph
    return graph, {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}


def weights(data: bytes, kinds=("Conv", "Gemm", "MatMul")):
    """The stored weights of every layer: (kind, array, axis of the scales)."""
    graph, stored = arrays(data)
    made_by = {node.output[0]: node for node in graph.node}
    result = []
    for node in graph.node:
        if node.op_type in kinds:
            name, axis = node.input[1], None
            if name not in stored:
                dequantize = made_by[name]
                assert dequantize.op_type == "DequantizeLinear"
                axis = next(a.i for a in dequantize.attribute if a.name == "axis")
                name = dequantize.input[0]
            result.append((node.op_type, stored[name], axis))
    return result


def test_a_val_without_a_label_judges_no_model(trained, monkeypatch):
    run = Run.open(trained, devices=1)
    source = opening.open_source(run.config.data)
    labels = {
        name: np.full_like(values, np.nan if values.dtype.kind == "f" else -1)
        for name, values in source.labels.items()
    }
    source = dataclasses.replace(source, labels=labels)
    monkeypatch.setattr(opening, "open_source", lambda *args: source)
    with pytest.raises(UserError, match=r"none of the .* images has a label of"):
        quantize.held_out(run, None)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """(the folder, the calibration images, the file's entry in model.json)."""
    output = tmp_path_factory.mktemp("int8")
    seen = []
    with pytest.MonkeyPatch.context() as patch:

        def watched(model, images):
            seen.append(images)
            return quantize.static(model, images)

        patch.setitem(quantize.WAYS, "uint8", watched)
        files.export(trained, output, ["onnx"], int8=True, max_mae_change=100, max_accuracy_loss=1)
    info = json.loads((output / "model.json").read_text())
    return output, seen[0], info["files"]["onnx_int8"]


def test_the_change_is_that_on_val_images_that_did_not_calibrate(trained, exported):
    output, seen, info = exported
    run = Run.open(trained, devices=1)
    source = opening.open_source(run.config.data)
    val = splits.make(source, run.config.data.split)["val"]
    images = source.take(val)
    judged = [not any((image == one).all() for one in seen) for image in images]
    record = info["quantization"]
    assert record["calibration_images"] == len(seen) == len(val) // 2
    assert record["n"] == sum(judged) == len(val) - len(seen)

    rows = val[judged]
    age, gender = (source.labels[name][rows] for name in ("age", "gender"))
    model = onnx_export.load((output / "model.int8.onnx").read_bytes())
    said = {
        "float32": run.predict([{"image": images[judged], "weight": np.ones(len(rows))}]),
        "int8": model(images[judged]),
    }
    for which, one in said.items():
        error = np.abs(one["age"] - age).mean()
        right = (one["gender"].argmax(1) == gender).mean()
        assert record["targets"]["age"][which] == pytest.approx(error, abs=1e-3)
        assert record["targets"]["gender"][which] == pytest.approx(right)
    change = record["targets"]["age"]
    assert change["change"] == pytest.approx(change["int8"] - change["float32"])
    assert change["change_ci95"][0] <= change["change"] <= change["change_ci95"][1]


def test_the_file_is_smaller_and_takes_and_gives_what_the_float_file_does(trained, exported):
    output, _, info = exported
    size = info["quantization"]["bytes"]
    assert size["int8"] == (output / "model.int8.onnx").stat().st_size
    data = (output / "model.int8.onnx").read_bytes()
    assert all(array.dtype == np.int8 for _, array, _ in weights(data))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    said = onnx_export.load(data)(images)
    assert {k: v.shape for k, v in said.items()} == {
        "age": (3,), "gender": (3, 2), "ethnicity": (3, 5),
    }  # fmt: skip
    card = (output / "model_card.md").read_text()
    change = info["quantization"]["targets"]["age"]
    assert f"age MAE {change['float32']:.3f} -> {change['int8']:.3f}" in card
    assert "## What int8 changes" in card
    assert 'onnxruntime.InferenceSession("model.int8.onnx")' in card
    assert "model.jaxexport" not in card  # was not written


def test_a_change_beyond_the_bound_is_refused_with_the_figures(trained, tmp_path, capsys):
    flags = [f"--workdir={trained}", f"--output={tmp_path / 'out'}", "--format=both"]
    flags += ["--quantize=int8", "--max_mae_change=-1000"]
    assert run_command(export.main, ["export", *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(
        r"--quantize=int8: age MAE [\d.]+ -> [\d.]+ \(.*, the limit is -1000 years", error
    )
    assert not list((tmp_path / "out").iterdir())


def test_int8_needs_the_data_of_the_run_wherever_it_lies(trained, faces, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    flags = [f"--workdir={run}", f"--output={tmp_path / 'out'}", "--format=onnx"]
    flags += ["--quantize=int8", "--max_mae_change=100", "--max_accuracy_loss=1"]
    assert run_command(export.main, ["export", *flags]) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().err
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(faces.iterdir())[:50]:
        shutil.copy(path, few)
    assert run_command(export.main, ["export", *flags, f"--source={few}"]) == 2
    assert "is other data than" in capsys.readouterr().err
    assert run_command(export.main, ["export", *flags, f"--source={faces}"]) == 0


def test_where_int8_activations_cost_too_much_fewer_are_int8(trained, monkeypatch, capsys):
    run = Run.open(trained, devices=1)
    data = onnx_export.to_onnx(prediction(run), any_batch(32), {})
    ways = {"none": lambda model, images: model, "all": lambda model, images: model}
    monkeypatch.setattr(quantize, "WAYS", ways)
    changes = iter([0.11, 0.09])

    def compared(*args):
        change = {"metric": "mae", "float32": 5.0, "int8": 5.1, "change": next(changes)}
        return {"age": change | {"n": 9, "change_ci95": [0.0, 0.2]}}

    monkeypatch.setattr(quantize, "_compare", compared)
    _, record = quantize.quantized(run, data)
    assert record["activations"] == "all"
    refused = [line.endswith("; refused") for line in capsys.readouterr().err.splitlines()]
    assert refused == [True, False]
    changes = iter([0.11, 0.12])
    with pytest.raises(UserError, match=r"\+0\.120, .*, the limit is \+0\.1 years;"):
        quantize.quantized(run, data)


def test_a_loss_of_accuracy_alone_is_refused_too(trained, monkeypatch):
    """Also where the run has no age, whose error would tell."""
    run = Run.open(trained, devices=1)
    data = onnx_export.to_onnx(prediction(run), any_batch(32), {})
    monkeypatch.setattr(
        quantize, "WAYS", dict.fromkeys(("all", "none"), lambda model, images: model)
    )
    changes = iter([-0.021, -0.02, -0.38, -0.03])

    def compared(*args):
        change = {"metric": "accuracy", "float32": 0.94, "int8": 0.9, "change": next(changes)}
        return {"gender": change | {"n": 9, "change_ci95": [-0.5, 0.2]}}

    monkeypatch.setattr(quantize, "_compare", compared)
    assert quantize.quantized(run, data)[1]["activations"] == "none"
    with pytest.raises(UserError, match=r"gender accuracy .* \(-0\.030, .* the limit is -0\.02;"):
        quantize.quantized(run, data)


def test_the_first_convolutions_can_stay_float(model):
    data, images = model
    kinds = [array.dtype for kind, array, _ in weights(quantize.static(data, images, skip=5))
             if kind == "Conv"]  # fmt: skip
    assert kinds == [np.float32] * 5 + [np.int8] * (len(kinds) - 5)


def test_int8_is_of_onnx_files_only(trained, tmp_path, capsys):
    flags = [f"--workdir={trained}", f"--output={tmp_path / 'out'}", "--quantize=int8"]
    assert run_command(export.main, ["export", *flags]) == 2
    assert "use --format=onnx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(
    scope="module",
    params=[("mobilenet_v3_small", {"width": 0.25}), ("mobilenet_v1", {"width": 0.25})],
    ids=["mobilenet_v3_small", "mobilenet_v1"],
)
def model(request, trained):
    """A network of random weights as an ONNX file, and images."""
    name, options = request.param
    run = with_model(Run.open(trained, devices=1), name=name, options=options)
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    return onnx_export.to_onnx(prediction(run), any_batch(32), {}), images


def test_activation_functions_are_onnx_operations(model):
    kinds = {node.op_type for node in arrays(model[0])[0].node}
    assert kinds >= {"HardSwish", "HardSigmoid", "Relu"} or kinds >= {"Clip"}


@pytest.mark.parametrize("how", [quantize.static, quantize.weights_only])
def test_every_layer_becomes_int8_with_a_scale_for_each_output(model, how):
    data, images = model
    before, after = weights(data), weights(how(data, images))
    assert [kind for kind, _, _ in after].count("Conv") == [k for k, _, _ in before].count("Conv")
    # All values but the few of biases and scales are stored as one byte each.
    assert sum(array.size for _, array, _ in after) == sum(array.size for _, array, _ in before)
    for kind, array, axis in after:
        assert array.dtype == np.int8
        assert axis == (0 if kind == "Conv" else 1)


def test_int8_weights_alone_change_what_the_model_says_little(model):
    data, images = model
    float32, int8 = (
        onnx_export.load(one)(images)["age"] for one in (data, quantize.weights_only(data, images))
    )
    assert np.ptp(float32) > 0.01
    assert np.corrcoef(float32, int8)[0, 1] > 0.99


def test_int8_activations_keep_the_order_of_what_the_model_says(model):
    data, images = model
    float32, int8 = (
        onnx_export.load(one)(images)["age"] for one in (data, quantize.static(data, images))
    )
    assert np.corrcoef(float32, int8)[0, 1] > 0.8
