"""python -m agejax.data.audit --dataset=NAME --source=PATH [--split_file NAME=FILE ...]

Checks a data set before training: unusable files, duplicates, contradicting labels, leaks between
splits, the distribution of labels, outliers. Writes audit.json and index.html; the page shows
charts and file names, but no face.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import pathlib
import sys
import time
from collections.abc import Sequence

from agejax import files
from agejax.auditing import audit
from agejax.data import flags
from agejax.errors import UserError
from agejax.paths import expand
from agejax.process import usage
from agejax.process.command import run_command


def _shares(given: Sequence[str]) -> dict[str, float]:
    try:
        return {name: float(share) for name, share in flags.pairs(given, "--fraction").items()}
    except ValueError as error:
        raise UserError(f"--fraction {' '.join(given)}: {error}; write train=0.8") from error


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    flags.add_preparing(parser)
    parser.add_argument(
        "--split_file", "--split-file", action="append", default=[], metavar="NAME=FILE",
        help="a split to search for leaks, as a file with one name per line; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--fraction", action="append", default=[], metavar="NAME=SHARE",
        help="a split by fraction, such as train=0.8, to search for leaks; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=usage.at_least(0), default=0, help="seed of the splits by fraction"
    )
    parser.add_argument("--output", help="a folder; default: runs/audit/DATASET")
    args = parser.parse_args(argv[1:])
    lists, shares = flags.pairs(args.split_file, "--split_file"), _shares(args.fraction)

    output = expand(args.output or pathlib.Path("runs/audit") / args.dataset)
    files.check_folder(output, "--output")
    start = time.perf_counter()
    source = flags.load(args)
    output.mkdir(parents=True, exist_ok=True)
    loaded = time.perf_counter()
    ways, notes = audit.ways_to_split(source, lists, shares, args.seed)
    report = audit.audit(source, ways) | {"notes": notes}
    report["seconds"] = {"load": loaded - start, "audit": time.perf_counter() - loaded}
    audit.write(report, output)
    print("\n".join([audit.summary(report), *notes]))
    print(f"written to {output}/: audit.json, index.html")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
