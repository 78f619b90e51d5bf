"""Metrics: equal to scikit-learn's, masked, with valid intervals and groups."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from agejax.errors import UserError
from agejax.evaluation import bootstrap, metrics
from agejax.labels import DECADES

NAMES = {"gender": ("male", "female"), "ethnicity": ("A", "B", "C", "D", "E")}


def made_up(n: int, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Predictions and labels of `n` faces, all labels known."""
    rng = np.random.default_rng(seed)
    labels = {
        "age": rng.integers(0, 110, n).astype(np.float32),
        "gender": rng.integers(0, 2, n).astype(np.int32),
        "ethnicity": rng.integers(0, 5, n).astype(np.int32),
    }
    predictions = {
        "age": (labels["age"] + rng.normal(1, 6, n)).astype(np.float32),
        "gender": (rng.random((n, 2)) + 0.5 * np.eye(2)[labels["gender"]]).astype(np.float32),
        "ethnicity": (rng.random((n, 5)) + 0.5 * np.eye(5)[labels["ethnicity"]]).astype(np.float32),
    }
    return predictions, labels


def evaluate(
    predictions: dict[str, np.ndarray], labels: dict[str, np.ndarray], **options: Any
) -> dict[str, Any]:
    return metrics.evaluate(
        predictions, labels, NAMES, **{"floor_age": 30.0, "resamples": 20} | options
    )


