"""Which row of a table is about which image file, however people wrote the file's path."""

from __future__ import annotations

import dataclasses
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from agejax.data.builders import archives, cells

Parts = tuple[str, ...]  # of a path: the file's name, then its folders from the nearest on
DEEPEST = 16  # parts of a path that are compared


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What `pair` found.

    Attributes:
      row_of: file -> its row.
      why_not: file -> why it has no row, of those that nearly have one.
      doubtful: rows that several files could be, or that share their files with other rows.
    """

    row_of: dict[str, str]
    why_not: dict[str, str]
    doubtful: set[str]


def normal(path: str) -> str:
    """A path as `pair` takes it: with "/" between its parts and without "./"."""
    return posixpath.normpath(path.replace("\\", "/"))


def pair(files: Sequence[str], rows: Iterable[str]) -> Pairs:
    """Pairs image files with rows, both given by their paths.

    First, a row that ends a file's path exactly: an archive begins with folders that tables leave
    out. Then, of what is left, a path that ends with the other: a table may have folders that the
    archive lacks, leave out the ending of the image type, and differ in case. Where that finds
    nothing at all, the table is from another place, and the longest common ending counts; only a
    file in a folder "val" is not paired with a row in a folder "train". Where several rows or files
    share an ending, none of them is paired.
    """
    known = set(rows)
    pairs = Pairs({}, {}, set())
    used: set[str] = set()
    left = []
    for file in files:
        row = next((ending for ending in _endings(file) if ending in known), None)
        if row is None:
            left.append(file)
        elif row in used:
            pairs.why_not[file] = f"a second image for the row {row}"
            pairs.doubtful.add(row)
        else:
            used.add(row)
            pairs.row_of[file] = row
    if left:
        parts_of = {file: _parts(file) for file in left}
        rest = {row: _parts(row) for row in sorted(known - used)}
        _loosely(parts_of, rest, pairs, whole=True)
        if not pairs.row_of:
            _loosely(parts_of, rest, pairs, whole=False)
    return pairs


def _loosely(files: dict[str, Parts], rows: dict[str, Parts], pairs: Pairs, *, whole: bool) -> None:
    """Moves what has the longest endings in common from `files` and `rows` to `pairs`.

    Args:
      whole: whether one path must be the ending of the other.
    """
    longest = [max(map(len, paths.values()), default=0) for paths in (files, rows)]
    for depth in range(min(longest), 0, -1):
        alike: defaultdict[Parts, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for side, paths in enumerate((files, rows)):
            for path, parts in paths.items():
                if len(parts) >= depth:
                    alike[parts[:depth]][side].append(path)
        for some, candidates in alike.values():
            if whole:
                ends = ([f for f in some if len(files[f]) == depth],
                        [r for r in candidates if len(rows[r]) == depth])  # fmt: skip
                some, candidates = (
                    some if ends[1] else ends[0],
                    candidates if ends[0] else ends[1],
                )
            if not some or not candidates:
                continue
            if len(some) == len(candidates) == 1:
                if _of_different_splits(files[some[0]], rows[candidates[0]]):
                    continue
                pairs.row_of[some[0]] = candidates[0]
            else:
                shown = " and ".join(candidates[:2])
                for file in some:
                    pairs.why_not[file] = (
                        f"{len(some)} images and {len(candidates)} rows could belong together, "
                        f"such as {shown}"
                    )
                pairs.doubtful.update(candidates)
            for file in some:
                del files[file]
            for row in candidates:
                del rows[row]


def _endings(path: str) -> Iterator[str]:
    """a/b/c.jpg, b/c.jpg, c.jpg."""
    parts = path.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _parts(path: str) -> Parts:
    """In one case, and without the ending of an image type."""
    *folders, name = path.casefold().split("/")
    if archives.IMAGE.fullmatch(name):
        name = name.rpartition(".")[0]
    return (name, *reversed(folders))[:DEEPEST]


def _of_different_splits(file: Parts, row: Parts) -> bool:
    """Whether the nearest folders in which two paths differ name two splits."""
    for a, b in zip(file, row, strict=False):
        if a != b:
            splits = cells.SPLITS.get(a), cells.SPLITS.get(b)
            return None not in splits and splits[0] != splits[1]
    return False
