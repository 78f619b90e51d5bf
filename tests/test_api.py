"""`import agejax`: the functions run the commands' own code, with values in and out."""

import json
import logging
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import agejax
import tiny
from agejax import predict
from agejax.data import sources
from agejax.errors import UserError
from agejax.predicting import images
from agejax.predicting import model as models
from agejax.process.command import run_command


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """The result of `evaluate` for a copy of a run."""
    workdir = tmp_path_factory.mktemp("api") / "run"
    shutil.copytree(trained, workdir)
    return agejax.evaluate(str(workdir), split="val")


@pytest.fixture(scope="module")
def model(run):
    return agejax.load(run.folder.parents[1])


def test_functions_keep_their_names_when_modules_of_the_same_name_are_imported():
    code = """
import sys
import agejax
before = set(sys.modules)
assert not before & {"jax", "numpy"}, "importing agejax is slow"
from agejax.config import default
import agejax.evaluate, agejax.train
from agejax import config, evaluate, load, train
assert sys.modules["agejax.config"].default is default
for function in (config, evaluate, load, train):
    name = function.__name__
    assert getattr(agejax, name) is function, name
    assert function.__module__ == "agejax.api", name
try:
    agejax.tarin
except AttributeError:
    print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_config_has_the_overrides():
    config = agejax.config("quickstart", seed=3, data__batch_size=32, total={"steps": 5})
    assert (config.seed, config.data.batch_size, dict(config.total)) == (3, 32, {"steps": 5})
    plain = agejax.config("quickstart")
    assert plain.heads == config.heads
    assert (plain.seed, plain.data.batch_size) == (0, 64)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__batch_sise": 32}, r"config\.data\.batch_sise: .*; did you mean 'batch_size'\?"),
        ({"dta__batch_size": 32}, r"there is no setting 'dta'; did you mean 'data'\?"),
        ({"heads__agee__loss": "l1"}, r"there is no setting 'agee'; did you mean 'age'\?"),
        ({"data__mixture__a__name": "utkface"}, r"there is no setting 'a'; there are none"),
        ({"total__epoch": 3}, r"config\.total\.epoch: no unit 'epoch'; did you mean 'epochs'\?"),
        ({"data__batch_size": "many"}, r"batch_size: 'many'; set it to a whole number in 1"),
        (
            {"lr": 1e-3},
            r"config\.lr: there is no setting 'lr'; did you mean config\.schedule\.lr\?",
        ),
        ({"data__batch_size": 0}, r"config\.data\.batch_size: 0; set it .*1\.\."),
    ],
)
def test_a_wrong_override_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message):
        agejax.config("quickstart", **overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "my.py cannot be read: No such file"),
        ("\nimport no_such_module\n", "my.py, line 2: ModuleNotFoundError"),
        ("def get_config():\n\n  return 1 / 0\n", "my.py, line 3: ZeroDivisionError"),
        ("x = 1\n", r"my.py has no get_config\(\)"),
        ("def get_config():\n  return {}\n", r"my.py: get_config\(\) returns dict; let it return"),
    ],
)
def test_a_broken_config_file_is_one_line(text, message, tmp_path):
    if text is not None:
        (tmp_path / "my.py").write_text(text)
    with pytest.raises(UserError, match=message):
        agejax.config(str(tmp_path / "my.py"))


def test_a_config_file_takes_what_follows_the_colon(tmp_path):
    (tmp_path / "my.py").write_text(
        "from agejax.config import default\n"
        "def get_config(name='a'):\n  c = default()\n  c.model.name = name\n  return c\n"
    )
    assert agejax.config(f"{tmp_path}/my.py:vgg16").model.name == "vgg16"
    assert agejax.config(f"{tmp_path}/my.py").model.name == "a"


def test_train_returns_the_summary(faces, cache, tmp_path):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 2}
    summary = agejax.train(config, str(tmp_path / "run"))
    assert summary["steps"] == 2
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_evaluate_returns_the_metrics_and_where_the_report_is(run):
    assert run.folder.parts[-2:] == ("evaluation", "utkface-val")
    written = json.loads((run.folder / "metrics.json").read_text())
    assert run.metrics.keys() == written.keys()
    assert run.metrics["age"] == written["age"]
    assert run.metrics["split"] == "val"
    assert run.report.read_text().startswith("<!doctype html>")


def test_a_loaded_model_can_be_evaluated(model, tmp_path):
    result = agejax.evaluate(model, split="test", output=tmp_path / "scores")
    assert result.folder == tmp_path / "scores"
    assert result.metrics["split"] == "test"


def test_predictions_are_those_of_the_command(model, faces, capsys):
    paths = sorted(faces.iterdir())[:3]
    workdir = f"--workdir={model.run.workdir}"
    command = ["predict", workdir, "--faces=crops", *map(str, paths)]
    assert run_command(predict.main, command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert model.predict(paths, faces="crops") == lines
    assert model.predict(str(paths[0]), faces="crops") == lines[:1]
    assert lines[0]["age_low"] < lines[0]["age"] < lines[0]["age_high"]
    assert set(lines[0]["gender"]) == {"male", "female"}


def test_arrays_are_predicted_as_files_are(model, faces):
    paths = sorted(faces.iterdir())[:3]
    arrays = [sources.decode_whole(path.read_bytes()) for path in paths]
    wanted = model.predict(paths, faces="crops")
    for i, record in enumerate(wanted):
        assert record.pop("path") == str(paths[i])
        record["image"] = i
    assert model.predict(arrays, faces="crops") == wanted
    assert model.predict(np.stack(arrays), faces="crops") == wanted
    assert model.predict(arrays[0], faces="crops") == wanted[:1]
    assert model.predict(Image.fromarray(arrays[0]), faces="crops") == wanted[:1]
    assert model.predict([]) == []


def test_a_model_is_shown_by_its_name_not_by_its_numbers(model):
    assert repr(model) == f"Predictor({str(model.run.workdir)!r})"


def test_a_face_in_an_array_has_its_box(model, faces, monkeypatch, caplog):
    """A mock detector finds two faces in the second image and none in the first."""
    photos = np.zeros((2, 40, 60, 3), np.uint8)
    photos[1] = 200

    def finder(geometry, size):
        assert geometry == "as trained"
        face = sources.decode(next(faces.iterdir()).read_bytes(), size)
        box = [1.0, 2.0, 30.0, 40.0]
        found = [images.Crop(None, face, {"face": i, "box": box, "score": 0.9}) for i in range(2)]
        return lambda photo: found if photo.any() else []

    monkeypatch.setattr(images, "face_finder", finder)
    monkeypatch.setattr(models, "known_geometry", lambda workdir, step: "as trained")
    first, second = model.predict(photos, faces="detect")
    assert (first["image"], first["face"], first["box"]) == (1, 0, [1.0, 2.0, 30.0, 40.0])
    assert (second["image"], second["face"]) == (1, 1)
    assert first["age"] == second["age"]
    assert caplog.messages == ["no face in 1 of 2 images"]
    assert model.predict(photos[:1], faces="detect") == []
    assert caplog.messages[1:] == ["no face in 1 of 1 images"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"image 0: float32 \[8, 8, 3\]; give paths, or RGB"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)], r"image 1: uint8 \[8, 8\]"),
        (["no_such.jpg"], "no_such.jpg: no such file or folder"),
        ([np.zeros((8, 8, 3), np.uint8), "photo.jpg"], "image 1: "),
        (None, r"image 0: object \[\]; give paths, or RGB"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(given, message, model):
    with pytest.raises(UserError, match=message):
        model.predict(given)


def test_faces_is_one_of_three(model, faces):
    with pytest.raises(UserError, match="faces: 'photos' is not one of auto, crops, detect"):
        model.predict(faces, faces="photos")


def test_a_file_that_cannot_be_read_is_logged_and_left_out(model, faces, tmp_path, caplog):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    good = next(faces.iterdir())
    with caplog.at_level(logging.WARNING, "agejax"):
        (record,) = model.predict([bad, good], faces="crops")
    assert record["path"] == str(good)
    assert f"skipped {bad}: not an image that can be read" in caplog.messages
    with pytest.raises(UserError, match=r"none of the 1 file\(s\) is a readable image"):
        model.predict(bad, faces="crops")


def test_predictions_become_a_table(model, faces):
    pytest.importorskip("pandas")
    made = model.predict(sorted(faces.iterdir())[:2], faces="crops")
    table = made.to_pandas()
    assert list(table.columns[:4]) == ["path", "age", "age_low", "age_high"]
    assert table["age"].tolist() == [record["age"] for record in made]
    assert table["gender_male"].tolist() == [record["gender"]["male"] for record in made]


def test_messages_name_the_arguments_and_keep_the_commands_that_they_advise(
    model, faces, tmp_path, monkeypatch
):
    nothing = tmp_path / "nothing"
    for call, message in (
        (lambda: agejax.load(nothing), f"run: {nothing} holds no run (no config.json); train one"),
        (lambda: agejax.load("box:no"), "run=box:no: no such model in the box; there are"),
        (lambda: agejax.evaluate(nothing), f"run: {nothing} holds no run"),
        (lambda: agejax.evaluate(model, split="tset"), "split=tset: the run has "),
        (lambda: agejax.evaluate(model, source=str(nothing)), "with source=PATH, in a training"),
        (lambda: agejax.evaluate(model, output=next(faces.iterdir()) / "x"), "output: "),
        (lambda: agejax.config("quickstrat"), "config=quickstrat: no file of that name"),
    ):
        with pytest.raises(UserError, match="^.*" + re.escape(message)) as error:
            call()
        assert "--" not in str(error.value)
    advice = f"no calibration; python -m agejax.evaluate --workdir={tmp_path} --split=val makes it"

    def refuse(*_):
        raise UserError(f"--faces=detect: {advice}")

    monkeypatch.setattr(images, "choose_reader", refuse)
    with pytest.raises(UserError, match=f"^faces=detect: {re.escape(advice)}$"):
        model.predict(faces)


def test_without_a_model_in_the_box_load_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("agejax.runs.box.FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"comes without a model .* folder of a trained run"):
        agejax.load()
