"""What each lever of small heads on a frozen face network is worth, on val:

    python -m experiments.levers frozen_utk --source=UTKFace.tar.gz --weights=FOLDER
    python -m experiments.levers imbalance_ages --source=UTKFace.tar.gz --weights=FOLDER
    python -m experiments.levers imbalance_classes --source=UTKFace.tar.gz --weights=FOLDER

frozen_utk: the levers of configs/frozen_utk.py, on the val images of split 0. The others: those of
system B's arm faces-frozen. Its test set stays out; of the other images, val gets 10 of every
gender x ethnicity x decade, half where there are few, as the test set was made. Heads on a frozen
backbone share no layer that is trained, so those that an arm does not concern are left out. An arm
changes one thing of the arm that it is compared with, or a few. FOLDER holds a MobileNetV1 of faces
and a MobileNetV3-Small of ImageNet. Arms that are done are skipped. Writes
experiments/results/levers/COMPARISON.json and .md.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from agejax import files
from agejax.configs import frozen_utk
from agejax.data import opening, splits
from agejax.evaluation import ensembling, replicates
from agejax.process import usage
from agejax.process.command import run_command
from agejax.reporting import results
from experiments import arms, frozen
from experiments.arms import Arm
from experiments.run import measure
from experiments.systems import imbalance
from experiments.systems.setting import Setting, changed

COLUMNS = {"age/mae": 2, "gender/accuracy": 3, "ethnicity/macro_f1": 3}  # path -> digits
REFERENCE = "recipe"
MEMBERS = 3  # of an ensemble
SHORT = {"epochs": 12.0}  # of system B's arms, so that more can be tried


class Lever(NamedTuple):
    """An arm, and the name of the arm that it is compared with."""

    arm: Arm
    against: str = REFERENCE


def on_val(config: ml_collections.ConfigDict, what: str, **changes: Any) -> Arm:
    """An arm with changes to a config, scored on val."""
    config = changed(config, **changes)
    config.checkpoint.every = config.eval.every  # writing them would take longer than training
    return Arm(config, what, make=frozen.scored("val"))


def necks(config: ml_collections.ConfigDict, **options: Any) -> dict[str, Any]:
    """Changes to all heads' necks, for `changed`."""
    return {f"heads__{k}__neck": v.neck.to_dict() | options for k, v in config.heads.items()}


def of_frozen_utk(setting: Setting, seeds: int) -> dict[str, Lever]:
    recipe = setting.place(frozen_utk.get_config())
    recipe.model.pretrained = setting.pretrained(recipe.model.name)
    del recipe.heads.gender, recipe.heads.ethnicity
    number = {
        "kind": "regression", "transform": "standard", "loss": "l1",
        "neck": recipe.heads.age.neck.to_dict(),
    }  # fmt: skip
    density = changed(recipe, sampling__kind="density", sampling__alpha=0.5)

    def members(seed: int) -> list[str]:  # none is in the ensemble of another seed
        return [f"{REFERENCE}/seed-{seed + i * seeds}" for i in range(MEMBERS)]

    def mirrored(folder: pathlib.Path, seed: int, scores: pathlib.Path) -> None:
        run = folder / REFERENCE / f"seed-{seed}"
        ensembling.create(scores.parent, [run], views=("plain", "flip"))
        results.evaluate(scores.parent, split="val", output=scores, write_report=False)

    return {
        REFERENCE: Lever(on_val(recipe, "the recipe")),
        "imagenet": Lever(
            on_val(
                recipe, "features of MobileNetV3-Small with ImageNet weights",
                model__name="mobilenet_v3_small", model__options={"dropout": 0.0},
                model__pretrained=setting.pretrained("mobilenet_v3_small"),
            )
        ),
        "number": Lever(
            on_val(recipe, "one number with L1 loss, not a distribution", heads__age=number)
        ),
        "density": Lever(on_val(density, "ages drawn by density (alpha 0.5), the prior undone")),
        "density-sampled": Lever(
            on_val(density, "the same, the prior not undone", heads__age__decode_prior="sampled"),
            "density",
        ),
        "linear": Lever(
            on_val(
                recipe, "no hidden layer, dropout 0.3",
                **necks(recipe, hidden=(), dropout=0.3, input_dropout=0.0),
            )
        ),
        "no-dropout": Lever(
            on_val(recipe, "no dropout", **necks(recipe, dropout=0.0, input_dropout=0.0))
        ),
        "160": Lever(on_val(recipe, "160 px", model__image_size=160)),
        "ensemble": Lever(
            Arm(None, f"mean of {MEMBERS} seeds", make=frozen.scored("val", members))
        ),
        "mirrored": Lever(Arm(None, "mean over the image and its mirror image", make=mirrored)),
        "two-views": Lever(
            on_val(
                recipe, "a second, augmented view of each training image",
                model__cached_views=2, augment__flip=0.5, augment__crop=(0.85, 1.0),
                augment__rotate=5.0, augment__brightness=0.1, augment__contrast=0.1,
            )
        ),
    }  # fmt: skip


