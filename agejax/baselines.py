"""python -m agejax.baselines --workdir=RUN [--estimator=svm] [--features=pretrained]

Fits a classical estimator to a frozen backbone's features, for comparison with the network itself.
It is trained on the run's training images, tuned on its val, and reported like a run by evaluate.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax.evaluation.baselines import ESTIMATORS, FEATURES
from agejax.process import usage
from agejax.process.command import run_command
from agejax.reporting.baselines import evaluate_baseline
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    parser.add_argument(
        "--estimator", choices=tuple(ESTIMATORS), default="svm",
        help="what is fitted to the features; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--features",
        choices=FEATURES,
        default="run",
        help="of the trained backbone (run), or of its pretrained weights; default: %(default)s",
    )
    parser.add_argument("--split", default="test", help="the split to score; default: %(default)s")
    parser.add_argument("--output", help="default: WORKDIR/baselines/ESTIMATOR-FEATURES-SPLIT")
    args = parser.parse_args(argv[1:])
    sharding.start()
    evaluate_baseline(args.workdir, args.estimator, args.features, args.split, args.output)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
