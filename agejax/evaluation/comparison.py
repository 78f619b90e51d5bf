"""Several runs on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.evaluation import metrics
from agejax.evaluation.scored import Scored, open_data, score_rows
from agejax.logging import console
from agejax.runs import box, run_folder
from agejax.runs.run import Run


def score_again(
    scored: Scored,
    run: Run,
    source_path: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Scored:
    """Scores another run on the same images, in the same order.

    Reports on stderr how many of the images the other run has trained on.

    Raises:
      UserError: the other run's data lacks one of the images.
    """
    config = scored.run.config.data
    dataset = None if scored.source.part is not None else scored.source.name  # not of a mixture
    if source_path is None and opening.is_own(config, dataset):
        source_path = config.source  # the other run's config may name another place
    source = open_data(run, dataset, source_path, options)
    row = {name: i for i, name in enumerate(source.ids.tolist())}
    ids = scored.source.ids[scored.rows].tolist()
    if missing := [name for name in ids if name not in row]:
        raise UserError(
            f"--compare={run.workdir}: its data lacks {len(missing):,} of the {len(ids):,} images, "
            f"such as {missing[0]}"
        )
    rows = np.array([row[name] for name in ids])
    if source.fingerprint == run.fingerprint and scored.split != "train":
        learned = splits.make(source, run.config.data.split)["train"]
        if seen := source.shared(rows, learned).sum():
            console.warning(
                f"{run.workdir} was trained on {seen:,} of these {len(rows):,} images, or "
                "on copies of them, so its errors are too small"
            )
    return score_rows(run, source, rows, scored.split)


def compare(scored: Scored, others: Sequence[Scored]) -> list[dict[str, Any]]:
    """Compares a run with others on the same images, config by config.

    Runs of one config that differ in their seed count as one recipe, trained several times. Where
    all runs have the config of `scored`, each is compared with it alone.

    Args:
      others: the other runs' predictions of the same images, from `score_again`.

    Returns:
      An entry per other config, in the order given: {"ours", "theirs": {"workdirs", "seeds"},
      "matched": whether both have the same seeds, which are then compared one by one, "targets":
      `metrics.paired`}. A target whose classes one of the runs numbers differently is left out.
    """
    recipes = [[scored]]
    for one in others:
        recipe = next((known for known in recipes if _is_another_seed(one.run, known)), None)
        if recipe is None:
            recipes.append([one])
        else:
            recipe.append(one)
    if len(recipes) == 1:
        recipes = [[one] for one in recipes[0]]
    recipes = [sorted(recipe, key=lambda one: _seed(one.run)) for recipe in recipes]
    ours, *theirs = recipes
    return [_compare(ours, recipe) for recipe in theirs]


def _seed(run: Run) -> int:
    return int(run.config.get("seed", 0))


def _is_another_seed(run: Run, known: Sequence[Scored]) -> bool:
    """Whether a run is one more training of the recipe of these."""
    first = known[0].run
    return (
        not any(box.is_ensemble(one.workdir) for one in (run, first))
        and run.fingerprint == first.fingerprint
        and run_folder.same_recipe(run.config, first.config)
        and _seed(run) not in [_seed(one.run) for one in known]
    )


def _compare(ours: Sequence[Scored], theirs: Sequence[Scored]) -> dict[str, Any]:
    names = ours[0].label_names
    predictions = [
        {
            label: values
            for label, values in one.predictions.items()
            if one.label_names.get(label) == names.get(label)
        }
        for one in (*ours, *theirs)
    ]
    sides = [
        {
            "workdirs": [box.name_of(one.run.workdir) for one in of],
            "seeds": [_seed(one.run) for one in of],
        }
        for of in (ours, theirs)
    ]
    matched = sides[0]["seeds"] == sides[1]["seeds"]
    targets = metrics.paired(
        predictions[: len(ours)],
        predictions[len(ours) :],
        ours[0].labels,
        names,
        ours[0].duplicates,
        matched=matched,
    )
    return {"ours": sides[0], "theirs": sides[1], "matched": matched, "targets": targets}


def title(found: Mapping[str, Any]) -> str:
    """What an entry of `compare` compares, in one line."""
    ours, theirs = found["ours"]["workdirs"], found["theirs"]["workdirs"]
    if len(ours) == len(theirs) == 1:
        return f"against {theirs[0]}, paired on the same images"
    seeds = ", by seed" if found["matched"] else ""
    return (
        f"{_runs(ours)} against {_runs(theirs)}, paired on the same images{seeds}; intervals are "
        "over seeds and images"
    )


def _runs(workdirs: Sequence[str]) -> str:
    if len(workdirs) == 1:
        return workdirs[0]
    return f"{len(workdirs)} seeds ({', '.join(workdirs)})"
