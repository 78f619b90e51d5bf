"""evaluate and predict on a trained run."""

import csv
import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

import tiny
from agejax import predict
from agejax.data import draws, opening, splits
from agejax.errors import UserError
from agejax.evaluate import main as evaluate_main
from agejax.evaluation import findings
from agejax.evaluation.scored import Scored, score, score_rows
from agejax.exporting import card
from agejax.heads import Facts
from agejax.predicting import predictions
from agejax.predicting.images import Crop, find_images
from agejax.predicting.model import of_run
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs import lineage, run_folder
from agejax.runs.run import Run
from agejax.train import train


@pytest.fixture(scope="module")
def run(faces, cache, tmp_path_factory):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 4}
    workdir = tmp_path_factory.mktemp("trained") / "run"
    summary = train(config, workdir)
    return workdir, summary


@pytest.fixture(scope="module")
def scored(run):
    workdir, _ = run
    result = results.evaluate(workdir, write_report=False).metrics
    return result, workdir / "evaluation" / "utkface-test"


@pytest.mark.parametrize("batch_size", [15, 3])
def test_a_run_is_used_on_any_number_of_devices(run, batch_size):
    here = Run.open(run[0])
    assert here.mesh.size == 8
    config = here.config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.batch_size = batch_size  # a multiple of the devices where it was trained
    elsewhere = dataclasses.replace(here, config=config)
    source, rows = opening.open_source(config.data), np.arange(20)
    ages = [score_rows(each, source, rows, "all").predictions["age"] for each in (here, elsewhere)]
    np.testing.assert_allclose(*ages, rtol=1e-5)
    faces = [Crop(None, image) for image in source.take(rows)]
    model = of_run(elsewhere)
    records = predictions.of_faces(model, faces, predictions.batch_size_of(20, model))
    assert [record["age"] for record in records] == pytest.approx(ages[0], abs=0.006)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_image_of_the_split_is_scored_once(run, scored):
    result, output = scored
    rows = rows_of(output / "predictions.csv")
    assert result["n"] == run[1]["examples"]["test"] == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert json.loads((output / "metrics.json").read_text()) == result
    # By default the test split; copies as in the data.
    config = Run.open(run[0]).config
    source = opening.open_source(config.data)
    test = splits.make(source, config.data.split)["test"]
    assert result["split"] == "test"
    assert {row["id"]: int(row["group"]) for row in rows} == {
        source.ids[i]: source.groups[i] for i in test
    }


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


def test_copies_of_one_photo_are_resampled_together(run):
    scored = score(Run.open(run[0]))
    alike = np.zeros(len(scored.source.ids), np.int64)  # all are copies of one image
    copies = dataclasses.replace(scored, source=dataclasses.replace(scored.source, groups=alike))
    result = findings.measure(copies)
    assert result["age"]["mae_ci95"] == pytest.approx([result["age"]["mae"]] * 2)
    low, high = findings.measure(scored)["age"]["mae_ci95"]
    assert low < high


def test_other_data_is_scored_whole_and_has_no_split(run, cache, faces, tmp_path):
    other = tmp_path / "UTKFace"
    other.mkdir()
    for path in sorted(faces.iterdir())[:20]:
        shutil.copy(path, other)
    result = results.evaluate(
        run[0], dataset="utkface", source_path=str(other), output=tmp_path / "out",
        write_report=False,
    ).metrics  # fmt: skip
    assert result["n"] == 20
    assert result["split"] == "all"
    with pytest.raises(UserError, match="not the data this run was trained on"):
        results.evaluate(run[0], dataset="utkface", source_path=str(other), split="test")


