"""Degraded images and views of one face: what is done to them, and the figures that come of it."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from agejax.evaluation import bootstrap, degradations, fitting, gates, robustness
from agejax.evaluation.scored import score
from agejax.faces.geometry import Geometry
from agejax.reporting import robustness as sections
from agejax.runs.run import Run

SIZE = 80
# Both eyes, the tip of the nose, both corners of the mouth, in edges.
MARKS = np.array([[0.30, 0.32], [0.70, 0.32], [0.50, 0.50], [0.34, 0.69], [0.66, 0.69]])
FRAME = Geometry(MARKS, 0 * MARKS, {}, images=300, found=300)


def face() -> np.ndarray:
    """A bright disc with dark eyes on a shaded ground, uint8 [S, S, 3]."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    image = np.stack([80 + 60 * x, 90 + 60 * y, 100 + 0 * x], axis=-1)
    image[np.hypot(x - 0.5, y - 0.5) < 0.4] = (200, 160, 130)
    for eye in MARKS[:2]:
        image[np.hypot(x - eye[0], y - eye[1]) < 0.05] = 30
    return image.astype(np.uint8)


def at(point: np.ndarray) -> tuple[int, int]:
    """Row and column of a point in edges."""
    return int(point[1] * SIZE), int(point[0] * SIZE)


CHANGES = [
    (kind, name, change)
    for kind, levels in {**degradations.kinds(FRAME), "views": degradations.views()}.items()
    for name, change in levels.items()
]


@pytest.mark.parametrize(("kind", "name", "change"), CHANGES, ids=lambda x: x if x else "")
def test_every_change_gives_the_same_image_again_and_leaves_the_original(kind, name, change):
    image = face()
    first, again = change(image, 3), change(image.copy(), 3)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, face())
    assert (first.shape, first.dtype) == (image.shape, np.uint8)
    if name != "as it is":
        assert (first != image).any()


@pytest.mark.parametrize("kind", ["blur", "noise", "JPEG", "low resolution"])
def test_severities_grow(kind):
    image = face().astype(float)
    off = [
        np.abs(change(face(), 0) - image).mean()
        for change in degradations.kinds(FRAME)[kind].values()
    ]
    assert all(a < b for a, b in itertools.pairwise(off)), off


def test_noise_is_as_strong_as_it_says_and_differs_between_images():
    grey = np.full((200, 200, 3), 128, np.uint8)
    one, other = (degradations.noise(grey, number, sigma=16) for number in (0, 1))
    assert one.astype(float).std() == pytest.approx(16, rel=0.02)
    assert one.mean() == pytest.approx(128, abs=0.2)
    assert (one != other).mean() > 0.9


def test_a_stop_doubles_the_light():
    image = np.array([[[0, 100, 255]]], np.uint8)
    twice = 255 * (2 * (100 / 255) ** 2.2) ** (1 / 2.2)
    assert degradations.expose(image, 0, stops=1)[0, 0].tolist() == [0, round(twice), 255]
    back = degradations.expose(degradations.expose(image, 0, stops=1), 0, stops=-1)
    assert back[0, 0].tolist()[:2] == [0, 100]


def test_resolution_is_lost_in_blocks_and_small_images_stay():
    image = np.repeat(np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 16, 16, 0), 16, 1)
    image = np.repeat(image, 3, axis=2)
    small = degradations.shrink(image, 0, edge=4)
    middles = slice(8, None, 16)  # of blocks of 16 pixels; half a pixel off adds 64 / 32
    np.testing.assert_allclose(
        small[middles, middles].astype(int), image[middles, middles].astype(int), atol=3
    )
    np.testing.assert_array_equal(degradations.shrink(image, 0, edge=64), image)


