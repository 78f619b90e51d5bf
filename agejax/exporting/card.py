"""Model cards: first errors by group, then origin, limits and terms."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agejax import files
from agejax.errors import DAMAGE, UserError
from agejax.evaluation import metrics, uncertainty
from agejax.evaluation.calibration import Calibration
from agejax.exporting import quantize
from agejax.logging import console
from agejax.reporting import markdown
from agejax.runs import box, lineage
from agejax.runs.run import Run
from agejax.training import image_sizes

# What the publishers of data sets and weights ask for, in short. For others: "read its terms".
TERMS = {
    "aaf": "All-Age-Faces: for research only",
    "adience": "Adience: for research only",
    "agedb": "AgeDB: for non-commercial research only",
    "appa_real": "APPA-REAL: for research only",
    "cacd": "CACD: for research only",
    "fairface": "FairFace: CC BY 4.0",
    "fg_net": "FG-NET: for research only",
    "imdb_wiki": "IMDB-WIKI: for academic research only",
    "morph": "MORPH: by licence only",
    "procedural_faces": "procedural_faces: drawn by agejax, no terms",
    "utkface": "UTKFace: for non-commercial research only",
    "faceres-deep": "weights of faceres-deep: MIT, but trained on VGGFace2 and IMDB-WIKI, "
    "which are for research only",
}

LIMITS = """\
- Its ages are labels of public photos: in many data sets annotators' guesses. The classes of \
gender and ethnicity are annotators' guesses about a face, not facts about a person.
- It was measured on the data named above and on no other. Errors can be much larger for other \
cameras, poses, lighting, make-up, covered faces, ages or groups of people. The figures of a group \
with few images are uncertain.
- It gives a prediction for any image, even for a cat. It does not report when it cannot know.
- A single prediction is often off by more than the mean error, and usually towards the ages that \
were common in training."""

FAIR_USE = """\
For research, and for judging such models. Do not use it for decisions about persons: not to \
check an age, not for admission, hiring, credit, insurance, policing or asylum, and not to sort \
people by gender or ethnicity."""

UNMEASURED = """\
Not measured yet: the run has no evaluation. Make one with \
`python -m agejax.evaluate --workdir={workdir}`, then export again."""

EXPORT = """\
# Model card: {run}

{backbone}, trained by agejax {agejax} on {data[name]}; the weights of step {step:,}. It takes a \
{size} x {size} RGB image of a face and predicts {outputs}.

## Errors by group, then in total

{scores}

{quantization}## What it was trained on

{training}

## Limits

- It expects a cropped face, framed as the faces it was trained on.
{limits}

## Fair use

{fair_use}

## Licence

The model is bound by the terms of its training images and of pretrained weights. agejax does not \
know all of them; read them before you pass this model on:

{terms}

## How to run it

It takes uint8 images [batch, {size}, {size}, 3] and does the rest itself: \
{steps}. The training images were cut to their centre square and resized to {size} x {size}: an \
area mean where that shrinks an image (cv2.INTER_AREA), bicubic where it enlarges one \
(cv2.INTER_CUBIC). An ONNX file takes images [batch, height, width, 3] of any size and does the \
same, within 1 of 255 in a pixel; for the JAX file, resize them first. The files, and the largest \
difference of each from the run (as a share of the largest value): {files}.

{code}

## Intervals and calibrated probabilities

{calibration}
"""

# Format of a file -> code that runs it.
CODE = {
    "jax": """\
# JAX alone
import jax, pathlib
model = jax.export.deserialize(bytearray(pathlib.Path("{name}").read_bytes()))
predictions = jax.jit(model.call)(images)  # {{"age": years [batch], ...}}
""",
    "onnx": """\
# ONNX Runtime alone
import onnxruntime
session = onnxruntime.InferenceSession("{name}")
names = [output.name for output in session.get_outputs()]
predictions = dict(zip(names, session.run(names, {{"images": images}})))
""",
}

# What a user of an exported model has to calculate, as `Calibration` does.
APPLY = """\
The outputs are the network's own. `calibration` in model.json, and in the metadata of an ONNX \
file, has what agejax applies to them. It was fitted to {n:,} images of the split `{split}`, and \
holds for images like those.

