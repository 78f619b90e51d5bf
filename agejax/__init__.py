"""agejax: train and judge face-age models in JAX. Import what you need from its rooms."""

__version__ = "0.1.0"
