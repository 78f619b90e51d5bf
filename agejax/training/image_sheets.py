"""Sheets of images for the loggers: augmented training images, and the val images that err most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image, ImageDraw

from agejax.data.pipeline import TrainBatches
from agejax.data.sources import Source
from agejax.heads import Head
from agejax.logging.loggers import Loggers
from agejax.models import lowerings
from agejax.training import augment, sharding
from agejax.training import step as step_lib

CAPTION = (130, 14)  # pixels: the least width of a captioned image, and the height of a caption


class ImageSheets:
    """Gives loggers as many images as config.log_images says; with 0 it does nothing.

    Args:
      config: of the run.
      source: its data.
      val: the rows of its val split, int64 [N]; None without one.
      heads: the first that predicts years has its largest errors shown.
    """

    def __init__(
        self,
        config: Any,
        source: Source,
        val: np.ndarray | None,
        heads: Mapping[str, Head],
        loggers: Loggers,
    ) -> None:
        self._config, self._source, self._val, self._loggers = config, source, val, loggers
        self._count = config.log_images
        labels = [head.label for head in heads.values()]
        self._label = next((k for k in labels if source.labels[k].dtype.kind == "f"), None)

    def augmented(self, batches: TrainBatches, mesh: Mesh, size: int) -> None:
        """Logs the first batch of a run as its first step sees it: "train/augmented".

        Every process must call it. A run on cached features has none.

        Args:
          size: edge of the network's images, pixels.
        """
        if not self._count or self._config.model.cached_views:
            return
        batch = sharding.put_batch(batches[0], mesh)
        view = augment.build(self._config.augment, size)

        @lowerings.batch_split(mesh.size)
        def first(images: jax.Array, strength: jax.Array) -> jax.Array:
            # The whole batch, since mixup and CutMix take a row's partner from all of it.
            seen, _ = view(step_lib.keys(self._config.seed, 0)[0], images, strength)
            return jnp.round(255 * seen[: self._count]).astype(jnp.uint8)

        everywhere = sharding.replicated(mesh)
        images = jax.jit(first, out_shardings=everywhere)(batch["image"], batch["strength"])
        self._loggers.image(1, "train/augmented", sheet(np.asarray(images)))

    def worst(self, step: int, predictions: Mapping[str, np.ndarray]) -> None:
        """Logs the val images with the largest errors, largest first, with both ages: "val/worst".

        Args:
          predictions: of the split: years [N].
        """
        if not self._count or self._label is None or self._val is None:
            return
        truth, predicted = self._source.labels[self._label][self._val], predictions[self._label]
        errors = np.abs(predicted - truth)
        known = np.flatnonzero(np.isfinite(errors))
        shown = known[np.argsort(-errors[known], kind="stable")[: self._count]]
        if not shown.size:
            return
        captions = [f"age {truth[i]:.0f}, predicted {predicted[i]:.0f}" for i in shown]
        images = self._source.take(self._val[shown])
        self._loggers.image(step, "val/worst", sheet(images, captions))


def sheet(images: np.ndarray, captions: Sequence[str] = ()) -> np.ndarray:
    """Images uint8 [N, H, W, 3] on one, row by row in a square, each above its caption, if any."""
    height, width = images.shape[1:3]
    if captions:
        width, height = max(width, CAPTION[0]), height + CAPTION[1]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for i, image in enumerate(images):
        left, top = i % columns * width, i // columns * height
        page.paste(Image.fromarray(image), (left, top))
        if captions:
            draw.text((left + 2, top + len(image) + 1), captions[i], fill="black")
    return np.asarray(page)
