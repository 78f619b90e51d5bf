"""Runs and ensembles of agejax as teachers: they see each image as augmented for the student.

"Consistent teaching" in Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and
consistent". A teacher's view has its own size: the same random draws are applied again, so that no
image is resized twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agejax.distillation.teachers import FEATURES
from agejax.errors import UserError
from agejax.heads import Head, priors, training
from agejax.models.face_model import POOLED
from agejax.runs import ensembles
from agejax.runs.run import Run
from agejax.settings import to_json
from agejax.training.optim import Flat
from agejax.training.state import Model
from agejax.training.teaching import Target

FLOAT_VIEWS = ("plain", "flip")  # those of `ensembles.VIEWS` that also work on images in 0..1


@dataclasses.dataclass(frozen=True)
class Columns:
    """Converts a teacher's probabilities to those that a student learns.

    Attributes:
      order: the teacher's outcome for each of the student's, [K].
      shift: added to the logits in the new order, `priors.between`; () for nothing.
    """

    order: tuple[int, ...]
    shift: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network that teaches; see `Teacher`.

    Attributes:
      views: some of `FLOAT_VIEWS`; the outputs for them are averaged.
      ways: head -> how its probabilities are converted.
    """

    name: str
    size: int
    model: Model
    arrays: tuple[Flat, Flat]
    heads: Mapping[str, float]
    ways: Mapping[str, Columns]
    features: int = 0
    views: Sequence[str] = ("plain",)
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def teach(
        self,
        arrays: tuple[Flat, Flat],
        images: jax.Array | None,
        columns: Mapping[str, jax.Array],
    ) -> dict[str, Target]:
        assert images is not None
        seen = [view for name in self.views for view in ensembles.VIEWS[name](images)]
        answers = [self._answer(arrays, view) for view in seen]
        known = jnp.ones(len(images), bool)
        return {
            name: Target(jnp.stack([answer[name] for answer in answers]).mean(axis=0), known)
            for name in answers[0]
        }

    def _answer(self, arrays: tuple[Flat, Flat], images: jax.Array) -> dict[str, jax.Array]:
        outputs, _ = self.model.apply(*arrays, images, pooled=bool(self.features))
        answer = {FEATURES: outputs[POOLED]} if self.features else {}
        for name, way in self.ways.items():
            logits = self.model.heads[name].logits(outputs[name])
            if way.order != tuple(range(len(way.order))):
                logits = logits[:, np.array(way.order)]
            answer[name] = jax.nn.softmax(priors.corrected(logits, way.shift))
        return answer


def opened(path: str, devices: int) -> list[tuple[Run, Mapping[str, float], tuple[str, ...]]]:
    """Opens the networks of a run or an ensemble: (run, head -> its weight, views).

    For each head the weights sum to 1 over the networks.

    Raises:
      UserError: neither of both, damaged, or an ensemble with views other than `FLOAT_VIEWS`.
    """
    members, shares, views = ensembles.networks(path, devices)
    if unknown := [view for view in views if view not in FLOAT_VIEWS]:
        raise UserError(
            f"{path} is an ensemble over the views {', '.join(views)}; as a teacher it may have "
            f"{', '.join(FLOAT_VIEWS)}: make it again without {', '.join(unknown)}"
        )
    return [
        (
            run,
            {
                name: share
                for name, head in run.heads.items()
                if (share := shares[head.label][i]) > 0
            },
            tuple(views),
        )
        for i, run in enumerate(members)
    ]


def of_run(
    run: Run,
    weights: Mapping[str, float],
    views: Sequence[str],
    ways: Mapping[str, Columns],
    size: int,
) -> Network:
    """Makes a run a teacher of the heads in `ways`, on images of `size` pixels."""
    assert run.model is not None
    return Network(
        name=str(run.workdir),
        size=size,
        model=run.model,
        arrays=(run.params, run.batch_stats),
        heads={name: weights[name] for name in ways},
        ways=ways,
        features=run.model.feature_dim,
        views=views,
    )


def natural(run: Run, weights: Mapping[str, float]) -> dict[str, Columns]:
    """Head -> the conversion of the run's probabilities to the natural prior."""
    ratios = training.log_ratios(run.config.heads, run.facts)
    return {
        name: Columns(tuple(range(len(outcomes(head)))), priors.between(ratios[name], ()))
        for name, head in run.heads.items()
        if name in weights and outcomes(head)
    }


def for_student(
    run: Run,
    weights: Mapping[str, float],
    heads: Mapping[str, Head],
    ratios: Mapping[str, Sequence[float]],
    sampling: Any,
) -> dict[str, Columns]:
    """Head -> the conversion of the run's probabilities to the prior of a student's sampler.

    Args:
      heads, ratios, sampling: the student's; ratios as `training.log_ratios` gives them.

    Raises:
      UserError: the run's head of the same name has other outcomes, or no probabilities.
    """
    theirs = training.log_ratios(run.config.heads, run.facts)
    if not run.facts.priors and to_json(run.config.sampling) == to_json(sampling):
        # A run from before priors were stored, with the student's sampler.
        theirs = {name: tuple(ratio) for name, ratio in ratios.items()}
    ways = {}
    for name, head in heads.items():
        if name not in weights:
            continue
        given, wanted = outcomes(run.heads[name]), head.outcomes
        if sorted(given) != sorted(wanted):
            raise UserError(
                f"config.distill.runs: {run.workdir} has no head {name} with the same classes; its "
                f"outcomes are {_brief(given)}, this run's {_brief(wanted)}"
            )
        order = tuple(given.index(outcome) for outcome in wanted)
        ratio = tuple(np.array(theirs[name])[list(order)]) if theirs[name] else ()
        ways[name] = Columns(order, priors.between(ratio, ratios[name]))
    return ways


def outcomes(head: Head) -> tuple[str, ...]:
    """The outcomes of a head; () where it has no probabilities."""
    return () if type(head).logits is Head.logits else head.outcomes


def _brief(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names) if len(names) < 8 else f"{names[0]} to {names[-1]}"