def test_images_that_the_run_may_know_are_warned_of(run, faces, tmp_path, capsys):
    workdir, _ = run

    def warning(**where):
        results.evaluate(workdir, output=tmp_path / "out", write_report=False, **where)
        return [line for line in capsys.readouterr().err.splitlines() if "too good" in line]

    assert warning() == []
    opened = Run.open(workdir)
    source = opening.open_source(opened.config.data)
    learned = splits.make(source, opened.config.data.split)["train"]
    count = int(np.isin(source.groups, source.groups[learned]).sum())
    assert 0 < count < len(source.ids)
    (line,) = warning(split="all")
    assert f"trained on {count:,} of these {len(source.ids):,} images" in line
    part = tmp_path / "part"
    part.mkdir()
    for path in sorted(faces.iterdir())[:8]:
        shutil.copy(path, part)
    (line,) = warning(dataset="utkface", source_path=str(part))
    assert "run was trained on another version or part of utkface" in line
    ages = "\n".join(f"{path.name},30" for path in part.iterdir())
    (tmp_path / "ages.csv").write_text(f"file,age\n{ages}\n")
    options = {"labels": str(tmp_path / "ages.csv")}
    assert warning(dataset="image_folder", source_path=str(part), options=options) == []


def test_lists_that_changed_since_the_training_are_warned_of(faces, cache, tmp_path):
    source = opening.open_source(_own(tiny.get_config(), faces, cache).data)
    names = source.ids.tolist()
    config = _own(tiny.get_config(), faces, cache)
    config.data.split.files = {k: str(tmp_path / f"{k}.txt") for k in ("train", "test")}
    config.sampling.keep = {"gender": {"male": 0.5}}

    def scored(**lists):
        for name, ids in lists.items():
            (tmp_path / f"{name}.txt").write_text("\n".join(ids))
        rows = splits.make(source, config.data.split)
        train = draws.keep(config.sampling, source, rows["train"])
        facts = Facts.of({k: v[train] for k, v in source.labels.items()}, source.label_names)
        # Checkpoints keep facts as JSON data.
        facts = Facts(**json.loads(json.dumps(dataclasses.asdict(facts))))
        run = types.SimpleNamespace(
            workdir="RUN", config=config, fingerprint=source.fingerprint, facts=facts
        )
        return Scored(run, source, rows["test"], "test", {}, {}, {}, 1.0)

    trained = scored(train=names[:70], test=names[70:])
    assert findings.may_be_known(trained) is None
    scored(train=names[:60], test=names[60:])
    line = findings.may_be_known(trained)
    assert "RUN was trained on other images than config.data.split gives now" in line


def _own(config, faces, cache):
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    return config


def test_images_that_a_compared_run_may_know_are_warned_of(
    trained, other, faces, tmp_path, monkeypatch, capsys
):
    part = tmp_path / "part"
    part.mkdir()
    for path in sorted(faces.iterdir())[:8]:
        shutil.copy(path, part)
    monkeypatch.setattr(
        findings, "known_to_ancestors",
        lambda scored: {"teacher": 3} if scored.run.workdir == other else {},
    )  # fmt: skip
    named = []
    monkeypatch.setattr(findings, "may_be_known", lambda scored: named.append(scored.run.workdir))
    results.evaluate(
        trained, dataset="utkface", source_path=str(part), output=tmp_path / "out",
        write_report=False, compare_with=[other],
    )  # fmt: skip
    assert named == [trained, other]
    assert f"3 of these 8 images, or copies of them, trained teacher, which {other} learned" in (
        capsys.readouterr().err
    )


def test_data_that_trained_any_member_of_an_ensemble_is_warned_of(run, tmp_path, monkeypatch):
    workdir, _ = run
    second, folder = tmp_path / "second", tmp_path / "both"
    shutil.copytree(workdir, second)
    folder.mkdir()

    def opened_config(member):
        config = run_folder.opened_config(member)
        if member == second:
            config.data.name = "appa_real"
        return config

    monkeypatch.setattr(lineage, "opened_config", opened_config)
    spec = {"members": [str(workdir), str(second)]}
    (folder / "ensemble.json").write_text(json.dumps(spec))
    config = Run.open(workdir).config
    both = types.SimpleNamespace(workdir=folder, fingerprint="", step=8, config=config)

    def known(name):
        source = types.SimpleNamespace(fingerprint="f0", part=None, name=name)
        scored = types.SimpleNamespace(run=both, source=source, rows=np.arange(3), split="all")
        return findings.may_be_known(scored)

    assert "second was trained on another version or part of appa_real" in known("appa_real")
    assert "both was trained on another version or part of utkface" in known("utkface")
    assert known("aaf") is None
    # Nor does a card of averaged weights forget one of them.
    assert "APPA-REAL" in card.terms(lineage.of(both))
    assert "  - Averaged: run `second`" in card.origin(lineage.of(both))


