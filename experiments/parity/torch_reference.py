"""Networks of torchvision, timm and efficientnet-lite-pytorch as references."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class TorchReference:
    """A torch module over NCHW images."""

    def __init__(self, module: Any) -> None:
        self.module = module.eval()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        state = self.module.state_dict()
        return {k: tuple(v.shape) for k, v in state.items() if "num_batches" not in k}

    def fill(self, values: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
        import torch

        state = {k: torch.from_numpy(v.copy()) for k, v in values.items()}
        missing = self.module.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
        assert all("num_batches" in key for key in missing.missing_keys)
        if path.suffix == ".safetensors":
            import safetensors.torch

            safetensors.torch.save_file(self.module.state_dict(), path)
        else:
            torch.save(self.module.state_dict(), path)

    def logits(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        import torch

        self.module.train(train)
        for part in self.module.modules():
            if "Drop" in type(part).__name__:  # random, so it is left out on both sides
                part.eval()
        with torch.no_grad():
            out: np.ndarray = self.module(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        self.module.eval()
        return out

    def statistics(self) -> dict[str, np.ndarray]:
        state = self.module.state_dict()
        return {k: v.numpy() for k, v in state.items() if "running_" in k}


def timm(name: str, **options: Any) -> Callable[[], TorchReference]:
    """A model of timm by name, without download."""

    def build() -> TorchReference:
        declare_torchvision_operators()
        import timm as library

        return TorchReference(library.create_model(name, pretrained=False, **options))

    return build


def torchvision(name: str, **options: Any) -> Callable[[], TorchReference]:
    """A model of torchvision by name."""

    def build() -> TorchReference:
        declare_torchvision_operators()
        from torchvision import models

        return TorchReference(getattr(models, name)(weights=None, **options))

    return build


def efficientnet_lite(name: str) -> Callable[[], TorchReference]:
    """A model of efficientnet-lite-pytorch by name, for images of any size."""

    def build() -> TorchReference:
        from efficientnet_lite_pytorch import EfficientNet

        return TorchReference(EfficientNet.from_name(name, image_size=None))

    return build


def declare_torchvision_operators() -> None:
    """Declares two operators, without which the import of torchvision may fail: its compiled part
    may be for another version of torch. Only its models, in Python, are used here."""
    global _library
    if _library is not None:
        return
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    else:
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_library: Any = None
