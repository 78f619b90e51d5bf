"""export: models that run without agejax and predict what the run predicts."""

import dataclasses
import json
import shutil
import subprocess
import sys

import by_hand
import jax
import ml_collections
import numpy as np
import pytest

import tiny
from agejax import export
from agejax.data import sources
from agejax.errors import UserError
from agejax.evaluation import metrics
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.uncertainty import ByGroup, GroupQuantile
from agejax.exporting import card, description, files, jax_export, onnx_export, onnx_resize
from agejax.exporting.prediction import any_batch, difference, prediction
from agejax.labels import DECADES
from agejax.models.lowerings.pool import mean_pool
from agejax.process.command import run_command
from agejax.runs.run import Run
from agejax.train import train
from agejax.training import state

# A new process in which importing agejax, or its dependencies, is an error.
REFUSE = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Refuse())
sys.path[:0] = sys.argv[3:]
"""
JAX_ALONE = (
    f"REFUSED = ('agejax', 'flax', 'optax')\n{REFUSE}"
    + """
import jax, jax.export, numpy
with open(sys.argv[1], "rb") as file:
    model = jax.export.deserialize(bytearray(file.read()))
with numpy.load(sys.argv[2]) as images:
    for n in images:
        numpy.savez(f"{sys.argv[2]}.{n}.npz", **model.call(images[n]))
"""
)
ONNX_ALONE = (
    f"REFUSED = ('agejax', 'flax', 'optax', 'jax', 'onnx')\n{REFUSE}"
    + """
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
names = [output.name for output in session.get_outputs()]
with numpy.load(sys.argv[2]) as images:
    for n in images:
        said = session.run(names, {"images": images[n]})
        numpy.savez(f"{sys.argv[2]}.{n}.npz", **dict(zip(names, said)))
