"""Ensembles: the mean of predictions, also over views, and the mean of weights."""

import dataclasses
import json

import numpy as np
import pytest

from agejax import ensemble, predict
from agejax.config import replaced
from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.evaluation import ensembling
from agejax.heads import create
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs import batch_statistics, ensembles
from agejax.runs.run import Run


@pytest.fixture(scope="module")
def members(trained):
    """The run, and one with other weights."""
    run = Run.open(trained)
    moved = {
        k: v + 0.05 * np.sin(np.arange(v.size)).reshape(v.shape) for k, v in run.params.items()
    }

    return [run, dataclasses.replace(run, params=moved)]


def batch(n=8, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)
    return [{"image": images, "weight": np.ones(n, np.float32)}]


def say(run, n=8):
    return run.predict(batch(n))


def join(members, **given):
    given = {
        "combine": "predictions", "weights": ensembles.equal_weights(members), "views": ["plain"],
    } | given  # fmt: skip
    return ensembles.join(members[0].workdir, members, **given)


def test_predictions_are_weighted_means_label_by_label(members):
    weights = {"age": [0.4, 0.6], "gender": [1.0, 3.0], "ethnicity": [0.0, 2.0]}
    said, parts = say(join(members, weights=weights)), [say(member) for member in members]
    assert np.abs(parts[0]["age"] - parts[1]["age"]).max() > 0.01
    np.testing.assert_allclose(
        said["age"], 0.4 * parts[0]["age"] + 0.6 * parts[1]["age"], rtol=1e-5
    )
    expected = 0.25 * parts[0]["gender"] + 0.75 * parts[1]["gender"]
    np.testing.assert_allclose(said["gender"], expected, rtol=1e-5)
    np.testing.assert_allclose(said["ethnicity"], parts[1]["ethnicity"], rtol=1e-5)
    spread = np.sqrt(0.4 * 0.6) * np.abs(parts[0]["age"] - parts[1]["age"])
    np.testing.assert_allclose(said["age_spread"], spread, rtol=1e-3, atol=1e-4)


def test_one_member_seen_plainly_is_itself(members):
    alone, said = say(members[0]), say(join(members[:1]))
    assert alone.keys() == said.keys()
    for name, values in alone.items():
        np.testing.assert_allclose(said[name], values, rtol=1e-6)


def test_a_view_and_its_mirror_image_say_one_thing(members):
    run = join(members[:1], views=["plain", "flip"])
    images = batch()[0]["image"]
    mirrored = [batch()[0] | {"image": images[:, :, ::-1]}]
    np.testing.assert_allclose(run.predict(batch())["age"], run.predict(mirrored)["age"], rtol=1e-5)
    plain = (members[0].predict(batch())["age"] + members[0].predict(mirrored)["age"]) / 2
    np.testing.assert_allclose(run.predict(batch())["age"], plain, rtol=1e-5)


def test_crops_of_a_plain_image_are_the_image(members):
    """Five equal crops give the prediction of the image."""
    image = np.full((8, 32, 32, 3), (90, 120, 60), np.uint8)
    one = [{"image": image, "weight": np.ones(8, np.float32)}]
    run = join(members[:1], views=["crops"])
    np.testing.assert_allclose(run.predict(one)["age"], members[0].predict(one)["age"], rtol=1e-5)


def test_weights_of_networks_are_averaged(members):
    run = join(members, combine="weights", weights={"age": [1.0, 3.0], "gender": [1.0, 1.0]})
    (params,) = run.params
    for name, value in params.items():
        expected = 0.25 * members[0].params[name] + 0.75 * members[1].params[name]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_averaged_weights_of_runs_with_other_splits_have_no_split_left_to_test_on(members):
    config = members[1].config.copy_and_resolve_references()
    with config.unlocked():
        config.data.split.seed = 5
    mixed = [members[0], dataclasses.replace(members[1], config=config)]
    assert join(members, combine="weights").fingerprint == members[0].fingerprint
    assert join(mixed, combine="weights").fingerprint == ""


def test_a_mean_of_weights_that_started_apart_is_warned_of(
    trained, other, members, monkeypatch, tmp_path, capsys
):
    def warned(combine, both=(), **changes):
        configs = [replaced(members[0].config, {**dict(both), **more}) for more in ({}, changes)]
        runs = iter(
            dataclasses.replace(member, config=config)
            for member, config in zip(members, configs, strict=True)
        )
        monkeypatch.setattr(ensembling, "open_member", lambda path: next(runs))
        ensembling.create(tmp_path / "soup", [trained, other], combine)
        return "the members started from different weights" in capsys.readouterr().err

    assert not warned("weights")
    assert warned("weights", seed=7)
    assert warned("weights", **{"model.pretrained": "another"})
    assert not warned("predictions", seed=7)
    # A run has weights for heads too, so that the seed does not matter.
    assert not warned("weights", {"model.pretrained": str(trained)}, seed=7)
    assert warned("weights", {"model.pretrained": "weights.safetensors"}, seed=7)


