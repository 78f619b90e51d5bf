"""python -m agejax.data.prepare --dataset=NAME --source=FILES [--beam=FLAG ...]

Prepares a data set before it is trained on: reads what was downloaded into records of encoded
images and labels, then decodes these. A training does so itself the first time. With --beam the
records are written by the workers of an Apache Beam pipeline, on this machine or a cluster:

    python -m agejax.data.prepare --dataset=imdb_wiki --source=imdb_crop --beam=--runner=FlinkRunner

Both write the same. All workers must see the source and the cache under the same paths; each
reads its files of a folder alone, but a whole archive, so unpack a large one first.

With --check nothing is prepared: all that the cache keeps of the data set is read and compared with
the checksums that were written with it.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from agejax.data import cache, sources
from agejax.errors import UserError, run_command


def pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    """["NAME=VALUE"] -> {NAME: VALUE}.

    Raises:
      UserError: one is not so, or is there twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f"{flag} {text}: write it as NAME=VALUE, such as train=...")
        if name in found:
            raise UserError(f"{flag} {text}: {name!r} is there twice")
        found[name] = value
    return found


def options(given: Sequence[str]) -> dict[str, Any]:
    """["NAME=VALUE"] -> {NAME: VALUE}, with numbers and lists as such. Raises as `pairs`."""

    def value(text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    return {name: value(text) for name, text in pairs(given, "--option").items()}


def add_option(parser: argparse.ArgumentParser) -> None:
    """The flag whose values `options` reads."""
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE",
        help="an option of the data set's own, such as labels=FILE.csv; repeat it",
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that say which data set and where."""
    parser.add_argument("--dataset", default="utkface", help="a data set's name")
    parser.add_argument("--source", help="the archive or folder; default: tfds' manual folder")
    add_option(parser)
    parser.add_argument("--image-size", type=int, default=128, help="of the decoded images, pixels")
    parser.add_argument("--cache-dir", help="default: $AGEJAX_CACHE or ~/.cache/agejax")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m agejax.data.prepare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_arguments(parser)
    parser.add_argument(
        "--beam", action="append", metavar="FLAG", help="of the pipeline, such as --beam=--runner=X"
    )
    parser.add_argument("--check", action="store_true", help="compare the cache with its checksums")
    args = parser.parse_args(argv[1:])
    if args.check:
        print(cache.check_all(args.dataset, args.cache_dir))
        return
    if args.beam is not None and importlib.util.find_spec("apache_beam") is None:
        raise UserError("--beam: Apache Beam is not installed; pip install -e '.[beam]'")
    source = sources.load(
        args.dataset,
        args.source,
        image_size=args.image_size,
        cache_dir=args.cache_dir,
        options=options(args.option),
        beam=args.beam,
    )
    print(f"{source.name}: {len(source.ids):,} images are ready, fingerprint {source.fingerprint}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
