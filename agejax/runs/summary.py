"""summary.json: what a finished run reports of itself."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from agejax import files
from agejax.errors import UserError
from agejax.training.best import Best
from agejax.version import __version__

FILE = "summary.json"


def write(
    workdir: pathlib.Path,
    kept: Mapping[str, Any],
    *,
    step: int,
    batch_size: int,
    epoch_size: int,
    best: Best,
    last: Mapping[str, Any] | None,
    seconds: Mapping[str, float],
    mesh: Mesh,
    parameters: int,
    rows: Mapping[str, np.ndarray],
    skipped: int,
) -> dict[str, Any]:
    """Writes summary.json and returns its contents; of several processes the first one writes.

    Args:
      kept: of the run's checkpoints: facts, distill and versions are taken.
      step: the last one.
      epoch_size: draws in an epoch.
      last: metrics of the val split at that step.
      seconds: by phase.
      rows: of each split.
      skipped: files that are no use.
    """
    seconds = {"input": 0.0} | dict(seconds)
    summary = {
        "name": workdir.name,
        "steps": step,
        "epochs": step * batch_size / epoch_size,
        "best": dataclasses.asdict(best),
        "last": last,
        # Waiting for input counts; compiling, evaluating and saving do not.
        "images_per_second": step * batch_size / (seconds["step"] + seconds["input"]),
        "seconds": seconds,
        "parameters": parameters,
        "examples": {name: len(each) for name, each in rows.items()},
        "facts": kept["facts"],
        "distill": kept["distill"],
        "skipped": skipped,
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": kept["versions"],
    }
    if jax.process_index() == 0:
        files.write_json(workdir / FILE, summary)
    return summary


def best(workdir: pathlib.Path) -> Best | None:
    """The best evaluation that a finished run wrote to its summary; None where it has none."""
    with contextlib.suppress(UserError, LookupError, TypeError):
        return Best(**files.read_json(workdir / FILE, dict, "")["best"])
    return None


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"agejax": __version__} | {name: metadata.version(name) for name in names}
