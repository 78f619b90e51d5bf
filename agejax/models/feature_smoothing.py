"""Feature distribution smoothing (FDS; Yang et al. 2021, Delving into Deep Imbalanced Regression).

Faces of similar ages should have features of similar mean and variance. Running statistics are kept
for every year of age; in training, features are shifted from their own age's statistics to those
smoothed over the neighbouring ages, so that rare ages borrow from common ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.errors import UserError
from agejax.labels.density import lds_window
from agejax.settings import Group, Setting

LEAST, MOST = 0.1, 10.0  # limits on the ratio of variances


# config.heads.NAME.fds.
SETTINGS = Group(
    "Feature distribution smoothing (FDS; Yang et al. 2021).",
    oldest=Setting(100, "Ages above count as this one.", limits=(1, 1000), unit="years"),
    sigma=Setting(2.0, "Width of the smoothing kernel over ages.", above=0, unit="years"),
    size=Setting(
        5, "Size of the smoothing window, odd and at most `oldest`.", limits=(1, None), unit="years"
    ),
    momentum=Setting(
        0.9,
        "Share of their old value that running statistics keep at the end of an epoch.",
        limits=(0, None),
        below=1,
    ),
    first_epoch=Setting(1, "First epoch in which features are smoothed.", limits=(1, None)),
)


@dataclasses.dataclass(frozen=True)
class SmoothingOptions:
    """The values of `SETTINGS`."""

    oldest: int
    sigma: float
    size: int
    momentum: float
    first_epoch: int

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> SmoothingOptions:
        """Raises `UserError` for an unknown key or an invalid value."""
        SETTINGS.check(given, where)
        options = cls(**SETTINGS.defaults() | dict(given))
        if options.size % 2 == 0 or options.size > options.oldest:
            raise UserError(
                f"{where}.size: {options.size}; set it to an odd number of years, at most "
                f"{where}.oldest, which is {options.oldest}"
            )
        return options


class FeatureSmoothing(nnx.Module):
    """Features [B, C] of ages [B] -> features [B, C]; the head's dropout comes after it.

    Statistics are collected during an epoch, from the features before smoothing, and take effect in
    the next. (The authors make a separate pass over the data at the end of each epoch, with the
    weights at that time.) Ages that were never seen do not contribute to their neighbours, and
    an age that is first seen in a later epoch begins with what it has there; in the authors' code
    both have a mean of 0 at first.
    """

    def __init__(self, options: SmoothingOptions, channels: int) -> None:
        self.options = options
        shape = (options.oldest + 1, channels)
        self.epoch = nnx.BatchStat(jnp.zeros((), jnp.float32))
        self.seen, self.count = (nnx.BatchStat(jnp.zeros((shape[0], 1))) for _ in range(2))
        self.sum, self.squares = (nnx.BatchStat(jnp.zeros(shape, jnp.float32)) for _ in range(2))
        self.mean = nnx.BatchStat(jnp.zeros(shape, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(shape, jnp.float32))

    def __call__(self, x: jax.Array, ages: jax.Array, epoch: jax.Array) -> jax.Array:
        """Smooths; rows of NaN age stay unchanged. `epoch`: number of the current one, int []."""
        self._finish(epoch)
        known = jnp.isfinite(ages)
        at = jnp.where(known, jnp.clip(jnp.round(jnp.nan_to_num(ages)), 0, self.options.oldest), 0)
        at = at.astype(jnp.int32)
        seen = jax.lax.stop_gradient(jnp.where(known[:, None], x, 0))
        self.count.set_value(self.count[...].at[at].add(known[:, None].astype(jnp.float32)))
        self.sum.set_value(self.sum[...].at[at].add(seen))
        self.squares.set_value(self.squares[...].at[at].add(jnp.square(seen)))

        mean, var = self.mean[...], self.var[...]
        smooth_mean, smooth_var = self._smooth(mean), self._smooth(var)
        # A constant channel has no scale to change.
        ratio = jnp.where(var > 0, jnp.clip(smooth_var / jnp.maximum(var, 1e-12), LEAST, MOST), 1)
        moved = (x - mean[at]) * jnp.sqrt(ratio)[at] + smooth_mean[at]
        ready = known & (epoch >= self.options.first_epoch) & (self.seen[...][at, 0] > 0)
        return jnp.where(ready[:, None], moved, x)

    def _finish(self, epoch: jax.Array) -> None:
        """Updates the running statistics with those of an epoch, when the next one begins."""
        new = epoch > self.epoch[...]
        count = self.count[...]
        mean = self.sum[...] / jnp.maximum(count, 1)
        var = jnp.maximum(self.squares[...] / jnp.maximum(count, 1) - jnp.square(mean), 0)
        var *= count / jnp.maximum(count - 1, 1)  # unbiased
        keep = jnp.where(self.seen[...] > 0, self.options.momentum, 0.0)
        update = new & (count > 0)
        for variable, value in ((self.mean, mean), (self.var, var)):
            running = keep * variable[...] + (1 - keep) * value
            variable.set_value(jnp.where(update, running, variable[...]))
        self.seen.set_value(jnp.where(update, 1.0, self.seen[...]))
        for variable in (self.count, self.sum, self.squares):
            variable.set_value(jnp.where(new, 0.0, variable[...]))
        self.epoch.set_value(jnp.asarray(epoch, jnp.float32))

    def _smooth(self, x: jax.Array) -> jax.Array:
        """Means over the window, of seen ages only: [ages, C] -> [ages, C]."""
        seen = self.seen[...]
        lent = self._convolve(seen)
        return jnp.where(lent > 0, self._convolve(seen * x) / jnp.maximum(lent, 1e-12), x)

    def _convolve(self, x: jax.Array) -> jax.Array:
        """Convolves with the window over ages, reflected at both ends."""
        window = lds_window(self.options.sigma, self.options.size)
        half = self.options.size // 2
        padded = jnp.pad(x, ((half, half), (0, 0)), mode="reflect")
        parts = [float(w) * padded[i : i + len(x)] for i, w in enumerate(window / window.sum())]
        return functools.reduce(jnp.add, parts)
