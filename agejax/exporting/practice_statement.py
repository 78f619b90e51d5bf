"""The performance section of a practice statement, written from a run's stored evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agejax.data import splits
from agejax.evaluation import gates, headlines
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.metrics import SMALLEST_GROUP
from agejax.exporting import card
from agejax.reporting import cells, markdown
from agejax.runs import lineage
from agejax.runs.run import Run
from agejax.training import image_sizes

STATEMENT = """\
# Practice statement, performance section: {name}

Providers of age assurance publish a practice statement (ISO/IEC 27566-1:2025; IEEE 2089.1-2024). \
This is a draft of its section about performance, written by agejax from the stored results of one \
model. It declares no conformity with any standard: no laboratory and no certification body has \
tested the model.

{fair_use}

## What was tested

- Method: an estimate of the age of one face in one still image. Nothing else is looked at: no \
document, no video, no behaviour.
- Model: `{name}`, {backbone} with {parameters:,} parameters, step {step:,}; it sees \
{inside} x {inside} pixels. Its training data has the fingerprint {fingerprint}.
- Answer: an age in years{answer}. A gate with the challenge age T admits everyone whose estimate \
is T or more.
- In tables, {few} Intervals are of 95 %; they describe this one trained model, not another \
training of the same recipe.

Evaluations of images that trained the model, chose its checkpoint or calibrated it are left out.

{results}

## What was not tested

{untested}

## What this statement cannot say

{limits}
"""

CANNOT = (
    "How old anybody is. The true ages of the images are labels of public data, in many sets "
    "annotators' guesses; errors of labels and of the model add up.",
    "How the model does on other people, cameras, light or poses than those of the tested images. "
    "Public photos are not the customers of a shop or of a website.",
    "What a whole service does. Its camera, face finder, retries, fallback to a document and staff "
    "change the rates of false and true accepts.",
    "That a group is treated well because its row looks well. Groups are as the data labels them; "
    "other groups (skin tone, disability, trans people, religious dress) have no labels here.",
    "That rates stay. People, cameras and attacks change, so they must be measured again.",
)

# What age assurance is asked for, and no evaluation of agejax measures.
NEVER = (
    "Presentation attacks: a photo, a screen, a mask, make-up to look older, a generated face.",
    "Live cameras and video, in the light and at the distance of a real use.",
    "Finding the face in a photo: the images are cropped faces.",
    "Several attempts by one person: whether trying again raises the rate of false accepts.",
    "Skin tone as such; ethnicity as labelled is no measurement of it.",
    "Disabilities, scars, glasses, head coverings and make-up, by group.",
    "Privacy, security, acceptability and accessibility, which other sections of the statement "
    "have to cover.",
)  # fmt: skip


ACCEPTS = ("false accepts", "minors", "true accepts", "adults")  # heads of `_accepts`
NO_RESULTS = """\
## Results

