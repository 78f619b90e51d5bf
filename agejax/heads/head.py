"""The interface of heads, and how config.heads becomes heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agejax.errors import UserError, one_of
from agejax.settings import Group, Setting

Labels = Mapping[str, jax.Array]
Arrays = Mapping[str, np.ndarray]  # of a last layer: kernel [C, width], bias [width], ...


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about the training split for heads and reports; saved with every checkpoint.

    labels: the labels that at least one example has.
    means, stds, medians: of each real-valued label among them, years.
    label_names: class names of each categorical label.
    counts: for each label: examples per year of age from 0 on (rounded), or per class. Empty in
      runs from before any head used it.
    priors: head -> {"natural", "sampled": rows and draws, binned as `counts`}, for heads whose
      training drew or weighted labels unevenly: agejax/heads/priors.py. Empty in older runs.
    """

    labels: Sequence[str]
    means: Mapping[str, float]
    stds: Mapping[str, float]
    medians: Mapping[str, float]
    label_names: Mapping[str, Sequence[str]]
    counts: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    priors: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(default_factory=dict)

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
        years = {k: np.bincount(np.rint(v).clip(0).astype(int)).tolist() for k, v in real.items()}
        return cls(
            labels=[*real, *classes],
            means={k: float(v.mean()) for k, v in real.items()},
            stds={k: float(v.std()) or 1.0 for k, v in real.items()},
            medians={k: float(np.median(v)) for k, v in real.items()},
            label_names={k: list(label_names[k]) for k in classes if k in label_names},
            counts=years
            | {
                k: np.bincount(labels[k][labels[k] >= 0], minlength=len(label_names[k])).tolist()
                for k in classes
                if k in label_names
            },
        )


