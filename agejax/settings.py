"""The definition of a setting: its default, type, allowed values, and one sentence of help.

Every group of settings is defined once, as a `Group`: the config in `agejax.config`; augmentation,
heads, necks, and the options of backbones and data sets next to the code that uses them. The
`ConfigDict`, the checks, the command line's help and docs/config.md all come from it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, Union

import ml_collections
from ml_collections import config_dict

from agejax.errors import UserError, check_keys, is_number


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    A whole number is accepted as a real one, and a list as a tuple.

    Attributes:
      default: where it is None, None is allowed. A dict is open: users choose its keys, and the
        code that uses them checks them.
      help: one sentence.
      kind: the type of the value; None: that of the default.
      item: the type of a tuple's items; None: that of the default's first item. Items without a
        type, and tuples in a tuple, are checked where they are used.
      choices: the allowed values.
      limits: the lowest and the highest allowed number, for the value or a tuple's items; None for
        no limit.
      above, below: exclusive limits.
      length: how many items a tuple must have.
      rising: no item of a tuple may be smaller than the one before.
      unit: such as "years".
    """

    default: Any
    help: str
    _: dataclasses.KW_ONLY
    kind: type | None = None
    item: type | None = None
    choices: tuple[Any, ...] = ()
    limits: tuple[float | None, float | None] = (None, None)
    above: float | None = None
    below: float | None = None
    length: int | None = None
    rising: bool = False
    unit: str = ""

    def check(self, value: Any, where: str) -> None:
        """Raises `UserError`, which names the place `where`, for a value that is not allowed."""
        if value is None and self.default is None:
            return
        if not self._is_of_kind(value) or not all(map(self._is_within, self._numbers(value))):
            raise UserError(f"{where}: {value!r}; set it to {self.wanted}")
        if self.choices and value not in self.choices:
            raise UserError(f"{where}: {value!r} is not one of {_listed(self.choices)}")

    @property
    def wanted(self) -> str:
        """Describes the allowed values, such as "a whole number in 0..14"."""
        if self.choices:
            return f"one of {_listed(self.choices)}"
        kind, item = self._kind, self._item_kind
        if kind is dict:
            return "a dict"
        if kind is not tuple:
            return f"{_NAMES[kind][0]}{self._bounds}"
        if self.rising and self.length == 2:
            return f"(low, high){self._bounds}"
        items = f"{_NAMES[item][1]}{self._bounds}" if item else "items"
        items = f"rising {items}" if self.rising else items
        if self.length:
            return f"{self.length} {items}"
        of = f" of {items}" if item else ""
        return f"a list{of}, such as {self.default!r}" if self.default else f"a list{of}"

    @property
    def _kind(self) -> type:
        if self.kind is not None:
            return self.kind
        return dict if isinstance(self.default, Mapping) else type(self.default)

    @property
    def _item_kind(self) -> type | None:
        first = self.default[0] if self._kind is tuple and self.default else None
        item = self.item or type(first)
        return item if item in _NAMES else None

    @property
    def _bounds(self) -> str:
        low, high = (None if limit is None else f"{limit:.10g}" for limit in self.limits)
        if low is not None and high is not None:
            return f" in {low}..{high}"
        parts = [
            *([f"above {self.above:.10g}"] if self.above is not None else []),
            *([f"of {low} or more"] if low is not None else []),
            *([f"below {self.below:.10g}"] if self.below is not None else []),
            *([f"of {high} or less"] if high is not None else []),
        ]
        return " " + " and ".join(parts) if parts else ""

    def _is_of_kind(self, value: Any) -> bool:
        if self._kind is not tuple:
            return _is(value, self._kind)
        if not isinstance(value, (tuple, list)) or len(value) != (self.length or len(value)):
            return False
        item = self._item_kind
        right = item is None or all(_is(each, item) for each in value)
        return right and (not self.rising or list(value) == sorted(value))

    def _numbers(self, value: Any) -> list[float]:
        values = value if isinstance(value, (tuple, list)) else [value]
        return [number for number in values if is_number(number)]

    def _is_within(self, number: float) -> bool:
        low, high = self.limits
        return (
            (low is None or number >= low)
            and (high is None or number <= high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


class Duration(Setting):
    """A setting that is a dict of exactly one of `agejax.training.durations.UNITS`."""

    @property
    def wanted(self) -> str:
        return "one of {'steps': n}, {'epochs': n}, {'examples': n} and {'percent': n}"


class Group(dict[str, Union[Setting, "Group"]]):
    """Settings and groups of settings by name, in reading order.

    Args:
      help: one sentence.
    """

    def __init__(self, help: str, /, **settings: Setting | Group) -> None:
        super().__init__(settings)
        self.help = help

    def defaults(self) -> dict[str, Any]:
        """The default of every setting, groups as dicts."""
        return {
            key: setting.defaults() if isinstance(setting, Group) else setting.default
            for key, setting in self.items()
        }

    def config(self) -> ml_collections.ConfigDict:
        """A `ConfigDict` of the defaults, with the types of those that are None."""
        config = ml_collections.ConfigDict()
        for key, setting in self.items():
            if isinstance(setting, Group):
                config[key] = setting.config()
            elif setting.default is None:
                config[key] = config_dict.placeholder(setting.kind)
            elif isinstance(setting.default, Mapping):
                config[key] = ml_collections.ConfigDict(setting.default)
            else:
                config[key] = setting.default
        return config

    def check(self, given: Any, where: str, *, complete: bool = False) -> None:
        """Raises `UserError` for a setting that is unknown or has a value that is not allowed.

        Args:
          given: {name: value}; names may be absent.
          where: their place, such as "config.schedule".
          complete: no name may be absent.
        """
        if not hasattr(given, "items"):
            names = ", ".join(self)
            raise UserError(f"{where}: {given!r}; set it to a dict {{{names}: ...}}, any of them")
        if complete and (missing := [key for key in self if key not in given]):
            raise UserError(
                f"{where}.{missing[0]} is missing; change it alone, and not all of {where}"
            )
        check_keys(given, self, where)
        for key, value in given.items():
            setting, path = self[key], f"{where}.{key}"
            if isinstance(setting, Group):
                setting.check(value, path, complete=complete)
            else:
                setting.check(value, path)

    def walk(self, where: str) -> Iterator[tuple[str, Setting | Group]]:
        """Yields every setting and group below this one, with its path, in order."""
        for key, setting in self.items():
            yield f"{where}.{key}", setting
            if isinstance(setting, Group):
                yield from setting.walk(f"{where}.{key}")


# Type -> names for one and for several of its values.
_NAMES: dict[type, tuple[str, str]] = {
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
}


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config, or a part of one, as JSON would return it: dicts, lists, numbers, strings."""
    value: dict[str, Any] = json.loads(config.to_json_best_effort())
    return value


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of a config's JSON data by path, such as "optim.lr"; an empty dict is a leaf."""
    if isinstance(tree, dict) and tree:
        return {
            path: leaf
            for key, value in tree.items()
            for path, leaf in leaves(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: tree}


def _is(value: Any, kind: type) -> bool:
    if kind is dict:
        return hasattr(value, "items")
    if kind is float:
        return is_number(value)
    if kind is int:
        return is_number(value) and isinstance(value, int)
    return isinstance(value, kind)


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(repr(value) if value == "" else str(value) for value in values)
