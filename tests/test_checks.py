"""A wrong setting is found before the data is read; a refused run does not block a fixed one."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

import tiny
from agejax import baselines, checks, ensemble, run_data, sweep
from agejax.config import replaced
from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.evaluation import ensembling
from agejax.models import pretrained
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs import lineage, run, run_folder
from agejax.settings import to_json
from agejax.train import train


@pytest.fixture
def config(faces, cache):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 2}
    return config


def changed(config, **changes):
    for path, value in changes.items():
        *groups, key = path.split("__")
        group = config
        for name in groups:
            group = group[name]
        group[key] = value
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval__best": "age/mea"}, r"eval\.best: no metric 'age/mea'; there are age/mae, "),
        ({"eval__best": "apparent_age/mae"}, r"no metric 'apparent_age/mae'"),
        ({"model__name": "cn"}, "no model 'cn'; did you mean 'cnn'"),
        ({"model__dtype": "float16"}, "'float16' is not one of float32, bfloat16"),
        ({"heads__age": {"kind": "regresion"}}, "kind: 'regresion' is not one of"),
        ({"heads__years": {"kind": "regression"}}, "the training data has no 'years' label"),
        ({"heads__age": {"kind": "regression", "neck": {"with": 3}}}, "unknown key 'with'"),
        (
            {"heads__age": {"kind": "regression", "example_weights": {"kind": "rare"}}},
            r"example_weights\.kind: 'rare' is not one of dense",
        ),
        ({"sampling__kind": "even"}, "'even' is not one of uniform"),
        ({"sampling__kind": "inverse", "sampling__over": ("race",)}, "over: 'race' is not one of"),
        ({"optim__name": "lion"}, "'lion' is not one of adamw"),
        ({"optim__lr_multipliers": (("heads/.*", 1.0),)}, "no group covers backbone/"),
        ({"optim__l1": (("(", 1.0),)}, r"optim\.l1: not a list of \(regex, value\)"),
        ({"schedule__kind": "cycle"}, "'cycle' is not one of one_cycle"),
        ({"schedule__warmup": {"step": 3}}, r"schedule\.warmup: give exactly one of steps"),
        ({"log_every": {"epochs": "1"}}, r"log_every: epochs must be a number"),
        (
            {"loggers": ("tensorbord",)},
            r"config\.loggers: there is no logger 'tensorbord'; list any",
        ),
        ({"total": {"percent": 5.0}}, "percent needs a total"),
        ({"augment__crop": (2.0, 3.0)}, r"crop: .*\(low, high\) in 0\.01\.\.1"),
        ({"augment__rand_ops": 15}, r"augment\.rand_ops: 15; set it to a whole number in 0\.\.14"),
        (
            {
                "heads__age": {"kind": "regression", "fds": {}},
                "augment__mixup": 0.0,
                "augment__cutmix": 1.0,
            },
            r"augment\.cutmix: a mixed image has no age whose features to smooth",
        ),
        ({"data__split__folds": 3, "data__split__fold": 3}, r"fold: 3 is not one of 0\.\.2"),
        ({"data__split__fractions": {"train": 1.2}}, "sum to at most 1"),
        ({"distill__runs": ("nowhere",)}, "nowhere holds no run"),
        ({"distill__files": ("nowhere.npz",)}, "there is no file nowhere"),
        ({"nonfinite": "ignore"}, "'ignore' is not one of stop, skip"),
        ({"heads__age": None}, r"heads\.age: None; set it to .*, or leave this head out"),
    ],
)
def test_what_is_wrong_whatever_the_data_is_found_before_it_is_opened(
    config, tmp_path, monkeypatch, changes, message
):
    def too_late(*args, **kwargs):
        raise AssertionError("the data was opened first")

    monkeypatch.setattr(opening, "open_source", too_late)
    with pytest.raises(UserError, match=message):
        train(changed(config, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_that_suits_data_with_other_classes_passes(config):
    config.heads.ethnicity = {"kind": "binary"}
    config.heads.buckets = {"kind": "buckets", "label": "age", "edges": (3, 18, 90)}
    config.eval.best, config.eval.best_mode = "age_bucket/accuracy", "max"
    config.schedule.warmup = {"steps": 10_000}  # the total is not known yet
    checks.before_data(changed(config, model__mean=(0.5,) * 3, model__std=(0.5,) * 3))


def test_a_batch_larger_than_the_training_split_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"batch_size: 64 is more than the 5\d training images"):
        train(changed(config, data__batch_size=64), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval__final_split": "tset"}, "the splits are test, train, val; .* not 'tset'"),
        ({"data__split__val_of_train": 0.0, "eval__patience": 2}, "needs a val split"),
    ],
)
def test_settings_that_the_splits_do_not_suit_are_refused(config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(changed(config, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("split", "unknown", "best", "message"),
    [
        ("val", ("age",), "age/mae", r"best: age/mae needs val images with a known age, .* none"),
        ("val", ("age", "gender", "ethnicity"), "loss", "known age or ethnicity or gender, and"),
        ("test", ("age", "gender", "ethnicity"), "loss", "final_split: no image of test has a"),
        ("val", ("age", "gender"), "loss", None),
        ("val", ("age",), "gender/accuracy", None),
        ("test", ("age", "gender"), "age/mae", None),
    ],
)
def test_a_split_without_a_label_to_score_it_by_is_found_before_the_training(
    config, tmp_path, monkeypatch, split, unknown, best, message
):
    source = opening.open_source(config.data)
    rows = splits.make(source, config.data.split)
    labels = {name: values.copy() for name, values in source.labels.items()}
    for name in unknown:
        labels[name][rows[split]] = np.nan if name == "age" else -1
    source = dataclasses.replace(source, labels=labels)
    monkeypatch.setattr(opening, "open_source", lambda *args: source)
    monkeypatch.setattr(splits, "make", lambda *args: dict(rows))  # which go by the ages
    config.eval.best, config.eval.best_mode = best, "max" if "accuracy" in best else "min"
    if message is None:
        run_data.open_data(config)
        return
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_refused_before_its_first_checkpoint_bars_no_mended_one(config, tmp_path):
    workdir = tmp_path / "run"
    wrong = changed(config.copy_and_resolve_references(), schedule__lr=1e30, optim__clip_norm=0.0)
    with pytest.raises(UserError, match=r"is (nan|inf) at step"):
        train(changed(wrong, total={"steps": 4}, optim__name="sgd"), workdir)
    assert train(config, workdir)["steps"] == 2
    assert run_folder.read_config(workdir).schedule.lr == config.schedule.lr


@pytest.mark.parametrize("state", ["deleted", "another lr"])
def test_what_binds_a_run_is_saved_with_its_checkpoints(trained, config, tmp_path, state):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    config.total = {"steps": 4}
    changed(config, schedule__lr=1.0)
    if state == "deleted":
        (workdir / "config.json").unlink()
    else:
        (workdir / "config.json").write_text(json.dumps(to_json(config)))
    with pytest.raises(
        UserError, match=r"trained with another config: schedule\.lr \(0\.003 -> 1\."
    ):
        train(config, workdir)


def test_the_refusal_of_another_config_names_the_way_to_start_from_the_weights(trained, config):
    stored = run_folder.stored_config(trained)
    mended = stored.copy_and_resolve_references()
    with mended.unlocked():
        mended.schedule.lr = 1.0
    with pytest.raises(UserError, match=f"--config.model.pretrained={trained} --workdir=ANOTHER"):
        run_folder.check_same_config(trained, stored, mended)


def test_a_part_of_a_mixture_with_any_name_may_move(trained):
    stored = run_folder.stored_config(trained)
    stored.data.mixture = {"imdb-wiki": {"source": "/old", "share": 1.0}}
    moved = stored.copy_and_resolve_references()
    with moved.unlocked():
        moved.data.mixture["imdb-wiki"].source = "/new"
    run_folder.check_same_config(trained, stored, moved)
    with moved.unlocked():
        moved.data.mixture["imdb-wiki"].share = 0.5
    with pytest.raises(UserError, match=r"imdb-wiki\.share \("):
        run_folder.check_same_config(trained, stored, moved)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
def test_a_folder_in_the_place_of_a_runs_file_is_found_first(config, tmp_path, monkeypatch, name):
    monkeypatch.setattr(opening, "open_source", None)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"^--workdir: .*/{name} is a folder, .*; remove it, or"):
        train(config, tmp_path)


@pytest.mark.parametrize(
    ("metric", "right", "wrong"), [("gender/accuracy", "max", "min"), ("age/rmse", "min", "max")]
)
def test_the_worst_is_not_kept_as_the_best_unawares(config, capsys, metric, right, wrong):
    for mode in (right, wrong):
        with config.unlocked():
            config.eval.best, config.eval.best_mode = metric, mode
        checks.before_data(pretrained.settle(config))
        said = f"{wrong} keeps the checkpoint with the worst {metric} as the best one; set it to"
        assert (said in capsys.readouterr().err) == (mode == wrong)


def test_a_run_and_an_ensemble_share_no_folder(config, tmp_path, monkeypatch):
    """Every command would open the ensemble, and write its figures over the run's."""
    monkeypatch.setattr(opening, "open_source", None)
    (tmp_path / "ensemble.json").write_text("{}")
    with pytest.raises(UserError, match="holds an ensemble, which would hide the run"):
        train(config, tmp_path)
    for name in ("config.json", "checkpoints"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="holds a run; name another folder"):
            ensembling.create(tmp_path, ["nowhere"])
        (tmp_path / name).rmdir()


