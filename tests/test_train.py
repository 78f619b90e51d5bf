"""The loop and the steps, on the tiny config in this process."""

import json
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_loggers import events
from test_resume import last_checkpoint

import tiny
from agejax.data import pipeline
from agejax.errors import UserError
from agejax.train import train
from agejax.training import sharding
from agejax.training import step as step_lib
from agejax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def config_of(faces, cache):
    def make(**changes):
        config = tiny.get_config()
        config.data.source, config.data.cache_dir = str(faces), str(cache)
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return config.lock()

    return make


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if "loss" in line])


@pytest.fixture(scope="module")
def run(config_of, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "tiny"
    return workdir, train(config_of(log_images=4), workdir)


def test_a_run_learns_and_leaves_what_the_architecture_page_promises(run):
    workdir, summary = run
    assert summary["steps"] == 24
    assert losses(workdir)[-3:].mean() < 0.8 * losses(workdir)[:3].mean()
    assert json.loads((workdir / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert {"compile", "data", "input", "step", "eval", "checkpoint"} <= summary["seconds"].keys()
    assert summary["best"]["value"] == pytest.approx(
        min(r["val/age/mae"] for r in map(json.loads, (workdir / "metrics.jsonl").open())
            if "val/age/mae" in r)
    )  # fmt: skip
    read = events(workdir)
    assert [e.step for e in read.Scalars("val/age/mae")] == [6, 12, 18, 24]
    assert read.Scalars("train/loss")[-1].step == 24
    assert [e.step for e in read.Images("train/augmented")] == [1]
    assert [e.step for e in read.Images("val/worst")] == [6, 12, 18, 24]
    assert "_hparams_/session_end_info" in read.summary_metadata  # the run is finished


def test_a_finished_run_returns_its_summary_again_and_trains_no_more(run, config_of):
    workdir, summary = run
    before = (workdir / "metrics.jsonl").read_bytes()
    again = train(config_of(), workdir)
    assert again["best"] == summary["best"]
    assert again["last"]["age"] == summary["last"]["age"]
    assert (workdir / "metrics.jsonl").read_bytes() == before


# Ten steps: sums over other numbers of devices differ in their last bit (1e-7), which batch norm
# over 16 images of one pixel each multiplies from step to step, and Adam's division even faster.
SHORT = {"optim__name": "sgd", "schedule__lr": 0.01, "total": {"steps": 10}}


@pytest.fixture(scope="module")
def on_one_device(config_of, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(config_of(**SHORT), workdir)
    return losses(workdir)


@pytest.mark.parametrize(("devices", "fsdp"), [(2, 1), (8, 1), (4, 2)])
def test_losses_do_not_depend_on_how_many_devices_there_are(
    config_of, on_one_device, tmp_path, monkeypatch, devices, fsdp
):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)  # so that fsdp splits this small model
    config = config_of(**SHORT, sharding__devices=devices, sharding__fsdp=fsdp)
    train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), on_one_device, rtol=1e-5)


def test_accumulated_gradients_equal_those_of_the_whole_batch(config_of, tmp_path):
    # Frozen batch norm: with live statistics a micro-batch rightly differs from the whole.
    changes = {
        "optim__lr_multipliers": (("backbone/.*", None), (".*", 1.0)),
        "model__dropout": 0.0,
        "optim__name": "sgd",
        "total": {"steps": 6},
    }
    train(config_of(**changes), tmp_path / "whole")
    train(config_of(**changes, optim__accumulate=4), tmp_path / "parts")
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    config_of, tmp_path
):
    config = config_of(optim__clip_norm=0.0, optim__name="sgd", schedule__kind="exponential",
                       schedule__lr=0.01, schedule__decay_rate=1e12,
                       schedule__decay_every={"steps": 1},
                       checkpoint__every={"steps": 1})  # fmt: skip
    with pytest.raises(UserError, match=r"(loss|gradient_norm) is (nan|inf) at step \d+") as error:
        train(config, tmp_path / "run")
    bad = int(re.search(r"at step (\d+)", str(error.value))[1])
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.last == bad - 1
    for step in checkpoints.steps:
        tree = ocp.StandardCheckpointer().restore(
            tmp_path / "run" / "checkpoints" / str(step) / "state"
        )
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree["params"]))


@pytest.fixture
def bad_step(monkeypatch):
    """Makes the loss of the tenth step NaN."""
    read = pipeline.TrainBatches.__getitem__

    def spoilt(self, step):
        batch = read(self, step)
        return batch | {"weight": batch["weight"] * np.float32(np.nan)} if step == 9 else batch

    monkeypatch.setattr(pipeline.TrainBatches, "__getitem__", spoilt)


