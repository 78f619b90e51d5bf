"""The share of each age or class in the data, and in what training drew and weighted.

A sampler or example weights change the distribution that a head sees. Its probabilities are right
for that distribution, and `config.heads.NAME.decode_prior = "natural"` corrects them (Bayes' rule;
Saerens et al. 2002, "Adjusting the Outputs of a Classifier to New a Priori Probabilities"):

    p(y | image) ~ p_sampled(y | image) · natural(y) / sampled(y)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

DECODE = ("natural", "sampled")  # also the keys of a prior
HELP = (
    "Whose distribution the probabilities follow: the data's (natural), or what the sampler and "
    "the example weights made of it (sampled)."
)
FEW = 10  # rows, and draws per epoch: an age with fewer borrows from its neighbours

Prior = Mapping[str, Sequence[float]]  # {"natural", "sampled"}: per year from 0 on, or per class


def log_ratio(
    decode: str,
    prior: Prior | None,
    binned: Callable[[Sequence[float]], np.ndarray],
    *,
    ordered: bool = True,
) -> tuple[float, ...]:
    """log natural / sampled for each of K bins; () if there is nothing to correct.

    Args:
      decode: "natural" or "sampled".
      prior: None if training drew and weighted all labels evenly.
      binned: the prior's counts -> those of the head's bins, f64 [K].
      ordered: whether the bins are ages. A bin with fewer than `FEW` rows or draws then gets the
        ratio of the narrowest window around it with that many. Classes have no neighbours: a class
        without a row or a draw gets the overall ratio, which changes nothing.
    """
    if decode == "sampled" or prior is None:
        return ()
    natural, sampled = (binned(prior[key]) for key in DECODE)
    k = len(natural)
    ratios = np.full(k, natural.sum() / sampled.sum())
    least = FEW if ordered else np.finfo(float).tiny
    for i in range(k):
        for reach in range(k if ordered else 1):
            window = slice(max(i - reach, 0), i + reach + 1)
            rows, draws = natural[window].sum(), sampled[window].sum()
            if min(rows, draws) >= least:
                ratios[i] = rows / draws
                break
    return tuple(np.log(ratios).tolist())


def between(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, ...]:
    """What to add to logits learned under one sampler, to be as if learned under another.

    With p_natural ~ p_theirs · natural / sampled_theirs and p_ours ~ p_natural · sampled_ours /
    natural, this is log p_ours / p_theirs.

    Args:
      theirs, ours: `log_ratio` of each of K bins; () for a sampler that prefers none.

    Returns:
      The terms [K], () if there are none.
    """
    width = max(len(theirs), len(ours))
    gains = [np.array(ratio) if len(ratio) else np.zeros(width) for ratio in (theirs, ours)]
    difference = gains[0] - gains[1]
    return tuple(difference.tolist()) if difference.any() else ()


def corrected(logits: jax.Array, log_ratios: Sequence[float]) -> jax.Array:
    """Logits [B, K] whose softmax has `log_ratio` applied."""
    return logits + jnp.array(log_ratios) if len(log_ratios) else logits
