"""Opens the data of a run: the data set or mixture that config.data names, with its edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax.data import edits, mixture, sources
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.logging import console


def open_source(
    config: Any, path: str | None = None, options: Mapping[str, Any] | None = None
) -> Source:
    """The source of `config.data`.

    Args:
      path: where its files are now, if not at the config's path.
      options: of the data set; they replace the config's options with the same names.

    Raises:
      UserError: as `sources.load`, `mixture.load` and `edits.apply`; or a path or options for a
        mixture, which has several.
    """
    place = {"image_size": config.image_size, "cache_dir": config.cache_dir}
    if config.get("mixture"):
        if path is not None:
            raise UserError(f"{path}: the run's data is a mixture; its config says where it lies")
        if options:
            raise UserError("--option: the run's data is a mixture; its config has their options")
        source = mixture.load(config.mixture, **place)
    else:
        chosen = dict(config.options) | dict(options or {})
        source = sources.load(config.name, path or config.source, options=chosen, **place)
    return edits.apply(source, config.edits) if "edits" in config else source


def is_own(config: Any, dataset: str | None) -> bool:
    """Whether `dataset` is the one data set that `config.data` names."""
    return dataset is None or (dataset == config.name and not config.get("mixture"))


def open_other(
    config: Any,
    dataset: str,
    path: str | None,
    label_names: Mapping[str, Sequence[str]],
    options: Mapping[str, Any] | None = None,
) -> Source:
    """All of another data set, for a run on `config.data` with classes `label_names`.

    Classes are matched by name and numbered as in the run. A class that the run does not have
    becomes an unknown label, with a line on stderr.

    Args:
      options: of the data set. If the run's mixture has one part of that name, they replace that
        part's options with the same names.
    """
    parts = [part for part in (config.get("mixture") or {}).values() if part["name"] == dataset]
    trained_with = parts[0].get("options") or {} if len(parts) == 1 else {}
    source = sources.load(
        dataset,
        path,
        image_size=config.image_size,
        cache_dir=config.cache_dir,
        options=dict(trained_with) | dict(options or {}),
    )
    for label, names in label_names.items():
        for number, name in enumerate(source.label_names.get(label, ())):
            count = int(np.sum(source.labels[label] == number))
            if name not in names and count:
                console.note(
                    f"{dataset}: the run has no {label} {name!r}; {count:,} images with it count "
                    "as unlabelled"
                )
    known = {label: names for label, names in label_names.items() if label in source.label_names}
    return edits.with_classes(source, known)
