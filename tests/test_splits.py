"""Splits are disjoint and complete, keep copies together and have similar ages."""

import dataclasses
import pathlib

import ml_collections
import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from agejax.config import default
from agejax.data import edits, sources, splits
from agejax.data.sources import Source
from agejax.errors import UserError

CORAL = SHARED / "data/utkface/splits"
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def make_source(n: int, seed: int = 0, copies: float = 0.2, unknown: float = 0.0) -> Source:
    """n rows, a share of them copies of an earlier row, a share without an age or ethnicity."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n)
    for row in np.flatnonzero(rng.random(n) < copies):
        groups[row] = groups[rng.integers(0, row + 1)]
    ages = np.where(rng.random(n) < unknown, np.nan, rng.gamma(3, 11, n)).astype(np.float32)
    ids = np.array([f"{rng.integers(10**9)}-{row}.jpg" for row in range(n)])
    labels = {
        "age": ages,
        "gender": rng.integers(0, 2, n),
        "ethnicity": np.where(rng.random(n) < unknown, -1, rng.integers(0, 3, n)),
    }
    names = {"gender": ("male", "female"), "ethnicity": ("A", "B", "C")}
    return Source("made", np.zeros((n, 1, 1, 3), np.uint8), labels, ids, groups, names, "", ())


def permuted(source: Source, order: np.ndarray) -> Source:
    first: dict[int, int] = {}
    groups = [first.setdefault(g, row) for row, g in enumerate(source.groups[order].tolist())]
    return dataclasses.replace(
        source, labels={name: v[order] for name, v in source.labels.items()},
        ids=source.ids[order], groups=np.array(groups),
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(40, 400), seed=st.integers(0, 99), copies=st.floats(0, 0.5),
    unknown=st.sampled_from([0.0, 0.3, 1.0]), left=st.sampled_from([0.0, 0.2]),
)  # fmt: skip
def test_a_split_is_disjoint_whole_in_groups_and_near_its_share(n, seed, copies, unknown, left):
    source = make_source(n, seed, copies, unknown)
    fractions = {"train": 0.7 - left, "val": 0.15, "test": 0.15}
    parts = splits.by_fraction(source, fractions, seed)
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows)
    assert list(parts) == list(fractions)
    if not left:
        assert len(rows) == n
    assert splits.leaking_groups(source, parts) == 0
    largest = np.bincount(source.groups).max()
    for name, part in parts.items():
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)
        assert abs(len(part) - fractions[name] * n) <= 1.5 * largest
    # No member of a chosen group is left out either.
    assert set(source.groups[rows]).isdisjoint(np.delete(source.groups, rows))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), shuffle=st.integers(0, 99))
def test_a_split_does_not_depend_on_the_order_of_rows(seed, shuffle):
    source = make_source(150, seed)
    order = np.random.default_rng(shuffle).permutation(150)
    other = permuted(source, order)
    parts = splits.by_fraction(source, FRACTIONS, seed)
    moved = splits.by_fraction(other, FRACTIONS, seed)
    for name in FRACTIONS:
        assert set(source.ids[parts[name]]) == set(other.ids[moved[name]])


def test_ages_are_alike_in_every_split_and_seeds_differ():
    source = make_source(4000, copies=0)
    parts = splits.by_fraction(source, FRACTIONS, 0)
    edges = [0, 10, 20, 30, 40, 50, 60, 200]
    ages = source.labels["age"]
    whole = np.histogram(ages, edges)[0] / len(ages)
    for rows in parts.values():
        share = np.histogram(ages[rows], edges)[0] / len(rows)
        np.testing.assert_allclose(share, whole, atol=0.006)  # at random: up to 0.04
    again = splits.by_fraction(source, FRACTIONS, 0)
    other = splits.by_fraction(source, FRACTIONS, 1)
    assert all(np.array_equal(parts[k], again[k]) for k in parts)
    assert len(np.intersect1d(parts["test"], other["test"])) < 0.3 * len(parts["test"])


@pytest.mark.parametrize(
    "fractions", [{"train": 0.9, "val": 0.2}, {"train": 1.2}, {"train": 0.5, "val": -0.1}, {},
                  {"train": 0.9, "val": 0.0}, {"train": float("nan")}],
)  # fmt: skip
def test_wrong_fractions_are_named(fractions):
    with pytest.raises(UserError, match=r"config\.data\.split\.fractions"):
        splits.by_fraction(make_source(50), fractions, 0)


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="'test' is empty"):
        splits.by_fraction(make_source(5, copies=0), FRACTIONS, 0)


def test_carve_takes_whole_groups_out_of_the_rows_given():
    source = make_source(600)
    rows = np.arange(100, 600)
    rest, part = splits.carve(source, rows, 0.2, 3)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, part])), rows)
    assert splits.leaking_groups(source, {"rest": rest, "part": part}) == 0
    assert abs(len(part) - 100) <= 6
    with pytest.raises(UserError, match="val_of_train=1"):
        splits.carve(source, rows, 1.0, 0)


def write(path: pathlib.Path, names) -> str:
    path.write_text("".join(f"{name}\n" for name in names))
    return str(path)


def test_files_name_images_with_or_without_a_folder(tmp_path, capsys):
    source = make_source(20, copies=0)
    train = write(tmp_path / "a.txt", [*source.ids[:10], "", "unknown.jpg"])
    test = write(tmp_path / "b.txt", [f"UTKFace/{name}" for name in source.ids[10:15]])
    parts = splits.from_files(source, {"train": train, "test": test})
    np.testing.assert_array_equal(parts["train"], np.arange(10))
    np.testing.assert_array_equal(parts["test"], np.arange(10, 15))
    assert "1 of 11 names" in capsys.readouterr().err


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    source = make_source(6, copies=0)
    source.ids[:] = ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "1.jpg", "x/2.jpg", "3.jpg"]
    for line, row in (
        ("train/a/1.jpg", 0), ("/home/me/train/b/1.jpg", 1), ("b\\1.jpg", 1), ("val/a/1.jpg", 2),
        ("1.jpg", 3), ("other/2.jpg", 4), ("other/3.jpg", 5),
    ):  # fmt: skip
        parts = splits.from_files(source, {"train": write(tmp_path / "a.txt", [line])})
        assert parts["train"].tolist() == [row], line
    files = {
        "train": write(tmp_path / "a.txt", ["train/a/1.jpg", "train/b/1.jpg", "x/2.jpg"]),
        "test": write(tmp_path / "b.txt", ["val/a/1.jpg", "3.jpg"]),
    }
    parts = splits.from_files(source, files)
    assert [rows.tolist() for rows in parts.values()] == [[0, 1, 4], [2, 5]]
    assert not capsys.readouterr().err
    with pytest.raises(UserError, match=r"a/1\.jpg may be any of train/a/1\.jpg, val/a/1\.jpg; "):
        splits.from_files(source, {"train": write(tmp_path / "a.txt", ["a/1.jpg"])})
    some = source.select(np.array([0, 1, 4]))  # of another folder: the data lacks it
    splits.from_files(some, {"train": write(tmp_path / "a.txt", ["val/c/1.jpg", "2.jpg"])})
    assert "1 of 2 names are not in the data, the first: val/c/1.jpg" in capsys.readouterr().err


def test_a_list_of_names_may_come_from_any_system(tmp_path, capsys):
    source = make_source(6, copies=0)
    source.ids[0], source.ids[1] = "Zoe\u0308.jpg", "Mu\u0308ller/b.jpg"  # as macOS writes it
    listed = "\ufeffZo\u00eb.jpg\r\nC:\\faces\\b.jpg\r\n"  # as Windows' editor does
    (tmp_path / "a.txt").write_bytes(listed.encode())
    parts = splits.from_files(source, {"train": str(tmp_path / "a.txt")})
    assert parts["train"].tolist() == [0, 1]
    assert not capsys.readouterr().err
    (tmp_path / "a.txt").write_bytes(listed.encode("utf-16"))
    with pytest.raises(UserError, match=r"a\.txt is not text in UTF-8; save it as that"):
        splits.from_files(source, {"train": str(tmp_path / "a.txt")})
    with pytest.raises(UserError, match="cannot be read: No such file or directory; check the"):
        splits.from_files(source, {"train": "nowhere.txt"})


def test_files_that_overlap_are_missing_or_name_nothing_are_refused(tmp_path):
    source = make_source(20, copies=0)
    a = write(tmp_path / "a.txt", source.ids[:10])
    b = write(tmp_path / "b.txt", source.ids[9:])
    with pytest.raises(UserError, match="share 1 names"):
        splits.from_files(source, {"train": a, "test": b})
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        splits.from_files(source, {"train": "nowhere.txt"})
    none = write(tmp_path / "c.txt", ["x.jpg"])
    with pytest.raises(UserError, match="'train' is empty"):
        splits.from_files(source, {"train": none})


def test_groups_that_files_tear_apart_are_counted(tmp_path, capsys):
    source = make_source(20, copies=0)
    source.groups[15], source.groups[16], source.groups[3] = 2, 2, 1
    files = {
        "train": write(tmp_path / "a.txt", source.ids[:10]),
        "test": write(tmp_path / "b.txt", source.ids[10:]),
    }
    parts = splits.from_files(source, files)
    assert splits.leaking_groups(source, parts) == 1
    splits.make(source, config(files=files))
    assert "1 groups of duplicates" in capsys.readouterr().err


def test_train_can_do_without_the_copies_of_the_test_images(tmp_path, capsys):
    source = make_source(60, copies=0)
    source.groups[50], source.groups[51], source.groups[8] = 2, 2, 3
    files = {
        "train": write(tmp_path / "a.txt", source.ids[:45]),
        "test": write(tmp_path / "b.txt", source.ids[45:]),
    }
    parts = splits.make(source, config(files=files, drop_copies_from_train=True))
    train_and_val = np.sort(np.concatenate([parts["train"], parts["val"]]))
    np.testing.assert_array_equal(train_and_val, np.delete(np.arange(45), 2))
    np.testing.assert_array_equal(parts["test"], np.arange(45, 60))
    said = capsys.readouterr().err
    assert "1 of 45 images have a copy" in said
    assert "groups of duplicates" not in said
    assert splits.leaking_groups(source, parts) == 0


def test_people_whom_files_tear_apart_are_not_called_duplicates_alone(tmp_path, capsys):
    source = make_source(20, copies=0)
    source.groups[15] = 2  # a person's
    source = dataclasses.replace(source, photos=np.arange(20))
    files = {
        "train": write(tmp_path / "a.txt", source.ids[:10]),
        "test": write(tmp_path / "b.txt", source.ids[10:]),
    }
    splits.make(source, config(files=files))
    splits.make(source, config(files=files, drop_copies_from_train=True))
    said = capsys.readouterr().err
    assert "1 groups of duplicates, or of images of one person or group, have images in" in said
    assert "1 of 10 images have a copy, or another image of their person or group, in" in said


def config(**changes) -> ml_collections.ConfigDict:
    split = default().data.split
    for name, value in changes.items():
        split[name] = value
    return split.lock()


def test_a_share_of_train_leaves_the_other_splits_as_they_are():
    source = make_source(400)
    whole, part = splits.make(source, config()), splits.make(source, config(train_share=0.25))
    assert part.keys() == whole.keys()
    for name in ("val", "test"):
        np.testing.assert_array_equal(part[name], whole[name])
    assert set(part["train"]) < set(whole["train"])
    largest = np.unique(source.groups, return_counts=True)[1].max()
    assert abs(len(part["train"]) - len(whole["train"]) / 4) <= 1.5 * largest
    left_out = np.setdiff1d(whole["train"], part["train"])
    assert not np.isin(source.groups[part["train"]], source.groups[left_out]).any()
    with pytest.raises(UserError, match=r"config\.data\.split\.train_share=0"):
        splits.make(source, config(train_share=0.0))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fractions": {"train": 0.9, "test": 0.1}},
        {"folds": 5, "fold": 2},
        {
            "balanced": {"n": 2, "split": "test", "over": ("gender",), "short": "error"},
            "fractions": {"train": 0.8, "val": 0.2},
        },
        {"official": True},
    ],
)
def test_without_a_val_its_images_train_and_the_test_split_stays(changes):
    source = with_official(make_source(100), ["train"] * 60 + ["val"] * 20 + ["test"] * 20)
    with_val = splits.make(source, config(**changes, val_of_train=0.1))
    without = splits.make(source, config(**changes, val_of_train=0.0))
    assert without.keys() == {"train", "test"}
    np.testing.assert_array_equal(without["test"], with_val["test"])
    np.testing.assert_array_equal(
        without["train"], np.sort(np.concatenate([with_val["train"], with_val["val"]]))
    )


@pytest.mark.parametrize(
    "changes", [{}, {"folds": 5, "fold": 2}, {"official": True}, {"fractions": {"train": 0.9}}]
)
def test_a_part_of_val_is_kept_for_calibration_and_the_other_splits_stay(changes):
    source = make_source(400, copies=0.3)
    source = with_official(source, ["train"] * 200 + ["val"] * 120 + ["test"] * 80)
    whole = splits.make(source, config(**changes))
    parted = splits.make(source, config(**changes, calibration_of_val=0.5))
    assert parted.keys() == whole.keys() | {"calibration"}
    for name in whole.keys() - {"val"}:
        np.testing.assert_array_equal(parted[name], whole[name])
    val, held = parted["val"], parted["calibration"]
    np.testing.assert_array_equal(np.sort(np.concatenate([val, held])), whole["val"])
    assert abs(len(val) - len(held)) <= 3 * np.bincount(source.groups).max()
    assert set(source.groups[val]).isdisjoint(source.groups[held])
    ages = source.labels["age"]
    assert abs(np.nanmean(ages[val]) - np.nanmean(ages[held])) < 8


@pytest.mark.parametrize(
    "wrong", [{"val_of_train": 0.0}, {"fractions": {"train": 0.8, "calibration": 0.1}}]
)
def test_a_part_of_val_for_calibration_needs_a_val_and_a_free_name(wrong):
    with pytest.raises(UserError, match=r"calibration_of_val=0\.5: it needs a val"):
        splits.make(make_source(100), config(**wrong, calibration_of_val=0.5))


@pytest.mark.parametrize("fractions", [{"train": 1.0}, {"train": 0.5, "test": 0.5}])
def test_images_that_may_only_train_do_so_unless_another_split_has_a_copy(fractions):
    source = make_source(24, copies=0)
    only = np.arange(24) % 2 == 0
    source.groups[:] = np.where(only & (np.arange(24) < 12), source.groups + 1, source.groups)
    source = dataclasses.replace(source, train_only=only)
    parts = splits.make(source, config(fractions=fractions, val_of_train=0.0))
    test = parts.get("test", np.zeros(0, int)).tolist()
    assert len(test) == (6 if "test" in fractions else 0)
    copies = [row - 1 for row in test if row < 12]
    assert sorted([*parts["train"].tolist(), *test, *copies]) == list(range(24))


def test_images_of_val_that_train_are_left_out_where_test_has_a_copy_of_them():
    source = with_official(make_source(30, copies=0), ["train"] * 10 + ["val"] * 10 + ["test"] * 10)
    source.groups[25] = source.groups[15]
    chosen = config(official=True, val_of_train=0.0, drop_copies_from_train=True)
    np.testing.assert_array_equal(
        splits.make(source, chosen)["train"], [*range(15), *range(16, 20)]
    )


def test_make_follows_the_config(tmp_path):
    source = make_source(100)
    assert {k: len(v) for k, v in splits.make(source, config()).items()}.keys() == FRACTIONS.keys()
    with pytest.raises(UserError, match="'train'"):
        splits.make(source, config(fractions={"val": 0.9, "test": 0.1}))
    with pytest.raises(UserError, match="official and folds are set"):
        splits.make(source, config(official=True, folds=5))
    files = {
        "train": write(tmp_path / "a.txt", source.ids[:70]),
        "test": write(tmp_path / "b.txt", source.ids[70:]),
    }
    parts = splits.make(source, config(files=files))
    train_and_val = np.sort(np.concatenate([parts["train"], parts["val"]]))
    np.testing.assert_array_equal(train_and_val, np.arange(70))
    np.testing.assert_array_equal(parts["test"], np.arange(70, 100))


def with_official(source: Source, names) -> Source:
    """The source with official splits, for any Source."""
    object.__setattr__(source, "official", np.array(names))
    return source


def test_official_splits_are_kept_and_val_carved_where_there_is_none(capsys):
    names = ["train"] * 70 + ["test"] * 20 + [""] * 10
    source = with_official(make_source(100), names)
    parts = splits.make(source, config(official=True, val_of_train=0.2))
    train_and_val = np.sort(np.concatenate([parts["train"], parts["val"]]))
    np.testing.assert_array_equal(train_and_val, np.arange(70))
    np.testing.assert_array_equal(parts["test"], np.arange(70, 90))
    assert "10 of 100 images are in no official split" in capsys.readouterr().err

    source = with_official(make_source(100), ["train"] * 60 + ["val"] * 20 + ["test"] * 20)
    parts = splits.make(source, config(official=True, drop_copies_from_train=True))
    np.testing.assert_array_equal(parts["val"], np.arange(60, 80))
    others = np.concatenate([parts["val"], parts["test"]])
    copies = np.isin(source.groups[:60], source.groups[others])
    np.testing.assert_array_equal(parts["train"], np.flatnonzero(~copies))
    for source in (make_source(10), with_official(make_source(10), [""] * 10)):
        with pytest.raises(UserError, match="no splits of its own"):
            splits.make(source, config(official=True))


def whole(source: Source, parts: dict[str, np.ndarray]) -> bool:
    """Whether the parts are disjoint, sorted, and split no group."""
    rows = np.concatenate(list(parts.values()))
    return (
        len(np.unique(rows)) == len(rows)
        and all(np.all(np.diff(part) > 0) for part in parts.values())
        and splits.leaking_groups(source, parts) == 0
    )


def same(source: Source, parts, other: Source, moved) -> bool:
    """Whether the splits of two orders of the same rows hold the same images."""
    return parts.keys() == moved.keys() and all(
        set(source.ids[parts[name]]) == set(other.ids[moved[name]]) for name in parts
    )


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(150, 400), seed=st.integers(0, 99), copies=st.floats(0, 0.4),
    unknown=st.sampled_from([0.0, 0.3]), share=st.floats(0.1, 0.4),
)  # fmt: skip
def test_train_test_with_a_share_of_train_to_tune_on(n, seed, copies, unknown, share):
    source = make_source(n, seed, copies, unknown)
    fractions = {"train": 0.8, "test": 0.2}
    chosen = config(fractions=fractions, val_of_train=share, seed=seed)
    parts = splits.make(source, chosen)
    assert list(parts) == ["test", "train", "val"]
    assert whole(source, parts)
    assert sum(map(len, parts.values())) == n
    largest = np.bincount(source.groups).max()
    assert abs(len(parts["test"]) - 0.2 * n) <= 1.5 * largest
    assert abs(len(parts["val"]) - share * 0.8 * n) <= 3 * largest
    # How much of train is tuned on is no matter to test.
    np.testing.assert_array_equal(
        parts["test"], splits.by_fraction(source, chosen.fractions, seed)["test"]
    )
    other = permuted(source, np.random.default_rng(seed).permutation(n))
    assert same(source, parts, other, splits.make(other, chosen))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(150, 400), seed=st.integers(0, 99), copies=st.floats(0, 0.4),
    folds=st.integers(2, 7),
)  # fmt: skip
def test_every_image_is_tested_in_one_fold(n, seed, copies, folds):
    source = make_source(n, seed, copies)
    other = permuted(source, np.random.default_rng(seed).permutation(n))
    largest = np.bincount(source.groups).max()
    tested = np.zeros(n, int)
    for fold in range(folds):
        chosen = config(folds=folds, fold=fold, seed=seed, val_of_train=0.2)
        parts = splits.make(source, chosen)
        assert parts.keys() == {"train", "val", "test"}
        assert whole(source, parts)
        assert sum(map(len, parts.values())) == n
        assert abs(len(parts["test"]) - n / folds) <= 1.5 * largest
        assert same(source, parts, other, splits.make(other, chosen))
        tested[parts["test"]] += 1
    assert np.all(tested == 1)


def test_the_ages_of_folds_are_alike():
    source = make_source(4000, copies=0)
    age = source.labels["age"]
    means = [age[splits.fold(source, 5, i, 0)[1]].mean() for i in range(5)]
    assert np.ptp(means) < 0.1  # years; at random 1.5


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (-2, 0), (5, 5), (5, -1), (200, 0)])
def test_wrong_folds_are_named(folds, fold):
    with pytest.raises(UserError, match=r"config\.data\.split\.fold"):
        splits.make(make_source(100), config(folds=folds, fold=fold))


def balance(n=2, fractions=None, **changes) -> ml_collections.ConfigDict:
    chosen = config(fractions=fractions or {"train": 0.75, "val": 0.25})
    with chosen.unlocked():
        chosen.balanced.update(n=n, **changes)
    return chosen


def cells(source: Source, over) -> np.ndarray:
    """An independent form: a string for each crossing, "" where a label is unknown."""
    labels = {**source.labels, "decade": np.minimum(source.labels["age"] // 10, 9)}
    named = [
        ["" if not value >= 0 else f"{name}{value:g}" for value in labels[name]] for name in over
    ]
    return np.array([" ".join(row) if all(row) else "" for row in zip(*named, strict=True)])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(200, 500), seed=st.integers(0, 99), copies=st.floats(0, 0.4),
    unknown=st.sampled_from([0.0, 0.3]), each=st.integers(1, 8),
    over=st.sampled_from([("gender",), ("gender", "decade"), ("gender", "ethnicity", "decade")]),
)  # fmt: skip
def test_a_balanced_test_set(n, seed, copies, unknown, each, over):
    source = make_source(n, seed, copies, unknown)
    chosen = balance(each, over=over, short="take")
    chosen.seed = seed
    parts = splits.make(source, chosen)
    assert parts.keys() == {"train", "val", "test"}
    assert whole(source, parts)
    test = parts["test"]
    groups = source.groups[test]
    assert len(np.unique(groups)) == len(test)  # one image of a group
    # All that is left out are copies of test images.
    rest = np.delete(np.arange(n), np.concatenate(list(parts.values())))
    assert np.isin(source.groups[rest], groups).all()

    cell = cells(source, over)
    assert "" not in cell[test]
    for name in np.unique(cell[cell != ""]):
        members = np.flatnonzero(cell == name)
        taken = int(np.isin(members, test).sum())
        offered = len(np.unique(source.groups[members]))
        assert taken <= each
        assert taken <= offered // 2 or taken == each < offered
        # A group that stands in several cells is offered in one of them.
        alone = [m for m in members if len(set(cell[source.groups == source.groups[m]]) - {""}) < 2]
        at_least = len(np.unique(source.groups[alone]))
        assert taken >= (each if at_least > each else min(each, at_least // 2))
    other = permuted(source, np.random.default_rng(seed).permutation(n))
    assert same(source, parts, other, splits.make(other, chosen))


def test_short_cells_are_all_named_or_give_half(capsys):
    source = make_source(60, copies=0)
    age, gender = source.labels["age"], source.labels["gender"]
    age[:], gender[:] = 25, 0
    gender[:20] = 1
    age[:4], age[40:] = 35, 35  # 16 and 4 women, 20 and 20 men
    age[50] = np.nan
    with pytest.raises(UserError, match=r"1 of 4 cells .*: female 30-39 \(4\); .*short=take"):
        splits.make(source, balance(4, over=("gender", "decade")))
    with pytest.raises(UserError, match=r"female 20-29 \(16\), female 30-39 \(4\); "):
        splits.make(source, balance(17, over=("gender", "decade")))
    parts = splits.make(source, balance(5, over=("gender", "decade"), short="take"))
    women = parts["test"][gender[parts["test"]] == 1]
    assert np.sum(age[women] == 35) == 2
    assert len(parts["test"]) == 17
    assert "female 30-39: 2 of 4" in capsys.readouterr().err


def test_groups_whose_labels_disagree_are_taken_last():
    source = make_source(60, copies=0)
    source.groups[1::2] = source.groups[::2]  # 30 pairs
    gender = source.labels["gender"]
    gender[:] = 0
    gender[1:40:2] = 1  # 20 of them disagree
    parts = splits.make(source, balance(10, over=("gender",), short="take"))
    men = parts["test"][gender[parts["test"]] == 0]
    assert np.all(men >= 40)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"over": ("gendre",)}, "did you mean 'gender'"),
        ({"over": ()}, "over is empty"),
        ({"fractions": FRACTIONS}, "leave that out"),
        ({"fractions": {"train": 0.9, "val": 0.6}, "over": ("gender",)}, "must lie above 0"),
    ],
)
def test_wrong_balance_is_named(changes, match):
    with pytest.raises(UserError, match=match):
        splits.make(make_source(100, copies=0), balance(**changes))


@pytest.mark.skipif(not CORAL.exists(), reason=f"{CORAL} is not there")
def test_the_public_files_are_read_whole():
    names = [(CORAL / f"coral_{k}.txt").read_text().splitlines() for k in ("train", "test")]
    ids = np.array([*names[0], *names[1]])
    source = dataclasses.replace(make_source(len(ids), copies=0), ids=ids)
    files = {k: str(CORAL / f"coral_{k}.txt") for k in ("train", "test")}
    assert {k: len(v) for k, v in splits.from_files(source, files).items()} == {
        "train": 10_552, "test": 2_638,
    }  # fmt: skip


@pytest.fixture(scope="module")
def utkface(real_utkface):
    archive, cache = real_utkface
    return sources.load("utkface", str(archive), image_size=32, cache_dir=str(cache))


def test_the_public_split_of_real_faces(utkface, capsys):
    files = {k: str(CORAL / f"coral_{k}.txt") for k in ("train", "test")}
    parts = splits.make(utkface, config(files=files))
    listed = len(parts["train"]) + len(parts["val"])
    age = utkface.labels["age"]
    assert all(np.all((age[rows] >= 21) & (age[rows] <= 60)) for rows in parts.values())
    said = capsys.readouterr().err
    both = {"a": np.union1d(parts["train"], parts["val"]), "b": parts["test"]}
    leaking = splits.leaking_groups(utkface, both)
    assert leaking > 100
    assert f"{leaking:,} groups of duplicates" in said
    assert splits.leaking_groups(utkface, {k: parts[k] for k in ("train", "val")}) == 0

    # A clean figure on the same test list, and the same after an edit to those ages.
    clean = splits.make(utkface, config(files=files, drop_copies_from_train=True))
    np.testing.assert_array_equal(clean["test"], parts["test"])
    assert splits.leaking_groups(utkface, clean) == 0
    assert listed - 300 < len(clean["train"]) + len(clean["val"]) < listed
    ages = default().data.edits
    ages.min_age, ages.max_age = 21.0, 60.0
    edited = edits.apply(utkface, ages)
    again = splits.make(edited, config(files=files, drop_copies_from_train=True))
    assert same(utkface, clean, edited, again)


def test_a_balanced_set_of_real_faces(utkface, capsys):
    chosen = edits.apply(utkface, thinned())
    parts = splits.make(chosen, balance(10, short="take"))
    assert whole(chosen, parts)
    decade = chosen.labels["age"][parts["test"]] // 10
    assert set(decade) == set(range(8))
    assert np.isin(np.bincount(decade.astype(int)), range(40, 81)).all()
    assert 600 <= len(parts["test"]) <= 640
    assert "64 cells" in capsys.readouterr().err


def thinned() -> ml_collections.ConfigDict:
    """The edits of a study of imbalance: no Other, a quarter of Asian, no age of 80 or more."""
    chosen = default().data.edits
    chosen.drop = {"ethnicity": ("Other",)}
    chosen.keep = {"ethnicity": {"Asian": 0.25}}
    chosen.max_age = 79.0
    return chosen


def test_folds_of_real_faces(utkface):
    tested = [splits.fold(utkface, 5, i, 0)[1] for i in range(5)]
    assert np.array_equal(np.sort(np.concatenate(tested)), np.arange(len(utkface.ids)))
    assert splits.leaking_groups(utkface, dict(enumerate(tested))) == 0
    means = [utkface.labels["age"][rows].mean() for rows in tested]
    assert np.ptp(means) < 0.2