def test_an_averaged_network_may_have_statistics_of_its_own(trained, tmp_path, capsys):
    folder = tmp_path / "soup"
    flags = [f"{trained}@4", str(trained), f"--output={folder}", "--combine=weights"]
    assert run_command(ensemble.main, ["ensemble", *flags]) == 0
    (averaged,) = ensembles.open_run(folder).batch_stats
    anew = ["--statistics=anew", "--batches=2"]
    assert run_command(ensemble.main, ["ensemble", *flags, *anew]) == 0
    assert "computed on 2 batches of 16 training images" in capsys.readouterr().out
    run = ensembles.open_run(folder)
    expected = batch_statistics.anew(Run.open(trained), count=2)
    name = "backbone/norms/0/mean"
    np.testing.assert_allclose(run.batch_stats[0][name], expected[name], rtol=1e-4, atol=1e-5)
    assert np.abs(expected[name] - averaged[name]).max() > 0.01
    assert np.isfinite(say(run)["age"]).all()

    (folder / ensembles.STATISTICS_FILE).write_bytes(b"no")
    with pytest.raises(UserError, match=r"batch_stats\.safetensors"):
        ensembles.open_run(folder)
    spec = json.loads((folder / ensembles.FILE).read_text())
    del spec["statistics"]  # as older versions wrote it
    (folder / ensembles.FILE).write_text(json.dumps(spec))
    np.testing.assert_array_equal(ensembles.open_run(folder).batch_stats[0][name], averaged[name])


def test_the_fitted_weights_of_years_are_the_best_there_are():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 90, 400)
    said = np.stack([truth + rng.normal(0, sd, 400) for sd in (3, 5, 30)])
    weights = np.array(ensembling._fit_years(said, np.append(truth[:-1], np.nan)))
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    best = np.abs(weights @ said - truth)[:-1].mean()
    for other in rng.dirichlet([1, 1, 1], 300):
        assert best <= np.abs(other @ said - truth)[:-1].mean() + 1e-9
    assert weights[2] < 0.1


def test_the_fitted_weights_of_classes_are_the_best_there_are():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    said = []
    for share, right in ((1, 0.9), (1, 0.5), (0.2, 0.9)):
        guess = np.where(rng.random(400) < right, truth, rng.integers(0, 3, 400))
        said.append((1 - share) / 3 + share * (0.2 / 3 + 0.8 * np.eye(3)[guess]))
    said = np.stack(said)

    def loss(weights):
        return -np.log((weights @ said.swapaxes(0, 1))[np.arange(400), truth]).mean()

    weights = np.array(ensembling._fit_classes(said, truth))
    assert weights.sum() == pytest.approx(1)
    for other in rng.dirichlet([1, 1, 1], 300):
        assert loss(weights) <= loss(other) + 1e-6


