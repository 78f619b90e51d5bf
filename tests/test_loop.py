"""The loop: what it draws, how long it runs, when it evaluates, and who may stop it."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest

import tiny
from agejax import main
from agejax.data import draws, opening, pipeline, sampling, splits
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.train import train
from agejax.training.best import Best

LOOP = sys.modules["agejax.train"]  # the name in the package is that of the function
BATCH, EVAL_EVERY = 8, 5


def get_config(faces):
    config = tiny.get_config()
    config.data.source = str(faces)  # in the cache that AGEJAX_CACHE names
    config.data.batch_size = BATCH
    config.model.options = {"widths": (4,)}
    config.sampling.kind = "oversample"
    config.sampling.copy_strength = 3.0
    config.sampling.keep = {"gender": {"female": 0.5}}
    config.total = {"epochs": 1.5}
    config.schedule.kind, config.schedule.lr, config.schedule.lr_batch_size = (
        "exponential",
        1e-3,
        32,
    )
    config.seed = 5
    config.schedule.decay_every, config.schedule.decay_rate = {"epochs": 0.5}, 0.5
    config.eval.every = config.checkpoint.every = {"steps": EVAL_EVERY}
    config.eval.best_mode = "max"  # of an error, so that the best is not the last
    config.log_every = {"steps": 1}
    return config.lock()


@pytest.fixture(scope="module")
def seen(faces, tmp_path_factory):
    """A run, its result, the batches that it read, and the calls of `stop_after`."""
    workdir = tmp_path_factory.mktemp("loop") / "run"
    read, batches, asked = pipeline.TrainBatches.__getitem__, {}, []

    def noted(self, step):
        batches[step] = read(self, step)
        return batches[step]

    def stop_after(step, value):
        asked.append((step, value))
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.TrainBatches, "__getitem__", noted)
        summary = train(get_config(faces), workdir, stop_after)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return summary, batches, asked, lines


@pytest.fixture(scope="module")
def source(faces):
    return opening.open_source(get_config(faces).data)


@pytest.fixture(scope="module")
def kept(faces, source, seen):
    """The training rows that were drawn; 1.5 epochs draw each row."""
    drawn = np.unique(np.concatenate([batch["index"] for batch in seen[1].values()]))
    assert set(drawn) <= set(splits.make(source, get_config(faces).data.split)["train"])
    return drawn


def size_of(ages):
    """The number of draws in an epoch of oversampling: every row, and copies of rarer decades."""
    counts = np.bincount(np.minimum(ages // 10, 8).astype(int), minlength=9)
    most = counts.max()
    return len(ages) + sum(int(0.3 * (most - n) + 1e-9) + most // 10 for n in counts if n)


def test_only_what_sampling_keep_leaves_is_trained_on_and_counted(faces, source, kept, seen):
    train_rows = splits.make(source, get_config(faces).data.split)["train"]
    gender = source.labels["gender"]
    males, females = (train_rows[gender[train_rows] == k] for k in range(2))
    assert set(males) <= set(kept)
    half = np.isin(females, kept).sum()
    assert abs(half - len(females) / 2) <= 1
    assert seen[0]["examples"]["train"] == len(males) + half
    facts = seen[0]["facts"]
    assert facts["counts"]["gender"] == [len(males), half]
    assert facts["means"]["age"] == pytest.approx(source.labels["age"][kept].mean(dtype=float))


def test_an_epoch_is_as_many_draws_as_the_sampler_makes(source, kept, seen):
    summary, _, _, lines = seen
    size = size_of(source.labels["age"][kept])
    assert size > len(kept) + 5
    steps = round(1.5 * size / BATCH)
    assert summary["steps"] == steps
    assert summary["epochs"] == pytest.approx(steps * BATCH / size)
    assert lines[-1]["step"] == steps
    for line in lines:
        assert line["epoch"] == pytest.approx(line["step"] * BATCH / size)


def test_the_schedule_counts_in_the_same_epochs(source, kept, seen):
    every = round(0.5 * size_of(source.labels["age"][kept]) / BATCH)
    rates = {line["step"]: line["learning_rate"] for line in seen[3] if "learning_rate" in line}
    assert len(rates) == seen[0]["steps"]
    for step, rate in rates.items():  # the first step has the rate that is set
        # A quarter of the batch that the rate was found for: half the rate, by the rule for Adam.
        assert rate == pytest.approx(0.5e-3 * 0.5 ** ((step - 1) / every), rel=1e-5)


def test_rows_are_drawn_in_the_order_of_the_runs_seed(faces, source, kept, seen):
    train_rows = splits.make(source, get_config(faces).data.split)["train"]
    rows = train_rows[np.isin(train_rows, kept)]
    weights, size = draws.oversampled(source.labels["age"][rows])
    positions = np.arange(BATCH * len(seen[1]))
    expected = rows[sampling.Sampler(weights, size, seed=5).indices(positions)]
    for step, batch in seen[1].items():
        np.testing.assert_array_equal(batch["index"], expected[step * BATCH :][:BATCH])


def test_later_draws_of_a_row_reach_the_step_with_their_strength(seen):
    strengths = np.concatenate([batch["strength"] for batch in seen[1].values()])
    assert set(strengths) == {1.0, 3.0}


def test_val_is_looked_at_when_due_and_at_the_last_step(seen):
    summary, _, asked, lines = seen
    total = summary["steps"]
    assert total % EVAL_EVERY  # no multiple
    due = [*range(EVAL_EVERY, total, EVAL_EVERY), total]
    evaluated = {line["step"]: line["val/age/mae"] for line in lines if "val/age/mae" in line}
    assert list(evaluated) == due
    assert summary["last"]["age"]["mae"] == evaluated[total]
    assert summary["best"]["value"] == max(evaluated.values())
    assert evaluated[summary["best"]["step"]] == summary["best"]["value"]
    assert summary["best"]["step"] != total
    # `stop_after` is called after each, with the value that config.eval.best names.
    assert asked == list(evaluated.items())


@pytest.mark.parametrize(
    ("mode", "values", "best", "stale"),
    [
        ("min", [3.0, 1.0, 2.0], (1.0, 20), 1),
        ("max", [3.0, 1.0, 2.0], (3.0, 10), 2),
        ("min", [1.0, 1.0, 1.0], (1.0, 10), 2),  # a tie is not better
        ("max", [0.5, 0.6, 0.7], (0.7, 30), 0),
    ],
)
def test_the_best_of_three_evaluations(mode, values, best, stale):
    found = Best()
    for step, value in zip((10, 20, 30), values, strict=True):
        found = found.update(value, step, mode)
    assert (found.value, found.step, found.stale) == (*best, stale)


def test_whoever_is_asked_may_end_the_run_after_an_evaluation(faces, seen, tmp_path, capsys):
    summary = train(get_config(faces), tmp_path / "run", lambda step, value: step >= 10)
    said = capsys.readouterr()
    assert summary["steps"] == 10
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert max(line["step"] for line in lines) == 10
    assert [line["step"] for line in lines if "val/age/mae" in line] == [5, 10]
    # Until then it equals the run that was not stopped.
    whole = {line["step"]: line["val/age/mae"] for line in seen[3] if "val/age/mae" in line}
    assert summary["last"]["age"]["mae"] == whole[10]
    assert (tmp_path / "run" / "checkpoints" / "10").is_dir()
    # What was said: the epochs that were asked for, though the steps are rounded.
    assert "compiling the train step at 32 px\n" in said.err
    banner = dict(line.split(maxsplit=1) for line in said.out.splitlines()[:7])
    images = summary["examples"]
    assert banner == {
        "model": "cnn at 32 px; heads age, ethnicity, gender",
        "parameters": f"{summary['parameters']:,}",
        "weights": "random",
        "data": "utkface, 96 images: "
        f"train {images['train']}, val {images['val']}, test {images['test']}",
        "device": "1 x cpu",
        "steps": f"{seen[0]['steps']} of 8 images, 1.5 epochs",
        "workdir": str(tmp_path / "run"),
    }
    vals = [line for line in said.out.splitlines() if "  val  loss " in line]
    assert ["best so far" in line for line in vals] == [True, whole[10] > whole[5]]
    assert all(re.match(r"epoch +[0-9.]+/1\.5  step ", line) for line in vals)


def test_the_command_scores_the_final_split(faces, tmp_path, monkeypatch):
    scored = []
    monkeypatch.setattr(LOOP, "train", lambda config, workdir, dry_run: {"steps": 2})
    monkeypatch.setattr(
        results, "evaluate", lambda *args, **options: scored.append((args, options))
    )
    config = get_config(faces)
    monkeypatch.setattr(main, "parse", lambda argv, usage: config)
    main.FLAGS(["main", f"--config={tiny.__file__}", f"--workdir={tmp_path}"])
    for split in ("val", ""):
        config.eval.final_split = split
        assert run_command(main.main, []) == 0
    assert scored == [((tmp_path,), {"split": "val"})]
    config.eval.final_split = "val"
    main.FLAGS(["main", f"--config={tiny.__file__}", f"--workdir={tmp_path}", "--dry_run"])
    assert run_command(main.main, []) == 0
    assert len(scored) == 1


def test_a_run_is_not_written_to_a_folder_that_the_box_hides(faces, monkeypatch, capsys):
    monkeypatch.setattr(LOOP, "train", None)
    monkeypatch.setattr(main, "parse", lambda argv, usage: get_config(faces))
    main.FLAGS(["main", f"--config={tiny.__file__}", "--workdir=box"])
    assert run_command(main.main, []) == 2
    assert "write ./box for a folder of that name" in capsys.readouterr().err


def test_data_is_prepared_in_the_cache_that_the_environment_names(seen, cache):
    assert list(cache.glob("utkface/*-32px*"))
    assert cache.resolve() != pathlib.Path("~/.cache/agejax").expanduser().resolve()
