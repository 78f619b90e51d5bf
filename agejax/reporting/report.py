"""An evaluation's report.html, one file that opens offline, and its charts under figures/."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agejax import files
from agejax.errors import UserError
from agejax.evaluation import metrics, uncertainty
from agejax.evaluation.calibration import Calibration
from agejax.explanations.subject import explainer
from agejax.logging import console
from agejax.reporting import figures, page, plots
from agejax.reporting.plots import Chart

if TYPE_CHECKING:
    from agejax.evaluation.scored import Scored

FILE = "report.html"
FACES = 9  # faces shown of each kind
EXPLAINED = 6  # explanations shown of the worst faces

ABOUT = (
    "Ages, genders and ethnicities in face data are guesses of annotators about people in "
    "photographs, not facts about them. This page says how well a model repeats such guesses. It "
    "is for research: no decision about a person may rest on it."
)


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
    charts |= _intervals(scored, result, calibration) | _compared(result)
    if "gates" in result:
        charts["gates"] = figures.challenge(result["gates"]["challenge"])
    if "quality" in result:
        charts["quality"] = figures.error_by_quality(result["quality"], result["age"]["mae"])
    curves = scored.run.workdir / "metrics.jsonl"
    if curves.exists():
        charts["training"] = plots.training_curves(curves)
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
                "by the interval's width": uncertainty.risk_coverage(error, width),
                "at random": uncertainty.risk_coverage(error, np.zeros(len(error))),
            }
        ),
    }


def _compared(result: Mapping[str, Any]) -> dict[str, Chart]:
    return {
        f"{target} compared": figures.paired_differences(
            target,
            [
                {"name": "all", **{k: v for k, v in found.items() if k != "groups"}},
                *(row for by in found["groups"].values() for row in by),
            ],
            "years" if "mae" in result[target] else "share of wrong answers",
        )
        for target, found in result.get("compared", {}).get("targets", {}).items()
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
            f"the {kind}",
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
        console.note(f"no saliency: {error}")
        return charts
    captions = [_caption(scored, i) for i in explained]
    return charts | {"saliency": figures.saliency(images, heats, captions)}


def _caption(scored: Scored, i: int) -> str:
    """True and predicted labels, in two lines."""
    lines = [f"true {scored.labels['age'][i]:.0f}", f"said {scored.predictions['age'][i]:.0f}"]
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
    sections = [
        page.paragraph(ABOUT),
        page.cards(_headline(result)),
        _groups(result, charts),
        _section(
            "Age",
            "How the predictions lie about the truth, which ages are taken for younger or older, "
            "and how many images are within k years.",
            charts,
            ("age", "bias", "cumulative score"),
        ),
        _section(
            "Gender and ethnicity",
            "Of each true class, what it was taken for.",
            charts,
            [name for name in charts if name.endswith(" confusion")],
        ),
        _uncertainty(result, charts),
        _gates(result, charts),
        _section(
            "Image quality",
            "The error where images are dark or blurred. Luminance is the mean grey; Laplacian and "
            "FFT fall where an image is blurred; BRISQUE rises where it is distorted.",
            charts,
            ("quality",),
        ),
        _comparison(result, charts),
        _section("Training", "The curves of the run.", charts, ("training",)),
        _section(
            "Faces",
            "The best, the typical and the worst by the error of the age. Look at the worst for "
            "wrong labels and broken crops before blaming the model.",
            charts,
            ("best faces", "typical faces", "worst faces"),
        ),
        _section(
            "What the worst rest on",
            "Grad-CAM of the predicted age: red adds years, blue takes years off.",
            charts,
            ("saliency",),
        ),
    ]
    return page.page(scored.name, sections)


def _headline(result: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for target in result["groups"]:
        scores = result[target]
        if "mae" in scores:
            low, high = scores["mae_ci95"]
            shown[f"{target}: MAE in years [{low:.2f}, {high:.2f}]"] = f"{scores['mae']:.2f}"
            shown[f"{target}: within 5 years"] = f"{scores['cs5']:.1%}"
            shown[f"{target}: bias in years"] = f"{scores['bias']:+.2f}"
        else:
            low, high = scores["accuracy_ci95"]
            name = f"{target}: right [{low:.1%}, {high:.1%}]"
            shown[name] = f"{scores['accuracy']:.1%}"
        worst = result["groups"][target].get("worst")
        if worst:
            figure = f"{worst['mae']:.2f}" if "mae" in worst else f"{worst['accuracy']:.1%}"
            shown[f"{target}: worst group, {worst['name']} (n = {worst['n']:,})"] = figure
    return {"images": result["n"]} | shown


def _groups(result: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    text = page.heading("Errors by group") + page.paragraph(
        "Points are means with 95 % bootstrap intervals that resample groups of copies; the line "
        f"is the mean of all. Groups of fewer than {metrics.SMALLEST_GROUP} images are pale: they "
        "have been measured hardly at all."
    )
    for target, groups in result["groups"].items():
        names = [f"{target} by {by}" for by in groups if by != "worst"]
        text += page.figures(charts[name] for name in names)
        for by, rows in groups.items():
            if by != "worst":
                heads = ("group", *(key for key in rows[0] if key != "name"))
                text += page.listing(f"{target} by {by}, in figures", heads, _cells(rows))
    return text


# A flaw of val, which calibrates unless config.data.split.calibration_of_val splits it.
CHOSEN = ". They have also chosen the checkpoint, which makes intervals a little too narrow"


def _uncertainty(result: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    found = result.get("uncertainty")
    text = page.heading("How sure it may be")
    if found is None:
        return text + page.paragraph(
            "Not known: temperatures and intervals are fitted to the run's validation images, "
            "which were not at hand."
        )
    name = found["fitted_to"]
    text += page.paragraph(
        f"Fitted to {found['validation_images']:,} images of the split {name}, judged here"
        f"{CHOSEN if name == 'val' else ''}. Temperature scaling makes probabilities mean what "
        "they say: the expected calibration error (ECE) is how far they are off."
    )
    rows = [
        (name, *(f"{of[key]:.3f}" for key in ("temperature", "ece", "ece_scaled", "nll_scaled")))
        for name, of in found.items()
        if isinstance(of, Mapping) and "temperature" in of
    ]
    if rows:
        heads = ("target", "temperature", "ECE", "ECE, scaled", "log-likelihood loss, scaled")
        text += page.table(heads, rows)
    text += page.figures(charts[name] for name in charts if name.endswith(" reliability"))
    ages = {name: of for name, of in found.items() if isinstance(of, Mapping) and "marginal" in of}
    for name, of in ages.items():
        share = f"{1 - found['alpha']:.0%}"
        text += page.paragraph(
            f"Intervals of {name} that hold the truth {share} of the time (split conformal): one "
            "width for all, or one by the decade of the prediction. The band is what chance allows."
        )
        both = {"one width": of["marginal"], "by decade": of["by_decade"]}
        rows = [
            (kind, f"{c['coverage']:.1%}", _band(c["band95"]), f"{c['width']:.1f}")
            for kind, c in both.items()
        ]
        text += page.table(("intervals", "covered", "band", "mean width, years"), rows)
    return text + page.figures(charts[name] for name in ("coverage", "risk") if name in charts)


def _gates(result: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    gates = result.get("gates")
    if gates is None:
        return ""
    rows = [
        (row["threshold"], *_rate(row["fpr"]), *_rate(row["tpr"])) for row in gates["challenge"]
    ]
    heads = ("looks at least", "14 to 17, let in", "n", "18 and more, let in", "n")
    band = gates["band"]
    return (
        page.heading("Age gates")
        + page.paragraph(
            "Who would pass without a document if whoever looks T years or older did (Challenge-T; "
            "NIST IR 8525), with Wilson intervals. It shows how far from such a use a model is; it "
            "is not a licence for one."
        )
        + page.figures(charts[name] for name in ("gates",) if name in charts)
        + page.table(heads, rows)
        + page.paragraph(f"A room for those of {band['first']} to {band['last']} years alone.")
        + page.table(
            ("let in of", "share", "n"),
            [
                ("the right age", *_rate(band["tpr"])),
                ("another age", *_rate(band["fpr"])),
                ("another age, 5 years away at most", *_rate(band["fpr_near"])),
            ],
        )
    )


def _comparison(result: Mapping[str, Any], charts: Mapping[str, Chart]) -> str:
    found = result.get("compared")
    if found is None:
        return ""
    rows = [
        (target, f"{of['difference']:+.3f}", _interval(of["difference_ci95"]), of["n"])
        for target, of in found["targets"].items()
    ]
    return (
        page.heading(f"Against {found['workdir']}")
        + page.paragraph(
            "Differences on the same images, with paired 95 % intervals; below zero this run is "
            "better. Of ages the mean absolute error in years, of classes the share of wrong "
            "answers."
        )
        + page.table(("target", "difference", "95 % interval", "images"), rows)
        + page.figures(charts[name] for name in charts if name.endswith(" compared"))
    )


def _section(title: str, text: str, charts: Mapping[str, Chart], names: Sequence[str]) -> str:
    """A heading, a line, and those of the charts that exist; "" without any."""
    there = [charts[name] for name in names if name in charts]
    if not there:
        return ""
    return page.heading(title) + page.paragraph(text) + page.figures(there)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [
        [
            _interval(value) if isinstance(value, list)
            else f"{value:.3f}" if isinstance(value, float) else value
            for key, value in row.items()
        ]
        for row in rows
    ]  # fmt: skip


def _interval(bounds: Sequence[float]) -> str:
    return "[" + ", ".join(f"{bound:.3f}" for bound in bounds) + "]"


def _band(bounds: Sequence[float]) -> str:
    return " to ".join(f"{bound:.1%}" for bound in bounds)


def _rate(rate: Mapping[str, Any]) -> tuple[str, int]:
    if not rate["n"]:
        return "nobody there", 0
    return f"{rate['rate']:.1%} ({_band(rate['ci95'])})", rate["n"]
