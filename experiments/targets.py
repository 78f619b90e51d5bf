"""Every kind of age head and every tool against imbalance, once, on one short fixed schedule:

    python -m experiments.targets --source=UTKFace.tar.gz \\
        --pretrained=mobilenet_v3_small_imagenet_features.safetensors [--only=REGEX] [--seeds=3]

MobileNetV3-Small from ImageNet weights at 64 px, two epochs of UTKFace, scored on the split "val":
no choice is made on it within an arm, and "test" stays unseen. Arms that are done are skipped.
Losses of age are weighted so that they start near 1, lest the larger ones drown the other heads.
Recorded in experiments/results/targets.json and targets.md. Differences are paired, to the arm that
every group names first.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from sklearn.metrics import f1_score

from agejax import files
from agejax.config import replaced
from agejax.configs import mobilenet_v3_utk
from agejax.evaluation import metrics, replicates
from agejax.process.command import run_command
from experiments import arms

FEW = 20  # training images of an age, below which it is rare
RARE = f"ages with fewer than {FEW} training images"
SIZE, EPOCHS = 64, 2.0
REGRESSION = {"kind": "regression", "transform": "standard", "loss": "l1"}


def age(**options: Any) -> dict[str, Any]:
    return {"heads.age": options}


def ethnicity(**options: Any) -> dict[str, Any]:
    return {"heads.ethnicity": {"kind": "categorical", "weight": 0.25} | options}


def weighted(**options: Any) -> dict[str, Any]:
    return {"heads.age": REGRESSION | {"example_weights": options}}


# group -> arm -> changes to the base config. A group's first arm is its reference.
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "Age as what": {
        "regression-l1": {},
        "regression-l2": age(kind="regression", loss="l2"),
        "regression-log": age(kind="regression", transform="log"),
        "gaussian": age(kind="gaussian"),
        "distribution-ce": age(kind="distribution", loss="ce", weight=0.25),
        "distribution-smoothed": age(
            kind="distribution", loss="ce", smoothing=0.1, weight=0.25
        ),
        "distribution-dldl": age(kind="distribution", loss="dldl", weight=0.06),
        "distribution-mean-variance": age(kind="distribution", loss="mean_variance", weight=0.02),
        "distribution-sord": age(kind="distribution", loss="sord", weight=0.25),
        "ordinal-coral": age(kind="ordinal", method="coral", weight=0.03),
        "ordinal-corn": age(kind="ordinal", method="corn", weight=0.25),
        "ordinal-or-cnn": age(kind="ordinal", method="or_cnn", weight=0.03),
        "buckets": age(kind="buckets", weight=0.5),
    },
    "Imbalance of ages": {
        "regression-l1": {},
        "loss-dense": weighted(kind="dense", alpha=1.0),
        "loss-dense-deferred": weighted(kind="dense", alpha=1.0, after={"percent": 60.0}),
        "loss-lds": weighted(kind="lds"),
        "loss-inverse-root": weighted(kind="inverse", power=0.5),
        "loss-class-balanced": weighted(kind="class_balanced", beta=0.99),
        "fds": age(**REGRESSION, fds={}),
        "balanced-mse-bmc": age(kind="regression", loss="bmc"),
        "balanced-mse-gai": age(kind="regression", loss="gai"),
        "draw-density": {"sampling.kind": "density", "sampling.alpha": 1.0},
        "draw-lds": {"sampling.kind": "lds"},
        "draw-inverse-root": {
            "sampling.kind": "inverse", "sampling.over": ("age",), "sampling.power": 0.5,
        },
        "oversample": {"sampling.kind": "oversample", "sampling.copy_strength": 2.0},
        "undersample": {"sampling.keep": {"ethnicity": {"majority": 0.5}}},
    },
    "Imbalance of ethnicities": {
        "regression-l1": {},
        "ethnicity-smoothed": ethnicity(smoothing=0.1),
        "ethnicity-ins": ethnicity(example_weights={"kind": "inverse"}),
        "ethnicity-class-balanced": ethnicity(example_weights={"kind": "class_balanced"}),
        "ethnicity-focal": ethnicity(loss="focal"),
        "ethnicity-ldam": ethnicity(loss="ldam"),
        "ethnicity-ldam-cosine-deferred": ethnicity(
            loss="ldam", cosine=True,
            example_weights={"kind": "class_balanced", "after": {"percent": 60.0}},
        ),
        "ethnicity-lmf": ethnicity(loss="lmf"),
        "ethnicity-draw-inverse": {"sampling.kind": "inverse", "sampling.over": ("ethnicity",)},
    },
}  # fmt: skip


def configure(
    source: str, pretrained: str, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """The config of an arm."""
    config = mobilenet_v3_utk.get_config()
    config.data.source, config.model.pretrained = source, pretrained
    config.data.image_size = config.model.image_size = SIZE
    config.total = {"epochs": EPOCHS}
    config.eval.every = {"percent": 100.0}
    config.checkpoint.every = {"percent": 100.0}
    config.model.options = {"norm_momentum": 0.1}
    config.optim.ema = 0.99  # 0.999 would remember the start of so short a run
    return replaced(config, changes)


def measure(scores: arms.Scores, base: arms.Scores) -> dict[str, Any]:
    """Measures a row of the table."""
    groups, ages = scores.columns["group"], scores.columns["age"]
    losses, reference = scores.losses("age"), base.losses("age")
    counts = np.array(base.runs[0]["facts"]["counts"]["age"])  # an arm may leave out images
    rare = counts[np.minimum(ages, len(counts) - 1).astype(int)] < FEW
    rare |= ages >= len(counts)
    decades = {
        name: float(losses[:, part].mean())
        for name, part in metrics.decades(ages)
        if part.sum() >= metrics.SMALLEST_GROUP
    }
    worst = max(decades, key=lambda name: decades[name])
    true = scores.columns["ethnicity"]
    known = true >= 0  # some names of UTKFace lack the race
    f1 = [
        f1_score(true[known], said[known], average="macro")
        for said in scores.predicted["ethnicity"]
    ]
    return {
        "mae": replicates.mean_interval(losses, groups),
        "difference": replicates.mean_interval(losses - reference, groups),
        "few_shot_mae": replicates.mean_interval(losses[:, rare], groups[rare]),
        "few_shot_difference": replicates.mean_interval(
            (losses - reference)[:, rare], groups[rare]
        ),
        "worst_decade": {"name": worst, "mae": decades[worst]},
        "bias": float((scores.predicted["age"] - ages).mean()),
        "gender_error": replicates.mean_interval(scores.losses("gender"), groups),
        "ethnicity_macro_f1": {"mean": float(np.mean(f1)), "seeds": f1},
        "images_per_second": float(np.median([r["images_per_second"] for r in scores.runs])),
        "commits": scores.commits,
    }


def page(rows: Mapping[str, Mapping[str, Any]], intervals: str) -> str:
    """The page targets.md."""
    heading = f"# Age as anything, and imbalance\n\n{__doc__}\nRare ages: {RARE}. {intervals}\n"
    return heading + table(rows)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for group, names in GROUPS.items():
        lines += [
            f"\n### {group}\n",
            "| arm | val MAE [95 %] | against the first | rare ages MAE [95 %] | against the first "
            "| worst decade | gender accuracy | ethnicity macro-F1 | images/s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name in (name for name in names if name in rows):
            row = rows[name]
            lines.append(
                f"| {name} | {replicates.text(row['mae'])} "
                f"| {replicates.text(row['difference'], sign='+')} "
                f"| {replicates.text(row['few_shot_mae'])} "
                f"| {replicates.text(row['few_shot_difference'], sign='+')} "
                f"| {row['worst_decade']['name']}: {row['worst_decade']['mae']:.1f} "
                f"| {1 - row['gender_error']['mean']:.3f} "
                f"| {row['ethnicity_macro_f1']['mean']:.3f} | {row['images_per_second']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = arms.parser("targets", __doc__ or "")
    parser.add_argument("--only", default="", help="regex of the arms to train")
    parser.add_argument("--output", default="experiments/results/targets")
    args = parser.parse_args(argv[1:])

    changes = {name: change for group in GROUPS.values() for name, change in group.items()}
    known = {
        name: arms.Arm(configure(args.source, args.pretrained, change))
        for name, change in changes.items()
    }
    chosen = arms.chosen(known, args.only, "regression-l1")
    scores = arms.run(chosen, range(args.seeds), pathlib.Path(args.folder), "val")
    rows = {name: measure(arm, scores["regression-l1"]) for name, arm in scores.items()}
    intervals = replicates.method(args.seeds)
    output = pathlib.Path(args.output)
    files.write_json(
        output.with_suffix(".json"),
        {
            "command": "python -m experiments.targets",
            "commit": arms.commit(),
            "seeds": args.seeds,
            "image_size": SIZE,
            "epochs": EPOCHS,
            "rare": RARE,
            "intervals": intervals,
            "arms": rows,
        },
    )
    files.write_text(output.with_suffix(".md"), page(rows, intervals))
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
