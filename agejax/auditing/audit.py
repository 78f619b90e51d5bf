"""An audit of a data set: unusable files, duplicates, contradicting labels, leaks and outliers."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from agejax import files
from agejax.data import duplicates, looking, splits
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.evaluation import metrics
from agejax.reporting import audit_figures, audit_page

Splits = Mapping[str, np.ndarray]  # name -> rows int64
AGE_BIN = 5  # years, of the histograms
CONFLICT = 5.0  # years; copies that differ by more are counted separately
OLDEST = 110.0  # years; about one person in ten million reaches it
# Limits on the grey image, 0..255. On UTKFace each except GREY flags under 0.5 % of the images.
FLAT, DARK, BRIGHT = 10.0, 40.0, 220.0  # standard deviation; mean
BLURRED = 10.0  # variance of the Laplacian at looking.SHARPNESS_EDGE
GREY = 1.0  # mean difference between two colour channels


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Properties of the decoded images, each [N].

    Attributes:
      digest: str; equal digests mean equal pixels.
      mean, contrast: mean and standard deviation of the grey values, 0..255.
      sharpness: variance of their Laplacian.
      colour: mean difference between two channels, the larger of two pairs.
    """

    digest: np.ndarray
    mean: np.ndarray
    contrast: np.ndarray
    sharpness: np.ndarray
    colour: np.ndarray

    @classmethod
    def of(cls, source: Source) -> Pixels:
        """Reads every image once."""

        def look(rows: np.ndarray) -> list[tuple[str, float, float, float, float]]:
            return [_look(np.ascontiguousarray(image)) for image in source.take(rows)]

        looked = looking.by_chunks(look, np.arange(len(source.ids)))
        return cls(*(np.array(column) for column in zip(*looked, strict=True)))


