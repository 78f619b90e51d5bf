"""A datasheet of the data that a run used, under the headings of Datasheets for Datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agejax.data import builders
from agejax.exporting import card
from agejax.labels import DECADES
from agejax.reporting import markdown
from agejax.runs import lineage
from agejax.runs.run import Run

SPLITS = "the run's splits"  # the way of splitting in the audit whose leaks the sheet reports

SHEET = """\
# Datasheet: {names}, as the model {name} used it

The headings are those of "Datasheets for Datasets" (Gebru et al. 2021). agejax wrote what the \
files and the run show. What only the publisher of the data can answer is marked so.

## Motivation

{motivation}

Why the data was made, by whom and with whose money: ask the publisher.

## Composition

{composition}

{sensitive}

## Collection process

{collection}

How the photos were found, whether the people shown agreed, whether an ethics board looked at it, \
and who labelled them: ask the publisher.

## Preprocessing, cleaning, labelling

{preprocessing}

## Uses

- This run trained and scored a model of {labels} on it.
- {fair_use}

## Distribution

{terms}

agejax does not distribute the data.

## Maintenance

The publisher maintains the data, or nobody does. The fingerprint `{fingerprint}` stands for the \
exact content that was used: images, labels, order, groups of copies. agejax resumes a run only on \
the same content.

## What this datasheet cannot say

{limits}
"""

PEOPLE = """\
The images show people. Faces identify people, and a label of gender or ethnicity is an \
annotator's guess about a face. Treat the data as sensitive."""
DRAWN = "The faces are drawn by a program: they show nobody."

CANNOT = (
    "Whether the labels are true. Contradictions between copies show that some are not; an error "
    "that all copies share shows nowhere.",
    "Who is missing. Only groups that the data labels are counted; nothing is known of countries, "
    "skin tone, disabilities, or the reasons why somebody's photo is in the data.",
    "Whether the people shown agreed to any of this, or still do.",
    "Whether copies were all found: the search compares small thumbnails, so two photos of one "
    "person, taken a moment apart, count as two.",
    "What data earlier models saw that this one learned from: see the model card.",
)  # fmt: skip


def write(run: Run, name: str, report: Mapping[str, Any] | None) -> str:
    """datasheet.md of the data of a run or released model.

    Args:
      name: what the model is called.
      report: of `auditing.audit.audit`, of the run's data with the run's splits under `SPLITS`;
        None where the data is not available.
    """
    names = lineage.names(run.config.data)
    return SHEET.format(
        names=" and ".join(names),
        name=name,
        motivation=markdown.bullets(f"`{each}`: {_about(each)}" for each in names),
        composition="\n\n".join(
            _unaudited(run) if report is None else _composition(report, run)
        ),
        sensitive=DRAWN if not any(builders.find(each).DOWNLOAD for each in names) else PEOPLE,
        collection=markdown.bullets(_collection(names)),
        preprocessing=markdown.bullets(_preprocessing(run)),
        labels=", ".join(run.facts.labels),
        fair_use=card.FAIR_USE,
        terms=markdown.bullets(f"{card.TERMS.get(n, f'{n}: read its terms')}." for n in names),
        fingerprint=run.fingerprint,
        limits=markdown.bullets(CANNOT),
    )  # fmt: skip


def _about(name: str) -> str:
    """The first sentence about a data set."""
    doc = builders.find(name).__doc__ or ""
    return " ".join(doc.strip().partition("\n\n")[0].split())


