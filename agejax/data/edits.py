"""Edits of a data set by config: other labels, fewer classes or images of one, an age range.

They come before the splits and read no image: the result is a view of the source.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from agejax import errors
from agejax.data.sources import Source
from agejax.errors import UserError, check_keys, nearest
from agejax.logging import console
from agejax.paths import expand

MAJORITY = "majority"  # stands for the largest class
WHERE = "config.data.edits"


def apply(source: Source, config: Any) -> Source:
    """The source edited as `config.data.edits` asks; reports the removed images on stderr.

    The edits apply in this order, each to what the earlier ones left: `labels`, `drop`, `min_age`
    and `max_age`, `only`, `keep`. Only `only` removes images whose label is unknown. The classes
    that `drop` names are also removed from the list of classes; the numbers of later ones shift.
    Of the images that could not be decoded, those stay whose labels would have let them, and of a
    class in `keep` its share.

    Raises:
      UserError: a label or class the data lacks, a share outside 0..1, no image left, or as
        `relabelled`.
    """
    if config.get("labels"):
        source = relabelled(source, config.labels)
    removed: dict[str, np.ndarray] = {}  # reason -> rows, bool [N]
    stays = np.ones(len(source.ids), bool)

    def remove(reason: str, rows: np.ndarray) -> None:
        removed[reason] = rows & stays
        stays[rows] = False

    dropped = {label: _names(v, f"{WHERE}.drop.{label}") for label, v in config.drop.items()}
    only = {label: _names(v, f"{WHERE}.only.{label}") for label, v in config.only.items()}
    for label, names in dropped.items():
        for name in names:
            number = _class(source, label, name, f"{WHERE}.drop")
            remove(f"{label} {name}", source.labels[label] == number)
    age = source.labels["age"]
    if config.min_age is not None:
        remove(f"younger than {config.min_age:g}", age < config.min_age)
    if config.max_age is not None:
        remove(f"older than {config.max_age:g}", age > config.max_age)
    for label, names in only.items():
        numbers = [_class(source, label, name, f"{WHERE}.only") for name in names]
        others = ~np.isin(source.labels[label], numbers)
        remove(f"{label} other than {', '.join(names)}", others)
    thin = thinned(source, stays, config.keep, config.seed, f"{WHERE}.keep")
    for each in thin:
        remove(f"{each.label} {each.name}, {each.share:g} kept", each.gone)

    if not removed:
        return source
    counts = ", ".join(f"{rows.sum():,} ({reason})" for reason, rows in removed.items())
    console.note(f"{source.name}: {stays.sum():,} of {len(stays):,} images stay; removed {counts}")
    if not stays.any():
        raise UserError(f"{WHERE}: no image of {source.name} is left; removed {counts}")
    if not stays.all():
        source = source.select(np.flatnonzero(stays))
    if source.undecoded is not None:
        low, high = (
            limit if given is None else given
            for given, limit in ((config.min_age, -np.inf), (config.max_age, np.inf))
        )
        lost = [
            known
            for known in source.undecoded
            if not any(known.get(label) in names for label, names in dropped.items())
            and low <= float(known.get("age", low)) <= high
            and all(known.get(label) in names for label, names in only.items())
        ]
        for each in thin:
            mine = [i for i, known in enumerate(lost) if known.get(each.label) == each.name]
            order = np.random.default_rng(config.seed).permutation(mine)
            gone = set(order[round(each.share * len(mine)) :].tolist())
            lost = [known for i, known in enumerate(lost) if i not in gone]
        source = dataclasses.replace(source, undecoded=tuple(lost))
    return with_classes(
        source,
        {
            label: tuple(name for name in names if name not in dropped.get(label, ()))
            for label, names in source.label_names.items()
        },
    )


def relabelled(source: Source, path: str) -> Source:
    """The source with the labels of a CSV in place of its own.

    Args:
      path: a CSV as `image_folder` reads it and `pseudo_label` writes it: a column `id` or `file`,
        and any of the labels, in upper or lower case. An image keeps its label if it has no row,
        or if its cell is empty or marks the label as unknown.

    Raises:
      UserError: no such CSV, none of these columns, an invalid cell, two rows of an image with
        different labels, or no image of the source in it.
    """
    from agejax.data.builders import base, cells, image_folder

    where = f"{WHERE}.labels: {path}"
    try:
        data = expand(path).read_bytes()
    except OSError as error:
        raise UserError(f"{where} cannot be read: {errors.reason(error)}") from error
    header = list(next(base.table(data, where, ()), {}))
    theirs = {name.lower(): name for name in reversed(header)}
    column = next((theirs[name] for name in image_folder.FILE if name in theirs), None)
    given = {label: theirs[label] for label in source.labels if label in theirs}
    if column is None or not given:
        raise UserError(
            f"{where}: need a column of {', '.join(image_folder.FILE)}, and one of "
            f"{', '.join(source.labels)}; there are {', '.join(header) or 'none'}"
        )
    names = dict(source.label_names)
    for label in (label for label in given if label in image_folder.CLASSES):
        found = Counter(row.get(given[label], "") for row in base.table(data, where, ()))
        names[label] = names.get(label) or cells.class_names(found)
        if wrong := cells.miscounted(found, label, names[label]):
            raise UserError(f"{where}: {wrong}")
    labels = {label: values.copy() for label, values in source.labels.items()}
    row_of = _rows_of(source, {cell_of[column] for cell_of in base.table(data, where, ())})
    said: dict[int, list[str]] = {}  # row -> its cells
    for number, cell_of in enumerate(base.table(data, where, ()), 2):  # line number in an editor
        row = row_of.get(cell_of[column])
        if row is None:
            continue
        texts = [cell_of[name] for name in given.values()]
        if said.setdefault(row, texts) != texts:
            raise UserError(
                f"{where}, line {number}: {cell_of[column]} has an earlier row with other labels; "
                "keep one of them"
            )
        for label, name in given.items():
            text = cell_of[name]
            if cells.is_unknown(text):
                continue
            try:
                labels[label][row] = (
                    cells.class_number(text, label, names[label])
                    if label in image_folder.CLASSES
                    else cells.years(text)
                )
            except ValueError as error:
                raise UserError(f"{where}, line {number}: {error}") from error
    if not said:
        raise UserError(f"{where}: no image of {source.name} in it, such as {source.ids[0]}")
    console.note(
        f"{source.name}: {', '.join(given)} of {len(said):,} of {len(source.ids):,} images "
        f"from {path}"
    )
    return source.relabelled(labels, names, hashlib.sha256(data).hexdigest())


def _rows_of(source: Source, names: set[str]) -> dict[str, int]:
    """Name of an image in a table -> its row. An exact id takes precedence over a similar one."""
    from agejax.data.builders import pairing

    ids = {name: row for row, name in enumerate(source.ids.tolist())}
    left = {pairing.normal(name): name for name in names - ids.keys() if name}
    pairs = pairing.pair([name for name in ids if name not in names], left)
    like = {left[row]: ids[name] for name, row in pairs.row_of.items() if row not in pairs.doubtful}
    return {name: ids[name] for name in names & ids.keys()} | like


class Thinned(NamedTuple):
    """A class of which a share stays, and the rows to remove for that, bool [N]."""

    label: str
    name: str
    share: float
    gone: np.ndarray


def thinned(
    source: Source, rows: np.ndarray, keep: Mapping[str, Any], seed: int, where: str
) -> list[Thinned]:
    """The rows to remove from `rows` so that {label: {class: share}} remain, class by class.

    The class name "majority" stands for the largest class. The seed decides which images are
    removed; duplicates within a class stay or go together, so a share is met as closely as their
    groups allow.

    Args:
      rows: bool [N].

    Raises:
      UserError: a label or class the data lacks, or a share outside 0..1.
    """
    rows, thin = rows.copy(), []
    for label, shares in keep.items():
        if not hasattr(shares, "items"):
            raise UserError(f"{where}.{label}: {shares!r}; set it to {{class: share}}")
        for name, share in shares.items():
            if not (isinstance(share, (int, float)) and 0 <= share <= 1):
                raise UserError(f"{where}.{label}.{name}: {share!r}; set it to a share in 0..1")
            number = _class(source, label, name, where, rows)
            mine = np.flatnonzero(rows & (source.labels[label] == number))
            _, group, sizes = np.unique(
                source.groups[mine], return_inverse=True, return_counts=True
            )
            order = np.random.default_rng(seed).permutation(len(sizes))
            # A group stays if more than half of it lies within the share.
            middle = np.cumsum(sizes[order]) - sizes[order] / 2
            stays = np.empty(len(sizes), bool)
            stays[order] = middle < share * len(mine)
            out = np.zeros(len(rows), bool)
            out[mine[~stays[group]]] = True
            thin.append(Thinned(label, source.label_names[label][number], share, out))
            rows &= ~out
    return thin


def with_classes(source: Source, label_names: Mapping[str, Sequence[str]]) -> Source:
    """The same images with classes numbered as in `label_names`; other classes become unknown.

    Raises:
      UserError: classes without names.
    """
    labels, names = dict(source.labels), dict(source.label_names)
    for label, wanted in label_names.items():
        given = source.label_names.get(label, ())
        if source.labels[label].max(initial=-1) >= len(given):
            raise UserError(f"{source.name}: its classes of {label} have no names to go by")
        names[label] = tuple(wanted)
        numbers = [wanted.index(name) if name in wanted else -1 for name in given]
        # Unknown, -1, indexes the last entry.
        labels[label] = np.array([*numbers, -1], np.int32)[source.labels[label]]
    if names == dict(source.label_names):
        return source
    return source.relabelled(labels, names, sorted(names.items()))


def _class(
    source: Source, label: str, name: str, where: str, rows: np.ndarray | None = None
) -> int:
    """The number of a class; "majority" is the largest class in `rows`."""
    known = {label: names for label, names in source.label_names.items() if names}
    if not known:
        raise UserError(f"{where}: the data set {source.name} has no classes at all")
    check_keys([label], known, where)
    if name == MAJORITY and rows is not None:
        labels = source.labels[label][rows]
        return int(np.bincount(labels[labels >= 0], minlength=1).argmax())
    if name not in known[label]:
        raise UserError(
            f"{where}.{label}: no class {name!r} in {source.name}; {nearest(name, known[label])}, "
            f"of {', '.join(known[label])}"
        )
    return known[label].index(name)


def _names(given: Any, where: str) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: {given!r}; set it to the name of a class, or several")
    return tuple(names)