def of_imbalance_ages(setting: Setting, seeds: int) -> dict[str, Lever]:
    base = with_balanced_val(setting)
    del base.heads.gender, base.heads.ethnicity
    base.total = SHORT
    age = base.heads.age.to_dict()
    inverse = {"example_weights": {"kind": "inverse"}}
    full, crossed = {"sampling__power": 1.0}, {"sampling__over": ("gender", "ethnicity", "decade")}
    whats: dict[str, tuple[str, dict[str, Any]]] = {
        REFERENCE: ("decades x ethnicities drawn by the root, 12 epochs", {}),
        "natural": ("the prior undone", {"heads__age": age | {"decode_prior": "natural"}}),
        "uniform": ("all drawn alike", {"sampling__kind": "uniform"}),
        "full": ("drawn by one over their counts", full),
        "genders": ("genders crossed too, drawn by the root", crossed),
        "genders-full": ("genders crossed too, drawn by one over their counts", full | crossed),
        "years": ("ages x ethnicities drawn by root", {"sampling__over": ("age", "ethnicity")}),
        "weights": (
            "all drawn alike, ages weighted by one over their counts",
            {"sampling__kind": "uniform", "heads__age": age | inverse},
        ),
        "expectation": (
            "weight 1 of the expectation", {"heads__age": age | {"expectation_weight": 1.0}}
        ),
        "sigma": ("sigma 4 years", {"heads__age": age | {"sigma": 4.0}}),
        "dropout": ("dropout 0.4 and 0.7", necks(base, dropout=0.7, input_dropout=0.4)),
        "wide": ("1,024 hidden units", necks(base, hidden=(1024,))),
        "long": ("25 epochs", {"total": {"epochs": 25.0}}),
    }  # fmt: skip
    return {name: Lever(on_val(base, what, **some)) for name, (what, some) in whats.items()}


def of_imbalance_classes(setting: Setting, seeds: int) -> dict[str, Lever]:
    base = with_balanced_val(setting)
    del base.heads.age
    base.eval.best = "loss"
    base.total = SHORT
    ethnicity = base.heads.ethnicity.to_dict()
    alone = {key: value for key, value in ethnicity.items() if key != "example_weights"}
    balanced = alone | {"example_weights": {"kind": "class_balanced", "beta": 0.999}}
    full, crossed = {"sampling__power": 1.0}, {"sampling__over": ("gender", "ethnicity", "decade")}
    whats: dict[str, tuple[str, dict[str, Any]]] = {
        REFERENCE: ("decades x ethnicities drawn by the root of one over their counts, INS", {}),
        "no-ins": ("no INS", {"heads__ethnicity": alone}),
        "class-balanced": (
            "class-balanced weights (beta 0.999), not INS", {"heads__ethnicity": balanced}
        ),
        "uniform": ("all drawn alike, INS", {"sampling__kind": "uniform"}),
        "full": ("drawn by one over their counts, no INS", full | {"heads__ethnicity": alone}),
        "genders": ("genders crossed too, drawn by the root, INS", crossed),
        "genders-full": (
            "genders crossed too, drawn by one over their counts, no INS",
            full | crossed | {"heads__ethnicity": alone},
        ),
    }  # fmt: skip
    return {name: Lever(on_val(base, what, **some)) for name, (what, some) in whats.items()}


