"""Calibration: fitted on val, read back, and valid on unseen images."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import special

from agejax.evaluation.calibration import FILE, Calibration


def faces(n, seed, *, sigma=True):
    """Predictions with errors that grow with age and overconfident classes; and labels."""
    rng = np.random.default_rng(seed)
    age = rng.uniform(0, 100, n)
    spread = 2 + age / 10
    logits = rng.normal(0, 1.5, (n, 3))
    drawn = (special.softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    predictions = {
        "age": (age + rng.normal(0, spread)).astype(np.float32),
        "ethnicity": special.softmax(3 * logits, axis=1).astype(np.float32),
    }
    if sigma:
        predictions["age_sigma"] = (7 * spread).astype(np.float32)  # in the wrong unit
    return predictions, {"age": age, "ethnicity": drawn.clip(max=2)}


def fitted(n=4000, **options):
    return Calibration.fit(*faces(n, 0, **options), np.arange(n), step=7)


@pytest.mark.parametrize("sigma", [True, False])
@pytest.mark.parametrize("by_decade", [True, False])
def test_intervals_hold_the_truth_as_often_as_they_say(sigma, by_decade):
    predictions, labels = faces(20_000, 1, sigma=sigma)
    low, high = fitted(sigma=sigma).intervals(predictions, by_decade=by_decade)["age"]
    held = (low <= labels["age"]) & (labels["age"] <= high)
    assert held.mean() == pytest.approx(0.9, abs=0.02)
    young, old = labels["age"] < 20, labels["age"] > 80
    apart = abs(held[young].mean() - held[old].mean())
    # One width for all errors covers the young too often and the old too seldom.
    assert apart > 0.1 if not sigma and not by_decade else apart < 0.1
    assert (high - low)[old].mean() > (high - low)[young].mean() or (not sigma and not by_decade)


def test_probabilities_come_back_to_what_they_mean():
    calibration = fitted()
    assert calibration.temperatures["ethnicity"] == pytest.approx(3, rel=0.1)
    predictions, labels = faces(20_000, 1)
    p = calibration.probabilities(predictions)["ethnicity"]
    np.testing.assert_array_equal(p.argmax(axis=1), predictions["ethnicity"].argmax(axis=1))
    right = p.argmax(axis=1) == labels["ethnicity"]
    sure = p.max(axis=1) > 0.8
    assert right[sure].mean() == pytest.approx(p.max(axis=1)[sure].mean(), abs=0.03)


def test_copies_are_no_evidence():
    predictions, labels = faces(500, 0)
    once = Calibration.fit(predictions, labels, np.arange(500), step=1)
    again = np.concatenate([np.arange(500), np.repeat(17, 300)])
    twice = Calibration.fit(
        {k: v[again] for k, v in predictions.items()},
        {k: v[again] for k, v in labels.items()},
        again,
        step=1,
    )
    assert dataclasses.asdict(once) == dataclasses.asdict(twice)


def test_it_is_read_back_and_only_for_its_own_checkpoint(tmp_path):
    calibration = fitted(200)
    calibration.save(tmp_path)
    assert Calibration.read(tmp_path, 7) == calibration
    assert Calibration.read(tmp_path, 8) is None
    (tmp_path / FILE).write_text(json.dumps({"step": 7, "n": 3}))
    assert Calibration.read(tmp_path, 7) is None
    (tmp_path / FILE).write_text("{")
    assert Calibration.read(tmp_path, 7) is None


def test_labels_that_few_or_no_images_have_are_left_out():
    predictions, labels = faces(200, 0)
    labels = {"age": np.full(200, np.nan), "ethnicity": np.full(200, -1)}
    calibration = Calibration.fit(predictions, labels, np.arange(200), step=0)
    assert (calibration.temperatures, calibration.widths) == ({}, {})
    assert calibration.intervals(predictions) == calibration.probabilities(predictions) == {}


def test_a_calibration_whose_numbers_changed_on_disk_is_made_again(tmp_path):
    predictions, labels = faces(200, 0)
    Calibration.fit(predictions, labels, np.arange(200), step=3).save(tmp_path)
    assert Calibration.read(tmp_path, 3) is not None
    path = tmp_path / FILE
    stored = json.loads(path.read_text())
    stored["widths"]["age"]["everybody"]["q"] *= 2
    path.write_text(json.dumps(stored))
    assert Calibration.read(tmp_path, 3) is None
    del stored["digest"]  # as older versions wrote it
    path.write_text(json.dumps(stored))
    assert Calibration.read(tmp_path, 3) is not None
