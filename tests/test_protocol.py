"""The splits of a public benchmark become lists of names, and its folds one table."""

import functools
import json
import math

import numpy as np
import pytest

import tiny
from agejax import cross_validate
from agejax.config import replaced
from agejax.data import facebase, protocol, sources, splits
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.sweeps import folds

NAMES = [f"{20 + i}_{i % 2}_{i % 5}_201701{i:011d}.jpg" for i in range(30)]


def source_of(ids) -> Source:
    n = len(ids)
    return Source("made", np.zeros((n, 1, 1, 3), np.uint8), {}, np.array(ids), np.arange(n), {}, "",
                  ())  # fmt: skip


def database(path, entries):
    """A JSON file with the keys of the benchmark's UTKFace_aligned.json."""
    records = [
        {
            "img_path": name, "age": 30, "race": "White", "acquired": "2017-01-16 00:00:00",
            "database": "UTKFace", "folder": folder, "alignment_source": "in the wild",
            "aligned_bbox": [-57, -95, 372, -83, 360, 346, -69, 334],
        }
        for name, folder in entries
    ]  # fmt: skip
    path.write_text(json.dumps(records, indent=4))
    return path


@pytest.fixture
def chips() -> Source:
    return source_of([f"{name}.chip.jpg" for name in NAMES])


def of_photos(path, count=30, folders=10):
    """Entries that name the whole photos of the chips, in three parts as they are published."""
    return database(
        path, [(f"UTKFace/part{1 + i % 3}/{NAMES[i]}", i % folders) for i in range(count)]
    )


def test_ten_folders_make_the_five_published_splits(chips, tmp_path):
    found = facebase.splits(chips, of_photos(tmp_path / "UTKFace.json"))
    published = [  # of the benchmark's UTKFace.yaml
        ([0, 1, 2, 3, 4, 5], [6, 7], [8, 9]),
        ([2, 3, 4, 5, 6, 7], [8, 9], [0, 1]),
        ([4, 5, 6, 7, 8, 9], [0, 1], [2, 3]),
        ([5, 6, 7, 8, 9, 0], [1, 2], [3, 4]),
        ([6, 7, 8, 9, 0, 1], [2, 3], [4, 5]),
    ]
    assert (found.named, found.left_out) == (30, 0)
    for fold, of in zip(found.folds, published, strict=True):
        assert fold == {
            split: sorted(f"{NAMES[i]}.chip.jpg" for i in range(30) if i % 10 in folders)
            for split, folders in zip(("train", "val", "test"), of, strict=True)
        }


def test_three_folders_are_one_split_and_unused_images_are_in_none(chips, tmp_path):
    entries = [(f"UTKFace/part1/{name}", (0, 1, 2, -1)[i % 4]) for i, name in enumerate(NAMES)]
    found = facebase.splits(chips, database(tmp_path / "a.json", entries))
    assert found.named == 23
    assert [{split: len(ids) for split, ids in fold.items()} for fold in found.folds] == [
        {"train": 8, "val": 8, "test": 7}
    ]


def test_an_exact_name_comes_before_a_chip(tmp_path):
    source = source_of([*NAMES, f"{NAMES[0]}.chip.jpg"])
    found = facebase.splits(source, of_photos(tmp_path / "a.json"))
    assert not any("chip" in name for fold in found.folds for ids in fold.values() for name in ids)


def test_images_that_are_missing_are_counted_and_named(chips, tmp_path):
    path = of_photos(tmp_path / "UTKFace.json")
    some = chips.select(np.arange(2, 30))
    with pytest.raises(UserError, match=f"made lacks 2 of 30 images, such as UTKFace.*{NAMES[0]}"):
        facebase.splits(some, path)
    found = facebase.splits(some, path, leave_out=True)
    assert (found.named, found.left_out) == (30, 2)
    assert len(found.folds[1]["test"]) == 4  # folders 0 and 1 without the first two images


def test_images_that_are_named_twice_are_refused_or_in_no_list(chips, tmp_path):
    entries = [(f"UTKFace/part1/{name}", i % 10) for i, name in enumerate(NAMES)]
    again = database(tmp_path / "again.json", [*entries, (entries[4][0], 9)])
    in_two_folders = database(
        tmp_path / "two.json", [*entries, (f"UTKFace/part2/{NAMES[4]}", 9)]
    )  # fmt: skip
    for path, count in ((again, 1), (in_two_folders, 2)):
        with pytest.raises(UserError, match=f"{count} names stand for more than one image"):
            facebase.splits(chips, path)
        found = facebase.splits(chips, path, leave_out=True)
        assert found.left_out == count
        assert not any(
            name.startswith(NAMES[4]) for fold in found.folds for ids in fold.values()
            for name in ids
        )  # fmt: skip


