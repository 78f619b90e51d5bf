"""Measures of image quality: equal to OpenCV and plain numpy, and right in direction."""

from __future__ import annotations

import pathlib
import pickle

import cv2
import numpy as np
import pytest
from scipy import signal, special
from sklearn.svm import SVR

from agejax.data import looking
from agejax.data.procedural import drawing
from agejax.evaluation import quality

SIZE = 112


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """Faces uint8 [12, SIZE, SIZE, 3] with some noise, as from a camera."""
    rng = np.random.default_rng(0)
    drawn = np.stack([drawing.draw(1, i, SIZE)[0] for i in range(12)])
    return (drawn + rng.normal(0, 3, drawn.shape)).clip(0, 255).astype(np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def measured(images: np.ndarray) -> dict[str, np.ndarray]:
    return quality.measure(images.__getitem__, np.arange(len(images)))


def test_measures_equal_plain_numpy(faces):
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    found = measured(faces)
    for i, image in enumerate(faces):
        plain = np.rint(image @ [0.299, 0.587, 0.114])
        assert found["luminance"][i] == pytest.approx(plain.mean(), abs=0.05)
        padded = np.pad(grey(image).astype(float), 1, mode="reflect")
        edges = signal.convolve2d(padded, kernel, "valid")
        assert found["laplacian"][i] == pytest.approx(edges.var(), rel=1e-4)
        # The whole spectrum, its centre in the middle.
        spectrum = np.fft.fftshift(np.fft.fft2(grey(image)))
        away = np.abs(np.arange(SIZE) - SIZE // 2) < quality.CENTRE * SIZE
        spectrum[np.ix_(away, away)] = 0
        rest = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum)))
        expected = 20 * np.log10(np.maximum(rest, quality.FAINTEST)).mean()
        assert found["fft"][i] == pytest.approx(expected, abs=1e-2)


def test_blur_lowers_sharpness_and_nothing_else(faces):
    by_blur = [
        measured(np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in faces]))
        for sigma in (0.5, 1, 2, 4)
    ]
    for name in ("laplacian", "fft"):
        values = np.stack([found[name] for found in [measured(faces), *by_blur]])
        assert (np.diff(values, axis=0) < 0).all(), name
    for found in by_blur:
        np.testing.assert_allclose(found["luminance"], measured(faces)["luminance"], atol=1.5)


def test_light_raises_luminance(faces):
    lit = [np.clip(faces * gain, 0, 255).astype(np.uint8) for gain in (0.3, 0.6, 1, 1.5)]
    values = np.stack([measured(images)["luminance"] for images in lit])
    assert (np.diff(values, axis=0) > 0).all()
    black, white = (np.full((1, 32, 32, 3), value, np.uint8) for value in (0, 255))
    assert measured(black)["luminance"] == 0
    assert measured(white)["luminance"] == 255


def test_sharpness_hardly_depends_on_the_size_an_image_is_stored_in(faces):
    large = [cv2.resize(image, (512, 512), interpolation=cv2.INTER_CUBIC) for image in faces]
    small = [cv2.resize(image, (128, 128), interpolation=cv2.INTER_CUBIC) for image in faces]
    one, other = measured(np.stack(large)), measured(np.stack(small))
    np.testing.assert_allclose(one["laplacian"], other["laplacian"], rtol=0.5)
    np.testing.assert_allclose(one["fft"], other["fft"], atol=3)
    unshrunk = [cv2.Laplacian(grey(image), cv2.CV_32F).var() for image in large]
    assert (unshrunk < one["laplacian"] / 20).all()


def test_uniform_images_have_finite_sharpness_and_no_brisque():
    flat = np.full((2, 64, 64, 3), 128, np.uint8)
    found = measured(flat)
    assert found["laplacian"].tolist() == [0, 0]
    assert np.isfinite(found["fft"]).all()
    assert not np.isfinite(quality.brisque_features(flat[0, ..., 0])).all()


