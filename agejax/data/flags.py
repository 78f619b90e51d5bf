"""Command-line flags that name a data set and its options."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from typing import Any

from agejax.data import sources
from agejax.data.sources import Source
from agejax.errors import UserError


def pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    """["NAME=VALUE"] -> {NAME: VALUE}.

    Raises:
      UserError: an item of another form, or a name given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f"{flag} {text}: write it as NAME=VALUE, such as train=...")
        if name in found:
            raise UserError(f"{flag} {text}: {name!r} is given twice")
        found[name] = value
    return found


def options(given: Sequence[str]) -> dict[str, Any]:
    """["NAME=VALUE"] -> {NAME: VALUE}, with numbers and lists parsed. Raises as `pairs`."""

    def value(text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    return {name: value(text) for name, text in pairs(given, "--option").items()}


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds the flag whose values `options` reads."""
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE",
        help="an option of the data set, such as labels=FILE.csv; may be repeated",
    )  # fmt: skip


def add_preparing(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a data set, its location, and the size to decode it at."""
    parser.add_argument("--dataset", default="utkface", help="a data set's name")
    parser.add_argument("--source", help="the archive or folder; default: tfds' manual folder")
    add_option(parser)
    parser.add_argument(
        "--image_size",
        "--image-size",
        type=int,
        default=200,
        help="edge of the decoded images, pixels; default: 200, as config.data.image_size",
    )
    parser.add_argument(
        "--cache_dir",
        "--cache-dir",
        help="folder of the cache; default: $AGEJAX_CACHE or ~/.cache/agejax",
    )


def load(args: argparse.Namespace, beam: Sequence[str] | None = None) -> Source:
    """Opens the data set that the flags of `add_preparing` name; `beam` as in `sources.load`."""
    return sources.load(
        args.dataset,
        args.source,
        image_size=args.image_size,
        cache_dir=args.cache_dir,
        options=options(args.option),
        beam=beam,
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name images other than the run's own."""
    parser.add_argument("--dataset", help="a data set's name; default: the run's own")
    parser.add_argument("--source", help="the archive or folder; default: the run's own")
    add_option(parser)