def test_two_images_of_one_name_are_told_apart_in_lists_by_their_folders(tmp_path):
    source = source_of([f"a/{NAMES[0]}", f"b/{NAMES[0]}", *NAMES[1:]])
    entries = [(f"a/{NAMES[0]}", 0), *((name, i % 10) for i, name in enumerate(NAMES) if i)]
    found = facebase.splits(source, database(tmp_path / "a.json", entries))
    facebase.write(found, tmp_path, {})
    parts = splits.from_files(source, {"train": str(tmp_path / "fold-0/train.txt")})
    assert set(source.ids[parts["train"]]) == set(found.folds[0]["train"])
    assert f"a/{NAMES[0]}" in source.ids[parts["train"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1", "is not JSON.*Git LFS"),
        ("{}", "instead of a list"),
        ("[]", "no image with a folder"),
        ('[{"img_path": "a.jpg"}]', "entry 1: it needs an img_path and a folder"),
        ('[{"img_path": "a.jpg", "folder": 0}, ["b.jpg", 1]]', "entry 2"),
        ('[{"img_path": "a.jpg", "folder": 1.5}]', "entry 1"),
        ('[{"img_path": "a.jpg", "folder": true}]', "entry 1"),
        ('[{"img_path": "a.jpg", "folder": 12}]', "folders 12; the benchmark"),
    ],
)
def test_files_of_another_form_are_one_line(text, message, chips, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        facebase.splits(chips, path)


def test_a_data_set_that_the_file_does_not_describe_is_one_line(tmp_path):
    path = of_photos(tmp_path / "UTKFace.json")
    with pytest.raises(UserError, match="fold 0 has no image of made in its train split"):
        facebase.splits(source_of(["other.jpg"]), path, leave_out=True)


# ---- folds ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lists(faces, cache, tmp_path_factory):
    """What the command writes for the 96 drawn chips, of which one is not in the benchmark."""
    place = tmp_path_factory.mktemp("protocol")
    names = sorted(path.name.removesuffix(".chip.jpg") for path in faces.iterdir())[1:]
    entries = [(f"UTKFace/part1/{name}", i % 10) for i, name in enumerate(names)]
    path = database(place / "UTKFace.json", entries)
    arguments = [
        "protocol", f"--database={path}", f"--source={faces}", f"--output={place / 'lists'}",
        "--image-size=32", f"--cache-dir={cache}",
    ]  # fmt: skip
    assert run_command(protocol.main, arguments) == 0
    return place / "lists"


@pytest.fixture
def config(faces, cache):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 2}
    with config.unlocked():
        del config.heads.ethnicity
    return config


def test_the_lists_are_what_split_files_reads(lists, config, capsys):
    found = folds.of_protocol(lists)
    assert (len(found.changes), found.name, found.left_out) == (5, "UTKFace.json", 0)
    source = sources.load("utkface", config.data.source, image_size=32)
    for changes in found.changes:
        made = splits.make(source, replaced(config, changes).data.split)
        assert sum(map(len, made.values())) == 95
        assert len(made["test"]) in (18, 19, 20)
    assert "not in the data" not in capsys.readouterr().err


def test_the_command_replaces_nothing(lists, faces, capsys):
    arguments = ["protocol", f"--database={lists.parent / 'UTKFace.json'}", f"--source={faces}"]
    assert run_command(protocol.main, [*arguments, f"--output={lists}"]) == 2
    assert "it exists already; name a new folder" in capsys.readouterr().err


