"""Image sizes: smaller ones at the start of a run, and another one for scoring."""

import json
import shutil

import by_hand
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_resume import last_checkpoint

import tiny
from agejax import checks
from agejax.config import check
from agejax.errors import UserError
from agejax.evaluate import main as evaluate_main
from agejax.evaluation.calibration import Calibration
from agejax.explanations.subject import Subject
from agejax.exporting import description
from agejax.exporting.prediction import prediction
from agejax.models import pretrained, registry
from agejax.models.pretrained import positions
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs.run import Run
from agejax.train import train
from agejax.training.checkpoint import Checkpoints

STAGES = (({"percent": 62.5}, 16),)  # of 8 steps: the first 5


@pytest.fixture(scope="module")
def config_of(faces, cache):
    def make(**changes):
        config = tiny.get_config()
        config.data.source, config.data.cache_dir = str(faces), str(cache)
        config.total, config.log_every = {"steps": 8}, {"steps": 1}
        config.eval.every = config.checkpoint.every = {"steps": 4}
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return config

    return make


@pytest.fixture(scope="module")
def staged(config_of, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("staged") / "run"
    train(config_of(schedule__image_size=STAGES), workdir)
    return workdir


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_first_steps_are_those_of_a_run_of_small_images(config_of, staged, tmp_path):
    train(config_of(model__image_size=16), tmp_path / "small")
    small, both = losses(tmp_path / "small"), losses(staged)
    assert both[:5] == small[:5]
    assert abs(both[5] - small[5]) > 1e-6


def test_the_last_steps_are_those_of_large_images(config_of, staged, tmp_path):
    """Compares with a run from the weights after step 4 at the final size: step 5 differs."""
    config = config_of(schedule__image_size=(({"steps": 4}, 16),))
    train(config, tmp_path / "earlier")
    assert losses(tmp_path / "earlier")[:4] == losses(staged)[:4]
    assert abs(losses(tmp_path / "earlier")[4] - losses(staged)[4]) > 1e-6


def test_a_run_of_small_images_first_is_evaluated_at_its_final_size(staged):
    run = Run.open(staged, devices=1)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    expected = by_hand.predict(staged, run.step, images)
    for name, said in run.predict([batch_of(images)]).items():
        np.testing.assert_allclose(said, expected[name], rtol=1e-4, atol=1e-4)


def batch_of(images):
    return {"image": images, "weight": np.ones(len(images), np.float32)}


def test_a_run_stopped_before_the_size_changes_ends_bit_equal(config_of, staged, tmp_path, capsys):
    config = config_of(schedule__image_size=STAGES)
    train(config, tmp_path / "run", stop_after=lambda step, value: step == 4)
    assert Checkpoints(tmp_path / "run" / "checkpoints").last == 4
    assert "16 px" in capsys.readouterr().out
    train(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert [line.split("step ")[1] for line in printed.splitlines() if "here on" in line] == [
        "4/8  images of 16 px from here on",
        "5/8  images of 32 px from here on",
    ]
    jax.tree.map(np.testing.assert_array_equal, last_checkpoint(tmp_path / "run"),
                 last_checkpoint(staged))  # fmt: skip
    assert losses(tmp_path / "run") == losses(staged)


def test_another_schedule_of_sizes_is_another_run(config_of, staged):
    with pytest.raises(UserError, match=r"another config: schedule\.image_size \(\[\[\{\"percent"):
        train(config_of(), staged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule__image_size": (128,)}, "image_size: 128; list pairs of a duration and a size"),
        ({"schedule__image_size": (({"steps": 2}, 16.5),)}, "image_size: 16.5; set a size to"),
        ({"schedule__image_size": (({"steps": 2}, 0),)}, "image_size: 0; set a size to 1..4096"),
        ({"schedule__image_size": (({"hours": 2}, 16),)}, "schedule.image_size: give exactly one"),
        ({"schedule__image_size": (({"steps": 2}, 2),)}, "schedule.image_size: 2 px: .*pool"),
        ({"eval__image_size": -1}, "eval.image_size: -1; set it to a whole number in 0..4096"),
        (
            {"model__name": "mlp", "model__options": {"widths": (4,)}, "eval__image_size": 40},
            "config.eval.image_size: 40 px: the network has dense layers over all pixels of its 32",
        ),
        (
            {"heads__age__neck": {"pool": "flatten"}, "schedule__image_size": STAGES},
            "config.schedule.image_size: 16 px: the network has dense layers over all pixels",
        ),
        (
            {"model__name": "vit_ti16", "model__options": {}, "eval__image_size": 40},
            "config.eval.image_size: 40 px: a ViT needs images of a multiple of 16 px",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_the_data(config_of, changes, message):
    def refuse():
        config = config_of(**changes)
        check(config)
        checks.before_data(pretrained.settle(config))

    with pytest.raises(UserError, match=message):
        refuse()


def test_durations_that_do_not_increase_are_refused(config_of, tmp_path):
    config = config_of(schedule__image_size=(({"steps": 5}, 16), ({"percent": 50}, 24)))
    with pytest.raises(UserError, match=r"the durations come to 5, 4 steps .* must be longer"):
        train(config, tmp_path / "run")


def test_a_transformer_takes_another_size_with_its_positions_resized():
    small, large = (
        registry.create("vit_ti16", image_size=size, rngs=nnx.Rngs(0)) for size in (32, 48)
    )
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 48, 48, 3)), jnp.float32)
    fitted = positions.resize(np.asarray(small.pos_embed[...]), 10)
    nnx.update(large, nnx.state(small, lambda path, _: "pos_embed" not in path))
    large.pos_embed[...] = jnp.asarray(fitted)
    np.testing.assert_allclose(small.embed(images).pooled, large.embed(images).pooled, atol=1e-5)


def test_a_finished_run_is_scored_and_calibrated_at_a_size_that_is_set_later(
    config_of, staged, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(staged, workdir)
    own = results.evaluate(workdir, split="val").metrics
    assert own["image_size"] == 32
    before = Calibration.read(workdir, Run.open(workdir, devices=1).step)
    train(config_of(schedule__image_size=STAGES, eval__image_size=48), workdir)
    result = results.evaluate(workdir, split="val").metrics
    assert result["image_size"] == 48
    after = Calibration.read(workdir, before.step, 48)
    assert after.widths != before.widths
    assert Calibration.read(workdir, before.step, 0) is None
    assert Calibration.read(workdir, before.step) == after  # any size, for the framing of faces


@pytest.fixture(scope="module")
def larger(trained):
    """The shared run, trained at 32 px and scored at 40."""
    return Run.open(trained, devices=1).scored_at(40)


def test_a_run_is_scored_at_the_size_that_its_config_says(larger):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    # Half a pixel in is half a pixel out, as in OpenCV's linear resizing.
    resized = np.stack([cv2.resize(np.float64(image), (40, 40)) for image in images])
    expected = by_hand.predict(larger.workdir, larger.step, resized)
    at_its_own = by_hand.predict(larger.workdir, larger.step, images)
    said = larger.predict([batch_of(images)])
    for name in ("age", "gender", "ethnicity"):
        np.testing.assert_allclose(said[name], expected[name], rtol=1e-4, atol=1e-4)
    assert np.abs(said["age"] - at_its_own["age"]).max() > 1e-3

    # So do exports and explanations.
    exported = prediction(larger)(images)
    np.testing.assert_allclose(exported["age"], expected["age"], rtol=1e-4)
    steps = description.describe(larger, {})["preprocessing_inside"]
    assert "resize to 40 x 40, bilinear" in steps
    explained = Subject.of(larger, "age", smooth=False).decoded(images)
    np.testing.assert_allclose(explained, expected["age"], rtol=1e-4)


def test_val_is_scored_at_any_size_beside_the_runs_own(trained, capsys):
    result = results.evaluate(trained, image_size=40, write_report=False).metrics
    assert (result["image_size"], result["split"]) == (40, "val")
    own = results.evaluate(trained, split="val", write_report=False).metrics
    assert own["image_size"] == 32
    assert own["age"]["mae"] != result["age"]["mae"]
    folder = trained / "evaluation"
    assert json.loads((folder / "utkface-val-40px" / "metrics.json").read_text()) == result
    assert json.loads((folder / "utkface-val" / "metrics.json").read_text()) == own

    # The run's own data set by its name has no other default.
    named = results.evaluate(trained, dataset="utkface", image_size=40, write_report=False)
    assert named.metrics["split"] == "val"

    arguments = ["evaluate", f"--workdir={trained}", "--image_size=40"]
    assert run_command(evaluate_main, [*arguments, "--split=test"]) == 2
    assert "--image_size: choose a size on --split=val" in capsys.readouterr().err
    assert run_command(evaluate_main, [*arguments[:2], "--image_size=2"]) == 2
    assert "--image_size=2: " in capsys.readouterr().err
