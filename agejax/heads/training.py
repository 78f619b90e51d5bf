"""The heads of a new run, with its example weights and the priors that decoding must correct."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from agejax.heads import priors, weights
from agejax.heads.head import KINDS, Facts, Head, create
from agejax.labels import is_known


def prepare(
    config: Mapping[str, Any],
    facts: Facts,
    labels: Mapping[str, np.ndarray],
    rows: np.ndarray,
    drawn: np.ndarray,
    natural: np.ndarray,
) -> tuple[dict[str, Head], Facts, dict[str, np.ndarray]]:
    """The heads of a new run, the facts to save with it, and its example weights.

    Args:
      config: config.heads.
      facts: of the training split.
      labels: of all examples, [N] each.
      rows: the training split.
      drawn, natural: how often an epoch draws each of `rows` on average, f64 [rows]: with the run's
        sampler, and with one that prefers no label.

    Returns:
      (heads, the facts with their priors, as `weights.of`).
    """
    heads = create(config, facts)
    example_weights = weights.of(config, heads, labels, rows, drawn)
    facts = dataclasses.replace(
        facts, priors=measure(heads, labels, rows, drawn, natural, example_weights)
    )
    return create(config, facts), facts, example_weights


def log_ratios(config: Mapping[str, Any], facts: Facts) -> dict[str, tuple[float, ...]]:
    """Head -> log natural / sampled for each of its outcomes, () if training changed no prior.

    Independent of `decode_prior`: these are the ratios of a head that corrects the prior.

    Args:
      config: config.heads.
      facts: as `prepare` returns them.
    """
    undone = {
        name: {**given, "decode_prior": "natural"}
        if "decode_prior" in KINDS[given["kind"]].options
        else given
        for name, given in config.items()
    }
    return {name: getattr(head, "prior", ()) for name, head in create(undone, facts).items()}


def measure(
    heads: Mapping[str, Head],
    labels: Mapping[str, np.ndarray],
    rows: np.ndarray,
    drawn: np.ndarray,
    natural: np.ndarray,
    example_weights: Mapping[str, np.ndarray],
) -> dict[str, priors.Prior]:
    """Head -> its prior, for heads that can correct it and whose training changed it.

    The arguments are those of `prepare`. Weights that count only later (`after`) count here:
    decoding must fit the end of training.
    """
    result: dict[str, priors.Prior] = {}
    for name, head in heads.items():
        if "decode_prior" not in getattr(head, "options", {}):
            continue
        values, sampled = labels[head.label][rows], drawn
        if (weight := example_weights.get(weights.PREFIX + name)) is not None:
            sampled = drawn * weight[rows]
        known = is_known(values)
        bins = np.rint(values[known]).clip(0).astype(np.int64)  # as in `Facts.counts`
        both = {
            key: np.bincount(bins, of_rows[known])
            for key, of_rows in (("natural", natural), ("sampled", sampled))
        }
        shares = [counts / counts.sum() for counts in both.values()]
        if not np.allclose(shares[0], shares[1], rtol=1e-5):
            result[name] = {key: counts.tolist() for key, counts in both.items()}
    return result
