"""python -m agejax.papers --workdir=RUN [--source=PATH] [--output=DIR]

Writes the papers about a trained run or a released model from what it has stored: a model card, a
datasheet of the data that it used (audited anew, where the data is at hand), and a draft of the
performance section of a practice statement. Nothing is trained or scored. Evaluate the run first.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence
from typing import Any

from agejax import files
from agejax.auditing import audit
from agejax.data import flags, opening, splits
from agejax.errors import UserError
from agejax.exporting import datasheet, papers
from agejax.logging import console
from agejax.paths import expand
from agejax.process import usage
from agejax.process.command import run_command
from agejax.runs.run import Run
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="a trained run, or a released model")
    parser.add_argument("--source", help="where the run's data is now; default: the run's own path")
    flags.add_option(parser)
    parser.add_argument("--output", help="a folder; default: papers in the run's folder")
    args = parser.parse_args(argv[1:])
    if args.output:
        files.check_folder(expand(args.output), "--output")
    sharding.start()
    run = Run.open(args.workdir, devices=1)
    output = expand(args.output or run.results / "papers")
    files.check_folder(output, "--output")
    written = papers.write(run, output, _audited(run, args.source, flags.options(args.option)))
    for what, path in written.items():
        print(f"{what}: {path}")


def _audited(run: Run, path: str | None, options: dict[str, Any]) -> dict[str, Any] | None:
    """The audit of the run's data with the run's splits; None, with a note, without the data."""
    try:
        source = opening.open_source(run.config.data, path, options)
        if source.fingerprint != run.fingerprint:
            raise UserError(
                f"{path or source.name} is not the data that {run.workdir} was trained on; name "
                "that with --source"
            )
    except UserError as error:
        if path is not None:
            raise
        console.warning(f"the datasheet is written without an audit: {error}")
        return None
    ways = {datasheet.SPLITS: splits.make(source, run.config.data.split)}
    found: dict[str, Any] = files.clean(audit.audit(source, ways))
    return found


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
