"""Age gates: by hand, against scipy and fairlearn, and their intervals in simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, false_positive_rate, true_positive_rate
from scipy import stats

from agejax.evaluation import gates, metrics, uncertainty


def test_nobody_says_nothing():
    row = gates.challenge(np.array([40.0]), np.array([30.0]), [25])[0]
    assert row["tpr"]["rate"] == 1.0
    assert row["fpr"] == {"n": 0, "rate": None, "ci95": [0.0, 1.0]}
    assert gates.challenge_ages(np.array([40.0]), np.array([30.0]), np.array([0])) == []


def test_challenge_25_by_hand():
    age = np.array([13.9, 14, 15, 17, 17.9, 18, 30, 70, np.nan])
    predicted = np.array([60.0, 25, 24.9, 40, 10, 25, 24, 71, 50])
    rows = gates.challenge(age, predicted)
    assert [row["threshold"] for row in rows] == list(range(18, 31))
    row = rows[25 - 18]
    assert row == {
        "threshold": 25,
        "fpr": {"n": 4, "rate": 0.5, "ci95": uncertainty.wilson(2, 4)},
        "tpr": {"n": 3, "rate": 2 / 3, "ci95": uncertainty.wilson(2, 3)},
    }
    for kind in ("fpr", "tpr"):  # the higher the gate, the fewer pass
        rates = [row[kind]["rate"] for row in rows]
        assert rates == sorted(rates, reverse=True)
    json.dumps(rows, allow_nan=False)


def test_the_band_of_13_to_16_by_hand():
    age = np.array([7.9, 8, 12.9, 13, 16, 16.9, 17, 21.9, 22, np.nan])
    predicted = np.array([13, 16.9, 17, 13, 17, 14.5, 15, 3, 13, 14])
    assert gates.age_band(age, predicted) == {
        "first": 13,
        "last": 16,
        "tpr": {"n": 3, "rate": 2 / 3, "ci95": uncertainty.wilson(2, 3)},
        "fpr": {"n": 6, "rate": 4 / 6, "ci95": uncertainty.wilson(4, 6)},
        "fpr_near": {"n": 4, "rate": 0.5, "ci95": uncertainty.wilson(2, 4)},
    }


# ----------------------------------------------------------------------------------- challenge ages


def test_the_challenge_age_is_the_lowest_that_admits_few_enough():
    # Of 20 minors one looks 31.2 and one exactly 27: 5 % are one, so 28 is the lowest gate.
    looks = np.concatenate([np.full(18, 15.0), [27.0, 31.2]])
    age = np.concatenate([np.full(20, 16.0), [40.0]])
    predicted = np.append(looks, 99.0)
    one, five = gates.challenge_ages(age, predicted, np.arange(21))
    assert (one["limit"], one["threshold"], one["fpr"]["rate"]) == (0.01, 32, 0.0)
    assert (five["limit"], five["threshold"], five["fpr"]["rate"]) == (0.05, 28, 0.05)
    # Nobody of 20 is admitted at 32, which still allows 1 in 6: no gate is known to keep 5 %.
    assert one["ci95"][1] is None
    assert five["ci95"] == [18, None]
    assert (one["needed"], five["needed"]) == (368, 72)
    (low,) = gates.challenge_ages(np.full(3, 15.0), np.full(3, 17.9), np.arange(3), [0.5])
    assert low["threshold"] == 18  # no gate lies below the age that it asks for


@pytest.mark.parametrize(("n", "limit"), [(400, 0.05), (400, 0.01), (71, 0.05), (72, 0.05)])
def test_the_interval_is_that_of_a_quantile_in_scipy(n, limit):
    looks = 20 + 60 * np.random.default_rng(n).random(n)
    rows = gates.challenge_ages(np.full(n, 16.0), looks, np.arange(n), [limit])
    theirs = stats.quantile_test(looks, p=1 - limit).confidence_interval(0.95)
    low, high = rows[0]["ci95"]
    assert low == math.floor(theirs.low) + 1
    assert high == (math.floor(theirs.high) + 1 if np.isfinite(theirs.high) else None)
    assert (high is None) == (n < rows[0]["needed"])


def test_copies_of_a_minor_are_no_new_evidence():
    looks = 20 + 200 * np.random.default_rng(1).random(300)
    age, groups = np.full(300, 16.0), np.arange(300)
    once = gates.challenge_ages(age, looks, groups)
    thrice = gates.challenge_ages(*(np.repeat(x, 3) for x in (age, looks, groups)))
    taken_for_new = gates.challenge_ages(np.repeat(age, 3), np.repeat(looks, 3), np.arange(900))
    for a, b, c in zip(once, thrice, taken_for_new, strict=True):
        assert (a["threshold"], a["ci95"]) == (b["threshold"], b["ci95"])
        assert a["ci95"] != c["ci95"]


@pytest.mark.parametrize(("n", "limit"), [(120, 0.05), (120, 0.01), (1000, 0.01)])
def test_the_interval_holds_the_true_challenge_age_at_least_95_times_in_100(n, limit):
    """Minors look 16 ± 4 years. A percentile bootstrap holds 0.76 of the time for 1 % of 120."""
    rng, runs, held = np.random.default_rng(2), 400, 0
    true = math.ceil(stats.norm.isf(limit, 16, 4))
    for _ in range(runs):
        looks = rng.normal(16, 4, n)
        (row,) = gates.challenge_ages(np.full(n, 15.0), looks, np.arange(n), [limit])
        low, high = row["ci95"]
        held += low <= true and (high is None or true <= high)
    assert held >= stats.binom.ppf(1e-4, runs, 0.95)


# ------------------------------------------------------------------------------------ by age, group


def test_who_passes_by_true_age_by_hand():
    age = np.array([9.0, 13, 16, 16.5, 16, 17, 18, 20.9, 21, 65, np.nan])
    predicted = np.array([10.0, 25, 26, 30, 24, 17, 24, 30, 20, 60, 99])
    rows = {row.pop("name"): row for row in gates.by_age(age, predicted, 25)}
    assert list(rows) == ["0-9", "10-13", "16", "17", "18-20", "21-24", "60+"]
    assert rows["16"] == {
        "n": 3, "rate": 2 / 3, "ci95": uncertainty.wilson(2, 3), "minor": True,
        "mean_error": (10 + 13.5) / 2, "largest_error": 13.5,
    }  # fmt: skip
    assert rows["17"] == {
        "n": 1, "rate": 0.0, "ci95": uncertainty.wilson(0, 1), "minor": True,
        "mean_error": None, "largest_error": None,
    }  # fmt: skip
    assert [name for name, row in rows.items() if not row["minor"]] == ["18-20", "21-24", "60+"]
    assert rows["18-20"]["rate"] == 0.5
    assert rows["60+"]["mean_error"] == -5


def test_gates_of_groups_are_those_of_their_images_alone():
    rng = np.random.default_rng(3)
    age = rng.integers(10, 40, 800).astype(np.float32)
    predicted = (age + rng.normal(0, 5, 800)).astype(np.float32)
    labels = {"age": age, "gender": rng.integers(0, 2, 800), "ethnicity": rng.integers(0, 2, 800)}
    parts = metrics.partitions(labels, {"gender": ("m", "f"), "ethnicity": ("a", "b", "none")})
    found = gates.measure(age, predicted, parts, np.arange(800))
    assert list(found["groups"]) == ["gender", "ethnicity", "gender x ethnicity"]
    assert [row["name"] for row in found["groups"]["ethnicity"]] == ["a", "b"]
    for by, rows in found["groups"].items():
        for key in ("fpr", "tpr"):
            assert sum(row["challenge"][0][key]["n"] for row in rows) == (
                found["challenge"][0][key]["n"]), by  # fmt: skip
    crossed = {row["name"]: row for row in found["groups"]["gender x ethnicity"]}
    youth = (labels["gender"] == 1) & (labels["ethnicity"] == 0) & (age >= 14) & (age < 18)
    k, n = int((predicted[youth] >= 25).sum()), int(youth.sum())
    theirs = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert crossed["f a"]["challenge"][25 - 18]["fpr"] == {
        "n": n, "rate": k / n, "ci95": pytest.approx([theirs.low, theirs.high])
    }  # fmt: skip
    # The minors' gap is measured on minors alone.
    boys = (labels["gender"] == 0) & (age >= 14) & (age < 18)
    girls = (labels["gender"] == 1) & (age >= 14) & (age < 18)
    rates = [float((predicted[who] >= 25).mean()) for who in (boys, girls)]
    assert found["gaps"]["gender"]["difference"] == pytest.approx(max(rates) - min(rates))
    limits = [row["threshold"] for row in found["limits"]]
    assert [at["threshold"] for at in found["by_age"]] == list(dict.fromkeys([25, *limits]))
    json.dumps(found, allow_nan=False)


def test_rates_and_gaps_of_groups_are_those_of_fairlearn():
    """A gate is a classifier of adults, and those of 14 to 17 are its negatives."""
    rng = np.random.default_rng(4)
    age = rng.integers(14, 40, 3000).astype(float)
    predicted = age + rng.normal(2, 6, 3000)
    labels = {"age": age, "gender": rng.integers(0, 2, 3000), "ethnicity": rng.integers(0, 3, 3000)}
    names = {"gender": ("m", "f"), "ethnicity": ("a", "b", "c")}
    found = gates.measure(age, predicted, metrics.partitions(labels, names), np.arange(3000))
    frame = MetricFrame(
        metrics={"fpr": false_positive_rate, "tpr": true_positive_rate},
        y_true=age >= 18, y_pred=predicted >= 25,
        sensitive_features={by: np.array(of)[labels[by]] for by, of in names.items()},
    )  # fmt: skip
    for row in found["groups"]["gender x ethnicity"]:
        theirs = frame.by_group.loc[tuple(row["name"].split())]
        ours = {key: row["challenge"][25 - 18][key]["rate"] for key in ("fpr", "tpr")}
        assert ours == pytest.approx(theirs.to_dict()), row["name"]
    gap = found["gaps"]["gender x ethnicity"]
    assert not gap["left_out"]
    assert gap["difference"] == pytest.approx(frame.difference()["fpr"])
    assert gap["ratio"] == pytest.approx(1 / frame.ratio()["fpr"])
