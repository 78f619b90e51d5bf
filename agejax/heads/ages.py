"""Heads for age: a number, a distribution over ages, ranks, a mean with a variance.

All of them decode to years, so that one table can compare them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agejax.errors import UserError
from agejax.heads import losses, priors
from agejax.heads.head import Adapted, Arrays, Facts, Head, Labels, adapt_columns, register, shifted
from agejax.models import outputs
from agejax.settings import Group, Setting

MOST_YEARS = 1000  # in a head's range; an age needs no more outputs
RANGE = Setting(
    (0.0, 116.0),
    "Lowest and highest age that it predicts.",
    limits=(0, MOST_YEARS),
    length=2,
    rising=True,
    unit="years",
)
COMPONENTS = 8  # of the mixture fitted to the training ages for balanced MSE


@dataclasses.dataclass(frozen=True)
class Age(Head):
    """A head of a real-valued label; subclasses decode to years.

    Attributes:
      low, high: the range of its predictions, years.
      mean: of the training labels, years; replaces an unknown label, whose loss does not count.
    """

    low: float
    high: float
    mean: float

    @staticmethod
    def fields(
        name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> dict[str, Any]:
        """The fields above and `Head`'s. Raises `UserError` for an invalid label or range."""
        where, (low, high) = f"config.heads.{name}", options["range"]
        if low == high:
            raise UserError(f"{where}.range: {options['range']!r}; low must be below high")
        if label not in facts.means:
            raise UserError(f"{where}: {label!r} is not a number; use kind binary or categorical")
        return {
            "name": name,
            "label": label,
            "weight": weight,
            "low": float(low),
            "high": float(high),
            "mean": facts.means[label],
        }

    def years(self, labels: Labels) -> jax.Array:
        """The label [B], the mean if unknown: NaN * 0 is NaN, so NaN must not reach a loss."""
        return jnp.where(self.known(labels), labels[self.label], self.mean)

    def metrics(self, output: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        error = self.decode(output) - labels[self.label]
        return {"mae": jnp.where(self.known(labels), jnp.abs(error), 0.0)}


def by_year(counts: Sequence[float], low: float, high: float) -> np.ndarray:
    """Counts per year from 0 on -> counts per year of low..high, f64 [K].

    Ages outside count as the nearest inside, as in the heads' losses.
    """
    ages = np.clip(np.arange(len(counts)), round(low), round(high)) - round(low)
    return np.bincount(ages, counts, round(high) - round(low) + 1)


def ends_of_years(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """{"low", "high"} of `Age.fields`, for heads with an output per year.

    Raises:
      UserError: the range has no two whole years to choose from.
    """
    ends = {key: fields[key] for key in ("low", "high")}
    if round(ends["low"]) == round(ends["high"]):
        raise UserError(
            f"config.heads.{name}.range: {tuple(ends.values())} is one year, "
            f"{round(ends['low'])}; set it to two or more"
        )
    return ends


def start_counts(counts: Sequence[int], low: float, high: float) -> np.ndarray:
    """Training images per year of low..high, plus one, f64 [K].

    An output of K ages starts from them: its biases would need long to learn this distribution.
    """
    return by_year(counts, low, high) + 1.0


@dataclasses.dataclass(frozen=True)
class Scale:
    """The scale on which a loss is computed, and its inverse to years.

    Attributes:
      kind: identity | log (of 1 + years) | unit (the range as 0..1) | standard (mean 0, std 1).
    """

    kind: str
    low: float
    high: float
    mean: float
    std: float

    KINDS: ClassVar[tuple[str, ...]] = ("identity", "log", "unit", "standard")

    @classmethod
    def of(cls, kind: str, fields: Mapping[str, Any], std: float) -> Scale:
        """The scale with the range and mean in `Age.fields`."""
        return cls(kind, fields["low"], fields["high"], fields["mean"], std)

    def encode(self, years: jax.Array) -> jax.Array:
        match self.kind:
            case "log":
                return jnp.log1p(years)
            case "unit":
                return (years - self.low) / (self.high - self.low)
            case "standard":
                return (years - self.mean) / self.std
        return years

    def decode(self, value: jax.Array) -> jax.Array:
        """Years, clipped to the range."""
        match self.kind:
            case "log":
                # Clip before expm1: an extreme logit must not become inf.
                years = jnp.expm1(jnp.clip(value, 0.0, math.log1p(self.high)))
            case "unit":
                years = value * (self.high - self.low) + self.low
            case "standard":
                years = value * self.std + self.mean
            case _:
                years = value
        return jnp.clip(years, self.low, self.high)

    def line_from(self, other: Scale) -> tuple[float, float] | None:
        """(a, b): a · value + b here stands for the same years as `value` on another scale.

        None if the two scales have no linear relation.
        """
        if self.kind == other.kind == "log":
            return 1.0, 0.0
        if "log" in (self.kind, other.kind):
            return None
        (theirs, their_zero), (ours, our_zero) = other._line(), self._line()
        return theirs / ours, (their_zero - our_zero) / ours

    def _line(self) -> tuple[float, float]:
        """(a, b) of years = a · value + b."""
        match self.kind:
            case "unit":
                return self.high - self.low, self.low
            case "standard":
                return self.std, self.mean
        return 1.0, 0.0


@register("regression")
@dataclasses.dataclass(frozen=True)
class Regression(Age):
    """One real number on a transformed scale.

    Attributes:
      noise: balanced MSE: initial value of its learned standard deviation, years.
      counts: training images per year of age from 0 on.
    """

    scale: Scale
    loss_name: str
    huber_delta: float
    noise: float
    counts: tuple[int, ...]

    options: ClassVar[Group] = Group(
        "One number on a transformed scale.",
        transform=Setting(
            "standard",
            "Scale of the loss: years, log(1 + years), the range as 0..1, or mean 0 and standard "
            "deviation 1.",
            choices=Scale.KINDS,
        ),
        loss=Setting(
            "l1",
            "Loss on that scale. bmc and gai are balanced MSE (Ren et al. 2022): against the "
            "labels of the batch, or a mixture that stands for those of training. The mixture does "
            "not know how images are drawn or weighted: leave them alike with gai.",
            choices=("l1", "l2", "huber", "bmc", "gai"),
        ),
        huber_delta=Setting(
            1.0, "huber: where it becomes linear, on the transformed scale.", above=0
        ),
        noise=Setting(8.0, "bmc and gai: start of the learned deviation.", above=0, unit="years"),
        range=dataclasses.replace(
            RANGE, help=f"{RANGE.help[:-1]}, and the range of the transform unit."
        ),
    )

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Regression:
        fields = cls.fields(name, label, weight, options, facts)
        return cls(
            **fields,
            scale=Scale.of(options["transform"], fields, facts.stds[label]),
            loss_name=options["loss"],
            huber_delta=options["huber_delta"],
            noise=options["noise"],
            counts=tuple(facts.counts.get(label, ())),
        )

    @functools.cached_property
    def mixture(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means, variances and weights, [M], of the training labels on the loss's scale.

        Fitted only when a loss asks for it: prediction does not need it.
        """
        with jax.ensure_compile_time_eval():
            ages = self.scale.encode(
                jnp.repeat(jnp.arange(len(self.counts)), np.array(self.counts))
            )
        return losses.fit_mixture(np.asarray(ages), COMPONENTS, seed=0)

    def output(self, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        # So training does not have to learn the mean first.
        start = self.scale.encode(jnp.float32(self.mean))
        if self.loss_name in ("bmc", "gai"):
            noise = self.scale.encode(jnp.float32(self.mean + self.noise)) - start
            return outputs.Noisy(inputs, rngs, start, noise)
        return outputs.linear(inputs, 1, rngs, start)

    def adapt(self, other: Regression, theirs: Arrays, fresh: Arrays) -> Adapted | None:
        line = self.scale.line_from(other.scale)
        if line is None:
            return None
        slope, start = line
        # Losses with a learned noise have kernel and bias one level deeper: outputs.Noisy.
        layer = {key.rpartition("/")[2]: array for key, array in theirs.items()}
        layer["kernel"], layer["bias"] = layer["kernel"] * slope, layer["bias"] * slope + start
        if "noise" in layer:
            layer["noise"] = layer["noise"] + np.log(slope)
        arrays = {key: layer.get(key.rpartition("/")[2], array) for key, array in fresh.items()}
        return Adapted(arrays)

    def decode(self, output: jax.Array) -> jax.Array:
        return self.scale.decode(output[:, 0])

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        value, target = output[:, 0], self.scale.encode(self.years(labels))
        match self.loss_name:
            case "l1":
                return losses.l1(value, target)
            case "l2":
                return losses.l2(value, target)
            case "huber":
                return losses.huber(value, target, self.huber_delta)
        sigma = jnp.exp(output[0, 1])
        if self.loss_name == "bmc":
            return losses.balanced_mse_bmc(value, target, self.known(labels), sigma)
        return losses.balanced_mse_gai(value, target, sigma, *map(jnp.float32, self.mixture))


@register("gaussian")
@dataclasses.dataclass(frozen=True)
class Gaussian(Age):
    """A mean and a variance, by beta-NLL (Seitzer et al. 2022), on the labels' standard scale."""

    scale: Scale
    beta: float

    options: ClassVar[Group] = Group(
        "A mean and a variance, by beta-NLL.",
        beta=Setting(
            0.5,
            "0: the likelihood itself; 1: the mean learns as from squared errors.",
            limits=(0, 1),
        ),
        range=RANGE,
    )

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Gaussian:
        fields = cls.fields(name, label, weight, options, facts)
        scale = Scale.of("standard", fields, facts.stds[label])
        return cls(**fields, scale=scale, beta=float(options["beta"]))

    def output(self, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        return outputs.linear(inputs, 2, rngs)

    def adapt(self, other: Gaussian, theirs: Arrays, fresh: Arrays) -> Adapted | None:
        line = self.scale.line_from(other.scale)
        assert line is not None  # both scales are "standard"
        slope, start = line
        kernel, bias = np.array(theirs["kernel"]), np.array(theirs["bias"])
        kernel[:, 0] *= slope
        bias[0] = bias[0] * slope + start
        bias[1] += 2 * np.log(slope)  # output 1 is a log variance
        return Adapted({"kernel": kernel, "bias": bias})

    def decode(self, output: jax.Array) -> jax.Array:
        return self.scale.decode(output[:, 0])

    def extras(self, output: jax.Array) -> dict[str, jax.Array]:
        return {"sigma": jnp.exp(0.5 * self._log_variance(output)) * self.scale.std}

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        target = self.scale.encode(self.years(labels))
        return losses.gaussian_nll(output[:, 0], self._log_variance(output), target, self.beta)

    def _log_variance(self, output: jax.Array) -> jax.Array:
        # Between 1/400 and 20 times the labels' standard deviation; no face needs more.
        return jnp.clip(output[:, 1], -12.0, 6.0)


@register("distribution")
@dataclasses.dataclass(frozen=True)
class Distribution(Age):
    """A probability for every year of age.

    Attributes:
      start: initial logits: the logarithms of the training ages' shares.
      votes: the label with the spread of each image's own votes, "" for a fixed spread.
      prior: what decoding adds to the logits, `priors.log_ratio`; empty for nothing.
    """

    start: tuple[float, ...]
    loss_name: str
    sigma: float
    votes: str
    weights: tuple[float, ...]
    smoothing: float
    median: bool
    prior: tuple[float, ...]

    options: ClassVar[Group] = Group(
        "A probability for every year of age.",
        loss=Setting(
            "dldl",
            "ce, dldl (v2, Gao et al. 2018), mean_variance (Pan et al. 2018) or sord (Diaz & "
            "Marathe 2019).",
            choices=("ce", "dldl", "mean_variance", "sord"),
        ),
        sigma=Setting(2.0, "dldl: deviation of the target distribution.", above=0, unit="years"),
        votes=Setting("", "dldl: a label with each image's own sigma, such as apparent_age_std."),
        expectation_weight=Setting(1.0, "dldl: weight of |expectation - age|.", limits=(0, None)),
        mean_weight=Setting(0.2, "mean_variance: weight of the mean.", limits=(0, None)),
        variance_weight=Setting(0.05, "mean_variance: weight of the variance.", limits=(0, None)),
        power=Setting(1, "sord: q_j ~ exp(-scale |j - y|^power).", choices=(1, 2)),
        scale=Setting(1.0, "sord: per year (power 1) or per year squared (power 2).", above=0),
        smoothing=Setting(
            0.0, "ce: probability that is spread over all ages.", limits=(0, None), below=1
        ),
        decode=Setting(
            "median",
            "The age to predict; the median is best for the absolute error.",
            choices=("median", "expectation"),
        ),
        decode_prior=Setting("natural", priors.HELP, choices=priors.DECODE),
        range=RANGE,
    )
    former: ClassVar[dict[str, Any]] = {"decode_prior": "sampled", "range": [0.0, 100.0]}

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Distribution:
        where = f"config.heads.{name}"
        fields = cls.fields(name, label, weight, options, facts)
        if options["votes"] and options["votes"] not in facts.means:
            raise UserError(
                f"{where}.votes: the training data has no {options['votes']!r} label in years"
            )
        weights = {
            "dldl": (options["expectation_weight"],),
            "mean_variance": (options["mean_weight"], options["variance_weight"]),
            "sord": (options["power"], float(options["scale"])),
        }.get(options["loss"], ())
        ends = ends_of_years(name, fields)
        counts = start_counts(facts.counts[label], **ends)
        return cls(
            **fields,
            start=tuple(np.log(counts / counts.sum()).tolist()),
            loss_name=options["loss"],
            sigma=float(options["sigma"]),
            votes=options["votes"],
            weights=weights,
            smoothing=float(options["smoothing"]),
            median=options["decode"] == "median",
            prior=priors.log_ratio(
                options["decode_prior"],
                facts.priors.get(name),
                functools.partial(by_year, **ends),
            ),
        )

    @property
    def ages(self) -> jax.Array:
        """[K], years."""
        return jnp.arange(round(self.low), round(self.high) + 1, dtype=jnp.float32)

    def output(self, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        return outputs.linear(inputs, len(self.ages), rngs, jnp.array(self.start))

    def adapt(self, other: Distribution, theirs: Arrays, fresh: Arrays) -> Adapted | None:
        their_ages, ages = (range(round(h.low), round(h.high) + 1) for h in (other, self))
        # Decoding adds each run's prior to its logits, so the difference goes into the biases.
        theirs, fresh = shifted(theirs, other.prior), shifted(fresh, self.prior)
        adapted = adapt_columns(theirs, fresh, their_ages, ages, "ages")
        return adapted and Adapted(shifted(adapted.arrays, self.prior, -1), adapted.note)

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        years, ages = jnp.clip(self.years(labels), self.low, self.high), self.ages
        match self.loss_name:
            case "dldl":
                return losses.dldl(output, years, ages, self._spread(labels), *self.weights)
            case "mean_variance":
                return losses.mean_variance(output, years, ages, *self.weights)
            case "sord":
                power, scale = self.weights
                targets = losses.sord_targets(years, ages, int(power), scale)
                return losses.soft_cross_entropy(output, targets)
        nearest = jnp.round(years - ages[0]).astype(jnp.int32)
        return losses.cross_entropy(output, nearest, self.smoothing)

    def decode(self, output: jax.Array) -> jax.Array:
        p = self._probabilities(output)
        return median(p, self.ages) if self.median else expectation(p, self.ages)

    def logits(self, output: jax.Array) -> jax.Array:
        return output

    @property
    def outcomes(self) -> tuple[str, ...]:
        return tuple(str(age) for age in range(round(self.low), round(self.high) + 1))

    def _probabilities(self, output: jax.Array) -> jax.Array:
        return jax.nn.softmax(priors.corrected(output, self.prior))

    def extras(self, output: jax.Array) -> dict[str, jax.Array]:
        p, ages = self._probabilities(output), self.ages
        error = ages - expectation(p, ages)[:, None]
        return {"sigma": jnp.sqrt(expectation(p, jnp.square(error)))}

    def _spread(self, labels: Labels) -> jax.Array | float:
        if not self.votes:
            return self.sigma
        spread = labels[self.votes]
        # If all votes are equal, or none is known: the fixed one.
        return jnp.where(jnp.isfinite(spread) & (spread > 0), spread, self.sigma)


def expectation(p: jax.Array, ages: jax.Array) -> jax.Array:
    """Σ p_j age_j for p [B, K], ages [K] or [B, K] -> [B]. No matmul: it may round its inputs."""
    return jnp.sum(p * ages, axis=1)


def median(p: jax.Array, ages: jax.Array) -> jax.Array:
    """The median of p [B, K], each year's mass spread evenly over the year around it, [B]."""
    below = jnp.cumsum(p, axis=1)
    k = jnp.minimum(jnp.sum(below < 0.5, axis=1), len(ages) - 1)
    mass = jnp.take_along_axis(p, k[:, None], axis=1)[:, 0]
    before = jnp.take_along_axis(below, k[:, None], axis=1)[:, 0] - mass
    return ages[k] - 0.5 + jnp.clip((0.5 - before) / jnp.maximum(mass, 1e-12), 0, 1)


ORDINAL: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "coral": losses.coral,
    "corn": losses.corn,
    "or_cnn": losses.or_cnn,
}


@register("ordinal")
@dataclasses.dataclass(frozen=True)
class Ordinal(Age):
    """Whether the age is above each year: K - 1 questions for K ages.

    Attributes:
      start: initial outputs: the logits of the shares of yes among the training ages.
      prior: of the K ages, as in `Distribution`.
    """

    start: tuple[float, ...]
    method: str
    count: bool
    prior: tuple[float, ...]

    options: ClassVar[Group] = Group(
        "Whether the age is above each year.",
        method=Setting(
            "coral",
            "coral (Cao et al. 2020), corn (Shi et al. 2021) or or_cnn (Niu et al. 2016).",
            choices=tuple(ORDINAL),
        ),
        decode=Setting(
            "count",
            "The age to predict: the number of years that it is probably above, or the "
            "expectation of that number.",
            choices=("count", "expectation"),
        ),
        decode_prior=Setting("natural", priors.HELP, choices=priors.DECODE),
        range=RANGE,
    )
    former: ClassVar[dict[str, Any]] = {"decode_prior": "sampled", "range": [0.0, 100.0]}

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Ordinal:
        fields = cls.fields(name, label, weight, options, facts)
        ends = ends_of_years(name, fields)
        counts = start_counts(facts.counts[label], **ends)
        above = 1 - np.cumsum(counts)[:-1] / counts.sum()
        asked = np.concatenate([[1.0], above[:-1]]) if options["method"] == "corn" else 1.0
        yes = above / asked  # corn asks only those above the year before
        return cls(
            **fields,
            start=tuple(np.log(yes / (1 - yes)).tolist()),
            method=options["method"],
            count=options["decode"] == "count",
            prior=priors.log_ratio(
                options["decode_prior"],
                facts.priors.get(name),
                functools.partial(by_year, **ends),
            ),
        )

    def output(self, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        if self.method == "coral":
            return outputs.Ranks(inputs, rngs, jnp.array(self.start))
        return outputs.linear(inputs, len(self.start), rngs, jnp.array(self.start))

    def adapt(self, other: Ordinal, theirs: Arrays, fresh: Arrays) -> Adapted | None:
        # Each of CORN's questions assumes a yes to the one before, and the first is about `low`.
        if self.method != other.method or round(self.low) != round(other.low):
            return None
        shared = {"score"} & theirs.keys()  # CORAL's score, the same for every question
        biases = adapt_columns(
            {k: v for k, v in theirs.items() if k not in shared},
            {k: v for k, v in fresh.items() if k not in shared},
            range(len(other.start)),
            range(len(self.start)),
            "ages",
        )
        assert biases is not None
        arrays = {**biases.arrays, **{key: theirs[key] for key in shared}}
        notes = [biases.note, "decoded for the new data's ages" * (self.prior != other.prior)]
        return Adapted(arrays, ", ".join(filter(None, notes)))

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        rank = jnp.clip(jnp.round(self.years(labels)) - round(self.low), 0, len(self.start))
        return ORDINAL[self.method](output, rank.astype(jnp.int32))

    def decode(self, output: jax.Array) -> jax.Array:
        p = self._above(output)
        above = (p > 0.5) if self.count else p
        return round(self.low) + jnp.sum(above, axis=1, dtype=jnp.float32)

    def _above(self, output: jax.Array) -> jax.Array:
        """The probability of an age above each year but the last, [B, K - 1]."""
        p = jax.nn.sigmoid(output)
        if self.method == "corn":  # each question assumes a yes to the one before
            p = jnp.cumprod(p, axis=1)
        if not self.prior:
            return p
        ends = jnp.zeros_like(p[:, :1], jnp.float32)
        p = p.astype(jnp.float32)
        mass = jnp.concatenate([1 + ends, p], axis=1) - jnp.concatenate([p, ends], axis=1)
        # or_cnn's answers may contradict each other: then a mass is below 0.
        mass = jnp.maximum(mass, 0) * jnp.exp(jnp.array(self.prior))
        return 1 - jnp.cumsum(mass, axis=1)[:, :-1] / jnp.sum(mass, axis=1, keepdims=True)