def test_what_changes_nothing_that_is_computed_may_change_on_resume(trained):
    stored = run_folder.stored_config(trained)
    free = stored.copy_and_resolve_references()
    with free.unlocked():
        free.eval.every = {"epochs": 2.0}
        free.checkpoint.every = {"epochs": 2.0}
        free.log_every = {"percent": 1.0}
        changed(free, eval__batch_size=8, eval__patience=3, eval__final_split="", nonfinite="skip",
                data__workers=2, data__source="/elsewhere", watchdog=0.0, loggers=(),
                log_images=4)  # fmt: skip
    run_folder.check_same_config(trained, stored, free)
    for path, value in (
        ("eval.best", "gender/accuracy"), ("eval.best_mode", "max"), ("seed", 1),
        ("data.batch_size", 8), ("optim.accumulate", 2), ("optim.ema", 0.5),
    ):  # fmt: skip
        other = stored.copy_and_resolve_references()
        with other.unlocked():
            changed(other, **{path.replace(".", "__"): value})
        with pytest.raises(UserError, match=rf"another config: {path} \("):
            run_folder.check_same_config(trained, stored, other)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("distill.runs", ("/a",)), ("distill.files", ("/a.npz",)), ("model.pretrained", "/a"),
        ("distill.features.teacher", "/a"), ("distill.onnx", {"x": {"path": "/a.onnx"}}),
        ("optim.ema", 0.5),
    ],
)  # fmt: skip
def test_seeds_of_one_recipe_share_weights_and_teachers(path, value):
    config = tiny.get_config()
    assert run_folder.same_recipe(config, replaced(config, {"seed": 7}))
    assert run_folder.same_recipe(config, replaced(config, {"data.source": "/elsewhere"}))
    assert not run_folder.same_recipe(config, replaced(config, {path: value}))


