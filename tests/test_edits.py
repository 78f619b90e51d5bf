"""Edits of a data set by config: what is dropped or renumbered, and that no image is read."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

import tiny
from agejax.config import default
from agejax.data import edits, opening, pipeline, sources, splits
from agejax.data.mapped import MappedArray
from agejax.errors import UserError
from agejax.reporting import results
from agejax.train import train

RACES = ("White", "Black", "Asian", "Indian", "Other")


@pytest.fixture(scope="module")
def source(faces, cache):
    return sources.load("utkface", str(faces), image_size=32, cache_dir=str(cache))


def edited(source, **changes):
    config = default().data.edits
    config.update(changes)
    return edits.apply(source, config)


def rows_of(view, source):
    """The rows of a view as rows of its source."""
    place = {name: row for row, name in enumerate(source.ids)}
    return np.array([place[name] for name in view.ids])


def test_no_edit_changes_nothing(source):
    assert edited(source) is source
    assert edited(source, keep={"ethnicity": {"Asian": 1.0}}).fingerprint == source.fingerprint


def test_a_view_has_the_rows_of_its_source_and_reads_images_when_asked(source):
    view = edited(source, drop={"ethnicity": ("Other",)}, max_age=60)
    rows = rows_of(view, source)
    assert 0 < len(rows) < 96
    assert view.images.shape == (len(rows), 32, 32, 3)
    assert len(view.images) == len(rows)
    some = np.array([5, 0, 5, 11])
    np.testing.assert_array_equal(view.take(some), source.images[rows[some]])
    batch = pipeline.gather(view, some)
    np.testing.assert_array_equal(batch["image"], source.images[rows[some]])
    np.testing.assert_array_equal(batch["age"], source.labels["age"][rows[some]])
    again = edited(view, min_age=10)  # a view of a view
    np.testing.assert_array_equal(again.take(some), source.images[rows_of(again, source)[some]])


def test_a_view_is_sent_to_workers_without_its_images(source):
    view = edited(source, max_age=60)
    data = pickle.dumps(view)
    assert len(data) < source.images.nbytes / 5
    copy = pickle.loads(data)
    assert isinstance(copy.images.sources[0].images, MappedArray)
    np.testing.assert_array_equal(copy.take(np.arange(9)), view.take(np.arange(9)))


def test_a_dropped_class_leaves_the_list_and_the_ones_behind_it_move_up(source, capsys):
    view = edited(source, drop={"ethnicity": ("Black", "Other")})
    assert view.label_names["ethnicity"] == ("White", "Asian", "Indian")
    before = np.array(RACES)[source.labels["ethnicity"][rows_of(view, source)]]
    after = np.array(view.label_names["ethnicity"])[view.labels["ethnicity"]]
    np.testing.assert_array_equal(after, before)
    assert len(view.ids) == (~np.isin(source.labels["ethnicity"], (1, 4))).sum()
    said = capsys.readouterr().err
    assert f"{len(view.ids)} of 96 images stay; removed" in said
    assert "19 (ethnicity Black)" in said


def test_an_age_range_includes_both_its_ends(source):
    ages = source.labels["age"]
    low, high = np.sort(np.unique(ages))[[3, -4]]
    view = edited(source, min_age=float(low), max_age=float(high))
    np.testing.assert_array_equal(
        np.sort(view.labels["age"]), np.sort(ages[(ages >= low) & (ages <= high)])
    )
    assert {low, high} <= set(view.labels["age"])


def test_only_one_gender_stays(source):
    view = edited(source, only={"gender": "female"})
    assert set(view.labels["gender"]) == {1}
    assert view.label_names["gender"] == ("male", "female")
    two = edited(source, only={"ethnicity": ("White", "Indian")})
    assert set(two.labels["ethnicity"]) == {0, 3}


def test_a_thinned_class_keeps_its_share_by_the_seed(source):
    n = (source.labels["ethnicity"] == 2).sum()
    view = edited(source, keep={"ethnicity": {"Asian": 0.25}})
    assert abs((view.labels["ethnicity"] == 2).sum() - n / 4) <= 1
    assert (view.labels["ethnicity"] != 2).sum() == (source.labels["ethnicity"] != 2).sum()
    same = edited(source, keep={"ethnicity": {"Asian": 0.25}})
    np.testing.assert_array_equal(same.ids, view.ids)
    assert same.fingerprint == view.fingerprint
    other = edited(source, keep={"ethnicity": {"Asian": 0.25}}, seed=1)
    assert set(other.ids) != set(view.ids)
    more = edited(source, keep={"ethnicity": {"Asian": 0.5}})
    assert set(view.ids) < set(more.ids)


def test_duplicates_of_a_class_stay_or_go_together():
    n = 400
    labels = {"age": np.full(n, 30, np.float32), "ethnicity": np.zeros(n, np.int32)}
    groups = np.arange(n) // 3 * 3
    source = sources.Source(
        "made", np.zeros((n, 1, 1, 3), np.uint8), labels, np.arange(n).astype(str), groups,
        {"ethnicity": ("a",)}, "made", (),
    )  # fmt: skip
    view = edited(source, keep={"ethnicity": {"majority": 0.3}})
    assert abs(len(view.ids) - 120) <= 2
    rows = rows_of(view, source)
    sizes = np.bincount(groups[rows], minlength=n)[groups[rows]]
    assert (sizes == np.bincount(groups, minlength=n)[groups[rows]]).all()
    # Groups are again numbered by the row of their first image.
    np.testing.assert_array_equal(view.groups, np.searchsorted(groups[rows], groups[rows]))


def test_the_fingerprint_follows_what_is_left(source):
    views = [
        edited(source, **changes)
        for changes in (
            {}, {"max_age": 60}, {"max_age": 50}, {"only": {"gender": "male"}},
            {"drop": {"ethnicity": ("Other",)}}, {"only": {"ethnicity": RACES[:4]}},
        )
    ]  # fmt: skip
    assert len({view.fingerprint for view in views}) == len(views)


def test_columns_of_other_kinds_are_carried_along(source):
    part = np.arange(96) % 2
    view = sources.dataclasses.replace(source, part=part, parts={"a": 1, "b": 2})
    view = edited(view, max_age=40)
    np.testing.assert_array_equal(view.part, part[rows_of(view, source)])


def test_unknown_labels_stay_but_where_one_class_only_is_wanted(source):
    labels = {k: v.copy() for k, v in source.labels.items()}
    labels["age"][:5], labels["gender"][5:9], labels["ethnicity"][9:12] = np.nan, -1, -1
    view = sources.dataclasses.replace(source, labels=labels)
    assert np.isnan(edited(view, max_age=20, min_age=10).labels["age"]).sum() == 5
    dropped = edited(view, drop={"ethnicity": ("White",)})
    assert (dropped.labels["ethnicity"] == -1).sum() == 3
    assert dropped.labels["ethnicity"].max() == 3
    assert set(edited(view, only={"gender": "male"}).labels["gender"]) == {0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": {"ethnicity": ("Othr",)}}, "no class 'Othr' in utkface; did you mean 'Other'"),
        ({"drop": {"race": ("Other",)}}, "edits.drop: unknown key 'race'; there are"),
        ({"only": {"gender": "woman"}}, "edits.only.gender: no class 'woman'.*of male, female"),
        ({"keep": {"ethnicity": {"Asian": -1}}}, "keep.ethnicity.Asian: -1; set it to a share"),
        ({"keep": {"ethnicity": "Asian"}}, "keep.ethnicity: 'Asian'; set it to"),
        ({"min_age": 200.0}, "no image of utkface is left; removed 96"),
    ],
    ids=str,
)
def test_a_bad_edit_is_named(source, changes, message):
    with pytest.raises(UserError, match=message):
        edited(source, **changes)


@pytest.fixture(scope="module")
def run(faces, cache, tmp_path_factory):
    """A run on the chips without "Other", no older than 80."""
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.data.edits.drop = {"ethnicity": ("Other",)}
    config.data.edits.max_age = 80
    config.total = {"steps": 3}
    config.eval.every = {"steps": 3}
    workdir = tmp_path_factory.mktemp("edited") / "run"
    return config, workdir, train(config.lock(), workdir)


def test_a_run_trains_and_is_scored_on_its_edited_data(run, source):
    config, workdir, summary = run
    view = opening.open_source(config.data)
    assert sum(summary["examples"].values()) == len(view.ids) < 96
    assert len(view.label_names["ethnicity"]) == 4
    scored = results.evaluate(workdir).metrics
    test = splits.make(view, config.data.split)["test"]
    assert scored["n"] == len(test)
    header, *rows = (workdir / "evaluation/utkface-test/predictions.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows} == set(view.ids[test])
    assert "ethnicity_p3" in header
    assert "ethnicity_p4" not in header


def test_other_data_is_numbered_as_the_run_numbers_it(run, source, capsys):
    config, _, _ = run
    names = {"gender": ["female", "male"], "ethnicity": ["Asian", "White"]}
    other = opening.open_other(config.data, "utkface", config.data.source, names)
    np.testing.assert_array_equal(other.ids, source.ids)
    np.testing.assert_array_equal(other.labels["gender"], 1 - source.labels["gender"])
    expected = np.array([1, -1, 0, -1, -1])[source.labels["ethnicity"]]
    np.testing.assert_array_equal(other.labels["ethnicity"], expected)
    assert "the run has no ethnicity 'Indian'; 19 images with it" in capsys.readouterr().err


def test_what_could_not_be_decoded_is_edited_too(source):
    """Else the share of it in a group that is removed would be 100 %."""
    lost = (
        {"age": 30.0, "gender": "female", "ethnicity": "Asian"}, {"gender": "female"},
        {"age": 80.0, "gender": "female"}, {"age": 30.0, "gender": "male"}, {},
    )  # fmt: skip
    source = dataclasses.replace(source, undecoded=lost)
    for changes, left in (
        ({"only": {"gender": "female"}}, [0, 1, 2]),
        ({"max_age": 79}, [0, 1, 3, 4]),
        ({"min_age": 31}, [1, 2, 4]),
        ({"drop": {"ethnicity": "Asian"}}, [1, 2, 3, 4]),
    ):
        assert edited(source, **changes).undecoded == tuple(lost[i] for i in left), changes


def test_what_could_not_be_decoded_is_thinned_as_its_class_is(source):
    lost = ({"gender": "female"},) * 8 + ({"gender": "male"},) * 3 + ({},)
    source = dataclasses.replace(source, undecoded=lost)
    left = edited(source, keep={"gender": {"female": 0.25}}).undecoded
    assert sorted(map(str, left)) == sorted(map(str, lost[6:]))
    largest = int(np.bincount(source.labels["gender"]).argmax())
    left = edited(source, keep={"gender": {"majority": 0.0}}).undecoded
    assert left == ((lost[8:], lost[:8] + lost[11:])[1 - largest])


def test_labels_of_a_table_stand_in_place_of_the_data_sets_own(source, tmp_path, capsys):
    table = tmp_path / "labels.csv"
    first, second, third = source.ids[:3]
    table.write_text(
        f"id,age,gender\n{first},33.5,female\n{second},,1\nnobody.jpg,5,male\n{third},7,\n"
    )
    view = edited(source, labels=str(table))
    assert view.labels["age"][:3].tolist() == [33.5, source.labels["age"][1], 7]
    assert view.labels["gender"][:3].tolist() == [1, 1, source.labels["gender"][2]]
    for label, values in source.labels.items():
        np.testing.assert_array_equal(view.labels[label][3:], values[3:])
    assert view.images.sources[0] is source  # no pixel is copied
    assert view.fingerprint != source.fingerprint
    # Later edits use the new labels.
    assert first in edited(source, labels=str(table), only={"gender": "female"}).ids
    table.write_text(f"id,age\n{first},33.5\n{first},33.5\n")
    edited(source, labels=str(table))
    assert "age of 1 of 96 images" in capsys.readouterr().err


def test_labels_of_a_data_set_without_any(source, tmp_path):
    bare = dataclasses.replace(
        source,
        labels=source.labels | {"gender": np.full(len(source.ids), -1, np.int32)},
        label_names=source.label_names | {"gender": ()},
    )
    table = tmp_path / "labels.csv"
    table.write_text(f"file,gender\n{source.ids[0]},woman\n{source.ids[4]},man\n")
    view = edited(bare, labels=str(table))
    assert view.label_names["gender"] == ("man", "woman")
    assert view.labels["gender"][[0, 4]].tolist() == [1, 0]
    assert (np.delete(view.labels["gender"], [0, 4]) == -1).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "labels.csv cannot be read: No such file"),
        ("", "need a column of file.*there are none"),
        ("file,mood\na.jpg,good\n", "one of age, .*there are file, mood"),
        ("id,age\nnobody.jpg,3\n", "no image of utkface in it, such as"),
        ("id,age\n{id},old\n", "line 2: old is not an age"),
        ("id,gender\nnobody.jpg,male\n{id},robot\n", "line 3: gender 'robot' is not one of"),
        ("id,age\n{id},30\n{id},30\n{id},40\n", "line 4: .*jpg has an earlier row with other"),
    ],
)
def test_a_bad_table_of_labels_is_named(source, tmp_path, text, message):
    if text is not None:
        (tmp_path / "labels.csv").write_text(text.format(id=source.ids[0]))
    with pytest.raises(UserError, match=message):
        edited(source, labels=str(tmp_path / "labels.csv"))