def _collection(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        where = builders.find(name).DOWNLOAD
        if name in card.TERMS and where:
            yield f"`{name}`: {where}."
        elif where:
            yield f"`{name}`: files of the person who trained the model; ask them."
        else:
            yield f"`{name}`: drawn by a program; it shows nobody."


def _unaudited(run: Run) -> Iterator[str]:
    yield (
        "The data was not available when this sheet was written, so it was not audited: copies, "
        "contradicting labels, leaks between splits and outliers are not known. Of the training "
        "images the run keeps this:"
    )
    yield card.training(run)


def _composition(report: Mapping[str, Any], run: Run) -> Iterator[str]:
    shown = report["distribution"]
    known = shown["known"]
    yield markdown.bullets(_counts(report))
    age = shown["age"]
    if age:
        minors = sum(
            row[i] for row in shown["table"].values()
            for i, decade in enumerate(shown["decades"]) if decade in DECADES[:2]
        )  # fmt: skip
        yield (
            f"Ages run from {age['min']:.0f} to {age['max']:.0f} years (mean {age['mean']:.1f}, "
            f"median {age['median']:.0f}). {minors:,} images are labelled younger than 20 years: "
            "they show children and teenagers."
        )
    yield "Images by group, as labelled, and decade of age:"
    yield markdown.table(
        ("group", *shown["decades"], "all"),
        [(group, *row, sum(row)) for group, row in shown["table"].items()],
    )
    yield "Labels of the images:"
    yield markdown.table(
        ("label", "known", "unknown"),
        [(name, n, report["images"] - n) for name, n in known.items()],
    )
    yield "What the run kept of its training images:"
    yield card.training(run)
    yield "Errors, noise and redundancies that the audit found:"
    yield markdown.bullets(_flaws(report))


def _counts(report: Mapping[str, Any]) -> Iterator[str]:
    skipped = report["skipped"]
    yield f"Each instance is one image of one face. {report['images']:,} images could be used."
    if skipped["n"]:
        reasons = "; ".join(f"{reason}: {n:,}" for reason, n in skipped["reasons"].items())
        yield f"Files that could not be used: {skipped['n']:,} ({reasons})."
    sizes = report["leakage"].get(SPLITS, {}).get("splits", {})
    if sizes:
        splits = ", ".join(f"{name} {n:,}" for name, n in sizes.items())
        yield f"The run's splits: {splits}."
        if rest := report["images"] - sum(sizes.values()):
            yield f"{rest:,} images are in none of them."


def _flaws(report: Mapping[str, Any]) -> Iterator[str]:
    copies, conflicts = report["duplicates"], report["conflicts"]
    yield (
        f"Copies: {copies['groups']:,} groups of near or exact copies with {copies['images']:,} "
        f"images; in {copies['exact']['groups']:,} of them all images are equal, pixel by pixel."
    )
    yield (
        f"Copies with labels that contradict each other: {conflicts['groups']:,} groups. Ages "
        f"differ in {conflicts['age']:,}, by more than 5 years in "
        f"{conflicts['age_over_5_years']:,}; gender in {conflicts['gender']:,}, ethnicity in "
        f"{conflicts['ethnicity']:,}."
    )
    leaks = report["leakage"].get(SPLITS, {})
    for pair in leaks.get("pairs", ()):
        if pair["groups"]:
            a, b = pair["splits"]
            yield f"Leaks: {a} and {b} share {pair['groups']:,} groups of copies."
    if leaks and not leaks["groups"]:
        yield "Leaks: no group of copies stands in two of the run's splits."
    for kind, row in report["outliers"].items():
        yield f"Outliers, {kind} ({row['what']}): {row['n']:,}."


def _preprocessing(run: Run) -> Iterator[str]:
    config = lineage.portable(run.config)
    size = config["data"]["image_size"]
    yield f"Each image is cropped to its centre square and resized to {size} pixels."
    edits = config["data"].get("edits", {})
    changed = [f"{key} = {value!r}" for key, value in edits.items() if value and key != "seed"]
    yield (
        f"Before it was split, the data was edited: {'; '.join(changed)}." if changed
        else "Nothing was removed or relabelled before it was split."
    )  # fmt: skip
    yield f"Splits: {card.split_in_words(config['data']['split'])}."
    kind = config["sampling"]["kind"]
    yield (
        "Training draws every image equally often." if kind == "uniform"
        else f"Training draws rare ages or classes more often (sampling `{kind}`), so it did not "
        "see the shares above."
    )  # fmt: skip
    if kept := config["sampling"].get("keep"):
        yield f"Of the training images, only these shares of classes were drawn: {kept!r}."
    yield "The raw files are not changed and not part of this folder."
