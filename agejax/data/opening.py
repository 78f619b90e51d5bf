"""The data of a run: what config.data names, alone or as a mixture, with its edits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax.data import edits, mixture, sources
from agejax.data.sources import Source
from agejax.errors import UserError


def open_source(config: Any, path: str | None = None) -> Source:
    """The source of `config.data`; `path` is where its files lie now, if not where it says.

    Raises:
      UserError: as `sources.load`, `mixture.load` and `edits.apply`.
    """
    place = {"image_size": config.image_size, "cache_dir": config.cache_dir}
    if config.get("mixture"):
        if path is not None:
            raise UserError(f"{path}: the run's data is a mixture; its config says where it lies")
        source = mixture.load(config.mixture, **place)
    else:
        source = sources.load(config.name, path or config.source, options=config.options, **place)
    return edits.apply(source, config.edits) if "edits" in config else source


def is_own(config: Any, dataset: str | None) -> bool:
    """Whether `dataset` is the one data set that `config.data` names."""
    return dataset is None or (dataset == config.name and not config.get("mixture"))


def open_other(
    config: Any, dataset: str, path: str | None, label_names: Mapping[str, Sequence[str]]
) -> Source:
    """Another data set, whole, for a run on `config.data` with classes `label_names`.

    Classes are numbered as the run numbers them, by name. A class the run does not have is an
    unknown label, which is said on stderr.
    """
    source = sources.load(dataset, path, image_size=config.image_size, cache_dir=config.cache_dir)
    for label, names in label_names.items():
        for number, name in enumerate(source.label_names.get(label, ())):
            count = int(np.sum(source.labels[label] == number))
            if name not in names and count:
                print(
                    f"{dataset}: the run knows no {label} {name!r}; {count:,} images count as "
                    "unlabelled in it",
                    file=sys.stderr,
                )
    known = {label: names for label, names in label_names.items() if label in source.label_names}
    return edits.with_classes(source, known)