def _look(image: np.ndarray) -> tuple[str, float, float, float, float]:
    """uint8 [S, S, 3] -> the fields of `Pixels`."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mean, deviation = (float(x[0, 0]) for x in cv2.meanStdDev(grey))
    red, green, blue = cv2.split(image)
    colour = max(cv2.mean(cv2.absdiff(green, other))[0] for other in (red, blue))
    digest = hashlib.blake2b(image.data, digest_size=16).hexdigest()
    return digest, mean, deviation, looking.sharpness(grey), colour


def audit(source: Source, ways: Mapping[str, Splits]) -> dict[str, Any]:
    """Everything that index.html shows, in the form of audit.json.

    Args:
      ways: {way of splitting: {split: rows}}; leaks are searched between the splits of one way.

    Returns:
      {dataset, fingerprint, images, image_size, skipped, duplicates, conflicts, leakage,
      distribution, outliers}; images are named by their ids.
    """
    pixels = Pixels.of(source)
    # Some builders search no duplicates; images with equal pixels are copies even there.
    groups, photos = (
        duplicates.groups(len(of), None, (pixels.digest.tolist(), of.astype(str).tolist()))
        for of in (source.groups, source.copies)
    )
    source = dataclasses.replace(source, groups=groups, photos=photos)
    copies = _members(photos)
    return {
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "images": len(source.ids),
        "image_size": source.images.shape[1],
        "skipped": skipped(source),
        "duplicates": find_duplicates(source, copies, pixels.digest),
        "conflicts": find_conflicts(source, copies),
        "leakage": {way: find_leaks(source, pixels.digest, parts) for way, parts in ways.items()},
        "distribution": distribution(source),
        "outliers": find_outliers(source, pixels),
    }


def skipped(source: Source) -> dict[str, Any]:
    """{n, reasons: {reason: files}, files: ["name: reason"]} of the unusable files."""
    reasons = Counter(line.rpartition(": ")[2] for line in source.skipped)
    return {
        "n": len(source.skipped),
        "reasons": dict(reasons.most_common()),
        "files": list(source.skipped),
    }


def find_duplicates(
    source: Source, copies: Sequence[np.ndarray], digest: np.ndarray
) -> dict[str, Any]:
    """Groups of copies; in an exact group all decoded images are equal, pixel by pixel."""
    exact = [len(set(digest[rows])) == 1 for rows in copies]

    def count(kind: bool) -> dict[str, int]:
        mine = [len(rows) for rows, is_exact in zip(copies, exact, strict=True) if is_exact == kind]
        return {"groups": len(mine), "images": sum(mine)}

    sizes = Counter(len(rows) for rows in copies)
    return {
        "groups": len(copies),
        "images": sum(map(len, copies)),
        "exact": count(True),
        "near": count(False),
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "listed": [
            {"ids": source.ids[rows], "exact": is_exact}
            for rows, is_exact in zip(copies, exact, strict=True)
        ],
    }


def find_conflicts(source: Source, copies: Sequence[np.ndarray]) -> dict[str, Any]:
    """Groups whose copies have different labels, the largest age difference first."""
    counts = {"groups": 0, "age": 0, "age_over_5_years": 0, "gender": 0, "ethnicity": 0}
    listed = []
    for rows in copies:
        age = source.labels["age"][rows].astype(float)
        known = age[np.isfinite(age)]
        spread = float(np.ptp(known)) if known.size else 0.0
        classes = {name: source.labels[name][rows] for name in source.label_names}
        differ = {name: len(set(values[values >= 0])) > 1 for name, values in classes.items()}
        if not spread and not any(differ.values()):
            continue
        counts["groups"] += 1
        counts["age"] += spread > 0
        counts["age_over_5_years"] += spread > CONFLICT
        for name in differ:
            counts[name] += differ[name]
        named = {
            name: [_class_name(source, name, value) for value in values]
            for name, values in classes.items()
        }
        listed.append({"ids": source.ids[rows], "years_apart": spread, "age": age} | named)
    listed.sort(key=lambda group: -group["years_apart"])
    return counts | {"listed": listed}


def find_leaks(source: Source, digest: np.ndarray, parts: Splits) -> dict[str, Any]:
    """Copies of one picture in two splits.

    Returns:
      {splits: {name: images}, groups: number in more than one split, pairs: for each two splits
      {splits, groups: number in both, exact: how many of these have equal pixels on both sides,
      images: {name: affected images}, shared: images in both, listed: [{name: ids}]}}.
    """
    pairs, groups = [], source.groups
    for pair in itertools.combinations(parts, 2):
        a, b = (parts[name] for name in pair)
        leaking = np.intersect1d(groups[a], groups[b])
        sides = [rows[np.isin(groups[rows], leaking)] for rows in (a, b)]
        equal = sides[0][np.isin(digest[sides[0]], digest[sides[1]])]
        pairs.append(
            {
                "splits": pair,
                "groups": len(leaking),
                "exact": len(np.unique(groups[equal])),
                "images": {name: len(rows) for name, rows in zip(pair, sides, strict=True)},
                "shared": len(np.intersect1d(a, b)),
                "listed": [
                    {
                        name: source.ids[rows[groups[rows] == group]]
                        for name, rows in zip(pair, sides, strict=True)
                    }
                    for group in leaking
                ],
            }
        )
    return {
        "splits": {name: len(rows) for name, rows in parts.items()},
        "groups": splits.leaking_groups(source, parts),
        "pairs": pairs,
    }


def distribution(source: Source) -> dict[str, Any]:
    """Counts the images by label, age, and group.

    Returns:
      {known: {label: images with it}, age: {min, mean, median, max}, edges: bin edges of the
      histograms, years, histograms: {label: {group: images per bin}}, decades: names, table:
      {group of gender x ethnicity: images per decade, and last those of unknown age}}.
    """
    age = source.labels["age"].astype(float)
    known = np.isfinite(age)
    top = AGE_BIN * (np.floor(age[known].max(initial=0) / AGE_BIN) + 1)
    edges = np.arange(0, top + AGE_BIN, AGE_BIN)
    by = {
        label: {name: source.labels[label] == number for number, name in enumerate(names)}
        for label, names in source.label_names.items()
        if np.any(source.labels[label] >= 0)
    }
    everybody = {"all": np.ones(len(age), bool)}
    crossed = {
        f"{a} {b}".removeprefix("all ").removesuffix(" all"): is_a & is_b
        for a, is_a in by.get("gender", everybody).items()
        for b, is_b in by.get("ethnicity", everybody).items()
    }
    unknown = ~np.any(list(crossed.values()), axis=0)
    if unknown.any():
        crossed["unknown"] = unknown
    decades = metrics.decades(age)
    parts = [*(mask for _, mask in decades), ~known]
    return {
        "known": {"age": known.sum()}
        | {label: (source.labels[label] >= 0).sum() for label in source.label_names},
        "age": {
            name: float(of(age[known]))
            for name, of in (("min", np.min), ("mean", np.mean), ("median", np.median),
                             ("max", np.max))
        } if known.any() else {},
        "edges": edges,
        "histograms": {
            label: {name: np.histogram(age[mask & known], edges)[0] for name, mask in part.items()}
            for label, part in ({"all": everybody} | by).items()
        },
        "decades": [*(name for name, _ in decades), "unknown"],
        "table": {
            name: [int((mask & part).sum()) for part in parts] for name, mask in crossed.items()
        },
    }  # fmt: skip


def find_outliers(source: Source, pixels: Pixels) -> dict[str, Any]:
    """{kind: {what: the criterion, n, ids}}; a nearly uniform image counts as no other kind."""
    age = source.labels["age"]
    flat = pixels.contrast < FLAT
    kinds = {
        "implausible age": (
            f"age below 0, or {OLDEST:g} years or more", (age < 0) | (age >= OLDEST),
        ),
        "nearly uniform": (f"standard deviation of grey below {FLAT:g} of 255", flat),
        "dark": (f"mean grey below {DARK:g} of 255", ~flat & (pixels.mean < DARK)),
        "bright": (f"mean grey above {BRIGHT:g} of 255", ~flat & (pixels.mean > BRIGHT)),
        "blurred": (
            f"variance of the Laplacian below {BLURRED:g}, at {looking.SHARPNESS_EDGE} px at most",
            ~flat & (pixels.sharpness < BLURRED),
        ),
        "greyscale": (
            f"colour channels that differ by less than {GREY:g} of 255 in the mean",
            ~flat & (pixels.colour < GREY),
        ),
    }  # fmt: skip
    return {
        kind: {"what": what, "n": found.sum(), "ids": source.ids[found]}
        for kind, (what, found) in kinds.items()
    }


def _members(groups: np.ndarray) -> list[np.ndarray]:
    """Rows of each group of more than one, int64 [N] -> [rows]."""
    order = np.argsort(groups, kind="stable")
    _, start = np.unique(groups[order], return_index=True)
    return [rows for rows in np.split(order, start[1:]) if len(rows) > 1]


def _class_name(source: Source, label: str, value: int) -> str | None:
    return source.label_names[label][value] if value >= 0 else None


def ways_to_split(
    source: Source, files: Mapping[str, str], fractions: Mapping[str, float], seed: int
) -> tuple[dict[str, Splits], list[str]]:
    """The ways of splitting to search for leaks, and remarks about them.

    They are the data set's own splits, those of `files`, and those by `fractions`, made once as
    agejax makes them and once without regard to duplicates.

    Raises:
      UserError: as `splits.read_file` and `splits.by_fraction`, or a file without a known name.
    """
    ways: dict[str, Splits] = {}
    notes = []
    if source.official is not None and np.any(source.official != ""):
        ways["official"] = splits.official(source)
    for name, path in files.items():
        rows, names, unknown = splits.read_file(source, path, f"--split-file {name}")
        if not len(rows):
            raise UserError(f"--split-file {name}: {path} names no image of {source.name}")
        if unknown:
            notes.append(
                f"{name}: {len(unknown):,} of {len(names):,} names in {path} are not in the data, "
                f"the first: {unknown[0]}"
            )
        ways["files"] = {**ways.get("files", {}), name: rows}
    if fractions:
        alone = dataclasses.replace(source, groups=np.arange(len(source.ids)))
        ways["fractions, duplicates kept together"] = splits.by_fraction(source, fractions, seed)
        ways["fractions, image by image"] = splits.by_fraction(alone, fractions, seed)
    return ways, notes


def write(report: Mapping[str, Any], output: pathlib.Path) -> None:
    """Writes audit.json and index.html, each completely or not at all."""
    report = files.clean(report)
    files.write_json(output / "audit.json", report)
    figures = audit_figures.draw(report)
    files.write_text(output / "index.html", audit_page.audit(report, figures))


def summary(report: Mapping[str, Any]) -> str:
    """The counts as text to print."""
    copies, conflicts = report["duplicates"], report["conflicts"]
    lines = [
        f"{report['dataset']}: {report['images']:,} images, {report['skipped']['n']:,} files "
        "skipped",
        f"duplicates: {copies['groups']:,} groups with {copies['images']:,} images, of these "
        f"{copies['exact']['groups']:,} groups of exact copies",
        f"contradicting labels: {conflicts['groups']:,} groups; age {conflicts['age']:,} (over "
        f"{CONFLICT:g} years {conflicts['age_over_5_years']:,}), gender {conflicts['gender']:,}, "
        f"ethnicity {conflicts['ethnicity']:,}",
    ]
    for way, leaks in report["leakage"].items():
        for pair in leaks["pairs"]:
            a, b = pair["splits"]
            lines.append(
                f"{way}: {a} and {b} share {pair['groups']:,} groups, {pair['images'][a]:,} images "
                f"of {a}, {pair['images'][b]:,} of {b}"
            )
    found = ", ".join(f"{kind} {row['n']:,}" for kind, row in report["outliers"].items())
    return "\n".join([*lines, f"outliers: {found}"])
