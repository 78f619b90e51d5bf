"""Released models, and those that agejax comes with.

A released model is a folder that `Run.open` takes like a run's. It has no checkpoints, but one
file of weights:

  config.json          the settings of the run, without its paths
  release.json         its step, facts and origin, and the SHA-256 of every file beside it
  weights.safetensors  parameters and batch statistics by flat name
  calibration.json     its intervals, temperatures and framing of faces
  summary.json         how large its splits were
  evaluation/          metrics.json of each evaluation
  card.md              all of this in words

`release` writes it. Those in agejax/weights/ have names: `box:NAME`, and `box` for the first one.
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
BOX, FIRST = "box", "small"  # what names start with, and the model that `box` alone names
RELEASE, WEIGHTS = "release.json", "weights.safetensors"
KEYS = {"format", "step", "fingerprint", "facts", "lineage", "files"}  # of release.json, at least
FORMAT = 1
REMEDY = "get this model again"


def is_name(given: str | os.PathLike[str]) -> bool:
    """Whether it names a model of the box: the text `box` or `box:NAME`, not a `pathlib.Path`."""
    return isinstance(given, str) and given.partition(":")[0] == BOX


def names() -> list[str]:
    """The names of the models that agejax comes with, the first choice first."""
    found = sorted(path.name for path in FOLDER.iterdir() if is_release(path))
    return sorted(found, key=lambda name: name != FIRST)


def locate(given: str | os.PathLike[str], where: str = "--workdir") -> pathlib.Path:
    """The folder of a run as users name it: its path, `box` or `box:NAME`.

    A folder of the user's own that is called box is written `./box`.

    Args:
      where: what the name was given for; a message begins with it.

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
    """How a user names this folder of a run or of a released model."""
    return f"{BOX}:{folder.name}" if folder.parent == FOLDER else str(folder)


def is_release(folder: pathlib.Path) -> bool:
    """Whether it is the folder of a released model."""
    return (folder / RELEASE).exists()


def read(folder: pathlib.Path) -> dict[str, Any]:
    """release.json, when every file beside it is the one that was released.

    Raises:
      UserError: a file is missing or changed, or a later version of agejax has written it.
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
    """The parameters and batch statistics of a released model by flat name, float32.

    Args:
      shapes: of the network that its config builds.

    Raises:
      UserError: the file is damaged, or the network of this version of agejax is another one.
    """
    path = folder / WEIGHTS
    tensors = pretrained.files.read(str(path), str(path))
    if {name: tensor.shape for name, tensor in tensors.items()} != dict(shapes):
        raise UserError(f"{path} does not fit the network that its config.json describes; {REMEDY}")
    return {name: tensors[name] for name in shapes}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
