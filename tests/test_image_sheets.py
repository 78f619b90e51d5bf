"""The sheets of images that loggers get: which images, in which order, as the network sees them."""

import numpy as np
import pytest
from test_loggers import Recorder

import tiny
from agejax import heads as heads_lib
from agejax.data.sources import Source
from agejax.logging.loggers import Loggers
from agejax.models import lowerings
from agejax.training import image_sheets, sharding
from agejax.training.image_sheets import ImageSheets, sheet

AGES = np.float32([10, 20, 30, np.nan, 50])
# Image i has i in every pixel.
FACES = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 32, 32, 3))


class Images(Recorder):
    def image(self, step, name, image):
        self.got.append((step, name, image))


@pytest.fixture
def sheets_of():
    source = Source(
        name="five", images=np.array(FACES),
        labels={"age": AGES, "gender": np.int32([0, 1, 0, 1, 0])}, ids=np.arange(5).astype(str),
        groups=np.arange(5), label_names={"gender": ("male", "female")}, fingerprint="", skipped=(),
    )  # fmt: skip
    facts = heads_lib.Facts.of(source.labels, source.label_names)

    def make(*names, val=(0, 1, 2, 3, 4), **augment):
        config = tiny.get_config()
        config.log_images = 3
        config.augment.update({"flip": 0.0, "crop": (1.0, 1.0), "brightness": 0.0, "mixup": 0.0})
        config.augment.update(augment)
        heads = heads_lib.create({k: config.heads[k] for k in names}, facts)
        recorder = Images()
        rows = None if val is None else np.array(val)
        return recorder.got, ImageSheets(config, source, rows, heads, Loggers({"one": recorder}))

    return make


def test_images_lie_row_by_row_in_a_square():
    page = sheet(FACES[1:4, :2, :2])
    assert page[..., 0].tolist() == [
        [1, 1, 2, 2],
        [1, 1, 2, 2],
        [3, 3, 255, 255],
        [3, 3, 255, 255],
    ]


def test_a_caption_stands_below_its_image():
    page = sheet(FACES[:2], ["age 10, predicted 20", ""])
    assert page.shape == (32 + 14, 2 * 130, 3)
    assert (page[:32, 130:162] == 1).all()
    assert (page[32:, :130] < 128).any()
    assert (page[32:, 130:] == 255).all()


def test_the_worst_are_those_of_the_largest_known_errors(sheets_of, monkeypatch):
    captions = []
    monkeypatch.setattr(
        image_sheets, "sheet", lambda images, words: captions.extend(words) or images[:, 0, 0, 0]
    )
    got, sheets = sheets_of("gender", "age", val=(1, 4, 3, 2, 0))
    # Errors in the order of val: 1, 20, unknown, 25, 2.
    years = np.float32([21, 30, 99, 5, 12])
    sheets.worst(6, {"gender": np.zeros((5, 2)), "age": years})
    ((step, name, images),) = got
    assert (step, name, images.tolist()) == (6, "val/worst", [2, 4, 0])
    assert captions == ["age 30, predicted 5", "age 50, predicted 30", "age 10, predicted 12"]


def test_without_an_age_or_a_val_split_there_are_no_worst(sheets_of):
    for names, val in ((("gender",), (0, 1)), (("age",), None), (("age",), (3,))):
        got, sheets = sheets_of(*names, val=val)
        sheets.worst(1, {"age": np.float32([1] * len(val or ())), "gender": np.zeros((2, 2))})
        assert got == []


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_first_batch_is_shown_as_augmented(sheets_of, flip):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    batch = {"image": images, "strength": np.ones(4, np.float32)}
    got, sheets = sheets_of("age", flip=flip)
    sheets.augmented([batch], sharding.create_mesh(1, 1), 32)
    ((step, name, page),) = got
    assert (step, name) == (1, "train/augmented")
    np.testing.assert_array_equal(page, sheet(images[:3, :, ::-1] if flip else images[:3]))


def test_the_first_batch_is_augmented_as_one_that_several_devices_hold(sheets_of, monkeypatch):
    """Then no collective of mixup lies in a branch, as in the train step (test_lowering.py)."""
    parts = []

    def build(config, size):
        def view(key, images, strength):
            parts.append(lowerings.batch_parts())
            return images / 255, None

        return view

    monkeypatch.setattr(image_sheets.augment, "build", build)
    _, sheets = sheets_of("age")
    batch = {"image": np.zeros((8, 32, 32, 3), np.uint8), "strength": np.ones(8, np.float32)}
    sheets.augmented([batch], sharding.create_mesh(8, 1), 32)
    assert parts == [8]


def test_cached_features_have_no_images_to_show(sheets_of):
    got, sheets = sheets_of("age")
    sheets._config.model.cached_views = 2
    sheets.augmented([], sharding.create_mesh(1, 1), 32)
    assert got == []


def test_by_default_no_image_is_logged(sheets_of):
    got, sheets = sheets_of("age")
    sheets._count = tiny.get_config().log_images
    sheets.worst(1, {"age": AGES + 1})
    sheets.augmented([], sharding.create_mesh(1, 1), 32)
    assert got == []
