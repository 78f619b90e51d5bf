"""Data is prepared and decoded once, found again, and survives failures in between."""

import io
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from PIL import Image
from test_builders import pack

from agejax.data import cache, duplicates, sources
from agejax.data.mapped import MappedArray
from agejax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


def photo(seed: int, size: int = 80) -> np.ndarray:
    """An image of smooth random structure with some detail, uint8 [size, size, 3]."""
    rng = np.random.default_rng(seed)
    image = sum(
        cv2.resize(rng.normal(0, scale, (n, n, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
        for n, scale in ((3, 40), (8, 30), (20, 20))
    )
    return np.clip(image + 128, 0, 255).astype(np.uint8)


def encode(image: np.ndarray, form: str = "JPEG", **options) -> bytes:
    Image.fromarray(image).save(out := io.BytesIO(), form, **options)
    return out.getvalue()


def chip(i: int) -> str:
    return f"{10 + i}_{i % 2}_{i % 5}_2017{i:04d}.jpg.chip.jpg"


@pytest.fixture(scope="module")
def files():
    made = {f"UTKFace/{chip(i)}": encode(photo(i), quality=95) for i in range(24)}
    return made | {"UTKFace/39_1_2017.jpg.chip.jpg": encode(photo(99))}


@pytest.fixture
def archive(files, tmp_path):
    return pack(files, tmp_path / "UTKFace.tar.gz")


def load(path, cache, size=32, **arguments):
    return sources.load("utkface", str(path), image_size=size, cache_dir=str(cache), **arguments)


def test_a_source_holds_the_pixels_and_labels_of_its_files(archive, files, tmp_path):
    source = load(archive, tmp_path / "cache", size=80)
    assert source.images.shape == (24, 80, 80, 3)
    assert source.images.dtype == np.uint8
    assert isinstance(source.images, MappedArray)
    assert sorted(source.ids) == sorted(chip(i) for i in range(24))
    for row, name in enumerate(source.ids):
        age, gender, race = (int(part) for part in name.split("_")[:3])
        assert source.labels["age"][row] == age
        assert source.labels["gender"][row] == gender
        assert source.labels["ethnicity"][row] == race
        with Image.open(io.BytesIO(files[f"UTKFace/{name}"])) as truth:
            difference = np.abs(source.images[row].astype(int) - np.asarray(truth))
        assert difference.mean() < 1
    assert np.isnan(source.labels["apparent_age"]).all()
    assert source.label_names["gender"] == ("male", "female")
    assert [line.split(":")[0] for line in source.skipped] == ["39_1_2017.jpg.chip.jpg"]


def test_archive_zip_and_folder_are_one_source(files, tmp_path):
    made = [
        load(pack(files, tmp_path / kind), tmp_path / "cache")
        for kind in ("x.tar.gz", "x.zip", "folder")
    ]
    assert len({source.fingerprint for source in made}) == 1
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].images, other.images)
        np.testing.assert_array_equal(made[0].ids, other.ids)


def test_the_fingerprint_follows_content_not_place_or_size(archive, files, tmp_path):
    source = load(archive, tmp_path / "cache")
    moved = tmp_path / "elsewhere" / "faces.tgz"
    moved.parent.mkdir()
    archive.rename(moved)
    found = []
    original = cache._make
    cache._make = lambda *a: found.append(a) or original(*a)
    try:
        assert load(moved, tmp_path / "cache").fingerprint == source.fingerprint
        assert not found, "a moved archive was prepared again"
    finally:
        cache._make = original
    assert load(moved, tmp_path / "cache", size=16).fingerprint == source.fingerprint
    changed = dict(files)
    changed[f"UTKFace/{chip(3)}"] = encode(photo(1003))
    other = load(pack(changed, tmp_path / "other.tar.gz"), tmp_path / "cache")
    assert other.fingerprint != source.fingerprint


def test_a_changed_folder_is_prepared_again(files, tmp_path):
    folder = pack(files, tmp_path / "folder")
    assert len(load(folder, tmp_path / "cache").ids) == 24
    (folder / "UTKFace" / chip(0)).unlink()
    assert len(load(folder, tmp_path / "cache").ids) == 23


def test_links_in_a_circle_or_to_nothing_do_no_harm(files, tmp_path):
    folder = pack(files, tmp_path / "folder")
    for name in ("a", "b"):
        (folder / name).symlink_to(folder, target_is_directory=True)
    (folder / "1_0_0_2018.jpg").symlink_to("nowhere")
    (folder / "2_0_0_2018.jpg").symlink_to(f"UTKFace/{chip(0)}")
    assert len(load(folder, tmp_path / "cache").ids) == 25


def test_what_cannot_be_decoded_is_skipped_and_listed(files, tmp_path):
    whole = encode(photo(1))
    changed = files | {
        "1_0_0_2018.jpg": b"not an image",
        "2_0_0_2018.jpg": whole[: len(whole) // 2],
        "3_0_0_2018.jpg": b"",
    }
    source = load(pack(changed, tmp_path / "x.zip"), tmp_path / "cache")
    assert len(source.ids) == len(source.images) == 24
    names = {line.split(":")[0] for line in source.skipped}
    assert names == {f"{i}_0_0_2018.jpg" for i in (1, 2, 3)} | {"39_1_2017.jpg.chip.jpg"}
    # Their labels are kept, so that losses can be counted by group; one file has no labels.
    known = [{"age": float(i), "gender": "male", "ethnicity": "White"} for i in (1, 2, 3)]
    assert sorted(source.undecoded, key=lambda labels: labels["age"]) == known


def test_a_cache_of_an_older_version_does_not_know_the_labels_of_what_is_lost(files, tmp_path):
    path = pack(files | {"1_0_0_2018.jpg": b"not an image"}, tmp_path / "x.zip")
    assert len(load(path, tmp_path / "cache").undecoded) == 1
    (facts,) = (tmp_path / "cache").glob("*/*px/source.json")
    older = {k: v for k, v in json.loads(facts.read_text()).items() if k != "undecoded"}

    def opened(changed):
        facts.write_text(json.dumps(older | changed))
        return sources._open(facts.parent).undecoded

    assert opened({}) is None
    assert opened({"skipped": []}) == ()
    for wrong in ([{"age": "old"}], [{"gender": 1}], [{"name": "x"}], [3], {}, "x"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            opened({"undecoded": wrong})


def test_a_common_reason_for_skipping_files_hides_no_other():
    rows = [f"{i}.jpg: no row in x.csv" for i in range(40)]
    widths = [f"{i}.png: {i} pixels wide" for i in range(2)]
    assert sources.listed([*rows, "a.jpg: cannot be decoded", *widths]) == [
        *(f"skipped {line}" for line in rows[:3]),
        "and 37 more for this reason",
        "skipped a.jpg: cannot be decoded",
        *(f"skipped {line}" for line in widths),
    ]
    several = sources.listed([f"{i}.jpg: reason {chr(65 + i)}" for i in range(40)])
    assert several[-2:] == ["skipped 29.jpg: reason ^", "and 10 more lines"]


def test_what_is_skipped_is_quoted_on_one_line(files, tmp_path, capsys):
    path = pack(files | {"a\n\x1b[2J.jpg": files[f"UTKFace/{chip(0)}"]}, tmp_path / "x.zip")
    source = load(path, tmp_path / "cache")
    assert any(line.startswith(r"a\n\x1b[2J.jpg: not named") for line in source.skipped)
    assert r"skipped a\n\x1b[2J.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["1_0_0_2018.jpg", "face.jpg", "notes.txt"])
def test_an_archive_without_a_usable_image_is_refused(name, tmp_path):
    path = pack({name: b"nothing"}, tmp_path / "x.zip")
    for _ in range(2):  # nothing of the first try may pass for a cache
        with pytest.raises(UserError, match="no usable image"):
            load(path, tmp_path / "cache")


def test_an_empty_path_is_not_the_current_folder(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(archive.parent)
    monkeypatch.setattr("agejax.data.builders.base.MANUAL", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no image_folder in .*nowhere"):
        sources.load("image_folder", "", image_size=16, cache_dir=str(tmp_path / "cache"))


def test_an_unknown_option_is_named(archive, tmp_path):
    with pytest.raises(UserError, match="'crop'"):
        load(archive, tmp_path / "cache", options={"crop": 3})


# ----------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P"])
def test_every_colour_mode_becomes_rgb(mode):
    image = cv2.GaussianBlur(photo(5), (0, 0), 4)
    Image.fromarray(image).convert(mode).save(
        out := io.BytesIO(), "PNG" if mode in ("RGBA", "P") else "JPEG"
    )
    with Image.open(out) as file:
        truth = np.asarray(file.convert("RGB")).astype(int)
    assert np.abs(sources.decode(out.getvalue(), 80) - truth).mean() < 2


def test_decode_takes_the_centre_square():
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255
    assert sources.decode(encode(wide, "PNG"), 40).min() == 255
    assert sources.decode(encode(wide.swapaxes(0, 1).copy(), "PNG"), 20).min() == 255
    assert sources.decode(encode(wide, "PNG"), 96).shape == (96, 96, 3)


def test_shrinking_averages_instead_of_aliasing():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 254
    small = sources.decode(encode(stripes, "PNG"), 32)
    np.testing.assert_allclose(small, 127, atol=1)


def test_decode_refuses_what_is_no_image_or_too_large(monkeypatch):
    whole = encode(photo(0))
    for data in (b"", b"text", whole[:200], whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match=r"image|decoded|empty"):
            sources.decode(data, 32)
    monkeypatch.setattr(sources, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"pixels are more than 0.001 million; make it smaller"):
        sources.decode(whole, 32)


# ----------------------------------------------------------------------------------- the cache


def test_a_killed_preparation_is_not_taken_for_a_finished_one(archive, tmp_path):
    """kill -9 at several moments; the next start gives the result of an undisturbed one."""
    truth = load(archive, tmp_path / "undisturbed")
    program = (
        "import sys, time\n"
        "from agejax.data import sources\n"
        "step = sources._decode_example\n"
        "def slow(*a):\n"
        "    time.sleep(.05)\n"
        "    return step(*a)\n"
        "sources._decode_example = slow\n"
        "print('go', flush=True)\n"
        f"sources.load('utkface', {str(archive)!r}, image_size=32, cache_dir=sys.argv[1])\n"
    )
    for delay in (0.05, 0.4, 1.2):
        cache = tmp_path / f"cache{delay}"
        with subprocess.Popen(
            [sys.executable, "-c", program, str(cache)], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        source = load(archive, cache)
        assert source.fingerprint == truth.fingerprint
        np.testing.assert_array_equal(source.images, truth.images)
        assert not list(cache.rglob("*.partial"))


@pytest.mark.parametrize(
    ("module", "where"), [(sources, "_decode_all"), (sources, "_tfds"), (cache, "_sync")]
)
def test_an_error_on_the_way_leaves_nothing_behind(module, where, archive, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(module, where, fails)
        with pytest.raises(RuntimeError, match="power cut"):
            load(archive, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if "px" in p.name and p.is_dir()]
    assert len(load(archive, tmp_path / "cache").ids) == 24


def test_two_processes_at_once_get_the_same(archive, tmp_path):
    program = (
        "from agejax.data import sources\n"
        f"s = sources.load('utkface', {str(archive)!r}, image_size=32,"
        f" cache_dir={str(tmp_path / 'cache')!r})\n"
        "print(s.fingerprint, int(s.images[:].sum()))\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    (out, err), (other, other_err) = (process.communicate() for process in both)
    assert out == other != ""
    assert (err + other_err).count("24 images") == 1, "prepared twice"


def test_a_full_disk_is_one_line(archive, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_sync", full)
    with pytest.raises(UserError, match=r"^disk full: cannot write to the cache "):
        load(archive, tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_named(archive, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"Permission denied.*cache_dir"):
        load(archive, tmp_path / "cache")


def test_a_worker_process_maps_the_file_again(archive, tmp_path):
    source = load(archive, tmp_path / "cache", size=64)
    data = pickle.dumps(source)
    assert len(data) < source.images.nbytes / 10
    copy = pickle.loads(data)
    assert isinstance(copy.images, MappedArray)
    np.testing.assert_array_equal(copy.images, source.images)
    np.testing.assert_array_equal(copy.labels["age"], source.labels["age"])


# ---------------------------------------------------------------------------------- duplicates


def versions(image: np.ndarray) -> dict[str, bytes]:
    """Typical copies of an image."""
    size = image.shape[0]
    bright = np.clip(image * 0.8 + 20, 0, 255).astype(np.uint8)
    cut = image[3 : size - 2, 2 : size - 3]
    return {
        "same bytes": encode(image, quality=95),
        "recompressed": encode(image, quality=40),
        "smaller": encode(cv2.resize(image, (size // 2,) * 2, interpolation=cv2.INTER_AREA)),
        "larger": encode(cv2.resize(image, (size * 2,) * 2, interpolation=cv2.INTER_CUBIC)),
        "mirrored": encode(image[:, ::-1].copy()),
        "grey": encode(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)),
        "brighter": encode(bright),
        "cut": encode(cv2.resize(cut, (size, size))),
    }


def test_copies_get_one_group_and_other_pictures_none(files, tmp_path):
    planted = dict(files)
    for i, data in enumerate(versions(photo(3)).values()):
        planted[f"UTKFace/{50 + i}_0_0_2020{i}.jpg"] = data
    source = load(pack(planted, tmp_path / "x.zip"), tmp_path / "cache")
    group = source.groups[list(source.ids).index(chip(3))]
    members = set(source.ids[source.groups == group])
    assert members == {chip(3), *(f"{50 + i}_0_0_2020{i}.jpg" for i in range(8))}
    assert len(np.unique(source.groups)) == 24


def test_a_group_has_the_number_of_its_first_row_and_links_are_transitive():
    pairs = np.array([[1, 4], [4, 6], [2, 3]])
    np.testing.assert_array_equal(duplicates.merge(pairs, 7), [0, 1, 2, 2, 1, 5, 1])


def test_many_images_are_compared_a_few_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (300, 8, 8), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    thumbnails[150:] = thumbnails[:150, :, ::-1]  # mirrored copies
    whole = duplicates.near_pairs(thumbnails)
    assert {(i, i + 150) for i in range(150)} <= {tuple(pair) for pair in whole.tolist()}
    largest, count = 0, np.bitwise_count

    def counted(x):
        nonlocal largest
        largest = max(largest, x.size)
        return count(x)

    monkeypatch.setattr(np, "bitwise_count", counted)
    monkeypatch.setattr(duplicates, "PAIRS", 2000)
    np.testing.assert_array_equal(duplicates.near_pairs(thumbnails), whole)
    assert largest <= 2000


def test_flat_images_are_copies_only_where_their_files_are():
    thumbnails = np.full((4, 64, 64), 9, np.uint8)
    groups = duplicates.groups(4, thumbnails, [["a", "b", "a", "c"], ["", "x", "", "x"]])
    np.testing.assert_array_equal(groups, [0, 1, 0, 1])


def test_the_real_archive(real_utkface):
    real = load(*real_utkface)
    assert real.images.shape == (19_009, 32, 32, 3)
    assert len(real.skipped) == 2
    assert len(set(real.ids)) == 19_009
    sizes = np.unique(real.groups, return_counts=True)[1]
    assert 650 <= (sizes > 1).sum() <= 750  # 700 when the thresholds were set by eye
    assert sizes.max() <= 8  # no chain of look-alikes
