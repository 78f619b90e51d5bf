"""agejax: train and judge face-age models in JAX. Import what you need from its rooms."""

from agejax import memory

__version__ = "0.1.0"

memory.keep_freed()  # here, before other packages start threads
