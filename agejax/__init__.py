"""agejax: train and evaluate face-age models in JAX.

    import agejax

    config = agejax.config("quickstart", total={"epochs": 3.0})
    agejax.train(config, "runs/mine")
    result = agejax.evaluate("runs/mine")
    print(result.metrics["age"]["mae"], result.report)
    faces = agejax.load("runs/mine").predict("photos/")
    print(faces[0]["age"], faces[0]["gender"])

These functions are those of `agejax.api`. Importing agejax changes nothing in the process; commands
do that (`agejax.process.start`). JAX is imported when the first function is used.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

from agejax.version import __version__

if TYPE_CHECKING:
    from agejax.api import config, evaluate, load, train

__all__ = ["__version__", "config", "evaluate", "load", "train"]

FUNCTIONS = ("config", "evaluate", "load", "train")


def __getattr__(name: str) -> Any:
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agejax import api

    return getattr(api, name)


class _Package(types.ModuleType):
    """The package; in it, modules never replace the functions of the same name.

    agejax.train is both a function and the module of the loop. When a module is imported, Python
    binds it to its name in the package, and `agejax.train(...)` would fail from then on. Neither
    `from agejax.train import ...` nor `python -m agejax.evaluate` needs that binding.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in FUNCTIONS and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
