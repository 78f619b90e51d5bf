"""Files of targets, probabilities and features computed before: an .npz archive of

    ids                    [N], texts: the images' names, as agejax lists them (`id` in
                           predictions.csv); in a mixture with the part's name and "/" in front
    probabilities/HEAD     [N, K], or [V, N, K] for V views, which are averaged; under the natural
                           prior: those of a head trained on uniformly drawn images
    outcomes/HEAD          [K], texts: ages in years ("0", "1", ...), or names of classes; may be
                           left out where the student has the same
    features               [N, D], or [V, N, D]
    facts                  [], a text: JSON that `python -m agejax.distill` writes, with "images"
                           (the fingerprint of the data that the ids belong to), "trained_on" (the
                           data sets, fingerprints and splits that the teacher, its start and its
                           teachers were trained on), ...

All but `ids` are optional. A row of NaN is unknown.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agejax import files
from agejax.data.sources import Source
from agejax.distillation.teachers import FEATURES
from agejax.errors import DAMAGE, REMEDIES, UserError, few, reason
from agejax.heads import Head
from agejax.paths import expand
from agejax.training.teaching import Target

PROBABILITIES, OUTCOMES = "probabilities/", "outcomes/"
SUM_TOLERANCE = 0.02  # of a row of probabilities, which may be float16
REMEDY = "write it again with python -m agejax.distill, or as docs/training.md says"


@dataclasses.dataclass(frozen=True)
class TargetFile:
    """The contents of a file of targets.

    Attributes:
      ids: str [N].
      probabilities: head -> float [N, K].
      outcomes: head -> the names of its K outcomes, for heads that name them.
      features: float [N, D], or None.
      facts: as above; empty for a file from another program.
    """

    path: pathlib.Path
    ids: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    outcomes: Mapping[str, tuple[str, ...]]
    features: np.ndarray | None
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | pathlib.Path) -> TargetFile:
        """Reads a file. Raises `UserError` where it is missing or its arrays do not match."""
        path = expand(path)
        where = f"config.distill.files: {path}"
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except OSError as error:
            if error.errno not in REMEDIES:
                raise UserError(f"{where} is not an .npz archive; {REMEDY}") from error
            raise UserError(f"{where} cannot be read: {reason(error)}") from error
        except (*DAMAGE, AttributeError, zipfile.BadZipFile) as error:  # a plain .npy has no files
            raise UserError(f"{where} is not an .npz archive, or is damaged; {REMEDY}") from error
        ids = arrays.get("ids")
        if ids is None or ids.ndim != 1 or ids.dtype.kind != "U" or not len(ids):
            raise UserError(f"{where} has no list of texts called ids; {REMEDY}")
        if len(np.unique(ids)) < len(ids):
            raise UserError(f"{where} names some of its ids twice; keep one row for each image")
        rows = {
            name: _mean_view(f"{where}, {name}", array, len(ids))
            for name, array in arrays.items()
            if name == FEATURES or name.startswith(PROBABILITIES)
        }
        features = rows.pop(FEATURES, None)
        probabilities = {k.removeprefix(PROBABILITIES): v for k, v in rows.items()}
        if not probabilities and features is None:
            raise UserError(
                f"{where} has neither {PROBABILITIES}HEAD nor {FEATURES}, only {few(arrays)}; "
                f"{REMEDY}"
            )
        outcomes = {
            k.removeprefix(OUTCOMES): tuple(map(str, v.tolist()))
            for k, v in arrays.items()
            if k.startswith(OUTCOMES)
        }
        for head, values in probabilities.items():
            sums = values.sum(axis=1, dtype=np.float64)
            sums = sums[np.isfinite(sums)]
            if (values < 0).any() or (np.abs(sums - 1) > SUM_TOLERANCE).any():
                raise UserError(
                    f"{where}, {PROBABILITIES}{head}: its rows are not probabilities, which are 0 "
                    "or above and sum to 1; take the softmax of logits"
                )
            if len(outcomes.get(head, values.T)) != values.shape[1]:
                raise UserError(
                    f"{where}: {OUTCOMES}{head} has {len(outcomes[head])} names for "
                    f"{values.shape[1]} columns"
                )
        try:
            facts = json.loads(str(arrays["facts"])) if "facts" in arrays else {}
            if not isinstance(facts, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise UserError(f"{where}: its facts are not a JSON object; leave them out") from error
        return cls(path, ids, probabilities, outcomes, features, facts)

    def write(self) -> None:
        """Writes the file atomically. Raises `UserError` where it cannot be written."""
        arrays: dict[str, Any] = {"ids": self.ids, "facts": json.dumps(files.clean(self.facts))}
        arrays |= {f"{PROBABILITIES}{k}": v for k, v in self.probabilities.items()}
        arrays |= {f"{OUTCOMES}{k}": np.array(v) for k, v in self.outcomes.items()}
        if self.features is not None:
            arrays[FEATURES] = self.features
        with files.replacing(self.path) as file:
            np.savez(file, **arrays)

    def digest(self) -> str:
        """A text that changes with any id or target."""
        digest = hashlib.sha256("\n".join(self.ids.tolist()).encode())
        for name in sorted(self.probabilities):
            digest.update(name.encode() + self.probabilities[name].tobytes())
        digest.update(b"" if self.features is None else self.features.tobytes())
        return digest.hexdigest()[:16]

    def rows_of(self, source: Source) -> np.ndarray:
        """The file's row of each image of a source, int64 [N]; -1 where it has none.

        A file written for data that the source is a view of, or for one part of a mixture, is
        matched to the ids there.
        """
        names = source.ids
        if (found := source.rows_in(self.facts.get("images", ""))) is not None:
            names = np.where(found[1] >= 0, found[0].ids[found[1]], names)
        order = np.argsort(self.ids)
        place = np.minimum(np.searchsorted(self.ids, names, sorter=order), len(order) - 1)
        rows = order[place]
        return np.where(self.ids[rows] == names, rows, -1)


@dataclasses.dataclass(frozen=True)
class FileTeacher:
    """Targets from a file, matched to the images of a source; see `Teacher`."""

    name: str
    columns: Mapping[str, np.ndarray]  # target -> [N, ...] of the source, NaN where unknown
    heads: Mapping[str, float]
    features: int
    size: int = 0
    arrays: tuple[()] = ()

    def teach(
        self, arrays: Any, images: jax.Array | None, columns: Mapping[str, jax.Array]
    ) -> dict[str, Target]:
        result = {}
        for name, values in columns.items():
            known = jnp.isfinite(values).all(axis=1)
            values = jnp.where(known[:, None], values.astype(jnp.float32), 0.0)
            result[name] = Target(values, known)
        return result

    @classmethod
    def of(
        cls,
        file: TargetFile,
        source: Source,
        heads: Mapping[str, Head],
        ratios: Mapping[str, Sequence[float]],
    ) -> FileTeacher:
        """Makes a file the teacher of a student.

        Args:
          source: the student's data.
          heads, ratios: the student's heads, and their `training.log_ratios`.

        Raises:
          UserError: a head has other outcomes in the file than in the student.
        """
        rows = file.rows_of(source)
        columns = {}
        for name in (name for name in heads if name in file.probabilities):
            order = _order(file, name, heads[name].outcomes)
            p = file.probabilities[name][:, order].astype(np.float64)
            if len(ratios[name]):
                p = p * np.exp(-np.array(ratios[name]))  # to the prior of the student's sampler
            p = p / p.sum(axis=1, keepdims=True)
            columns[name] = _spread(p.astype(np.float32), rows)
        taught = dict.fromkeys(columns, 1.0)
        if file.features is not None:
            columns[FEATURES] = _spread(file.features, rows)
        width = 0 if file.features is None else file.features.shape[1]
        return cls(str(file.path), columns, taught, width)


def _mean_view(where: str, array: np.ndarray, n: int) -> np.ndarray:
    """Averages over views: [N, K] or [V, N, K] -> [N, K]."""
    if array.dtype.kind != "f" or array.ndim not in (2, 3) or array.shape[-2] != n:
        raise UserError(
            f"{where} is {array.dtype} {list(array.shape)}; it must be real numbers, [{n}, K] or "
            f"[views, {n}, K] for the {n} ids"
        )
    return array if array.ndim == 2 else array.mean(axis=0, dtype=np.float32)


def _order(file: TargetFile, head: str, wanted: tuple[str, ...]) -> list[int]:
    """The file's column for each of a head's outcomes."""
    given = file.outcomes.get(head)
    where = f"config.distill.files: {file.path} has no head {head} with the same classes; "
    if given is None:
        if (columns := file.probabilities[head].shape[1]) != len(wanted):
            raise UserError(f"{where}it has {columns} columns, this run {len(wanted)} outcomes")
        return list(range(len(wanted)))
    if sorted(given) != sorted(wanted):
        raise UserError(f"{where}its outcomes are {few(given)}, this run's {few(wanted)}")
    return [given.index(outcome) for outcome in wanted]


def _spread(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values [M, K] at rows int [N] -> [N, K], NaN where a row is -1."""
    spread: np.ndarray = values[rows]
    spread[rows < 0] = np.nan
    return spread