def test_a_step_that_is_not_finite_is_skipped_or_rolled_back_from(
    config_of, bad_step, tmp_path, capsys
):
    for policy in ("skip", "rollback"):
        assert train(config_of(nonfinite=policy), tmp_path / policy)["steps"] == 24
    assert "loss is nan at step 10: rolling back" in capsys.readouterr().out
    assert json.loads((tmp_path / "rollback" / "skipped_steps.json").read_text()) == [10]
    lines = [json.loads(line) for line in (tmp_path / "skip" / "metrics.jsonl").open()]
    skipped = {line["step"]: line["skipped"] for line in lines if "skipped" in line}
    assert {step for step, share in skipped.items() if share} == {10}
    # Both leave the state as it was: two ways to one result.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        last_checkpoint(tmp_path / "skip")[1],
        last_checkpoint(tmp_path / "rollback")[1],
    )


def test_a_run_that_begins_skips_no_step_of_one_that_failed_before_its_first_checkpoint(
    config_of, tmp_path
):
    (tmp_path / "skipped_steps.json").write_text("[1, 2]")
    train(config_of(total={"steps": 2}), tmp_path)
    assert not (tmp_path / "skipped_steps.json").exists()
    (row,) = (
        line for line in map(json.loads, (tmp_path / "metrics.jsonl").open()) if "loss" in line
    )
    assert row["step"] == 2


def test_steps_that_are_never_finite_end_the_run_whatever_the_policy(config_of, tmp_path):
    never = {"optim__clip_norm": 0.0, "optim__name": "sgd", "schedule__kind": "constant",
             "schedule__lr": 1e30}  # fmt: skip
    with pytest.raises(UserError, match="no loss is finite in the 2 steps up to"):
        train(config_of(nonfinite="skip", **never), tmp_path / "skip")
    with pytest.raises(UserError, match=r"loss is nan at step 5: training stopped"):
        train(config_of(nonfinite="rollback", **never), tmp_path / "rollback")
    with pytest.raises(UserError, match=r"config\.nonfinite: 'ignore' is not one of stop, skip"):
        train(config_of(nonfinite="ignore"), tmp_path / "ignore")


def test_early_stopping_counts_evaluations_without_a_better_value(config_of, tmp_path):
    # A frozen backbone and a step too small to show: every evaluation gives the same value.
    config = config_of(
        optim__lr_multipliers=(("backbone/.*", None), (".*", 1.0)),
        schedule__lr=1e-12,
        optim__ema=0.0,
        eval__patience=2,
        eval__every={"steps": 2},
        total={"steps": 40},
    )
    summary = train(config, tmp_path / "run")
    assert summary["best"]["stale"] == 2
    assert summary["steps"] == 6


def test_frozen_parameters_and_their_statistics_do_not_move(config_of, tmp_path):
    config = config_of(
        optim__lr_multipliers=(("backbone/.*", None), (".*", 1.0)),
        total={"steps": 8}, checkpoint__every={"steps": 4}, eval__every={"steps": 8},
    )  # fmt: skip
    train(config, tmp_path / "run")
    early, late = (
        ocp.StandardCheckpointer().restore(tmp_path / "run" / "checkpoints" / str(s) / "state")
        for s in (4, 8)
    )
    for group in ("params", "batch_stats"):
        for name, value in early[group].items():
            if name.startswith("backbone/"):
                np.testing.assert_array_equal(value, late[group][name], err_msg=name)
    assert (early["params"]["heads/age/kernel"] != late["params"]["heads/age/kernel"]).any()


def test_example_weights_count_from_the_step_they_are_deferred_to(
    config_of, tmp_path, monkeypatch, users_jit
):
    """With features smoothed from the second epoch on, and a penalty."""
    make = step_lib.make_train_step

    def make_train_step(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "jit", users_jit)
            return make(*arguments, **options)

    monkeypatch.setattr(step_lib, "make_train_step", make_train_step)
    changes = {
        "augment__mixup": 0.0,
        "optim__l1": (("heads/.*/kernel", 1e-4),),
        "optim__accumulate": 2,
        "heads__age": {"kind": "regression", "fds": {}},
        "heads__ethnicity": {"kind": "categorical", "loss": "ldam", "cosine": True},
        "total": {"steps": 8},
        "log_every": {"steps": 1},
    }
    train(config_of(**changes), tmp_path / "plain")
    changes["heads__age"] |= {
        "example_weights": {"kind": "dense", "alpha": 1.0, "after": {"percent": 50.0}}
    }
    train(config_of(**changes), tmp_path / "weighted")
    plain, weighted = losses(tmp_path / "plain"), losses(tmp_path / "weighted")
    assert np.isfinite(weighted).all()
    np.testing.assert_array_equal(weighted[:4], plain[:4])
    assert (weighted[4:] != plain[4:]).all()
