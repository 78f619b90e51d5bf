"""Command-line settings whose names no config lists: a duration's unit, a head's options.

`--config.total.steps=200`, `--config.heads.gender.smoothing=0.1` and the like lead below an open
dict (`agejax.settings`), where ml_collections knows only the keys in the config file. This module
takes them off the command line, and sets them in the config that the rest gives.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import ml_collections

from agejax.config import open_dict, put
from agejax.errors import UserError, nearest
from agejax.settings import Duration, Setting

_FLAG = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Override:
    """A command-line setting below an open dict.

    Attributes:
      flag: such as "--config.heads.gender.smoothing".
      setting: the open dict that it leads below.
      at: the path of that dict, such as ("heads",).
      below: the rest of the path, such as ("gender", "smoothing").
      text: the value as given.
    """

    flag: str
    setting: Setting
    at: tuple[str, ...]
    below: tuple[str, ...]
    text: str


def split(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Splits arguments into those that ml_collections can take, and the others.

    Raises:
      UserError: an argument without a value, a whole dict after a part of it, or a value that is
        not a dict in place of one.
    """
    rest: list[str] = []
    found: list[Override] = []
    arguments = iter(argv)
    for argument in arguments:
        match = _FLAG.fullmatch(argument)
        opened = open_dict(match[1]) if match else None
        if match is None or opened is None:
            rest.append(argument)
            continue
        setting, at, below = opened
        flag, text = argument.partition("=")[0], match[2]
        if not below:
            if text is not None and not text.lstrip().startswith("{"):
                raise UserError(f"{argument}: write {_form(flag, setting, text)}")
            if parts := [each.flag for each in found if each.at == at]:
                raise UserError(f"{flag} would replace what {parts[0]} sets; give it first")
            rest.append(argument)
            continue
        if text is None and (text := next(arguments, None)) is None:
            raise UserError(f"{flag} has no value; write {flag}=VALUE")
        found.append(Override(flag, setting, at, below, text))
    return rest, found


def apply(config: ml_collections.ConfigDict, overrides: Sequence[Override]) -> None:
    """Sets the overrides in the config.

    Raises:
      UserError: an unknown unit, two units of one duration, a head that does not exist, or a part
        of something that is not a dict.
    """
    heads = tuple(config.heads)
    units: dict[tuple[str, ...], Override] = {}
    with config.unlocked():
        for each in overrides:
            if isinstance(each.setting, Duration):
                first = units.setdefault(each.at, each)
                if first.below != each.below:
                    raise UserError(f"{first.flag} and {each.flag}: set one of them")
                old = 0.0
            else:
                old = _at(config, each.at + each.below)
            path = ".".join(each.at + each.below)
            put(config, path, _value(each.text, old), each.flag, new=True)
    for each in overrides:
        name = each.below[0]
        if each.at == ("heads",) and name not in heads and not _at(config, ("heads", name, "kind")):
            raise UserError(
                f"{each.flag}: there is no head {name!r}; {nearest(name, heads)} (a new head needs "
                f"--config.heads.{name}.kind too)"
            )


def _form(flag: str, setting: Setting, text: str) -> str:
    """The form in which to set a part of an open dict."""
    if isinstance(setting, Duration):
        return f"{flag}.steps={text}, or .epochs, .examples or .percent"
    return f"{flag}.NAME=VALUE, or a dict such as {flag}=\"{{'NAME': VALUE}}\""


def _at(config: Any, path: Sequence[str]) -> Any:
    """The config's value at a path; None where there is none."""
    for part in path:
        config = config.get(part) if isinstance(config, ml_collections.ConfigDict) else None
    return config


def _value(text: str, old: Any) -> Any:
    """Reads a value from the command line: a Python literal, or a text without quotes.

    Args:
      old: the value that it replaces; its type is kept where possible.
    """
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    if isinstance(old, str) and not isinstance(value, (str, tuple, list, dict)):
        return text
    if isinstance(old, float) and type(value) is int and abs(value) < 2**63:
        return float(value)
    return value
