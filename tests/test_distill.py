"""Teachers: what they say, what a student learns of it, and which are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from agejax import train
from agejax.data import augment, opening, pipeline
from agejax.distill import Teachers
from agejax.errors import UserError
from agejax.run import Run


@pytest.fixture(scope="module")
def config_of(faces, cache):
    def make(**changes):
        config = tiny.get_config()
        config.data.source, config.data.cache_dir = str(faces), str(cache)
        config.heads.age = {"kind": "distribution", "loss": "ce"}
        config.total = {"steps": 6}
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return config.lock()

    return make


@pytest.fixture(scope="module")
def teachers(config_of, tmp_path_factory):
    """Two trained runs that differ in their seed."""
    folders = [tmp_path_factory.mktemp("teacher") / "run" for _ in range(2)]
    for seed, folder in enumerate(folders):
        train.train(config_of(seed=seed), folder)
    return tuple(map(str, folders))


def test_teachers_say_the_mean_of_their_probabilities(config_of, teachers):
    config = config_of(distill__runs=teachers)
    source = opening.open_source(config.data)
    runs = [Run.open(path, devices=1) for path in teachers]
    opened = Teachers.open(config, runs[0].heads, source)
    batch = pipeline.gather(source, np.arange(16))
    images = augment.eval_images(jnp.asarray(batch["image"]), config.model.image_size)
    said = opened.say(opened.arrays, images)
    for name in ("gender", "ethnicity"):  # whose predictions are probabilities
        apart = [run.eval_step(run.params, run.batch_stats, batch)[name] for run in runs]
        assert not np.allclose(apart[0], apart[1], atol=1e-3)
        np.testing.assert_allclose(said[name], np.mean(apart, axis=0), atol=1e-5)
    assert said["age"].shape == (16, 117)
    np.testing.assert_allclose(said["age"].sum(axis=1), 1, rtol=1e-5)


def test_a_student_of_its_teacher_alone_comes_to_say_what_it_says(config_of, teachers, tmp_path):
    """And labels do not count: they could not bring it nearer than they are to the teacher."""
    config = config_of(
        distill__runs=teachers[:1], distill__share=1.0, total={"steps": 60}, seed=7,
        eval__every={"steps": 60}, checkpoint__every={"steps": 60},
    )  # fmt: skip
    train.train(config, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    lost = [line["ethnicity/distill"] for line in lines if "ethnicity/distill" in line]
    student, teacher = Run.open(tmp_path / "run", devices=1), Run.open(teachers[0], devices=1)
    batch = pipeline.gather(opening.open_source(config.data), np.arange(96))
    p, q = (
        np.asarray(run.eval_step(run.params, run.batch_stats, batch)["ethnicity"])
        for run in (student, teacher)
    )
    entropy = -np.sum(q * np.log(q), axis=1).mean()
    assert np.mean(lost[-3:]) - entropy < 0.5 * (np.mean(lost[:3]) - entropy)
    assert np.sum(q * np.log(q / p), axis=1).mean() < 0.1


def test_a_student_may_lack_a_head_of_its_teachers(config_of, teachers, tmp_path):
    config = config_of(distill__runs=teachers, total={"steps": 1}, log_every={"steps": 1}).unlock()
    del config.heads.ethnicity
    train.train(config, tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {name for name in first if name.endswith("/distill")} == {
        "age/distill",
        "gender/distill",
    }


@pytest.mark.parametrize("micro", [1, 2])
def test_shares_of_labels_and_teachers_add_up(config_of, teachers, tmp_path, micro):
    """The first step's loss is linear in the share; micro-batches see the same whole."""

    def first_loss(share, runs=teachers):
        folder = tmp_path / f"{share}{len(runs)}"
        config = config_of(
            distill__runs=runs, distill__share=share, total={"steps": 1}, model__dropout=0.0,
            log_every={"steps": 1}, optim__accumulate=micro, augment__mixup=0.0,
        )  # fmt: skip
        train.train(config, folder)
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])

    labels, both, taught = (first_loss(share) for share in (0.0, 0.25, 1.0))
    assert labels["loss"] != pytest.approx(taught["loss"], rel=1e-2)
    assert both["loss"] == pytest.approx(0.75 * labels["loss"] + 0.25 * taught["loss"], rel=1e-5)
    assert first_loss(0.0, ())["loss"] == pytest.approx(labels["loss"], rel=1e-6)
    weights = {"age": 1.0, "gender": 0.2, "ethnicity": 0.2}
    heads = sum(weight * taught[f"{name}/distill"] for name, weight in weights.items())
    assert taught["loss"] == pytest.approx(heads, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__split__seed": 1}, "another split"),
        ({"model__image_size": 24}, "sees 32 px; this one 24"),
        ({"heads__age": {"kind": "regression"}}, "head age gives no probabilities"),
        ({"heads__age__range": (0.0, 90.0)}, "no head age with the same classes"),
        ({"distill__share": 1.5}, "config.distill.share"),
        ({"distill__runs": ("/nowhere/run",)}, "/nowhere/run"),
    ],
)
def test_teachers_that_cannot_teach_this_are_refused(config_of, teachers, tmp_path, changes, words):
    config = config_of(distill__runs=teachers).unlock()
    for path, value in changes.items():
        *where, key = path.split("__")
        part = config
        for name in where:
            part = part[name]
        with part.unlocked():
            part[key] = value
    with pytest.raises(UserError, match=words):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    jax.clear_caches()
