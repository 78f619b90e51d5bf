"""Calibration, intervals and risk, against scipy, scikit-learn and simulation."""

from __future__ import annotations

import fractions
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn import metrics as sklearn_metrics

from agejax import files
from agejax.evaluation import metrics, uncertainty

# ----------------------------------------------------------------------------------- probabilities


def sure_of_itself(n: int, classes: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of a calibrated model with logits multiplied by `factor`."""
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 1.5, (n, classes))
    honest = special.softmax(logits, axis=1)
    labels = (honest.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=classes - 1)
    return special.softmax(factor * logits, axis=1).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_temperature_undoes_what_scaled_the_logits(classes, factor):
    p, labels = sure_of_itself(20_000, classes, factor)
    t = uncertainty.temperature(p, labels)
    assert t == pytest.approx(factor, rel=0.06)
    after = uncertainty.scaled(p, t)
    assert uncertainty.ece(after, labels) < 0.02
    if factor != 1:
        assert uncertainty.ece(p, labels) > 0.05
    np.testing.assert_array_equal(after.argmax(axis=1), p.argmax(axis=1))


def test_temperature_is_the_minimum_that_another_search_finds():
    p, labels = sure_of_itself(500, 4, 2.0)

    def loss(t):
        return sklearn_metrics.log_loss(labels, special.softmax(np.log(p) / t, axis=1))

    best = optimize.minimize(lambda x: loss(x[0]), [1.0], method="Nelder-Mead", tol=1e-8).x[0]
    assert uncertainty.temperature(p, labels) == pytest.approx(best, rel=1e-4)
    assert uncertainty.nll(p, labels) == pytest.approx(loss(1.0), abs=1e-6)


def test_temperature_of_a_model_never_wrong_is_finite():
    labels = np.arange(30) % 3
    assert 0.01 <= uncertainty.temperature(np.eye(3)[labels] * 0.4 + 0.2, labels) < 0.05
    assert math.isfinite(uncertainty.temperature(np.eye(3)[labels], labels))  # with zeros
    assert math.isfinite(uncertainty.temperature(np.eye(3)[(labels + 1) % 3], labels))


def test_expected_calibration_error_by_hand():
    # (0.4, 0.5]: 0.5 twice, once right; (0.8, 0.9]: 0.9 and 0.85, right; (0.9, 1]: 1, wrong.
    p = np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9], [0.85, 0.15], [1.0, 0.0], [0.3, 0.7]])
    labels = np.array([0, 1, 1, 0, 1, -1])  # the last does not count
    rows = uncertainty.reliability(p, labels, bins=10)
    assert [(round(row["low"], 6), row["n"]) for row in rows] == [(0.4, 2), (0.8, 2), (0.9, 1)]
    assert [row["confidence"] for row in rows] == pytest.approx([0.5, 0.875, 1.0])
    assert [row["accuracy"] for row in rows] == [0.5, 1.0, 0.0]
    assert uncertainty.ece(p, labels, bins=10) == pytest.approx((0 * 2 + 0.125 * 2 + 1 * 1) / 5)


def test_expected_calibration_error_is_that_of_a_histogram():
    p, labels = sure_of_itself(2000, 5, 2.0)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    total, _, _ = stats.binned_statistic(confidence, right - confidence, "sum", 15, (0, 1))
    assert uncertainty.ece(p, labels) == pytest.approx(np.abs(total).sum() / 2000, abs=1e-6)


def test_unknown_classes_change_nothing():
    p, labels = sure_of_itself(300, 3, 2.0)
    more, unknown = np.concatenate([p, p[::-1]]), np.concatenate([labels, np.full(300, -1)])
    assert uncertainty.temperature(more, unknown) == uncertainty.temperature(p, labels)
    assert uncertainty.reliability(more, unknown) == uncertainty.reliability(p, labels)


# ---------------------------------------------------------------------------------- age intervals


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=60),
    st.integers(1, 99),
    st.integers(0, 2**16),
)
def test_the_quantile_is_the_smallest_that_enough_errors_do_not_exceed(errors, percent, seed):
    """Against the definition, in whole numbers: #{r <= q} >= (n + 1)(1 - alpha)."""
    n = len(errors)
    enough = [e for e in errors if sum(r <= e for r in errors) * 100 >= (n + 1) * (100 - percent)]
    shuffled = np.random.default_rng(seed).permutation([*errors, np.nan]).astype(float)
    expected = min(enough) if enough else math.inf
    assert uncertainty.conformal(shuffled, percent / 100) == expected
    sigma = np.full(n + 1, 2.0)
    assert uncertainty.conformal(shuffled, percent / 100, sigma) == expected / 2


def people(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """A model whose error grows with the predicted age; it knows its uncertainty within 30 %."""
    predicted = rng.uniform(1, 100, n)
    spread = 1 + predicted / 8
    age = np.clip(predicted + spread * rng.standard_t(4, n), 0, 116)
    sigma = spread * rng.uniform(0.7, 1.3, n)
    return {"age": age, "predicted": predicted, "sigma": sigma}


def three_groups(predicted: np.ndarray) -> metrics.Partition:
    young, old = predicted < 33, predicted >= 66
    return [("young", young), ("middle", ~young & ~old), ("old", old)]


@settings(max_examples=8)
@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.1, 0.3]), st.booleans())
def test_over_many_calibrations_the_coverage_is_binomial(seed, alpha, by_sigma):
    """One new image per calibration, so that hits are independent: marginally, and by group.

    The band's probability is 1 - 1e-6: no example may fail by chance.
    """
    rng = np.random.default_rng(seed)
    hits = dict.fromkeys(("all", "young", "middle", "old"), 0)
    tests = dict.fromkeys(hits, 0)
    for _ in range(400):
        seen, new = people(rng, 300), people(rng, 1)
        errors = np.abs(seen["age"] - seen["predicted"])
        sigmas = (seen["sigma"], new["sigma"]) if by_sigma else (None, None)
        q = uncertainty.conformal(errors, alpha, sigmas[0])
        fitted = uncertainty.conformal_by_group(
            errors, three_groups(seen["predicted"]), alpha, sigmas[0]
        )
        parts = three_groups(new["predicted"])
        marginal = uncertainty.interval(new["predicted"], q, sigmas[1])
        grouped = uncertainty.interval(new["predicted"], fitted.of(parts), sigmas[1])
        held = {"all": (marginal, np.ones(1, bool))} | {k: (grouped, part) for k, part in parts}
        for name, ((lower, upper), part) in held.items():
            inside = (lower <= new["age"]) & (new["age"] <= upper)
            hits[name] += int((inside & part).sum())
            tests[name] += int(part.sum())
    for name, k in hits.items():
        # At least nominal, and by at most 1 / (n + 1) more, of the smallest group there may be.
        low = stats.binom.ppf(1e-6, tests[name], 1 - alpha)
        high = stats.binom.ppf(1 - 1e-6, tests[name], min(1, 1 - alpha + 1 / 60))
        assert low <= k <= high, (name, k, tests[name])


