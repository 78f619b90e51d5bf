"""python -m agejax.data.distribution --config=FILE [--config.x.y=v ...] [--epochs=1] [--output=DIR]

Whom a config's sampling draws: each group's share of the training data, of the expected draws, and
of the draws of the first epochs. Prints tables; to a folder also as JSON and as a figure.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from agejax import command_line, files
from agejax.data import draws, opening, sampling, splits
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.evaluation import metrics
from agejax.paths import expand
from agejax.process.command import run_command
from agejax.reporting import plots

EPOCHS = flags.DEFINE_integer("epochs", 1, "How many epochs to draw.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for distribution.{json,txt,png}.")

CHUNK = 2**20  # draws computed together
Table = dict[str, dict[str, float]]  # group -> n, share, expected, drawn, distinct, copies


def measure(
    config: Any, source: Source, rows: np.ndarray, seed: int, epochs: int
) -> dict[str, Any]:
    """What `config.sampling` draws of the training rows int64 [N], before its `keep`.

    Returns:
      {rows, draws (an epoch), epochs, tables: {decade, gender, ethnicity, gender x ethnicity, part:
      {group: {n: images, share: of the images, expected: share of the draws, drawn: share of the
      draws made, distinct: images drawn, copies: draws made of an image already drawn in its
      epoch}}}}. A label's table is left out where nobody knows it.

    Raises:
      UserError: as `draws.keep` and `draws.weigh`, or fewer epochs than 1.
    """
    if epochs < 1:
        raise UserError(f"--epochs={epochs}: draw at least one")
    rows = draws.keep(config, source, rows)
    chosen = draws.weigh(config, source, rows)
    sampler = sampling.Sampler(*chosen, seed)
    expected = chosen.expected(len(rows))
    drawn = np.zeros(len(rows), np.int64)
    copies = np.zeros(len(rows), np.int64)
    for start in range(0, epochs * chosen.size, CHUNK):
        stop = min(start + CHUNK, epochs * chosen.size)
        at = sampler.indices(start, stop)
        drawn += np.bincount(at, minlength=len(rows))
        copies += np.bincount(at[sampler.occurrence(start, stop) > 0], minlength=len(rows))

    tables: dict[str, Table] = {}
    for name, groups in partitions(source, rows).items():
        tables[name] = {
            group: {
                "n": int(mask.sum()),
                "share": float(mask.mean()),
                "expected": float(expected[mask].sum() / chosen.size),
                "drawn": float(drawn[mask].sum() / (epochs * chosen.size)),
                "distinct": int((drawn[mask] > 0).sum()),
                "copies": int(copies[mask].sum()),
            }
            for group, mask in groups.items()
            if mask.any()
        }
    return {"rows": len(rows), "draws": chosen.size, "epochs": epochs, "tables": tables}


def partitions(source: Source, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The ways to divide `rows` [N] into groups: {label: {group: bool [N]}}."""
    labels = {name: values[rows] for name, values in source.labels.items()}
    parts = metrics.partitions(labels, source.label_names)
    result = {
        label: dict(groups)
        for label, groups in parts.items()
        if any(mask.any() for _, mask in groups)
    }
    for groups in result.values():
        groups["unknown"] = ~np.any(list(groups.values()), axis=0)
    if source.part is not None:
        part = source.part[rows]
        result["part"] = {name: part == i for i, name in enumerate(source.parts)}
    return result


def text(measured: Mapping[str, Any], title: str) -> str:
    """The tables of `measure`, to be printed."""
    epochs = measured["epochs"]
    lines = [
        f"{title}: {measured['rows']:,} training images, {measured['draws']:,} draws an epoch, "
        f"{epochs:,} epoch{'s' * (epochs > 1)} drawn"
    ]
    for label, table in measured["tables"].items():
        width = max(len(name) for name in (label, *table))
        lines += ["", f"{label:{width}}  images   share  expected   drawn  distinct   copies"]
        lines += [
            f"{name:{width}} {row['n']:7,}  {row['share']:5.1%}   {row['expected']:6.1%}  "
            f"{row['drawn']:6.1%}  {row['distinct']:8,} {row['copies']:8,}"
            for name, row in table.items()
        ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    config = command_line.parse(argv, f"usage: {__doc__}".rstrip())
    if OUTPUT.value is not None:
        files.check_folder(expand(OUTPUT.value), "--output")
    source = opening.open_source(config.data)
    rows = splits.make(source, config.data.split)["train"]
    measured = measure(config.sampling, source, rows, config.seed, EPOCHS.value)
    title = f"{source.name}, {config.sampling.kind} sampling"
    print(text(measured, title))
    if OUTPUT.value is None:
        return
    output = expand(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(output / "distribution.json", measured)
    files.write_text(output / "distribution.txt", text(measured, title) + "\n")
    with files.replacing(output / "distribution.png") as file:
        plots.save_distribution_figure(measured, file, title=title)
    print(f"written to {output}/: distribution.json, distribution.txt, distribution.png")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
