"""The decoded cache: damage is found at the first use and repaired, without the archive."""

import argparse
import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from packing import jpeg, pack
from test_sources import ROOT, chip

from agejax.config import default
from agejax.data import cache, flags, mixture, opening, prepare, sources
from agejax.errors import UserError
from agejax.process.command import run_command

DECODED = ("images.u8", "labels.npz", "source.json", "digests.json")
FILES = {f"UTKFace/{chip(i)}": jpeg(i) for i in range(12)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return pack(FILES, tmp_path_factory.mktemp("archive") / "UTKFace.tar.gz")


@pytest.fixture(scope="module")
def made(archive, tmp_path_factory):
    """A cache folder, and its contents."""
    place = tmp_path_factory.mktemp("made")
    source = load(archive, place)
    return place, (np.array(source.images), source.labels, source.ids.tolist(), source.fingerprint)


@pytest.fixture
def place(made, tmp_path):
    """A cache folder to damage."""
    shutil.copytree(made[0], tmp_path / "cache")
    return tmp_path / "cache"


def load(path, place, size=16, **arguments):
    return sources.load("utkface", str(path), image_size=size, cache_dir=str(place), **arguments)


def decoded(place, name=""):
    return next((place / "utkface").glob("*-16px")) / name


def assert_same(source, truth):
    images, labels, ids, fingerprint = truth
    np.testing.assert_array_equal(source.images, images)
    for name, values in labels.items():
        np.testing.assert_array_equal(source.labels[name], values)
    assert source.ids.tolist() == ids
    assert source.fingerprint == fingerprint


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# --------------------------------------------------------------------------------- found, made good


@pytest.mark.parametrize("where", [0, 0.3, 0.999])
@pytest.mark.parametrize("file", DECODED)
def test_one_flipped_bit_is_found_and_made_good(file, where, archive, place, made, capsys):
    path = decoded(place, file)
    flip(path, int(where * path.stat().st_size))
    assert_same(load(archive, place), made[1])
    err = capsys.readouterr().err.splitlines()
    assert len([line for line in err if "is damaged (" in line]) == 1
    assert_same(load(archive, place), made[1])
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.parametrize("file", ["images.u8", "labels.npz"])
def test_every_byte_of_every_chunk_counts(file, archive, tmp_path, monkeypatch):
    # Files have several chunks, chunks several pieces, and no size divides another.
    monkeypatch.setattr(cache, "CHUNK", 1000)
    monkeypatch.setattr(cache, "PIECE", 300)
    load(archive, tmp_path)
    path = decoded(tmp_path, file)
    whole, size = path.read_bytes(), path.stat().st_size
    assert size > 1500
    assert cache.check(path.parent, again=True) > size
    for at in (0, 299, 300, 999, 1000, 1450, size - 1):
        flip(path, at)
        with pytest.raises(cache.Damaged, match=f"{file} has changed"):
            cache.check(path.parent, again=True)
        path.write_bytes(whole)
    cache.check(path.parent, again=True)


STATES = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00" * 30),
    "a number": lambda path: path.write_text("3"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "null": lambda path: path.write_text("null"),
    "no keys": lambda path: path.write_text("{}"),
    "other keys": lambda path: path.write_text('{"a": 1}'),
    "nested deep": lambda path: path.write_text("[" * 100_000),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("file", [*DECODED, "whole.json"])
def test_a_file_in_any_state_is_made_good_with_one_line(file, archive, place, made, capsys):
    for state, change in STATES.items():
        change(decoded(place, file))
        assert_same(load(archive, place), made[1])
        err = capsys.readouterr().err.splitlines()
        assert len([line for line in err if "is damaged (" in line]) == 1, state
        assert all(len(line) < 500 for line in err)


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (sources, "MappedArray", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
        (sources, "MappedArray", MemoryError()),
        (cache, "_checksum", OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
        (cache, "_checksum", OSError(errno.EACCES, os.strerror(errno.EACCES))),
    ],
)
def test_a_folder_that_this_process_cannot_read_now_stays(
    module, name, error, archive, place, made, monkeypatch, capsys
):
    def fail(*arguments):
        raise error

    before = os.stat(decoded(place))
    monkeypatch.setattr(cache, "_checked", {})
    with monkeypatch.context() as patched:
        patched.setattr(module, name, fail)
        with pytest.raises((UserError, MemoryError)) as caught:
            load(archive, place)
    assert "damaged" not in capsys.readouterr().err
    assert isinstance(error, MemoryError) or os.strerror(error.errno) in str(caught.value)
    other_place = getattr(error, "errno", None) == errno.EACCES  # would that help?
    assert ("--config.data.cache_dir" in str(caught.value)) == other_place
    assert os.stat(decoded(place)).st_ino == before.st_ino
    assert_same(load(archive, place), made[1])


def test_a_folder_that_is_a_file_or_a_link_is_made_good(archive, place, made):
    for change in (
        lambda path: path.write_text("x"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.mkdir(),
    ):
        shutil.rmtree(decoded(place))
        change(place / decoded(made[0]).relative_to(made[0]))
        assert_same(load(archive, place), made[1])


def test_damaged_records_are_prepared_again(archive, place, made, capsys):
    records = next((place / "utkface").glob("*-records"))
    flip(max(records.rglob("*.array_record*"), key=lambda path: path.stat().st_size), 100)
    shutil.rmtree(decoded(place))
    assert_same(load(archive, place), made[1])
    assert "has changed since it was written) and is rebuilt" in capsys.readouterr().err


def test_a_process_reads_a_whole_folder_once(archive, place, made, monkeypatch):
    load(archive, place)
    monkeypatch.setattr(cache, "_checksums", None)
    assert_same(load(archive, place), made[1])


def test_remembered_copies_across_parts_are_looked_for_again_when_damaged(place, archive, capsys):
    other = pack(dict(list(FILES.items())[:6]), archive.parent / "other.zip")
    parts = {
        name: {"name": "utkface", "source": str(path)}
        for name, path in {"a": archive, "b": other}.items()
    }
    both = mixture.load(parts, image_size=16, cache_dir=str(place))
    groups = both.groups
    assert len(np.unique(groups)) == 12
    assert {id.partition("/")[2] for id in both.ids[groups[12:]]} == {chip(i) for i in range(6)}
    pairs = next((place / "copies").glob("*/pairs.npz"))
    for change in (lambda path: flip(path, 200), STATES["empty"], STATES["a folder"]):
        change(pairs)
        capsys.readouterr()
        again = mixture.load(parts, image_size=16, cache_dir=str(place)).groups
        np.testing.assert_array_equal(again, groups)
        assert capsys.readouterr().err.count("is damaged (") == 1


# ------------------------------------------------------------------------- caches of older versions


def make_old(place):
    """Makes the folder as older versions did, without checksums."""
    for whole in place.rglob("whole.json"):
        sizes = json.loads(whole.read_text())
        del sizes["digests.json"]
        whole.write_text(json.dumps(sizes))
        (whole.parent / "digests.json").unlink()


def test_a_cache_without_checksums_serves_and_gets_them(archive, place, made, capsys):
    make_old(place)
    assert_same(load(archive, place), made[1])
    assert capsys.readouterr().err == ""
    flip(decoded(place, "images.u8"), 1000)
    assert_same(load(archive, place), made[1])
    assert "images.u8 has changed" in capsys.readouterr().err


def test_damaged_records_without_checksums_are_named(archive, place, capsys):
    make_old(place)
    records = next((place / "utkface").glob("*-records"))
    flip(max(records.rglob("*.array_record*"), key=lambda path: path.stat().st_size), 100)
    shutil.rmtree(decoded(place))
    with pytest.raises(UserError, match=r"-records is damaged .*remove it"):
        load(archive, place)
    shutil.rmtree(records)
    assert len(load(archive, place).ids) == 12


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [12, 16, 16, 4]),
        ("shape", [11, 16, 16, 3]),
        ("shape", 3),
        ("label_names", ["male"]),
        ("label_names", {"gender": [1, 2]}),
        ("fingerprint", None),
        ("skipped", 7),
    ],
)
def test_what_does_not_fit_together_is_made_again_without_checksums_too(
    key, value, archive, place, made, capsys
):
    make_old(place)
    path = decoded(place, "source.json")
    text = json.dumps(json.loads(path.read_text()) | {key: value})
    path.write_text(text)
    whole = decoded(place, "whole.json")
    whole.write_text(json.dumps(json.loads(whole.read_text()) | {"source.json": len(text)}))
    assert_same(load(archive, place), made[1])
    assert capsys.readouterr().err.count("is damaged (") == 1


