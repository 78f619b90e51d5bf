"""A head is all there is to one target: output width, loss, decoding and training metrics.

To add one, subclass `Head`, decorate it with `@register("kind")`, and name the kind in a config:
the loop, the checkpoint, the evaluation and the report do not change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from agejax import losses
from agejax.errors import UserError, check_keys

Labels = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What heads and reports need to know of the training split; kept with every checkpoint.

    labels: the labels that at least one example has.
    means, stds, medians: of each real-valued label among them, years.
    label_names: class names of each categorical label.
    """

    labels: Sequence[str]
    means: Mapping[str, float]
    stds: Mapping[str, float]
    medians: Mapping[str, float]
    label_names: Mapping[str, Sequence[str]]

    @classmethod
    def of(
        cls, labels: Mapping[str, np.ndarray], label_names: Mapping[str, Sequence[str]]
    ) -> Facts:
        real = {
            k: v[np.isfinite(v)].astype(np.float64)
            for k, v in labels.items()
            if v.dtype.kind == "f"
        }
        real = {k: v for k, v in real.items() if v.size}
        classes = [k for k, v in labels.items() if v.dtype.kind != "f" and (v >= 0).any()]
        return cls(
            labels=[*real, *classes],
            means={k: float(v.mean()) for k, v in real.items()},
            stds={k: float(v.std()) or 1.0 for k, v in real.items()},
            medians={k: float(np.median(v)) for k, v in real.items()},
            label_names={k: list(label_names[k]) for k in classes if k in label_names},
        )


