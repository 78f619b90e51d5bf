"""predict --annotate: copies of images with boxes and ages, and never a file replaced."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from agejax import predict
from agejax.errors import UserError
from agejax.predicting import annotation
from agejax.process.command import run_command

GREY = np.full((300, 400, 3), 100, np.uint8)
FACE = {"age": 34.4, "age_low": 28.0, "age_high": 41.0, "box": [100.0, 150.0, 200.0, 250.0]}


def changed(image):
    return (np.asarray(image) != 100).any(axis=2)


def test_a_box_is_drawn_around_a_face_and_its_age_above():
    image = annotation.drawn(GREY, [FACE])
    where = changed(image)
    for x, y in [(100, 200), (200, 200), (150, 150), (150, 250)]:  # a point of each side
        assert image.getpixel((x, y)) == annotation.COLOUR
    assert not where[160:240, 110:190].any()  # the face itself
    assert where[138:149, 102:150].all()  # the label
    assert (np.asarray(image) == annotation.INK).all(axis=2)[125:150].any()
    assert not where[:120].any()
    assert not where[260:].any()


def test_a_label_stays_inside_the_image():
    for box in ([0.0, 0.0, 50.0, 50.0], [380.0, 150.0, 400.0, 200.0]):
        ink = (np.asarray(annotation.drawn(GREY, [FACE | {"box": box}])) == 0).all(axis=2)
        alone = (np.asarray(annotation.drawn(GREY, [FACE])) == 0).all(axis=2)
        assert ink.sum() == alone.sum()


def test_a_label_has_the_age_and_its_interval_or_the_classes():
    assert annotation._text(FACE) == "34 (28-41)"
    assert annotation._text({"age": 34.6}) == "35"
    apparent = {"apparent_age": 40.2, "apparent_age_low": 33.1, "apparent_age_high": 47.0}
    assert annotation._text(apparent) == "40 (33-47)"
    assert annotation._text(FACE | apparent) == "34 (28-41)"
    classes = {"gender": {"male": 0.2, "female": 0.8}, "score": 0.9}
    assert annotation._text(classes) == "female"


def test_copies_lie_as_their_images_do(tmp_path):
    paths = [pathlib.Path(p) for p in ("a/photo.jpg", "b/photo.jpg", "b/c/photo.jpg")]
    copies = annotation.places(paths, tmp_path)
    assert copies == {str(path): tmp_path / path for path in paths}
    (alone,) = annotation.places(paths[:1], tmp_path).values()
    assert alone == tmp_path / "photo.jpg"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "photo.jpg").write_text("mine")
    with pytest.raises(UserError, match=r"^--annotate: .*/b/photo\.jpg exists already"):
        annotation.places(paths, tmp_path)


def test_the_command_writes_upright_copies_once(trained, faces, tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    lying = Image.open(next(faces.iterdir())).resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    lying.save(photos / "a.jpg", exif=exif)
    lying.save(photos / "more" / "a.png")
    before = (photos / "a.jpg").read_bytes()
    folder = tmp_path / "drawn"
    command = ["predict", f"--workdir={trained}", f"--annotate={folder}", str(photos)]
    assert run_command(predict.main, command) == 0
    out, err = capsys.readouterr()
    assert len([json.loads(line) for line in out.splitlines()]) == 2
    assert f"are in {folder}/" in err
    sizes = {}
    for path in folder.rglob("*.*"):
        with Image.open(path) as image:
            sizes[str(path.relative_to(folder))] = image.format, image.size
            assert 0x0112 not in image.getexif()
    assert sizes == {"a.jpg": ("JPEG", (40, 60)), "more/a.png": ("PNG", (60, 40))}
    assert (photos / "a.jpg").read_bytes() == before
    assert run_command(predict.main, command) == 2
    assert f"{folder}/a.jpg exists already; name another" in capsys.readouterr().err
