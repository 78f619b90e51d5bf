"""Splits divide what they are given, keep copies together and ages alike."""

import dataclasses
import pathlib

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agejax.data import splits
from agejax.data.sources import Source
from agejax.errors import UserError

CORAL = pathlib.Path(__file__).parents[2] / "shared/data/utkface/splits"
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def make_source(n: int, seed: int = 0, copies: float = 0.2, unknown: float = 0.0) -> Source:
    """n rows, a share of them copies of an earlier row, a share without an age."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n)
    for row in np.flatnonzero(rng.random(n) < copies):
        groups[row] = groups[rng.integers(0, row + 1)]
    ages = np.where(rng.random(n) < unknown, np.nan, rng.gamma(3, 11, n)).astype(np.float32)
    ids = np.array([f"{rng.integers(10**9)}-{row}.jpg" for row in range(n)])
    return Source("made", np.zeros((n, 1, 1, 3), np.uint8), {"age": ages}, ids, groups, {}, "", ())


def permuted(source: Source, order: np.ndarray) -> Source:
    first: dict[int, int] = {}
    groups = [first.setdefault(g, row) for row, g in enumerate(source.groups[order].tolist())]
    return dataclasses.replace(
        source, labels={"age": source.labels["age"][order]}, ids=source.ids[order],
        groups=np.array(groups),
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
    assert splits.torn_groups(source, parts) == 0
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
        np.testing.assert_allclose(share, whole, atol=0.006)  # at random: up to .04
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
    assert splits.torn_groups(source, {"rest": rest, "part": part}) == 0
    assert abs(len(part) - 100) <= 6
    with pytest.raises(UserError, match="share 1"):
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
    assert splits.torn_groups(source, parts) == 1
    assert "1 groups of duplicates" in capsys.readouterr().err


def config(**changes) -> ml_collections.ConfigDict:
    default = {"seed": 0, "fractions": FRACTIONS, "files": {}, "val_of_train": 0.1}
    return ml_collections.ConfigDict(default | changes)


def test_make_follows_the_config(tmp_path):
    source = make_source(100)
    assert {k: len(v) for k, v in splits.make(source, config()).items()}.keys() == FRACTIONS.keys()
    with pytest.raises(UserError, match="'val'"):
        splits.make(source, config(fractions={"train": 0.9, "test": 0.1}))
    files = {
        "train": write(tmp_path / "a.txt", source.ids[:70]),
        "test": write(tmp_path / "b.txt", source.ids[70:]),
    }
    parts = splits.make(source, config(files=files))
    train_and_val = np.sort(np.concatenate([parts["train"], parts["val"]]))
    np.testing.assert_array_equal(train_and_val, np.arange(70))
    np.testing.assert_array_equal(parts["test"], np.arange(70, 100))


@pytest.mark.skipif(not CORAL.exists(), reason=f"{CORAL} is not there")
def test_the_public_files_are_read_whole():
    names = [(CORAL / f"coral_{k}.txt").read_text().splitlines() for k in ("train", "test")]
    ids = np.array([*names[0], *names[1]])
    source = dataclasses.replace(make_source(len(ids), copies=0), ids=ids)
    files = {k: str(CORAL / f"coral_{k}.txt") for k in ("train", "test")}
    assert {k: len(v) for k, v in splits.from_files(source, files).items()} == {
        "train": 10_552, "test": 2_638,
    }  # fmt: skip
