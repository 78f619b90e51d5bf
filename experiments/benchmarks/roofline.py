"""How close a step comes to its device's limits: model FLOP utilisation and the roofline."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Peaks:
    """A device's peaks by its maker: FLOP/s without sparsity, and bytes/s of its memory.

    Attributes:
      float32: with TF32 where available: JAX uses it, and PyTorch is told to.
    """

    float32: float
    bfloat16: float
    memory: float


# By JAX's name of the device. From NVIDIA's data sheets.
PEAKS = {
    "NVIDIA A100-SXM4-40GB": Peaks(156e12, 312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Peaks(156e12, 312e12, 2.039e12),
    "NVIDIA H100 PCIe": Peaks(378e12, 756e12, 2.0e12),
    "NVIDIA H100 80GB HBM3": Peaks(494.7e12, 989.4e12, 3.35e12),
    "NVIDIA H200": Peaks(494.7e12, 989.4e12, 4.8e12),
    "NVIDIA L4": Peaks(60e12, 121e12, 0.3e12),
    "NVIDIA GeForce RTX 4090": Peaks(82.6e12, 165.2e12, 1.008e12),
}


def utilisation(
    flops: float, moved: float | None, seconds: float, dtype: str, peaks: Peaks | None
) -> dict[str, Any]:
    """The throughput of a step, and its shares of the device's peaks.

    Args:
      flops: of one step of the model.
      moved: bytes that one step reads and writes; None: unknown, so there is no roofline.
      seconds: of one step.
      peaks: of the device; None: unknown, so there are no shares.

    Returns:
      {"flops_per_second", "bytes_per_second", "mfu": share of the peak, "roofline": share of the
      limit for this many operations per byte, "bound": "compute" or "memory"}, where known.
    """
    achieved = flops / seconds
    figures: dict[str, Any] = {"flops_per_second": achieved}
    if moved is not None:
        figures["bytes_per_second"] = moved / seconds
    if peaks is None:
        return figures
    peak = getattr(peaks, dtype)
    figures["mfu"] = achieved / peak
    if moved is not None:
        by_memory = flops / moved * peaks.memory
        figures["roofline"] = achieved / min(peak, by_memory)
        figures["bound"] = "compute" if peak < by_memory else "memory"
    return figures
