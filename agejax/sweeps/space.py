"""The settings that a sweep searches, and how their values are drawn."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from agejax.errors import UserError, check_keys, is_number, line_in
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
        if not isinstance(given, Mapping):
            raise UserError(f"{where}: {given!r}; set low and high, or choices")
        check_keys(given, KEYS, where)
        if "choices" in given:
            choices = given["choices"]
            if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
                raise UserError(f"{where}: no choices; list them")
            continue
        numbers = [given.get("low"), given.get("high"), given.get("step", 1)]
        if not all(map(is_number, numbers)) or given["low"] > given["high"] or numbers[2] <= 0:
            raise UserError(
                f"{where}: set low and high, low first, and if you like a step above 0; or choices"
            )
        if given.get("log") and (given["low"] <= 0 or "step" in given):
            raise UserError(f"{where}: log needs low above 0, and no step")
    return space


def suggest(trial: Any, name: str, given: Mapping[str, Any]) -> Any:
    """Draws a setting's value: one of its choices, or a whole or real number in its range."""
    if "choices" in given:
        # By number: Optuna stores texts and numbers only, and a choice may be a dict.
        k = trial.suggest_categorical(name, list(range(len(given["choices"]))))
        return given["choices"][k]
    return (trial.suggest_int if _is_whole(given) else trial.suggest_float)(
        name, given["low"], given["high"], **_options(given)
    )


def distribution(given: Mapping[str, Any]) -> Any:
    """Optuna's distribution from which `suggest` draws."""
    from optuna import distributions

    if "choices" in given:
        return distributions.CategoricalDistribution(list(range(len(given["choices"]))))
    kind = distributions.IntDistribution if _is_whole(given) else distributions.FloatDistribution
    return kind(given["low"], given["high"], **_options(given))


def _is_whole(given: Mapping[str, Any]) -> bool:
    return all(isinstance(given.get(key, 1), int) for key in ("low", "high", "step"))


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in ("log", "step") if key in given}