None: the run has no evaluation of this step on images with known ages that were held out from \
training. Make one with `python -m agejax.evaluate`."""


def write(run: Run, name: str) -> str:
    """practice_statement.md of a run or released model.

    Args:
      name: what the model is called.
    """
    calibration = Calibration.read(run.workdir, run.step, run.config.eval.get("image_size", 0))
    learned = [node["data"] for node in lineage.runs(lineage.of(run))]
    found = [
        result
        for _, result in card.evaluations(run, later=True)
        if result["step"] == run.step
        and "age" in result["groups"]
        and _held_out(result, run, learned)
    ]
    found.sort(key=lambda result: result["split"] == "all")  # the run's own data first
    return STATEMENT.format(
        name=name,
        fair_use=card.FAIR_USE,
        backbone=run.config.model.name,
        parameters=sum(array.size for array in run.params.values()),
        step=run.step,
        inside=image_sizes.of_evaluation(run.config),
        fingerprint=run.fingerprint,
        answer=", with an interval that is meant to hold the label "
        f"{1 - calibration.alpha:.0%} of the time" if calibration else "",
        few=cells.FEW,
        results="\n\n".join(_results(result, run) for result in found) or NO_RESULTS,
        untested=markdown.bullets(_untested(found)),
        limits=markdown.bullets(CANNOT),
    )  # fmt: skip


def _results(result: Mapping[str, Any], run: Run) -> str:
    """One evaluation: on whom, errors, gates, intervals, image quality."""
    parts = [
        f"## Results on {result['dataset']}, {result['split']}: {result['n']:,} images",
        _role(result, run),
        card.known_to_ancestors(result).strip(),
        *_people(result),
        *_errors(result),
        *_gates(result),
        *_intervals(result),
        *_quality(result),
        *_robustness(result),
        *_unprocessed(result),
    ]
    return "\n\n".join(part for part in parts if part)


def _held_out(result: Mapping[str, Any], run: Run, learned: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the images neither trained the model, chose its checkpoint nor calibrated it.

    Args:
      learned: "data" of the model's lineage: its own, and that of the models it learned from.
    """
    if result["split"] != "all":  # of the run's own data
        return result["split"] not in ("train", "val", splits.CALIBRATION)
    mixture = "+".join(sorted(run.config.data.get("mixture") or ()))  # as `mixture.load` names it
    same_name = result["dataset"] in (mixture, *(name for one in learned for name in one["names"]))
    # Folders of users share one name; evaluations once did not record what they were of.
    mark = result.get("fingerprint")
    same_set = same_name and (mark is None or result["dataset"] in card.TERMS)
    return mark not in [one["fingerprint"] for one in learned] and not same_set


def _role(result: Mapping[str, Any], run: Run) -> str:
    if result["split"] == "all":
        return "This is other data than the data that trained the model and those it learned from."
    if card.keeps_copies_together(run):
        return "These images were held out from training; copies of one photo share a split."
    return "These images were held out from training, in public splits that may separate copies."


def _people(result: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (f"{by}: {group['name']}", cells.count(group["n"]), f"{group['n'] / result['n']:.1%}")
        for by in ("decade", "gender", "ethnicity")
        for group in result["groups"]["age"].get(by, ())
    ]
    yield "### On whom"
    yield markdown.table(("group, as labelled", "images", "share"), rows)


def _errors(result: Mapping[str, Any]) -> Iterator[str]:
    scores, of = result["age"], result.get("headlines", {})
    yield "### Errors of the estimated age"
    lines = [f"Mean absolute error: {scores['mae']:.2f} years {_interval(scores['mae_ci95'])}."]
    if of:
        lines += [
            f"Bias (estimate minus label): {of['bias']:+z.2f} years {_interval(of['bias_ci95'])}; "
            f"standard deviation of the error: {of['sd']:.2f} years.",
            "Share of the images within x years, Acc(x): "
            + ", ".join(f"{of['within'][x]:.1%} for x = {x}" for x in (1, 3, 5, 10))
            + ".",
        ]
        if mean := of.get("cells"):
            lines.append(
                f"Mean over {mean['filled']} of {mean['of']} cells (each sex at each age from "
                f"{headlines.CELL_YEARS[0]} to {headlines.CELL_YEARS[-1]}, as NIST's FATE AEV "
                f"reports): {mean['mae']:.2f} years {_interval(mean['mae_ci95'])}; the smallest "
                f"cell has {mean['smallest']:,} image{'s' * (mean['smallest'] != 1)}."
            )
    else:
        lines.append(f"Bias (estimate minus label): {scores['bias']:+z.2f} years.")
    for by, gap in result.get("gaps", {}).get("age", {}).items():
        large, small = gap["largest"], gap["smallest"]
        ratio = (
            "" if gap["ratio"] is None
            else f", {gap['ratio']:.2f} times {_interval(gap['ratio_ci95'])}"
        )  # fmt: skip
        lines.append(
            f"Largest gap by {by}: {large['name']} {large['mean']:.2f} years, {small['name']} "
            f"{small['mean']:.2f}; {gap['difference']:.2f} years "
            f"{_interval(gap['difference_ci95'])}{ratio}."
        )
    yield markdown.bullets(lines)
    rows = [
        (f"{by}: {group['name']}", cells.count(group["n"]), f"{group['mae']:.2f}",
         _interval(group["mae_ci95"]), f"{group['bias']:+z.2f}")
        for by, groups in result["groups"]["age"].items()
        if by != "worst"
        for group in groups
    ]  # fmt: skip
    heads = ("group, as labelled", "images", "mean absolute error, years", "95 %", "bias")
    yield markdown.table(heads, rows)
    weak = [g for g in result.get("weak_groups", {}).get("groups", ()) if g["confirmed"]]
    if weak:
        yield "Groups with larger errors that a search found, and other images confirmed:"
        yield markdown.bullets(
            f"{group['name']}: {group['mae']:.2f} years {_interval(group['mae_ci95'])}, "
            f"n = {group['n']:,}."
            for group in weak
        )
    if years := of.get("by_year"):
        yield "By single year of age:"
        yield markdown.table(
            ("age", *heads[1:]),
            [
                (year["name"], cells.count(year["n"]), f"{year['mae']:.2f}",
                 _interval(year["mae_ci95"]), f"{year['bias']:+z.2f}")
                for year in years
            ],
        )  # fmt: skip


