"""Example weights against reference implementations and published values.

experiments/parity/losses.py compares them with the libraries themselves.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agejax.errors import UserError
from agejax.labels.density import (
    age_bins,
    class_balanced,
    crossing,
    dense_weight,
    effective_class_weights,
    inverse_class_weights,
    inverse_count,
    kde,
    lds_weight,
    lds_window,
)

ARCHIVE = Path(__file__).parents[2] / "shared/data/utkface/UTKFace.tar.gz"

# Computed with PyPI denseweight 0.1.2 (KDEpy 1.1.12): DenseWeight(alpha).fit(AGES).
AGES = np.array([1 + i * i * i % 91 + 7 * (i % 3) for i in range(300)], np.float64)
GOLDEN = {
    0.25: {0: 1.10581827, 1: 1.01368167, 2: 0.95028299, 50: 0.98084844, 17: 1.11337762},
    1.0: {0: 3.12606224, 1: 1.27488719, 2: 0.00110414, 50: 0.61521391, 17: 3.27794192},
    1.5: {0: 12.28974397, 1: 5.189279e-05, 2: 5.189279e-05, 50: 5.189279e-05, 17: 14.14744617},
}  # fmt: skip

# The same on the ages of the 19,006 well-formed names of ../shared/data; with the whole public set,
# of 23,707, alpha 1 gives 1.32306, 0.009682, -, 1.93534.
UTKFACE = {
    0.25: {1: 1.04895537, 26: 0.86077469, 50: 1.07168941, 90: 1.13494972},
    1.0: {1: 1.34769280, 26: 0.01118851, 50: 1.50915540, 90: 1.95844530},
}  # fmt: skip
# By the loops of experiments/parity/losses.py.
UTKFACE_LDS = {
    "sqrt": {1: 1.07560212, 26: 0.50392809, 50: 1.13525862, 90: 3.15906608},
    "inverse": {1: 0.58434741, 26: 0.26176466, 50: 1.10835995, 90: 6.16709563},
}  # fmt: skip

COUNTS = [10078, 4525, 3434, 3975, 1692]  # UTKFace's ethnicities, as for the values below
BALANCED = [0.470, 1.048, 1.381, 1.193, 2.802]  # scikit-learn
SUM_OF_CLASSES = [0.341, 0.760, 1.001, 0.865, 2.032]
EFFECTIVE = [0.457, 0.797, 0.998, 0.884, 1.864]  # PyPI balanced-loss, beta 0.9999


@pytest.mark.parametrize("alpha", GOLDEN)
def test_dense_weight_equals_the_reference(alpha: float) -> None:
    weights = dense_weight(AGES, alpha)
    for i, expected in GOLDEN[alpha].items():
        np.testing.assert_allclose(weights[i], expected, rtol=5e-6)


@pytest.fixture(scope="module")
def utkface() -> np.ndarray:
    """The 19,006 ages of the archive beside the repository, f64."""
    if not ARCHIVE.exists():
        pytest.skip(f"{ARCHIVE} is not there")
    with tarfile.open(ARCHIVE) as tar:
        names = [Path(name).name for name in tar.getnames()]
    matches = [re.fullmatch(r"(\d+)_\d_\d_\d+\.jpg\.chip\.jpg", name) for name in names]
    ages = np.array([int(m[1]) for m in matches if m], np.float64)
    if len(ages) != 19_006:
        pytest.skip(f"the golden values are of 19,006 ages, the archive has {len(ages)}")
    return ages


def test_dense_weight_of_utkface_equals_the_reference(utkface: np.ndarray) -> None:
    for alpha, golden in UTKFACE.items():
        weights = dense_weight(utkface, alpha)
        for age, expected in golden.items():
            np.testing.assert_allclose(weights[utkface == age], expected, rtol=5e-6)


def test_lds_of_utkface_equals_the_reference(utkface: np.ndarray) -> None:
    for reweight, golden in UTKFACE_LDS.items():
        weights = lds_weight(utkface, reweight=reweight)
        for age, expected in golden.items():
            np.testing.assert_allclose(weights[utkface == age], expected, rtol=1e-7)
    # The published values are for the whole set, which is a quarter larger.
    whole = {1: 1.0776, 26: 0.5044, 90: 3.1017}
    weights = lds_weight(utkface)
    for age, published in whole.items():
        np.testing.assert_allclose(weights[utkface == age], published, rtol=0.02)


def test_kde_equals_the_direct_sum() -> None:
    y = np.random.default_rng(0).gamma(2.0, 10.0, 200)
    grid = np.linspace(y.min() - 12, y.max() + 12, 2000)
    z = (grid[:, None] - y) / 3.0
    direct = np.exp(-0.5 * z**2).mean(axis=1) / (3.0 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(kde(y, 3.0, grid), direct, atol=2e-4 * direct.max() + 1e-5)


LABELS = st.lists(
    st.one_of(st.integers(0, 116).map(float), st.just(np.nan)), min_size=1, max_size=60
).filter(lambda v: np.isfinite(v).any())


def codes(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), np.nan_to_num(values), -1).astype(np.int64)


WEIGHTS = {
    "dense, alpha .3": lambda v: dense_weight(v, 0.3),
    "dense, alpha 2": lambda v: dense_weight(v, 2.0),
    "lds, sqrt": lds_weight,
    "lds, inverse": lambda v: lds_weight(v, reweight="inverse", sigma=1.0, size=3),
    "INS": lambda v: inverse_count(codes(v)),
    "ISNS": lambda v: inverse_count(codes(v), power=0.5),
    "class-balanced": lambda v: class_balanced(codes(v), beta=0.9),
}


@pytest.mark.parametrize("name", WEIGHTS)
@given(values=LABELS, seed=st.integers(0, 99))
def test_weights_are_positive_with_mean_one_and_unknown_labels_weigh_one(
    name: str, values: list[float], seed: int
) -> None:
    labels, weigh = np.array(values), WEIGHTS[name]
    weights = weigh(labels)
    assert weights.dtype == np.float64
    assert weights.min() > 0
    np.testing.assert_allclose(weights.mean(), 1.0)
    np.testing.assert_array_equal(weights[np.isnan(labels)], 1.0)
    # Weights follow their labels in any order, and unknown labels change nothing.
    order = np.random.default_rng(seed).permutation(len(labels))
    np.testing.assert_allclose(weigh(labels[order]), weights[order], rtol=1e-6)
    known = np.isfinite(labels)
    np.testing.assert_allclose(weigh(labels[known]), weights[known], rtol=1e-6)


@given(values=LABELS)
def test_alpha_beta_and_power_zero_are_uniform(values: list[float]) -> None:
    labels = np.array(values)
    np.testing.assert_array_equal(dense_weight(labels, 0.0), 1.0)
    np.testing.assert_allclose(inverse_count(codes(labels), power=0.0), 1.0)
    np.testing.assert_allclose(class_balanced(codes(labels), beta=0.0), 1.0)


def test_rare_ages_weigh_more_and_alpha_strengthens_it() -> None:
    ages = np.array([25.0] * 90 + [60.0] * 9 + [90.0])
    mild, full = dense_weight(ages, 0.5), dense_weight(ages, 1.0)
    assert mild[0] < mild[90] < mild[99]
    assert full[0] < mild[0]
    assert full[99] > mild[99]


def test_unknown_ages_do_not_change_the_others() -> None:
    with_unknown = np.concatenate([AGES, [np.nan] * 50])
    np.testing.assert_array_equal(dense_weight(with_unknown, 1.0)[:300], dense_weight(AGES, 1.0))


@pytest.mark.parametrize("scale", [1e-6, 0.01, 1e6])
def test_any_unit_works(scale: float) -> None:
    """The reference fails on a flat kernel: its root search finds no density of 1e-4."""
    weights = dense_weight(AGES * scale, 1.0)
    np.testing.assert_allclose(weights, dense_weight(AGES, 1.0), atol=0.15)


def test_one_distinct_age_is_uniform() -> None:
    np.testing.assert_array_equal(dense_weight(np.full(5, 30.0), 1.0), 1.0)


def test_the_window_of_lds_is_one_in_the_middle() -> None:
    np.testing.assert_allclose(lds_window(2.0, 5), [0.8583, 0.9458, 1.0, 0.9458, 0.8583], atol=5e-5)


def test_lds_by_hand() -> None:
    # 4 at 30 and 1 at 32, smoothed by [0.8583, 0.9458, 1, 0.9458, 0.8583]
    ages = np.array([30.0] * 4 + [32.0])
    effective = np.array([2 + 0.8583 * 1] * 4 + [1 + 0.8583 * 2])
    expected = (1 / effective) / (1 / effective).mean()
    np.testing.assert_allclose(lds_weight(ages), expected, rtol=1e-4)
    # Counts below 5 become 5, also those of the empty ages around: both are equal.
    np.testing.assert_allclose(lds_weight(ages, reweight="inverse"), 1.0)


def test_lds_without_neighbours_is_the_inverse_root_of_counts() -> None:
    ages = np.repeat([10.0, 40.0, 90.0], [100, 25, 4])
    star = 1 / np.repeat([10.0, 5.0, 2.0], [100, 25, 4])
    np.testing.assert_allclose(lds_weight(ages), star / star.mean())
    np.testing.assert_allclose(lds_weight(ages), inverse_count(codes(ages), power=0.5))


def test_lds_holds_at_both_ends_of_the_ages() -> None:
    weights = lds_weight(np.array([0.0, 0.0, 119.6, 120.0, 1e9]))
    np.testing.assert_allclose(weights[2:], weights[2])
    assert weights[0] > weights[2]


def test_class_weights_equal_the_published_values() -> None:
    for weights, golden in (
        (inverse_class_weights(COUNTS), BALANCED),
        (inverse_class_weights(COUNTS, normalise="classes"), SUM_OF_CLASSES),
        (effective_class_weights(COUNTS, normalise="classes"), EFFECTIVE),
    ):
        np.testing.assert_allclose(weights, golden, atol=5.1e-4)


@pytest.mark.parametrize("weigh", [inverse_class_weights, effective_class_weights])
def test_class_weights_have_mean_one_over_examples_or_classes(weigh) -> None:
    mean, classes = weigh(COUNTS), weigh(COUNTS, normalise="classes")
    np.testing.assert_allclose(np.average(mean, weights=COUNTS), 1.0)
    np.testing.assert_allclose(classes.mean(), 1.0)
    np.testing.assert_allclose(mean / mean[0], classes / classes[0])
    # A class without examples has no effect.
    for normalise in ("mean", "classes"):
        with_none = weigh([0, *COUNTS, 0], normalise=normalise)
        np.testing.assert_allclose(with_none[1:-1], weigh(COUNTS, normalise=normalise))
        np.testing.assert_array_equal(with_none[[0, -1]], 0.0)


def test_half_the_power_is_the_inverse_root() -> None:
    np.testing.assert_allclose(
        inverse_class_weights([4, 100], power=0.5, normalise="classes"), [5 / 3, 1 / 3]
    )


@pytest.mark.parametrize("normalise", ["mean", "classes"])
def test_an_example_weighs_what_its_class_does(normalise: str) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 3, 7, -1], [50, 9, 2, 5]))
    place = {0: 0, 3: 1, 7: 2}
    for weights, classes in (
        (inverse_count(labels, 0.5, normalise), inverse_class_weights([50, 9, 2], 0.5, normalise)),
        (
            class_balanced(labels, 0.99, normalise),
            effective_class_weights([50, 9, 2], 0.99, normalise),
        ),
    ):
        expected = [1.0 if y < 0 else classes[place[int(y)]] for y in labels]
        np.testing.assert_allclose(weights, expected)


def test_inverse_count_leaves_unknown_labels_at_one() -> None:
    np.testing.assert_allclose(inverse_count(np.array([0, 0, 0, 1, -1])), [2 / 3] * 3 + [2, 1])


@pytest.mark.parametrize(
    ("values", "alpha", "bandwidth", "message"),
    [
        ([1.0, 2.0], -0.1, None, "alpha is -0.1"),
        ([1.0, 2.0], np.nan, None, "alpha is nan"),
        ([1.0, 2.0], 1.0, 0.0, "bandwidth is 0.0"),
        ([np.nan], 1.0, None, "no example has a known value"),
        ([], 1.0, None, "no example has a known value"),
    ],
)
def test_bad_input_is_named(
    values: list[float], alpha: float, bandwidth: float | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        dense_weight(np.array(values), alpha, bandwidth)


def test_inverse_count_without_labels_is_an_error() -> None:
    with pytest.raises(UserError, match="no example has a known label"):
        inverse_count(np.array([-1, -1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lds_weight(np.array([np.nan])), "no example has a known value"),
        (lambda: lds_weight(AGES, reweight="log"), "reweight is 'log'"),
        (lambda: lds_weight(AGES, sigma=0), "sigma > 0 and an odd size, not 0 and 5"),
        (lambda: lds_weight(AGES, size=4), "sigma > 0 and an odd size, not 2.0 and 4"),
        (lambda: inverse_count(np.array([1, 2]), power=-1), "power is -1"),
        (lambda: inverse_count(np.array([1, 2]), normalise="sum"), "normalise is 'sum'"),
        (lambda: inverse_class_weights([0, 0]), "no class has an example"),
        (lambda: class_balanced(np.array([1, 2]), beta=1.0), "beta is 1.0"),
        (lambda: class_balanced(np.array([-1])), "no example has a known label"),
        (lambda: age_bins(AGES, width=0), "bins of 0 years"),
        (lambda: crossing([]), "no labels to cross"),
    ],
)
def test_bad_input_of_the_others_is_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_bins_are_whole_widths_and_unknown_ages_in_none() -> None:
    ages = np.array([0.0, 9.99, 10.0, 116.0, np.nan], np.float32)
    np.testing.assert_array_equal(age_bins(ages), [0, 0, 1, 11, -1])
    np.testing.assert_array_equal(age_bins(ages, width=1), [0, 9, 10, 116, -1])


@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.integers(-1, 1), st.integers(-1, 99)), min_size=1
    )
)  # fmt: skip
def test_a_crossing_tells_combinations_apart(rows: list[tuple[int, int, int]]) -> None:
    labels = [np.array(column, np.int8) for column in zip(*rows, strict=True)]
    numbers = crossing(labels)
    assert numbers.dtype == np.int64
    known = [row for row in rows if min(row) >= 0]
    np.testing.assert_array_equal(numbers < 0, [min(row) < 0 for row in rows])
    assert len(set(numbers[numbers >= 0])) == len(set(known))
    assert [row for _, row in sorted(zip(numbers[numbers >= 0], known, strict=True))] == sorted(
        known
    )
    # int8 labels are crossed in full: 4 x 2 x 100 classes are more than an int8 can number.
    np.testing.assert_array_equal(crossing(labels[:1]), labels[0])
