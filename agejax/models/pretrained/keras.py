"""keras.applications' weights, legacy .h5 and .weights.h5."""

from __future__ import annotations

from agejax.models.pretrained.layout import Layout

LAYOUTS: dict[str, Layout] = {}