@dataclasses.dataclass(frozen=True)
class Head:
    """One target of a model.

    Attributes:
      name: the key in config.heads, and of the parameters.
      label: the batch entry it learns from.
      weight: its share in the total loss.
      width: how many outputs the linear layer has.
    """

    name: str
    label: str
    weight: float
    width: int

    def known(self, labels: Labels) -> jax.Array:
        """True where the example has this label, bool [B]."""
        label = labels[self.label]
        return jnp.isfinite(label) if jnp.issubdtype(label.dtype, jnp.floating) else label >= 0

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        """Per-example loss [B] of `output` [B, width]; finite also where the label is unknown."""
        raise NotImplementedError

    def decode(self, output: jax.Array) -> jax.Array:
        """Years [B] for an age, probabilities [B, K] for classes."""
        raise NotImplementedError

    def metrics(self, output: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """Per-example training metrics, [B] each."""
        raise NotImplementedError

    def initial_bias(self) -> jax.Array:
        """Where the output starts, [], so that training does not first have to find the mean."""
        return jnp.float32(0)


KINDS: dict[str, type[Any]] = {}


def register(kind: str) -> Callable[[type[Any]], type[Any]]:
    """Makes `config.heads.X.kind = kind` build the decorated class through its `build`."""

    def add(cls: type[Any]) -> type[Any]:
        KINDS[kind] = cls
        return cls

    return add


@register("regression")
@dataclasses.dataclass(frozen=True)
class Regression(Head):
    """One real number: the age on a transformed scale, decoded to years and clipped to `range`."""

    transform: str
    loss_name: str
    huber_delta: float
    low: float
    high: float
    mean: float
    std: float

    options: ClassVar[dict[str, Any]] = {
        "transform": "standard",  # identity | log | unit | standard
        "loss": "l1",  # l1 | l2 | huber, on the transformed scale
        "huber_delta": 1.0,
        "range": (0.0, 116.0),  # years; also the unit range
    }

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Regression:
        where = f"config.heads.{name}"
        _one_of(where, "transform", options["transform"], ("identity", "log", "unit", "standard"))
        _one_of(where, "loss", options["loss"], ("l1", "l2", "huber"))
        low, high = options["range"]
        if not 0 <= low < high:
            raise UserError(f"{where}.range: need 0 <= low < high, got {(low, high)}")
        if label not in facts.means:
            raise UserError(f"{where}: {label!r} is not a number; use kind binary or categorical")
        return cls(
            name, label, weight, 1, options["transform"], options["loss"],
            options["huber_delta"], low, high, facts.means[label], facts.stds[label],
        )  # fmt: skip

    def encode(self, years: jax.Array) -> jax.Array:
        """Years to the scale the loss lives on."""
        match self.transform:
            case "log":
                return jnp.log1p(years)
            case "unit":
                return (years - self.low) / (self.high - self.low)
            case "standard":
                return (years - self.mean) / self.std
        return years

    def decode(self, output: jax.Array) -> jax.Array:
        value = output[:, 0]
        match self.transform:
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

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        # An unknown age is NaN, and NaN * 0 is NaN: it must not reach the loss.
        years = jnp.where(self.known(labels), labels[self.label], self.mean)
        value, target = output[:, 0], self.encode(years)
        match self.loss_name:
            case "l1":
                return losses.l1(value, target)
            case "l2":
                return losses.l2(value, target)
        return losses.huber(value, target, self.huber_delta)

    def metrics(self, output: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        error = self.decode(output) - labels[self.label]
        return {"mae": jnp.where(self.known(labels), jnp.abs(error), 0.0)}

    def initial_bias(self) -> jax.Array:
        return self.encode(jnp.float32(self.mean))


@register("binary")
@dataclasses.dataclass(frozen=True)
class Binary(Head):
    """Two classes from one logit, sigmoid and binary cross-entropy."""

    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Binary:
        classes = _classes(name, label, facts)
        if len(classes) != 2:
            raise UserError(
                f"config.heads.{name}: binary needs two classes, {label!r} has {len(classes)}; "
                'use kind "categorical"'
            )
        return cls(name, label, weight, 1)

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        return losses.binary_cross_entropy(output[:, 0], jnp.maximum(labels[self.label], 0))

    def decode(self, output: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(output[:, 0])
        return jnp.stack([1 - p, p], axis=-1)

    def metrics(self, output: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        return {"accuracy": ((output[:, 0] > 0) == (labels[self.label] == 1)).astype(jnp.float32)}


@register("categorical")
@dataclasses.dataclass(frozen=True)
class Categorical(Head):
    """K classes, softmax and cross-entropy."""

    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def build(
        cls, name: str, label: str, weight: float, options: Mapping[str, Any], facts: Facts
    ) -> Categorical:
        return cls(name, label, weight, len(_classes(name, label, facts)))

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        return losses.cross_entropy(output, jnp.maximum(labels[self.label], 0))

    def decode(self, output: jax.Array) -> jax.Array:
        return jax.nn.softmax(output)

    def metrics(self, output: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        hit = jnp.argmax(output, axis=-1) == labels[self.label]
        return {"accuracy": hit.astype(jnp.float32)}


def create(configs: Mapping[str, Any], facts: Facts) -> dict[str, Head]:
    """The heads of `config.heads`, by name.

    Args:
      configs: name -> {kind, label (default: the name), weight (default 1), neck (its own layers
        above the backbone: agejax/models/necks.py), the kind's options}.
      facts: of the training split.

    Raises:
      UserError: an unknown kind, key or label, or a label that the training data lacks.
    """
    if not configs:
        raise UserError("config.heads is empty: name at least one head, such as age")
    heads = {}
    for name, given in configs.items():
        where = f"config.heads.{name}"
        _one_of(where, "kind", given.get("kind"), tuple(KINDS))
        kind = KINDS[given["kind"]]
        check_keys(given, ("kind", "label", "weight", "neck", *kind.options), where)
        label = given.get("label", name)
        if label not in facts.labels:
            raise UserError(
                f"{where}: the training data has no {label!r} label; drop this head, or set its "
                f"label to one of {', '.join(facts.labels)}"
            )
        options = {**kind.options, **{k: given[k] for k in kind.options if k in given}}
        heads[name] = kind.build(name, label, float(given.get("weight", 1.0)), options, facts)
    return heads


def _classes(name: str, label: str, facts: Facts) -> Sequence[str]:
    if not facts.label_names.get(label):
        raise UserError(f"config.heads.{name}: the data names no classes for {label!r}")
    return facts.label_names[label]


def _one_of(where: str, key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{where}.{key}: {value!r} is not one of {', '.join(allowed)}")
