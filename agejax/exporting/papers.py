"""The papers about a model: model card, datasheet of its data, draft of a practice statement."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from agejax import files
from agejax.exporting import card, datasheet, description, practice_statement
from agejax.exporting.prediction import prediction, random_images
from agejax.runs import box
from agejax.runs.run import Run


def write(
    run: Run, output: pathlib.Path, audit: Mapping[str, Any] | None
) -> dict[str, pathlib.Path]:
    """Writes model_card.md, datasheet.md and practice_statement.md from what the run has stored.

    Args:
      audit: of the run's data, as `datasheet.write` takes it; None: the data is not available.

    Returns:
      What each file is -> its path.
    """
    name = run.workdir.resolve().name
    storage = "float32"
    if box.is_release(run.workdir):
        storage = card.storage(box.read(run.workdir))
    outputs = jax.eval_shape(prediction(run), random_images(run.config.data.image_size))
    texts = {
        "model card": (
            "model_card.md",
            card.of_model(
                run, description.describe(run, outputs), name,
                use=box.name_of(run.workdir) if run.workdir.parent == box.FOLDER else name,
                storage=storage,
                made_by="python -m agejax.papers --workdir=RUN",
            ),
        ),
        "datasheet": ("datasheet.md", datasheet.write(run, name, audit)),
        "practice statement": ("practice_statement.md", practice_statement.write(run, name)),
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    for file, text in texts.values():
        files.write_text(output / file, text)
    return {what: output / file for what, (file, _) in texts.items()}
