"""python -m agejax.release --workdir=RUN --output=FOLDER [--storage=float16]

Makes a released model from a run's best checkpoint: a folder of a few megabytes with the weights,
the calibration, the origin and a card. Every command takes it as --workdir.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax.exporting.release import STORAGE, release
from agejax.process import usage
from agejax.process.command import run_command
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument(
        "--workdir", required=True, help="the folder of a trained run, or of averaged weights"
    )
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument(
        "--storage", choices=STORAGE, default=STORAGE[0], help="type of the stored kernels"
    )
    args = parser.parse_args(argv[1:])
    sharding.start()
    release(args.workdir, args.output, args.storage)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