def with_balanced_val(setting: Setting) -> ml_collections.ConfigDict:
    """System B's arm with a val balanced like its test set, whose images and copies stay out.

    Lists of the images to train and to validate on are written to the setting's folder.
    """
    config, folder = imbalance.arms(setting)["faces-frozen"].config, setting.folder / "lists"
    assert config is not None
    source, split = opening.open_source(config.data), config.data.split
    rows = splits.make(source, split)
    rest = source.select(np.sort(np.concatenate([rows["train"], rows["val"]])))
    like_test = dict(split.balanced) | {"split": "val"}
    parts = splits.balanced(rest, {"train": 1.0}, split.seed, **like_test)
    folder.mkdir(parents=True, exist_ok=True)
    lists = {name: folder / f"{name}.txt" for name in ("train", "val")}
    for name, path in lists.items():
        files.write_text(path, "\n".join(rest.ids[parts[name]].tolist()) + "\n")
    paths = {name: str(path.absolute()) for name, path in lists.items()}
    return changed(
        config, data__split__files=paths, data__split__balanced__n=0, eval__final_split=""
    )


COMPARISONS: dict[str, Callable[[Setting, int], dict[str, Lever]]] = {
    "frozen_utk": of_frozen_utk,
    "imbalance_ages": of_imbalance_ages,
    "imbalance_classes": of_imbalance_classes,
}


def table(
    levers: Mapping[str, Lever], rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> str:
    """The comparison in Markdown."""
    names = [path.replace("/", " ") for path in columns]
    heads = ["lever", "against", *(f"{name} | difference" for name in names)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * (2 + 2 * len(names))]
    for name, row in rows.items():
        lever = levers[name]
        first = name == lever.against
        cells = [lever.arm.what, "" if first else levers[lever.against].arm.what]
        for path in columns:
            digits = COLUMNS[path]
            difference = replicates.text(row[path]["difference"], digits, "+")
            cells += [replicates.text(row[path], digits), "" if first else difference]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.levers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--source", required=True, help="UTKFace.tar.gz")
    parser.add_argument("--weights", required=True, type=pathlib.Path, help="a folder of weights")
    parser.add_argument("--seeds", type=usage.at_least(1), default=3)
    parser.add_argument("--only", default="", metavar="REGEX", help="of the arms' names")
    parser.add_argument("--folder", type=pathlib.Path, help="default: runs/levers/COMPARISON")
    parser.add_argument(
        "--output", type=pathlib.Path, help="without suffix; default: experiments/results/levers/…"
    )
    args = parser.parse_args(argv[1:])
    folder = args.folder or pathlib.Path("runs/levers") / args.comparison
    output = args.output or pathlib.Path("experiments/results/levers") / args.comparison

    setting = Setting("cpu", "utkface", args.source, args.weights, folder)
    levers = COMPARISONS[args.comparison](setting, args.seeds)
    known = {name: lever.arm for name, lever in levers.items()}
    named = arms.chosen(known, args.only, REFERENCE)
    against = {levers[name].against for name in named}
    chosen = {name: arm for name, arm in known.items() if name in named or name in against}
    if "ensemble" in chosen:
        arms.run({REFERENCE: known[REFERENCE]}, range(MEMBERS * args.seeds), folder, "val")
    scores = arms.run(chosen, range(args.seeds), folder, "val")
    columns = [c for c in COLUMNS if c.split("/")[0] in scores[REFERENCE].predicted]
    rows = {name: measure(of, scores[levers[name].against], columns) for name, of in scores.items()}
    text = table(levers, rows, columns)
    files.check_folder(output.parent, "--output")
    output.parent.mkdir(parents=True, exist_ok=True)
    n = len(scores[REFERENCE].columns["id"])
    files.write_json(
        output.with_suffix(".json"),
        {
            "command": f"python -m experiments.levers {args.comparison}",
            "commit": arms.commit(),
            "seeds": args.seeds,
            "images": n,
            "intervals": replicates.method(args.seeds),
            "arms": {
                name: {"what": known[name].what, "against": levers[name].against} | row
                for name, row in rows.items()
            },
        },
    )
    files.write_text(
        output.with_suffix(".md"),
        f"# Levers on val: {args.comparison}\n\n{__doc__}\n{n:,} images; seeds: {args.seeds}. "
        f"{replicates.method(args.seeds)}\n\n{text}",
    )
    print(text)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
