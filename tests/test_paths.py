"""~ is the home folder in every path: in commands, settings, options and Python."""

import json
import pathlib
import sys

import numpy as np
import pytest

import tiny
from agejax import command_line, paths, predict
from agejax.config import default
from agejax.data import audit, opening, prepare, sources, splits
from agejax.errors import UserError
from agejax.evaluation import ensembling
from agejax.models import pretrained
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs.run import Run
from agejax.sweeps.space import read_space
from agejax.train import train
from agejax.training import sharding

LOOP = sys.modules["agejax.train"]  # the name in the package is that of the function


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder apart from the working directory, where a literal ~ would be created."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


@pytest.fixture
def with_faces(home, faces):
    (home / "faces").symlink_to(faces, target_is_directory=True)
    return home


@pytest.fixture
def with_run(with_faces, trained):
    (with_faces / "run").symlink_to(trained, target_is_directory=True)
    return with_faces


def test_a_leading_tilde_is_the_home_folder_and_no_other_is(home):
    assert paths.expand("~/a") == home / "a"
    for other in ("a/~", "~nobody-of-this-name.jpg", "/~/a", "./~x"):
        assert paths.expand(other) == pathlib.Path(other)


def test_without_a_home_folder_there_is_one_line(monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("AGEJAX_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(UserError, match="set HOME"):
        paths.expand("~/faces")
    with pytest.raises(UserError, match="set AGEJAX_CACHE"):
        sharding.start()
    assert paths.cache_folder("/somewhere") == pathlib.Path("/somewhere")


def test_the_cache_of_the_environment_may_be_in_the_home_folder(home, monkeypatch):
    monkeypatch.setenv("AGEJAX_CACHE", "~/cache")
    assert paths.cache_folder() == home / "cache"
    monkeypatch.delenv("AGEJAX_CACHE")
    assert paths.cache_folder() == home / ".cache/agejax"
    assert paths.cache_folder("~/other") == home / "other"


def test_prepare_and_audit_expand_source_cache_splits_and_output(with_faces, faces):
    names = sorted(path.name for path in faces.iterdir())
    (with_faces / "train.txt").write_text("\n".join(names[:60]))
    place = ["--source=~/faces", "--image-size=32", "--cache-dir=~/cache"]
    assert run_command(prepare.main, ["prepare", *place]) == 0
    assert (with_faces / "cache/utkface").is_dir()
    arguments = ["audit", *place, "--split-file", "train=~/train.txt", "--output=~/audit"]
    assert run_command(audit.main, arguments) == 0
    assert json.loads((with_faces / "audit/audit.json").read_text())


def test_settings_of_the_data_are_expanded(with_faces, faces, cache):
    names = sorted(path.name for path in faces.iterdir())
    (with_faces / "labels.csv").write_text(f"file,age\n{names[0]},77\n")
    (with_faces / "train.txt").write_text("\n".join(names[:60]))
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = "~/faces", str(cache)
    config.data.edits.labels = "~/labels.csv"
    config.data.split.files = {"train": "~/train.txt"}
    source = opening.open_source(config.data)
    assert source.labels["age"][source.ids.tolist().index(names[0])] == 77
    assert len(splits.read_file(source, "~/train.txt", "here")[0]) == 60
    config.data.mixture = {"a": {"name": "utkface", "source": "~/faces"}}
    config.data.edits.labels = None
    assert len(opening.open_source(config.data).ids) == 96
    folder = sources.load(
        "image_folder", "~/faces", image_size=32, cache_dir=str(cache),
        options={"labels": "~/labels.csv"},
    )  # fmt: skip
    assert folder.labels["age"].tolist() == [77]


def test_configs_spaces_and_weights_are_expanded(home):
    (home / "config.py").write_text("from agejax.config import default as get_config")
    assert command_line.parse(["main", "--config=~/config.py"]).model.name == default().model.name
    (home / "space.py").write_text("def get_space():\n    return {'seed': {'low': 1, 'high': 2}}")
    assert list(read_space("~/space.py")) == ["seed"]
    np.savez(home / "weights.npz", a=np.ones(3, np.float32))
    assert list(pretrained.identify("~/weights.npz", "vit_ti16")[0]) == ["a"]


def test_train_expands_the_run_folder(home, monkeypatch):
    monkeypatch.setattr(LOOP, "_train", lambda config, workdir, *rest: workdir)
    assert train(tiny.get_config(), pathlib.Path("~/run")) == home / "run"


def test_the_folder_of_a_run_is_expanded_by_its_readers(with_run, trained):
    assert Run.open("~/run", devices=1).config == Run.open(trained, devices=1).config
    result = results.evaluate(
        "~/run", source_path="~/faces", output="~/scores", write_report=False
    ).metrics  # fmt: skip
    assert json.loads((with_run / "scores/metrics.json").read_text()) == result
    ensembling.create(with_run / "both", ["~/run", "~/run@4"], "predictions", "", ["plain"])
    members = json.loads((with_run / "both/ensemble.json").read_text())["members"]
    assert members == [str(with_run / "run"), str(with_run / "run@4")]


def test_predict_expands_images_globs_and_output(with_run):
    flags = ["--workdir=~/run", "--output=~/ages.jsonl"]
    assert run_command(predict.main, ["predict", *flags, "~/faces/1*", "~/faces"]) == 0
    lines = (with_run / "ages.jsonl").read_text().splitlines()
    assert len(lines) == 96
    assert all(json.loads(line)["path"].startswith(f"{with_run}/faces/") for line in lines)