def _gates(result: Mapping[str, Any]) -> Iterator[str]:
    found = result.get("gates")
    if found is None:
        return
    yield "### Age gates"
    yield (
        "False accepts are those of 14 to 17 years who are admitted, true accepts those of 18 and "
        "more. Younger minors are in the table by age. Intervals are Wilson's."
    )
    yield markdown.table(
        ("challenge age", *ACCEPTS),
        [(row["threshold"], *_accepts(row)) for row in found["challenge"]],
    )
    if limits := found.get("limits"):
        yield markdown.bullets(_limit(row) for row in limits)
    if groups := found.get("groups"):
        yield f"At Challenge-{gates.USUAL}, by group:"
        yield markdown.table(
            ("group, as labelled", *ACCEPTS),
            [
                (f"{by}: {group['name']}", *_accepts(row))
                for by, of in groups.items()
                for group in of
                for row in group["challenge"]
                if row["threshold"] == gates.USUAL
            ],
        )
    for at in found.get("by_age", ()):
        yield f"Who is admitted at Challenge-{at['threshold']}, by the labelled age:"
        yield markdown.table(
            ("age", "admitted", "images", "mean error of the admitted, years"),
            [
                (row["name"], *cells.rate(row),
                 "" if row["mean_error"] is None else f"{row['mean_error']:+z.1f}")
                for row in at["rows"]
            ],
        )  # fmt: skip