@pytest.fixture(scope="module")
def without_val(faces, cache, tmp_path_factory):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.data.split.val_of_train = 0.0
    config.total = {"steps": 4}
    workdir = tmp_path_factory.mktemp("without") / "run"
    return workdir, train(config, workdir)


def test_without_a_val_a_run_trains_on_all_and_its_last_checkpoint_counts(without_val, trained):
    workdir, summary = without_val
    with_val = json.loads((trained / "summary.json").read_text())["examples"]
    assert summary["examples"]["train"] == with_val["train"] + with_val["val"]
    assert summary["examples"]["test"] == with_val["test"]
    assert summary["best"] == {"value": None, "step": None, "stale": 0}
    assert summary["last"] is None
    assert "val/" not in (workdir / "metrics.jsonl").read_text()
    assert run.Run.open(workdir, devices=1).step == 4


def test_a_run_without_a_val_is_evaluated_without_a_calibration(without_val, capsys):
    workdir, _ = without_val
    result = results.evaluate(workdir).metrics
    assert "trained without a val split" in capsys.readouterr().err
    assert "uncertainty" not in result
    assert np.isfinite(result["age"]["mae"])
    assert not (workdir / "calibration.json").exists()
    with pytest.raises(UserError, match="--split=val: the run has test, train, and all"):
        results.evaluate(workdir, split="val")


