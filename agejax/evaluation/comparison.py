"""Two runs on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax.data import splits
from agejax.errors import UserError
from agejax.evaluation import metrics
from agejax.evaluation.scored import Scored, open_data, score_rows
from agejax.logging import console
from agejax.runs.run import Run


def score_again(
    scored: Scored,
    run: Run,
    source_path: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Scored:
    """Scores another run on the same images, in the same order.

    Reports on stderr how many of the images the other run has trained on.

    Raises:
      UserError: the other run's data lacks one of the images.
    """
    config = scored.run.config.data
    mixed = config.get("mixture")
    dataset = None if mixed else scored.source.name
    source = open_data(run, dataset, source_path or config.source, options)
    row = {name: i for i, name in enumerate(source.ids.tolist())}
    ids = scored.source.ids[scored.rows].tolist()
    if missing := [name for name in ids if name not in row]:
        raise UserError(
            f"--compare={run.workdir}: its data lacks {len(missing):,} of the {len(ids):,} images, "
            f"such as {missing[0]}"
        )
    rows = np.array([row[name] for name in ids])
    if source.fingerprint == run.fingerprint and scored.split != "train":
        learned = splits.make(source, run.config.data.split)["train"]
        if seen := int(np.isin(source.groups[rows], source.groups[learned]).sum()):
            console.warning(
                f"{run.workdir} was trained on {seen:,} of these {len(rows):,} images, or "
                "on copies of them, so its errors are too small"
            )
    return score_rows(run, source, rows, scored.split)


def compare(scored: Scored, other: Scored) -> dict[str, Any]:
    """Compares two runs on the same images: {"workdir", "targets": `metrics.paired`}.

    A target whose classes the other run numbers differently is left out.
    """
    alike = {
        name: values
        for name, values in other.predictions.items()
        if other.label_names.get(name) == scored.label_names.get(name)
    }
    targets = metrics.paired(
        scored.predictions, alike, scored.labels, scored.label_names, scored.duplicates
    )
    return {"workdir": str(other.run.workdir), "targets": targets}