def test_groups_are_covered_by_their_own_quantile_and_not_by_the_marginal_one():
    rng = np.random.default_rng(0)
    seen, new, alpha = people(rng, 6000), people(rng, 6000), 0.1
    errors = np.abs(seen["age"] - seen["predicted"])
    q = uncertainty.conformal(errors, alpha)
    fitted = uncertainty.conformal_by_group(errors, three_groups(seen["predicted"]), alpha)
    parts = three_groups(new["predicted"])

    lower, upper = uncertainty.interval(new["predicted"], q)
    row = uncertainty.coverage(new["age"], lower, upper, alpha, 6000)
    assert row["band95"][0] <= row["coverage"] <= row["band95"][1]
    plain = uncertainty.coverage_by_group(new["age"], lower, upper, alpha, parts, fitted)
    assert plain[0]["coverage"] > plain[0]["band95"][1]  # the young need no such width
    assert plain[2]["coverage"] < plain[2]["band95"][0]  # the old need more

    lower, upper = uncertainty.interval(new["predicted"], fitted.of(parts))
    rows = uncertainty.coverage_by_group(new["age"], lower, upper, alpha, parts, fitted)
    for row, (name, part) in zip(rows, parts, strict=True):
        assert (row["name"], row["n"], row["own"]) == (name, part.sum(), True)
        assert row["band95"][0] <= row["coverage"] <= row["band95"][1]
    assert rows[0]["width"] < rows[1]["width"] < rows[2]["width"]


