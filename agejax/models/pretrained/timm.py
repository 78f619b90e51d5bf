"""timm's state dicts."""

from __future__ import annotations

from agejax.models.pretrained.layout import Layout

LAYOUTS: dict[str, Layout] = {}
