"""The .npz files of big_vision and AugReg: ViT."""

from __future__ import annotations

from agejax.models.pretrained.layout import Layout

LAYOUTS: dict[str, Layout] = {}
