"""Which rows train, which validate and which test.

Duplicates are never on both sides of a split that agejax makes. If a public split separates some,
they are reported, and `drop_copies_from_train` removes them. A split depends only on ids, groups,
labels and the seed, not on the order of the rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax.data.builders import cells, pairing
from agejax.data.sources import Source
from agejax.errors import UserError, check_keys, few, is_number, one_line, reason
from agejax.labels import DECADES, density
from agejax.logging import console
from agejax.paths import expand

AGE_BIN = 5  # years, for stratification
WHERE = "config.data.split"
CALIBRATION = "calibration"  # the split that calibrates a run in place of val


def make(source: Source, config: Any) -> dict[str, np.ndarray]:
    """The splits that config.data.split asks for: always train, and val unless it is turned off.

    They come from one of `official`, `files`, `folds`, `balanced`, else from `fractions` alone, and
    get their usual names: `valid`, `validation` and `dev`, in upper or lower case, become val. If
    none of them makes a val, the share `val_of_train` of train becomes val. With `val_of_train` 0
    there is no val: the images of any val are trained on too, and the test split stays as it is.
    The share `calibration_of_val` of val becomes the split "calibration". The share `train_share`
    of the remaining train images is used. Images that may only train are put into train, unless
    they have a copy elsewhere; the others are split as if these did not exist.

    Returns:
      {split: rows int64, sorted}.

    Raises:
      UserError: more than one way is set, there is no train, or no val to calibrate on; or as
        `official`, `from_files`, `fold`, `balanced`, `by_fraction`, `without_copies` and `carve`.
    """
    if source.train_only is not None:
        return _with_train_only(source, config)
    way = way_of(config)
    if way == "folds":
        train, test = fold(source, config.folds, config.fold, config.seed)
        splits = {"train": train, "test": test}
    elif way == "balanced":
        splits = balanced(source, config.fractions, config.seed, **config.balanced)
    elif way == "fractions":
        splits = by_fraction(source, config.fractions, config.seed)
    else:
        splits = official(source) if way == "official" else from_files(source, config.files)
    splits = _by_usual_names(splits)
    if not config.val_of_train and "val" in splits:
        console.note(
            f"{WHERE}.val_of_train=0: the {len(splits['val']):,} images of val are trained on"
        )
        both = [splits.get("train", np.zeros(0, np.int64)), splits.pop("val")]
        splits["train"] = np.sort(np.concatenate(both))
    if way in ("official", "files"):
        if config.get("drop_copies_from_train"):
            splits = without_copies(source, splits)
        _report_leaks(source, splits)
    if "train" not in splits:
        raise UserError(f"{WHERE}: there is no 'train', only {', '.join(splits)}; name one")
    if config.val_of_train and "val" not in splits:
        splits["train"], splits["val"] = carve(
            source, splits["train"], config.val_of_train, config.seed
        )
    if share := config.get("calibration_of_val", 0.0):
        where = f"{WHERE}.calibration_of_val={share:g}"
        if "val" not in splits or CALIBRATION in splits:
            raise UserError(
                f"{where}: it needs a val split, and no split named {CALIBRATION!r} yet; the "
                f"splits are {', '.join(splits)}"
            )
        shares = {"val": 1 - share, CALIBRATION: share}
        splits |= _deal(source, splits["val"], shares, config.seed, where)
    if (share := config.get("train_share", 1.0)) != 1:
        where = f"{WHERE}.train_share={share:g}"
        splits |= _deal(source, splits["train"], {"train": share}, config.seed, where)
    return splits


def _by_usual_names(splits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same splits under their usual names: a "valid", "dev" or "Train" becomes val or train.

    Raises:
      UserError: two splits have the same usual name.
    """
    named: dict[str, np.ndarray] = {}
    for name, rows in splits.items():
        usual = cells.SPLITS.get(name.strip().lower(), name)
        if usual in named:
            raise UserError(f"{WHERE}: {', '.join(splits)}: two of them are {usual}; keep one")
        named[usual] = rows
    return named