def test_rows_come_in_order_however_they_are_read(faces, monkeypatch):
    monkeypatch.setattr(looking, "CHUNK", 5)
    rows, asked = np.array([3, 3, 0, 11, 7, 1, 2]), []

    def take(some: np.ndarray) -> np.ndarray:
        asked.append(len(some))
        return faces[some]

    found, everything = quality.measure(take, rows), measured(faces)
    assert sorted(asked) == [2, 5]
    for name in ("luminance", "laplacian", "fft"):
        np.testing.assert_array_equal(found[name], everything[name][rows])
    assert {k: v.shape for k, v in quality.measure(take, rows[:0]).items()} == {
        "luminance": (0,), "laplacian": (0,), "fft": (0,)
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ BRISQUE


def plain_features(image: np.ndarray) -> list[float]:
    """The 36 features in plain loops: sections III-A and III-B of Mittal et al. 2012."""
    window = np.exp(-np.square(np.arange(7) - 3.0) / (2 * (7 / 6) ** 2))
    window = np.outer(window, window) / window.sum() ** 2
    features = []
    half = cv2.resize(image / 255, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_CUBIC)
    for scale in (image / 255, half):
        padded = np.pad(scale, 3, mode="edge")
        mean = signal.correlate2d(padded, window, "valid")
        variance = signal.correlate2d(padded**2, window, "valid") - mean**2
        values = (scale - mean) / (np.sqrt(variance.clip(0)) + 1 / 255)
        height, width = values.shape
        for down, across in (None, None), (0, 1), (1, 0), (1, 1), (-1, 1):
            x = values.copy()
            if down is not None:
                for i in range(height):
                    for j in range(width):
                        inside = 0 <= i + down < height and j + across < width
                        x[i, j] *= values[i + down, j + across] if inside else 0
            left, right = (np.mean(x[mask] ** 2) for mask in (x < 0, x > 0))
            g = np.sqrt(left / right)
            ratio = np.mean(np.abs(x)) ** 2 / np.mean(x**2)
            ratio *= (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
            shapes = np.arange(0.2, 10, 0.001)
            of_shape = special.gamma(2 / shapes) ** 2
            of_shape /= special.gamma(1 / shapes) * special.gamma(3 / shapes)
            shape = shapes[np.argmin(np.abs(of_shape - ratio))]
            scale_of = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
            mu = (np.sqrt(right) - np.sqrt(left)) * scale_of
            mu *= special.gamma(2 / shape) / special.gamma(1 / shape)
            features += [shape, (left + right) / 2] if down is None else [shape, mu, left, right]
    return features


def test_brisque_features_equal_plain_loops(faces):
    for image in faces[:3]:
        found = quality.brisque_features(grey(image))
        assert found.shape == (36,)
        np.testing.assert_allclose(found, plain_features(grey(image)), rtol=1e-6, atol=1.1e-3)


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
def test_the_fit_finds_the_shape_and_the_variances_of_what_was_drawn(shape):
    rng = np.random.default_rng(0)
    size = rng.gamma(1 / shape, size=400_000) ** (1 / shape)  # |x| of a generalised Gaussian
    scale = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    # Each side is drawn in proportion to its width.
    x = np.where(rng.random(400_000) < 2 / 5, -2 * scale * size, 3 * scale * size)
    found, _, left, right = quality._asymmetric_gaussian(x)
    assert found == pytest.approx(shape, rel=0.02)
    assert (left, right) == pytest.approx((4, 9), rel=0.03)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[quality.Brisque, SVR]:
    """A regression of scikit-learn, written in libsvm's format."""
    rng = np.random.default_rng(0)
    low, high = rng.uniform(-2, 0, 36), rng.uniform(1, 3, 36)
    x = rng.uniform(-1, 1, (80, 36)) * (rng.random((80, 36)) < 0.9)  # libsvm leaves out zeros
    svr = SVR(gamma=0.05, C=100).fit(x, 50 + 20 * x[:, 0] - 10 * x[:, 1] * x[:, 2])
    lines = [
        "svm_type epsilon_svr", "kernel_type rbf", "gamma 0.05", "nr_class 2",
        f"total_sv {len(svr.support_)}", f"rho {-svr.intercept_[0]:.17g}", "SV",
    ]  # fmt: skip
    for weight, vector in zip(svr.dual_coef_[0], svr.support_vectors_, strict=True):
        cells = [f"{i + 1}:{value:.17g}" for i, value in enumerate(vector) if value]
        lines.append(" ".join([f"{weight:.17g}", *cells]))
    folder: pathlib.Path = tmp_path_factory.mktemp("brisque")
    (folder / "svm.txt").write_text("\n".join(lines) + "\n")
    (folder / "ranges").write_bytes(pickle.dumps({"min_": low.tolist(), "max_": high.tolist()}))
    return quality.Brisque.read(folder / "svm.txt", folder / "ranges"), svr


def test_a_model_scores_as_the_library_that_trained_it(model, faces):
    brisque, svr = model
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (20, 36))
    features = brisque.low + (x + 1) / 2 * (brisque.high - brisque.low)
    np.testing.assert_allclose(brisque.score(features), svr.predict(x), rtol=1e-9)
    features[3, 5] = np.nan
    assert np.flatnonzero(np.isnan(brisque.score(features))).tolist() == [3]

    found = quality.measure(faces.__getitem__, np.arange(12), brisque)
    expected = brisque.score(np.stack([quality.brisque_features(grey(image)) for image in faces]))
    np.testing.assert_allclose(found["brisque"], expected)


@pytest.mark.skipif(quality.Brisque.installed() is None, reason="no package brisque")
def test_the_public_model_finds_blur_and_noise_worse(faces):
    brisque = quality.Brisque.installed()

    def score(images: np.ndarray) -> np.ndarray:
        return quality.measure(images.__getitem__, np.arange(12), brisque)["brisque"]

    rng = np.random.default_rng(0)
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 2.5) for image in faces])
    noisy = (faces + rng.normal(0, 50, faces.shape)).clip(0, 255).astype(np.uint8)
    for worse in (blurred, noisy):
        assert np.mean(score(worse)) > np.mean(score(faces)) + 10


