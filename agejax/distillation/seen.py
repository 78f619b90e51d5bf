"""Whether a teacher has trained on images that its student is judged on: it knows their labels."""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from agejax.config import default
from agejax.data import splits
from agejax.data.sources import Source
from agejax.errors import DAMAGE, UserError
from agejax.runs import lineage
from agejax.runs.run import Run
from agejax.settings import to_json

CHOOSES = ("val", splits.CALIBRATION)  # splits that a run uses, but does not train on
KNOWN = ("names", "fingerprint", "split")  # what a lineage tells about a run's data
Data = Mapping[str, Any] | None  # what a network was trained on, by `KNOWN`; None: unknown


def trained_on(run: Run) -> list[dict[str, Any] | None]:
    """The training data of a run, of the runs that it started from, and of all their teachers."""
    return [*of_lineage(lineage.of(run))]


def of_lineage(node: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Yields `trained_on` of a lineage. Leaves out the data of weights files, also of missing ones.

    A missing start without a file's suffix was the folder of a run, of whose data nothing is known.
    """
    if node["kind"] != "run":
        if node["kind"] == "missing" and not pathlib.PurePath(node["name"]).suffix:
            yield None
        return
    yield {key: node["data"][key] for key in KNOWN}
    if node["start"] is not None:
        yield from of_lineage(node["start"])
    for teacher in node["teachers"]:
        yield from of_lineage(teacher) if teacher["kind"] == "run" else (None,)


def count(
    source: Source, config: Any, rows: Mapping[str, np.ndarray], data: Sequence[Data]
) -> int | None:
    """Counts the images that a student is judged on and a teacher has trained on, or on copies.

    Images that were used to choose the teacher count where they are in a test split.

    Args:
      source, config, rows: the student's data, config.data and splits.
      data: the teacher's, as `trained_on` gives it.

    Returns:
      None where it cannot be known: some data is unknown, or is another version or part of a data
      set that the student uses.
    """
    seen = np.zeros(len(source.ids), bool)
    for each in data:
        theirs = None if each is None else _splits(source, config.split, each)
        if theirs is None:
            ours = lineage.names(config)
            if each is None or not set(each.get("names", ours)).isdisjoint(ours):
                return None
            continue  # other data sets
        none = np.zeros(0, np.int64)
        learned, chose = (
            np.concatenate([none, *(theirs.get(name, none) for name in names)])
            for names in (("train",), CHOOSES)
        )
        for name, judged in rows.items():
            if name != "train":
                seen[judged] |= source.shared(judged, learned)
            if name not in ("train", *CHOOSES):
                seen[judged] |= source.shared(judged, chose)
    return int(seen.sum())


def _splits(source: Source, ours: Any, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The student's rows that a teacher's splits hold, or that are copies of images there.

    None where no image is from the teacher's data.

    Args:
      ours: config.data.split of the student.
    """
    # A run older than a setting was split by its default.
    values = to_json(default().data.split) | data["split"]
    if values["files"] and values["files"] == lineage.split_of(ours)["files"]:
        values["files"] = to_json(ours)["files"]  # the paths of these digests
    split = ml_collections.ConfigDict(values)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # warns about another run's splits
            if (found := source.rows_in(data["fingerprint"])) is not None:
                whole, there = found
                mine = np.flatnonzero(there >= 0)
                return {  # copies are found there, since the student may lack one of them
                    name: mine[whole.shared(there[mine], rows)]
                    for name, rows in splits.make(whole, split).items()
                }
    except (UserError, *DAMAGE, AttributeError):  # such as missing lists of names
        pass
    return None
