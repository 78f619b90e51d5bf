"""Whether a teacher has trained on images that its student is judged on: it knows their answers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from agejax.config import default
from agejax.data import splits
from agejax.data.sources import Gathered, Source
from agejax.errors import DAMAGE, UserError
from agejax.run import Run, plain

CHOOSES = ("val", splits.CALIBRATION)  # what a run looks at, and does not train on


def trained_on(run: Run) -> dict[str, Any] | None:
    """{"fingerprint", "split"} of a run's data; None where its own teachers may have seen more."""
    if run.config.get("distill", {}).get("allow_seen", False):
        return None
    # A run older than a setting was split as its default does.
    split = plain(default().data.split) | plain(run.config.data.split)
    return {"fingerprint": run.fingerprint, "split": split}


def count(source: Source, rows: Mapping[str, np.ndarray], known: Any) -> int | None:
    """How many of the images that a run is judged on, or copies of them, a teacher has learned.

    Images that a teacher was chosen by count where they are in a test split.

    Args:
      source, rows: the student's data and its splits.
      known: of the teacher, as `trained_on` gives it.

    Returns:
      None where nobody knows: the teacher's data is not in the student's.
    """
    theirs = _splits(source, known)
    if theirs is None:
        return None
    none = np.zeros(0, np.int64)
    learned, chose = (
        source.groups[np.concatenate([none, *(theirs.get(name, none) for name in names)])]
        for names in (("train",), CHOOSES)
    )
    seen = np.zeros(len(source.ids), bool)
    for name, judged in rows.items():
        if name != "train":
            seen[judged] |= np.isin(source.groups[judged], learned)
        if name not in ("train", *CHOOSES):
            seen[judged] |= np.isin(source.groups[judged], chose)
    return int(seen.sum())


def _splits(source: Source, known: Any) -> dict[str, Any] | None:
    """A teacher's splits, as rows of the student's source."""
    try:
        fingerprint, split = known["fingerprint"], ml_collections.ConfigDict(known["split"])
        with contextlib.redirect_stderr(io.StringIO()):  # the splits are another run's
            if source.fingerprint == fingerprint:
                return splits.make(source, split)
            images = source.images
            if source.part is None or not isinstance(images, Gathered):
                return None
            for i, part in enumerate(images.sources):
                if part.fingerprint == fingerprint:
                    return {
                        name: np.flatnonzero((images.source == i) & np.isin(images.row, rows))
                        for name, rows in splits.make(part, split).items()
                    }
    except (UserError, *DAMAGE, AttributeError):  # such as lists of names that are gone
        pass
    return None