def test_figures_equal_scikit_learn():
    predictions, labels = made_up(500)
    result = evaluate(predictions, labels)
    true, said = labels["age"].astype(float), predictions["age"].astype(float)
    error = said - true
    _, decade, sizes = np.unique(np.minimum(true // 10, 9), return_inverse=True, return_counts=True)
    alike = 1 / sizes[decade]  # each decade counts the same
    assert result["n"] == 500
    assert {k: v for k, v in result["age"].items() if k != "mae_ci95"} == pytest.approx(
        {
            "n": 500,
            "mae": sklearn_metrics.mean_absolute_error(true, said),
            "macro_mae": sklearn_metrics.mean_absolute_error(true, said, sample_weight=alike),
            "rmse": sklearn_metrics.root_mean_squared_error(true, said),
            "median_ae": sklearn_metrics.median_absolute_error(true, said),
            "bias": said.mean() - true.mean(),
            "cs3": sum(abs(e) <= 3 for e in error) / 500,
            "cs5": sum(abs(e) <= 5 for e in error) / 500,
            "cs10": sum(abs(e) <= 10 for e in error) / 500,
            "floor_mae": sklearn_metrics.mean_absolute_error(true, np.full(500, 30.0)),
        },
        abs=1e-9,
    )
    for target in ("gender", "ethnicity"):
        true, said = labels[target], predictions[target].argmax(axis=1)
        low, high = result[target].pop("accuracy_ci95")
        assert 0.3 < low < result[target]["accuracy"] < high < 1
        assert result[target] == pytest.approx(
            {
                "n": 500,
                "accuracy": sklearn_metrics.accuracy_score(true, said),
                "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(true, said),
                "macro_f1": sklearn_metrics.f1_score(true, said, average="macro"),
            },
            abs=1e-9,
        )


def test_an_error_of_exactly_k_years_is_within_k():
    age = np.full(4, 40.0)
    result = evaluate({"age": age + np.array([3, -5, 10, 10.5])}, {"age": age})["age"]
    assert [result[f"cs{k}"] for k in (3, 5, 10)] == [0.25, 0.5, 0.75]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_class_scores_equal_scikit_learn_also_with_classes_absent(pairs):
    true, said = np.array(pairs).T
    labels, predictions = {"ethnicity": true}, {"ethnicity": np.eye(5)[said]}
    result = evaluate(predictions, labels)["ethnicity"]
    assert result["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(true, said, average="macro", zero_division=0), abs=1e-9
    )
    recall = sklearn_metrics.recall_score(
        true, said, labels=np.unique(true), average="macro", zero_division=0
    )
    assert result["balanced_accuracy"] == pytest.approx(recall, abs=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.integers(1, 40))
def test_an_image_without_a_label_changes_nothing(seed, unknown):
    predictions, labels = made_up(60, seed)
    more_predictions, more_labels = made_up(unknown, seed + 1)
    more_labels = {
        "age": np.full(unknown, np.nan, np.float32),
        "gender": np.full(unknown, -1, np.int32),
        "ethnicity": np.full(unknown, -1, np.int32),
    }
    joined = evaluate(
        {k: np.concatenate([v, more_predictions[k]]) for k, v in predictions.items()},
        {k: np.concatenate([v, more_labels[k]]) for k, v in labels.items()},
    )
    alone = evaluate(predictions, labels)
    assert joined.pop("n") == alone.pop("n") + unknown
    assert joined == alone


def test_an_image_that_lacks_one_label_counts_for_the_others_alone():
    predictions, labels = made_up(200)
    labels["gender"][::3] = -1
    labels["age"][1::5] = np.nan
    groups = evaluate(predictions, labels)["groups"]
    hit = predictions["gender"].argmax(axis=1) == labels["gender"]
    error = np.abs(predictions["age"].astype(float) - labels["age"])
    for kind, row in enumerate(groups["gender"]["ethnicity"]):
        counts = (labels["ethnicity"] == kind) & (labels["gender"] >= 0)
        assert row["n"] == counts.sum()
        assert row["accuracy"] == pytest.approx(hit[counts].mean())
    for kind, row in enumerate(groups["age"]["gender"]):
        counts = (labels["gender"] == kind) & np.isfinite(labels["age"])
        assert row["n"] == counts.sum()
        assert row["mae"] == pytest.approx(error[counts].mean())


def test_a_target_without_labels_is_absent():
    predictions, labels = made_up(40)
    labels["age"][:] = np.nan
    labels["ethnicity"][:] = -1
    result = evaluate(predictions, labels)
    assert result.keys() == {"n", "gender", "groups"}
    assert result["groups"].keys() == {"gender"}
    del labels["gender"]
    assert evaluate(predictions, labels) == {"n": 40, "groups": {}}


def test_groups_are_those_of_the_labels():
    predictions, labels = made_up(400)
    groups = evaluate(predictions, labels)["groups"]
    error = predictions["age"].astype(float) - labels["age"]
    for row in groups["age"]["decade"]:
        low = 10 * DECADES.index(row["name"])
        inside = (labels["age"] >= low) & (labels["age"] < (low + 10 if low < 90 else 1000))
        assert row["n"] == inside.sum()
        assert row["mae"] == pytest.approx(np.abs(error[inside]).mean(), abs=1e-9)
        assert row["bias"] == pytest.approx(error[inside].mean(), abs=1e-9)
    for by in ("decade", "gender", "ethnicity", "gender x ethnicity"):
        assert sum(row["n"] for row in groups["age"][by]) == 400
    hit = predictions["gender"].argmax(axis=1) == labels["gender"]
    assert [row["accuracy"] for row in groups["gender"]["ethnicity"]] == pytest.approx(
        [hit[labels["ethnicity"] == c].mean() for c in range(5)], abs=1e-9
    )


def test_the_worst_group_has_thirty_images():
    age = np.repeat([5.0, 45.0, 95.0], [30, 100, 29])
    wrong_by = np.repeat([4.0, 1.0, 50.0], [30, 100, 29])
    worst = evaluate({"age": age - wrong_by}, {"age": age})["groups"]["age"]["worst"]
    assert worst == {
        "by": "decade", "name": "0-9", "n": 30, "mae": 4.0, "bias": -4.0, "mae_ci95": [4.0, 4.0],
    }  # fmt: skip
    ethnicity = np.repeat([0, 1], [30, 30])
    said = np.where(np.arange(60) < 45, 0, 1)  # right for all of class 0, half of class 1
    groups = evaluate({"ethnicity": np.eye(5)[said]}, {"ethnicity": ethnicity})["groups"]
    assert groups["ethnicity"]["worst"]["name"] == "B"


def test_figures_by_group_equal_fairlearn():
    predictions, labels = made_up(800)
    groups = evaluate(predictions, labels)["groups"]
    true, said = labels["age"].astype(float), predictions["age"].astype(float)
    crossed = [f"{NAMES['gender'][g]} {NAMES['ethnicity'][e]}" for g, e in
               zip(labels["gender"], labels["ethnicity"], strict=True)]  # fmt: skip
    by = {
        "decade": np.minimum(true // 10, 9).astype(int),
        "gender": np.array(NAMES["gender"])[labels["gender"]],
        "ethnicity": np.array(NAMES["ethnicity"])[labels["ethnicity"]],
        "gender x ethnicity": np.array(crossed),
    }
    for name, of in by.items():
        frame = MetricFrame(
            metrics={"mae": sklearn_metrics.mean_absolute_error, "n": lambda y, p: len(y)},
            y_true=true,
            y_pred=said,
            sensitive_features=of,
        ).by_group
        rows = {
            DECADES.index(row["name"]) if name == "decade" else row["name"]: row
            for row in groups["age"][name]
        }
        assert set(rows) == set(frame.index)
        for group, row in rows.items():
            assert row["mae"] == pytest.approx(frame.loc[group, "mae"], abs=1e-9)
            assert row["n"] == frame.loc[group, "n"]
        right = MetricFrame(
            metrics=sklearn_metrics.accuracy_score,
            y_true=labels["gender"],
            y_pred=predictions["gender"].argmax(axis=1),
            sensitive_features=of,
        )
        found = {row["name"]: row["accuracy"] for row in groups["gender"][name]}
        expected = {
            DECADES[group] if name == "decade" else group: value
            for group, value in right.by_group.items()
        }
        assert found == pytest.approx(expected, abs=1e-9)


def test_the_difference_of_two_models_is_that_of_their_errors():
    """Its interval is paired: narrower than the two models' intervals."""
    predictions, labels = made_up(400)
    others = {
        "age": predictions["age"] + np.sign(predictions["age"] - labels["age"]),  # a year worse
        "gender": predictions["gender"][:, ::-1],
    }
    found = metrics.paired([predictions], [others], labels, NAMES, np.arange(400))
    assert found["age"]["difference"] == pytest.approx(-1)
    assert found["age"]["difference_ci95"] == pytest.approx([-1, -1], abs=1e-5)
    accuracy = evaluate(predictions, labels)["gender"]["accuracy"]
    assert found["gender"]["difference"] == pytest.approx((1 - accuracy) - accuracy)
    assert "ethnicity" not in found
    groups = found["gender"]["groups"]
    assert sum(row["n"] for row in groups["decade"]) == 400
    mean = sum(row["n"] * row["difference"] for row in groups["ethnicity"]) / 400
    assert mean == pytest.approx(found["gender"]["difference"])


def test_a_difference_is_printed_as_one_of_mae_or_accuracy():
    """Error rates become accuracies: the sign changes, and the interval's ends change places."""
    evaluated = {"age": {"mae": 5.0}, "gender": {"accuracy": 0.9}}
    paired = {
        "age": {"n": 1234, "difference": -0.5, "difference_ci95": [-0.75, 0.25]},
        "gender": {"n": 99, "difference": 0.125, "difference_ci95": [0.0, 0.25]},
    }
    rows = [line.split() for line in metrics.paired_table(evaluated, paired).splitlines()]
    assert rows[1] == ["age", "mae", "-0.500", "[-0.750,", "+0.250]", "1,234"]
    assert rows[2] == ["gender", "accuracy", "-0.125", "[-0.250,", "+0.000]", "99"]


def interval(values, duplicates, *args, **kwargs):
    """The interval of the mean of all values."""
    return bootstrap.intervals(
        values, np.ones((len(values), 1), bool), duplicates, *args, **kwargs
    )[0]


def test_the_interval_of_a_part_is_that_of_its_values_alone_and_nan_of_none():
    """Except for the draws, which cover all groups with an image in any part."""
    rng = np.random.default_rng(0)
    values, part = rng.exponential(5, 400), np.arange(400) < 150
    parts = np.stack([np.ones(400, bool), part, np.zeros(400, bool)], axis=1)
    whole, some, none = bootstrap.intervals(values, parts, np.arange(400), resamples=4000)
    assert whole == pytest.approx(interval(values, np.arange(400), resamples=4000), abs=1e-9)
    assert some == pytest.approx(interval(values[part], np.arange(150), resamples=4000), abs=0.06)
    assert np.isnan(none).all()


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(0).exponential(5, 300)
    ours = interval(values, np.arange(300), resamples=4000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours == pytest.approx(theirs, abs=0.05)  # the width is 1.1


def test_copies_do_not_narrow_the_interval():
    values = np.random.default_rng(0).exponential(5, 300)
    once = interval(values, np.arange(300))
    shuffled = np.random.default_rng(1).permutation(1200)
    copied = interval(np.repeat(values, 4)[shuffled], np.repeat(np.arange(300), 4)[shuffled])
    assert copied == pytest.approx(once, abs=1e-9)
    assert np.ptp(interval(np.repeat(values, 4), np.arange(1200))) < 0.6 * np.ptp(once)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Groups of unequal size share an error: coverage is 95 % within the noise of few trials.

    More trials, and more images: experiments/results/intervals.json.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        sizes = rng.integers(1, 5, 150)
        shared = rng.exponential(5, 150)
        values = np.repeat(shared, sizes) + rng.normal(0, 0.5, sizes.sum())
        low, high = interval(values, np.repeat(np.arange(150), sizes), trial, 200)
        covered += low <= 5 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval():
    predictions, labels = made_up(100)
    assert evaluate(predictions, labels, seed=3) == evaluate(predictions, labels, seed=3)
    other = evaluate(predictions, labels, seed=4)["age"]["mae_ci95"]
    assert evaluate(predictions, labels, seed=3)["age"]["mae_ci95"] != other


def test_the_result_is_json():
    predictions, labels = made_up(100)
    result = evaluate(predictions, labels)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_predictions_that_are_not_finite_are_an_error():
    predictions, labels = made_up(10)
    predictions["age"][[3, 5]] = np.nan
    with pytest.raises(UserError, match=r"age: 2 of 10 predictions are not finite.*row 3"):
        evaluate(predictions, labels)


def test_scalars_and_lookup_name_every_figure():
    predictions, labels = made_up(50)
    result = evaluate(predictions, labels)
    values = metrics.scalars(result)
    assert {"age/mae", "age/cs5", "gender/accuracy", "ethnicity/macro_f1"} <= values.keys()
    assert "age/n" not in values
    assert "age/floor_mae" not in values
    assert metrics.lookup(result, "age/mae") == result["age"]["mae"]
    with pytest.raises(UserError, match=r"no metric 'age/mea'; there are age/mae"):
        metrics.lookup(result, "age/mea")


def test_table_shows_every_target_and_is_aligned_plain_text():
    predictions, labels = made_up(300)
    result = evaluate(predictions, labels)
    text = metrics.table(result)
    for word in (f"{result['age']['mae']:.3f}", "floor_mae", "30-39", "female", "macro_f1"):
        assert word in text
    assert text.isascii()
    assert "\x1b" not in text
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  0-9"))
    assert len({len(line) for line in lines[start - 1 : start + 17]}) == 1
    # Also where little is known.
    assert "accuracy" in metrics.table(evaluate({"gender": np.eye(2)}, {"gender": np.arange(2)}))
    assert metrics.table({"n": 0, "groups": {}}) == ""
