"""python -m agejax.data.protocol --database=UTKFace.json --source=PATH --output=DIR

Writes the splits of the benchmark facebase (Paplhám & Franc 2024) as lists of names, one folder per
fold, from the JSON file that the benchmark publishes for the data set.
`python -m agejax.cross_validate --protocol=DIR` trains and scores the folds.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax import files
from agejax.data import facebase, flags
from agejax.errors import UserError
from agejax.paths import expand
from agejax.process import usage
from agejax.process.command import run_command


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument(
        "--database", required=True, metavar="FILE",
        help="the benchmark's JSON file of the data set",
    )  # fmt: skip
    flags.add_preparing(parser)
    parser.add_argument("--output", required=True, help="a folder that is not there yet")
    parser.add_argument(
        "--leave_out", "--leave-out", action="store_true",
        help="leave out images that the data lacks, or that are named twice",
    )  # fmt: skip
    args = parser.parse_args(argv[1:])

    database, output = expand(args.database), expand(args.output)
    if output.exists():
        raise UserError(f"--output={output}: it exists already; name a new folder")
    files.check_folder(output, "--output")
    facebase.read(database)  # before the images are decoded
    source = flags.load(args)
    found = facebase.splits(source, database, args.leave_out)
    about = {"database": database.name, "dataset": source.name, "fingerprint": source.fingerprint}
    with files.new_folder(output) as folder:
        facebase.write(found, folder, about)
    print(
        f"{database.name}: {found.named:,} images, {found.left_out:,} left out; {source.name} has "
        f"{len(source.ids):,}"
    )
    for number, fold in enumerate(found.folds):
        sizes = ", ".join(f"{split} {len(names):,}" for split, names in fold.items())
        print(f"fold {number}: {sizes}")
    print(f"written to {output}/")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
