"""python -m agejax.evaluate --workdir=RUN [--dataset=NAME --source=PATH --option=NAME=VALUE]

Scores a trained run on its own splits or on any other data. Writes metrics.json, predictions.csv,
suspects.csv (labels that may be wrong), report.html, which opens offline, and its charts under
figures/. --compare=RUN2 compares it with another run on the same images, --compare RUN2 RUN3 RUN4
with several; runs of one config count as its seeds.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax.data import flags
from agejax.process import usage
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument(
        "--workdir", required=True,
        help="the folder of a trained run, a released model or an ensemble, or box:NAME",
    )  # fmt: skip
    flags.add_data(parser)
    parser.add_argument(
        "--split", help="a split of the run, or all; default: test, or all on other data"
    )
    parser.add_argument(
        "--compare", metavar="RUN", nargs="+", action="extend", default=[],
        help="other runs, on the same images; those of one config count as its seeds",
    )  # fmt: skip
    parser.add_argument(
        "--image_size", type=int, metavar="PIXELS",
        help="score val at this size, to choose config.eval.image_size; default: the run's own",
    )  # fmt: skip
    parser.add_argument(
        "--robustness", action="store_true",
        help="also score degraded images and several views of each face; takes minutes",
    )  # fmt: skip
    parser.add_argument(
        "--output", help="the folder to write to; default: WORKDIR/evaluation/DATASET-SPLIT"
    )
    args = parser.parse_args(argv[1:])
    sharding.start()
    results.evaluate(
        args.workdir,
        dataset=args.dataset,
        source_path=args.source,
        options=flags.options(args.option),
        split=args.split,
        output=args.output,
        compare_with=args.compare,
        image_size=args.image_size,
        degrade=args.robustness,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
