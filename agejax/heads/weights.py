"""Weights of examples in a head's loss: config.heads.NAME.example_weights.

They are computed once, from the labels of the training split, have mean 1 over what the sampler
draws, and are in the batch as the label `example_weight/NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from agejax.errors import UserError, one_of
from agejax.heads.ages import Regression
from agejax.heads.head import Head
from agejax.labels import density, is_known
from agejax.settings import Group, Setting

PREFIX = "example_weight/"
# The kinds with their options. Each kind also takes `after`, a duration.
KINDS = {
    "dense": Group(
        "DenseWeight of the age; in the loss it is DenseLoss.",
        alpha=Setting(1.0, "0 is uniform, 1 inverts the density of the age.", limits=(0, None)),
    ),
    "lds": Group(
        "By the smoothed counts of the age.",
        reweight=Setting("sqrt", "How counts become weights.", choices=("sqrt", "inverse")),
        sigma=Setting(2.0, "Width of the smoothing kernel.", above=0, unit="years"),
        size=Setting(5, "Size of the smoothing window, odd.", limits=(1, None), unit="years"),
    ),
    "inverse": Group(
        "By the inverse counts of the classes or years (INS).",
        power=Setting(1.0, "0.5 takes the square root (ISNS).", limits=(0, None)),
    ),
    "class_balanced": Group(
        "By the effective number of examples of each class (Cui et al. 2019).",
        beta=Setting(
            0.9999,
            "0 is uniform; the nearer to 1, the nearer to inverse counts.",
            limits=(0, None),
            below=1,
        ),
    ),
}


def of(
    config: Mapping[str, Any],
    heads: Mapping[str, Head],
    labels: Mapping[str, np.ndarray],
    rows: np.ndarray,
    drawn: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """{example_weight/NAME: float32 [N]} for the heads that have weights; 1 outside `rows`.

    Args:
      config: config.heads.
      labels: of all examples, [N] each.
      rows: the training split.
      drawn: how often each of `rows` is drawn, f64 [rows], in any unit; None: all equally often.

    Raises:
      UserError: an unknown kind or option, or a label that does not suit it.
    """
    result = {}
    for name, head in heads.items():
        given = dict(config[name].get("example_weights") or {})
        if not given:
            continue
        where = f"config.heads.{name}.example_weights"
        kind = given.pop("kind", None)
        one_of(where, "kind", kind, tuple(KINDS))
        given.pop("after", None)
        KINDS[kind].check(given, where)
        values = labels[head.label][rows]
        weights = np.ones(len(labels[head.label]), np.float32)
        of_rows = _weights(kind, KINDS[kind].defaults() | given, head, values, where)
        if drawn is not None:
            # Or a sampler that favours the same rows would raise the head's share of the loss.
            known = is_known(values)
            of_rows[known] /= np.average(of_rows[known], weights=drawn[known])
        weights[rows] = of_rows
        result[PREFIX + name] = weights
    return result


def switches(
    config: Mapping[str, Any], to_steps: Callable[[Mapping[str, float], str], int]
) -> dict[str, int]:
    """Deferred re-weighting (Cao et al. 2019): head -> the step from which its weights count.

    `example_weights.after` is a duration; without one they count from the start.
    """
    return {
        name: to_steps(head.example_weights.after, f"heads.{name}.example_weights.after")
        for name, head in config.items()
        if (head.get("example_weights") or {}).get("after")
    }


def _weights(
    kind: str, options: Mapping[str, Any], head: Head, values: np.ndarray, where: str
) -> np.ndarray:
    real = values.dtype.kind == "f"
    if kind in ("dense", "lds") and not real:
        raise UserError(f"{where}.kind: {kind} is for ages; {head.label!r} has classes")
    match kind:
        case "dense":
            # The density on the scale on which the loss is computed.
            if isinstance(head, Regression):
                values = np.asarray(head.scale.encode(jnp.asarray(values)))
            return density.dense_weight(values, options["alpha"])
        case "lds":
            return density.lds_weight(values, **options, where=f"{where}.size")
    if buckets := head.derived(values):
        classes = next(iter(buckets.values()))[0]
    else:
        classes = np.where(np.isfinite(values), np.rint(values), -1).astype(np.int64)
    if kind == "inverse":
        return density.inverse_count(classes, **options)
    return density.class_balanced(classes, **options)
