"""Several data sets as one: the images are not copied, the classes are merged by name."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from agejax.data import builders, duplicates, edits, looking, sources
from agejax.data.cache import cached
from agejax.data.sources import Gathered, Source
from agejax.errors import UserError
from agejax.labels import LABELS
from agejax.logging import console
from agejax.settings import Group, Setting

SETTINGS = Group(
    "A part of a mixture.",
    name=Setting("", "Data set: one of agejax/data/builders."),
    source=Setting(None, "Archive or folder that you downloaded.", kind=str),
    weight=Setting(
        None,
        "Its share of the draws; default: its training images, 1 for a part of mean size.",
        kind=float,
    ),
    options=Setting({}, "The data set's own options."),
    train_only=Setting(False, "Uses its images for training only, never in val or test."),
)
WHERE = "config.data.mixture"


def load(parts: Mapping[str, Any], *, image_size: int, cache_dir: str | None = None) -> Source:
    """Loads every part of `config.data.mixture` and joins them, in the order of their names.

    Args:
      parts: part -> {name of the data set, and any of: source (a path), weight, options, train_only
        (whether its images must not validate or test)}.

    Raises:
      UserError: no part, an unknown key, a weight of 0 or below, or as `sources.load`.
    """
    parts = {part: parts[part] for part in sorted(parts)}
    for part, given in parts.items():
        if not hasattr(given, "items"):
            raise UserError(f"{WHERE}.{part}: {given!r}; set it to {{name: ..., source: ...}}")
        SETTINGS.check(
            {key: value for key, value in given.items() if value is not None}, f"{WHERE}.{part}"
        )
        if "name" not in given:
            raise UserError(f"{WHERE}.{part}: name is missing; set it to a data set")
    loaded = {
        part: sources.load(
            given["name"],
            given.get("source"),
            image_size=image_size,
            cache_dir=cache_dir,
            options=given.get("options"),
        )
        for part, given in parts.items()
    }
    looked_at = [builders.find(given["name"]).FIND_DUPLICATES for given in parts.values()]
    copies = copies_across(list(loaded.values()), looked_at, cache_dir)
    _warn_of_same_faces(
        [part for part, yes in zip(loaded, looked_at, strict=True) if not yes], loaded
    )
    weights = {part: given.get("weight") for part, given in parts.items()}
    train_only = [part for part, given in parts.items() if given.get("train_only")]
    if parts and len(train_only) == len(parts):
        raise UserError(f"{WHERE}: all parts are train_only; nothing is left to validate on")
    return join(loaded, weights, copies, train_only)


def _warn_of_same_faces(names: Sequence[str], parts: Mapping[str, Source]) -> None:
    """Warns on stderr of parts, among those in which no copies are searched, that share faces."""
    for one, other in itertools.combinations(names, 2):
        if parts[one].name != parts[other].name:
            continue
        same = np.intersect1d(parts[one].ids, parts[other].ids)
        if same.size:
            console.warning(
                f"{WHERE}: {one} and {other} have {len(same):,} faces in common, such as "
                f"{same[0]}, which a split may separate, so that a run is tested on faces that "
                f"trained it; set {WHERE}.{other}.options.seed to another number"
            )


def copies_across(
    parts: Sequence[Source], looked_at: Sequence[bool], cache_dir: str | None = None
) -> np.ndarray:
    """Pairs of images of different parts that show one picture; found once, then cached.

    Public sets are collected from the same sites, and what trains in one must not test in another.

    Args:
      looked_at: one per part; drawn faces are similar without being copies.

    Returns:
      int64 [P, 2], rows of the joined source.
    """
    starts = np.cumsum([0, *(len(source.ids) for source in parts)])
    chosen = [i for i, yes in enumerate(looked_at) if yes]
    if len(chosen) < 2:
        return np.empty((0, 2), np.int64)
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
    part = np.repeat(chosen, [len(parts[i].ids) for i in chosen])

    def find(folder: pathlib.Path) -> None:
        names = " and ".join(parts[i].name for i in chosen)
        console.note(f"searching for copies of the same picture in {names}")
        found = duplicates.near_pairs(_thumbnails([parts[i] for i in chosen]), part)
        np.savez(folder / "pairs.npz", pairs=rows[found])
        console.note(f"{len(found):,} pairs")

    known = [(source.fingerprint, source.images.shape) for source in parts]
    key = hashlib.sha256(repr((known, chosen)).encode()).hexdigest()[:16]

    def read(folder: pathlib.Path) -> np.ndarray:
        with np.load(folder / "pairs.npz") as arrays:
            pairs: np.ndarray = arrays["pairs"]
        in_range = (pairs >= 0) & (pairs < sum(len(source.ids) for source in parts))
        if pairs.dtype.kind != "i" or pairs.shape[1:] != (2,) or not in_range.all():
            raise ValueError(
                f"pairs.npz: {pairs.dtype} {list(pairs.shape)} are not pairs of images"
            )
        return pairs

    return cached(f"copies/{key}", find, read, cache_dir)


def _thumbnails(parts: Sequence[Source]) -> np.ndarray:
    """uint8 [N, EDGE, EDGE] of all images of all parts."""

    def of(source: Source) -> Iterator[np.ndarray]:
        def look(rows: np.ndarray) -> list[np.ndarray]:
            return [duplicates.thumbnail(image) for image in source.take(rows)]

        return looking.by_chunks(look, np.arange(len(source.ids)))

    return np.stack([thumbnail for source in parts for thumbnail in of(source)])


def join(
    parts: Mapping[str, Source],
    weights: Mapping[str, float | None],
    copies: np.ndarray | None = None,
    train_only: Sequence[str] = (),
) -> Source:
    """One source with the rows of all parts, in order.

    A label's classes are those of the first part, followed by those that only later parts have. A
    label that a part lacks is unknown there. Ids begin with the part's name.

    Args:
      weights: part -> its share of the draws, in any unit; None: in proportion to its size.
      copies: int [P, 2], pairs of rows of the result that show one picture, besides those within
        the parts. Groups of the same name, such as people, are joined too.
      train_only: parts whose images must not validate or test.

    Raises:
      UserError: no part, or a weight of 0 or below.
    """
    if not parts:
        raise UserError(f"{WHERE}: it is empty; name at least one part")
    for name, weight in weights.items():
        if weight is not None and not (isinstance(weight, (int, float)) and 0 < weight < np.inf):
            raise UserError(f"{WHERE}.{name}.weight: {weight!r}; set it above 0")
    every = list(parts.values())
    label_names = {
        label: tuple(dict.fromkeys(name for s in every for name in s.label_names.get(label, ())))
        for label in dict.fromkeys(label for s in every for label in s.label_names)
    }
    alike = [edits.with_classes(source, label_names) for source in every]
    sizes = np.array([len(source.ids) for source in every])
    starts = np.cumsum(sizes) - sizes
    part = np.repeat(np.arange(len(every)), sizes)
    if copies is None:
        copies = np.empty((0, 2), np.int64)

    def joined(numbers: Sequence[np.ndarray], *links: np.ndarray) -> np.ndarray:
        """First rows of all parts; `numbers` has them for each part, `links` join more of them."""
        first = np.concatenate([n + start for n, start in zip(numbers, starts, strict=True)])
        own = np.stack([np.arange(len(first)), first], axis=1)
        return duplicates.merge(np.concatenate([own, *links]), len(first))

    groups = joined([source.groups for source in every], copies, _same_people(every, part))

    return Source(
        name="+".join(parts),
        images=Gathered(tuple(every), part, np.concatenate([np.arange(n) for n in sizes])),
        labels={name: np.concatenate([source.labels[name] for source in alike]) for name in LABELS},
        ids=np.concatenate([np.char.add(f"{name}/", s.ids) for name, s in parts.items()]),
        groups=groups,
        label_names=label_names,
        fingerprint=hashlib.sha256(
            repr([(name, source.fingerprint) for name, source in parts.items()]).encode()
            + groups.tobytes()
        ).hexdigest()[:16],
        skipped=tuple(f"{name}/{line}" for name, s in parts.items() for line in s.skipped),
        undecoded=None
        if any(s.undecoded is None for s in every)
        else tuple(labels for s in every for labels in s.undecoded or ()),
        **_more(every),
        train_only=np.isin(np.array(list(parts))[part], train_only) if train_only else None,
        part=part,
        parts={name: weights.get(name) for name in parts},
        photos=joined([source.copies for source in every], copies),
    )


def _same_people(parts: Sequence[Source], part: np.ndarray) -> np.ndarray:
    """Pairs of rows of the joined source that are of one person, int64 [P, 2].

    Reports the number of people in several parts on stderr: no split of agejax separates them.
    """
    people = np.concatenate(
        [np.zeros(len(s.ids), np.int64) if s.people is None else s.people for s in parts]
    )
    known = np.flatnonzero(people)
    _, first, of_row = np.unique(people[known], return_index=True, return_inverse=True)
    in_parts = np.unique(np.stack([of_row, part[known]], axis=1), axis=0)
    shared = int((np.bincount(in_parts[:, 0]) > 1).sum())
    if shared:
        console.note(
            f"{shared:,} people (or groups) are in more than one part of the mixture; each stays "
            "on one side of a split"
        )
    return np.stack([known[first[of_row]], known], axis=1)


def _more(parts: Sequence[Source]) -> dict[str, np.ndarray]:
    """Columns that not every data set has, such as official splits; empty or 0 in the others."""
    named = ("images", "ids", "groups", "part", "train_only", "photos")
    more = {}
    for field in dataclasses.fields(Source):
        columns = [getattr(source, field.name) for source in parts]
        some = [column for column in columns if isinstance(column, np.ndarray)]
        if some and field.name not in named:
            more[field.name] = np.concatenate(
                [
                    column
                    if isinstance(column, np.ndarray)
                    else np.zeros(len(s.ids), some[0].dtype)
                    for s, column in zip(parts, columns, strict=True)
                ]
            )
    return more
