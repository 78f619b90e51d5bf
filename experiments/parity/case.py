"""A comparison of a backbone with the library it comes from, on the same weights."""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np


def values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights for any key of any library, float32; they depend only on key and shape.

    Batch-norm statistics and scales are far from 0 and 1; kernels preserve the size of activations.
    So a test needs no weights file, only the keys, the shapes and the library's outputs.
    """
    rng = np.random.Generator(np.random.Philox(zlib.crc32(key.encode())))
    leaf = key.replace("/", ".").rsplit(".", 1)[-1].split(":")[0]
    if leaf in ("running_var", "moving_variance"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) <= 1 and leaf in ("weight", "gamma", "scale"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) <= 1:  # biases, running means
        return rng.normal(0.0, 0.1, shape).astype(np.float32)
    # The fan-in of torch's [out, in, h, w] or Keras' [h, w, in, out] is unknown here; the root of
    # the number of elements over the larger end is close enough for either.
    fan_in = np.prod(shape) / max(shape[0], shape[-1])
    return rng.normal(0.0, 1.0 / np.sqrt(fan_in), shape).astype(np.float32)


def images(size: int, batch: int = 2) -> np.ndarray:
    """Normalised images [batch, size, size, 3], float32."""
    rng = np.random.Generator(np.random.Philox(size))
    return rng.normal(0.0, 1.0, (batch, size, size, 3)).astype(np.float32)


def thinned(logits: np.ndarray) -> np.ndarray:
    """The part of [B, classes] that a golden stores: 16 evenly spread columns."""
    return logits[:, :: max(1, logits.shape[1] // 16)][:, :16]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest value."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


class Reference(Protocol):
    """A network of another library."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every array in its weights file, by name; counters are left out."""

    def fill(self, values: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
        """Sets these weights, and writes them to `path` in the library's own file format."""

    def logits(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        """Logits (no softmax) of normalised images [B, H, W, 3]. `train` updates statistics."""

    def statistics(self) -> dict[str, np.ndarray]:
        """The current batch-norm statistics, by the names in its weights file."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What to compare.

    Attributes:
      model: the backbone's name in agejax.
      library: the reference's library, as in the layout.
      build: makes the reference; imports its library.
      file: name of the weights file; the suffix gives the format.
      size: edge of the images, pixels.
      num_classes: of the published classifier; None compares pooled features.
      options: of our model, in addition to those of the layout.
      train: whether the batch statistics of one training step are compared too.
      golden: whether `make test` compares ours with a stored output of the reference.
    """

    model: str
    library: str
    build: Callable[[], Reference]
    file: str = "weights.pth"
    size: int = 64
    num_classes: int | None = 1000
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train: bool = False
    golden: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}/{self.library}"

    @property
    def golden_path(self) -> pathlib.Path:
        folder = pathlib.Path(__file__).parents[2] / "tests" / "goldens"
        return folder / f"{self.name.replace('/', '_')}.json"
