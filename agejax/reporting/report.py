"""An evaluation's report.html, one file that opens offline, and its charts under figures/."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from agejax import files
from agejax.errors import UserError
from agejax.evaluation import metrics, uncertainty
from agejax.evaluation.calibration import Calibration
from agejax.explanations.subject import explainer
from agejax.logging import console
from agejax.reporting import cells, compared, figures, gates, headlines, page, plots, robustness
from agejax.reporting.plots import Chart
from agejax.runs import lineage
from agejax.version import __version__

if TYPE_CHECKING:
    from agejax.evaluation.scored import Scored

FILE = "report.html"
FACES = 9  # faces shown of each kind
EXPLAINED = 6  # explanations shown of the worst faces

ABOUT = (
    "The ages, genders and ethnicities in face data are annotators' guesses about people in "
    "photographs, not facts about them. This page shows how well a model repeats such guesses. It "
    "is for research only: no decision about a person may rest on it."
)
LEGEND = {
    plots.BLUE: "Blue: the model's results. Points are means with 95 % bootstrap intervals that "
    "resample groups of copies; a dashed line is the mean of all images.",
    plots.ORANGE: "Orange: look here first. The group with the largest error, intervals that "
    "contain the true age less often than chance allows, or a group in which the compared run is "
    "better. In a chart of lines, orange is a second line, and the chart names it; in a chart of "
    "who is let in, it marks minors.",
    figures.PALE: f"Pale: fewer than {metrics.SMALLEST_GROUP} images, so the figure is very "
    "uncertain; or no difference shown.",
}
HEADS = {"mae": "MAE", "mae_ci95": "95 % interval", "accuracy_ci95": "95 % interval"}
FIRST = ("age", "gender", "ethnicity")  # targets in the order of the page; others follow


def write(
    output: pathlib.Path,
    scored: Scored,
    result: Mapping[str, Any],
    calibration: Calibration | None,
) -> None:
    """Writes report.html and figures/NAME.png.

    Args:
      result: the contents of metrics.json, the source of every figure on the page.
    """
    charts = draw(scored, result, calibration)
    files.write_text(output / FILE, build(scored, result, charts))
    folder = output / "figures"
    folder.mkdir(exist_ok=True)
    for name, chart in charts.items():
        files.write_bytes(folder / f"{name.replace(' ', '-')}.png", chart.png)


# ------------------------------------------------------------------------------------------- charts


def draw(
    scored: Scored, result: Mapping[str, Any], calibration: Calibration | None
) -> dict[str, Chart]:
    """Draws every chart that the predictions allow; file name -> chart."""
    charts: dict[str, Chart] = {}
    for target, groups in result["groups"].items():
        for by, rows in groups.items():
            if by != "worst":
                name = f"{target} by {by}"
                charts[name] = _by_group(target, by, rows, result[target])
    charts |= _ages(scored, result) | _classes(scored, calibration)
    charts |= _intervals(scored, result, calibration) | compared.charts(result)
    if "gates" in result:
        charts |= gates.charts(result["gates"]) | headlines.charts(result["headlines"])
    if "robustness" in result:
        alpha = calibration.alpha if calibration else None
        charts |= robustness.charts(result["robustness"], alpha)
    if "quality" in result:
        charts["quality"] = figures.error_by_quality(result["quality"], result["age"]["mae"])
    curves = scored.run.workdir / "metrics.jsonl"
    if curves.exists():
        charts |= {
            f"training {name.replace('/', ' ')}": chart
            for name, chart in plots.training_curves(curves).items()
        }
    return charts | _faces(scored)


def _by_group(
    target: str, by: str, rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]
) -> Chart:
    key = "mae" if "mae" in scores else "accuracy"
    return figures.error_by_group(f"{target} by {by}", rows, key, scores[key])


def _ages(scored: Scored, result: Mapping[str, Any]) -> dict[str, Chart]:
    if "age" not in result:
        return {}
    age, predicted = scored.labels["age"], scored.predictions["age"]
    known = np.isfinite(age)
    errors = {"all": np.abs(predicted - age)[known]}
    for name, part in metrics.partitions(scored.labels, scored.label_names).get("gender", ()):
        if (part & known).any():
            errors[name] = np.abs(predicted - age)[part & known]
    charts = {
        "age": figures.predicted_against_true(age[known], predicted[known]),
        "cumulative score": figures.cumulative_score(errors),
    }
    if "decade" in result["groups"]["age"]:
        charts["bias"] = figures.bias_by_decade(result["groups"]["age"]["decade"])
    return charts


def _classes(scored: Scored, calibration: Calibration | None) -> dict[str, Chart]:
    charts = {}
    scaled = calibration.probabilities(scored.predictions) if calibration else {}
    for name, p in scored.predictions.items():
        label = scored.labels.get(name)
        if p.ndim < 2 or label is None or not (label >= 0).any():
            continue
        known = label >= 0
        charts[f"{name} confusion"] = figures.confusion(
            name, label[known], p[known].argmax(axis=1), scored.label_names[name]
        )
        if name in scaled:
            charts[f"{name} reliability"] = figures.reliability(
                name,
                uncertainty.reliability(p, label),
                uncertainty.reliability(scaled[name], label),
            )
    return charts


def _intervals(
    scored: Scored, result: Mapping[str, Any], calibration: Calibration | None
) -> dict[str, Chart]:
    if calibration is None or "marginal" not in result["uncertainty"].get("age", {}):
        return {}
    low, high = calibration.intervals(scored.predictions)["age"]
    error = np.abs(scored.predictions["age"] - scored.labels["age"])
    rows = [row for by in result["uncertainty"]["age"]["groups"].values() for row in by]
    width = high - low
    return {
        "coverage": figures.interval_coverage(rows, 1 - calibration.alpha),
        "risk": figures.risk_coverage(
            {
                "ordered by interval width": uncertainty.risk_coverage(error, width),
                "in random order": uncertainty.risk_coverage(error, np.zeros(len(error))),
            }
        ),
    }


def _faces(scored: Scored) -> dict[str, Chart]:
    """Faces with the best, typical and worst ages, and what the worst ages rest on."""
    age, predicted = scored.labels.get("age"), scored.predictions.get("age")
    if age is None or predicted is None or not np.isfinite(age).any():
        return {}
    error = np.abs(predicted - age)
    alone = np.zeros(len(age), bool)  # the first of each group of copies
    alone[np.unique(scored.duplicates, return_index=True)[1]] = True
    rows = np.flatnonzero(np.isfinite(age) & alone)
    order = rows[np.argsort(error[rows], kind="stable")]
    middle = max(len(order) // 2 - FACES // 2, 0)
    kinds = {
        "best": order[:FACES],
        "typical": order[middle : middle + FACES],
        "worst": order[::-1][:FACES],
    }
    charts = {
        f"{kind} faces": figures.faces(
            f"the {kind} predictions",
            scored.source.take(scored.rows[some]),
            [_caption(scored, i) for i in some],
        )
        for kind, some in kinds.items()
    }
    explained = kinds["worst"][:EXPLAINED]
    images = scored.source.take(scored.rows[explained])
    try:
        explain_one = explainer(scored.run, "age", "grad_cam")
        heats = np.stack([explain_one(image)[0].heat for image in images])
    except UserError as error:  # no feature maps, or no network
        console.note(f"the report has no saliency maps: {error}")
        return charts
    captions = [_caption(scored, i) for i in explained]
    return charts | {"saliency": figures.saliency(images, heats, captions)}


def _caption(scored: Scored, i: int) -> str:
    """True and predicted labels, in two lines."""
    lines = [f"true {scored.labels['age'][i]:.0f}", f"predicted {scored.predictions['age'][i]:.0f}"]
    for label in ("gender", "ethnicity"):
        names, p = scored.label_names.get(label), scored.predictions.get(label)
        if not names:
            continue
        known = int(scored.labels[label][i])
        lines[0] += f", {names[known] if known >= 0 else 'unknown'}"
        if p is not None:
            lines[1] += f", {names[int(p[i].argmax())]}"
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------- page


def build(scored: Scored, result: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    """Renders report.html."""
    targets = sorted(result["groups"], key=lambda name: (*FIRST, name).index(name))
    lead = page.facts(_facts(scored, result)) + page.paragraph(ABOUT)
    lead += "".join(page.cards(_headline(target, result)) for target in targets)
    lead += page.legend(LEGEND)
    sections = [
        *(_target(target, result, charts) for target in targets),
        headlines.section(result, charts),
        gates.section(result.get("gates"), charts),
        _section(
            "Image quality",
            "The error where images are dark or blurred. Luminance is the mean grey; Laplacian and "
            "FFT fall where an image is blurred; BRISQUE rises where it is distorted.",
            charts,
            ("quality",),
        ),
        _failures(result),
        *robustness.sections(result.get("robustness"), charts),
        *compared.sections(result, charts),
        _section(
            "Faces",
            "The best, typical and worst predictions of the age. Look at the worst for wrong "
            "labels and bad crops before you blame the model. The maps (Grad-CAM) show what these "
            "rest on.",
            charts,
            ("best faces", "typical faces", "worst faces", "saliency"),
        ),
        _unprocessed(result.get("unprocessed")),
        _section(
            "Training",
            "The run's metrics by step.",
            charts,
            [name for name in charts if name.startswith("training ")],
        ),
    ]
    return page.page(scored.name, lead, sections)


def _facts(scored: Scored, result: Mapping[str, Any]) -> dict[str, Any]:
    """What was scored, on what and when."""
    run, config = scored.run, scored.run.config
    many = isinstance(run.params, list)  # an ensemble's members
    parameters = sum(int(np.size(array)) for array in jax.tree.leaves(run.params))
    model = f"{config.model.name}, {parameters:,} parameters"
    training = f"{_duration(config.total)} on {lineage.data_name(config.data)}; the weights of "
    training += f"step {run.step:,}"
    if many:
        model = f"an ensemble of {len(run.params)} networks, {parameters:,} parameters"
        training = "each network by itself, as its own run describes"
    if scored.fitted:
        model, training = f"{config.model.name}, frozen", scored.fitted
    size = result.get("image_size", config.data.image_size)
    return {
        "Backbone": model,
        "Image size": f"{size} x {size} pixels",
        "Training": training,
        "Scored on": f"{scored.source.name}, split {scored.split}, n = {result['n']:,} images",
        "Date": result["date"],
        "Written by": f"agejax {__version__}",
    }


def _duration(total: Mapping[str, Any]) -> str:
    """A duration such as {"epochs": 24}, in words."""
    return " ".join(f"{value:,.12g} {unit}" for unit, value in total.items() if value is not None)


def _headline(target: str, result: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a target: first those of its worst group, then those of all images."""
    scores, worst = result[target], result["groups"][target].get("worst")
    shown = {}
    if worst:
        name = f"{target}: worst group, {worst['name']} (n = {worst['n']:,})"
        shown[name] = f"{worst['mae']:.2f}" if "mae" in worst else f"{worst['accuracy']:.1%}"
    if "mae" in scores:
        low, high = scores["mae_ci95"]
        return shown | {
            f"{target}: MAE in years [{low:.2f}, {high:.2f}]": f"{scores['mae']:.2f}",
            f"{target}: within 5 years": f"{scores['cs5']:.1%}",
            f"{target}: bias in years": f"{scores['bias']:+.2f}",
        }
    low, high = scores["accuracy_ci95"]
    name = f"{target}: accuracy [{low:.1%}, {high:.1%}]"
    return shown | {name: f"{scores['accuracy']:.1%}"}