def way_of(config: Any) -> str:
    """Which of official, files, folds, balanced and fractions makes the splits of a config.

    Needs no data, so that wrong settings are found before any is read.

    Raises:
      UserError: several are set, or one has invalid settings.
    """
    ways = [way for way in ("official", "files", "folds") if config.get(way)]
    # The config of an old run may lack a newer setting.
    ways += ["balanced"] if config.get("balanced") and config.balanced.n else []
    if len(ways) > 1:
        raise UserError(f"{WHERE}: {' and '.join(ways)} are set; keep one of them")
    way = ways[0] if ways else "fractions"
    if way in ("balanced", "fractions"):
        _check_shares(config.fractions, f"{WHERE}.fractions")
    if way == "balanced":
        _check_balanced(config.fractions, config.balanced.split, config.balanced.over)
    if way == "folds":
        _check_fold(config.folds, config.fold)
    return way


def _with_train_only(source: Source, config: Any) -> dict[str, np.ndarray]:
    """`make` for a mixture in which some images may only train."""
    assert source.train_only is not None
    others, extra = np.flatnonzero(~source.train_only), np.flatnonzero(source.train_only)
    alone = dataclasses.replace(source.select(others), train_only=None)
    if source.part is not None and len(np.unique(source.part[others])) == 1:
        # Without the part's name the ids are those of the part alone, so it is split as when alone.
        ids = [name.split("/", 1)[1] for name in alone.ids.tolist()]
        alone = dataclasses.replace(alone, ids=np.array(ids))
    splits = {name: others[rows] for name, rows in make(alone, config).items()}
    elsewhere = [extra[:0], *(rows for name, rows in splits.items() if name != "train")]
    copies = source.shared(extra, np.concatenate(elsewhere))
    if copies.any():
        console.note(
            f"{source.name}: {copies.sum():,} images that only train have a copy in another split "
            "and are left out"
        )
    splits["train"] = np.sort(np.concatenate([splits["train"], extra[~copies]]))
    return splits


