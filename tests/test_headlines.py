"""Headline figures and gaps between groups: by hand, against fairlearn, and in simulation."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame
from scipy import stats
from sklearn.metrics import mean_absolute_error

from agejax.evaluation import gaps, headlines


def test_headline_figures_by_hand():
    age = np.array([13.0, 13.5, 18, 18, 18, 30, 30.9, 31, np.nan])
    predicted = np.array([15.0, 13.5, 20, 24, 17, 26, 30.9, 51, 99])
    sexes = [("m", np.arange(9) % 2 == 0), ("f", np.arange(9) % 2 == 1)]
    found = headlines.measure(age, predicted, sexes, np.arange(9), resamples=50)
    error = np.array([2, 0, 2, 6, -1, -4, 0, 20.0])
    assert found["n"] == 8
    assert found["mae"] == pytest.approx(35 / 8)
    assert found["bias"] == pytest.approx(25 / 8)
    assert found["sd"] == pytest.approx(stats.tstd(error))
    assert [found["within"][x] for x in (0, 1, 2, 4, 6, 15)] == [
        2 / 8, 3 / 8, 5 / 8, 6 / 8, 7 / 8, 7 / 8]  # fmt: skip
    years = [[row[key] for key in ("name", "n", "mae", "bias")] for row in found["by_year"]]
    assert years == [["13", 2, 1, 1], ["18", 3, 3, pytest.approx(7 / 3)], ["30", 2, 2, -2]]
    # Cells: m at 18 (2 and 1: 1.5), f at 18 (6), m at 30 (0), f at 30 (4).
    cells = found["cells"]
    assert cells["mae"] == pytest.approx((1.5 + 6 + 0 + 4) / 4)
    assert (cells["n"], cells["filled"], cells["of"], cells["smallest"]) == (5, 4, 26, 1)
    json.dumps(found, allow_nan=False)


def test_headline_figures_are_those_of_scikit_learn_and_their_intervals_those_of_scipy():
    rng = np.random.default_rng(5)
    age = rng.integers(10, 36, 900).astype(float)
    predicted = age + rng.normal(1, 4, 900)
    sex = rng.integers(0, 2, 900)
    sexes = [("m", sex == 0), ("f", sex == 1)]
    found = headlines.measure(age, predicted, sexes, np.arange(900), resamples=4000)
    inside = (age >= 18) & (age <= 30)
    frame = MetricFrame(
        metrics=mean_absolute_error, y_true=age[inside], y_pred=predicted[inside],
        sensitive_features={"sex": sex[inside], "age": age[inside]},
    )  # fmt: skip
    assert found["cells"]["mae"] == pytest.approx(frame.by_group.mean())
    assert (found["cells"]["filled"], found["cells"]["n"]) == (26, inside.sum())
    assert [row["name"] for row in found["by_year"]] == [str(year) for year in range(13, 31)]
    for row in found["by_year"]:
        of = age == int(row["name"])
        assert row["mae"] == pytest.approx(mean_absolute_error(age[of], predicted[of]))
    error = predicted - age
    for values, key in ((np.abs(error), "mae"), (error, "bias")):
        theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile",
                                 rng=np.random.default_rng(6)).confidence_interval  # fmt: skip
        assert found[key] == pytest.approx(values.mean())
        assert found[f"{key}_ci95"] == pytest.approx([theirs.low, theirs.high], abs=0.02)


def test_without_sexes_there_are_no_cells_and_with_one_image_no_spread():
    found = headlines.measure(np.array([40.0]), np.array([42.0]), [], np.arange(1), resamples=9)
    assert "cells" not in found
    assert found["by_year"] == []
    assert (found["sd"], found["mae_ci95"], found["bias_ci95"]) == (0.0, [2.0, 2.0], [2.0, 2.0])


def test_the_interval_of_the_cells_holds_their_true_mean_95_times_in_100():
    rng, runs, held = np.random.default_rng(0), 100, 0
    scale = {18: 8.0, 19: 4.0, 20: 2.0}
    true = np.sqrt(2 / np.pi) * np.mean([*scale.values()])
    for _ in range(runs):
        # 18 and 20 are rare, and their errors unlike; a plain mean would be that of 19.
        age = np.repeat([18.0, 19.0, 20.0], [20, 400, 20])
        predicted = age + rng.normal(0, [scale[int(x)] for x in age])
        sexes = [(name, np.arange(440) % 2 == i) for i, name in enumerate("mf")]
        found = headlines.measure(age, predicted, sexes, np.arange(440), resamples=200)
        low, high = found["cells"]["mae_ci95"]
        held += low <= true <= high
    # 10 images in a cell: the bootstrap's own limit. The MAE of all, about 4.0, is not held for.
    assert stats.binom.ppf(1e-3, runs, 0.90) <= held <= stats.binom.ppf(1 - 1e-3, runs, 0.96)


# --------------------------------------------------------------------------------------------- gaps


def divided(names: str, sizes: tuple[int, ...]) -> list[tuple[str, np.ndarray]]:
    group = np.repeat(np.arange(len(sizes)), sizes)
    return [(name, group == i) for i, name in enumerate(names)]


def test_gaps_are_those_of_fairlearn():
    rng = np.random.default_rng(0)
    parts = divided("abcd", (40, 90, 60, 29))
    name = np.concatenate([[group] * int(part.sum()) for group, part in parts])
    losses = rng.exponential(np.repeat([2.0, 3.0, 4.0, 9.0], (40, 90, 60, 29)))
    (found,) = gaps.measure(losses, np.ones(219, bool), {"x": parts}, np.arange(219)).values()
    large = name != "d"
    frame = MetricFrame(metrics=mean_absolute_error, y_true=np.zeros(190), y_pred=losses[large],
                        sensitive_features=name[large])  # fmt: skip
    assert found["difference"] == pytest.approx(frame.difference())
    assert found["ratio"] == pytest.approx(1 / frame.ratio())
    assert found["largest"] == {"name": "c", "n": 60, "mean": pytest.approx(frame.by_group["c"])}
    assert found["smallest"]["name"] == "a"
    assert found["left_out"] == [{"name": "d", "n": 29}]
    low, high = found["difference_ci95"]
    assert 0 <= low < found["difference"] < high


def test_of_two_groups_the_interval_is_that_of_their_difference():
    """Two normal means: 1.96 standard errors, and by the delta method those of the logarithm."""
    rng = np.random.default_rng(1)
    losses = np.concatenate([rng.normal(5, 1, 400), rng.normal(4, 2, 400)])
    found = gaps.measure(losses, np.ones(800, bool), {"x": divided("ab", (400, 400))},
                         np.arange(800), resamples=4000)["x"]  # fmt: skip
    a, b = losses[:400], losses[400:]
    error = 1.96 * np.hypot(stats.sem(a), stats.sem(b))
    gap = a.mean() - b.mean()
    assert found["difference_ci95"] == pytest.approx([gap - error, gap + error], abs=0.02)
    error = 1.96 * np.hypot(stats.sem(a) / a.mean(), stats.sem(b) / b.mean())
    bounds = a.mean() / b.mean() * np.exp([-error, error])
    assert found["ratio_ci95"] == pytest.approx(bounds, abs=0.01)


@pytest.mark.parametrize("means", [(3.0,) * 6, (3.0, 3.0, 3.0, 3.0, 3.0, 4.5)])
def test_the_interval_holds_the_true_gap_95_times_in_100(means):
    """Equal groups too, which a bootstrap of the largest minus the smallest would set apart."""
    rng, runs, held = np.random.default_rng(2), 150, np.zeros(2)
    sizes = (300, 200, 150, 100, 100, 60)
    parts, scale = divided("abcdef", sizes), np.repeat(means, sizes)
    for _ in range(runs):
        losses = rng.exponential(scale)
        found = gaps.measure(losses, np.ones(910, bool), {"x": parts}, np.arange(910),
                             resamples=200)["x"]  # fmt: skip
        truth = (max(means) - min(means), max(means) / min(means))
        for i, (key, true) in enumerate(zip(("difference", "ratio"), truth, strict=True)):
            low, high = found[f"{key}_ci95"]
            held[i] += low <= true <= high
    assert held.min() >= stats.binom.ppf(1e-3, runs, 0.95)


def test_copies_are_one_piece_of_evidence_and_unknown_images_none():
    rng = np.random.default_rng(3)
    losses, groups = rng.exponential(2.0, 120), np.arange(120)
    parts = divided("ab", (60, 60))
    once = gaps.measure(losses, np.ones(120, bool), {"x": parts}, groups)
    twice = gaps.measure(
        np.repeat(losses, 2), np.ones(240, bool),
        {"x": [(name, np.repeat(part, 2)) for name, part in parts]}, np.repeat(groups, 2),
    )  # fmt: skip
    assert twice["x"]["difference_ci95"] == pytest.approx(once["x"]["difference_ci95"])
    more = np.append(losses, [np.nan, np.nan])
    padded = {"x": [(name, np.append(part, [True, True])) for name, part in parts]}
    assert gaps.measure(more, np.arange(122) < 120, padded, np.arange(122)) == once


def test_a_group_without_an_error_has_no_ratio():
    losses = np.repeat([1.0, 0.0, 0.0], 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gaps.measure(losses, np.ones(90, bool), {"x": divided("abc", (30, 30, 30))},
                             np.arange(90))["x"]  # fmt: skip
    assert (found["difference"], found["ratio"], found["ratio_ci95"]) == (1.0, None, None)
    assert found["difference_ci95"] == [1.0, 1.0]
    few = gaps.measure(losses, np.arange(90) < 40, {"x": divided("abc", (30, 30, 30))},
                       np.arange(90))  # fmt: skip
    assert few == {}


def test_a_gap_has_no_upper_end_where_a_group_is_one_person():
    """Resamples of people miss a group that has only one or two: then nothing can be told."""
    losses, parts = np.repeat([4.0, 6.0], 60) + np.arange(120) % 3, divided("ab", (60, 60))
    for people, known in ((1, False), (10, True)):
        groups = np.arange(120) // (60 // people)
        (found,) = gaps.measure(losses, np.ones(120, bool), {"x": parts}, groups).values()
        low, high = found["difference_ci95"]
        assert np.isfinite(high) == known
        assert low == (0 if not known else pytest.approx(found["difference"], abs=0.5))
        assert np.isfinite(found["ratio_ci95"]).all() == known
