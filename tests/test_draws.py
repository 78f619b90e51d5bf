"""How often rows are drawn: every kind of sampling, under-sampling, and their tables."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import tiny
from agejax.auditing.distribution import measure
from agejax.config import default
from agejax.data import draws, pipeline, sampling, sources
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.labels import density

KINDS = [
    {"kind": "uniform"},
    {"kind": "density", "alpha": 1.0},
    {"kind": "lds"},
    {"kind": "lds", "reweight": "inverse", "lds_sigma": 3.0, "lds_size": 9},
    {"kind": "inverse"},
    {"kind": "inverse", "power": 0.5},
    {"kind": "inverse", "over": ("gender", "ethnicity")},
    {"kind": "inverse", "over": ("decade", "gender", "ethnicity"), "power": 0.5},
    {"kind": "oversample"},
]


def settings(**changes):
    config = default().sampling
    config.update(changes)
    return config


def made(ages, n_classes=3, images=None):
    """A source with these ages, two genders and skewed classes; one image in four is a double."""
    n = len(ages)
    rng = np.random.default_rng(1)
    labels = {
        "age": np.asarray(ages, np.float32),
        "gender": rng.integers(0, 2, n).astype(np.int32),
        "ethnicity": np.minimum(rng.geometric(0.6, n) - 1, n_classes - 1).astype(np.int32),
    }
    names = {"gender": ("male", "female"), "ethnicity": tuple("abcdefg"[:n_classes])}
    groups = np.arange(n) - (np.arange(n) % 4 == 1)
    ids = np.array([f"{i:05d}" for i in range(n)])
    images = np.zeros((n, 2, 2, 3), np.uint8) if images is None else images
    return Source("made", images, labels, ids, groups, names, "made", ())


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    ages = np.floor(np.clip(rng.gamma(3, 11, 700), 1, 110))
    return made(np.where(rng.random(700) < 0.05, np.nan, ages))


ROWS = np.arange(0, 700, 2)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_every_row_is_drawn_within_one_of_its_expectation_in_every_epoch(source, changes):
    config = settings(**changes)
    chosen = draws.weigh(config, source, ROWS)
    expected = chosen.expected(len(ROWS))
    assert expected.sum() == pytest.approx(chosen.size)
    sampler = sampling.Sampler(*draws.weigh(config, source, ROWS), 4)
    assert sampler.size == chosen.size
    for epoch in range(3):
        drawn = sampler.indices(np.arange(epoch * chosen.size, (epoch + 1) * chosen.size))
        counts = np.bincount(drawn, minlength=len(ROWS))
        assert np.abs(counts - expected).max() < 1 + 1e-6


@pytest.mark.parametrize("changes", KINDS[1::3] + KINDS[-1:], ids=str)
@pytest.mark.parametrize("processes", [2, 8])
def test_the_slices_of_all_processes_make_the_batch_of_one(source, changes, processes):
    sampler = sampling.Sampler(*draws.weigh(settings(**changes), source, ROWS), 4)

    def batch(step, **which):
        return pipeline.TrainBatches(source, ROWS, sampler, 16, 2.0, True, **which)[step]

    for step in (0, sampler.size // 16, 10_000):
        whole = batch(step)
        parts = [batch(step, process_index=i, process_count=processes) for i in range(processes)]
        for name in whole:
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), whole[name])


def shares(source, config, classes):
    """Each class's share of the expected draws."""
    expected = draws.weigh(config, source, np.arange(len(source.ids))).expected(len(source.ids))
    sums = np.array([expected[classes == c].sum() for c in np.unique(classes)])
    return sums / sums.sum()


def test_inverse_counts_draw_all_classes_of_a_crossing_alike():
    rng = np.random.default_rng(2)
    source = made(np.floor(rng.uniform(20, 40, 600)))
    decade, gender = source.labels["age"] // 10, source.labels["gender"]
    crossed = 10 * decade + gender
    even = shares(source, settings(kind="inverse", over=("decade", "gender")), crossed)
    np.testing.assert_allclose(even, 1 / 4)
    np.testing.assert_allclose(
        shares(source, settings(kind="inverse", over=("gender",)), gender), 0.5
    )
    ethnicity = source.labels["ethnicity"]
    counts = np.bincount(ethnicity)
    root = shares(source, settings(kind="inverse", over=("ethnicity",), power=0.5), ethnicity)
    np.testing.assert_allclose(root, np.sqrt(counts) / np.sqrt(counts).sum())