def test_a_split_that_a_run_does_not_have_is_not_advised(run, monkeypatch):
    opened = Run.open(run[0])
    source = opening.open_source(opened.config.data)
    rows = np.arange(len(source.ids))
    scored = types.SimpleNamespace(run=opened, source=source, rows=rows, split="all")
    assert "--split=test leaves them out" in findings.may_be_known(scored)
    monkeypatch.setattr(splits, "make", lambda *args: {"train": rows[4:], "val": rows[:4]})
    assert "--split" not in findings.may_be_known(scored)


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
    assert "96 faces of 96 files, 0 skipped" in err


def test_after_calibration_predict_says_the_intervals_of_evaluate(trained, faces, tmp_path, capsys):
    results.evaluate(trained, split="all", output=tmp_path)
    expected = {r["id"]: r for r in rows_of(tmp_path / "predictions.csv")}
    capsys.readouterr()
    assert run_command(predict.main, ["predict", f"--workdir={trained}", str(faces)]) == 0
    out, err = capsys.readouterr()
    assert "no intervals" not in err
    calibration = json.loads((trained / "calibration.json").read_text())
    power = 1 / calibration["temperatures"]["ethnicity"]
    assert abs(power - 1) > 0.02
    records = [json.loads(line) for line in out.splitlines()]
    assert len(records) == 96
    for record in records:
        row = expected[record["path"].rsplit("/", 1)[-1]]
        for end in ("low", "high"):
            assert record[f"age_{end}"] == pytest.approx(float(row[f"age_{end}"]), abs=0.02)
        assert record["age_low"] <= record["age"] <= record["age_high"]
        p = np.array([float(row[f"ethnicity_p{k}"]) for k in range(5)]) ** power
        assert [*record["ethnicity"].values()] == pytest.approx(p / p.sum(), abs=1e-3)
        assert sum(record["ethnicity"].values()) == pytest.approx(1, abs=1e-3)


def test_broken_files_are_named_and_all_others_predicted(run, faces, tmp_path, capsys):
    """One file in a hundred is broken, one of each kind."""
    good = sorted(faces.iterdir())
    for i in range(297):
        shutil.copy(good[i % len(good)], tmp_path / f"{i:03d}.jpg")
    whole = good[0].read_bytes()
    broken = {"cut.jpg": whole[:300], "empty.png": b"", "text.jpg": b"not an image"}
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
    flags = [f"--workdir={run[0]}", f"--output={tmp_path / 'out.jsonl'}", str(tmp_path)]
    assert run_command(predict.main, ["predict", *flags]) == 0
    err = capsys.readouterr().err
    for name in broken:
        assert f"skipped {tmp_path / name}: " in err
    assert "warning: 3 of 300 files could not be read" in err
    assert "297 faces of 300 files, 3 skipped" in err
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["path"] for r in records] == [str(tmp_path / f"{i:03d}.jpg") for i in range(297)]


def test_globs_files_and_folders_are_found_once(run, faces, tmp_path, capsys):
    names = [path.name for path in sorted(faces.iterdir())]
    starting = [name for name in names if name.startswith("1")]
    paths = [str(faces / "1*"), str(faces / starting[0])]
    assert find_images(paths) == [faces / name for name in starting]
    assert len(find_images([str(faces.parent / "**/*.jpg"), str(faces)])) == 96
    for path, message in ((tmp_path / "none*", "no such file"), (tmp_path, "no image")):
        assert run_command(predict.main, ["predict", f"--workdir={run[0]}", str(path)]) == 2
        assert message in capsys.readouterr().err