def by_fraction(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Splits at random; groups stay together, and each split has the overall age distribution.

    Args:
      fractions: {split: share of the images}; if the shares sum to less than 1, the rest is unused.

    Returns:
      {split: rows int64, sorted}.

    Raises:
      UserError: shares outside 0..1 or with a sum above 1, or a split that would be empty.
    """
    return _deal(source, np.arange(len(source.ids)), fractions, seed, f"{WHERE}.fractions")


def carve(
    source: Source, rows: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moves a share of the train `rows` to val, as `by_fraction` would.

    Groups stay together; only their members in `rows` count.

    Returns:
      (train, val), int64, sorted.

    Raises:
      UserError: a share outside 0..1, or one that leaves train or val empty.
    """
    shares = {"train": 1 - fraction, "val": fraction}
    parts = _deal(source, np.asarray(rows), shares, seed, f"{WHERE}.val_of_train={fraction:g}")
    return parts["train"], parts["val"]


def fold(source: Source, folds: int, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cross-validation: (all other folds, fold `number` of 0..folds-1), int64, sorted.

    Each image is in exactly one fold. Groups stay together, and each fold has the overall age
    distribution.

    Raises:
      UserError: fewer than 2 folds, more folds than images, a number out of range, or a fold that
        would be empty.
    """
    _check_fold(folds, number, len(source.ids))
    shares = {f"fold {i}": 1 / folds for i in range(folds)}
    rows = np.arange(len(source.ids))
    test = _deal(source, rows, shares, seed, f"{WHERE}.folds={folds}")[f"fold {number}"]
    return np.setdiff1d(rows, test), test


def balanced(
    source: Source,
    fractions: Mapping[str, float],
    seed: int,
    *,
    n: int,
    split: str,
    over: Sequence[str],
    short: str,
) -> dict[str, np.ndarray]:
    """A split with n images from every combination of labels; the rest is split by fraction.

    A cell (a combination) offers one image of each group; groups whose copies are in several cells
    are taken last, since their label is in doubt. The other copies of a chosen image are left out
    of every split and reported on stderr. So are short cells: those with n groups or fewer, which
    cannot give n groups and leave one to train on.

    Args:
      fractions: {split: share of the rest}.
      over: any of decade, gender, ethnicity. An image that lacks one of them is never chosen.
      short: "error", or "take": half of a short cell, so that as much of it is left to train on.

    Returns:
      {split: rows int64, sorted}.

    Raises:
      UserError: unknown labels, a fraction for `split` too, short cells, or as `by_fraction`.
    """
    where = f"{WHERE}.balanced"
    _check_balanced(fractions, split, over)
    cell, names = _cells(source, over, where)

    known = np.flatnonzero(cell >= 0)
    pairs = np.unique(np.stack([source.groups[known], cell[known]], axis=1), axis=0)
    group, cells_of_group = np.unique(pairs[:, 0], return_counts=True)
    in_doubt = np.isin(source.groups, group[cells_of_group > 1])
    keys = {row: _key(seed, source.ids[row]) for row in known.tolist()}
    order = np.array(sorted(keys, key=lambda row: keys[row]), np.int64)
    _, first = np.unique(source.groups[order], return_index=True)
    offered = order[np.sort(first)]  # one image of each group, shuffled
    offered = offered[np.argsort(in_doubt[offered], kind="stable")]

    chosen, lines = [], []
    for number, name in enumerate(names):
        images = offered[cell[offered] == number]
        take = n if len(images) > n else len(images) // 2
        chosen.append(images[:take])
        if take < n:
            lines.append((name, take, len(images)))
    if lines and short == "error":
        raise UserError(
            f"{where}: {len(lines)} of {len(names)} cells have no {n} images to give and one to "
            f"keep: {', '.join(f'{name} ({count})' for name, _, count in lines)}; lower n, leave "
            "a label out of over, or set short=take"
        )
    test = np.concatenate(chosen)
    taken = source.shared(np.arange(len(source.ids)), test)
    copies = int(taken.sum()) - len(test)
    console.note(
        f"{split}: {len(test):,} images, {n} from each of {len(names)} cells; {copies:,} copies of "
        "them are left out of every split"
        + (f"; {len(lines)} cells are short and give at most half:" if lines else "")
        + "".join(f"\n  {name}: {take} of {count}" for name, take, count in lines)
    )
    rest = np.flatnonzero(~taken)
    parts = _deal(source, rest, fractions, seed, f"{WHERE}.fractions")
    return parts | {split: _filled(split, test, where)}


def official(source: Source) -> dict[str, np.ndarray]:
    """The data set's own splits; reports on stderr how many images are in none of them.

    Returns:
      {split: rows int64, sorted}.

    Raises:
      UserError: the data set has none.
    """
    names = source.official
    if names is None or not np.any(names != ""):
        raise UserError(
            f"{WHERE}.official: the data set {source.name} has no splits of its own; use fractions"
        )
    outside = int(np.sum(names == ""))
    if outside:
        console.note(
            f"{source.name}: {outside:,} of {len(names):,} images are in no official split and "
            "left out"
        )
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names[names != ""])}


def from_files(source: Source, files: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Splits given as text files with one name per line, with or without its folder.

    Reports on stderr how many names the source lacks.

    Returns:
      {split: rows int64, sorted}.

    Raises:
      UserError: as `read_file`, a name in two files, or a file without a known name.
    """
    splits, names = {}, {}
    for split, path in files.items():
        where = f"{WHERE}.files.{split}"
        if not isinstance(path, str):
            raise UserError(f"{where}: {path!r}; set it to a file's path")
        splits[split], names[split], unknown = read_file(source, path, where)
        if unknown:
            line = (
                f"{path}: {len(unknown):,} of {len(names[split]):,} names are not in the data, "
                f"the first: {unknown[0]}"
            )
            console.note(one_line(line))
        _filled(split, splits[split], f"{where}: {path}")
    for a, b in itertools.combinations(files, 2):
        both = sorted(names[a] & names[b])
        if both:
            raise UserError(
                f"{files[a]} and {files[b]} share {len(both):,} names, the first: {both[0]}; "
                "an image belongs to one split"
            )
    return splits


def read_file(source: Source, path: str, where: str) -> tuple[np.ndarray, set[str], list[str]]:
    """Reads one name per line: (rows int64, sorted; all names; names that the source lacks).

    A folder in a name counts only where images in several folders have that name: the longest
    common ending of the paths decides.

    Raises:
      UserError: the file cannot be read, or a name stands for several images.
    """
    rows_of = defaultdict(list)  # name without its folder -> rows
    for row, id in enumerate(source.ids.tolist()):
        rows_of[_name(id)].append(row)
    try:
        lines = expand(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {path} is not text in UTF-8; save it as that") from error
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read: {reason(error)}") from error
    rows, names, unknown = set(), set(), set()
    for line in filter(None, map(str.strip, lines)):
        some = rows_of.get(_name(line), [])
        if len(some) > 1:
            some = _nearest(line, some, source)
        if len(some) > 1:
            alike = few([str(source.ids[row]) for row in some])
            raise UserError(
                f"{where}: {path}: {line} may be any of {alike}; write the image's folders too"
            )
        names.add(str(source.ids[some[0]]) if some else pairing.normal(line))
        rows.update(some)
        unknown.update([] if some else [pairing.normal(line)])
    return np.array(sorted(rows), np.int64), names, sorted(unknown)


def _nearest(line: str, rows: Sequence[int], source: Source) -> list[int]:
    """Those of several rows with one name whose paths have the longest common ending with a line's.

    None of them if that is the name alone, and all their folders differ from the line's.
    """
    theirs = pairing.normal(line).split("/")[::-1]
    likeness = {}
    for row in rows:
        ours = pairing.normal(str(source.ids[row])).split("/")[::-1]
        alike = (a == b for a, b in zip(ours, theirs, strict=False))
        common = sum(1 for _ in itertools.takewhile(bool, alike))
        one_ends_so = common == min(len(ours), len(theirs))
        likeness[row] = (common, one_ends_so, ours == theirs)
    most = max(likeness.values())
    return [row for row in rows if likeness[row] == most != (1, False, False)]


def without_copies(source: Source, splits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The splits without the train images that have a copy, or their person, in another split.

    Reports them on stderr.

    Raises:
      UserError: no train image is left.
    """
    if "train" not in splits:
        return dict(splits)
    train = splits["train"]
    others = [rows for name, rows in splits.items() if name != "train"]
    copies = source.shared(train, np.concatenate([train[:0], *others]))
    console.note(
        f"train: {copies.sum():,} of {len(train):,} images have a copy"
        + (", or another image of their person or group," if _joins_more(source) else "")
        + " in another split and are left out"
    )
    where = f"{WHERE}.drop_copies_from_train"
    return dict(splits) | {"train": _filled("train", train[~copies], where)}


def leaking_groups(source: Source, splits: Mapping[str, np.ndarray]) -> int:
    """The number of groups with images in more than one split."""
    seen = np.concatenate([np.unique(source.groups[rows]) for rows in splits.values()])
    return int((np.unique(seen, return_counts=True)[1] > 1).sum())


def _report_leaks(source: Source, splits: Mapping[str, np.ndarray]) -> None:
    leaking = leaking_groups(source, splits)
    if leaking:
        console.warning(
            f"{leaking:,} groups of duplicates"
            + (", or of images of one person or group," if _joins_more(source) else "")
            + f" have images in more than one of {', '.join(splits)}; scores on them are too good"
        )


def _joins_more(source: Source) -> bool:
    """Whether some groups hold more than the copies of one photo."""
    return bool(np.any(source.groups != source.copies))


def _cells(source: Source, over: Sequence[str], where: str) -> tuple[np.ndarray, list[str]]:
    """The cell (combination of labels) of each image, int64 [N], -1 unknown; and the cells' names.

    Every combination of values that occur is a cell, even an empty one.
    """
    check_keys(over, ("decade", *source.label_names), f"{where}.over")
    cell, names = np.zeros(len(source.ids), np.int64), [""]
    for label in over:
        if label == "decade":
            values = np.minimum(density.age_bins(source.labels["age"]), len(DECADES) - 1)
            value_names: Sequence[str] = DECADES
        else:
            values, value_names = source.labels[label], source.label_names[label]
        present = np.unique(values[values >= 0])
        if not len(present):
            raise UserError(f"{where}.over: no image of {source.name} has a known {label}")
        unknown = (cell < 0) | (values < 0)
        cell = cell * len(present) + np.searchsorted(present, values)
        cell[unknown] = -1
        names = [f"{name} {value_names[value]}".strip() for name in names for value in present]
    return cell, names


def _deal(
    source: Source, rows: np.ndarray, fractions: Mapping[str, float], seed: int, where: str
) -> dict[str, np.ndarray]:
    """Deals the groups in `rows`, ordered by age and shuffled within 5 years, one by one to the
    split that is furthest below its share."""
    shares = _check_shares(fractions, where)
    shares = np.append(shares, max(0.0, 1 - shares.sum()))  # the last is left out

    groups, of_row = np.unique(source.groups[rows], return_inverse=True)
    ages = source.labels["age"][rows].astype(np.float64)
    known = np.isfinite(ages)
    sums = np.bincount(of_row, np.where(known, ages, 0), len(groups))
    counts = np.bincount(of_row, known, len(groups))
    age_bins = np.where(counts > 0, sums // (AGE_BIN * np.maximum(counts, 1)), -1)
    # Groups are ordered by the hash of their smallest id, so the order of the rows has no effect.
    by_id = np.argsort(source.ids[rows], kind="stable")
    first = source.ids[rows][by_id[np.unique(of_row[by_id], return_index=True)[1]]]
    hashes = np.array([_key(seed, name)[0] for name in first.tolist()], "S8")
    order = np.lexsort((first, hashes.view(">u8"), age_bins))

    sizes = np.bincount(of_row, minlength=len(groups)).tolist()
    split_of_group = np.empty(len(groups), int)
    # Python's own numbers: numpy takes three times as long for a few at a time.
    wanted, behind = shares.tolist(), [0.0] * len(shares)
    for group in order.tolist():
        size = sizes[group]
        behind = [late + share * size for late, share in zip(behind, wanted, strict=True)]
        split_of_group[group] = split = behind.index(max(behind))
        behind[split] -= size
    split_of_row = split_of_group[of_row]
    return {name: _filled(name, rows[split_of_row == i], where) for i, name in enumerate(fractions)}


def _check_shares(fractions: Mapping[str, float], where: str) -> np.ndarray:
    """The shares, f64 [K]; raises `UserError` if they are invalid."""
    if wrong := [name for name, share in fractions.items() if not is_number(share)]:
        raise UserError(f"{where}.{wrong[0]}: {fractions[wrong[0]]!r}; set it to a share in 0..1")
    shares = np.array(list(fractions.values()), float)
    if not len(shares) or not np.all((shares > 0) & (shares <= 1)) or shares.sum() > 1 + 1e-9:
        given = ", ".join(f"{name}={share:g}" for name, share in fractions.items()) or "nothing"
        raise UserError(f"{where}: fractions must lie above 0 and sum to at most 1, not {given}")
    return shares


def _check_fold(folds: int, number: int, images: int | None = None) -> None:
    """Raises `UserError` if `images` (None: not known yet) cannot be divided into these folds."""
    if folds < 2 or (images is not None and folds > images):
        most = "" if images is None else f"{images}, the images there are"
        raise UserError(f"{WHERE}.folds: {folds} is not one of 2..{most} (0: no folds)")
    if not 0 <= number < folds:
        raise UserError(f"{WHERE}.fold: {number} is not one of 0..{folds - 1}")


def _check_balanced(fractions: Mapping[str, float], split: str, over: Sequence[str]) -> None:
    """Raises `UserError` for arguments of `balanced` that are invalid for any data."""
    where = f"{WHERE}.balanced"
    if split in fractions:
        raise UserError(
            f"{where}: it makes the split {split!r}; leave that out of {WHERE}.fractions"
        )
    if not over:
        raise UserError(f"{where}.over is empty; name a label, such as ('gender', 'decade')")


def _key(seed: int, name: str) -> tuple[bytes, str]:
    """A sort key that shuffles names."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), str(name)


def _name(path: str) -> str:
    """A file's name without its folder, however the system that wrote it spells accents."""
    return pairing.normal(path).rsplit("/", 1)[-1]


def _filled(split: str, rows: Any, where: str) -> np.ndarray:
    if not len(rows):
        raise UserError(f"{where}: the split {split!r} is empty; give it more images")
    return np.sort(np.asarray(rows, np.int64))
