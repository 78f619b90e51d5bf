"""Tables for spreadsheets: no cell is a formula, and every name can be read back."""

import csv
import io
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agejax import predict, tables
from agejax.data import edits, sources
from agejax.distillation import pseudo_labels
from agejax.predicting import images, model, output, predictions
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs.run import Run
from agejax.sweeps import study as studies

NAMES = ["=1+1.jpg", "+a.jpg", "-b.jpg", "@c.jpg", "'=d.jpg", "plain.jpg"]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+49 30",
        "-x",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\uff1d1",
        "'=1",
        "-1-1",
        " =1",
        "' =1",
        "\u00a0@x",
    ],
)
def test_a_text_that_a_spreadsheet_would_run_begins_with_an_apostrophe(text):
    assert tables.cell(text) == f"'{text}"
    assert tables.cell(np.str_(text)) == f"'{text}"


@pytest.mark.parametrize(
    "value",
    [-3.2, np.float32(-3.5), -7, "-3.20", "+4", "-1e-3", "", "a=b", "1-2", "'a", " a", None],
)
def test_numbers_and_other_texts_stay(value):
    assert tables.cell(value) is value


@given(st.text(st.sampled_from("'=+-@ \t\r\n1.eab\uff1d"), max_size=6))
def test_every_text_is_read_back(text):
    assert tables.original(tables.cell(text)) == text
    tables.write(out := io.StringIO(), [text], [[text, 1.5]])
    out.seek(0)
    assert all(tables.original(row[0]) == text for row in csv.reader(out))


@pytest.fixture
def folder(faces, tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for name, path in zip(NAMES, sorted(faces.iterdir()), strict=False):
        shutil.copy(path, folder / name)
    return folder


def test_pseudo_labels_find_the_images_of_such_names_again(trained, folder, tmp_path, cache):
    pseudo_labels.pseudo_label(trained, str(folder), tmp_path / "out", keep=1.0, probability=0)
    cells = {row["file"] for row in read(tmp_path / "out/labels.csv")}
    assert cells == {name if name == "plain.jpg" else f"'{name}" for name in NAMES}
    table = str(tmp_path / "out/labels.csv")
    place = {"image_size": 32, "cache_dir": str(cache)}
    source = sources.load("image_folder", str(folder), options={"labels": table}, **place)
    assert sorted(source.ids) == sorted(NAMES)
    assert np.isfinite(source.labels["age"]).all()
    bare = sources.load("image_folder", str(folder), **place)
    relabelled = edits.relabelled(bare, table)
    np.testing.assert_array_equal(relabelled.ids, source.ids)
    np.testing.assert_array_equal(relabelled.labels["age"], source.labels["age"])


def test_the_tables_of_evaluate_and_predict_hold_no_formula(trained, folder, tmp_path, monkeypatch):
    # As people write them, but for the name that begins with an apostrophe itself.
    cells = [name if name[0] != "'" else tables.cell(name) for name in NAMES]
    lines = [f'"{name}",{30 + i}' for i, name in enumerate(cells)]
    (tmp_path / "ages.csv").write_text("\n".join(["file,age", *lines]))
    results.evaluate(
        trained, dataset="image_folder", source_path=str(folder), output=tmp_path / "scores",
        options={"labels": str(tmp_path / "ages.csv")}, write_report=False,
    )  # fmt: skip
    written = {row["id"]: row for row in read(tmp_path / "scores/predictions.csv")}
    assert "'=1+1.jpg" in written
    assert "'-b.jpg" in written
    assert {tables.original(name) for name in written} == set(NAMES)

    monkeypatch.chdir(folder)
    flags = [f"--workdir={trained}", "--format=csv", f"--output={tmp_path / 'p.csv'}"]
    assert run_command(predict.main, ["predict", *flags, "--", *NAMES]) == 0
    rows = read(tmp_path / "p.csv")
    assert [tables.original(row["path"]) for row in rows] == NAMES
    assert rows[0]["path"] == "'=1+1.jpg"
    assert all(-200 < float(row["age"]) < 200 for row in rows)


def test_the_labels_of_classes_named_as_formulas_are_written_as_texts(trained, tmp_path):
    run = Run.open(trained, devices=1)
    run.facts.label_names["gender"] = ("=f()", "-m")
    faces = [images.Crop(tmp_path / "a.jpg", np.zeros((32, 32, 3), np.uint8))]
    output.write(predictions.of_faces(model.of_run(run), faces, 1), "csv", out := io.StringIO())
    header, row = csv.reader(io.StringIO(out.getvalue()))
    assert {"gender_=f()", "gender_-m"} <= set(header)
    assert len(row) == len(header)


def test_the_table_of_a_sweep_holds_no_formula(tmp_path):
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study()
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.FAIL,
            user_attrs={"settings": {"model.name": "@cnn", "seed": -3}, "error": "=cmd()"},
        )
    )
    space = {"model.name": {"choices": ["@cnn"]}, "seed": {"low": -3, "high": 3}}
    studies.write(study, tmp_path, space)
    (row,) = read(tmp_path / "trials.csv")
    assert row["error"] == "'=cmd()"
    assert row["model.name"] == "'@cnn"
    assert row["seed"] == "-3"