- Probabilities p of classes become p^(1/T), divided by their sum, with T in `temperatures`\
{temperatures}.
- An age has an interval of ± q years, with q in `widths`: of the decade of the predicted age in \
`groups`, or of `everybody`. Where there is an output `age_sigma`, q counts multiples of it. The \
interval is clipped to {low:.0f} to {high:.0f} years. It contains the label {share:.0f} times in \
100{widths}."""
UNCALIBRATED = """\
The run has no calibration, so there are no intervals, and probabilities are as the network gives \
them. `python -m agejax.evaluate` makes one; then export again."""


def of_export(run: Run, info: Mapping[str, Any]) -> str:
    """model_card.md of exported files.

    Args:
      info: the contents of model.json.
    """
    return EXPORT.format(
        **{k: info[k] for k in ("run", "step", "backbone", "data")},
        agejax=_trained_by(run, info),
        size=info["input"]["shape"][1],
        outputs=outputs(info),
        scores=scores(run) or UNMEASURED.format(workdir=shlex.quote(box.name_of(run.workdir))),
        **of_files(info["files"]),
        training=training(run),
        limits=LIMITS,
        fair_use=FAIR_USE,
        terms=terms(lineage.of(run)),
        steps="; ".join(info["preprocessing_inside"]),
        code=_code(info["files"], calibrated=info["calibration"] is not None),
        calibration=_apply(info["calibration"]),
    )


def of_files(made: Mapping[str, Any]) -> dict[str, str]:
    """{"files": what an export's files differ by, "quantization": what int8 changes, or ""}.

    Args:
      made: "files" of model.json.
    """
    differ = [
        f"{file['name']} {file['parity']:.0e}{' before int8' if 'quantization' in file else ''}"
        for file in made.values()
    ]
    int8 = [
        _quantization(file["name"], file["quantization"])
        for file in made.values()
        if "quantization" in file
    ]
    head = "## What int8 changes\n\nThe scores above are of the float32 model."
    return {
        "files": ", ".join(differ),
        "quantization": "\n\n".join([head, *int8, ""]) if int8 else "",
    }


def _code(made: Mapping[str, Any], *, calibrated: bool) -> str:
    """Code that runs the files of an export, by their names there; of ONNX files the first."""
    names: dict[str, str] = {}
    for kind, file in made.items():
        names.setdefault(kind.removesuffix("_int8"), file["name"])
    names = {kind: name for kind, name in names.items() if kind in CODE}
    if not names:
        return "Open index.html in a browser; it does all of this."
    code = "\n".join(CODE[kind].format(name=name) for kind, name in names.items())
    first = next(iter(names.values()))
    return (
        f"```python\n{code}```\n\n"
        f'`agejax.load("{first}").predict("face.jpg")` does all of this'
        f"{', with intervals' if calibrated else ''}."
    )


def _apply(stored: Mapping[str, Any] | None) -> str:
    """How to apply a calibration, as JSON data, to the outputs of an exported model."""
    calibration = None if stored is None else Calibration.from_json(stored)
    if calibration is None:
        return UNCALIBRATED
    temperatures = ", ".join(f"{k} {t:.3f}" for k, t in calibration.temperatures.items())
    widths = ", ".join(f"{k} {w.everybody.q:.2f}" for k, w in calibration.widths.items())
    low, high = uncertainty.AGES
    return APPLY.format(
        n=calibration.n,
        split=calibration.split,
        temperatures=f" ({temperatures})" if temperatures else "",
        widths=f" (everybody: {widths})" if widths else "",
        share=100 * (1 - calibration.alpha),
        low=low,
        high=high,
    )


def outputs(info: Mapping[str, Any]) -> str:
    """Describes the outputs of model.json."""
    return "; ".join(
        f"{name} ({', '.join(out['classes'])})" if "classes" in out else f"{name} in years"
        for name, out in info["outputs"].items()
    )


def evaluations(run: Run, *, later: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (folder's name, metrics.json) of every readable evaluation of a run.

    Leaves out those at another image size than the run's, which served to choose it. Names damaged
    ones on stderr.

    Args:
      later: also those of a released model that were made since, in its place for results; of the
        same folder's name they replace those it was released with.
    """
    found = {
        path.parent.name: path
        for folder in ((run.workdir, run.results) if later else (run.workdir,))
        for path in folder.glob("evaluation/*/metrics.json")
    }
    for name, path in sorted(found.items()):
        try:
            result = files.read_json(path, dict, "evaluate again")
            metrics.table(result)
            _heading(run, result)
        except (UserError, *DAMAGE, AttributeError) as error:  # damaged, or of another version
            reason = error if isinstance(error, UserError) else f"{path} is damaged; evaluate again"
            console.note(f"left out of the model card: {reason}")
            continue
        size = image_sizes.of_evaluation(run.config)
        if result.get("image_size", size) == size:
            yield name, result


def _heading(run: Run, result: Mapping[str, Any]) -> str:
    note = "" if result["step"] == run.step else f"; of another step, {result['step']:,}"
    return f"### {result['dataset']}, {result['split']}: {result['n']:,} images{note}"


def known_to_ancestors(result: Mapping[str, Any]) -> str:
    """A warning for each ancestor that was trained on some of the images; "" for none."""
    known = result.get("known_to_ancestors", {})
    return "".join(
        f"**{count:,} of these images, or copies of them, trained {name}, which this model learned "
        "from: the scores are too good.**\n\n"
        for name, count in known.items()
    )


def scores(run: Run) -> str:
    """Every evaluation of the run, groups before totals; "" where there is none."""
    return "\n\n".join(
        f"{_heading(run, result)}\n\n{known_to_ancestors(result)}"
        f"```text\n{metrics.table(result)}\n```"
        for _, result in evaluations(run)
    )


def _quantization(name: str, record: Mapping[str, Any]) -> str:
    """What int8 changes in a file, from the record of `quantize.quantized`."""
    size = record["bytes"]
    lines = [f"- {quantize.describe(*target)}" for target in record["targets"].items()]
    if record["activations"] == "float32":
        lines.append(f"\n{quantize.ADVICE}")
    return (
        f"The model in {name} has int8 weights and {record['activations']} activations. It is "
        f"{size['float32'] / size['int8']:.1f} times smaller, and was calibrated on "
        f"{record['calibration_images']:,} images of {record['judged_on']}. On "
        f"{record['n']:,} other images of it:\n\n" + "\n".join(lines)
    )


def training(run: Run) -> str:
    """The data set, its splits, and the labels of the training split."""
    data, facts = run.config.data, run.facts
    lines = [f"- Data set: {lineage.data_name(data)}, fingerprint {run.fingerprint}."]
    with contextlib.suppress(OSError, UserError, *DAMAGE, AttributeError):  # optional
        summary = files.read_json(run.workdir / "summary.json", dict, "")
        sizes = ", ".join(f"{name} {n:,}" for name, n in summary["examples"].items())
        together = "; copies of one photo share a split" if keeps_copies_together(run) else ""
        lines.append(f"- Images in each split: {sizes}{together}.")
    for label in facts.labels:
        if label in facts.means:
            lines.append(
                f"- {label} in training: mean {facts.means[label]:.1f}, median "
                f"{facts.medians[label]:.1f}, standard deviation {facts.stds[label]:.1f} years."
            )
        elif label in facts.label_names and label in facts.counts:  # older runs have no counts
            pairs = zip(facts.label_names[label], facts.counts[label], strict=True)
            lines.append(f"- {label} in training: {', '.join(f'{k} {n:,}' for k, n in pairs)}.")
    return "\n".join(lines)


def _trained_by(run: Run, info: Mapping[str, Any]) -> str:
    """The version of agejax that trained a run; where its summary lacks it, the one in `info`."""
    with contextlib.suppress(OSError, UserError, *DAMAGE, AttributeError):  # optional
        return str(files.read_json(run.workdir / "summary.json", dict, "")["versions"]["agejax"])
    return str(info["agejax"])


def keeps_copies_together(run: Run) -> bool:
    """Whether copies of a photo share a split: public splits may separate them."""
    split = run.config.data.split
    return not (split.get("official") or split.get("files"))


def terms(origin: lineage.Lineage) -> str:
    """The terms of all data and weights that a model comes from, where they are known."""
    found: dict[str, None] = {}
    for node in lineage.nodes(origin):
        if node["kind"] == "run":
            found |= dict.fromkeys(
                TERMS.get(n, f"{n}: read its terms") for n in node["data"]["names"]
            )
        else:
            what = node.get("library") or node["name"]
            found[TERMS.get(what, f"weights {node['name']} ({what}): read their terms")] = None
    return _list(list(found))


# ---- released models -----------------------------------------------------------------------------

RELEASE = """\
# {title}

This model guesses how old a face in a photo looks, and predicts {classes}. It is for research. It \
is a {backbone} with {parameters:,} parameters that sees {inside} x {inside} pixels, trained by \
agejax {agejax}. Its weights are stored in {storage}.

```
{use}
```

## Errors by group, then in total

Years of age are mean absolute errors (mae); bias is predicted minus labelled. Look at the groups \
first: the error is not the same for everyone.

{scores}

## Intervals

{intervals}

## What a number means

- `age` is a guess in years of what the label of such a photo would be. It is not the age of the \
person, and two photos of one person get different guesses.
{calibrated}- {framing}

## Where it comes from

{origin}

{training}

## How it was made

{recipes}

This text: `{made_by}`.

## Limits

{limits}

## Fair use

{fair_use}

## Terms

The model is bound by the terms of what it comes from, as far as agejax knows them:

{terms}
"""

CALIBRATED = """\
- `age_low` and `age_high` contain the label {share:.0f} times in 100 for images like those it was \
calibrated on. For other images they can be much too narrow.
- Probabilities of classes are scaled on the same images, so that of predictions with a \
probability of 0.8 about 80 in 100 agree with the label.
"""
FRAMED = """\
It expects faces framed as in its training images. `python -m agejax.predict` finds the faces of a \
photo and frames them so, where a face detector is installed."""
UNFRAMED = """\
It expects faces framed as in its training images. How these are framed was not measured, so \
`python -m agejax.predict` cannot find faces in photos for it: give it such crops."""


def of_model(
    run: Run, info: Mapping[str, Any], name: str, *, use: str, storage: str, made_by: str
) -> str:
    """card.md of a released model, or model_card.md of a run.

    Args:
      info: `description.describe` of it.
      name: what the model is called.
      use: --workdir of the command that predicts with it.
      storage: how its weights are stored.
      made_by: the command that writes the card.
    """
    come_from = lineage.of(run)
    calibration = Calibration.read(run.workdir, run.step, run.config.eval.get("image_size", 0))
    framed = calibration is not None and calibration.geometry is not None
    classes = [
        f"{n} ({', '.join(o['classes'])})" for n, o in info["outputs"].items() if "classes" in o
    ]
    return RELEASE.format(
        title=name,
        classes="; ".join(classes) or "nothing else",
        backbone=run.config.model.name,
        parameters=sum(array.size for array in run.params.values()),
        inside=image_sizes.of_evaluation(run.config),
        agejax=_trained_by(run, info),
        storage=storage,
        use=f"python -m agejax.predict --workdir={shlex.quote(use)} photo.jpg",
        scores=scores(run) or "Not measured: the run had no evaluation when this was written.",
        intervals=intervals(run, calibration),
        calibrated=CALIBRATED.format(share=100 * (1 - calibration.alpha)) if calibration else "",
        framing=FRAMED if framed else UNFRAMED,
        origin=origin(come_from),
        training=training(run),
        recipes=recipes(come_from),
        made_by=made_by,
        limits=LIMITS,
        fair_use=FAIR_USE,
        terms=terms(come_from),
    )


def storage(release: Mapping[str, Any]) -> str:
    """How a released model stores its weights, for `of_model`.

    Args:
      release: the contents of its release.json.
    """
    if release["parity"] == 0:
        return str(release["storage"])
    return (
        f"{release['storage']} (predictions differ from the run by at most {release['parity']:.0e} "
        "of the largest value)"
    )


def intervals(run: Run, calibration: Calibration | None) -> str:
    """How often age intervals contain the label, by group, in each evaluation of the checkpoint.

    The images that they were fitted to are left out: there, the intervals are right by making.
    """
    if calibration is None:
        return "It is not calibrated: predictions come without `age_low` and `age_high`."
    parts = [
        f"Fitted to {calibration.n:,} images of the split `{calibration.split}`, to contain "
        f"{1 - calibration.alpha:.0%} of the labels."
    ]
    for _, result in evaluations(run):
        found = result.get("uncertainty", {}).get("age")
        of_another = result["step"] != run.step
        if not found or of_another or result["split"] == calibration.split:
            continue
        groups = [
            *(g for by in ("decade", "gender", "ethnicity") for g in found["groups"].get(by, ())),
            found["by_decade"] | {"name": "all"},
        ]
        rows = [(g["name"], f"{g['n']:,}", f"{g['coverage']:.1%}") for g in groups]
        table = markdown.table(("group", "n", "coverage"), rows)
        parts += [f"On {result['dataset']}, {result['split']}:", table]
    return "\n\n".join(parts)


def origin(node: lineage.Lineage, role: str = "This model", depth: int = 0) -> str:
    """A lineage as a nested list: each run's training data, start and teachers."""
    indent = "  " * depth
    match node["kind"]:
        case "run":
            data = node["data"]
            sizes = ", ".join(f"{k} {n:,}" for k, n in data["examples"].items())
            lines = [
                f"{indent}- {role}: run `{node['name']}`, {node['backbone']} at "
                f"{node['image_size']} px, trained on {' and '.join(data['names'])} (data "
                f"fingerprint {data['fingerprint']}"
                + (f"; images: {sizes}" if sizes else "")
                + f"; {split_in_words(data['split'])})."
            ]
            if members := node.get("members"):
                lines.append(f"{indent}  - Its weights are the mean of {', '.join(members)}.")
            if node["start"] is None:
                lines.append(f"{indent}  - Start: random weights.")
            else:
                lines.append(origin(node["start"], "Start", depth + 1))
            lines += [origin(each, "Averaged", depth + 1) for each in node.get("averaged", ())]
            lines += [origin(each, "Teacher", depth + 1) for each in node["teachers"]]
            return "\n".join(lines)
        case "file":
            library = f", in the layout of {node['library']}" if node["library"] else ""
            return (
                f"{indent}- {role}: the file `{node['name']}`{library} (SHA-256 {node['sha256']})."
            )
    return f"{indent}- {role}: `{node['name']}`, which was not available when this card was made."


def split_in_words(split: Mapping[str, Any]) -> str:
    """How the images were split: config.data.split as `lineage.split_of` returns it."""
    if split.get("files"):
        return f"split by lists of names: {', '.join(split['files'])}"
    if split.get("official"):
        return "the official split"
    if split.get("folds"):
        return (
            f"fold {split['fold']} of {split['folds']} is the test split, seed {split['seed']}, "
            "copies of a photo kept together"
        )
    shares = ", ".join(f"{name} {share:g}" for name, share in split["fractions"].items())
    if (even := split.get("balanced") or {}).get("n"):
        return (
            f"{even['split']} has {even['n']} images of each {' x '.join(even['over'])}, the rest "
            f"is split at random, {shares}, seed {split['seed']}, copies of a photo kept together"
        )
    return f"random split, {shares}, seed {split['seed']}, copies of a photo kept together"


def recipes(node: lineage.Lineage) -> str:
    """A config file for every run of a lineage, to train it again."""
    parts = []
    for run in lineage.runs(node):
        file = f"{run['name']}.py"
        body = "\n".join(f"    config.{k} = {_literal(v)}" for k, v in run["settings"].items())
        parts.append(
            f"`python -m agejax.main --config={shlex.quote(file)}`, where `{file}` is as "
            "follows, and paths are where your files lie:\n\n"
            "```python\nfrom agejax.config import default\n\n\ndef get_config():\n"
            f"    config = default()\n{body}\n    return config\n```"
        )
    return "\n\n".join(dict.fromkeys(parts))


def _literal(value: Any) -> str:
    """JSON data as Python; lists as tuples, as configs have them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}." for line in lines)
