"""The charts of an evaluation: they draw what they are given, say it, and take odd data."""

import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from agejax.reporting import figures, uncertainty
from agejax.reporting.plots import BLUE, ORANGE


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is drawn."""
    made = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(figures, "Figure", Kept)
    return made


def groups(*rows, key="mae"):
    return [
        {"name": name, "n": n, key: value, f"{key}_ci95": [value - 0.5, value + 0.7]}
        for name, n, value in rows
    ]


def colours(axes):
    """Of the points, by their height."""
    return {
        float(line.get_ydata()[0]): line.get_color()
        for line in axes.lines
        if line.get_marker() == "o"
    }


def test_every_image_is_in_a_cell_and_every_decade_has_its_median(drawn):
    true = np.repeat([5.0, 25.0, 95.0], [10, 20, 30])
    predicted = true + np.repeat([2.0, -3.0, 7.0], [10, 20, 30])
    chart = figures.predicted_against_true(true, predicted)
    axes = drawn[0].axes[0]
    assert axes.collections[0].get_array().sum() == 60
    medians = next(line for line in axes.lines if line.get_label() == "median of a decade")
    assert medians.get_xydata().tolist() == [[5, 7], [25, 22], [95, 102]]
    assert "0-9: 7 for a mean of 5; 20-29: 22 for a mean of 25; 90+: 102" in chart.alt


def test_bias_is_drawn_with_its_sign(drawn):
    rows = [{"name": "0-9", "n": 50, "bias": 2.0}, {"name": "80-89", "n": 50, "bias": -9.5}]
    chart = figures.bias_by_decade(rows)
    assert [bar.get_height() for bar in drawn[0].axes[0].patches] == [2.0, -9.5]
    assert "0-9 +2.0, 80-89 -9.5" in chart.alt


def test_groups_show_their_value_interval_and_who_is_worst(drawn):
    rows = groups(("young", 400, 3.0), ("old", 60, 9.0), ("oldest", 7, 20.0))
    chart = figures.error_by_group("age by decade", rows, "mae", 4.5)
    (axes,) = drawn[0].axes
    points = {(*line.get_xdata(), *line.get_ydata()) for line in axes.lines
              if line.get_marker() == "o"}  # fmt: skip
    assert points == {(3.0, 0), (9.0, 1), (20.0, 2)}
    assert [2.5, 3.7] in [list(line.get_xdata()) for line in axes.lines]
    # The worst is the worst of those that were measured; few images are pale.
    assert colours(axes) == {0.0: BLUE, 1.0: ORANGE, 2.0: figures.PALE}
    assert "old 9.0 (n = 60)" in chart.alt
    assert "Worst of 30 images or more: old." in chart.alt


def test_of_accuracies_the_lowest_is_the_worst(drawn):
    rows = groups(("a", 100, 0.9), ("b", 100, 0.6), key="accuracy")
    chart = figures.error_by_group("gender", rows, "accuracy", 0.8)
    assert colours(drawn[0].axes[0]) == {0.0: BLUE, 1.0: ORANGE}
    assert "Worst of 30 images or more: b." in chart.alt


def test_the_cumulative_score_is_a_share_of_images(drawn):
    chart = figures.cumulative_score({"all": np.array([0.0, 2, 4, 6, 20])})
    (line,) = drawn[0].axes[0].lines
    curve = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert (curve[0], curve[2], curve[3.75], curve[4], curve[15]) == (20, 40, 40, 60, 80)
    assert "all 40%, 60% and 80%" in chart.alt


def test_the_confusion_matrix_counts(drawn):
    true, said = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    chart = figures.confusion("gender", true, said, ("male", "female"))
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    assert texts == ["75%\n3", "25%\n1", "50%\n1", "50%\n1"]
    assert "male: right 75% of 4; female: right 50% of 2" in chart.alt


def test_differences_are_coloured_by_what_their_intervals_show(drawn):
    rows = [
        {"name": name, "n": 50, "difference": d, "difference_ci95": [d - 1, d + 1]}
        for name, d in (("a", -2.0), ("b", 0.5), ("c", 3.0))
    ]
    chart = figures.paired_differences("age", rows, "years")
    assert colours(drawn[0].axes[0]) == {0.0: BLUE, 1.0: figures.PALE, 2.0: ORANGE}
    assert "a -2.000, better; b +0.500, no difference shown; c +3.000, worse" in chart.alt


def test_coverage_below_its_band_stands_out(drawn):
    rows = [
        {"name": "a", "n": 90, "coverage": 0.8, "band95": [0.85, 0.95], "width": 12.0},
        {"name": "b", "n": 90, "coverage": 0.99, "band95": [0.85, 0.95], "width": 30.0},
    ]
    chart = figures.interval_coverage(rows, 0.9)
    assert colours(drawn[0].axes[0]) == {0.0: ORANGE, 1.0: BLUE}
    assert "a 80%, 12 years wide" in chart.alt


def test_risk_is_read_at_the_half(drawn):
    error = np.arange(1.0, 101)
    chart = figures.risk_coverage({"sure": uncertainty.risk_coverage(error, error)})
    assert "sure: 25.50 years of the surest half, 50.50 of all" in chart.alt
    assert drawn[0].axes[0].lines[0].get_xdata()[-1] == 100


def test_gates_say_their_rates(drawn):
    age = np.repeat([15.0, 40.0], [20, 40])
    predicted = np.concatenate([np.repeat([17.0, 26.0], 10), np.full(40, 41.0)])
    chart = figures.challenge(uncertainty.challenge(age, predicted))
    assert "18 and more: 100 % at 18, 100 % at 25, 100 % at 30" in chart.alt
    assert "14 to 17: 50 % at 18, 50 % at 25, 0 % at 30" in chart.alt


NOBODY = {"n": 0, "rate": float("nan"), "ci95": [0.0, 1.0]}
ODD = {
    "one image": lambda: figures.predicted_against_true(np.array([3.0]), np.array([-4.0])),
    "no image": lambda: figures.predicted_against_true(np.zeros(0), np.zeros(0)),
    "all ages": lambda: figures.predicted_against_true(np.array([0, 116.0]), np.array([116.0, 0])),
    "one group": lambda: figures.error_by_group("x", groups(("a", 1, 2.0)), "mae", 2.0),
    "long names": lambda: figures.error_by_group(
        "x", groups(*((f"a very long name of a group {i}", 40, i) for i in range(20))), "mae", 9.0
    ),
    "no bias": lambda: figures.bias_by_decade([{"name": "0-9", "n": 3, "bias": 0.0}]),
    "nobody young": lambda: figures.challenge([{"threshold": 25, "fpr": NOBODY, "tpr": NOBODY}]),
    "a class nobody has": lambda: figures.confusion(
        "x", np.array([0]), np.array([0]), ("a", "b", "c")
    ),
    "one bin": lambda: figures.error_by_quality(
        {"fft": [{"name": "< 0", "n": 1, "mae": 3.0}]}, 3.0
    ),
    "one kept": lambda: figures.risk_coverage({"a": (np.ones(1), np.ones(1))}),
    "one face": lambda: figures.faces("best", np.zeros((1, 8, 8, 3), np.uint8), ["a\nb"]),
    "no heat": lambda: figures.saliency(
        np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8)), ["a"]
    ),
    "no difference": lambda: figures.paired_differences(
        "x", [{"name": "a", "n": 1, "difference": 0.0, "difference_ci95": [0.0, 0.0]}], "years"
    ),
    "sure of nothing": lambda: figures.reliability("x", [], []),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_data_is_drawn_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = ODD[name]()
    assert chart.png.startswith(b"\x89PNG")
    assert len(chart.alt) > 10
    assert "nan" not in chart.alt


def test_the_same_data_draws_the_same_bytes():
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 90, 300)
    once, again = (figures.predicted_against_true(true, true + 3) for _ in range(2))
    assert once == again
    heats = rng.normal(size=(2, 8, 8))
    images = rng.integers(0, 255, (2, 8, 8, 3), np.uint8)
    once, again = (figures.saliency(images, heats, ["a", "b"]) for _ in range(2))
    assert once == again
