"""Networks of keras.applications as references, on its JAX backend."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np

from agejax.models.pretrained import hdf5


class KerasReference:
    """A Keras model over NHWC images.

    Args:
      bgr: whether it expects images in BGR order.
      file: the file that `shapes` writes; the name gives the format.
    """

    def __init__(self, model: Any, bgr: bool, file: str) -> None:
        self.module, self.bgr, self.file = model, bgr, file

    def shapes(self) -> dict[str, tuple[int, ...]]:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / self.file
            _save(self.module, path)
            with h5py.File(path, "r") as file:
                return {name: data.shape for name, data in hdf5.datasets(file).items()}

    def fill(self, values: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
        # Through the file, so that Keras itself gives each weight its name.
        _save(self.module, path)
        with h5py.File(path, "r+") as file:
            for name, data in hdf5.datasets(file).items():
                data[...] = values[name]
        self.module.load_weights(path)

    def logits(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        return np.asarray(self.module(x[..., ::-1] if self.bgr else x, training=train))

    def statistics(self) -> dict[str, np.ndarray]:
        return {
            f"{layer.name}/{weight.name}": np.asarray(weight)
            for layer in self.module.layers
            for weight in layer.weights
            if weight.name.startswith("moving_")
        }


def keras_application(
    name: str, file: str = "weights.h5", bgr: bool = False, **options: Any
) -> Callable[[], KerasReference]:
    """A network of keras.applications by name, with logits without softmax.

    Args:
      file: the case's: `*.weights.h5` is Keras 3's own format, any other `*.h5` the older one.
    """

    def build() -> KerasReference:
        os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported
        import keras

        make = getattr(keras.applications, name)
        return KerasReference(make(weights=None, classifier_activation=None, **options), bgr, file)

    return build


def _save(model: Any, path: pathlib.Path) -> None:
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
        return
    # Keras 3 reads the published files but no longer writes this format: weights at the root of
    # the file, and ":0" after every name.
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in sorted(model.layers, key=lambda layer: layer.name):
            group = file.create_group(layer.name)
            weights = {f"{weight.path}:0": np.asarray(weight) for weight in layer.weights}
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name, value in weights.items():
                group[name] = value
