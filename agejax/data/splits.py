"""Which rows train, which validate, which test. Duplicates never stand on both sides of a fraction.

What a split holds follows from ids, groups, ages and the seed; the order of the rows is no matter.
"""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax.data.sources import Source
from agejax.errors import UserError

AGE_BIN = 5  # years, for stratification


def make(source: Source, config: Any) -> dict[str, np.ndarray]:
    """The splits that config.data.split (files, else fractions) asks for, train and val for sure.

    Returns:
      {split: rows int64, sorted}.

    Raises:
      UserError: as `by_fraction`, `from_files` and `carve`; or train or val is missing.
    """
    if config.files:
        splits = from_files(source, config.files)
        if "train" in splits and "val" not in splits and config.val_of_train:
            splits["train"], splits["val"] = carve(
                source, splits["train"], config.val_of_train, config.seed
            )
    else:
        splits = by_fraction(source, config.fractions, config.seed)
    for name in ("train", "val"):
        if name not in splits:
            raise UserError(f"config.data.split: there is no {name!r}, only {', '.join(splits)}")
    return splits


def by_fraction(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Splits at random, groups kept whole, each split's ages distributed as the whole's.

    Args:
      fractions: {split: share of the images}; what is missing to 1 is left out.

    Returns:
      {split: rows int64, sorted}.

    Raises:
      UserError: shares not in 0..1 or of a sum above 1, or a split that would be empty.
    """
    return _deal(source, np.arange(len(source.ids)), fractions, seed, "config.data.split.fractions")


def carve(
    source: Source, rows: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Takes a share of `rows` out, as `by_fraction` would: (the rest, the part), int64, sorted.

    Groups are kept whole; of a group only the members in `rows` count.

    Raises:
      UserError: a share not in 0..1, or one that leaves the rest or the part empty.
    """
    shares = {"rest": 1 - fraction, "part": fraction}
    parts = _deal(source, np.asarray(rows), shares, seed, f"share {fraction:g} of {len(rows)} rows")
    return parts["rest"], parts["part"]


def from_files(source: Source, files: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Splits given as text files with one name a line, with or without a folder before it.

    Names that the source lacks are counted on stderr, as are groups of duplicates that the files
    tear apart.

    Returns:
      {split: rows int64, sorted}.

    Raises:
      UserError: a file that cannot be read, a name in two of them, or a file without a known name.
    """
    row_of = {str(name).rsplit("/", 1)[-1]: row for row, name in enumerate(source.ids)}
    splits, names = {}, {}
    for split, path in files.items():
        try:
            lines = pathlib.Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"config.data.split.files.{split}: {path}: {error}") from error
        names[split] = {line.strip().rsplit("/", 1)[-1] for line in lines if line.strip()}
        known = [row_of[name] for name in names[split] if name in row_of]
        unknown = sorted(names[split] - row_of.keys())
        if unknown:
            print(
                f"{path}: {len(unknown):,} of {len(names[split]):,} names are not in the data, "
                f"the first: {unknown[0]}",
                file=sys.stderr,
            )
        splits[split] = _filled(split, known, f"config.data.split.files.{split}: {path}")
    for a, b in itertools.combinations(files, 2):
        both = sorted(names[a] & names[b])
        if both:
            raise UserError(
                f"{files[a]} and {files[b]} share {len(both):,} names, the first: {both[0]}; "
                "an image belongs to one split"
            )
    torn = torn_groups(source, splits)
    if torn:
        print(
            f"{torn:,} groups of duplicates have images in more than one of {', '.join(files)}; "
            "scores on them are too good",
            file=sys.stderr,
        )
    return splits


def torn_groups(source: Source, splits: Mapping[str, np.ndarray]) -> int:
    """The number of groups with images in more than one split."""
    seen = np.concatenate([np.unique(source.groups[rows]) for rows in splits.values()])
    return int((np.unique(seen, return_counts=True)[1] > 1).sum())


def _deal(
    source: Source, rows: np.ndarray, fractions: Mapping[str, float], seed: int, where: str
) -> dict[str, np.ndarray]:
    """Deals the groups in `rows`, ordered by age and shuffled within 5 years, one after another to
    the split that is furthest behind its share."""
    shares = np.array(list(fractions.values()), float)
    if not len(shares) or not np.all((shares > 0) & (shares <= 1)) or shares.sum() > 1 + 1e-9:
        given = ", ".join(f"{name}={share:g}" for name, share in fractions.items()) or "nothing"
        raise UserError(f"{where}: fractions must lie above 0 and sum to at most 1, not {given}")
    shares = np.append(shares, max(0.0, 1 - shares.sum()))  # the last is left out

    groups, of_row = np.unique(source.groups[rows], return_inverse=True)
    ages = source.labels["age"][rows].astype(np.float64)
    known = np.isfinite(ages)
    sums = np.bincount(of_row, np.where(known, ages, 0), len(groups))
    counts = np.bincount(of_row, known, len(groups))
    age_bins = np.where(counts > 0, sums // (AGE_BIN * np.maximum(counts, 1)), -1)
    # A group goes by the hash of its smallest id, so the order of the rows plays no part.
    first = [""] * len(groups)
    for group, name in zip(of_row.tolist(), source.ids[rows].tolist(), strict=True):
        if not first[group] or name < first[group]:
            first[group] = name
    order = sorted(range(len(groups)), key=lambda g: (age_bins[g], _hash(seed, first[g]), first[g]))

    sizes = np.bincount(of_row, minlength=len(groups))
    split_of_group = np.empty(len(groups), int)
    behind = np.zeros(len(shares))
    for group in order:
        behind += shares * sizes[group]
        split_of_group[group] = split = int(np.argmax(behind))
        behind[split] -= sizes[group]
    split_of_row = split_of_group[of_row]
    return {name: _filled(name, rows[split_of_row == i], where) for i, name in enumerate(fractions)}


def _hash(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()


def _filled(split: str, rows: Any, where: str) -> np.ndarray:
    if not len(rows):
        raise UserError(f"{where}: the split {split!r} is empty; give it more images")
    return np.sort(np.asarray(rows, np.int64))