def _limit(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    top = (
        f"95 % interval {low} or more, with no upper bound: that takes {row['needed']:,} minors, "
        "none of whom is admitted"
        if high is None
        else f"95 % interval {low} to {high}"
    )
    return (
        f"False accepts of {row['limit']:.0%} or less need the challenge age {row['threshold']} "
        f"({top}); there, {cells.rate(row['fpr'])[0]} of {row['fpr']['n']:,} minors are admitted."
    )


def _accepts(row: Mapping[str, Any]) -> tuple[str | int, ...]:
    return (*cells.rate(row["fpr"]), *cells.rate(row["tpr"]))


def _intervals(result: Mapping[str, Any]) -> Iterator[str]:
    found = result.get("uncertainty", {})
    if "age" not in found:
        return
    yield "### Age intervals"
    yield (
        f"Meant to hold the label of {1 - found['alpha']:.0%} of the images; fitted to "
        f"{found['validation_images']:,} images of the split {found['fitted_to']}."
    )
    everybody = found["age"]["by_decade"]
    rows = [("all", everybody)] + [
        (f"{by}: {group['name']}", group)
        for by, groups in found["age"]["groups"].items()
        for group in groups
    ]
    yield markdown.table(
        ("group, as labelled", "images", "held", "mean width, years"),
        [
            (name, cells.count(of["n"]), f"{of['coverage']:.1%}", f"{of['width']:.1f}")
            for name, of in rows
        ],
    )


def _quality(result: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (f"{measure} {row['name']}", cells.count(row["n"]), f"{row['mae']:.2f}")
        for measure, of in result.get("quality", {}).items()
        for row in of
    ]
    if rows:
        yield "### Image quality"
        yield markdown.table(("measure", "images", "mean absolute error, years"), rows)


def _robustness(result: Mapping[str, Any]) -> Iterator[str]:
    found = result.get("robustness", {})
    if "age" not in found.get("targets", {}):
        return
    yield "### Degraded images, and views of one face"
    yield (
        f"On {found['n']:,} of the images, one of each group of copies. The change is that of the "
        "error, against the same images as they are."
    )
    yield markdown.table(
        ("degradation", "mean absolute error, years", "change", "95 %", "interval held"),
        [
            (f"{kind}: {row['name']}", f"{row['mae']:.2f}", f"{row['change']:+z.2f}",
             _interval(row["change_ci95"]),
             f"{row['coverage']:.1%}" if "coverage" in row else "")
            for kind, rows in found["targets"]["age"].items()
            for row in rows
        ],
    )  # fmt: skip
    if spread := found.get("stability"):
        yield (
            f"Over {spread['views']} views of one face (mirrored, turned, moved, brighter, darker, "
            f"compressed) the estimate has a standard deviation of {spread['sd']:.2f} years "
            f"{_interval(spread['sd_ci95'])} and a range of {spread['range']:.2f} years in the "
            "mean."
        )
    if lost := found.get("undetected"):
        yield (
            f"In {lost['images']:,} of these {found['n']:,} images the face detector finds no face."
        )


def _unprocessed(result: Mapping[str, Any]) -> Iterator[str]:
    found = result.get("unprocessed")
    if not found:
        return
    yield "### Images that could not be processed"
    lost = found.get("undecoded")
    yield (
        f"{found['images']:,} images of the whole data set could be used; files that could not: "
        f"{found['files']:,}."
        + (
            ""
            if lost is None
            else f" {lost:,} of these files are images that cannot be decoded, or in which no face "
            "was found when the data was aligned."
        )
    )
    rows = [
        (f"{by}: {group['name']}", group["lost"], *cells.rate(group))
        for by, groups in found.get("groups", {}).items()
        for group in groups
    ]
    if rows:
        heads = ("group, as labelled", "not decoded", "share", "images")
        yield markdown.table(heads, rows)


def _untested(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What this model's stored evaluations lack, then what no evaluation measures."""
    if not any(result["split"] != "all" for result in results):
        yield "Images held out from the data of the training: no such evaluation is stored."
    if not any(result["split"] == "all" for result in results):
        yield (
            "Other data than that of the training. Errors there are usually much larger "
            "(`python -m agejax.evaluate --workdir=RUN --dataset=NAME --source=PATH`)."
        )
    for what, key in (
        ("Age gates by group", lambda r: r.get("gates", {}).get("groups")),
        ("Intervals of the estimated age", lambda r: r.get("uncertainty", {}).get("age")),
        ("The error by image quality", lambda r: r.get("quality")),
        ("Robustness to blur, noise, compression, exposure and covered faces, and stability over "
         "views of one face (`python -m agejax.evaluate --robustness`)",
         lambda r: r.get("robustness")),
        ("Which images could not be processed, by group", lambda r: r.get("unprocessed")),
    ):  # fmt: skip
        if not any(map(key, results)):
            yield f"{what}: not among the stored results."
    for result in results:
        names = [
            f"{group['name']} ({group['n']:,})"
            for by, groups in result["groups"]["age"].items() if by != "worst"
            for group in groups if group["n"] < SMALLEST_GROUP
        ]  # fmt: skip
        if names:
            yield (
                f"Of {result['dataset']}, {result['split']}, groups with too few images to tell: "
                f"{', '.join(names)}."
            )
        minors = [
            f"{group['name']} ({group['challenge'][0]['fpr']['n']:,})"
            for groups in result.get("gates", {}).get("groups", {}).values()
            for group in groups if group["challenge"][0]["fpr"]["n"] < SMALLEST_GROUP
        ]  # fmt: skip
        if minors:
            yield (
                f"Of {result['dataset']}, {result['split']}, groups with too few minors of 14 to "
                f"17 to tell how many an age gate admits: {', '.join(minors)}."
            )
    for label in ("gender", "ethnicity"):
        if not any(label in result["groups"]["age"] for result in results):
            yield f"Groups by {label}: the tested images have no such labels."
    yield from NEVER


def _interval(bounds: Sequence[float | None]) -> str:
    return cells.interval(bounds, digits=2)
