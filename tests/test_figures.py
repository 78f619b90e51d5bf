"""Charts of an evaluation: they draw and describe their data, and accept odd data."""

import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agejax.evaluation import gates, uncertainty
from agejax.reporting import figures, plots
from agejax.reporting.plots import BLUE, ORANGE


@pytest.fixture
def drawn(monkeypatch):
    """Collects every figure that is drawn."""
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
    """The colours of the points, by height."""
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
    medians = next(line for line in axes.lines if line.get_label() == "median by decade")
    assert medians.get_xydata().tolist() == [[5, 7], [25, 22], [95, 102]]
    assert "0-9: 7 for a mean of 5; 20-29: 22 for a mean of 25; 90+: 102" in chart.alt


def test_a_dollar_sign_in_a_name_is_no_formula(drawn):
    figures.error_by_group("age by income", groups(("$_$", 40, 5.0), ("a$^b$", 9, 6.0)), "mae", 5)
    figures.faces("worst", np.zeros((1, 8, 8, 3), np.uint8), ["$_$.jpg"])
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["$_$", "a$^b$"]
    assert drawn[1].axes[0].get_title() == "$_$.jpg"


def test_bias_is_drawn_with_its_sign(drawn):
    rows = [{"name": "0-9", "n": 50, "bias": 2.0}, {"name": "80-89", "n": 50, "bias": -9.5}]
    chart = figures.bias_by_decade(rows)
    assert [bar.get_width() for bar in drawn[0].axes[0].patches] == [2.0, -9.5]
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
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["all (5)"]
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
    assert "sure: 25.50 years for the most certain half, 50.50 for all" in chart.alt
    assert drawn[0].axes[0].lines[0].get_xdata()[-1] == 100


def test_the_chart_of_gates_describes_their_rates(drawn):
    age = np.repeat([15.0, 40.0], [20, 40])
    predicted = np.concatenate([np.repeat([17.0, 26.0], 10), np.full(40, 41.0)])
    chart = figures.challenge(gates.challenge(age, predicted))
    assert "18 and older: 100 % at 18, 100 % at 25, 100 % at 30" in chart.alt
    assert "14 to 17: 50 % at 18, 50 % at 25, 0 % at 30" in chart.alt


NOBODY = {"n": 0, "rate": float("nan"), "ci95": [0.0, 1.0]}
NAN = float("nan")
EMPTY = {"name": "empty", "n": 0, "mae": NAN, "mae_ci95": [NAN, NAN], "bias": NAN,
         "difference": NAN, "difference_ci95": [NAN, NAN], "coverage": NAN, "band95": [NAN, NAN],
         "width": NAN}  # fmt: skip
FEW = np.zeros((1, 8, 8, 3), np.uint8)
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
    "one face of two lines too long": lambda: figures.faces(
        "best", FEW, ["true 116, female Native Hawaiian or other\nsaid 5, male Black"], columns=4
    ),
    "no face": lambda: figures.faces("best", FEW[:0], []),
    "no map": lambda: figures.saliency(FEW[:0], np.zeros((0, 8, 8)), []),
    "a diverged model": lambda: figures.predicted_against_true(
        np.array([3.0, 4.0]), np.array([1e9, -1e9])
    ),
    "an empty group": lambda: figures.error_by_group(
        "x", [EMPTY, *groups(("a", 40, 2.0))], "mae", 2.0
    ),
    "an empty decade": lambda: figures.bias_by_decade([EMPTY]),
    "an empty difference": lambda: figures.paired_differences("x", [EMPTY], "years"),
    "an empty coverage": lambda: figures.interval_coverage([EMPTY], 0.9),
    "an empty bin": lambda: figures.error_by_quality({"fft": [EMPTY], "new": []}, 3.0),
    "an empty curve": lambda: figures.cumulative_score({"a": np.zeros(0), "b": np.ones(3)}),
    "none kept": lambda: figures.risk_coverage({"a": (np.zeros(0), np.zeros(0))}),
    "no threshold": lambda: figures.challenge([]),
    "nobody to let in": lambda: figures.let_in("x", [{"name": "a"} | NOBODY], [BLUE]),
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


# --------------------------------------------------------------------- what a reader can make out

LONG = "female Native Hawaiian or other Pacific Islander"


