"""pseudo_label: a run labels a folder, which then trains another run with real faces."""

import csv
import dataclasses
import json
import shutil

import by_hand
import ml_collections
import numpy as np
import pytest

import tiny
from agejax import pseudo_label
from agejax.data import opening, sources, splits
from agejax.distillation import pseudo_labels
from agejax.errors import UserError
from agejax.evaluation.scored import score_rows
from agejax.process.command import run_command
from agejax.runs import ensembles
from agejax.runs.run import Run
from agejax.train import train


@pytest.fixture(scope="module")
def folder(faces, tmp_path_factory):
    """Faces without labels."""
    folder = tmp_path_factory.mktemp("generated")
    for i, path in enumerate(sorted(faces.iterdir())[:40]):
        shutil.copy(path, folder / f"{i:03d}.jpg")
    return folder


@pytest.fixture(scope="module")
def labelled(trained, folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("labelled")
    return pseudo_labels.pseudo_label(
        trained, str(folder), output, keep=0.5, probability=0.5
    ), output


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_surest_half_is_kept_with_what_the_run_says(trained, folder, labelled):
    result, output = labelled
    rows = rows_of(output / "labels.csv")
    assert (result["images"], result["kept"], len(rows)) == (40, 20, 20)
    run = pseudo_labels.twice(ensembles.open_run(trained))
    source = sources.load("image_folder", str(folder), image_size=32)
    said = score_rows(run, source, np.arange(40), "all").predictions
    unsure = dict(zip(source.ids.tolist(), said["age_spread"].tolist(), strict=True))
    kept = {row["file"] for row in rows}
    assert max(unsure[name] for name in kept) <= min(
        value for name, value in unsure.items() if name not in kept
    )
    assert result["uncertainty"] == pytest.approx(max(unsure[name] for name in kept))
    age = dict(zip(source.ids.tolist(), said["age"].tolist(), strict=True))
    for row in rows:
        assert float(row["age"]) == pytest.approx(age[row["file"]], abs=0.006)
        assert row["gender"] in ("male", "female")  # one of two classes has 0.5 or more
    # A class is named where its probability is 0.5 or more.
    p = dict(zip(source.ids.tolist(), said["ethnicity"], strict=True))
    names = source.label_names.get("ethnicity") or run.facts.label_names["ethnicity"]
    for row in rows:
        best = int(p[row["file"]].argmax())
        assert row["ethnicity"] == (names[best] if p[row["file"]][best] >= 0.5 else "")
    unknown = [row for row in rows if not row["ethnicity"]]
    assert len(unknown) > 0
    assert result["labelled"]["ethnicity"] == 20 - len(unknown)


def test_every_image_is_asked_about_together_with_its_mirror_image(trained):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    plain, mirrored = (by_hand.predict(trained, 4, x) for x in (images, images[:, :, ::-1]))
    run = pseudo_labels.twice(ensembles.open_run(trained))
    padded = np.concatenate([images, images[:2]])
    said = run.predict([{"image": padded, "weight": np.ones(8, np.float32)}])
    assert np.abs(plain["age"] - mirrored["age"]).max() > 0.01
    for name in ("age", "gender", "ethnicity"):
        mean = (plain[name] + mirrored[name]) / 2
        np.testing.assert_allclose(said[name][:6], mean, rtol=1e-4, atol=1e-5)
    apart = np.abs(plain["age"] - mirrored["age"]) / 2  # the deviation of two answers
    np.testing.assert_allclose(said["age_spread"][:6], apart, rtol=1e-2, atol=1e-3)


def test_the_written_lines_train_on_both(labelled, cache, tmp_path):
    result, _ = labelled
    config = tiny.get_config()
    config.data.cache_dir = str(cache)
    exec(result["config"], {"config": config})
    config.data.mixture = ml_collections.ConfigDict(config.data.mixture)
    config.total = {"steps": 2}
    source = opening.open_source(config.data)
    assert len(source.ids) == 96 + 20
    assert source.label_names["gender"] == ("male", "female")
    made = splits.make(source, config.data.split)
    pseudo = np.char.startswith(source.ids, "pseudo/")
    assert not pseudo[np.concatenate([made["val"], made["test"]])].any()
    # The real images are split as without the others.
    alone = tiny.get_config()
    alone.data.source, alone.data.cache_dir = config.data.mixture.real.source, str(cache)
    real = opening.open_source(alone.data)
    for name, rows in splits.make(real, alone.data.split).items():
        mine = source.ids[made[name]][~pseudo[made[name]]]
        assert [f"real/{x}" for x in real.ids[rows]] == mine.tolist()
    # What has a copy in val or test does not train: the folder's images are copies of real ones.
    assert splits.leaking_groups(source, made) == 0
    summary = train(config.lock(), tmp_path / "run")
    assert summary["examples"]["val"] == len(splits.make(real, alone.data.split)["val"])


@pytest.mark.parametrize(
    ("of_run", "real"),
    [
        (
            {"name": "image_folder", "source": "a", "options": {"columns": {"age": "Years"}}},
            {"real": {"name": "image_folder", "source": "a",
                      "options": {"columns": {"age": "Years"}}}},
        ),
        (
            {"mixture": {"pseudo": {"name": "utkface", "source": "a", "weight": 2.0}}},
            {"pseudo": {"name": "utkface", "source": "a", "weight": 2.0}},
        ),
    ],
)  # fmt: skip
def test_the_written_lines_keep_how_the_runs_own_data_was_read(trained, tmp_path, of_run, real):
    run = ensembles.open_run(trained)
    config = tiny.get_config()
    config.data.update(of_run)
    lines = pseudo_labels.config_lines(
        dataclasses.replace(run, config=config), "image_folder", "b", tmp_path / "labels.csv"
    )
    exec(lines, {"config": config})
    parts = config.data.mixture.to_dict()
    added = (parts.keys() - real.keys()).pop()
    assert parts.pop(added)["options"]["labels"] == str(tmp_path / "labels.csv")
    assert parts == real


def test_bad_shares_and_folders_are_one_line(trained, folder, tmp_path, capsys):
    with pytest.raises(UserError, match="a share above 0"):
        pseudo_labels.pseudo_label(trained, str(folder), tmp_path, keep=0.0)
    with pytest.raises(UserError, match="--probability=nan: set it to 0 to 1"):
        pseudo_labels.pseudo_label(trained, str(folder), tmp_path, probability=np.nan)
    (tmp_path / "empty").mkdir()
    flags = [f"--workdir={trained}", f"--source={tmp_path / 'empty'}", f"--output={tmp_path}"]
    assert run_command(pseudo_label.main, ["pseudo_label", *flags]) == 2
    assert "empty" in capsys.readouterr().err
    assert not (tmp_path / "labels.csv").exists()


def test_a_folders_own_labels_are_not_replaced(tmp_path, capsys):
    table = tmp_path / "labels.csv"
    table.write_text("file,age\na.jpg,30\n")
    arguments = ["pseudo_label", "--workdir=nowhere", f"--source={tmp_path}"]
    assert run_command(pseudo_label.main, [*arguments, f"--output={tmp_path}"]) == 2
    assert "labels.csv is not of pseudo_label, which would replace it" in capsys.readouterr().err
    assert table.read_text() == "file,age\na.jpg,30\n"
    (tmp_path / "labels.json").write_text("{}")  # what it has written itself, it writes again
    assert run_command(pseudo_label.main, [*arguments, f"--output={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_labels_that_the_run_does_not_predict_are_refused(trained, folder, tmp_path, monkeypatch):
    run = Run.open(trained)
    age = dataclasses.replace(
        run, heads={k: head for k, head in run.heads.items() if head.label == "age"}
    )
    monkeypatch.setattr(ensembles, "open_run", lambda workdir: age)
    with pytest.raises(UserError, match=r"--labels=gender: .* predicts none of them, only age"):
        pseudo_labels.pseudo_label(trained, str(folder), tmp_path, labels=["gender"])
    assert not (tmp_path / "labels.csv").exists()


def test_without_an_age_a_class_tells_how_certain_a_run_is():
    said = {"apparent_age": np.full(2, 30.0), "gender": np.array([[0.9, 0.1], [0.4, 0.6]])}
    assert pseudo_labels.uncertainty_of(said) == pytest.approx([0.1, 0.4])


def test_labels_json_says_where_they_are_from(labelled, trained):
    _, output = labelled
    assert json.loads((output / "labels.json").read_text())["run"] == str(trained)


def test_a_data_sets_own_labels_give_way_to_what_a_run_says(trained, faces, cache, tmp_path):
    flags = [
        f"--workdir={trained}", "--dataset=utkface", f"--source={faces}", f"--output={tmp_path}",
        "--labels=gender", "--keep=1", "--probability=0",
    ]  # fmt: skip
    assert run_command(pseudo_label.main, ["pseudo_label", *flags]) == 0
    assert [*rows_of(tmp_path / "labels.csv")[0]] == ["file", "gender"]
    config = tiny.get_config()
    config.data.cache_dir = str(cache)
    for line in json.loads((tmp_path / "labels.json").read_text())["config"].splitlines():
        exec(line)
    source = opening.open_source(config.data)
    said = ensembles.open_run(trained)
    expected = score_rows(pseudo_labels.twice(said), source, np.arange(96), "all").predictions[
        "gender"
    ]
    np.testing.assert_array_equal(source.labels["gender"], expected.argmax(axis=1))
    assert (source.labels["age"] == opening.open_source(said.config.data).labels["age"]).all()