# -------------------------------------------------------------------------------------- the command


def test_the_command_names_what_is_damaged_and_changes_nothing(place, capsys):
    command = ["prepare", "--check", f"--cache-dir={place}"]
    assert run_command(prepare.main, command) == 0
    assert "utkface: 2 folders" in capsys.readouterr().out
    flip(decoded(place, "labels.npz"), 300)
    damaged = decoded(place, "labels.npz").read_bytes()
    assert run_command(prepare.main, command) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "1 of 2 folders" in err
    assert "labels.npz has changed" in err
    assert decoded(place, "labels.npz").read_bytes() == damaged
    assert run_command(prepare.main, [*command, "--dataset=aaf"]) == 2
    assert "it holds nothing of aaf" in capsys.readouterr().err


# ------------------------------------------------------------------------ a file that is cut short

CUT = """
import os, sys
import numpy as np
from agejax.data import pipeline, sampling, sources
from agejax.process.command import run_command

def main(archive, cache, workers):
    source = sources.load("utkface", archive, image_size=128, cache_dir=cache)
    batches = pipeline.TrainBatches(
        source, np.arange(12), sampling.Sampler(np.ones(12), 12, 0), 12
    ).iterate(0, 10_000, int(workers))
    next(batches)
    os.truncate(source.images.path, 2 * 128 * 128 * 3)
    for batch in batches:
        pass

sys.exit(run_command(main, *sys.argv[1:]))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_cut_short_while_batches_are_read_is_one_line(workers, archive, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(archive), str(tmp_path), str(workers)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("agejax: error: ")]
    assert len(lines) == 1
    assert "images.u8 was cut short while it was read; start again" in lines[0]
    assert "Traceback" not in done.stderr
    again = load(archive, tmp_path, size=128)
    assert again.images[:].any(axis=(1, 2, 3)).all()


OTHER = """
import mmap, os, sys
import numpy as np
from agejax.data.mapped import MappedArray