def many(drawing):
    """Rows of 20 groups, names short and long, from few images to many."""
    rng = np.random.default_rng(5)
    rows = []
    for i, n in enumerate(rng.integers(1, 1900, 20).tolist()):
        value = float(rng.uniform(0.5, 0.99))
        rows.append({"name": f"{LONG} {i}" if i % 3 else f"{i}0-{i}9", "n": n, "bias": 9 - i,
                     "mae": 20 * value, "mae_ci95": [15 * value, 40 * value], "accuracy": value,
                     "accuracy_ci95": [value - 0.2, value], "difference": value - 0.7,
                     "difference_ci95": [value - 0.8, value - 0.6], "coverage": value,
                     "band95": [0.8, 1.0], "width": 200 * value})  # fmt: skip
    return drawing(rows)


def _crowd():
    rng = np.random.default_rng(6)
    age = np.concatenate([rng.gamma(4, 8, 400).clip(0, 110), [116.0]])
    predicted = age + rng.normal(0, 5, len(age))
    label = rng.integers(0, 5, len(age))
    p = rng.dirichlet(np.ones(5), len(age)) + np.eye(5)[label]
    p /= p.sum(axis=1, keepdims=True)
    return age, predicted, label, p


AGE, PREDICTED, LABEL, P = _crowd()
RACES = ("Black or African American", "White", "Native Hawaiian", "Hispanic or Latino", "Other")
WORDS = "true 116, female, White\npredicted 83, male, Indian"
FULL = {
    "ages": lambda: figures.predicted_against_true(AGE, PREDICTED),
    "bias": lambda: many(figures.bias_by_decade),
    "errors": lambda: many(lambda rows: figures.error_by_group("x", rows, "mae", 19.0)),
    "accuracies": lambda: many(lambda rows: figures.error_by_group("x", rows, "accuracy", 0.98)),
    "differences": lambda: many(lambda rows: figures.paired_differences("x", rows, "years")),
    "coverage": lambda: many(lambda rows: figures.interval_coverage(rows, 0.9)),
    "quality": lambda: many(lambda rows: figures.error_by_quality(
        {"luminance": rows[:6], "laplacian": rows[6:9], "fft": rows[9:10]}, 15.0)),
    "equal curves": lambda: figures.cumulative_score(
        dict.fromkeys(RACES, np.abs(PREDICTED - AGE))),
    "confusion": lambda: figures.confusion("x", LABEL, P.argmax(axis=1), RACES),
    "two classes": lambda: figures.confusion("x", LABEL % 2, LABEL // 4, ("male", "female")),
    "reliability": lambda: figures.reliability(
        "x", uncertainty.reliability(P, LABEL), uncertainty.reliability(P**2 / (P**2).sum(
            axis=1, keepdims=True), LABEL)),
    "risk": lambda: figures.risk_coverage({
        "by the interval's width": uncertainty.risk_coverage(np.abs(PREDICTED - AGE), AGE),
        "at random": uncertainty.risk_coverage(np.abs(PREDICTED - AGE), 0 * AGE)}),
    "gates": lambda: figures.challenge(gates.challenge(AGE, PREDICTED)),
    "let in": lambda: figures.let_in("x", [
        {"name": name, "n": n, "rate": n / 9000, "ci95": [n / 9500, n / 8000]}
        for n, name in enumerate((*RACES, "18-20", "60+"), 28)], [ORANGE] * 7),
    "faces": lambda: figures.faces("x", np.repeat(FEW, 8, 0), [WORDS] * 8, columns=4),
    "faces in threes": lambda: figures.faces("x", np.repeat(FEW, 4, 0), [WORDS] * 4),
    "saliency": lambda: figures.saliency(
        np.repeat(FEW, 3, 0), np.ones((3, 8, 8)), [WORDS] * 3),
}  # fmt: skip


def boxes(figure):
    """Text and place, in pixels, of all texts in a figure."""
    figure.set_dpi(110)  # as for saving; another layout would move texts
    renderer = FigureCanvasAgg(figure).get_renderer()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = axis._update_ticks() if axes.axison else []  # locators make ticks beyond, too
            for tick in {*axis.get_major_ticks(), *axis.get_minor_ticks()}.difference(shown):
                hidden |= {tick.label1, tick.label2}
    return [
        (text, matplotlib.text.Text.get_window_extent(text, renderer))  # without its arrow
        for text in figure.findobj(matplotlib.text.Text)
        if text not in hidden and text.get_visible() and text.get_text().strip()
    ]


@pytest.mark.parametrize("name", FULL)
def test_text_is_whole_large_and_apart(name, drawn):
    chart = FULL[name]()
    figure = drawn[0]
    written = boxes(figure)
    assert len(written) > 3
    # Of 360 pixels, those of a phone, a line of 9 points is 8.6 high.
    assert min(text.get_fontsize() for text, _ in written) >= 9
    assert figure.get_figwidth() <= 5.2
    for text, box in written:
        inside = (box.x0 > -0.5 and box.y0 > -0.5 and box.x1 < figure.bbox.x1 + 0.5
                  and box.y1 < figure.bbox.y1 + 0.5)  # fmt: skip
        assert inside, (text.get_text(), box, figure.bbox)
    for (one, a), (other, b) in itertools.combinations(written, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(width, height) < 1.5, (one.get_text(), other.get_text())
    assert len(chart.alt) > 40


def test_no_legend_lies_over_axes(drawn):
    for name in ("ages", "reliability", "risk", "gates"):
        FULL[name]()
        figure = drawn[-1]
        figure.set_dpi(110)
        (legend,) = figure.legends
        bottom = legend.get_window_extent().y0
        assert all(axes.get_window_extent().y1 <= bottom for axes in figure.axes)
        assert not any(axes.get_legend() for axes in figure.axes)


def test_the_figures_of_a_confusion_matrix_are_read_on_every_blue():
    def luminance(colour):  # WCAG 2
        c = np.array(matplotlib.colors.to_rgb(colour))
        return np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            0.2126, 0.7152, 0.0722]  # fmt: skip

    for share in np.linspace(0, 1, 101):
        pair = luminance(plots.ink(share)), luminance(matplotlib.colormaps["Blues"](share))
        assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5, share


def test_groups_without_images_are_named_and_not_drawn(drawn):
    rows = [EMPTY, *groups(("a", 40, 2.0))]
    chart = figures.error_by_group("x", rows, "mae", 2.0)
    assert "empty no image; a 2.0 (n = 40)" in chart.alt
    assert colours(drawn[0].axes[0]) == {1.0: BLUE}
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    assert texts[:3] == ["MAE", figures.MISSING, "2.00"]


def test_predictions_beyond_all_ages_are_drawn_at_the_border(drawn):
    figures.predicted_against_true(np.array([3.0, 4.0]), np.array([1e9, -1e9]))
    cells = drawn[0].axes[0].collections[0].get_array()
    assert cells.sum() == 2
    assert cells.size < 10_000


def test_bins_of_quality_hold_their_error(drawn):
    rows = [{"name": "< 85", "n": 400, "mae": 6.25}, {"name": "≥ 85", "n": 12, "mae": 4.5}]
    chart = figures.error_by_quality({"luminance": rows, "fft": rows[:1]}, 5.0)
    first, second = drawn[0].axes
    assert [bar.get_width() for bar in first.patches] == [6.25, 4.5]
    assert [bar.get_width() for bar in second.patches] == [6.25]
    assert [line.get_xdata()[0] for line in first.lines] == [5.0]
    assert "luminance: < 85 6.2, ≥ 85 4.5; fft: < 85 6.2" in chart.alt


def test_heat_is_transparent_where_it_is_0_and_each_map_has_its_own_scale(drawn):
    heats = np.zeros((2, 8, 8))
    heats[0, 0, 0], heats[1, 0, 0] = 4.0, -1.0
    figures.saliency(np.repeat(FEW, 2, 0), heats, ["a", "b"])
    maps = [axes.images[1] for axes in drawn[0].axes if len(axes.images) == 2]
    assert [image.get_array()[0, 0] for image in maps] == [1.0, -1.0]
    assert {image.get_clim() for image in maps} == {(-1, 1)}
    assert [image.get_alpha()[1:].max() for image in maps] == [0, 0]


def test_labels_of_lines_keep_their_order_and_their_distance():
    placed = figures._apart([99.0, 98.0, 40.0, 99.0], [7.0] * 4)
    assert placed[2] == 40
    assert all(abs(a - b) >= 7 for a, b in itertools.combinations(placed, 2))
    assert placed[1] < min(placed[0], placed[3])