def test_occlusions_cover_what_they_are_named_after():
    image, marks = face(), MARKS
    eyes, mouth = [at(mark) for mark in marks[:2]], at(marks[3:].mean(axis=0))
    glasses = degradations.sunglasses(image, 0, marks=marks)
    assert all(tuple(glasses[eye]) == degradations.GLASS for eye in eyes)
    np.testing.assert_array_equal(glasses[SIZE // 2 :], image[SIZE // 2 :])
    cloth = degradations.mask(image, 0, marks=marks)
    assert tuple(cloth[mouth]) == degradations.CLOTH
    np.testing.assert_array_equal(cloth[: int(0.37 * SIZE)], image[: int(0.37 * SIZE)])
    covered = (degradations.hand(image, 0, marks=marks) != image).any(axis=-1)
    assert covered[at(marks[3])]
    assert not covered[at(marks[4])]
    assert 0.05 < covered.mean() < 0.3
    assert "occlusion" in degradations.kinds(FRAME)
    assert "occlusion" not in degradations.kinds(None)  # nobody knows where the eyes are
    # Where a run frames faces otherwise, the glasses move with the eyes.
    lower = degradations.sunglasses(image, 0, marks=marks + np.array([0, 0.2]))
    assert tuple(lower[at(marks[0] + np.array([0, 0.2]))]) == degradations.GLASS
    assert tuple(lower[eyes[0]]) != degradations.GLASS


def test_views_move_by_what_they_say():
    image = face()
    np.testing.assert_array_equal(degradations.views()["mirrored"](image, 0), image[:, ::-1])
    right = degradations.move(image, 0, right=4 / SIZE)
    np.testing.assert_array_equal(right[:, 4:], image[:, :-4])
    down = degradations.move(image, 0, down=4 / SIZE)
    np.testing.assert_array_equal(down[4:], image[:-4])
    turned = degradations.move(image, 0, degrees=90.0)
    np.testing.assert_array_equal(turned, np.rot90(image))


# -------------------------------------------------------------------------------------- figures


def test_the_spread_over_views_by_hand():
    views = np.array([[20.0, 24, 30, 16], [22.0, 24, 30, 27], [24.0, 24, 33, 17]])
    age = np.array([19.0, 40, 30, 16])
    parts = {"x": [("a", np.array([True, True, False, False])), ("none", np.zeros(4, bool))]}
    found = robustness.spread(views, age, parts, np.arange(4))
    sd = [2.0, 0.0, np.sqrt(3), np.std([16, 27, 17], ddof=1)]
    assert found["sd"] == pytest.approx(np.mean(sd))
    assert found["range"] == (4 + 0 + 3 + 11) / 4
    assert found["range_p95"] == pytest.approx(np.quantile([0, 3, 4, 11], 0.95))
    assert (found["views"], found["n"]) == (3, 4)
    # Only the fourth looks 25 in some views and younger in others.
    assert found["gate_changes"]["rate"] == 0.25
    assert found["gate_changes_minors"] == gates.rate(np.array([True]))
    assert found["gate_changes_adults"] == gates.rate(np.zeros(3, bool))
    assert [(row["name"], row["n"], row["sd"]) for row in found["groups"]["x"]] == [("a", 2, 1.0)]
    ((low, high),) = bootstrap.intervals(np.array(sd), np.ones((4, 1), bool), np.arange(4))
    assert found["sd_ci95"] == pytest.approx([low, high])


def test_copies_of_a_photo_by_hand():
    predicted = np.array([30.0, 10, 33, 7, 31, 50], np.float32)
    found = robustness.of_copies(predicted, np.array([5, 2, 5, 2, 5, 9]))
    assert found == {"n": 2, "images": 5, "range": 3.0, "largest": 3.0}
    alone = robustness.of_copies(predicted, np.arange(6))
    assert alone == {"n": 0, "images": 0, "range": None, "largest": None}


def test_the_sample_takes_one_of_each_group_of_copies():
    duplicates = np.array([0, 0, 2, 3, 3, 5, 6, 0])
    assert robustness.sample(duplicates, 9).tolist() == [0, 2, 3, 5, 6]
    assert robustness.sample(duplicates, 3).tolist() == [0, 3, 6]


def test_a_run_is_judged_on_the_same_images_made_worse(trained, monkeypatch):
    run = Run.open(trained)
    scored = score(run, split="all")
    monkeypatch.setattr(robustness, "IMAGES", 40)
    kinds = {
        "dark": {
            "a little": lambda image, number: image // 2,
            "black": lambda image, number: 0 * image,
        }
    }
    monkeypatch.setattr(degradations, "kinds", lambda geometry: kinds)
    found = robustness.measure(scored, fitting.calibrate(run))
    json.dumps(found, allow_nan=False)
    rows = robustness.sample(scored.duplicates, 40)
    error = scored.predictions["age"][rows] - scored.labels["age"][rows]
    clean, dark, black = found["targets"]["age"]["dark"]
    assert [row["name"] for row in (clean, dark, black)] == ["as it is", "a little", "black"]
    assert clean["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert clean["change"] == 0
    assert black["change"] == pytest.approx(black["mae"] - clean["mae"])
    # Black images are all alike, so all get one prediction, and the error is that of one number.
    size = run.config.eval.batch_size
    none = np.zeros((size, *scored.source.images.shape[1:]), np.uint8)
    alike = run.predict([{"image": none, "weight": np.ones(size, np.float32)}])["age"][0]
    black_error = alike - scored.labels["age"][rows]
    assert black["mae"] == pytest.approx(np.abs(black_error).mean(), rel=1e-3)
    # Paired: much narrower than the errors of two samples of images would be.
    change = np.abs(black_error) - np.abs(error)
    theirs = stats.bootstrap((change,), np.mean, method="percentile", n_resamples=4000,
                             rng=np.random.default_rng(0)).confidence_interval  # fmt: skip
    tolerance = 0.1 * float(theirs.high - theirs.low)
    assert black["change_ci95"] == pytest.approx([theirs.low, theirs.high], abs=tolerance)
    assert 0 <= black["coverage"] <= 1
    assert found["targets"]["gender"]["dark"][0]["change"] == 0
    assert found["stability"]["n"] == found["n"] == 40
    assert found["stability"]["sd"] > 0

    charts = sections.charts(found, 0.1)
    assert {"age under dark", "gender under dark", "age coverage when degraded"} <= charts.keys()
    degraded, stable = sections.sections(found, charts)
    assert f"<td>{black['mae']:.3f}</td>" in degraded.body
    assert f"{found['stability']['sd']:.2f} years" in stable.body
    assert sections.sections(None, {}) == []
