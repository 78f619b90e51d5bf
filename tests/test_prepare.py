"""Preparing before training, and on Apache Beam: the same examples, notes and errors."""

import json

import numpy as np
import pytest
from test_builders import pack
from test_sources import chip, encode, photo

from agejax.data import audit, cache, flags, prepare, sources
from agejax.errors import UserError
from agejax.process.command import run_command

FILES = {
    **{f"UTKFace/{chip(i)}": encode(photo(i), quality=95) for i in range(24)},
    f"UTKFace/more/{chip(3)}": encode(photo(3)),
    "UTKFace/39_1_2017.jpg.chip.jpg": encode(photo(99)),
    "UTKFace/more/39_1_2017.jpg.chip.jpg": encode(photo(98)),  # skipped in the same words
}
TABLED = [f"{chip(i)},{i},{'fm'[i % 2]}" for i in range(20)]
ROWS = "\n".join(["file,age,ethnicity", *TABLED, "x,1,f"])
CASES = {
    "utkface in an archive": ("utkface", "a.tar.gz", FILES, {}),
    "utkface in a folder": ("utkface", "a", FILES, {}),
    "a folder with a table": (
        "image_folder", "b.zip", FILES | {"UTKFace/t.csv": ROWS.encode()}, {"labels": "t.csv"},
    ),
    "drawn faces": ("procedural_faces", None, {}, {"count": 20, "size": 32}),
}  # fmt: skip
BEAM = ["--runner=DirectRunner"]


@pytest.mark.parametrize("case", CASES)
def test_beam_prepares_what_one_process_does(case, tmp_path):
    pytest.importorskip("apache_beam")
    name, place, files, options = CASES[case]
    path = str(pack(files, tmp_path / place)) if place else None

    def loaded(cache, beam):
        cache = str(tmp_path / cache)
        return sources.load(name, path, image_size=16, cache_dir=cache, options=options, beam=beam)

    ours, theirs = loaded("ours", None), loaded("theirs", BEAM)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.ids.tolist() == theirs.ids.tolist()
    np.testing.assert_array_equal(ours.images, theirs.images)
    assert ours.label_names == theirs.label_names
    assert sorted(ours.skipped) == sorted(theirs.skipped)
    assert len(ours.skipped) == {"utkface": 2, "image_folder": 9}.get(name, 0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"UTKFace/39_1_2017.jpg": b"x"}, "no usable image"),
        ({f"../{chip(1)}": b"x"}, "points outside of it"),
    ],
)
def test_beam_says_what_one_process_does(files, message, tmp_path, capsys):
    pytest.importorskip("apache_beam")
    path = pack(files, tmp_path / "UTKFace.tar.gz")
    arguments = ["prepare", f"--source={path}", f"--cache-dir={tmp_path / 'cache'}"]
    assert run_command(prepare.main, [*arguments, *(f"--beam={flag}" for flag in BEAM)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("agejax: error: ")
    assert message in last


def test_what_is_prepared_is_there_for_a_training(tmp_path, capsys, monkeypatch):
    arguments = [
        "prepare", "--dataset=procedural_faces", "--option=count=8", "--option=size=32",
        "--image-size=16", f"--cache-dir={tmp_path}",
    ]  # fmt: skip
    assert run_command(prepare.main, arguments) == 0
    assert "procedural_faces: 8 images are ready" in capsys.readouterr().out
    monkeypatch.setattr(cache, "_make", None)
    place = {"image_size": 16, "cache_dir": str(tmp_path)}
    source = sources.load("procedural_faces", options={"count": 8, "size": 32}, **place)
    assert len(source.ids) == 8


def test_options_on_a_command_line_are_numbers_lists_or_texts():
    given = ["count=8", "names=('f', 'm')", "labels=a=b.csv", "score=1e-1"]
    assert flags.options(given) == {
        "count": 8, "names": ("f", "m"), "labels": "a=b.csv", "score": 0.1
    }  # fmt: skip
    with pytest.raises(UserError, match="'count' is given twice"):
        flags.options(["count=8", "count=9"])
    with pytest.raises(UserError, match="write it as NAME=VALUE"):
        flags.options(["count"])


def test_an_audit_takes_options_that_are_numbers(tmp_path):
    arguments = [
        "audit", "--dataset=procedural_faces", "--option=count=8", "--option=size=32",
        "--image-size=16", f"--cache-dir={tmp_path}", f"--output={tmp_path / 'audit'}",
    ]  # fmt: skip
    assert run_command(audit.main, arguments) == 0
    assert json.loads((tmp_path / "audit/audit.json").read_text())


def test_beam_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    assert run_command(prepare.main, ["prepare", "--beam=--runner=DirectRunner"]) == 2
    assert "pip install -e '.[beam]'" in capsys.readouterr().err
