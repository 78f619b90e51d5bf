"""python -m agejax.data.distribution --config=FILE [--config.x.y=v ...] [--epochs=1] [--output=DIR]

Shows what a config's sampling draws: each group's share of the training data, of the expected draws
and of the draws in the first epochs. Prints tables; with --output also writes JSON and a figure.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Sequence

from absl import flags

from agejax import command_line, files
from agejax.auditing import distribution
from agejax.data import opening, splits
from agejax.paths import expand
from agejax.process import usage
from agejax.process.command import run_command
from agejax.reporting import plots

EPOCHS = flags.DEFINE_integer("epochs", 1, "How many epochs to draw.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for distribution.{json,txt,png}.")


def main(argv: Sequence[str]) -> None:
    config = command_line.parse(argv, usage.text(__doc__))
    if OUTPUT.value is not None:
        files.check_folder(expand(OUTPUT.value), "--output")
    source = opening.open_source(config.data)
    rows = splits.make(source, config.data.split)["train"]
    measured = distribution.measure(config.sampling, source, rows, config.seed, EPOCHS.value)
    title = f"{source.name}, {config.sampling.kind} sampling"
    print(distribution.text(measured, title))
    if OUTPUT.value is None:
        return
    output = expand(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(output / "distribution.json", measured)
    files.write_text(output / "distribution.txt", distribution.text(measured, title) + "\n")
    with files.replacing(output / "distribution.png") as file:
        plots.save_distribution_figure(measured, file, title=title)
    print(f"written to {output}/: distribution.json, distribution.txt, distribution.png")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
