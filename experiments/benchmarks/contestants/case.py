"""What all contestants share: the network, its sizes, the images, and the definition of a turn."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import memory

Turn = Callable[[int], float]  # steps -> seconds per step

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
CLASSES = 5  # ethnicities
DROPOUT = 0.2  # between the backbone and the heads
SHARE = 0.25  # weight of gender and of ethnicity in the loss
LEARNING_RATE, CLIP_NORM = 1e-4, 1.0  # AdamW's; limit of the global gradient norm
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
AGE_MEAN, AGE_STD = 33.0, 20.0  # years, of the standardised target

# A light augmentation recipe.
FLIP = 0.5  # probability
CROP = (0.75, 1.0)  # share of the area
DEGREES = 10.0
JITTER = 0.2  # brightness, contrast and saturation: factors in 0.8..1.2


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, the edge of its images in pixels, images per step, and the dtype."""

    network: str = "mobilenet_v3_small"
    image_size: int = 128
    batch: int = 64
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Data:
    """A folder of N faces: JPEG files, the same images decoded for each edge S, and labels.

    Attributes:
      edge: of the files and of the decoded images that are augmented, pixels.
    """

    folder: pathlib.Path
    edge: int

    def files(self) -> list[pathlib.Path]:
        """The JPEG files [N], in the order of the labels."""
        return sorted(self.folder.glob("*.jpg"))

    def labels(self) -> dict[str, np.ndarray]:
        """Labels: age float32 [N], years; gender and ethnicity int32 [N]."""
        with np.load(self.folder / "labels.npz") as arrays:
            return dict(arrays)

    def images(self, size: int) -> np.ndarray:
        """Memory-mapped images uint8 [N, size, size, 3]."""
        return np.memmap(self.path(size), np.uint8, "r").reshape(-1, size, size, 3)

    def path(self, size: int) -> pathlib.Path:
        """The file of the images of this edge, without a header."""
        return self.folder / f"{size}.u8"


class Contestant:
    """One library. Its methods prepare a task, run it once, and return its turn."""

    def __init__(self, case: Case, data: Data) -> None:
        self.case, self.data = case, data

    def train(self) -> Turn:
        """The train step on a batch on the device."""
        raise NotImplementedError

    def evaluation(self) -> Turn:
        """The forward pass in inference mode, on such a batch."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """{"parameters": of the network trained last, "versions": ...}."""
        raise NotImplementedError

    def device_bytes(self) -> int | None:
        """Peak memory on an accelerator, bytes; None without one."""
        return None

    def memory(self) -> dict[str, int | None]:
        """Peak memory of this process, and of an accelerator, bytes."""
        return {"bytes": peak_bytes(), "device_bytes": self.device_bytes()}


def timed(step: Callable[[], Any], wait: Callable[[], Any] = lambda: None, ahead: int = 0) -> Turn:
    """Makes a turn of steps; `wait` waits for the device.

    The first `ahead` steps do not count: their batches were read during others' turns.
    """

    def turn(steps: int) -> float:
        for _ in range(ahead):
            step()
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        return (time.perf_counter() - start) / steps

    return turn


def peak_bytes() -> int:
    """Peak memory of this process. Linux starts ru_maxrss at the parent's; VmHWM is its own."""
    unit = 1 if sys.platform == "darwin" else 1024
    return memory.status("VmHWM") or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