def test_what_takes_a_val_says_that_there_is_none(without_val, tmp_path, capsys):
    workdir, _ = without_val
    assert run_command(baselines.main, ["baselines", f"--workdir={workdir}"]) == 2
    assert "the run has no val split" in capsys.readouterr().err
    arguments = ["ensemble", f"--output={tmp_path / 'both'}", "--weights=fit", str(workdir)]
    assert run_command(ensemble.main, arguments) == 2
    assert "was trained without a val split; give the weights" in capsys.readouterr().err
    file, space = tmp_path / "config.py", tmp_path / "space.py"
    file.write_text(
        "import tiny\ndef get_config():\n    config = tiny.get_config()\n"
        "    config.data.split.val_of_train = 0.0\n    return config\n"
    )
    space.write_text("def get_space():\n    return {'schedule.lr': {'low': 1e-4, 'high': 1e-2}}\n")
    arguments = [f"--config={file}", f"--space={space}", f"--study={tmp_path / 'study'}"]
    assert run_command(sweep.main, ["sweep", *arguments]) == 2
    assert "leaves no val split to compare trials on" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_run_whose_split_is_another_one_now_does_not_resume(
    trained, config, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    make = splits.make

    def otherwise(source, given):
        rows = make(source, given)
        return rows | {"train": rows["train"][:-5]}

    monkeypatch.setattr(splits, "make", otherwise)
    with pytest.raises(UserError, match=r"on other images than config\.data\.split gives now"):
        train(changed(config, total={"steps": 4}), workdir)


def test_data_that_has_changed_is_scored_whole_only_when_asked(trained, faces, tmp_path):
    other = tmp_path / "UTKFace"
    shutil.copytree(faces, other)
    next(other.iterdir()).unlink()
    with pytest.raises(UserError, match="other data than its config gives now; --split=all"):
        results.evaluate(trained, source_path=str(other), write_report=False)
    result = results.evaluate(
        trained, source_path=str(other), split="all", output=tmp_path / "all", write_report=False
    ).metrics
    assert result["n"] == 95


@pytest.mark.parametrize(
    ("name", "same_data", "warned"),
    [
        ("utkface", False, "another version or part of utkface"),
        ("aaf", False, None),
        ("utkface", True, "the same data with other splits"),
    ],
)
def test_a_start_from_a_run_of_the_same_data_set_is_warned_of(
    trained, config, name, same_data, warned
):
    opened = run.Run.open(trained, devices=1)
    source = types.SimpleNamespace(fingerprint=opened.fingerprint if same_data else "another")
    config.data.name, config.data.split.seed = name, 5
    assert lineage.may_have_seen(lineage.of(opened), config, source) == warned