def test_the_band_holds_the_coverage_as_often_as_it_says():
    """A plain binomial band, which ignores the chance in the calibration, holds too few."""
    rng = np.random.default_rng(0)
    inside, plain, alpha, trials = 0, 0, 0.1, 400
    for _ in range(trials):
        q = uncertainty.conformal(rng.exponential(1, 150), alpha)
        age, predicted = 50 + rng.exponential(1, 1000), np.full(1000, 50.0)
        row = uncertainty.coverage(age, *uncertainty.interval(predicted, q), alpha, 150)
        inside += row["band95"][0] <= row["coverage"] <= row["band95"][1]
        low, high = stats.binom.interval(0.95, 1000, 1 - alpha)
        plain += low <= 1000 * row["coverage"] <= high
    assert 0.93 <= inside / trials <= 0.98
    assert plain / trials < 0.7


@pytest.mark.parametrize("alpha", ["0.1", "0.05", "0.2", "0.3", "0.45"])
def test_the_rank_is_right_for_every_number_of_images(alpha):
    share = 1 - fractions.Fraction(alpha)
    for n in range(1, 100):
        rank = next(r for r in itertools.count(1) if r >= (n + 1) * share)
        errors = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
        expected = rank if rank <= n else np.inf
        assert uncertainty.conformal(errors, float(alpha)) == expected


def test_too_few_images_give_the_whole_range_and_a_small_group_says_so():
    assert uncertainty.conformal(np.arange(8.0), 0.1) == math.inf
    assert uncertainty.conformal(np.arange(9.0), 0.1) == 8.0
    lower, upper = uncertainty.interval(np.array([40.0]), math.inf)
    assert (lower, upper) == (0, 116)
    row = uncertainty.coverage(np.array([3.0]), lower, upper, 0.1, 8)
    assert row == {"n": 1, "coverage": 1.0, "band95": [1.0, 1.0], "width": 116.0}

    errors = np.concatenate([np.arange(100.0), np.full(29, 200.0), [np.nan] * 5])
    many, few = np.arange(134) < 100, np.arange(134) >= 100
    fitted = uncertainty.conformal_by_group(errors, [("many", many), ("few", few)], 0.1)
    assert fitted.groups["many"] == uncertainty.GroupQuantile(100, 90.0, own=True)
    assert fitted.groups["few"] == uncertainty.GroupQuantile(29, 200.0, own=False)
    # An image in no group, such as one of unknown gender, gets the overall quantile.
    one = np.array([True, False])
    assert fitted.of([("many", one), ("few", one & False)]).tolist() == [90.0, 200.0]


