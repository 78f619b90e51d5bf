"""Intervals over seeds and images: by hand, against scipy, and in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from agejax.evaluation import metrics, replicates


def test_an_interval_over_seeds_joins_students_t_with_the_bootstrap_over_images():
    # One seed: over images alone. Equal seeds: the same.
    assert replicates.over_seeds([5.0], [4.6, 5.5]) == [4.6, 5.5]
    assert replicates.over_seeds([5.0, 5.0], [4.6, 5.5]) == [4.6, 5.5]
    # No spread over images: Student's t, by scipy.
    seeds = [4.8, 5.0, 5.5]
    expected = stats.t.interval(0.95, 2, np.mean(seeds), stats.sem(seeds))
    assert replicates.over_seeds(seeds, [np.mean(seeds)] * 2) == pytest.approx(expected)
    # Equal parts: the mean of both quantiles, times sqrt(2) deviations.
    deviation = stats.sem(seeds)
    images = np.mean(seeds) + np.array([-1, 1]) * 1.959964 * deviation
    half = (4.302653 + 1.959964) / 2 * np.sqrt(2) * deviation
    expected = np.mean(seeds) + np.array([-1, 1]) * half
    assert replicates.over_seeds(seeds, images) == pytest.approx(expected, rel=1e-5)


def test_what_runs_do_on_single_images_counts_once():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 5, (3, 4000))
    figure = replicates.mean_interval(noise - noise.mean(axis=0), np.arange(4000), resamples=200)
    # All images are equal over the seeds, so other images would change nothing.
    assert np.ptp(figure["images95"]) < 0.02
    shared = replicates.mean_interval(
        np.repeat(noise[:1], 3, axis=0), np.arange(4000), resamples=200
    )
    assert np.ptp(shared["images95"]) == pytest.approx(2 * 1.96 * 5 / np.sqrt(4000), rel=0.15)
    assert shared["ci95"] == shared["images95"]


def test_recipes_with_other_seeds_are_compared_by_a_t_test_of_two_samples():
    """Images that differ in nothing leave the runs' spread alone, as in scipy."""
    ours, theirs = np.array([5.1, 4.9, 5.3]), np.array([5.6, 5.8])
    alike = tuple(np.tile(of, (50, 1)) for of in (ours, theirs))
    found = replicates.difference(ours, theirs, alike, 100, matched=False)
    expected = stats.ttest_ind(ours, theirs).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(ours.mean() - theirs.mean())
    assert found["ci95"] == pytest.approx([expected.low, expected.high])
    assert found["images95"] == pytest.approx([found["mean"]] * 2)
    # One run against three: the spread is that of the three.
    alone = replicates.difference(ours[:1], ours, (alike[0][:, :1], alike[0]), 100, matched=False)
    half = stats.t.ppf(0.975, 2) * ours.std(ddof=1) * np.sqrt(1 + 1 / 3)
    assert np.ptp(alone["ci95"]) == pytest.approx(2 * half)
    # One against one: nothing is known of other trainings.
    one = replicates.difference(ours[:1], theirs[:1], (alike[0][:, :1], alike[1][:, :1]), 100,
                                matched=False)  # fmt: skip
    assert one["ci95"] == one["images95"]


@pytest.mark.parametrize(("k", "m", "matched"), [(3, 2, False), (1, 3, False), (3, 3, True)])
def test_the_interval_holds_the_true_difference_95_times_in_100(k, m, matched):
    """Runs 0.1 years apart and 200 images; an interval over images alone holds far less often."""
    rng, trials = np.random.default_rng(10 * k + m), 300
    held = alone = 0
    for _ in range(trials):
        image = rng.exponential(1, 200)
        means, resampled = [], []
        times = rng.multinomial(200, np.full(200, 1 / 200), 200)
        for count in (k, m):
            losses = image + rng.normal(0, 0.5, (count, 200)) + rng.normal(0, 0.1, (count, 1))
            means.append(losses.mean(axis=1))
            resampled.append(times @ losses.T / 200)
        found = replicates.difference(*means, tuple(resampled), 200, matched)
        held += found["ci95"][0] <= 0 <= found["ci95"][1]
        alone += found["images95"][0] <= 0 <= found["images95"][1]
    assert held >= stats.binom.ppf(1e-3, trials, 0.95)
    assert alone < 0.8 * trials


def test_two_models_with_several_seeds_differ_by_the_mean_of_their_errors():
    rng = np.random.default_rng(0)
    age = rng.uniform(0, 80, 300)
    labels = {"age": age, "gender": rng.integers(0, 2, 300)}
    ours, theirs = (
        [{"age": age + rng.normal(0, scale, 300)} for _ in range(k)]
        for scale, k in ((3, 3), (5, 2))
    )
    found = metrics.paired(ours, theirs, labels, {"gender": ("m", "f")}, np.arange(300),
                           matched=False, resamples=200)["age"]  # fmt: skip
    mae = [np.mean([np.abs(one["age"] - age).mean() for one in of]) for of in (ours, theirs)]
    assert found["difference"] == pytest.approx(mae[0] - mae[1])
    assert found["difference_ci95"][0] < mae[0] - mae[1] < found["difference_ci95"][1] < 0
    men = labels["gender"] == 0
    mae = [np.mean([np.abs(one["age"] - age)[men].mean() for one in of]) for of in (ours, theirs)]
    row = found["groups"]["gender"][0]
    assert (row["name"], row["n"]) == ("m", men.sum())
    assert row["difference"] == pytest.approx(mae[0] - mae[1])