def test_settings_of_the_sampler_reach_the_weights(source):
    ages = source.labels["age"][ROWS]
    of = lambda **changes: draws.weigh(settings(**changes), source, ROWS).weights  # noqa: E731
    np.testing.assert_array_equal(
        of(kind="density", alpha=0.9), density.dense_weight(ages, alpha=0.9)
    )
    lds = {"reweight": "inverse", "sigma": 3.0, "size": 9}
    np.testing.assert_array_equal(
        of(kind="lds", **{f"lds_{k}" if k != "reweight" else k: v for k, v in lds.items()}),
        density.lds_weight(ages, **lds),
    )
    classes = source.labels["ethnicity"][ROWS]
    counts = np.bincount(classes)
    assert counts[0] > 2 * counts[1]
    for power in (0.5, 1.0):
        weights = of(kind="inverse", over=("ethnicity",), power=power)
        many, few = (weights[classes == k][0] for k in range(2))
        assert few / many == pytest.approx((counts[0] / counts[1]) ** power)


def test_oversampling_adds_the_copies_of_its_formula():
    # Bins of 40, 10, 25 and one of all ages from 80 on, of 7; the largest has 40.
    ages = np.repeat([25.0, 39.0, 79.0, 80.0, 104.0, np.nan], [40, 10, 25, 4, 3, 6])
    copies = {20: 0 + 4, 30: 9 + 4, 70: 4 + 4, 80: 9 + 4}  # floor(0.3 (40 - n)) + floor(0.1 40)
    weights, size = draws.oversampled(ages)
    assert size == len(ages) + sum(copies.values())
    np.testing.assert_allclose(weights[ages == 25], 1 + 4 / 40)
    np.testing.assert_allclose(weights[ages == 39], 1 + 13 / 10)
    np.testing.assert_allclose(weights[ages == 79], 1 + 8 / 25)
    np.testing.assert_allclose(weights[ages >= 80], 1 + 13 / 7)
    np.testing.assert_allclose(weights[np.isnan(ages)], 1)


def test_oversampling_draws_every_original_once_an_epoch_and_its_copies_as_copies(source):
    sampler = sampling.Sampler(*draws.weigh(settings(kind="oversample"), source, ROWS), 1)
    unknown = np.isnan(source.labels["age"][ROWS])
    for epoch in range(20):
        positions = np.arange(epoch * sampler.size, (epoch + 1) * sampler.size)
        drawn, occurrence = sampler.indices(positions), sampler.occurrence(positions)
        np.testing.assert_array_equal(np.sort(drawn[occurrence == 0]), np.arange(len(ROWS)))
        assert (occurrence > 0).sum() == sampler.size - len(ROWS)
        assert not unknown[drawn[occurrence > 0]].any()


def test_copies_take_their_own_recipe_and_originals_theirs(source):
    sampler = sampling.Sampler(*draws.weigh(settings(kind="oversample"), source, ROWS), 1)
    batches = pipeline.TrainBatches(source, ROWS, sampler, 64, copy_recipe=True)
    strength = np.concatenate([batches[i]["strength"] for i in range(sampler.size // 64)])
    assert strength.dtype == np.float32
    copies = sampler.occurrence(np.arange(len(strength))) > 0
    assert copies.any()
    np.testing.assert_array_equal(strength, np.stack([~copies, copies], axis=1))


def test_under_sampling_keeps_its_share_and_whole_groups(source):
    ethnicity = source.labels["ethnicity"]
    rows = np.arange(len(ethnicity))
    kept = draws.keep(settings(keep={"ethnicity": {"majority": 0.5}}), source, rows)
    largest = np.bincount(ethnicity).argmax()
    np.testing.assert_array_equal(kept[ethnicity[kept] != largest], rows[ethnicity != largest])
    assert abs((ethnicity[kept] == largest).sum() - (ethnicity == largest).sum() / 2) <= 1
    gone = np.setdiff1d(rows, kept)
    of_class = rows[ethnicity == largest]
    assert not np.intersect1d(
        source.groups[gone], source.groups[np.intersect1d(kept, of_class)]
    ).size

    named = settings(keep={"ethnicity": {"abc"[largest]: 0.5}})
    np.testing.assert_array_equal(draws.keep(named, source, rows), kept)
    named.keep_seed = 1
    assert (draws.keep(named, source, rows) != kept[: len(draws.keep(named, source, rows))]).any()
    some = draws.keep(settings(keep={"gender": {"male": 0}}), source, ROWS)
    assert set(source.labels["gender"][some]) == {1}
    assert np.isin(some, ROWS).all()
    np.testing.assert_array_equal(draws.keep(settings(), source, ROWS), ROWS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "lds", "lds_size": 4}, r"^config\.sampling\.lds_size: need sigma > 0 and an odd"),
        ({"kind": "inverse", "over": ()}, "over is empty"),
        ({"kind": "inverse", "over": ("hair",)}, "'hair' is not one of age, decade, gender"),
        ({"keep": {"ethnicity": {"White": 0.5}}}, "no class 'White' in made; there are a, b, c"),
        ({"keep": {"hair": {"red": 0.5}}}, "unknown key 'hair'; there are gender, ethnicity"),
        ({"keep": {"gender": {"male": 1.5}}}, "keep.gender.male: 1.5; set it to a share in 0..1"),
        ({"keep": {"gender": 0.5}}, "keep.gender: 0.5; set it to"),
        ({"keep": {"gender": {"male": 0, "female": 0}}}, "no training image is left"),
    ],
    ids=str,
)
def test_a_bad_config_is_named(source, changes, message):
    config = default().sampling
    with config.ignore_type():
        config.update(changes)
    with pytest.raises(UserError, match=message):
        draws.weigh(config, source, draws.keep(config, source, ROWS))


