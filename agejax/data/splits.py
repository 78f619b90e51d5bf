"""Splits that keep duplicate groups together, stratified by age; and splits given as files."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax.data.sources import Source
from agejax.errors import UserError

STRATUM = 5  # years


def make(source: Source, config: Any) -> dict[str, np.ndarray]:
    """config.data.split -> {split: sorted rows}; train and val are always among them.

    Raises:
      UserError: fractions or files that do not give a train and a val split of at least one image.
    """
    if config.files:
        splits = from_files(source, config.files)
        if "val" not in splits and "train" in splits:
            share = config.val_of_train
            parts = by_fraction(
                source, {"train": 1 - share, "val": share}, config.seed, splits["train"]
            )
            splits |= parts
    else:
        splits = by_fraction(source, config.fractions, config.seed)
    for name in ("train", "val"):
        if not len(splits.get(name, ())):
            raise UserError(f"config.data.split: no image is left for the split {name!r}")
    return splits


def by_fraction(
    source: Source,
    fractions: Mapping[str, float],
    seed: int,
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Random splits: no duplicate group straddles two, and ages are spread alike.

    Groups are dealt out in the order of age strata (5 years) and, inside one, of a hash of seed and
    their first id; so a split does not depend on the order of rows, and hardly on a missing image.

    Args:
      fractions: split -> its share of the images; what they leave to 1 is in no split.
      rows: of the source, to be divided; default all.

    Raises:
      UserError: shares that are not positive, or more than 1 in all, or too small for one group.
    """
    shares = {name: float(share) for name, share in fractions.items()}
    if any(s <= 0 for s in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise UserError(
            f"config.data.split.fractions: need positive fractions of at most 1 in all, got {shares}"
        )
    rows = np.arange(len(source.ids)) if rows is None else rows
    members = _members(source, rows)
    names = [*shares, ""]  # "" takes what the fractions leave
    share = np.array([*shares.values(), max(0.0, 1 - sum(shares.values()))])
    taken = np.zeros(len(names))
    dealt: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for group in sorted(members, key=lambda rows: _rank(source, rows, seed)):
        # To the split furthest behind its share, so that every stratum is divided alike.
        behind = share * (taken.sum() + len(group)) - taken
        choice = int(np.argmax(np.where(share > 0, behind, -np.inf)))
        taken[choice] += len(group)
        dealt[names[choice]].append(group)
    for name in shares:
        if not dealt[name]:
            raise UserError(
                f"config.data.split.fractions: {len(rows)} images leave none for {name!r} "
                f"({shares[name]:g}); raise its fraction"
            )
    return {name: np.sort(np.concatenate(dealt[name])) for name in shares}


def from_files(source: Source, files: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Splits given as files of names, one a line; folders before a name do not matter.

    Names the source has not got are counted and said; the rest of the split is used.

    Raises:
      UserError: a missing file, a name in two of them, or a split of which nothing is there.
    """
    row_of = {name: row for row, name in enumerate(source.ids.tolist())}
    owner: dict[str, str] = {}
    splits = {}
    for split, path in files.items():
        where = f"config.data.split.files.{split}"
        try:
            lines = pathlib.Path(path).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: {path} cannot be read ({error})") from error
        names = [line.strip().rsplit("/", 1)[-1] for line in lines if line.strip()]
        for name in names:
            if owner.setdefault(name, split) != split:
                raise UserError(f"{where}: {name} is also in the split {owner[name]!r}")
        rows = {row_of[name] for name in names if name in row_of}
        if not rows:
            raise UserError(f"{where}: none of the {len(names)} names in {path} is in the data")
        if len(rows) < len(names):
            print(f"split {split}: {len(names) - len(rows)} of {len(names)} names are not there")
        splits[split] = np.array(sorted(rows))
    return splits


def torn_groups(source: Source, splits: Mapping[str, np.ndarray]) -> int:
    """How many duplicate groups have members in more than one split."""
    seen: dict[int, set[str]] = {}
    for name, rows in splits.items():
        for group in np.unique(source.groups[rows]).tolist():
            seen.setdefault(group, set()).add(name)
    return sum(len(names) > 1 for names in seen.values())


def _members(source: Source, rows: np.ndarray) -> list[np.ndarray]:
    order = rows[np.argsort(source.groups[rows], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(source.groups[order])) + 1)


def _rank(source: Source, rows: np.ndarray, seed: int) -> tuple[float, bytes]:
    age = source.labels["age"][rows]
    known = age[np.isfinite(age)]
    stratum = known.mean() // STRATUM if known.size else -1.0
    name = f"{seed} {min(source.ids[rows])}"
    return float(stratum), hashlib.blake2b(name.encode(), digest_size=8).digest()
