"""python -m agejax.distill --workdir=RUN --output=FILE.npz [--views=plain,flip]

Writes the outputs of a trained run or ensemble for the images of a data set, to teach another run:
config.distill.files names the file. A teacher in a file costs no time while its student trains.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax.data import flags
from agejax.distillation.files import PROBABILITIES
from agejax.distillation.targets import TARGETS, write_targets
from agejax.distillation.teachers import FEATURES
from agejax.errors import check_keys
from agejax.process import usage
from agejax.process.command import run_command
from agejax.runs import ensembles
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument(
        "--workdir", required=True,
        help="the folder of a trained run, a released model or an ensemble, or box:NAME",
    )  # fmt: skip
    parser.add_argument("--output", required=True, help="the file to write, .npz")
    flags.add_data(parser)
    parser.add_argument(
        "--split", default="all", help="splits of the run, such as train,val; default: all"
    )
    parser.add_argument(
        "--views", default="plain",
        help=f"views of each image to average, of {', '.join(ensembles.VIEWS)}; "
        "default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--targets", default=",".join(TARGETS), help="what to write; default: %(default)s"
    )
    args = parser.parse_args(argv[1:])
    views, targets = args.views.split(","), args.targets.split(",")
    check_keys(views, ensembles.VIEWS, "--views")
    check_keys(targets, TARGETS, "--targets")
    sharding.start()
    file = write_targets(
        args.workdir,
        args.output,
        dataset=args.dataset,
        source_path=args.source,
        options=flags.options(args.option),
        split=args.split.split(","),
        views=views,
        targets=targets,
    )
    given = [f"{PROBABILITIES}{name}" for name in file.probabilities]
    given += [FEATURES] if file.features is not None else []
    print(f"{args.output}: {', '.join(given)} of {len(file.ids):,} images; to learn from it: "
          f"--config.distill.files=\"('{args.output}',)\"")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
