"""Released models, and the box: those that come with agejax.

`Run.open` opens the folder of a released model like a run's. In place of checkpoints it has one
file of weights:

  config.json          the run's settings, without its paths
  release.json         its step, facts and origin, and the SHA-256 of every file beside it
  weights.safetensors  parameters and batch statistics by flat name
  calibration.json     intervals, temperatures and framing of faces
  summary.json         the sizes of its splits
  evaluation/          metrics.json of each evaluation
  card.md              all of this in words

`release` writes it. Those in agejax/weights/ are named `box:NAME`, and `box` is the first one.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax import files
from agejax.errors import REMEDIES, UserError, nearest, reason
from agejax.models import pretrained
from agejax.paths import expand

FOLDER = pathlib.Path(__file__).parents[1] / "weights"
BOX, FIRST = "box", "small"  # the prefix of names, and the model that `box` names
RELEASE, WEIGHTS = "release.json", "weights.safetensors"
ENSEMBLE = "ensemble.json"  # in the folder of an ensemble, which `agejax.runs.ensembles` opens
KEYS = {"format", "step", "fingerprint", "facts", "lineage", "files"}  # that release.json must have
FORMAT = 1
REMEDY = "get this model again"


def is_name(given: str | os.PathLike[str]) -> bool:
    """Whether it names a model of the box: a text `box` or `box:NAME`, not a `pathlib.Path`."""
    return isinstance(given, str) and given.partition(":")[0] == BOX


def names() -> list[str]:
    """The names of the models that come with agejax, the first choice first."""
    found = sorted(path.name for path in FOLDER.iterdir() if is_release(path))
    return sorted(found, key=lambda name: name != FIRST)


def locate(given: str | os.PathLike[str], where: str = "--workdir") -> pathlib.Path:
    """Finds the folder of a run that a user names by path, `box` or `box:NAME`.

    A user's own folder named box is written `./box`.

    Args:
      where: the flag or setting that gave the name; messages begin with it.

    Raises:
      UserError: there is no such model in the box.
    """
    if not is_name(given):
        return expand(given)
    _, colon, name = str(given).partition(":")
    there = names()
    if not there:
        raise UserError(
            f"{where}: this installation of agejax comes without a model ({FOLDER} holds none); "
            "give the folder of a trained run, or install agejax again"
        )
    chosen = name if colon else there[0]
    if chosen not in there:
        raise UserError(f"{where}={given}: no such model in the box; {nearest(chosen, there)}")
    return FOLDER / chosen


def name_of(folder: pathlib.Path) -> str:
    """The name or path by which a user names the folder of a run or a released model."""
    return f"{BOX}:{folder.name}" if folder.parent == FOLDER else str(folder)


def is_release(folder: pathlib.Path) -> bool:
    """Whether the folder is that of a released model."""
    return (folder / RELEASE).exists()


def is_ensemble(folder: pathlib.Path) -> bool:
    """Whether the folder is that of an ensemble."""
    return (folder / ENSEMBLE).exists()


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Reads release.json, and checks that every file beside it is the released one.

    Raises:
      UserError: a file is missing or changed, or a later version of agejax wrote it.
    """
    path = folder / RELEASE
    release = files.read_json(path, dict, REMEDY)
    if release.get("digest") != files.digest(release) or not release.keys() >= KEYS:
        raise UserError(f"{path} is not what was released; {REMEDY}")
    if release["format"] != FORMAT:
        raise UserError(f"{path} is of another version of agejax; install the newest one")
    for name, expected in release["files"].items():
        try:
            found = sha256((folder / name).read_bytes())
        except OSError as error:
            if error.errno not in REMEDIES:
                raise
            raise UserError(f"{folder / name} cannot be read: {reason(error)}") from error
        if found != expected:
            raise UserError(f"{folder / name} is not the file that was released; {REMEDY}")
    return release


def arrays(folder: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Reads a released model's parameters and batch statistics by flat name, float32.

    Args:
      shapes: of the network that its config builds.

    Raises:
      UserError: the file is damaged, or this version of agejax builds another network.
    """
    path = folder / WEIGHTS
    tensors = pretrained.files.read(str(path), str(path))
    if {name: tensor.shape for name, tensor in tensors.items()} != dict(shapes):
        raise UserError(f"{path} does not fit the network that its config.json describes; {REMEDY}")
    return {name: tensors[name] for name in shapes}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
