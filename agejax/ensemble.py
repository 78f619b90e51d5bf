"""python -m agejax.ensemble --output=DIR RUN[@STEP] RUN2 ... [--weights=0.4,0.6 | --weights=fit]

Combines trained runs into one, which evaluate, predict and pseudo_label take as --workdir: the
weighted mean of their predictions (--combine=predictions), also over views of each image (--views),
or one network with the mean of their weights (--combine=weights), such as checkpoints of one run.
Its batch-norm statistics are averaged too, or computed on training images (--statistics=anew).
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax.errors import UserError
from agejax.evaluation import ensembling
from agejax.paths import expand
from agejax.process import usage
from agejax.process.command import run_command
from agejax.runs import batch_statistics
from agejax.runs.ensembles import COMBINE, STATISTICS, VIEWS
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument(
        "members", nargs="+", metavar="RUN[@STEP]",
        help="folders of trained runs; STEP is that of a checkpoint, by default the best one's",
    )  # fmt: skip
    parser.add_argument("--output", required=True, help="the ensemble's folder")
    parser.add_argument(
        "--combine", choices=COMBINE, default=COMBINE[0],
        help="average what the members predict, or their weights; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--weights", default="",
        help="one per run, such as 0.4,0.6, or fit, which fits them on val; default: equal",
    )  # fmt: skip
    parser.add_argument(
        "--views", default="plain",
        help=f"views of each image to average, of {', '.join(VIEWS)}; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--statistics", choices=STATISTICS, default=STATISTICS[0],
        help="statistics of batch norms, with --combine=weights; anew: computed on training "
        "images; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--batches",
        type=int,
        default=batch_statistics.BATCHES,
        help="batches of training images for --statistics=anew; default: %(default)s",
    )
    args = parser.parse_args(argv[1:])
    views = args.views.split(",")
    if unknown := set(views) - VIEWS.keys():
        raise UserError(f"--views={args.views}: {unknown.pop()!r} is none of {', '.join(VIEWS)}")
    if args.weights == "fit" and args.combine == "weights":
        raise UserError(
            "--weights=fit: it fits shares of predictions; with --combine=weights, give the shares"
        )
    sharding.start()
    output = expand(args.output)
    weights = ensembling.create(
        output, args.members, args.combine, args.weights, views, args.statistics, args.batches
    )
    for label, values in weights.items():
        shares = ", ".join(f"{value / sum(values):.3f}" for value in values)
        print(f"{label}: weights {shares}")
    print(f"written to {output}/; give it as --workdir to evaluate, predict and pseudo_label")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
