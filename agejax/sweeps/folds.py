"""Cross-validation: one config trained and scored on each of several splits."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from agejax import files
from agejax.config import replaced
from agejax.errors import UserError, is_number
from agejax.logging import console
from agejax.reporting import markdown, results
from agejax.reporting.figures import MISSING
from agejax.runs import lineage, run_folder, summary, warm_start
from agejax.train import train
from agejax.training import image_sizes
from agejax.training.checkpoint import Checkpoints

SPLITS = ("train", "val", "test")
PROTOCOL = "protocol.json"
# Figure of a target -> its column in the table, and the format of its values.
FIGURES = {
    "mae": ("{} MAE, years", ".2f"),
    "cs5": ("{} within 5 years", ".3f"),
    "accuracy": ("{} accuracy", ".3f"),
}
ABOUT = """\
The last line is the mean over the folds and, in brackets, their standard deviation (with n below
the line, not n - 1). Folds share training images, so the deviation is no error of the mean. Each
fold is one training of one seed."""


@dataclasses.dataclass(frozen=True)
class Folds:
    """The folds of a config.

    Attributes:
      changes: of each fold, {setting: value}.
      name: of the splits, for the table.
      left_out: images of a protocol that are in none of its lists.
    """

    changes: list[dict[str, Any]]
    name: str
    left_out: int = 0


def of_protocol(folder: pathlib.Path) -> Folds:
    """The folds that `python -m agejax.data.protocol` wrote to a folder.

    Raises:
      UserError: there are none.
    """
    remedy = "write the folder with python -m agejax.data.protocol"
    if not (folder / PROTOCOL).exists():
        raise UserError(f"--protocol={folder}: it holds no {PROTOCOL}; {remedy}")
    about = files.read_json(folder / PROTOCOL, dict, remedy)
    folder = folder.resolve()  # a fold resumes from whatever folder the command is started in
    count, left_out = about.get("folds"), about.get("left_out", 0)
    if not isinstance(count, int) or count < 1 or not isinstance(left_out, int):
        raise UserError(f"{folder / PROTOCOL} names no folds; {remedy}")
    places = [folder / f"fold-{number}" for number in range(count)]
    return Folds(
        [
            {"data.split.files": {split: str(place / f"{split}.txt") for split in SPLITS}}
            for place in places
        ],
        str(about.get("database", folder.name)),
        left_out,
    )


def of_config(config: ml_collections.ConfigDict) -> Folds:
    """The folds that config.data.split.folds makes.

    Raises:
      UserError: it is 0.
    """
    count = config.data.split.folds
    if not count:
        raise UserError(
            "config.data.split.folds: 0 makes no folds; set it, such as "
            "--config.data.split.folds=5, or name a public benchmark's lists with --protocol"
        )
    return Folds(
        [{"data.split.fold": number} for number in range(count)],
        f"{count} folds of {lineage.data_name(config.data)}, seed {config.data.split.seed}",
    )


def cross_validate(
    config: ml_collections.ConfigDict, folder: pathlib.Path, folds: Folds
) -> dict[str, Any] | None:
    """Trains and scores the folds one after the other, and writes folds.json and folds.md.

    Fold i is the run FOLDER/fold-i. A fold that is trained and scored already is kept as it is, and
    one that was stopped goes on from its last checkpoint.

    Returns:
      The contents of folds.json; None where a signal stopped it.

    Raises:
      UserError: as `train`; a finished fold of another config; or no test split.
    """
    todo = [
        (replaced(config, changes), folder / f"fold-{number}")
        for number, changes in enumerate(folds.changes)
    ]
    scores = [_scored(*fold) for fold in todo]
    workdirs = [workdir for _, workdir in todo]
    for number, fold in enumerate(todo):
        if scores[number] is None:
            console.result(f"fold {number}, {number + 1} of {len(todo)}: {workdirs[number]}")
            scores[number] = _score(*fold)
            if scores[number] is None:
                return None
            _write(folder, folds, workdirs, scores)
    return _write(folder, folds, workdirs, scores)


def _write(
    folder: pathlib.Path,
    folds: Folds,
    workdirs: Sequence[pathlib.Path],
    scores: Sequence[Mapping[str, Any] | None],
) -> dict[str, Any]:
    """Writes folds.json and folds.md of the folds that are scored; returns folds.json."""
    found = tabulate(
        [
            {"fold": number, "examples": _examples(workdirs[number]), "figures": _figures(score)}
            for number, score in enumerate(scores)
            if score is not None
        ],
        folds,
    )
    files.write_json(folder / "folds.json", found)
    files.write_text(folder / "folds.md", text(found))
    return found


def _scored(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any] | None:
    """metrics.json of a fold's test split; None where the fold is not trained or not scored.

    Of the evaluations there, that of the run's own data and best step, at the image size of the
    config, counts: a fold that was trained again may still have those of its former checkpoints
    beside it.

    Raises:
      UserError: the fold was trained with another config, from other weights or by other teachers.
    """
    stored = run_folder.stored_config(workdir)
    if stored is None:
        return None
    config = warm_start.settle(config, workdir, stored)
    run_folder.check_same_config(workdir, stored, config)
    if run_folder.learned_from(stored) != run_folder.learned_from(config):
        raise UserError(
            f"{workdir} started from other weights, or has other teachers: see model.pretrained "
            f"and distill in {workdir / 'config.json'}; give the same, or use another --workdir"
        )
    if not (workdir / summary.FILE).exists():
        return None
    checkpoints = Checkpoints(workdir / "checkpoints", config.eval.best_mode)
    if _summary(workdir).get("steps") != checkpoints.last or checkpoints.best is None:
        return None  # it is being trained again
    wanted = {
        "split": "test",
        "step": checkpoints.best,
        "fingerprint": checkpoints.meta(checkpoints.best)["fingerprint"],
        "image_size": image_sizes.of_evaluation(config),
    }
    for path in sorted(workdir.glob("evaluation/*-test/metrics.json")):
        found: dict[str, Any] = files.read_json(path, dict, "remove it to score the fold again")
        if found | wanted == found:
            return found
    return None


def _score(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any] | None:
    """Trains a fold and scores its test split; None: a signal came."""
    try:
        if train(config, workdir) is None:
            return None
        return results.evaluate(workdir, split="test").metrics
    finally:
        jax.clear_caches()  # else compiled programs of many folds fill the memory


def _summary(workdir: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(
        workdir / summary.FILE, dict, "remove it to train the fold again"
    )
    return found


def _examples(workdir: pathlib.Path) -> dict[str, int]:
    examples: dict[str, int] = _summary(workdir)["examples"]
    return examples


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    """{"age/mae": years, ...} of an evaluation."""
    return {
        f"{target}/{figure}": result[target][figure]
        for target in result["groups"]
        for figure in FIGURES
        if is_number(result[target].get(figure))
    }


def tabulate(rows: Sequence[Mapping[str, Any]], folds: Folds) -> dict[str, Any]:
    """The scores of the folds done so far, with the mean and standard deviation of each figure.

    Args:
      rows: {"fold", "examples": {split: images}, "figures": {name: value}} of each; a fold lacks
        a figure where no image of its test split has the label.
    """
    names = dict.fromkeys(name for row in rows for name in row["figures"])
    values = {
        name: [row["figures"][name] for row in rows if name in row["figures"]] for name in names
    }
    return {
        "splits": folds.name,
        "folds": len(folds.changes),
        "left_out": folds.left_out,
        "rows": list(rows),
        "mean": {name: float(np.mean(of)) for name, of in values.items()},
        # Of these folds, not of folds to come: as the benchmark facebase computes it.
        "std": {name: float(np.std(of)) for name, of in values.items()},
    }


def text(found: Mapping[str, Any]) -> str:
    """folds.md: a row per fold, then mean(standard deviation)."""
    columns = {name: FIGURES[name.rpartition("/")[2]] for name in found["mean"]}
    titles = [title.format(name.rpartition("/")[0]) for name, (title, _) in columns.items()]
    rows, lacking = [], False
    for row in found["rows"]:
        sizes = [row["examples"].get(split, 0) for split in SPLITS]
        scores = [
            format(row["figures"][name], form) if name in row["figures"] else MISSING
            for name, (_, form) in columns.items()
        ]
        lacking = lacking or MISSING in scores
        rows.append([str(row["fold"]), *sizes, *scores])
    over = [
        f"{found['mean'][name]:{form}}({found['std'][name]:{form}})"
        for name, (_, form) in columns.items()
    ]
    rows.append(["mean", *[""] * len(SPLITS), *over])
    table = markdown.table(["fold", *SPLITS, *titles], rows)
    parts = [f"# {found['splits']}", table, ABOUT]
    done = len(found["rows"])
    if done < found["folds"]:
        parts.insert(1, f"{done} of {found['folds']} folds are done.")
    if lacking:
        parts.append(
            f"{MISSING}: no image of that fold's test split has the label; the mean is over the "
            "other folds."
        )
    if found["left_out"]:
        parts.append(
            f"{found['left_out']:,} images of the protocol are left out, since the data lacks them "
            "or they are named twice: these figures do not compare with published ones."
        )
    return "\n\n".join(parts) + "\n"