@dataclasses.dataclass(frozen=True)
class Head:
    """One target of a model.

    Attributes:
      name: the key in config.heads, and of the parameters.
      label: the batch entry it learns from.
      weight: its share in the total loss.
    """

    name: str
    label: str
    weight: float

    # Options whose default has changed: their old default, as JSON, for runs whose config.json
    # lacks them.
    former: ClassVar[Mapping[str, Any]] = {}

    def output(self, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """The last layer: features [B, inputs] -> the `output` of the methods below."""
        raise NotImplementedError

    def known(self, labels: Labels) -> jax.Array:
        """True where the example has this label, bool [B]."""
        label = labels[self.label]
        return jnp.isfinite(label) if jnp.issubdtype(label.dtype, jnp.floating) else label >= 0

    def loss(self, output: jax.Array, labels: Labels) -> jax.Array:
        """Per-example loss [B] of `output` [B, width]; finite even if the label is unknown."""
        raise NotImplementedError

    def decode(self, output: jax.Array) -> jax.Array:
        """Years [B] for an age, probabilities [B, K] for classes."""
        raise NotImplementedError

    def metrics(self, output: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """Per-example training metrics, [B] each."""
        raise NotImplementedError

    def logits(self, output: jax.Array) -> jax.Array:
        """[B, K], whose softmax is the predicted distribution, if the head predicts one."""
        raise NotImplementedError

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What each column of `logits` stands for, by name: a year, a class, a bucket."""
        raise NotImplementedError

    def extras(self, output: jax.Array) -> dict[str, jax.Array]:
        """Further predictions from the output, by a suffix to the label's name.

        "sigma": the standard deviation of the predicted distribution, years [B]. "bucket":
        probabilities [B, K] of the classes for which `derived` makes labels.
        """
        return {}

    def adapt(self, other: Any, theirs: Arrays, fresh: Arrays) -> Adapted | None:
        """Turns the trained last layer of `other` into one for this head.

        The result predicts what `other` predicts, even if the labels of the new data have another
        mean or their classes another order.

        Args:
          other: a head of the same class as this one, from another run.
          theirs: its trained last layer.
          fresh: this head's last layer as initialised.

        Returns:
          None if nothing of `theirs` can be used.
        """
        same = dataclasses.replace(
            other, name=self.name, label=self.label, weight=self.weight
        ) == self and {k: v.shape for k, v in theirs.items()} == {
            k: v.shape for k, v in fresh.items()
        }
        return Adapted(theirs) if same else None

    def derived(self, label: np.ndarray) -> dict[str, tuple[np.ndarray, Sequence[str]]]:
        """Labels [N] to score extras with, and the names of their classes."""
        return {}


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A last layer made from another run's.

    Attributes:
      arrays: by the names of the new head's last layer.
      note: what has changed, such as "4 of 5 classes".
    """

    arrays: Arrays
    note: str = ""


def adapt_columns(
    theirs: Arrays, fresh: Arrays, their_names: Sequence[Any], our_names: Sequence[Any], unit: str
) -> Adapted | None:
    """Adapts arrays [..., K] with one entry per class on the last axis: those of known classes.

    Args:
      their_names, our_names: what the entries stand for, each name once.
      unit: the word for them in a message, such as "classes".

    Returns:
      None if no class is in both.
    """
    places = {name: i for i, name in enumerate(their_names)}
    known = [i for i, name in enumerate(our_names) if name in places]
    if not known:
        return None
    source = [places[our_names[i]] for i in known]
    arrays = {key: np.array(array) for key, array in fresh.items()}
    for key, array in arrays.items():
        array[..., known] = theirs[key][..., source]
    whole = len(known) == len(our_names)
    return Adapted(arrays, "" if whole else f"{len(known)} of {len(our_names)} {unit}")


def shifted(layer: Arrays, log_ratios: Sequence[float], sign: int = 1) -> Arrays:
    """Adds to the biases of logits what decoding adds: `priors.log_ratio`, () for nothing."""
    if not log_ratios or "bias" not in layer:
        return layer
    return {**layer, "bias": layer["bias"] + sign * np.array(log_ratios, np.float32)}


KINDS: dict[str, type[Any]] = {}
# The options of every head, besides those of its kind.
COMMON = Group(
    "Settings of every head.",
    kind=Setting("", "What it learns and how: one of the kinds below."),
    label=Setting("", "Label that it learns; default: the head's name."),
    weight=Setting(1.0, "Its share of the loss.", limits=(0, None)),
    neck=Setting({}, "Layers of its own between backbone and output."),
    fds=Setting({}, "Feature distribution smoothing."),
    example_weights=Setting({}, "Weights of examples in its loss."),
)


def register(kind: str) -> Callable[[type[Any]], type[Any]]:
    """Registers the decorated class for `config.heads.X.kind = kind`, built by its `build`."""

    def add(cls: type[Any]) -> type[Any]:
        KINDS[kind] = cls
        return cls

    return add


def create(configs: Mapping[str, Any], facts: Facts) -> dict[str, Head]:
    """The heads of `config.heads`, by name.

    Args:
      configs: name -> {kind, and the kind's options, and any of: label (default: the name), weight
        (default 1), neck (its own layers above the backbone: agejax/models/necks.py), fds
        (agejax/models/feature_smoothing.py), example_weights (agejax/heads/weights.py)}.
      facts: of the training split.

    Raises:
      UserError: an unknown kind, key or label, or a label that the training data lacks.
    """
    if not configs:
        raise UserError("config.heads is empty: name at least one head, such as age")
    heads = {}
    for name, given in configs.items():
        where = f"config.heads.{name}"
        if not hasattr(given, "items"):
            raise UserError(
                f"{where}: {given!r}; set it to {{'kind': ...}}, or leave this head out of "
                "the config"
            )
        one_of(where, "kind", given.get("kind"), tuple(KINDS))
        kind = KINDS[given["kind"]]
        Group("A head.", **COMMON, **kind.options).check(given, where)
        label = given.get("label", name)
        if label not in facts.labels:
            raise UserError(
                f"{where}: the training data has no {label!r} label; leave this head out, or set "
                f"its label to one of {', '.join(facts.labels)}"
            )
        options = kind.options.defaults() | {k: given[k] for k in kind.options if k in given}
        heads[name] = kind.build(name, label, float(given.get("weight", 1.0)), options, facts)
    return heads


def write_out(
    configs: Mapping[str, Any], stored: Mapping[str, Any] | None = None, *, former: bool = False
) -> None:
    """Adds the options of `Head.former` to config.heads, in place, where they are missing.

    A run's config.json then records their values, and a default that changes later does not change
    the run.

    Args:
      stored: the config.heads that the run was started with; its values override the defaults.
      former: whether `configs` is of a stored run: missing options then have their old default.
    """
    for name, given in configs.items():
        kind = given.get("kind") if hasattr(given, "items") else None
        if not isinstance(kind, str) or kind not in KINDS:
            continue  # `create` reports the error
        for option, old in KINDS[kind].former.items():
            before = (stored or {}).get(name, {})
            value = old if former else before.get(option, KINDS[kind].options[option].default)
            if option not in given:
                given[option] = value


def derive(
    heads: Mapping[str, Head],
    labels: Mapping[str, np.ndarray],
    label_names: Mapping[str, Sequence[str]],
) -> tuple[dict[str, np.ndarray], dict[str, Sequence[str]]]:
    """Labels and class names, plus those that heads derive to score their extras.

    Of two heads with one label those of the first count, as its predictions do.
    """
    labels, names = dict(labels), dict(label_names)
    for head in heads.values():
        for extra, (values, classes) in head.derived(labels[head.label]).items():
            labels.setdefault(f"{head.label}_{extra}", values)
            names.setdefault(f"{head.label}_{extra}", classes)
    return labels, names


def class_names(name: str, label: str, facts: Facts) -> Sequence[str]:
    """The names of the classes of head `name`'s label.

    Raises:
      UserError: the data has none.
    """
    if not facts.label_names.get(label):
        raise UserError(f"config.heads.{name}: the data has no names of classes for {label!r}")
    return facts.label_names[label]
