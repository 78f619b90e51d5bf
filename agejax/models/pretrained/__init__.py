"""Loads weights trained elsewhere into our parameters: strictly, and only from safe formats.

`settle` writes what the weights expect into the config; `load` fits them to the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from agejax.errors import UserError, few
from agejax.models import registry
from agejax.models.pretrained import (
    augreg,
    faceres,
    files,
    folding,
    keras,
    lite,
    matching,
    timm,
    torchvision,
)
from agejax.models.pretrained.layout import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Layout,
    Loaded,
    Misfit,
    Tensors,
    fit,
)
from agejax.paths import expand

__all__ = ["Loaded", "gives_norms_back", "identify", "load", "settle"]

# model -> the layouts of its weights in all libraries.
LAYOUTS: dict[str, list[Layout]] = {}
for library in (torchvision, timm, keras, augreg, lite, faceres):
    for name, layout in library.LAYOUTS.items():
        LAYOUTS.setdefault(name, []).append(layout)


def load(
    path: str, model_name: str, shapes: Mapping[str, tuple[int, ...]], prefix: str = "backbone/"
) -> Loaded:
    """Reads the arrays of a weights file, by our names.

    Args:
      shapes: of all our arrays, parameters and batch statistics, by flat name; only those under
        `prefix` count.

    Raises:
      UserError: an unreadable file, a model without rules, or keys and shapes that do not match on
        either side; names the first of them, and the model that the file looks like.
    """
    tensors, match = identify(path, model_name)
    ours = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
    try:
        theirs = folding.folded(ours) if match.layout.options.get("folded") else ours
        loaded = fit(match.tensors, match.layout, theirs, _where(path))
    except Misfit as error:
        alike = matching.looks_like(tensors, LAYOUTS)
        if not alike:
            keys = " or ".join(
                f"{layout.example()!r} ({layout.library})" for layout in LAYOUTS[model_name]
            )
            raise UserError(
                f"{_where(path)} does not look like a model of agejax (its keys: {few(tensors)}); "
                f"give the weights of {model_name}, whose keys begin like {keys}"
            ) from error
        if model_name not in alike:
            raise UserError(
                f"{_where(path)} looks like {' or '.join(alike[:3])}; config.model.name is "
                f"{model_name}: name the weights of that model, or set it to the model of these "
                "weights"
            ) from error
        raise
    if match.twins:
        prefixes = " and ".join(map(repr, (match.prefix, *match.twins)))
        raise UserError(
            f"{_where(path)} has the backbone more than once, under {prefixes}; keep one"
        )
    arrays = loaded.arrays if theirs is ours else folding.unfolded(loaded.arrays, ours)
    return dataclasses.replace(
        loaded,
        arrays={prefix + name: array for name, array in arrays.items()},
        fresh=tuple(prefix + name for name in loaded.fresh),
        left_out=(*loaded.left_out, *match.beside),
        prefix=match.prefix,
    )


def settle(
    config: ml_collections.ConfigDict,
    stored: ml_collections.ConfigDict | None = None,
    of_run: ml_collections.ConfigDict | None = None,
) -> ml_collections.ConfigDict:
    """Returns a copy of `config` in which every setting of config.model has a value.

    First come the values of a run's `stored` config, so that a resumed run needs no weights; then
    what the weights expect; without weights, ImageNet's mean and standard deviation.

    Args:
      stored: the config of the run to resume.
      of_run: the config of the run that config.model.pretrained names, if it names one.

    Raises:
      UserError: settings that contradict what the weights expect.
    """
    config = config.copy_and_resolve_references()
    c = config.model
    expected: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    options: Mapping[str, Any] = {}
    binding = stored is None and bool(c.pretrained)
    may_differ: tuple[str, ...] = ()
    if stored is not None:
        expected = {key: tuple(stored.model[key]) for key in expected}
        options = stored.model.options
    elif of_run is not None:
        if of_run.model.name != c.name:
            raise UserError(
                f"{_where(c.pretrained)} is a run of {of_run.model.name}, and config.model.name is "
                f"{c.name}; set config.model.name={of_run.model.name}, or name another run"
            )
        may_differ = registry.OF_TRAINING
        expected = {key: tuple(of_run.model[key]) for key in expected}
        defaults = registry.options_of(c.name).defaults()
        options = {key: defaults[key] for key in c.options if key in defaults}
        options |= of_run.model.options.to_dict()
    elif c.pretrained:
        layout = identify(c.pretrained, c.name)[1].layout
        expected = {"mean": layout.mean, "std": layout.std}
        options, may_differ = layout.options, layout.may_differ
        if layout.doubt:
            may_differ = (*may_differ, "mean", "std")
            if (c.mean is None) != (c.std is None):
                raise UserError(f"config.model.mean and .std: set both or none; {layout.doubt}")
    with config.unlocked():
        for group, values in ((c, expected), (c.options, options)):
            for key, value in values.items():
                if group.get(key) is None:
                    group[key] = value
                elif binding and key not in may_differ and _plain(group[key]) != _plain(value):
                    place = "model" if group is c else "model.options"
                    raise UserError(
                        f"config.{place}.{key}: {c.pretrained} expects {value}, "
                        f"not {group[key]}; set it so, or leave it out"
                    )
    return config


def gives_norms_back(config: Any) -> bool:
    """Whether the weights file of config.model has folded batch norms, but its network has not.

    Raises:
      UserError: as `identify`.
    """
    folded = identify(config.pretrained, config.name)[1].layout.options.get("folded", False)
    return bool(folded) and not config.options.get("folded")


def identify(path: str, model_name: str) -> tuple[Tensors, matching.Match]:
    """Reads the tensors of a weights file, and finds the backbone in them.

    Raises:
      UserError: no such file, an unreadable one, or a model without rules.
    """
    file = str(expand(path))
    files.check(file, _where(path))  # first: a missing file is wrong for any model
    if model_name not in LAYOUTS:
        registry.options_of(model_name)  # raises if there is no such model
        raise UserError(
            f"{_where(path)}: no rules to read weights of {model_name!r} from a file; name the "
            f"folder of a run to start from its weights, or use one of {few(LAYOUTS)}"
        )
    tensors = files.read(file, _where(path))
    return tensors, matching.find(tensors, LAYOUTS[model_name])


def _where(path: str) -> str:
    return f"config.model.pretrained: {path}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
