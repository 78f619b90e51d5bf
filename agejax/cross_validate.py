"""python -m agejax.cross_validate --config=FILE --workdir=DIR [--protocol=DIR] [--config.x.y=v ...]

Trains a config (a file, or the name of one that comes with agejax) on every fold, one after the
other, scores each on its test split, and writes a table with the mean and the standard deviation.
The folds are those of config.data.split.folds, or the lists that `python -m agejax.data.protocol`
wrote. The same command continues where it was stopped.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax import command_line, files
from agejax.paths import expand
from agejax.process import usage
from agejax.process.command import run_command
from agejax.sweeps import folds
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__, command_line.SETTINGS_HELP)
    parser.add_argument("--workdir", required=True, help="the folder of the folds' runs")
    parser.add_argument(
        "--protocol", metavar="DIR", help="the folder that python -m agejax.data.protocol wrote"
    )
    args, config = command_line.parse_with(parser, argv)
    folder = expand(args.workdir)
    files.check_folder(folder, "--workdir")
    found = folds.of_protocol(expand(args.protocol)) if args.protocol else folds.of_config(config)
    sharding.start()
    folder.mkdir(parents=True, exist_ok=True)
    scores = folds.cross_validate(config, folder, found)
    if scores is None:
        return
    print(folds.text(scores))
    print(f"written to {folder}/: folds.md, folds.json")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
