"""agejax.load of an exported file: it predicts as the run does, or is refused with one line."""

import json
import shutil
import sys

import pytest

import agejax
from agejax import predict
from agejax.errors import UserError
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.uncertainty import ByGroup, GroupQuantile
from agejax.exporting import files
from agejax.labels import DECADES
from agejax.process.command import run_command
from agejax.runs import box
from agejax.runs.run import Run

PACKAGES = {"onnx": "onnxruntime", "jax": "flatbuffers"}


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A run with intervals that differ by decade, and the folder of its exports."""
    for package in PACKAGES.values():
        pytest.importorskip(package, reason=f"{package} is not installed")
    folder = tmp_path_factory.mktemp("loading")
    shutil.copytree(trained, folder / "run", ignore=shutil.ignore_patterns("calibration.json"))
    everybody = GroupQuantile(100, 9.0, True)
    decades = {name: GroupQuantile(30, 2.0 + i, True) for i, name in enumerate(DECADES)}
    step = Run.open(trained, devices=1).step
    widths = {"age": ByGroup(everybody, decades)}
    Calibration(step, 100, {"gender": 0.6, "ethnicity": 1.7}, widths).save(folder / "run")
    files.export(folder / "run", folder, ["jax", "onnx"])
    return folder


@pytest.mark.parametrize("form", ["onnx", "jax"])
def test_a_file_predicts_what_the_run_predicts(form, exported, faces):
    paths = sorted(faces.iterdir())[:5]
    wanted = agejax.load(exported / "run").predict(paths, faces="crops")
    model = agejax.load(str(exported / files.FILES[form]))
    found = model.predict(paths, faces="crops")
    assert len(found) == 5
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys() >= {"path", "age", "age_low", "age_high", "gender"}
        assert ours["path"] == theirs["path"]
        for name in ("age", "age_low", "age_high"):
            assert ours[name] == pytest.approx(theirs[name], abs=0.03)
        for name in ("gender", "ethnicity"):
            assert ours[name] == pytest.approx(theirs[name], abs=2e-3)
    # The network's own probabilities are others.
    (exported / "run" / "calibration.json").rename(exported / "hidden.json")
    plain = agejax.load(exported / "run").predict(paths, faces="crops")
    (exported / "hidden.json").rename(exported / "run" / "calibration.json")
    assert plain[0]["ethnicity"] != pytest.approx(wanted[0]["ethnicity"], abs=2e-3)


def test_the_command_takes_a_file_as_the_function_does(exported, faces, capsys):
    image = sorted(faces.iterdir())[0]
    flags = ["predict", f"--workdir={exported / 'model.onnx'}", "--faces=crops", str(image)]
    assert run_command(predict.main, flags) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert [json.loads(line)] == agejax.load(exported / "model.onnx").predict(image, faces="crops")


def test_a_file_that_cannot_be_opened_is_one_line(exported, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        agejax.load(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"text\.onnx cannot be opened: "):
        agejax.load(tmp_path / "text.onnx")
    shutil.copy(exported / "model.jaxexport", tmp_path)
    with pytest.raises(UserError, match=r"model\.json is not a file; it describes model\.jaxex"):
        agejax.load(tmp_path / "model.jaxexport")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.jaxexport: its description is damaged; export"):
        agejax.load(tmp_path / "model.jaxexport")
    (tmp_path / "model.jaxexport").write_bytes(b"no model" * 9)
    with pytest.raises(UserError, match=r"model\.jaxexport is damaged \("):
        agejax.load(tmp_path / "model.jaxexport")
    info = json.loads((exported / "model.json").read_text())
    info["files"]["jax"]["sha256"] = box.sha256(b"of another run")
    (tmp_path / "model.json").write_text(json.dumps(info))
    shutil.copy(exported / "model.jaxexport", tmp_path)
    with pytest.raises(UserError, match=r"the model\.json beside it describes another"):
        agejax.load(tmp_path / "model.jaxexport")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is missing; pip install onnxruntime"):
        agejax.load(exported / "model.onnx")


def test_an_onnx_file_of_another_program_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "other",
        [value("x", onnx.TensorProto.FLOAT, [1])], [value("y", onnx.TensorProto.FLOAT, [1])],
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9),
        str(tmp_path / "other.onnx"),
    )
    with pytest.raises(UserError, match=r"other\.onnx was not written by agejax\.export"):
        agejax.load(tmp_path / "other.onnx")


def test_an_exported_file_finds_no_faces_without_a_frame_and_cannot_be_scored(exported, faces):
    model = agejax.load(exported / "model.onnx")
    with pytest.raises(UserError, match="does not know how its training images frame faces"):
        model.predict(next(faces.iterdir()), faces="detect")
    with pytest.raises(UserError, match="is an exported file; name the run"):
        agejax.evaluate(model)
