"""python -m agejax.explain --workdir=RUN IMAGE_OR_FOLDER... [--method=NAME] [--target=LABEL]

Shows which parts of a face raise or lower the predicted age, in years, or the probability of the
predicted class. Writes a figure and arrays (.npz) per image.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence
from typing import get_args

from agejax.explanations.subject import Method
from agejax.predicting.images import find_images
from agejax.process import usage
from agejax.process.command import run_command
from agejax.reporting import explanations
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument(
        "--workdir", required=True,
        help="the folder of a trained run or a released model, or box:NAME",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=get_args(Method), default="lime",
        help="how to explain; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--target", default="age", help="a label that the run predicts; default: %(default)s"
    )
    parser.add_argument(
        "--output", help="the folder to write to; default: WORKDIR/explanations/TARGET-METHOD"
    )
    parser.add_argument("--seed", type=usage.at_least(0), default=0, help="seed of LIME's samples")
    parser.add_argument(
        "paths", nargs="+", metavar="IMAGE_OR_FOLDER", help="crops of faces to explain"
    )
    args = parser.parse_args(argv[1:])
    paths = find_images(args.paths)
    sharding.start()
    output = explanations.explain(
        args.workdir,
        paths,
        method=args.method,
        target=args.target,
        seed=args.seed,
        output=args.output,
    )
    print(f"written to {output}/: a .png and an .npz per image")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
