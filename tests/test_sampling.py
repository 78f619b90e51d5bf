"""The stream of draws: counts, permutations, random access."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agejax.data.sampling import Sampler
from agejax.errors import UserError

SEEDS = st.integers(-(2**70), 2**70)
SIZES = st.integers(1, 400)
WEIGHT = st.just(0.0) | st.floats(1e-3, 1e3)
WEIGHTS = st.lists(WEIGHT, min_size=1, max_size=100).filter(any)


def sampler(weights: list[float] | None, size: int, seed: int) -> Sampler:
    return Sampler(None if weights is None else np.array(weights), size, seed)


@given(size=SIZES, seed=SEEDS, epoch=st.integers(0, 10**9))
def test_without_weights_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    drawn = Sampler(None, size, seed).indices(np.arange(epoch * size, (epoch + 1) * size))
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(np.sort(drawn), np.arange(size))


@given(weights=WEIGHTS, size=SIZES, seed=SEEDS, epoch=st.integers(0, 10**6))
def test_counts_are_within_one_of_their_expectation(
    weights: list[float], size: int, seed: int, epoch: int
) -> None:
    drawn = sampler(weights, size, seed).indices(np.arange(epoch * size, (epoch + 1) * size))
    counts = np.bincount(drawn, minlength=len(weights))
    expected = size * np.array(weights) / sum(weights)
    assert len(counts) == len(weights)
    assert np.abs(counts - expected).max() < 1 + 1e-6
    assert not counts[np.array(weights) == 0].any()


@given(
    weights=st.none() | WEIGHTS,
    size=SIZES,
    seed=SEEDS,
    cuts=st.lists(st.integers(0, 2000), min_size=2, max_size=9).map(sorted),
)
def test_any_part_of_the_stream_is_computed_on_its_own(
    weights: list[float] | None, size: int, seed: int, cuts: list[int]
) -> None:
    whole = sampler(weights, size, seed)
    pairs = list(itertools.pairwise(cuts))
    for ask in ("indices", "occurrence"):
        of_whole = getattr(whole, ask)(np.arange(cuts[0], cuts[-1]))
        parts = [getattr(sampler(weights, size, seed), ask)(np.arange(*pair)) for pair in pairs]
        np.testing.assert_array_equal(np.concatenate(parts), of_whole)
        # Neither need they lie side by side, nor in order.
        some = np.arange(len(of_whole))[::-3]
        np.testing.assert_array_equal(getattr(whole, ask)(cuts[0] + some), of_whole[some])


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_slices_of_the_global_batches_add_up_to_an_epoch(processes: int) -> None:
    batch, size = 32, 320
    local = batch // processes
    drawn = [
        Sampler(None, size, 5).indices(
            np.arange(step * batch + p * local, step * batch + (p + 1) * local)
        )
        for step in range(size // batch)
        for p in range(processes)
    ]
    whole = Sampler(None, size, 5).indices(np.arange(size))
    np.testing.assert_array_equal(np.concatenate(drawn), whole)


@given(weights=WEIGHTS, size=SIZES, seed=SEEDS, epoch=st.integers(0, 99))
def test_occurrence_counts_the_copies_of_each_row(
    weights: list[float], size: int, seed: int, epoch: int
) -> None:
    it = sampler(weights, size, seed)
    positions = np.arange(epoch * size, (epoch + 1) * size)
    rows, copies = it.indices(positions), it.occurrence(positions)
    for row in np.unique(rows):
        mine = np.sort(copies[rows == row])
        np.testing.assert_array_equal(mine, np.arange(len(mine)))


def test_without_weights_nothing_is_a_copy() -> None:
    assert not Sampler(None, 10, 0).occurrence(np.arange(30)).any()


def test_epochs_and_seeds_differ_and_are_not_in_order() -> None:
    n = 20_000
    a = Sampler(None, n, 0).indices(np.arange(2 * n))
    b = Sampler(None, n, 1).indices(np.arange(n))
    order = np.arange(n)
    for x, y in ((a[:n], a[n:]), (a[:n], b), (a[:n], order), (a[: n - 1], a[1:n])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(n)
        assert np.mean(x == y) < 10 / n
        assert np.mean(np.diff(x) == np.diff(y)) < 10 / n


@settings(max_examples=20)
@given(seed=SEEDS)
def test_every_row_is_equally_likely_at_a_position(seed: int) -> None:
    size, epochs = 7, 2000
    drawn = Sampler(None, size, seed).indices(np.arange(size * epochs)).reshape(epochs, size)
    for position in (0, 3, 6):
        counts = np.bincount(drawn[:, position], minlength=size)
        chi2 = np.sum((counts - epochs / size) ** 2) / (epochs / size)
        assert chi2 < 45  # p = 5e-8 at 6 degrees of freedom


def test_expected_counts_hold_on_average() -> None:
    weights = np.array([0.1, 0.2, 0.7])
    counts = np.bincount(Sampler(weights, 4, 3).indices(np.arange(4 * 5000)))
    np.testing.assert_allclose(counts / 5000, 4 * weights, atol=0.03)


def test_a_batch_of_ten_million_rows_needs_no_memory_of_their_size() -> None:
    n = 10_000_000
    it = Sampler(np.random.default_rng(0).gamma(2.0, 1.0, n), n, 0)
    tracemalloc.start()
    # Across an epoch's end, far into the run.
    rows = it.indices(np.arange(5 * n - 512, 5 * n + 512))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.min() >= 0
    assert rows.max() < n
    assert peak < 2**20


@pytest.mark.parametrize(
    ("weights", "size", "message"),
    [
        ([1.0, -0.1], 4, "0 or above"),
        ([1.0, np.nan], 4, "0 or above"),
        ([1.0, np.inf], 4, "0 or above"),
        ([], 4, "0 or above"),
        ([0.0, 0.0], 4, "all weights are 0"),
        ([1.0], 0, "is the training split empty"),
        (None, 0, "is the training split empty"),
    ],
)
def test_bad_weights_are_named(weights: list[float] | None, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sampler(weights, size, 0)
