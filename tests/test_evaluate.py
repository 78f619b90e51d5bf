"""evaluate and predict on a trained run."""

import csv
import json
import shutil

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

import tiny
from agejax import evaluate, predict, train
from agejax.errors import UserError, run_command


@pytest.fixture(scope="module")
def run(faces, cache, tmp_path_factory):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 4}
    workdir = tmp_path_factory.mktemp("trained") / "run"
    summary = train.train(config, workdir)
    return workdir, summary


@pytest.fixture(scope="module")
def scored(run):
    workdir, _ = run
    return evaluate.evaluate(workdir), workdir / "evaluation" / "utkface-test"


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_image_of_the_split_is_scored_once(run, scored):
    result, output = scored
    rows = rows_of(output / "predictions.csv")
    assert result["n"] == run[1]["examples"]["test"] == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert json.loads((output / "metrics.json").read_text()) == result
    assert (output / "age.png").stat().st_size > 10_000


def test_the_figures_follow_from_the_predictions_written_beside_them(scored):
    result, output = scored
    rows = rows_of(output / "predictions.csv")
    age = np.array([[float(r["age"]), float(r["age_predicted"])] for r in rows])
    assert result["age"]["mae"] == pytest.approx(
        sklearn_metrics.mean_absolute_error(*age.T), rel=1e-5
    )
    low, high = result["age"]["mae_ci95"]
    assert low < result["age"]["mae"] < high
    classes = np.array([[int(r["gender"]), int(r["gender_predicted"])] for r in rows])
    assert result["gender"]["accuracy"] == sklearn_metrics.accuracy_score(*classes.T)


def test_other_data_is_scored_whole_and_has_no_split(run, cache, faces, tmp_path):
    other = tmp_path / "UTKFace"
    other.mkdir()
    for path in sorted(faces.iterdir())[:20]:
        shutil.copy(path, other)
    result = evaluate.evaluate(
        run[0], dataset="utkface", source_path=str(other), output=tmp_path / "out"
    )
    assert result["n"] == 20
    assert result["split"] == "all"
    with pytest.raises(UserError, match="not the data this run was trained on"):
        evaluate.evaluate(run[0], dataset="utkface", source_path=str(other), split="test")


def test_predict_says_what_evaluate_says(run, scored, faces, capsys):
    expected = {r["id"]: r for r in rows_of(scored[1] / "predictions.csv")}
    paths = [str(faces / name) for name in expected]
    assert run_command(predict.main, ["predict", f"--workdir={run[0]}", *paths]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == len(expected)
    for record in records:
        row = expected[record["path"].rsplit("/", 1)[-1]]
        assert record["age"] == pytest.approx(float(row["age_predicted"]), abs=0.01)
        assert record["gender"]["female"] == pytest.approx(float(row["gender_p1"]), abs=1e-3)
        assert sum(record["ethnicity"].values()) == pytest.approx(1, abs=1e-3)


def test_predict_writes_csv_of_a_folder(run, faces, capsys):
    assert (
        run_command(predict.main, ["predict", f"--workdir={run[0]}", "--format=csv", str(faces)])
        == 0
    )
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(out.splitlines()))
    assert len(rows) == 96
    assert {"path", "age", "gender_male", "ethnicity_Other"} <= rows[0].keys()
    assert "96 images, 0 skipped" in err
