"""How a command is called, which its help shows: `python -m agejax.X`, or `agejax X`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

_CALL = re.compile(r"python -m agejax(?:\.\w+)+")  # with which a command's docstring begins
_typed: list[str] = []  # ["agejax X"] where that was typed


def typed(call: str) -> None:
    """Sets how this process's command was called, where that was not by `python -m`."""
    _typed[:] = [call]


def text(doc: str | None) -> str:
    """A command's docstring, with the call in it as it was typed."""
    assert doc is not None
    call = _CALL.match(doc)
    assert call is not None, doc
    return doc.replace(call[0], _typed[0]).rstrip() if _typed else doc.rstrip()


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of `least` or more."""

    def whole(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number}; set it to {least} or more")
        return number

    whole.__name__ = "whole number"  # what argparse calls the type of a text that is none
    return whole


def parser(doc: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser of a command's arguments, without any yet.

    Args:
      doc: the command's docstring. Its first line is the usage, `python -m agejax.X ARGUMENTS`.
      epilog: what the help ends with.
    """
    usage, _, description = text(doc).partition("\n\n")
    prog = _typed[0] if _typed else _CALL.findall(usage)[0]
    return argparse.ArgumentParser(
        prog=prog,
        usage=usage.replace("%", "%%"),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