path = sys.argv[1]
for name in ("ours", "other"):
    np.ones(4 * 64 * 64 * 3, np.uint8).tofile(path + name)
ours = MappedArray(path + "ours", (4, 64, 64, 3))
with open(path + "other", "rb") as file:
    other = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
os.truncate(path + "other", 0)
assert ours[:].all()
print("read", flush=True)
other[-1]
"""


def test_a_bus_error_of_another_file_ends_the_process_as_it_would_without_us(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", OTHER, f"{tmp_path}/"], cwd=ROOT, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout == "read\n"
    assert done.returncode == -signal.SIGBUS


def test_a_file_that_loses_less_than_a_page_gives_no_zeros(archive, tmp_path):
    source = load(archive, tmp_path)
    os.truncate(source.images.path, source.images.nbytes - 10)
    with pytest.raises(UserError, match="was cut short"):
        source.take(np.array([11]))


# --------------------------------------------------------------------------------- an archive gone


def copied(archive, tmp_path):
    return shutil.copy2(archive, tmp_path / "mine.tar.gz")


def test_what_was_prepared_serves_though_the_archive_is_gone(archive, tmp_path, made, capsys):
    path = copied(archive, tmp_path)
    place = tmp_path / "cache"
    load(path, place)
    path.unlink()
    capsys.readouterr()
    assert_same(load(path, place), made[1])
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert f"{path} does not exist; the cache prepared from it is used" in err
    assert load(path, place, size=8).images.shape == (12, 8, 8, 3)  # decoded from the records
    flip(decoded(place, "images.u8"), 7)
    assert_same(load(path, place), made[1])


def test_a_run_s_own_data_is_found_though_the_archive_is_gone(archive, tmp_path):
    import tiny

    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(copied(archive, tmp_path)), str(tmp_path)
    fingerprint = opening.open_source(config.data).fingerprint
    os.unlink(config.data.source)
    assert opening.open_source(config.data).fingerprint == fingerprint


def test_an_archive_that_is_there_but_changed_is_prepared_anew(archive, tmp_path):
    path = copied(archive, tmp_path)
    load(path, tmp_path / "cache")
    pack(dict(list(FILES.items())[:7]), path)
    assert len(load(path, tmp_path / "cache").ids) == 7


def test_without_anything_prepared_a_missing_archive_is_an_error(archive, place, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "never-there.zip", place)
    path = copied(archive, tmp_path)
    load(path, place)
    path.unlink()
    for folder in (place / "utkface").glob("*-records"):
        shutil.rmtree(folder)
    assert len(load(path, place).ids) == 12
    with pytest.raises(UserError, match="does not exist"):  # nothing to decode from
        load(path, place, size=8)


def test_a_command_line_and_a_config_find_the_same_cache(tmp_path, capsys):
    """A config holds options as ConfigDicts, with sorted names."""
    (tmp_path / "labels.csv").write_text("Photo,Years,Sex\n0.jpg,10,F\n1.jpg,11,M\n")
    faces = pack({f"{i}.jpg": jpeg(i) for i in range(2)}, tmp_path / "faces")
    args = argparse.Namespace(
        dataset="image_folder", source=str(faces), image_size=16, cache_dir=str(tmp_path / "cache"),
        option=[
            f"labels={tmp_path / 'labels.csv'}",
            "columns={'gender': 'Sex', 'file': 'Photo', 'age': 'Years'}",
        ],
    )  # fmt: skip
    prepared = flags.load(args)
    capsys.readouterr()
    config = default()
    config.data.name, config.data.source = args.dataset, args.source
    config.data.image_size, config.data.cache_dir = args.image_size, args.cache_dir
    config.data.options = flags.options(args.option)
    assert opening.open_source(config.data).fingerprint == prepared.fingerprint
    assert capsys.readouterr().err == ""


def test_labels_that_changed_after_the_archive_had_gone_are_not_passed_over(tmp_path):
    faces = pack({f"{i}.jpg": jpeg(i) for i in range(3)}, tmp_path / "faces.zip")
    table = tmp_path / "labels.csv"
    table.write_text("file,age\n0.jpg,10\n1.jpg,11\n2.jpg,12\n")

    def ages():
        source = sources.load(
            "image_folder", str(faces), image_size=16, cache_dir=str(tmp_path / "cache"),
            options={"labels": str(table)},
        )  # fmt: skip
        return sorted(source.labels["age"].tolist())

    assert ages() == [10, 11, 12]
    faces.unlink()
    assert ages() == [10, 11, 12]
    table.write_text("file,age\n0.jpg,99\n")
    with pytest.raises(UserError, match="does not exist"):
        ages()
