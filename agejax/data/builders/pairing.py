"""Pairs the rows of a table with image files, whichever way the table writes a file's path."""

from __future__ import annotations

import dataclasses
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from agejax.data.builders import archives, cells

Parts = tuple[str, ...]  # of a path: the file's name, then its folders, the nearest first
DEEPEST = 16  # parts of a path that are compared


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The result of `pair`.

    Attributes:
      row_of: file -> its row.
      why_not: file -> why it has no row, for files that nearly match one.
      doubtful: rows that match several files, or whose files match several rows.
    """

    row_of: dict[str, str]
    why_not: dict[str, str]
    doubtful: set[str]


def normal(path: str) -> str:
    """A row's path in the form for `pair`: "/" between its parts, no "./", composed Unicode."""
    return posixpath.normpath(_composed(path.replace("\\", "/")))


def pair(files: Sequence[str], rows: Iterable[str]) -> Pairs:
    """Pairs image files with rows, both given by their paths.

    First come rows that are exactly the end of a file's path, since archives begin with folders
    that tables leave out. A row that is the whole path of a file belongs to that file. Next, among
    the rest, one path is the end of the other: a table may have folders that the archive lacks,
    leave out the ending of the image type, and differ in case. Last, the longest common ending
    counts, unless a paired file or row has it too; but a file in a folder "val" is not paired with
    a row in a folder "train". If several rows or files share an ending, none of them is paired.

    Args:
      rows: as returned by `normal`. Files may spell accents in either form of Unicode.
    """
    known = set(rows)
    pairs = Pairs({}, {}, set())
    files_of: defaultdict[str, list[str]] = defaultdict(list)
    left = []
    for file in files:
        row = next((ending for ending in _endings(_composed(file)) if ending in known), None)
        if row is None:
            left.append(file)
        else:
            files_of[row].append(file)
    for row, some in files_of.items():
        meant = some if len(some) == 1 else [file for file in some if _composed(file) == row]
        if len(meant) == 1:
            pairs.row_of[meant[0]] = row
            reason = f"no row of its own; the row {row} is of the file {meant[0]}"
        else:
            pairs.doubtful.add(row)
            reason = f"one of {len(some)} images for the row {row}"
        for file in some:
            if file not in pairs.row_of:
                pairs.why_not[file] = reason
    if left:
        parts_of = {file: _parts(file) for file in left}
        rest = {row: _parts(row) for row in sorted(known - files_of.keys())}
        _loosely(parts_of, rest, pairs)
        if parts_of and rest:
            paired = (*pairs.row_of, *pairs.row_of.values(), *pairs.why_not, *pairs.doubtful)
            taken = {p[: n + 1] for p in map(_parts, paired) for n in range(len(p))}
            _loosely(parts_of, rest, pairs, taken)
    return pairs


def _loosely(
    files: dict[str, Parts],
    rows: dict[str, Parts],
    pairs: Pairs,
    taken: Collection[Parts] | None = None,
) -> None:
    """Moves the files and rows with the longest common endings to `pairs`.

    Args:
      taken: endings that do not count, since others have them; None: one path must be the end of
        the other.
    """
    whole = taken is None
    longest = [max(map(len, paths.values()), default=0) for paths in (files, rows)]
    for depth in range(min(longest), 0, -1):
        alike: defaultdict[Parts, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for side, paths in enumerate((files, rows)):
            for path, parts in paths.items():
                if len(parts) >= depth:
                    alike[parts[:depth]][side].append(path)
        for ending, (some, candidates) in alike.items():
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
                if taken and ending in taken:
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


def _composed(path: str) -> str:
    """The path with each accented letter as one character: macOS writes two."""
    return unicodedata.normalize("NFC", path)


def _endings(path: str) -> Iterator[str]:
    """a/b/c.jpg, b/c.jpg, c.jpg."""
    parts = path.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _parts(path: str) -> Parts:
    """The parts of a path, case-folded, composed, and without the ending of an image type."""
    *folders, name = _composed(path).casefold().split("/")
    if archives.IMAGE.fullmatch(name):
        name = name.rpartition(".")[0]
    return (name, *reversed(folders))[:DEEPEST]


def _of_different_splits(file: Parts, row: Parts) -> bool:
    """Whether the nearest folders in which two paths differ are named after two splits."""
    for a, b in zip(file, row, strict=False):
        if a != b:
            splits = cells.SPLITS.get(a), cells.SPLITS.get(b)
            return None not in splits and splits[0] != splits[1]
    return False