def test_the_command_makes_a_folder_that_evaluate_and_predict_take(
    trained, other, faces, tmp_path, capsys
):
    flags = [str(trained), str(other), "--weights=.4,.6", "--views=plain,flip"]
    assert run_command(ensemble.main, ["ensemble", f"--output={tmp_path / 'both'}", *flags]) == 0
    assert "age: weights 0.400, 0.600" in capsys.readouterr().out
    result = results.evaluate(tmp_path / "both").metrics
    assert "the report has no saliency maps: " in capsys.readouterr().err
    assert (tmp_path / "both/evaluation/utkface-test/report.html").exists()
    alone = results.evaluate(trained, write_report=False, output=tmp_path / "alone").metrics
    assert result["n"] == alone["n"]
    assert result["split"] == "test"
    capsys.readouterr()
    flags = [f"--workdir={tmp_path / 'both'}", str(faces)]
    assert run_command(predict.main, ["predict", *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 96
    assert {"age", "age_spread", "gender"} <= lines[0].keys()


def test_evaluations_of_another_ensemble_do_not_pass_for_those_of_this_one(
    trained, other, tmp_path, capsys
):
    output = tmp_path / "both"
    flags = ["ensemble", f"--output={output}", "--combine=weights", str(trained), str(other)]
    assert run_command(ensemble.main, [*flags, "--weights=1,3"]) == 0
    scores = output / "evaluation" / "utkface-test" / "metrics.json"
    scores.parent.mkdir(parents=True)
    scores.write_text("{}")
    assert run_command(ensemble.main, [*flags, "--weights=1,3"]) == 0
    before = (output / "ensemble.json").read_text()
    assert run_command(ensemble.main, [*flags, "--weights=3,1"]) == 2
    assert f"{output} holds evaluations of another ensemble; name" in capsys.readouterr().err
    assert (output / "ensemble.json").read_text() == before
    scores.unlink()
    assert run_command(ensemble.main, [*flags, "--weights=3,1"]) == 0


def test_weights_are_fitted_on_val(trained, other, tmp_path, capsys):
    flags = [str(trained), f"{other}@4", "--weights=fit"]
    assert run_command(ensemble.main, ["ensemble", f"--output={tmp_path / 'e'}", *flags]) == 0
    spec = json.loads((tmp_path / "e" / ensembles.FILE).read_text())
    assert spec["weights"].keys() == {"age", "gender", "ethnicity"}
    assert all(sum(w) == pytest.approx(1, abs=1e-6) for w in spec["weights"].values())


def test_runs_with_other_buckets_of_ages_are_not_combined(members):
    runs = [
        dataclasses.replace(
            run, heads=create({"age": {"kind": "buckets", "edges": edges}}, run.facts)
        )
        for run, edges in zip(members, [(18,), (30,)], strict=True)
    ]
    with pytest.raises(UserError, match=r"classes of age_bucket are 0-29, 30\+, those of .* 18\+;"):
        ensembles.check_alike(runs)


def test_any_two_members_must_have_the_same_classes(members):
    run = members[0]
    turned = run.facts.label_names | {"gender": run.facts.label_names["gender"][::-1]}
    without = dataclasses.replace(
        run,
        heads={k: head for k, head in run.heads.items() if head.label != "gender"},
        facts=dataclasses.replace(run.facts, label_names={}),
    )
    other = dataclasses.replace(run, facts=dataclasses.replace(run.facts, label_names=turned))
    with pytest.raises(UserError, match="its classes of gender are female, male, those of"):
        ensembles.check_alike([without, run, other])


def test_a_label_that_only_another_members_data_has_keeps_its_classes(members):
    run, other = members
    age = dataclasses.replace(
        run,
        heads={k: head for k, head in run.heads.items() if head.label == "age"},
        facts=dataclasses.replace(run.facts, label_names={}),
    )
    joined = join([age, other])
    assert joined.classes == other.classes
    assert say(joined)["ethnicity"].shape == (8, len(joined.classes["ethnicity"]))


def test_a_label_that_no_val_image_has_keeps_equal_weights(members, monkeypatch, capsys):
    source = opening.open_source(members[0].config.data)
    unknown = np.full(len(source.ids), np.nan, np.float32)
    source = dataclasses.replace(source, labels=source.labels | {"age": unknown})
    rows = splits.make(source, members[0].config.data.split)
    monkeypatch.setattr(opening, "open_source", lambda *args: source)
    monkeypatch.setattr(splits, "make", lambda *args: rows)
    weights = ensembling.fit_weights(members, ["plain"])
    assert weights["age"] == [1.0, 1.0]
    assert sum(weights["gender"]) == pytest.approx(1)
    assert "age: no val image has it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights=.4"], "2 numbers of 0 or above"),
        (["--weights=.4,x"], "2 numbers of 0 or above"),
        (["--weights=-1,2"], "2 numbers of 0 or above"),
        (["--weights=nan,1"], "2 numbers of 0 or above"),
        (["--views=flop"], "'flop' is none of plain, flip, crops"),
        (["--combine=weights", "--weights=fit"], "it fits shares of predictions"),
        (["--statistics=anew"], "only --combine=weights"),
        (["--combine=weights", "--statistics=anew", "--batches=0"], "--batches=0: give 1"),
    ],
)
def test_bad_flags_are_one_line(trained, other, tmp_path, capsys, flags, message):
    argv = ["ensemble", str(trained), str(other), f"--output={tmp_path / 'e'}", *flags]
    assert run_command(ensemble.main, argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_a_folder_whose_name_ends_like_a_step_is_a_run(tmp_path):
    (tmp_path / "run@2").mkdir()
    assert ensembles.member_of(f"{tmp_path}/run@2") == (f"{tmp_path}/run@2", None)
    assert ensembles.member_of(f"{tmp_path}/run@2@7") == (f"{tmp_path}/run@2", 7)
    assert ensembles.member_of(f"{tmp_path}/run@3") == (f"{tmp_path}/run", 3)


def test_missing_members_and_steps_are_named(trained, tmp_path, capsys):
    for member, message in (
        (str(tmp_path), "holds no run"),
        (f"{trained}@3", "of step 3; it has 4"),
    ):
        argv = ["ensemble", str(trained), member, f"--output={tmp_path / 'e'}"]
        assert run_command(ensemble.main, argv) == 2
        assert message in capsys.readouterr().err
    ensembling.create(tmp_path / "both", [str(trained), f"{trained}@4"])
    spec = (tmp_path / "both" / ensembles.FILE).read_text()
    (tmp_path / "both" / ensembles.FILE).write_text(spec.replace(f"{trained}@4", "/gone@4"))
    with pytest.raises(UserError, match=r"both/ensemble.json: its member /gone is gone; move it"):
        ensembles.open_run(tmp_path / "both")
    (tmp_path / ensembles.FILE).write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        ensembles.open_run(tmp_path)
    with pytest.raises(UserError, match="takes one run, not an ensemble"):
        Run.open(tmp_path)