def test_small_groups_share_a_quantile_of_their_own():
    """Two groups with large errors are too small; the overall quantile would cover few of them."""
    errors = np.concatenate([np.arange(1.0, 101.0), 1000 + np.arange(20.0), 2000 + np.arange(15.0)])
    rows = np.arange(135)
    parts = [("many", rows < 100), ("few", (rows >= 100) & (rows < 120)), ("fewer", rows >= 120)]
    fitted = uncertainty.conformal_by_group(errors, parts, 0.1)
    assert fitted.groups["many"].own
    shared = uncertainty.conformal(errors[100:], 0.1)
    assert fitted.groups["few"] == uncertainty.GroupQuantile(35, shared, own=False)
    assert fitted.groups["fewer"] == fitted.groups["few"]
    # Five together are too few at 90 %: they get the widest quantile.
    fitted = uncertainty.conformal_by_group(
        errors[:105], [("many", rows[:105] < 100), ("few", rows[:105] >= 100)], 0.1
    )
    widest = max(fitted.everybody.q, fitted.groups["many"].q)
    assert fitted.groups["few"].q == widest


def test_intervals_stay_within_the_ages_there_are_and_know_no_unknown_age():
    predicted, sigma = np.array([2.0, 50.0, 114.0, 120.0]), np.array([1.0, 2.0, 3.0, 1.0])
    lower, upper = uncertainty.interval(predicted, 3.0, sigma)
    assert lower.tolist() == [0, 44, 105, 116]
    assert upper.tolist() == [5, 56, 116, 116]
    lower, upper = uncertainty.interval(predicted, np.array([1.0, 2.0, 3.0, 4.0]), high=130)
    assert upper.tolist() == [3, 52, 117, 124]
    age = np.array([2.0, 60.0, np.nan, np.nan])
    row = uncertainty.coverage(age, lower, upper, 0.1, 1000)
    assert (row["n"], row["coverage"], row["width"]) == (2, 0.5, 3.0)
    none = uncertainty.coverage(np.full(4, np.nan), lower, upper, 0.1, 1000)
    assert files.clean(none) == {
        "n": 0, "coverage": None, "band95": [None, None], "width": None
    }  # fmt: skip


# ----------------------------------------------------------------------------------- risk and share


def test_risk_and_share_by_hand():
    errors, uncertain = np.array([9.0, 1.0, 2.0, 4.0, np.nan]), np.array([7, 1, 3, 3, 0])
    kept, risk = uncertainty.risk_coverage(errors, uncertain)
    assert kept.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([1, (1 + 3) / 2, 7 / 3, 4])  # equally sure: the mean of 2 and 4
    assert uncertainty.aurc(errors, uncertain) == pytest.approx((1 + 2 + 7 / 3 + 4) / 4)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=50), st.integers(0, 2**16))
def test_who_knows_the_errors_is_best_and_who_knows_nothing_has_the_mean(errors, seed):
    size = np.array(errors)
    rng = np.random.default_rng(seed)
    perfect, worst = uncertainty.aurc(size, size), uncertainty.aurc(size, -size)
    some = uncertainty.aurc(size, rng.permutation(len(size)))
    assert perfect - 1e-9 <= some <= worst + 1e-9
    assert perfect <= size.mean() + 1e-9
    assert uncertainty.aurc(size, np.zeros(len(size))) == pytest.approx(size.mean())
    order = rng.permutation(len(size))
    assert uncertainty.aurc(size[order], size[order]) == pytest.approx(perfect)


def test_the_model_that_knows_its_errors_partly_lies_between():
    rng = np.random.default_rng(0)
    new = people(rng, 5000)
    errors = np.abs(new["age"] - new["predicted"])
    some = uncertainty.aurc(errors, new["sigma"])
    assert uncertainty.aurc(errors, errors) < some < 0.85 * errors.mean()
    assert uncertainty.risk_coverage(errors, new["sigma"])[1][-1] == pytest.approx(errors.mean())


# ------------------------------------------------------------------------------------------- shares


@given(st.integers(0, 3000), st.integers(1, 3000), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_that_of_scipy(k, n, confidence):
    k = min(k, n)
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert uncertainty.wilson(k, n, confidence) == pytest.approx([theirs.low, theirs.high])


def test_the_share_of_nobody_may_be_anything():
    assert uncertainty.wilson(0, 0) == [0.0, 1.0]
