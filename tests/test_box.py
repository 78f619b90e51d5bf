"""A released model predicts as the run that it was made from, and names its origin."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

import tiny
from agejax import checks, explain, files, predict, release
from agejax import heads as heads_lib
from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.evaluation import ensembling, findings, fitting
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.scored import score
from agejax.exporting import card
from agejax.exporting import release as release_lib
from agejax.predicting import predictions
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs import box, ensembles, lineage, warm_start
from agejax.runs.run import Run
from agejax.train import train
from agejax.training import state as state_lib

ROOT = pathlib.Path(__file__).parents[1]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """A copy of the run with a calibration and an evaluation of its test split."""
    workdir = tmp_path_factory.mktemp("measured") / "student"
    shutil.copytree(trained, workdir)
    opened = Run.open(workdir, devices=1)
    calibration = fitting.calibrate(opened)
    scored = score(opened, split="test")
    result = findings.measure(scored) | findings.look_closer(scored, calibration)
    result["compared"] = {"workdir": "/somewhere/else"}
    (workdir / "evaluation/utkface-test").mkdir(parents=True)
    files.write_json(workdir / "evaluation/utkface-test/metrics.json", result)
    (workdir / "evaluation/old").mkdir(parents=True)
    files.write_json(workdir / "evaluation/old/metrics.json", result | {"step": 3})
    return workdir


@pytest.fixture(scope="module")
def folder(measured, tmp_path_factory):
    """A replacement for agejax/weights, with one model named small."""
    place = tmp_path_factory.mktemp("weights")
    release_lib.release(measured, place / "small")
    return place


@pytest.fixture
def in_the_box(folder, monkeypatch):
    monkeypatch.setattr(box, "FOLDER", folder)
    return folder / "small"


def said(workdir):
    weight = np.ones(len(IMAGES), np.float32)
    return Run.open(workdir, devices=1).predict([{"image": IMAGES, "weight": weight}])


def config_of(faces, cache, **data):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 4}
    config.model.pretrained = "box"
    config.data.update(data)
    return config


# ---- the same model ------------------------------------------------------------------------------


def test_a_released_model_predicts_bit_for_bit_what_the_run_predicts(measured, in_the_box):
    expected, given = said(measured), said("box")
    assert expected.keys() == given.keys() >= {"age", "gender", "ethnicity"}
    for name, values in expected.items():
        np.testing.assert_array_equal(given[name], values, err_msg=name)
    assert np.ptp(expected["age"]) > 0
    before, after = Run.open(measured, devices=1), Run.open("box:small", devices=1)
    assert (after.step, after.fingerprint, after.facts) == (
        before.step, before.fingerprint, before.facts,
    )  # fmt: skip
    calibrations = [Calibration.read(r.workdir, r.step) for r in (before, after)]
    assert None not in calibrations
    assert calibrations[0] == calibrations[1]


def test_half_precision_is_for_kernels_and_moves_predictions_little(measured, folder, tmp_path):
    written = release_lib.release(measured, tmp_path / "half", "float16")
    tensors = safetensors.numpy.load_file(tmp_path / "half" / box.WEIGHTS)
    whole = safetensors.numpy.load_file(folder / "small" / box.WEIGHTS)
    assert {tensors[name].dtype == np.float16 for name in tensors if name.endswith("kernel")} == {
        True
    }
    for name, tensor in tensors.items():
        if tensor.dtype == np.float32:
            np.testing.assert_array_equal(tensor, whole[name])
        else:
            np.testing.assert_array_equal(tensor, whole[name].astype(np.float16))
            assert tensor.ndim > 1
    expected, given = said(measured), said(tmp_path / "half")
    differences = [
        np.abs(given[k] - v).max() / np.abs(v).max() for k, v in expected.items()
    ]  # fmt: skip
    assert 0 < max(differences) < 0.01
    assert written["parity"] > 0
    assert "differ from the run by at most" in (tmp_path / "half/card.md").read_text()


def test_weights_that_do_not_fit_half_precision_are_not_released(
    measured, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(release_lib, "TOLERANCES", {"float32": 0.0, "float16": 1e-9})
    flags = [f"--workdir={measured}", f"--output={tmp_path / 'out'}", "--storage=float16"]
    assert run_command(release.main, ["release", *flags]) == 2
    assert "differs from the run by" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_release_is_replaced_and_nothing_else_is(measured, tmp_path, capsys):
    flags = ["release", f"--workdir={measured}", f"--output={tmp_path / 'out'}"]
    assert run_command(release.main, flags) == 0
    (tmp_path / "out/stale.json").write_text("{}")
    assert run_command(release.main, flags) == 0
    assert not (tmp_path / "out/stale.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    assert run_command(release.main, [*flags[:2], f"--output={tmp_path / 'mine'}"]) == 2
    assert "holds no released model; name another" in capsys.readouterr().err
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_current_folder_is_not_replaced(trained, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_command(release.main, ["release", f"--workdir={trained}", f"--output={name}"]) == 2
    assert f"--output: {name} is the current folder" in capsys.readouterr().err
    assert (tmp_path / "here").is_dir()


@contextlib.contextmanager
def changed(path, data):
    whole = path.read_bytes()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data(whole))
    yield
    path.write_bytes(whole)


def test_a_damaged_file_is_one_line(folder, tmp_path, capsys):
    shutil.copytree(folder / "small", tmp_path / "small")
    flags = ["predict", f"--workdir={tmp_path / 'small'}", str(ROOT / "docs/procedural_faces.jpg")]
    flip = lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]  # noqa: E731
    for name in (box.WEIGHTS, "config.json", "calibration.json", "summary.json"):
        for data, message in ((flip, "is not the file that was released"), (None, "cannot be")):
            with changed(tmp_path / "small" / name, data):
                assert run_command(predict.main, flags) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"small/{name} {message}" in line
    for data, message in (
        (lambda whole: whole.replace(b'"step": 4', b'"step": 5'), "is not what was released"),
        (lambda whole: b"[]", "holds a list instead of an object"),
        (lambda whole: whole[:50], "is not JSON"),
    ):
        with changed(tmp_path / "small" / box.RELEASE, data):
            assert run_command(predict.main, flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    with pytest.raises(UserError, match="does not fit the network"):
        box.arrays(tmp_path / "small", {"backbone/kernel": (1, 2)})


def test_averaged_weights_are_released_as_the_one_network_that_they_are(
    trained, measured, tmp_path, capsys
):
    ensembling.create(tmp_path / "soup", [f"{trained}@4", measured], "weights")
    release_lib.release(tmp_path / "soup", tmp_path / "out")
    assert "is not finished" not in capsys.readouterr().err
    weight = np.ones(8, np.float32)
    batch = {"image": np.concatenate([IMAGES, IMAGES[:3]]), "weight": weight}
    expected = ensembles.open_run(tmp_path / "soup").predict([batch])
    given = Run.open(tmp_path / "out").predict([batch])
    for name, values in given.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    text = (tmp_path / "out/card.md").read_text()
    assert f"Its weights are the mean of {trained.name}@4, student." in text
    ensembling.create(tmp_path / "both", [trained, measured])
    with pytest.raises(UserError, match="ensemble of several networks or views"):
        release_lib.release(tmp_path / "both", tmp_path / "out")


# ---- names ---------------------------------------------------------------------------------------


def test_names_of_the_box(in_the_box, tmp_path, monkeypatch):
    shutil.copytree(in_the_box, tmp_path / "small")
    shutil.copytree(in_the_box, tmp_path / "all")
    (tmp_path / "__pycache__").mkdir()
    monkeypatch.setattr(box, "FOLDER", tmp_path)
    assert box.names() == ["small", "all"]
    assert box.locate("box") == box.locate("box:small") == tmp_path / "small"
    assert box.locate("box:all") == tmp_path / "all"
    assert box.name_of(tmp_path / "all") == "box:all"
    for given in ("./box", pathlib.Path("box"), "runs/box"):
        assert box.locate(given) == pathlib.Path(given)
    with pytest.raises(UserError, match=r"^--workdir=box:teacher: no such model.*small, all"):
        box.locate("box:teacher")
    with pytest.raises(UserError, match="did you mean 'small'"):
        box.locate("box:smal")


def test_without_a_model_in_the_box_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(box, "FOLDER", tmp_path)
    image = str(ROOT / "docs/procedural_faces.jpg")
    assert run_command(predict.main, ["predict", image]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("agejax: error: --workdir: this installation of agejax comes without")
    config = tiny.get_config()
    config.model.pretrained = "box"
    with pytest.raises(UserError, match=r"^config\.model\.pretrained: this installation"):
        warm_start.settle(config, tmp_path / "run", None)
    config.model.pretrained, config.distill.runs = None, ("box:teacher",)
    with pytest.raises(UserError, match=r"^config\.distill\.runs: this installation"):
        checks.before_data(config)


def test_predict_without_a_run_uses_the_model_in_the_box(in_the_box, measured, faces, capsys):
    images = sorted(map(str, faces.iterdir()))[:3]
    assert run_command(predict.main, ["predict", *images]) == 0
    out, err = capsys.readouterr()
    assert run_command(predict.main, ["predict", f"--workdir={measured}", *images]) == 0
    assert out == capsys.readouterr().out
    first = json.loads(out.splitlines()[0])
    assert first["age_low"] < first["age"] < first["age_high"]
    assert err.count("box:small") == 1
    assert "model: box:small (cnn), for research: an age is a guess" in err


@pytest.mark.parametrize(
    ("images", "devices", "rows"),
    [(1, 1, 1), (2, 1, 2), (3, 1, 4), (37, 1, 64), (300, 1, 256), (1, 8, 8), (17, 8, 32)],
)
def test_few_numbers_of_images_compile_anew(images, devices, rows):
    opened = types.SimpleNamespace(batch_size=256, devices=devices)
    assert predictions.batch_size_of(images, opened) == rows


def test_predict_starts_without_the_libraries_that_it_does_not_use():
    code = "import sys, agejax.predict; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unused = {"grain", "orbax", "scipy.stats", "scipy.signal", "matplotlib", "sklearn"}
    assert "jax" in done.stdout.split()
    assert not unused & set(done.stdout.split())


# ---- only read -----------------------------------------------------------------------------------


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_released_model_is_evaluated_and_joined_and_never_written(
    in_the_box, measured, faces, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = files_of(in_the_box)
    result = results.evaluate(
        "box", source_path=str(faces), compare_with=[measured], write_report=False
    ).metrics
    assert (result["split"], result["step"]) == ("test", 4)
    assert result["compared"][0]["ours"]["workdirs"] == ["box:small"]
    expected = json.loads((measured / "evaluation/utkface-test/metrics.json").read_text())
    assert result["age"]["mae"] == pytest.approx(expected["age"]["mae"], abs=1e-4)
    assert (tmp_path / "runs/released-small/evaluation/utkface-test/metrics.json").exists()
    image = str(next(faces.iterdir()))
    flags = ["explain", "--workdir=box", "--method=grad_cam", image]
    assert run_command(explain.main, flags) == 0
    assert len(os.listdir(tmp_path / "runs/released-small/explanations/age-grad_cam")) == 2
    ensembling.create(tmp_path / "both", ["box", measured])
    assert json.loads((tmp_path / "both/ensemble.json").read_text())["members"] == [
        "box", str(measured),
    ]  # fmt: skip
    assert ensembles.open_run(tmp_path / "both").step == 8
    with pytest.raises(UserError, match="holds a released model, which is only read"):
        train(tiny.get_config(), in_the_box)
    with pytest.raises(UserError, match="has step 4 only, not 3"):
        Run.open("box", devices=1, step=3)
    assert files_of(in_the_box) == before


# ---- starting from it ----------------------------------------------------------------------------


def start_of(config, tmp_path):
    """(initialised arrays, the arrays that a run with this config starts from)."""
    config = warm_start.settle(config, tmp_path / "new", None)
    checks.before_data(config)
    source = opening.open_source(config.data)
    rows = splits.make(source, config.data.split)["train"]
    labels = {k: v[rows] for k, v in source.labels.items()}
    heads = heads_lib.create(config.heads, heads_lib.Facts.of(labels, source.label_names))
    _, initialise = state_lib.create_model(config, heads)
    fresh = initialise(jax.random.key(1))
    start = warm_start.of(config, heads, source)(*fresh)
    return [{k: np.asarray(v) for k, v in (a | b).items()} for a, b in (fresh, start)]


def test_a_run_starts_from_all_that_the_model_in_the_box_has(
    in_the_box, faces, cache, tmp_path, capsys
):
    fresh, start = start_of(config_of(faces, cache), tmp_path)
    out, err = capsys.readouterr()
    assert (
        "starting from step 4 of box:small: loaded the backbone, head age, head ethnicity, head "
        "gender\n"
    ) in out
    assert "may have seen" not in err
    stored = safetensors.numpy.load_file(in_the_box / box.WEIGHTS)
    assert stored.keys() == start.keys()
    for name, array in stored.items():
        np.testing.assert_allclose(start[name], array, rtol=1e-6, atol=1e-7, err_msg=name)
    assert any(np.abs(fresh[name] - stored[name]).max() > 1e-3 for name in fresh)


def test_other_splits_than_those_of_the_model_in_the_box_are_warned_of(
    in_the_box, faces, cache, tmp_path, capsys
):
    config = config_of(faces, cache)
    config.data.split.seed = 5
    start_of(config, tmp_path)
    assert (
        "warning: box:small was trained on the same data with other splits; it may have seen"
    ) in capsys.readouterr().err


def test_the_model_of_the_new_run_must_be_that_of_the_box(in_the_box, tmp_path):
    config = tiny.get_config()
    config.model.pretrained, config.model.name = "box", "resnet18"
    with pytest.raises(UserError, match=r"box is a run of cnn, and config\.model\.name is"):
        warm_start.settle(config, tmp_path, None)


# ---- where it comes from -------------------------------------------------------------------------


@pytest.fixture
def descendant(trained, tmp_path):
    """Makes the folder of a run whose config names its start."""

    def make(name, start):
        shutil.copytree(trained, tmp_path / name)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        config["model"]["pretrained"] = str(start)
        path.write_text(json.dumps(config))
        return tmp_path / name, lineage.of(Run.open(tmp_path / name, devices=1))

    return make


def test_a_lineage_goes_back_to_the_first_weights(descendant, tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "face.safetensors")
    first, _ = descendant("first", tmp_path / "face.safetensors")
    second, _ = descendant("second", first)
    third, made = descendant("third", second)
    assert [node["name"] for node in lineage.nodes(made)] == [
        "third", "second", "first", "face.safetensors",
    ]  # fmt: skip
    digest = subprocess.run(
        ["sha256sum", tmp_path / "face.safetensors"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert list(lineage.nodes(made))[-1] == {
        "kind": "file", "name": "face.safetensors", "sha256": digest, "library": None
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(made)
    shutil.rmtree(first)
    made = lineage.of(Run.open(third, devices=1))
    assert list(lineage.nodes(made))[-1] == {"kind": "missing", "name": "first"}
    # A folder that was reused for a run that started from its own descendant.
    descendant("first", third)
    made = lineage.of(Run.open(third, devices=1))
    assert [n["kind"] for n in lineage.nodes(made)] == ["run", "run", "run", "missing"]


def test_a_lineage_holds_the_members_of_an_ensemble_and_the_run_of_a_file_of_answers(
    descendant, trained, tmp_path
):
    first, _ = descendant("first", tmp_path / "gone.pth")
    second, _ = descendant("second", first)
    (tmp_path / "both").mkdir()
    members = [f"{first}@4", f"{first}@2", str(second)]
    (tmp_path / "both/ensemble.json").write_text(json.dumps({"members": members}))
    facts = json.dumps({"run": str(tmp_path / "both")})
    np.savez(tmp_path / "answers.npz", ids=np.array(["a"]), facts=np.array(facts))
    np.savez(tmp_path / "foreign.npz", ids=np.array(["a"]))
    for name, expected in {
        "both": ["first", "second"], "answers.npz": ["first", "second"], "foreign.npz": [
            "foreign.npz"
        ], "gone": ["gone"],
    }.items():  # fmt: skip
        found = lineage._ancestors(str(tmp_path / name), None, ())
        assert [node["name"] for node in found] == expected


def test_splits_by_lists_of_names_are_told_apart_by_what_the_lists_hold(
    trained, faces, cache, tmp_path
):
    for name, text in {"a/train.txt": "x", "b/train.txt": "x", "c/train.txt": "y"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    config = config_of(faces, cache)
    source = opening.open_source(config.data)
    own = lineage.of(Run.open(trained, devices=1))
    config.data.split.files = {"train": str(tmp_path / "a/train.txt")}
    own["data"]["split"] = lineage.split_of(config.data.split)
    assert str(tmp_path) not in json.dumps(own)
    config.data.split.files.train = str(tmp_path / "b/train.txt")
    assert lineage.may_have_seen(own, config, source) is None
    config.data.split.files.train = str(tmp_path / "c/train.txt")
    assert lineage.may_have_seen(own, config, source) == "the same data with other splits"


def test_images_that_only_an_ancestor_has_seen_count(trained, faces, cache):
    config = config_of(faces, cache)
    source = opening.open_source(config.data)
    own = lineage.of(Run.open(trained, devices=1))
    assert lineage.may_have_seen(own, config, source) is None
    other = json.loads(json.dumps(own)) | {"name": "elder"}
    other["data"]["split"]["seed"] = 7
    expected = "the same data with other splits (by way of elder, which it learned from)"
    for descendant in (own | {"start": other}, own | {"teachers": [own, other]}):
        assert lineage.may_have_seen(descendant, config, source) == expected
    other["data"] |= {"fingerprint": "another", "names": ["aaf", "utkface"]}
    assert lineage.may_have_seen(own | {"start": other}, config, source).startswith(
        "another version or part of utkface (by way of elder"
    )
    other["data"]["names"] = ["aaf"]
    assert lineage.may_have_seen(own | {"start": other}, config, source) is None


def test_test_images_that_trained_a_teacher_are_counted_and_stand_on_the_card(
    measured, trained, faces, cache, tmp_path, monkeypatch, capsys
):
    config = config_of(faces, cache)
    source = opening.open_source(config.data)
    test = splits.make(source, config.data.split)["test"]
    own = lineage.of(Run.open(trained, devices=1))
    assert lineage.known_to_ancestors(own | {"teachers": [own]}, source, test) == {}
    teacher = json.loads(json.dumps(own)) | {"name": "teacher-1"}
    teacher["data"]["split"]["seed"] = config.data.split.seed = 7
    learned = splits.make(source, config.data.split)["train"]
    groups = set(source.groups[learned].tolist())
    expected = sum(group in groups for group in source.groups[test].tolist())
    assert 0 < expected < len(test)
    student = own | {"teachers": [teacher]}
    assert lineage.known_to_ancestors(student, source, test) == {"teacher-1": expected}
    shutil.copytree(measured, tmp_path / "run")
    monkeypatch.setattr(lineage, "of", lambda run: student)
    result = results.evaluate(tmp_path / "run", split="test", write_report=False).metrics
    assert result["known_to_ancestors"] == {"teacher-1": expected}
    warning = f"{expected} of these {len(test)} images, or copies of them, trained teacher-1"
    assert f"warning: {warning}" in capsys.readouterr().err
    assert f"**{warning}" in card.scores(Run.open(tmp_path / "run", devices=1)).replace(
        "these images", f"these {len(test)} images"
    )
    result = results.evaluate(tmp_path / "run", split="train", write_report=False).metrics
    assert "known_to_ancestors" not in result


def test_the_card_gives_groups_first_and_terms_and_a_config_that_trains_it_again(
    in_the_box, tmp_path
):
    text = (in_the_box / "card.md").read_text()
    order = ("## Errors by group", "utkface, test: 19 images", "10-19", "95 % interval",
             "## Intervals", "| male |", "## What a number means", "## Where it comes from",
             "Start: random weights", "## How it was made", "## Limits",
             "UTKFace: for non-commercial research only")  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "python -m agejax.predict --workdir=small photo.jpg" in text
    assert "of another step" not in text
    code = text.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    again = lineage.portable(names["get_config"]())
    assert again == json.loads((in_the_box / "config.json").read_text())
    for path, data in files_of(in_the_box).items():
        assert b"/tmp" not in data, path
        assert b"/somewhere" not in data, path
    assert not (in_the_box / "evaluation/old").exists()


def test_a_card_is_written_again_in_todays_words_with_the_same_figures(in_the_box, capsys):
    card_file, before = in_the_box / "card.md", files_of(in_the_box)
    text = card_file.read_text()
    card_file.write_text("words of an earlier version")
    flags = ["release", "--workdir=box:small", "--rewrite_card"]
    assert run_command(release.main, flags) == 0
    assert files_of(in_the_box) == before | {card_file: card_file.read_bytes()}
    # It lies in the box only now.
    assert card_file.read_text() == text.replace("--workdir=small ", "--workdir=box:small ")
    assert run_command(release.main, [*flags, "--output=out"]) == 2
    assert "give either --output=FOLDER or --rewrite_card" in capsys.readouterr().err


def test_only_a_released_model_has_a_card_to_write_again(trained, capsys):
    assert run_command(release.main, ["release", f"--workdir={trained}", "--rewrite_card"]) == 2
    assert f"--workdir: {trained} is no released model; name one" in capsys.readouterr().err


@pytest.mark.parametrize("name", box.names())
def test_the_cards_in_the_box_have_todays_words(name, tmp_path, monkeypatch):
    kept = (box.FOLDER / name / "card.md").read_text()
    shutil.copytree(box.FOLDER / name, tmp_path / name)
    monkeypatch.setattr(box, "FOLDER", tmp_path)
    remedy = f"run python -m agejax.release --workdir=box:{name} --rewrite_card"
    assert release_lib.rewrite_card(f"box:{name}").read_text() == kept, remedy


def test_an_unmeasured_run_is_released_with_a_card_that_says_so(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    for path in (tmp_path / "run/calibration.json", tmp_path / "run/summary.json"):
        path.unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "run/evaluation", ignore_errors=True)
    release_lib.release(tmp_path / "run", tmp_path / "out")
    warnings = capsys.readouterr().err
    assert "is not calibrated" in warnings
    assert "is not finished" in warnings
    text = (tmp_path / "out/card.md").read_text()
    assert "Not measured" in text
    assert "It is not calibrated" in text
    assert "contain the label" not in text
    image = str(ROOT / "docs/procedural_faces.jpg")
    assert run_command(predict.main, ["predict", f"--workdir={tmp_path / 'out'}", image]) == 0
    assert "has no calibration\n" in capsys.readouterr().err


def test_the_terms_of_all_that_a_model_comes_from_are_on_its_card():
    data = {"names": ["utkface", "imdb_wiki"]}
    face = {"kind": "file", "name": "x.json", "library": "faceres-deep"}
    odd = {"kind": "file", "name": "odd.pth", "library": None}
    teacher = {"kind": "run", "data": {"names": ["nobody_knows"]}, "start": face, "teachers": []}
    text = card.terms({"kind": "run", "data": data, "start": odd, "teachers": [teacher]})
    for part in ("UTKFace: for non-commercial", "IMDB-WIKI: for academic", "VGGFace2",
                 "nobody_knows: read its terms", "odd.pth"):  # fmt: skip
        assert part in text


# ---- installing ----------------------------------------------------------------------------------


def test_models_in_the_box_are_installed_with_the_package(folder, tmp_path):
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "agejax" / "weights", tmp_path / "agejax" / "weights")
    for name in ("__init__.py", "version.py"):
        shutil.copy(ROOT / "agejax" / name, tmp_path / "agejax")
    shutil.copytree(folder / "small", tmp_path / "agejax" / "weights" / "tiny")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    built = tmp_path / "lib/agejax/weights/tiny"
    expected = {
        p.relative_to(folder / "small"): data for p, data in files_of(folder / "small").items()
    }
    assert {p.relative_to(built): data for p, data in files_of(built).items()} == expected