def test_folds_are_trained_scored_and_tabulated_and_go_on(lists, config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        folds.results, "evaluate", functools.partial(results.evaluate, write_report=False)
    )
    of_protocol = folds.of_protocol(lists)
    two = folds.Folds(of_protocol.changes[:2], "UTKFace.json", 3)
    first = folds.cross_validate(config, tmp_path, folds.Folds(two.changes[:1], "UTKFace.json"))
    assert first["std"] == dict.fromkeys(first["mean"], 0.0)
    found = folds.cross_validate(config, tmp_path, two)
    assert found["rows"][0] == first["rows"][0]
    assert json.loads((tmp_path / "folds.json").read_text()) == found

    a, b = (
        json.loads((tmp_path / f"fold-{i}/evaluation/utkface-test/metrics.json").read_text())
        for i in range(2)
    )
    maes = a["age"]["mae"], b["age"]["mae"]
    assert found["mean"]["age/mae"] == pytest.approx(sum(maes) / 2)
    assert found["std"]["age/mae"] == pytest.approx(abs(maes[0] - maes[1]) / 2)
    assert found["rows"][1]["figures"]["gender/accuracy"] == b["gender"]["accuracy"]
    assert [row["examples"]["test"] for row in found["rows"]] == [a["n"], b["n"]]
    text = (tmp_path / "folds.md").read_text()
    assert f"| {sum(maes) / 2:.2f}({abs(maes[0] - maes[1]) / 2:.2f}) |" in text
    assert "3 images of the protocol are left out" in text

    # The same command has nothing left to do; another config is refused, not mixed in. Evaluations
    # of other data, and of a step that is not the best of what is there now, do not count.
    monkeypatch.setattr(folds, "train", lambda *args: pytest.fail("trained again"))
    place = tmp_path / "fold-1/evaluation/utkface-test/metrics.json"
    for name, changes in {"aaf": {"fingerprint": "other"}, "old": {"step": 1}}.items():
        other = tmp_path / f"fold-1/evaluation/{name}-test/metrics.json"
        other.parent.mkdir()
        other.write_text(json.dumps(b | changes | {"age": {"mae": 0.0}}))
    assert folds.cross_validate(config, tmp_path, two) == found
    monkeypatch.setattr(folds, "train", lambda *args: None)
    larger = replaced(config, {"eval.image_size": 48})
    assert folds.cross_validate(larger, tmp_path, two) is None  # all want to be scored again
    place.unlink()
    before = (tmp_path / "folds.md").read_text()
    assert folds.cross_validate(config, tmp_path, two) is None  # fold 1 wants to be scored again
    assert (tmp_path / "folds.md").read_text() == before
    with pytest.raises(UserError, match=r"trained with another config: schedule\.lr"):
        folds.cross_validate(replaced(config, {"schedule.lr": 1e-3}), tmp_path, two)
    for changes in ({"distill.runs": ("/a",)}, {"model.pretrained": "/a.pth"}):
        with pytest.raises(UserError, match="other weights, or has other teachers"):
            folds.cross_validate(replaced(config, changes), tmp_path, two)


def test_a_signal_stops_the_folds(config, tmp_path, monkeypatch):
    monkeypatch.setattr(folds, "train", lambda *args: None)
    found = folds.cross_validate(config, tmp_path, folds.Folds([{"data.split.seed": 1}], "one"))
    assert found is None
    assert not (tmp_path / "folds.json").exists()


def test_the_table_in_the_benchmarks_form():
    rows = [
        {"fold": i, "examples": {"train": 1200, "val": 20, "test": 30}, "figures": figures}
        for i, figures in enumerate(
            [{"age/mae": 4.0, "gender/accuracy": 0.9}, {"age/mae": 5.0, "gender/accuracy": 0.95}]
        )
    ]
    found = folds.tabulate(rows, folds.Folds([{}] * 5, "UTKFace.json"))
    assert found["std"]["age/mae"] == 0.5  # with n below the line
    assert math.isclose(found["mean"]["gender/accuracy"], 0.925)
    assert folds.text(found).splitlines()[:9] == [
        "# UTKFace.json",
        "",
        "2 of 5 folds are done.",
        "",
        "| fold | train | val | test | age MAE, years | gender accuracy |",
        "|---|---:|---:|---:|---:|---:|",
        "| 0 | 1,200 | 20 | 30 | 4.00 | 0.900 |",
        "| 1 | 1,200 | 20 | 30 | 5.00 | 0.950 |",
        "| mean |  |  |  | 4.50(0.50) | 0.925(0.025) |",
    ]


def test_a_fold_without_a_label_has_no_figure_and_the_mean_is_of_the_others():
    figures = [{"age/mae": 4.0}, {"age/mae": 5.0, "gender/accuracy": 0.9}]
    rows = [{"fold": i, "examples": {"test": 30}, "figures": f} for i, f in enumerate(figures)]
    found = folds.tabulate(rows, folds.Folds([{}] * 2, "made"))
    assert found["mean"] == {"age/mae": 4.5, "gender/accuracy": 0.9}
    text = folds.text(found)
    assert "| 0 | 0 | 0 | 30 | 4.00 | – |\n| 1 | 0 | 0 | 30 | 5.00 | 0.900 |\n" in text
    assert "–: no image of that fold's test split has the label" in text


def test_folds_come_from_the_config_or_from_lists(config, tmp_path, capsys):
    with pytest.raises(UserError, match="0 makes no folds"):
        folds.of_config(config)
    config.data.split.folds = 3
    assert folds.of_config(config).changes == [{"data.split.fold": i} for i in range(3)]
    with pytest.raises(UserError, match=r"holds no protocol\.json"):
        folds.of_protocol(tmp_path)
    for number, text in enumerate(('{"folds": "x"}', "{}", '{"folds": 2, "left_out": null}')):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "protocol.json").write_text(text)
        with pytest.raises(UserError, match="names no folds; write the folder with"):
            folds.of_protocol(tmp_path / str(number))
    arguments = [
        "cross_validate", f"--config={tiny.__file__}", f"--workdir={tmp_path / 'cv'}",
        f"--protocol={tmp_path}",
    ]  # fmt: skip
    assert run_command(cross_validate.main, arguments) == 2
    assert "holds no protocol.json" in capsys.readouterr().err
    assert not (tmp_path / "cv").exists()
