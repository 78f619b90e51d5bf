"""python -m agejax.export --workdir=RUN --output=DIR [--format=jax|onnx|both|web] [--quantize=int8]

Writes a run's best model as one file that works without agejax: uint8 images in, years and
probabilities out. --format=web makes a page that opens offline and predicts in the browser.
--quantize=int8 makes the ONNX file, or the one in the page, about a quarter as large, and reports
the loss of accuracy.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from agejax.errors import UserError
from agejax.exporting import files, quantize
from agejax.exporting.web import runtime
from agejax.process import usage
from agejax.process.command import run_command
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument(
        "--workdir", required=True,
        help="the folder of a trained run or a released model, or box:NAME",
    )  # fmt: skip
    parser.add_argument("--output", required=True, help="the folder to write to")
    parser.add_argument(
        "--format", choices=(*files.FORMATS, "both"), default="jax",
        help="web: a page that runs the model in the browser; both: jax and onnx; "
        "default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--quantize", choices=("int8",), help="type of the weights of an ONNX file or a page"
    )
    parser.add_argument(
        "--max_mae_change", type=float, default=quantize.MAX_MAE_CHANGE, metavar="YEARS",
        help="the largest increase of the error on val by int8; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--max_accuracy_loss", type=float, default=quantize.MAX_ACCURACY_LOSS, metavar="SHARE",
        help="the largest share of val images by which int8 may lower the accuracy of classes; "
        "default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--source", help="the run's archive or folder, for int8; default: where its config says"
    )
    parser.add_argument(
        "--onnxruntime_web", metavar="PATH",
        help=f"for a page: the folder or archive of {runtime.PACKAGE}; default: from npm",
    )  # fmt: skip
    args = parser.parse_args(argv[1:])
    if args.quantize and args.format == "jax":
        raise UserError("--quantize=int8: it is for ONNX files and pages; use --format=onnx or web")
    sharding.start()
    files.export(
        args.workdir,
        args.output,
        ("jax", "onnx") if args.format == "both" else (args.format,),
        int8=args.quantize is not None,
        max_mae_change=args.max_mae_change,
        max_accuracy_loss=args.max_accuracy_loss,
        source_path=args.source,
        onnxruntime_web=args.onnxruntime_web,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
