"""python -m agejax.pseudo_label --workdir=RUN --source=FOLDER --output=DIR [--keep=0.8]

Labels the faces of a folder, an archive or a data set with a trained run or ensemble, keeps those
that it is most certain of, and writes labels.csv and config lines to train on it with real faces.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax.distillation.pseudo_labels import LABELS, pseudo_label
from agejax.errors import UserError, check_keys
from agejax.process import usage
from agejax.process.command import run_command
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of a trained run or ensemble")
    parser.add_argument("--source", help="a folder or archive of face crops")
    parser.add_argument("--dataset", default="image_folder", help="a data set's name")
    parser.add_argument("--labels", default=",".join(LABELS), help="labels to write; default: all")
    parser.add_argument("--output", required=True, help="the folder to write to")
    parser.add_argument(
        "--keep",
        type=float,
        default=0.8,
        help="share of the most certain images to keep; default: 0.8",
    )
    parser.add_argument(
        "--probability",
        type=float,
        default=0.9,
        help="least probability of a class, below which the label is unknown; default: 0.9",
    )
    args = parser.parse_args(argv[1:])
    sharding.start()
    if args.source is None and args.dataset == "image_folder":
        raise UserError("--source: name a folder or an archive of faces")
    labels = args.labels.split(",")
    check_keys(labels, LABELS, "--labels")
    result = pseudo_label(
        args.workdir,
        args.source,
        args.output,
        dataset=args.dataset,
        labels=labels,
        keep=args.keep,
        probability=args.probability,
    )
    for label, count in result["labelled"].items():
        print(f"{label}: {count:,} of {result['images']:,} images")
    print(f"written to {args.output}/; to train on it:\n{result['config']}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
