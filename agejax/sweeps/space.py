"""The settings that a sweep searches, and how their values are drawn."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Mapping
from typing import Any

from agejax.errors import UserError, check_keys, line_in
from agejax.paths import expand

KEYS = ("low", "high", "log", "step", "choices")
Space = Mapping[str, Mapping[str, Any]]


def read_space(path: str) -> dict[str, dict[str, Any]]:
    """Reads get_space() of a Python file.

    Raises:
      UserError: no such file, no get_space() in it, or an invalid range.
    """
    file = expand(path)
    if not file.is_file():
        raise UserError(f"--space={path}: no such file")
    loader = importlib.machinery.SourceFileLoader("space", str(file))  # with any suffix
    spec = importlib.util.spec_from_loader("space", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
        get_space = getattr(module, "get_space", dict)
        space: dict[str, dict[str, Any]] = dict(get_space())
    except (Exception, SystemExit) as error:
        where = line_in(str(file), error)
        raise UserError(
            f"--space={path}, {where}" if where else f"--space={path} cannot be loaded: {error!r}"
        ) from error
    if not space:
        raise UserError(f"--space={path} has no get_space(), or it names no setting")
    for name, given in space.items():
        where = f"--space={path}: {name}"
        check_keys(given, KEYS, where)
        if "choices" in given:
            if not given["choices"]:
                raise UserError(f"{where}: no choices")
        elif not {"low", "high"} <= given.keys() or not given["low"] <= given["high"]:
            raise UserError(f"{where}: set low and high, low first, or choices")
    return space


def suggest(trial: Any, name: str, given: Mapping[str, Any]) -> Any:
    """Draws a setting's value: one of its choices, or a whole or real number in its range."""
    if "choices" in given:
        # By number: Optuna stores texts and numbers only, and a choice may be a dict.
        k = trial.suggest_categorical(name, list(range(len(given["choices"]))))
        return given["choices"][k]
    whole = all(isinstance(given[key], int) for key in ("low", "high"))
    options = {key: given[key] for key in ("log", "step") if key in given}
    return (trial.suggest_int if whole else trial.suggest_float)(
        name, given["low"], given["high"], **options
    )
