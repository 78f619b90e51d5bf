"""Where a model comes from: its training data, its start, its teachers, and their training data.

A lineage is JSON, so that a released model carries it. A run is {"kind": "run", "name", "backbone",
"image_size", "step" (None for an ancestor), "data": {"names", "fingerprint", "split", "examples"},
"settings": those that differ from the defaults, "start": lineage or None, "teachers": [lineage],
"members": names of the checkpoints that were averaged, none for a single one, "averaged": lineages
of those of them that were trained otherwise}; its split is config.data.split with the SHA-256 of
files in place of their paths. A file is {"kind": "file", "name", "sha256", "library"}. What no
longer exists is {"kind": "missing", "name"}.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from agejax import files
from agejax.config import SETTINGS, default
from agejax.data import splits
from agejax.data.sources import Source
from agejax.errors import DAMAGE, UserError
from agejax.models import pretrained
from agejax.paths import expand
from agejax.runs import box
from agejax.runs.run import Run, same_splits
from agejax.runs.run_folder import LEARNED_FROM, opened_config
from agejax.settings import Group, to_json
from agejax.training.checkpoint import Checkpoints

Lineage = dict[str, Any]

# Settings that name places on the machine where the run was trained.
PLACES = re.compile(
    rf"data\.(source|edits\.labels|split\.files\..*|mixture\.[^.]+\.source)|{LEARNED_FROM}"
)


def of(run: Run) -> Lineage:
    """The lineage of a run or a released model. Deleted ancestors are "missing"."""
    if box.is_release(run.workdir):
        lineage: Lineage = box.read(run.workdir)["lineage"]
        return lineage
    return _of_run(run.workdir, run.config, run.fingerprint, ()) | {"step": run.step}


def runs(lineage: Lineage) -> Iterator[Lineage]:
    """Yields the runs of a lineage: the model itself, then its start, members and teachers."""
    for node in nodes(lineage):
        if node["kind"] == "run":
            yield node


def nodes(lineage: Lineage) -> Iterator[Lineage]:
    """Yields everything that a lineage names, the model itself first."""
    yield lineage
    # Models released by older versions have none that were averaged.
    others = (*lineage.get("averaged", ()), *lineage.get("teachers", ()))
    for parent in (lineage.get("start"), *others):
        if parent is not None:
            yield from nodes(parent)


def may_have_seen(
    lineage: Lineage, config: ml_collections.ConfigDict, source: Source
) -> str | None:
    """Describes what the model or an ancestor was trained on, if a new run may be scored on it.

    Args:
      config, source: of the new run.

    Returns:
      Words for a message; None where they have seen at most the new run's training split.
    """
    for node in runs(lineage):
        if (seen := _overlap(node["data"], config.data, source)) is not None:
            by = "" if node is lineage else f" (by way of {node['name']}, which it learned from)"
            return seen + by
    return None


def known_to_ancestors(lineage: Lineage, source: Source, rows: np.ndarray) -> dict[str, int]:
    """Counts the images on which a model's ancestors, its start and teachers, were trained.

    Copies of an image count as that image. Ancestors with other data, or split by lists of names,
    are left out: nothing can be counted for them.

    Args:
      source, rows: the images, rows int [N] of the data that the model was trained on.

    Returns:
      Name of each ancestor trained on some of the images -> how many.
    """
    found = {}
    for node in runs(lineage):
        data = node["data"]
        if node is lineage or data["fingerprint"] != source.fingerprint:
            continue
        if data["split"].get("files") or same_splits(data["split"], lineage["data"]["split"]):
            continue
        with contextlib.redirect_stderr(io.StringIO()):  # warnings about another run's split
            learned = splits.make(source, ml_collections.ConfigDict(data["split"]))["train"]
        if count := int(source.shared(rows, learned).sum()):
            found[node["name"]] = count
    return found


def _overlap(theirs: Mapping[str, Any], data: Any, source: Source) -> str | None:
    if theirs["fingerprint"] == source.fingerprint:
        same = same_splits(theirs["split"], split_of(data.split))
        return None if same else "the same data with other splits"
    both = sorted(set(theirs["names"]) & set(names(data)))
    return f"another version or part of {', '.join(both)}" if both else None


def _of_run(
    folder: pathlib.Path,
    config: ml_collections.ConfigDict,
    fingerprint: str,
    descendants: tuple[pathlib.Path, ...],
) -> Lineage:
    """
    Args:
      descendants: folders already on the path, since a folder may have been reused.
    """
    way = (*descendants, folder.resolve())
    values = portable(config)
    examples: Any = {}
    with contextlib.suppress(OSError, UserError, *DAMAGE):  # an unfinished run has none
        examples = files.read_json(folder / "summary.json", dict, "")["examples"]
    start = config.model.pretrained
    settings = differing(values)
    members = _ancestors(str(folder.absolute()), None, descendants) if _members(folder) else []
    return {
        "kind": "run",
        "members": _members(folder),
        "averaged": [
            one
            for one in members
            if one["kind"] != "run"
            or (one["settings"], one["data"]["fingerprint"]) != (settings, fingerprint)
        ],
        "name": folder.resolve().name,
        "backbone": config.model.name,
        "image_size": config.model.image_size,
        "step": None,
        "data": {
            "names": names(config.data),
            "fingerprint": fingerprint,
            "split": split_of(config.data.split),
            "examples": examples,
        },
        "settings": settings,
        "start": _ancestors(start, config.model.name, way)[0] if start else None,
        "teachers": [one for path in _teachers(config) for one in _ancestors(path, None, way)],
    }


def _members(folder: pathlib.Path) -> list[str]:
    """The names, with steps, of the checkpoints whose weights were averaged; [] of a run."""
    if not box.is_ensemble(folder):
        return []
    members = files.read_json(folder / box.ENSEMBLE, dict, "")["members"]
    return [pathlib.PurePath(member).name for member in members]


def _teachers(config: Any) -> list[str]:
    given = config.get("distill") or {}
    models = [model["path"] for model in (given.get("onnx") or {}).values()]
    return [*given.get("runs", ()), *given.get("files", ()), *models]


def split_of(split: Any) -> dict[str, Any]:
    """config.data.split with the SHA-256 of its files in place of their paths."""
    values = to_json(split)
    for name, path in values.get("files", {}).items():
        with contextlib.suppress(OSError):  # else the path itself identifies it
            values["files"][name] = box.sha256(expand(path).read_bytes())
    return values


def names(data: Any) -> list[str]:
    """The data sets that config.data names."""
    parts = (data.get("mixture") or {}).values()
    return sorted({part["name"] for part in parts} if parts else {data.name})


def data_name(data: Any) -> str:
    """What config.data names, in words: "utkface", or "procedural_faces and utkface"."""
    return " and ".join(names(data))


def _ancestors(path: str, backbone: str | None, way: tuple[pathlib.Path, ...]) -> list[Lineage]:
    """The lineage of a run's start or teacher; one for each member of an ensemble.

    Args:
      path: a run's folder, a released model, an ensemble, a weights file for `backbone`, or a file
        of targets.
    """
    missing = {"kind": "missing", "name": pathlib.PurePath(path).name}
    try:
        folder = box.locate(path)
        if box.is_release(folder):
            return [box.read(folder)["lineage"]]
        if folder.is_file():
            return _of_file(folder, backbone, way)
        if folder.resolve() in way:
            return [missing]
        if box.is_ensemble(folder):
            members = files.read_json(folder / box.ENSEMBLE, dict, "")["members"]
            runs = dict.fromkeys(re.sub(r"@\d+$", "", member) for member in members)
            inner = (*way, folder.resolve())
            return [one for member in runs for one in _ancestors(member, backbone, inner)]
        if (config := opened_config(folder)) is None:
            return [missing]
        checkpoints = Checkpoints(folder / "checkpoints")
        fingerprint = checkpoints.meta(checkpoints.steps[-1])["fingerprint"]
    except (UserError, OSError, *DAMAGE):
        return [missing]
    return [_of_run(folder, config, fingerprint, way)]


def _of_file(
    path: pathlib.Path, backbone: str | None, way: tuple[pathlib.Path, ...]
) -> list[Lineage]:
    if backbone is None:
        # `python -m agejax.distill` records which run made the targets.
        with contextlib.suppress(OSError, *DAMAGE), np.load(path, allow_pickle=False) as archive:
            return _ancestors(json.loads(str(archive["facts"]))["run"], None, way)
    library = None
    if backbone is not None:
        with contextlib.suppress(UserError):
            library = pretrained.identify(str(path), backbone)[1].layout.library
    digest = box.sha256(path.read_bytes())
    return [{"kind": "file", "name": path.name, "sha256": digest, "library": library}]


# ---- settings ------------------------------------------------------------------------------------


def portable(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config as JSON data, with names in place of paths, which are private to a machine."""
    values = to_json(config)
    values["data"]["cache_dir"] = None
    placeless: dict[str, Any] = _without_places(values, "")
    return placeless


def _without_places(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_places(item, f"{path}.{key}" if path else key)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_places(item, path) for item in value]
    is_place = isinstance(value, str) and (
        PLACES.fullmatch(path) or value.startswith(("/", "~"))  # such as a data set's own option
    )
    return pathlib.PurePath(expand(value)).name if is_place else value


def differing(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"schedule.lr": 0.002, ...}: where a stored config differs from `config.default`."""
    return dict(_differing(values, to_json(default()), SETTINGS, ""))


def _differing(
    values: Mapping[str, Any], defaults: Mapping[str, Any], group: Group, where: str
) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path, setting = f"{where}.{key}" if where else key, group[key]
        if isinstance(setting, Group):
            yield from _differing(value, defaults[key], setting, path)
        elif value != defaults[key]:
            yield path, value