"""
)


@pytest.fixture(scope="module")
def workdir(faces, cache, tmp_path_factory):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 2}
    # A head of every kind of prediction, extras included.
    config.heads.spread = {"kind": "distribution", "label": "age"}
    config.heads.bucket = {"kind": "buckets", "label": "age", "edges": (20, 50)}
    workdir = tmp_path_factory.mktemp("trained") / "my run"
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    pytest.importorskip("flatbuffers", reason="jax.export writes with it")
    output = tmp_path_factory.mktemp("exported")
    files.export(workdir, output, ["jax"])
    return output


def images(n):
    return np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), np.uint8)


def said_by(run, x):
    return run.predict([{"image": x, "weight": np.ones(len(x), np.float32)}])


def check_alone(program, model, workdir, folder):
    """Checks that a file, run in its own process, predicts what the run predicts."""
    batches = {"one": images(1), "five": images(5)}
    np.savez(folder / "images.npz", **batches)
    places = [path for path in sys.path if path.endswith(("-packages", "-libs"))]
    subprocess.run(
        [sys.executable, "-I", "-c", program, model, folder / "images.npz", *places],
        check=True, timeout=120,
    )  # fmt: skip
    run = Run.open(workdir, devices=1)
    for name, x in batches.items():
        expected = said_by(run, x)
        with np.load(folder / f"images.npz.{name}.npz") as given:
            assert set(given) == expected.keys() >= {"age", "gender", "age_sigma", "age_bucket"}
            for key, value in expected.items():
                np.testing.assert_allclose(given[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_the_jax_file_needs_only_jax_and_says_what_the_run_says(workdir, exported, tmp_path):
    check_alone(JAX_ALONE, exported / "model.jaxexport", workdir, tmp_path)


def test_the_description_of_another_models_jax_file_is_kept(workdir, exported, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "both"
    shutil.copytree(exported, folder)
    stored = folder / "model.json"
    info = json.loads(stored.read_text())
    files.check_beside(folder, info)
    stored.write_text(json.dumps(info | {"run": "another"}))
    with pytest.raises(UserError, match=r"model.jaxexport is another model, which model.json desc"):
        files.export(workdir, folder, ["onnx"])
    assert json.loads(stored.read_text())["run"] == "another"
    # Two seeds of one recipe may differ in nothing else.
    stored.write_text(json.dumps(info | {"weights": "of another seed"}))
    with pytest.raises(UserError, match=r"model.jaxexport is another model"):
        files.check_beside(folder, info)
    (folder / "model.jaxexport").unlink()
    files.check_beside(folder, info)


def test_a_folder_describes_all_files_of_one_model_that_lie_there(workdir, exported, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "both"
    shutil.copytree(exported, folder)
    jax_file = json.loads((folder / "model.json").read_text())["files"]
    info = files.export(workdir, folder, ["onnx"])
    assert json.loads((folder / "model.json").read_text()) == info
    assert info["files"].keys() == {"jax", "onnx"}
    assert info["files"].items() >= jax_file.items()
    text = (folder / "model_card.md").read_text()
    assert "model.jaxexport" in text
    assert "model.onnx" in text
    # What would be described wrongly is left out: the calibration of a jax file is in model.json,
    # that of an ONNX file is inside.
    other = info | {"calibration": {"n": 100}}
    assert files.beside(folder, other) == jax_file
    (folder / "model.onnx").write_bytes(b"another")
    assert files.beside(folder, info) == jax_file
    (folder / "model.jaxexport").unlink()
    assert files.beside(folder, info) == {}
    # A damaged description is replaced.
    shutil.copy(exported / "model.jaxexport", folder)
    for damaged in (info | {"files": {"jax": jax_file["jax"] | {"parity": "x"}}}, {"files": 3}):
        (folder / "model.json").write_text(json.dumps(damaged))
        assert files.beside(folder, info) == {}


def test_the_card_tells_what_int8_changes_from_what_the_export_changes(workdir):
    run = Run.open(workdir, devices=1)
    target = {"metric": "mae", "float32": 5.0, "int8": 5.1, "change": 0.1}
    record = {
        "activations": "uint8", "bytes": {"float32": 400, "int8": 100}, "calibration_images": 9,
        "judged_on": "val", "n": 10, "targets": {"age": target | {"change_ci95": [0.0, 0.2]}},
    }  # fmt: skip
    made = {
        "onnx": {"name": "model.onnx", "bytes": 400, "parity": 2e-7},
        "onnx_int8": {
            "name": "model.int8.onnx", "bytes": 100, "parity": 3e-7, "quantization": record
        },
    }  # fmt: skip
    info = description.describe(run, {}) | {"files": made}
    text = card.of_export(run, info)
    assert "model.onnx 2e-07, model.int8.onnx 3e-07 before int8." in text
    assert "The model in model.int8.onnx has int8 weights" in text
    assert "age MAE 5.000 -> 5.100" in text
    assert info["calibration"] is None
    assert "with intervals" not in text
    assert " int8" not in card.of_export(run, info | {"files": {"onnx": made["onnx"]}})


def test_the_jax_file_holds_programs_for_cpu_and_cuda(exported):
    data = bytearray((exported / "model.jaxexport").read_bytes())
    assert jax.export.deserialize(data).platforms == ("cpu", "cuda")


def test_model_json_says_what_goes_in_and_what_comes_out(workdir, exported):
    info = json.loads((exported / "model.json").read_text())
    assert info["step"] == Run.open(workdir, devices=1).step
    assert info["input"]["shape"] == ["batch", 32, 32, 3]
    assert info["outputs"]["age"]["meaning"] == "years"
    assert info["outputs"]["gender"]["classes"] == ["male", "female"]
    assert info["outputs"]["age_bucket"]["classes"] == ["0-19", "20-49", "50+"]
    assert info["files"]["jax"]["parity"] <= files.TOLERANCE


def test_the_card_of_an_unmeasured_run_says_how_to_measure(workdir, exported):
    text = (exported / "model_card.md").read_text()
    assert "Not measured yet" in text
    assert f"`python -m agejax.evaluate --workdir='{workdir}'`" in text
    assert "Do not use it for decisions about persons" in text


def test_the_code_on_the_card_runs_the_files_beside_it(exported, monkeypatch):
    code = (exported / "model_card.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(exported)
    names = {"images": np.zeros((2, 32, 32, 3), np.uint8)}
    exec(code, names)
    assert np.shape(names["predictions"]["age"]) == (2,)


def test_the_card_gives_groups_before_totals(workdir, tmp_path):
    run = Run.open(workdir, devices=1)
    scores = metrics.evaluate(
        {"age": np.full(40, 30.0)}, {"age": np.arange(40.0)}, run.facts.label_names
    )
    folder = tmp_path / "run" / "evaluation" / "utkface-test"
    folder.mkdir(parents=True)
    scores |= {"dataset": "utkface", "split": "test", "step": run.step + 1}
    (folder / "metrics.json").write_text(json.dumps(scores))
    run = dataclasses.replace(run, workdir=tmp_path / "run")
    text = card.of_export(run, description.describe(run, {}))
    assert "utkface, test: 40 images; of another step" in text
    assert text.index("10-19") < text.index("95 % interval")


def test_a_mixture_is_named_by_its_data_sets(workdir):
    run = Run.open(workdir, devices=1)
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.mixture = {"b": {"name": "utkface"}, "a": {"name": "procedural_faces"}}
    run = dataclasses.replace(run, config=config)
    info = description.describe(run, {})
    assert info["data"]["name"] == "procedural_faces and utkface"
    text = card.of_export(run, info)
    assert f"on procedural_faces and utkface; the weights of step {run.step}" in text
    assert f"- Data set: procedural_faces and utkface, fingerprint {run.fingerprint}." in text


def test_the_card_of_a_run_without_counts_of_its_labels_is_written(workdir):
    run = Run.open(workdir, devices=1)
    facts = dataclasses.replace(run.facts, counts={})
    text = card.of_export(dataclasses.replace(run, facts=facts), description.describe(run, {}))
    assert "- age in training: mean" in text
    assert "- gender in training" not in text
    assert "- gender in training: male" in card.of_export(run, description.describe(run, {}))


def test_a_difference_is_the_largest_of_all_in_units_of_each_outputs_largest_value():
    expected = {
        "age": np.float32([50, 20, -80]),
        "gender": np.float32([[0.25, 0.75], [0.5, 0.5]]),
    }
    given = {
        "age": np.float32([50, 20.5, -79.8]),  # 0.5 of 80
        "gender": np.float32([[0.25, 0.744], [0.5, 0.5]]),  # 0.006 of 0.75
    }
    assert difference(given, expected) == pytest.approx(0.008, rel=1e-3)
    given["age"][1] = 21
    assert difference(given, expected) == pytest.approx(1 / 80, rel=1e-3)
    assert difference(expected, expected) == 0
    given["gender"][1, 1] = np.nan
    assert np.isnan(difference(given, expected))


@pytest.mark.parametrize("form", ["jax", "onnx"])
def test_a_file_says_what_layers_by_hand_say_of_the_saved_averages(trained, tmp_path, form):
    package = {"jax": "flatbuffers", "onnx": "onnxruntime"}[form]
    pytest.importorskip(package, reason=f"{package} is not installed")
    files.export(trained, tmp_path, [form])
    data = (tmp_path / files.FILES[form]).read_bytes()
    model = (jax_export.load if form == "jax" else onnx_export.load)(data)
    said, expected = model(images(5)), by_hand.predict(trained, 4, images(5))
    assert said.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(said[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_file_that_is_off_in_one_output_is_not_written(workdir, tmp_path, monkeypatch, capsys):
    pytest.importorskip("flatbuffers", reason="jax.export writes with it")
    load = jax_export.load

    def off(data):
        model = load(data)
        return lambda x: (said := model(x)) | {"gender": said["gender"] * np.float32(1.001)}

    monkeypatch.setattr(jax_export, "load", off)
    flags = [f"--workdir={workdir}", f"--output={tmp_path / 'out'}"]
    assert run_command(export.main, ["export", *flags]) == 2
    assert "differs from the run by 1.0e-03 of the largest" in capsys.readouterr().err
    assert not (tmp_path / "out" / files.FILES["jax"]).exists()


def with_model(run, image_size=None, **model):
    """The run with another, untrained network."""
    config = ml_collections.ConfigDict(run.config)
    with config.unlocked():
        config.data.image_size = image_size or config.data.image_size
        for key, value in model.items():
            config.model[key] = value
    rng = np.random.default_rng(0)

    def draw(name, shape):
        if len(shape) < 2:
            return np.full(shape, name.endswith(("/scale", "/var")), np.float32)
        return rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)

    shapes = jax.eval_shape(state.create_model(config, run.heads)[1], jax.random.key(0))
    arrays = [{k: draw(k, x.shape) for k, x in part.items()} for part in shapes]
    return dataclasses.replace(run, config=config, params=arrays[0], batch_stats=arrays[1])


def onnx_of(run):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    any_number = any_batch(run.config.data.image_size)
    data = onnx_export.to_onnx(prediction(run), any_number, {})
    return onnx_export.load(data), onnx.load_from_string(data).graph


@pytest.mark.parametrize(
    ("name", "options"), [("mobilenet_v3_small", {"width": 0.25}), ("vit_ti16", {})]
)
def test_an_onnx_file_says_what_the_model_says(name, options, workdir):
    run = with_model(Run.open(workdir, devices=1), name=name, options=options)
    model, _ = onnx_of(run)
    expected = prediction(run)(images(5))
    # Outputs that do not depend on the image would agree in any case.
    assert np.ptp(expected["age"]) > 0.01
    assert difference(model(images(5)), expected) <= files.TOLERANCE


def test_an_onnx_file_has_whole_convolutions(workdir):
    # Not the many taps of the lowering for XLA on a CPU.
    _, graph = onnx_of(Run.open(workdir, devices=1))
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == 2
    assert kinds.count("Slice") <= 4


def test_a_mean_pool_is_one_operation_in_onnx():
    onnx = pytest.importorskip("onnx", reason="the extra agejax[onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra agejax[onnx] is not installed")

    def predict(images):
        return {"mean": mean_pool(images.astype(np.float32), 3, 2, count_padding=False)}

    data = onnx_export.to_onnx(predict, any_batch(8), {})
    kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert kinds.count("AveragePool") == 1
    assert "Slice" not in kinds
    x = images(2)[:, :8, :8]
    np.testing.assert_allclose(onnx_export.load(data)(x)["mean"], predict(x)["mean"], rtol=1e-6)


def test_the_onnx_command_writes_labels_into_the_file(workdir, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    info = files.export(workdir, tmp_path, ["onnx"])
    assert info["files"]["onnx"]["parity"] <= files.TOLERANCE
    data = (tmp_path / "model.onnx").read_bytes()
    session, run = onnx_export.load(data), Run.open(workdir, devices=1)
    for n in (1, 5):
        assert difference(session(images(n)), said_by(run, images(n))) <= files.TOLERANCE
    check_alone(ONNX_ALONE, tmp_path / "model.onnx", workdir, tmp_path)
    properties = {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    assert json.loads(properties["outputs"])["gender"]["classes"] == ["male", "female"]


@pytest.mark.parametrize(
    "shape", [(32, 32), (64, 64), (47, 33), (100, 81), (20, 25), (31, 90), (1, 1), (32, 90)]
)
def test_an_onnx_file_cuts_and_resizes_images_as_the_training_images(shape):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

    def tensor(name, *shape):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape)

    graph = onnx.helper.make_graph(
        onnx_resize.nodes(32), "resize", [tensor("images", "batch", "height", "width", 3)],
        [tensor(onnx_resize.SQUARE, "batch", 32, 32, 3)],
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", onnx_export.OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=onnx_export.IR_VERSION)
    x = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    resized = onnx_export.load(model.SerializeToString())(x)[onnx_resize.SQUARE]
    expected = np.stack([sources.square(image, 32) for image in x])
    assert resized.dtype == np.uint8
    assert np.abs(resized.astype(int) - expected).max() <= 1
    # An image of twice its edge is averaged by another routine, which rounds halves up.
    assert np.mean(resized != expected) < (0.2 if shape == (64, 64) else 1e-3)


def test_an_onnx_file_takes_images_of_any_size(workdir):
    run = Run.open(workdir, devices=1)
    model, graph = onnx_of(run)
    sizes = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", "height", "width", 3]
    x = np.random.default_rng(0).integers(0, 256, (3, 90, 47, 3), np.uint8)
    expected = prediction(run)(np.stack([sources.square(image, 32) for image in x]))
    assert np.ptp(expected["age"]) > 1e-3
    assert difference(model(x), expected) <= 1e-3


def test_an_export_carries_the_calibration(workdir, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    shutil.copytree(workdir, tmp_path / "run")
    files.export(tmp_path / "run", tmp_path / "plain", ["onnx"])
    assert json.loads((tmp_path / "plain" / "model.json").read_text())["calibration"] is None
    assert "no calibration" in (tmp_path / "plain" / "model_card.md").read_text()

    step = Run.open(workdir, devices=1).step
    width = GroupQuantile(40, 12.5, True)
    widths = {"age": ByGroup(width, dict.fromkeys(DECADES, width))}
    calibration = Calibration(step, 40, {"gender": 1.25}, widths)
    calibration.save(tmp_path / "run")
    files.export(tmp_path / "run", tmp_path / "fitted", ["onnx"])
    info = json.loads((tmp_path / "fitted" / "model.json").read_text())
    assert Calibration.from_json(info["calibration"]) == calibration
    model = onnx.load(str(tmp_path / "fitted" / "model.onnx"))
    properties = {p.key: p.value for p in model.metadata_props}
    assert json.loads(properties["calibration"]) == info["calibration"]
    assert "resized to 32 x 32" in json.loads(properties["input"])["resize"]
    text = (tmp_path / "fitted" / "model_card.md").read_text()
    assert "fitted to 40 images of the split `val`" in text
    assert "T in `temperatures` (gender 1.250)" in text
    assert "90 times in 100 (everybody: age 12.50)" in text


def test_images_of_another_size_are_resized_inside(workdir):
    run = with_model(Run.open(workdir, devices=1), image_size=40)
    model, _ = onnx_of(run)
    x = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    assert difference(model(x), prediction(run)(x)) <= 1e-4


def test_a_format_whose_packages_are_missing_is_refused(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(files.NEEDS, "onnx", (("no_such_package",), "-e '.[onnx]'"))
    flags = [f"--workdir={workdir}", f"--output={tmp_path / 'out'}", "--format=onnx"]
    assert run_command(export.main, ["export", *flags]) == 2
    assert "pip install -e '.[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_says_something_else_is_not_written(workdir, tmp_path, monkeypatch, capsys):
    pytest.importorskip("flatbuffers", reason="jax.export writes with it")
    monkeypatch.setattr(files, "difference", lambda given, expected: float("nan"))
    flags = [f"--workdir={workdir}", f"--output={tmp_path / 'out'}"]
    assert run_command(export.main, ["export", *flags]) == 2
    assert "differs from the run" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_no_run_and_no_checkpoint_are_one_line_and_exit_code_2(workdir, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for message in ("holds no run", "holds no checkpoint"):
        flags = [f"--workdir={empty}", f"--output={tmp_path / 'out'}"]
        assert run_command(export.main, ["export", *flags]) == 2
        assert message in capsys.readouterr().err
        (empty / "model.onnx").touch()
        assert run_command(export.main, ["export", *flags]) == 2
        said = capsys.readouterr().err
        named = f"predict takes an exported model by its file: --workdir={empty / 'model.onnx'}"
        assert (named in said) == (message == "holds no run")
        (empty / "config.json").write_bytes((workdir / "config.json").read_bytes())
    assert not (tmp_path / "out").exists()