def _target(target: str, result: Mapping[str, Any], charts: Mapping[str, Chart]) -> page.Section:
    """All about a target: true against predicted, errors by group, how certain it is."""
    first = (target, "bias") if target == "age" else (f"{target} confusion",)
    whole = [page.figure(charts[name]) for name in first if name in charts]
    groups = [
        page.figure(charts[f"{target} by {by}"], page.listing("as a table", *_figures(rows)))
        for by, rows in result["groups"][target].items()
        if by != "worst"
    ]
    text = page.columns(whole[:1] + groups + whole[1:]) + _certainty(target, result, charts)
    return page.Section(target[:1].upper() + target[1:], text)


# On the split that it was fitted to, a calibration is right by making.
FITTED = (
    " These are the images of this page, so the figures below show how well it was fitted, not "
    "whether it holds: evaluate another split for that."
)
# A flaw of val, which calibrates unless config.data.split.calibration_of_val splits it.
CHOSEN = " They also chose the checkpoint, which makes the intervals a little too narrow."


def _certainty(target: str, result: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    """How well a target's probabilities or intervals are calibrated; "" where it has neither."""
    found = result.get("uncertainty")
    if found is None:
        return page.subheading("Calibration") + page.paragraph(
            "Not measured: temperatures and intervals are fitted to the run's validation images, "
            "which were not available."
        )
    of, split = found.get(target, {}), found["fitted_to"]
    fitted = (
        f"fitted to {found['validation_images']:,} images of the split {split} and measured on the "
        f"images of this page.{CHOSEN if split == 'val' else ''}"
        f"{FITTED if split == result['split'] else ''}"
    )
    if "temperature" in of:
        keys = ("temperature", "ece", "ece_scaled", "nll_scaled")
        heads = ("temperature", "ECE", "ECE, scaled", "log loss, scaled")
        text = page.paragraph(
            f"Temperature scaling, {fitted} The expected calibration error (ECE) is the mean "
            "distance between a prediction's confidence and its accuracy."
        ) + page.table(heads, [[f"{of[key]:.3f}" for key in keys]])
        names: Sequence[str] = (f"{target} reliability",)
    elif "marginal" in of:
        both = {"one width for all": of["marginal"], "a width by decade": of["by_decade"]}
        rows = [
            (kind, f"{c['coverage']:.1%}", cells.band(c["band95"]), f"{c['width']:.1f}")
            for kind, c in both.items()
        ]
        heads = ("intervals", "coverage", "range that chance allows", "mean width, years")
        text = page.paragraph(
            f"Intervals that contain the true age {1 - found['alpha']:.0%} of the time (split "
            f"conformal), {fitted} They have one width for all images, or one for each decade of "
            "the prediction. Grey bars show the range that chance allows."
        ) + page.table(heads, rows)
        names = ("coverage", "risk") if target == "age" else ()
    else:
        return ""
    shown = [page.figure(charts[name]) for name in names if name in charts]
    # The first chart is the highest: the text and the other charts stand beside it.
    blocks = [f"<div>{text}{''.join(shown[1:])}</div>", *shown[:1]]
    return page.subheading("Calibration") + page.columns(blocks)


def _failures(result: Mapping[str, Any]) -> page.Section:
    """The groups that a tree found and another half judged, and how many labels are suspected."""
    found, suspects = result.get("weak_groups"), result.get("suspects", {"n": 0})
    text = ""
    if found and found["groups"]:
        rows = [
            (
                row["name"], row["n"], f"{row['mae']:.2f}", cells.interval(row["mae_ci95"], 2),
                f"{row['found_mae']:.2f}", "yes" if row["confirmed"] else "no",
            )
            for row in found["groups"]
        ]  # fmt: skip
        heads = ("group", "n", "MAE, years", "95 % interval", "MAE where found", "confirmed")
        text += page.paragraph(
            "Groups with large errors that a shallow tree over labels and image quality found on "
            f"one half of the images ({found['found_on']:,}), judged on the other half "
            f"({found['judged_on']:,}, MAE {found['mae']:.2f} years). Confirmed: above the MAE of "
            "that half with 95 % confidence for all groups together."
        ) + page.table(heads, rows)
    if suspects["n"]:
        reasons = ", ".join(f"{kind}: {n:,}" for kind, n in suspects["reasons"].items())
        text += page.paragraph(
            f"{suspects['n']:,} images have labels that may be wrong ({reasons}). suspects.csv "
            "lists them with the reasons. Most large errors are the model's own: look at the "
            "images, correct the labels that are wrong, delete the other rows, and give the file "
            "to config.data.edits.labels."
        )
    return page.Section("Where it fails", text)


def _unprocessed(found: Mapping[str, Any] | None) -> page.Section:
    """Images that could not be used, by group where their labels are known."""
    title = "Images that could not be processed"
    if found is None or not found["files"]:
        return page.Section(title, "")
    undecoded = found["undecoded"]
    if undecoded is None:
        known = "How many could not be decoded was not recorded by the version that prepared them."
    elif undecoded:
        known = (
            f"{undecoded:,} of these are images that could not be decoded, or empty files, which "
            "agejax.data.align leaves where it finds no face."
        )
    else:
        known = "None of these is an image that could not be decoded."
    rows = [
        (row["name"], row["lost"], *cells.rate(row))
        for of in found["groups"].values()
        for row in of
    ]
    text = page.paragraph(
        f"Of the whole data set: {found['images']:,} images were used, {found['files']:,} files "
        f"could not be. {known}"
    )
    if rows:
        text += page.table(("group", "not decoded", "share", "n"), rows)
    return page.Section(title, text)


def _section(
    title: str, text: str, charts: Mapping[str, Chart], names: Sequence[str]
) -> page.Section:
    """A paragraph and those of the charts that exist; empty without any."""
    there = [charts[name] for name in names if name in charts]
    return page.Section(title, page.paragraph(text) + page.figures(there) if there else "")


def _figures(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """The heads and cells of the table of a target's groups."""
    heads = ["group", *(HEADS.get(key, key) for key in rows[0] if key != "name")]
    return heads, [
        [
            cells.interval(value) if isinstance(value, list)
            else f"{value:.3f}" if isinstance(value, float) else value
            for key, value in row.items()
        ]
        for row in rows
    ]  # fmt: skip