def test_nothing_but_broken_files_is_an_error(run, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"no")
    assert run_command(predict.main, ["predict", f"--workdir={run[0]}", str(tmp_path)]) == 2
    assert "none of the 1 file(s) is a readable image" in capsys.readouterr().err


@pytest.fixture(scope="module")
def table(faces, tmp_path_factory):
    """A CSV of the ages in the names of the faces, plus 1, and of their genders by name."""
    lines = ["file,age,gender"]
    for face in sorted(faces.iterdir()):
        age, gender = map(int, face.name.split("_")[:2])
        lines.append(f"{face.name},{age + 1},{('male', 'female')[gender]}")
    path = tmp_path_factory.mktemp("table") / "ages.csv"
    path.write_text("\n".join(lines))
    return path


def test_an_option_of_the_data_set_says_where_its_labels_are(run, faces, table, tmp_path, capsys):
    arguments = ["evaluate", f"--workdir={run[0]}", "--dataset=image_folder", f"--source={faces}"]
    output = tmp_path / "out"
    with_labels = [*arguments, f"--option=labels={table}", f"--output={output}"]
    assert run_command(evaluate_main, with_labels) == 0
    rows = rows_of(output / "predictions.csv")
    assert len(rows) == 96
    for row in rows:
        assert float(row["age"]) == int(row["id"].split("_")[0]) + 1
        assert row["gender"] == row["id"].split("_")[1]
    capsys.readouterr()
    assert run_command(evaluate_main, [*arguments, "--option=label=x"]) == 2
    assert "unknown key 'label'; did you mean 'labels'?" in capsys.readouterr().err


def test_options_that_a_run_was_trained_with_are_those_it_is_evaluated_with(
    cache, faces, table, tmp_path
):
    config = tiny.get_config()
    config.data.name, config.data.cache_dir = "image_folder", str(cache)
    config.data.source = str(faces)
    config.data.options = {"labels": str(table), "gender_names": ("female", "male")}
    own = opening.open_source(config.data)
    assert (own.labels["age"] >= 2).all()
    assert own.label_names["gender"] == ("female", "male")
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().replace("file,age", "file,apparent_age"))
    given = opening.open_source(config.data, options={"labels": str(other)})
    assert np.isnan(given.labels["age"]).all()
    np.testing.assert_array_equal(given.labels["apparent_age"], own.labels["age"])
    assert given.label_names["gender"] == ("female", "male")

    config.data.mixture = {"a": {"name": "image_folder", "options": config.data.options}}
    names = {"gender": ("male", "female")}
    part = opening.open_other(config.data, "image_folder", str(faces), names)
    np.testing.assert_array_equal(part.labels["age"], own.labels["age"])
    np.testing.assert_array_equal(part.labels["gender"], 1 - own.labels["gender"])
    with pytest.raises(UserError, match="--option: the run's data is a mixture"):
        opening.open_source(config.data, options={"labels": "x"})


def test_data_without_a_label_that_the_run_predicts_is_refused(run, faces, tmp_path, capsys):
    arguments = ["evaluate", f"--workdir={run[0]}", "--dataset=image_folder", f"--source={faces}"]
    output = tmp_path / "out"
    before = sorted(run[0].glob("evaluation/*"))
    table = tmp_path / "apparent.csv"
    names = sorted(path.name for path in faces.iterdir())
    table.write_text("\n".join(["file,apparent_age", *(f"{name},30" for name in names)]))
    for more in ([], [f"--option=labels={table}"]):  # no labels, or none that it predicts
        assert run_command(evaluate_main, [*arguments, *more, f"--output={output}"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("agejax: error: image_folder: none of the 96 images has a")
        assert "a label of age, ethnicity, gender, so" in lines[-1]
        assert "--option labels=FILE.csv" in lines[-1]
    assert not output.exists()
    assert sorted(run[0].glob("evaluation/*")) == before
