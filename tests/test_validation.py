"""Val, scored while a run trains."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from agejax import checks
from agejax.evaluation.validation import Validation
from agejax.heads import Facts, create
from agejax.training import sharding

HEADS = {
    "age": {"kind": "regression"},
    "sex": {"kind": "binary", "label": "gender", "weight": 0.25},
}


def test_the_loss_is_the_weighted_sum_of_the_heads_means_over_known_labels():
    """Images of 0 to 116 years; val is those of 1 to 5, in batches of 4; one sex is unknown."""
    source = checks._stand_in(HEADS)
    gender = source.labels["gender"].copy()
    gender[3] = -1
    source = dataclasses.replace(source, labels=source.labels | {"gender": gender})

    def eval_step(params, batch_stats, batch):
        male = batch["gender"] != 1
        return {
            "age": batch["age"] + 2,
            "gender": jnp.stack([male, ~male], axis=1).astype(jnp.float32),
            "age/loss": batch["age"] / 2,
            "sex/loss": jnp.where(batch["gender"] < 0, jnp.nan, 4 * batch["age"]),
        }

    validate = Validation(
        eval_step,
        create(HEADS, Facts.of(source.labels, source.label_names)),
        source,
        rows=np.arange(1, 6),
        batch_size=4,
        mesh=sharding.create_mesh(1, 1),
        floor_age=None,
        features=None,
    )
    found = validate(State())
    assert found is not None
    # Ages: (1 + ... + 5) / 2 / 5; sexes: 4 (1 + 2 + 4 + 5) / 4, a quarter of that.
    assert found["loss"] == pytest.approx(1.5 + 0.25 * 12)
    assert (found["age"]["mae"], found["gender"]["accuracy"], found["gender"]["n"]) == (2, 1, 4)


class State:
    step = 7

    def averaged(self):
        return None, None
