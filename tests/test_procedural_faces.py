"""Drawn faces: reproducible, long-tailed, and with labels that pixels reveal."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from agejax.data.builders import procedural_faces
from agejax.data.builders.procedural_faces import ProceduralFaces
from agejax.data.procedural import drawing, people
from agejax.errors import UserError


def build(data_dir, **options) -> ProceduralFaces:
    return ProceduralFaces(data_dir=str(data_dir), **options)


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """800 images, uint8 [800, 64, 64, 3], and their (age, gender, colouring)."""
    drawn = [drawing.draw(5, i, 64) for i in range(800)]
    labels = [(x.age, x.gender, x.colouring) for _, x in drawn]
    return np.stack([image for image, _ in drawn]), np.array(labels)


def test_a_face_is_a_function_of_seed_index_and_size(tmp_path):
    few = list(build(tmp_path / "few", count=3, seed=4, size=48).faces())
    more = list(build(tmp_path / "more", count=6, seed=4, size=48).faces())
    other = list(build(tmp_path / "other", count=3, seed=9, size=48).faces())
    assert [vars(f) | {"apparent_age_std": 0} for f in few] == [
        vars(f) | {"apparent_age_std": 0} for f in more[:3]
    ]
    assert len({f.image for f in [*more, *other]}) == 9
    assert len({f.id for f in [*more, *other]}) == 9


def test_faces_do_not_depend_on_the_order_they_are_drawn_in():
    forwards = [drawing.draw(0, i, 40)[0] for i in range(4)]
    backwards = [drawing.draw(0, i, 40)[0] for i in reversed(range(4))]
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_another_process_draws_the_same_bytes():
    code = (
        "import sys, hashlib; from agejax.data.builders import procedural_faces as p; "
        "print(hashlib.sha256(p._jpeg(p.draw(3, 11, 64)[0])).hexdigest()); "
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(hashes) == 1


def test_ages_are_long_tailed_like_utkface():
    labels = [people.draw_labels(drawing.generator(1, i)) for i in range(6000)]
    age = np.array([x.age for x in labels])
    assert age.min() == 1
    assert 90 <= age.max() <= people.OLDEST
    share = np.bincount(age // 5, minlength=21) / len(age)
    assert share.argmax() == 5  # 25 to 29
    # shares of UTKFace by five years, 0 to 99, counted in its file names
    utkface = [
        0.091, 0.038, 0.025, 0.040, 0.098, 0.211, 0.097, 0.095, 0.050, 0.045,
        0.055, 0.040, 0.030, 0.024, 0.016, 0.013, 0.010, 0.011, 0.005, 0.002,
    ]  # fmt: skip
    assert np.abs(share[:20] - utkface).sum() / 2 < 0.1  # total variation
    gender = np.mean([x.gender for x in labels])
    assert gender == pytest.approx(0.48, abs=0.03)
    colouring = np.bincount([x.colouring for x in labels]) / len(labels)
    np.testing.assert_allclose(colouring, people.COLOURING_SHARES, atol=0.03)


def test_looks_deviate_by_a_few_years_without_bias():
    off = np.array(
        [(x := people.draw_labels(drawing.generator(2, i))).looks - x.age for i in range(6000)]
    )
    assert abs(off.mean()) < 0.2
    assert 2.0 < np.abs(off).mean() < 3.2


def test_labels_can_be_read_from_the_pixels(sample):
    """Ridge regression on coarse colours and fine detail beats guessing, but is not perfect."""
    images, labels = sample
    grey = images.mean(-1).astype(np.float32)
    detail = [np.abs(g - cv2.GaussianBlur(g, (0, 0), 1.5)) for g in grey]
    features = np.concatenate([
        [cv2.resize(x, (16, 16), interpolation=cv2.INTER_AREA).ravel() / 255 for x in images],
        [cv2.resize(d, (16, 16), interpolation=cv2.INTER_AREA).ravel() / 12 for d in detail],
    ], axis=1)  # fmt: skip
    train, test = np.arange(600), np.arange(600, 800)
    targets = np.column_stack([labels[:, 0], labels[:, 1], np.eye(4)[labels[:, 2]]])
    mean = targets[train].mean(0)
    x = features - features[train].mean(0)
    gram = x[train] @ x[train].T
    dual = np.linalg.solve(gram + 3.0 * np.eye(len(train)), targets[train] - mean)
    predicted = mean + x[test] @ x[train].T @ dual

    error = np.abs(predicted[:, 0] - labels[test, 0]).mean()
    constant = np.abs(np.median(labels[train, 0]) - labels[test, 0]).mean()
    assert 2.5 < error < 0.65 * constant
    gender = ((predicted[:, 1] > 0.5) == labels[test, 1]).mean()
    assert 0.7 < gender < 0.99
    colouring = (predicted[:, 2:].argmax(1) == labels[test, 2]).mean()
    assert 0.6 < colouring < 0.99


def test_one_person_greys_and_wrinkles_with_age():
    """Compares the same person, pose and light at 25 and at 80 years."""
    greyer, wrinkled = [], []
    for i in range(60):
        young, old = (
            drawing.draw_face(drawing.generator(6, i), looks, i % 2, 2, 112).mean(-1)
            for looks in (25, 80)
        )
        greyer.append(old[16:24, 46:66].mean() - young[16:24, 46:66].mean())  # above the forehead
        detail = [np.abs(np.diff(g[60:100, 30:82], axis=1)).mean() for g in (young, old)]
        wrinkled.append(detail[1] / detail[0])
    assert np.mean(np.array(greyer) > 0) > 0.8
    assert np.mean(np.array(wrinkled) > 1) > 0.8


def test_any_size_shows_the_same_face():
    small, large = drawing.draw(0, 7, 64)[0], drawing.draw(0, 7, 128)[0]
    assert large.shape == (128, 128, 3)
    shrunk = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(shrunk - small).mean() < 8


def test_tfds_prepares_and_reads_them_back(tmp_path):
    builder = build(tmp_path, count=20, seed=1, size=64)
    builder.download_and_prepare()
    rows = {row["id"].decode(): row for row in builder.as_data_source("train")}
    assert len(rows) == 20
    for i in range(20):
        image, labels = drawing.draw(1, i, 64)
        row = rows[f"1-{i:06d}"]
        assert row["image"].shape == (64, 64, 3)
        assert np.abs(row["image"].astype(float) - image).mean() < 6  # JPEG
        assert (row["age"], row["gender"], row["ethnicity"]) == (
            labels.age, labels.gender, labels.colouring,
        )  # fmt: skip
        assert row["apparent_age"] == pytest.approx(labels.looks, rel=1e-6)
        assert np.isnan(row["apparent_age_std"])
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("options", [{"count": 0}, {"seed": -1}, {"size": 8}])
def test_impossible_options_are_one_line_errors(tmp_path, options):
    with pytest.raises(UserError, match=next(iter(options))):
        build(tmp_path, **options)


def test_contact_sheet(tmp_path):
    procedural_faces.main(["", f"--output={tmp_path}/docs/faces.png"])
    sheet = cv2.imread(str(tmp_path / "docs" / "faces.png"))
    assert sheet.shape == (8 * drawing.SIZE, len(drawing.SHEET_AGES) * drawing.SIZE, 3)
    with pytest.raises(UserError, match="png"):
        drawing.contact_sheet(tmp_path / "faces.text")


def test_a_folder_of_faces_is_the_data_set_without_its_labels(tmp_path):
    procedural_faces.main(["", f"--output={tmp_path}/faces", "--count=3", "--seed=5"])
    drawn = {face.id: face.image for face in ProceduralFaces(count=3, seed=5).faces()}
    assert {p.stem: p.read_bytes() for p in (tmp_path / "faces").iterdir()} == drawn
    with pytest.raises(UserError, match="--count=-1"):
        procedural_faces.main(["", f"--output={tmp_path}/faces", "--count=-1"])
