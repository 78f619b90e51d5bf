"""Heads for classes: gender, ethnicity, and age buckets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agejax.errors import UserError
from agejax.heads import losses, priors
from agejax.heads.head import (
    Adapted,
    Arrays,
    Facts,
    Head,
    Labels,
    adapt_columns,
    class_names,
    register,
    shifted,
)
from agejax.models import outputs
from agejax.settings import Group, Setting


@register("binary")
@dataclasses.dataclass(frozen=True)
class Binary(Head):
    """Two classes from one logit.

    Attributes:
      classes: their names; the logit is for the second one.
      prior: of the two classes, as in `Categorical`.
    """

    classes: tuple[str, ...]
    loss_name: str
    smoothing: float
    gamma: float
    prior: tuple[float, ...]

    options: ClassVar[Group] = Group(
        "Two classes from one logit.",
        decode_prior=Setting("sampled", priors.HELP, choices=priors.DECODE),
        loss=Setting("ce", "Loss.", choices=("ce", "focal")),
        smoothing=Setting(
            0.0,
            "ce: the true class has the probability 1 - smoothing / 2.",
            limits=(0, None),
            below=1,
        ),
        gamma=Setting(2.0, "focal: exponent.", limits=(0, None)),
    )

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Binary:
        where = f"config.heads.{name}"
        classes = class_names(name, label, facts)
        if len(classes) != 2:
            raise UserError(
                f"{where}: binary needs two classes, {label!r} has {len(classes)}; "
                'use kind "categorical"'
            )
        check_smoothing(where, options)
        prior = class_ratio(options, facts, name, 2)
        return cls(
            name, label, weight, tuple(classes), options["loss"], float(options["smoothing"]),
            options["gamma"], prior,
        )  # fmt: skip

    def output(self, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        return outputs.linear(inputs, 1, rngs)

    def adapt(self, other: Binary, theirs: Arrays, fresh: Arrays) -> Adapted | None:
        if set(self.classes) != set(other.classes):
            return None
        sign = 1 if self.classes == other.classes else -1
        layer = {key: sign * array for key, array in theirs.items()}
        layer["bias"] = layer["bias"] + sign * other._log_odds - self._log_odds
        return Adapted(layer)

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        logit, target = output[:, 0], jnp.maximum(labels[self.label], 0)
        if self.loss_name == "focal":
            return losses.binary_focal(logit, target, self.gamma)
        return losses.binary_cross_entropy(logit, target, self.smoothing)

    def decode(self, output: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(self._logit(output))
        return jnp.stack([1 - p, p], axis=-1)

    def _logit(self, output: jax.Array) -> jax.Array:
        return output[:, 0] + self._log_odds

    @property
    def _log_odds(self) -> float:
        return self.prior[1] - self.prior[0] if self.prior else 0.0

    def logits(self, output: jax.Array) -> jax.Array:
        return jnp.stack([jnp.zeros_like(output[:, 0]), output[:, 0]], axis=-1)

    @property
    def outcomes(self) -> tuple[str, ...]:
        return self.classes

    def metrics(self, output: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        hit = (self._logit(output) > 0) == (labels[self.label] == 1)
        return {"accuracy": hit.astype(jnp.float32)}


@dataclasses.dataclass(frozen=True)
class ClassLoss:
    """A loss of K classes.

    Attributes:
      margins: [K], larger for rarer classes (LDAM).
      scale: factor on cosines, or on the logits of a loss with margins.
      cosine: whether the output is cosines; otherwise plain logits.
    """

    kind: str
    smoothing: float
    gamma: float
    alpha: float
    beta: float
    margins: tuple[float, ...]
    scale: float
    cosine: bool

    options: ClassVar[Group] = Group(
        "A loss of several classes.",
        loss=Setting(
            "ce",
            "Loss; lmf is alpha LDAM + beta focal.",
            choices=("ce", "focal", "ldam", "lmf"),
        ),
        smoothing=Setting(
            0.0, "ce: probability that is spread over all classes.", limits=(0, None), below=1
        ),
        gamma=Setting(
            None, "focal and lmf: exponent; default 2 and 4.", kind=float, limits=(0, None)
        ),
        alpha=Setting(2.5, "lmf: weight of LDAM.", limits=(0, None)),
        beta=Setting(0.05, "lmf: weight of focal.", limits=(0, None)),
        max_margin=Setting(0.5, "ldam and lmf: margin of the rarest class.", limits=(0, None)),
        cosine=Setting(False, "ldam and lmf: on cosines of features and weights."),
        scale=Setting(
            None,
            "ldam and lmf: factor of the logits; default 30 with cosine, 1 without.",
            kind=float,
            limits=(0, None),
        ),
    )

    @classmethod
    def of(cls, where: str, options: Mapping[str, Any], counts: Sequence[int]) -> ClassLoss:
        """Raises `UserError` for options that do not go together."""
        kind, cosine = options["loss"], bool(options["cosine"])
        check_smoothing(where, options)
        margins: tuple[float, ...] = ()
        if kind in ("ldam", "lmf"):
            margins = tuple(losses.ldam_margins(counts, options["max_margin"]).tolist())
        elif cosine:
            raise UserError(f"{where}.cosine: is for the losses ldam and lmf, not {kind}")
        gamma, scale = options["gamma"], options["scale"]
        return cls(
            kind,
            float(options["smoothing"]),
            {"lmf": 4.0}.get(kind, 2.0) if gamma is None else float(gamma),
            float(options["alpha"]),
            float(options["beta"]),
            margins,
            (30.0 if cosine else 1.0) if scale is None else float(scale),
            cosine,
        )

    def layer(self, inputs: int, width: int, rngs: nnx.Rngs) -> nnx.Module:
        """The last layer."""
        if self.cosine:
            return outputs.Cosine(inputs, width, rngs)
        return outputs.linear(inputs, width, rngs)

    def adapt(
        self,
        other: ClassLoss,
        theirs: Arrays,
        fresh: Arrays,
        names: tuple[Sequence[str], Sequence[str]],
        log_ratios: tuple[Sequence[float], Sequence[float]],
    ) -> Adapted | None:
        """As `Head.adapt`, for last layers with one output per class.

        Args:
          names: of the classes: (theirs, ours).
          log_ratios: what decoding adds to the logits: (theirs, ours).
        """
        if self.cosine != other.cosine or (self.cosine and self.scale != other.scale):
            return None
        their_ratios, ratios = log_ratios
        theirs = {key: other._factor * array for key, array in theirs.items()}
        fresh = {key: self._factor * array for key, array in fresh.items()}
        adapted = adapt_columns(
            shifted(theirs, their_ratios), shifted(fresh, ratios), *names, "classes"
        )
        if adapted is None:
            return None
        logits = shifted(adapted.arrays, ratios, -1)
        # Cosines have no biases that could hold what decoding adds.
        differs = "decoded for the new data's classes" * (self.cosine and any(map(len, log_ratios)))
        return Adapted(
            {key: array / self._factor for key, array in logits.items()},
            ", ".join(filter(None, (adapted.note, differs))),
        )

    def __call__(self, output: jax.Array, target: jax.Array) -> jax.Array:
        """Output [B, K], classes int [B] -> [B]."""
        margins = jnp.array(self.margins)
        match self.kind:
            case "focal":
                return losses.focal(output, target, self.gamma)
            case "ldam":
                return losses.ldam(output, target, margins, self.scale)
            case "lmf":
                return losses.lmf(
                    output, target, margins, self.scale, self.gamma, self.alpha, self.beta
                )
        return losses.cross_entropy(output, target, self.smoothing)

    def logits(self, output: jax.Array) -> jax.Array:
        """[B, K]. Margins are only for training."""
        return self.scale * output if self.margins else output

    @property
    def _factor(self) -> float:
        return self.scale if self.margins else 1.0


@register("categorical")
@dataclasses.dataclass(frozen=True)
class Categorical(Head):
    """K classes.

    Attributes:
      classes: their names.
      prior: what decoding adds to the logits, `priors.log_ratio`; empty for nothing.
    """

    classes: tuple[str, ...]
    class_loss: ClassLoss
    prior: tuple[float, ...]

    options: ClassVar[Group] = Group(
        "Several classes.",
        # Not "natural": users who draw classes evenly mostly want an even score (macro-F1).
        decode_prior=Setting("sampled", priors.HELP, choices=priors.DECODE),
        **ClassLoss.options,
    )

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Categorical:
        where, classes = f"config.heads.{name}", tuple(class_names(name, label, facts))
        loss = ClassLoss.of(where, options, facts.counts.get(label, ()))
        prior = class_ratio(options, facts, name, len(classes))
        return cls(name, label, weight, classes, loss, prior)

    def output(self, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        return self.class_loss.layer(inputs, len(self.classes), rngs)

    def adapt(self, other: Categorical, theirs: Arrays, fresh: Arrays) -> Adapted | None:
        names, ratios = (other.classes, self.classes), (other.prior, self.prior)
        return self.class_loss.adapt(other.class_loss, theirs, fresh, names, ratios)

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        return self.class_loss(output, jnp.maximum(labels[self.label], 0))

    def decode(self, output: jax.Array) -> jax.Array:
        return jax.nn.softmax(self._decoded(output))

    def _decoded(self, output: jax.Array) -> jax.Array:
        return priors.corrected(self.class_loss.logits(output), self.prior)

    def logits(self, output: jax.Array) -> jax.Array:
        return self.class_loss.logits(output)

    @property
    def outcomes(self) -> tuple[str, ...]:
        return self.classes

    def metrics(self, output: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        hit = jnp.argmax(self._decoded(output), axis=-1) == labels[self.label]
        return {"accuracy": hit.astype(jnp.float32)}


@register("buckets")
@dataclasses.dataclass(frozen=True)
class Buckets(Head):
    """Age buckets as classes. A bucket stands for the mean age of its training images.

    Attributes:
      edges: the lower edge of each bucket but the first, years.
      ages: the age that each bucket stands for, years.
      prior: of the buckets, as in `Categorical`.
    """

    edges: tuple[float, ...]
    ages: tuple[float, ...]
    class_loss: ClassLoss
    expectation: bool
    prior: tuple[float, ...]

    options: ClassVar[Group] = Group(
        "Ages in buckets, as classes.",
        edges=Setting(
            (3, 10, 21, 28, 46, 66),
            "Where each bucket but the first begins.",
            item=float,
            above=0,
            rising=True,
            unit="years",
        ),
        decode=Setting(
            "expectation",
            "The age to predict, from the buckets' mean ages.",
            choices=("expectation", "mode"),
        ),
        decode_prior=Setting("natural", priors.HELP, choices=priors.DECODE),
        **ClassLoss.options,
    )
    former: ClassVar[dict[str, Any]] = {"decode_prior": "sampled"}

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Buckets:
        where = f"config.heads.{name}"
        if label not in facts.means:
            raise UserError(f"{where}: {label!r} is not a number; use kind categorical")
        edges = tuple(float(edge) for edge in options["edges"])
        if not edges or any(b <= a for a, b in zip((0.0, *edges), edges, strict=False)):
            raise UserError(f"{where}.edges: set increasing ages above 0, not {options['edges']}")

        def by_bucket(counts: Sequence[float]) -> np.ndarray:
            bucket = np.searchsorted(edges, np.arange(len(counts)), side="right")
            return np.bincount(bucket, counts, len(edges) + 1)

        counts = by_bucket(facts.counts[label])
        if not counts.all():
            empty = [bucket_names(edges)[k] for k in np.flatnonzero(counts == 0)]
            raise UserError(f"{where}.edges: no training image of age {', '.join(empty)}")
        years = np.arange(len(facts.counts[label]))
        ages = by_bucket((facts.counts[label] * years).tolist()) / counts
        loss = ClassLoss.of(where, options, counts.astype(int).tolist())
        return cls(
            name, label, weight, edges, tuple(ages.tolist()), loss,
            options["decode"] == "expectation",
            priors.log_ratio(options["decode_prior"], facts.priors.get(name), by_bucket),
        )  # fmt: skip

    def output(self, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        return self.class_loss.layer(inputs, len(self.ages), rngs)

    def adapt(self, other: Buckets, theirs: Arrays, fresh: Arrays) -> Adapted | None:
        names = bucket_names(other.edges), bucket_names(self.edges)
        ratios = other.prior, self.prior
        adapted = self.class_loss.adapt(other.class_loss, theirs, fresh, names, ratios)
        note = "with the new data's mean age of each bucket"
        return adapted and Adapted(
            adapted.arrays, f"{adapted.note}, {note}" if adapted.note else note
        )

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        return self.class_loss(output, self._bucket(labels))

    def decode(self, output: jax.Array) -> jax.Array:
        p, ages = jax.nn.softmax(self._decoded(output)), jnp.array(self.ages)
        return jnp.sum(p * ages, axis=1) if self.expectation else ages[jnp.argmax(p, axis=1)]

    def extras(self, output: jax.Array) -> dict[str, jax.Array]:
        return {"bucket": jax.nn.softmax(self._decoded(output))}

    def _decoded(self, output: jax.Array) -> jax.Array:
        return priors.corrected(self.class_loss.logits(output), self.prior)

    def logits(self, output: jax.Array) -> jax.Array:
        return self.class_loss.logits(output)

    @property
    def outcomes(self) -> tuple[str, ...]:
        return tuple(bucket_names(self.edges))

    def derived(self, label: np.ndarray) -> dict[str, tuple[np.ndarray, Sequence[str]]]:
        bucket = np.searchsorted(self.edges, label, side="right")
        return {"bucket": (np.where(np.isfinite(label), bucket, -1), bucket_names(self.edges))}

    def metrics(self, output: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        known = self.known(labels)
        hit = jnp.argmax(self._decoded(output), axis=-1) == self._bucket(labels)
        error = jnp.abs(self.decode(output) - labels[self.label])
        return {"mae": jnp.where(known, error, 0.0), "bucket_accuracy": hit.astype(jnp.float32)}

    def _bucket(self, labels: Labels) -> jax.Array:
        return jnp.searchsorted(jnp.array(self.edges), labels[self.label], side="right") * (
            self.known(labels)
        )


def bucket_names(edges: Sequence[float]) -> list[str]:
    """Names such as 0-2, 3-9, 10+ for edges 3 and 10."""
    starts = (0.0, *edges)
    inner = [f"{a:g}-{b - 1:g}" for a, b in zip(starts, edges, strict=False)]
    return [*inner, f"{starts[-1]:g}+"]


def class_ratio(
    options: Mapping[str, Any], facts: Facts, name: str, width: int
) -> tuple[float, ...]:
    """`priors.log_ratio` for `width` classes."""
    return priors.log_ratio(
        options["decode_prior"],
        facts.priors.get(name),
        lambda counts: np.bincount(np.arange(len(counts)), counts, width),
        ordered=False,
    )


def check_smoothing(where: str, options: Mapping[str, Any]) -> None:
    """Raises `UserError` for smoothing with a loss that does not support it."""
    if options["loss"] != "ce" and options["smoothing"]:
        raise UserError(f"{where}.smoothing: is for the loss ce, not {options['loss']}")
