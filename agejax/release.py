"""python -m agejax.release --workdir=RUN --output=FOLDER [--storage=float16]

Makes a released model from a run's best checkpoint: a folder of a few megabytes with the weights,
the calibration, the origin and a card. Commands that read a run take it as --workdir. With
--rewrite_card and no --output, the card of the released model that --workdir names is written
again, with the words of this version.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax.errors import UserError
from agejax.exporting.release import STORAGE, release, rewrite_card
from agejax.process import usage
from agejax.process.command import run_command
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument(
        "--workdir", required=True,
        help="the folder of a trained run or of averaged weights; with --rewrite_card, of a "
        "released model, or box:NAME",
    )  # fmt: skip
    parser.add_argument("--output", help="the folder to write")
    parser.add_argument(
        "--storage",
        choices=STORAGE,
        default=STORAGE[0],
        help="type of the stored kernels; default: %(default)s",
    )
    parser.add_argument(
        "--rewrite_card", action="store_true", help="write card.md of a released model again"
    )
    args = parser.parse_args(argv[1:])
    if args.rewrite_card == bool(args.output):
        raise UserError("give either --output=FOLDER or --rewrite_card")
    sharding.start()
    if args.rewrite_card:
        print(f"written: {rewrite_card(args.workdir)}")
    else:
        release(args.workdir, args.output, args.storage)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