def test_oversampling_without_ages_is_named():
    with pytest.raises(UserError, match="no training image has a known age"):
        draws.oversampled(np.full(3, np.nan))


def test_the_tables_count_images_and_draws(source):
    ages = np.repeat([25.0, 39.0, np.nan], [40, 10, 6])
    source = made(ages)
    measured = measure(settings(kind="oversample"), source, np.arange(56), seed=0, epochs=3)
    assert (measured["rows"], measured["draws"]) == (56, 56 + 4 + 13)
    table = measured["tables"]["decade"]
    assert {name: row["n"] for name, row in table.items()} == {
        "20-29": 40, "30-39": 10, "unknown": 6,
    }  # fmt: skip
    assert table["20-29"]["share"] == pytest.approx(40 / 56)
    assert table["20-29"]["expected"] == pytest.approx(44 / 73)
    assert table["30-39"] == pytest.approx(
        {"n": 10, "share": 10 / 56, "expected": 23 / 73, "drawn": 23 / 73, "distinct": 10,
         "copies": 39}, abs=0.02,
    )  # fmt: skip
    assert table["unknown"]["copies"] == 0
    for table in measured["tables"].values():
        for column in ("share", "expected", "drawn"):
            assert sum(row[column] for row in table.values()) == pytest.approx(1)
        assert sum(row["copies"] for row in table.values()) == 3 * 17
    assert set(measured["tables"]) == {"decade", "gender", "ethnicity", "gender x ethnicity"}
    with pytest.raises(UserError, match="epochs"):
        measure(settings(), source, np.arange(56), seed=0, epochs=0)


def test_the_distribution_command_prints_and_writes(faces, cache, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "agejax.data.distribution", f"--config={tiny.__file__}",
         f"--config.data.source={faces}", f"--config.data.cache_dir={cache}",
         "--config.sampling.kind=oversample", "--epochs=2", f"--output={tmp_path}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "oversample sampling" in done.stdout
    assert "White" in done.stdout
    assert (tmp_path / "distribution.txt").read_text() in done.stdout
    written = json.loads((tmp_path / "distribution.json").read_text())
    assert written["epochs"] == 2
    assert written["draws"] > written["rows"]
    assert (tmp_path / "distribution.png").stat().st_size > 10_000


def test_a_sampler_of_a_million_rows_takes_memory_for_its_weights_and_little_else():
    n = 1_000_000
    weights = np.random.default_rng(0).gamma(2.0, 1.0, n)
    tracemalloc.start()
    sampling.Sampler(weights, n, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * n  # bytes; 8 of them hold the ends of the pieces


def test_drawing_a_small_real_source(faces, cache):
    source = sources.load("utkface", str(faces), image_size=32, cache_dir=str(cache))
    rows = np.arange(0, 96, 3)
    sampler = sampling.Sampler(*draws.weigh(settings(kind="oversample"), source, rows), 0)
    batch = pipeline.TrainBatches(source, rows, sampler, 8)[2]
    np.testing.assert_array_equal(batch["image"], source.take(batch["index"]))
    assert np.isin(batch["index"], rows).all()
