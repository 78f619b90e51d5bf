"""Weights made elsewhere, into our parameters: strict, from safe formats only."""

from agejax.models.pretrained.torchvision import Loaded, load

__all__ = ["Loaded", "load"]