def test_nothing_of_the_ranges_file_is_run(model, tmp_path):
    (tmp_path / "ranges").write_bytes(pickle.dumps({"min_": pathlib.Path("/"), "max_": []}))
    (tmp_path / "svm.txt").write_text("svm_type epsilon_svr\nkernel_type rbf\nSV\n1 1:0\n")
    with pytest.raises(pickle.UnpicklingError, match="not plain data"):
        quality.Brisque.read(tmp_path / "svm.txt", tmp_path / "ranges")


# --------------------------------------------------------------------------------- error by quality


def test_error_by_bins():
    values = np.array([10, 84.9, 85, 134, 135, 200, np.nan, 60])
    errors = np.array([1.0, -3, 4, 6, 7, 9, 100, np.nan])
    assert quality.by_quality(errors, values, quality.EDGES["luminance"]) == [
        {"name": "< 85", "n": 2, "mae": 2.0},
        {"name": "85–105", "n": 1, "mae": 4.0},
        {"name": "120–135", "n": 1, "mae": 6.0},
        {"name": "135–150", "n": 1, "mae": 7.0},
        {"name": "≥ 150", "n": 1, "mae": 9.0},
    ]


def test_quantile_edges_make_bins_of_equal_size():
    values = np.random.default_rng(0).permutation(100).astype(float)
    edges = quality.edges("laplacian", np.append(values, np.nan))
    rows = quality.by_quality(np.ones(100), values, edges)
    assert [row["n"] for row in rows] == [20] * 5
    assert quality.edges("laplacian", np.zeros(10)) == (0.0,)
