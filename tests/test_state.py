"""The state of a run, and which of its arrays predictions use."""

import csv
import json

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import Bench, batch_of

from agejax import predict
from agejax.data import opening, splits
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs.run import Run
from agejax.training.state import TrainState

STEP = 4  # the only evaluation and checkpoint of `trained`


def test_the_averages_are_what_to_evaluate_with_where_they_are_kept():
    raw = {"params": {"a": jnp.zeros(1)}, "batch_stats": {"b": jnp.ones(1)}}
    average = {"params": {"a": jnp.full(1, 2.0)}, "batch_stats": {"b": jnp.full(1, 3.0)}}
    state = TrainState(jnp.int32(0), **raw, opt_state=(), ema=None)
    assert state.averaged() == (raw["params"], raw["batch_stats"])
    state = TrainState(jnp.int32(0), **raw, opt_state=(), ema=average)
    assert state.averaged() == (average["params"], average["batch_stats"])


def test_a_fresh_state_has_done_no_step_and_its_averages_begin_where_it_does():
    bench = Bench(optim__ema=0.9, optim__name="adamw")
    state = jax.device_get(bench.start)
    assert state.step == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        state.ema,
        {"params": state.params, "batch_stats": state.batch_stats},
    )
    # The optimizer keeps moments of what is trained, and none of what is frozen.
    moments = {k for leaf in state.opt_state if hasattr(leaf, "mu") for k in leaf.mu}
    assert moments == {k for k in state.params if k.startswith("heads/")}
    assert Bench().start.ema is None


def test_parameters_are_drawn_from_the_seed():
    one, again, other = (Bench(seed=seed).start.params for seed in (0, 0, 1))
    name = "heads/age/kernel"
    np.testing.assert_array_equal(one[name], again[name])
    assert (one[name] != other[name]).all()


def test_the_network_is_as_wide_and_as_exact_as_config_model_says():
    bench = Bench(model__hidden=6)
    shapes = {k: v.shape for k, v in bench.start.params.items()}
    assert shapes["hidden/kernel"] == (4, 6)
    assert shapes["heads/age/kernel"] == (6, 1)
    halves, whole = Bench(model__dtype="bfloat16"), Bench()
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(halves.start.params))
    images = batch_of()["image"]
    off = np.abs(halves.features(images) - whole.features(images)).max()
    assert 1e-5 < off < 0.05  # 8 bits of a number near 1


@pytest.fixture(scope="module")
def source(trained):
    return opening.open_source(Run.open(trained, devices=1).config.data)


@pytest.fixture(scope="module")
def rows(trained, source):
    return splits.make(source, Run.open(trained, devices=1).config.data.split)


@pytest.fixture(scope="module")
def expected(trained, source):
    """The predictions of the run's averages for every image, by hand; the last step's differ."""
    images = source.take(np.arange(len(source.ids)))
    said = by_hand.predict(trained, STEP, images)
    last = by_hand.predict(trained, STEP, images, averages=False)
    assert np.abs(said["age"] - last["age"]).max() > 0.1
    return said


def test_an_opened_run_has_the_averages(trained):
    run, average = Run.open(trained, devices=1), by_hand.saved(trained, STEP)["ema"]
    assert run.step == STEP
    jax.tree.map(np.testing.assert_array_equal, dict(run.params), average["params"])
    jax.tree.map(np.testing.assert_array_equal, dict(run.batch_stats), average["batch_stats"])


def test_the_evaluation_in_training_is_that_of_the_averages_on_val(trained, source, expected, rows):
    val = rows["val"]
    line = next(
        line for line in map(json.loads, (trained / "metrics.jsonl").open())
        if "val/age/mae" in line
    )  # fmt: skip
    assert line["step"] == STEP
    error = np.abs(expected["age"] - source.labels["age"])[val]
    assert line["val/age/mae"] == pytest.approx(error.mean(), rel=1e-4)
    hit = expected["gender"].argmax(axis=1) == source.labels["gender"]
    assert line["val/gender/accuracy"] == pytest.approx(hit[val].mean())
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["best"]["value"] == line["val/age/mae"]
    # What a constant would do: the median age of the training images.
    ages = source.labels["age"]
    floor = np.abs(np.median(ages[rows["train"]]) - ages[val]).mean()
    assert summary["last"]["age"]["floor_mae"] == pytest.approx(floor, rel=1e-5)


def test_evaluate_on_val_gives_the_figures_that_training_gave(trained, tmp_path):
    summary = json.loads((trained / "summary.json").read_text())
    result = results.evaluate(trained, split="val", output=tmp_path, write_report=False).metrics
    assert result["step"] == summary["best"]["step"]
    for target in ("age", "gender", "ethnicity"):
        interval = "mae_ci95" if target == "age" else "accuracy_ci95"
        now, then = result[target], summary["last"][target]
        assert now.pop(interval) == pytest.approx(then.pop(interval), rel=1e-5)
        assert now == pytest.approx(then, rel=1e-5)  # on another number of devices


def test_evaluate_and_predict_give_what_the_averages_give(
    trained, source, expected, faces, tmp_path, capsys
):
    row = {name: i for i, name in enumerate(source.ids.tolist())}
    results.evaluate(trained, split="test", output=tmp_path, write_report=False)
    with (tmp_path / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines
    for line in lines:
        i = row[line["id"]]
        assert float(line["age_predicted"]) == pytest.approx(expected["age"][i], rel=1e-4)
        for k in range(2):
            assert float(line[f"gender_p{k}"]) == pytest.approx(expected["gender"][i, k], abs=1e-5)
        for k in range(5):
            assert float(line[f"ethnicity_p{k}"]) == pytest.approx(
                expected["ethnicity"][i, k], abs=1e-5
            )
    capsys.readouterr()
    run = Run.open(trained, devices=1)
    paths = sorted(faces.iterdir())[:20]
    assert run_command(predict.main, ["predict", f"--workdir={trained}", *map(str, paths)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["path"] for record in records] == [str(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        i = row[path.name]
        assert record["age"] == pytest.approx(expected["age"][i], abs=0.006)
    assert run.facts.label_names["gender"] == ["male", "female"]


def test_facts_are_of_the_training_images_alone(trained, source, rows):
    facts = json.loads((trained / "summary.json").read_text())["facts"]
    ages, train = source.labels["age"].astype(float), rows["train"]
    assert 0 < len(train) < len(ages)
    assert facts["means"]["age"] == pytest.approx(ages[train].mean())
    assert facts["stds"]["age"] == pytest.approx(ages[train].std())
    assert facts["medians"]["age"] == np.median(ages[train])
    counts = [(source.labels["gender"][train] == k).sum() for k in range(2)]
    assert facts["counts"]["gender"] == counts
    assert sum(facts["counts"]["age"]) == len(train)
    assert ages.mean() != pytest.approx(ages[train].mean())
    run = Run.open(trained, devices=1)
    assert run.facts.means == facts["means"]
