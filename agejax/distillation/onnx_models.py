"""Any ONNX model as a teacher: it sees each image as augmented, and runs in onnxruntime.

A model of another library tells little about its input, so config.distill.onnx describes it:

    config.distill.onnx = {"faceres": {"path": "faceres.onnx", "channels": "BGR",
                                       "mean": (103.9, 116.8, 123.7),
                                       "probabilities": {"gender": "gender_pred"}}}
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agejax.distillation.teachers import FEATURES
from agejax.errors import UserError, brief, few
from agejax.heads import Head, losses, priors
from agejax.paths import expand
from agejax.settings import Group, Setting
from agejax.training.teaching import Target

WHERE = "config.distill.onnx"
SETTINGS = Group(
    "An ONNX model as a teacher.",
    path=Setting("", "The model's file."),
    size=Setting(
        0,
        "Edge of the images it takes; 0: what its input declares.",
        limits=(0, 4096),
        unit="pixels",
    ),
    layout=Setting("", 'Order of axes; "": what its input declares.', choices=("", "NHWC", "NCHW")),
    channels=Setting("RGB", "Order of colours.", choices=("RGB", "BGR")),
    scale=Setting(
        255.0,
        "The model gets (scale * image - mean) / std, of an image in 0..1; rounded if it takes "
        "bytes.",
    ),
    mean=Setting((0.0, 0.0, 0.0), "In the order of channels.", length=3),
    std=Setting((1.0, 1.0, 1.0), "In the order of channels.", length=3, above=0),
    probabilities=Setting(
        {},
        "Head -> name of an output [B, K]; of two classes also [B] or [B, 1], of the second one.",
    ),
    logits=Setting({}, "Head -> name of an output, as probabilities."),
    years=Setting(
        {},
        "Head -> name of an output [B] or [B, 1]: taught as a normal distribution with deviation "
        "sigma.",
    ),
    sigma=Setting(3.0, "Deviation of years.", limits=(0.1, 100), unit="years"),
    features=Setting("", "Name of an output [B, D]."),
    outcomes=Setting({}, "Head -> names of its columns, where they differ from the student's."),
)
KINDS = ("probabilities", "logits", "years")
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


@dataclasses.dataclass(frozen=True)
class Answer:
    """How an output of a model becomes the target of a head.

    Attributes:
      output: its name.
      kind: one of `KINDS`.
      order: the column for each of the student's outcomes.
      shift: `priors.between`, from the natural prior to that of the student's sampler.
      ages: [K], years; for kind years.
    """

    output: str
    kind: str
    order: tuple[int, ...]
    shift: tuple[float, ...]
    ages: tuple[float, ...]
    sigma: float

    def target(self, values: jax.Array) -> jax.Array:
        """Converts an output [B, ...] to probabilities [B, K]."""
        if self.kind == "years":
            q = losses.gaussian_targets(values[:, 0], jnp.array(self.ages), self.sigma)
            return jax.nn.softmax(priors.corrected(jnp.log(q + 1e-30), self.shift))
        if values.shape[1] == 1:
            p = values if self.kind == "probabilities" else jax.nn.sigmoid(values)
            values = jnp.concatenate([1 - p, p], axis=1)
        elif self.kind == "logits":
            values = jax.nn.softmax(values)
        logits = jnp.log(jnp.maximum(values[:, np.array(self.order)], 1e-30))
        return jax.nn.softmax(priors.corrected(logits, self.shift))


@dataclasses.dataclass(frozen=True)
class OnnxTeacher:
    """An ONNX model that teaches; see `Teacher`.

    Attributes:
      model: the network.
      answers: head -> how its target is made.
      output: name of the features' output, where there is one.
    """

    name: str
    model: OnnxModel
    size: int
    heads: Mapping[str, float]
    answers: Mapping[str, Answer]
    features: int = 0
    output: str = ""
    arrays: tuple[()] = ()
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def teach(
        self, arrays: Any, images: jax.Array | None, columns: Mapping[str, jax.Array]
    ) -> dict[str, Target]:
        assert images is not None
        wanted = dict.fromkeys(answer.output for answer in self.answers.values())
        if self.features:
            wanted[self.output] = None
        n = len(images)
        shapes = {
            name: jax.ShapeDtypeStruct((n, self.model.widths[name]), jnp.float32) for name in wanted
        }
        outputs = jax.pure_callback(lambda x: self.model(x, [*wanted]), shapes, images)
        known = jnp.ones(n, bool)
        result = {
            name: Target(answer.target(outputs[answer.output]), known)
            for name, answer in self.answers.items()
        }
        if self.features:
            result[FEATURES] = Target(outputs[self.output], known)
        return result


def _declared_size(session: Any) -> int:
    """The edge of the images that a model takes, pixels; 0 where it takes any.

    Models that agejax exports take any and resize them; their metadata holds the edge to use.
    """
    edge = session.get_inputs()[0].shape[2]  # at this index in both layouts
    if isinstance(edge, int):
        return edge
    metadata = session.get_modelmeta().custom_metadata_map
    with contextlib.suppress(KeyError, ValueError, TypeError, IndexError):
        return int(json.loads(metadata["input"])["shape"][1])
    return 0


class OnnxModel:
    """An ONNX model with one image input: float32 RGB images in 0..1 in, its outputs out.

    Attributes:
      size: edge of its input images, pixels.
      widths: output -> numbers per image.
    """

    def __init__(self, where: str, options: Mapping[str, Any]) -> None:
        """Raises `UserError` where it cannot be read or run, or its input is not an image."""
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(expand(options["path"])), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of onnxruntime's own kinds
            raise UserError(f"{where}.path: {options['path']}: {brief(error)}") from error
        inputs = self._session.get_inputs()
        self._input = inputs[0]
        shape = self._input.shape
        if len(inputs) != 1 or len(shape) != 4 or self._input.type not in TYPES:
            given = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise UserError(f"{where}: needs one input of images, [B, H, W, 3]; it has {given}")
        self._layout = options["layout"] or ("NCHW" if shape[1] == 3 else "NHWC")
        self.size = int(options["size"]) or _declared_size(self._session)
        if not self.size:
            raise UserError(f"{where}.size: the model takes images of any size; set one, in pixels")
        self._batch = shape[0] if isinstance(shape[0], int) else 0
        self._scale, self._bgr = float(options["scale"]), options["channels"] == "BGR"
        self._mean, self._std = (np.float32(options[key]) for key in ("mean", "std"))
        self.widths: dict[str, int] = {}
        images = np.zeros((self._batch or 1, self.size, self.size, 3), np.float32)
        try:
            outputs = self(images, [output.name for output in self._session.get_outputs()])
        except Exception as error:  # of onnxruntime's own kinds
            raise UserError(f"{where}: it cannot be run: {brief(error)}") from error
        self.widths = {name: values.shape[1] for name, values in outputs.items()}

    def __call__(self, images: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Runs images f32 [B, size, size, 3]: output's name -> float32 [B, width]."""
        x = self._scale * np.asarray(images)
        x = (x[..., ::-1] if self._bgr else x) - self._mean
        x /= self._std
        if self._layout == "NCHW":
            x = x.transpose(0, 3, 1, 2)
        dtype = TYPES[self._input.type]
        if dtype == np.uint8:
            x = np.rint(x).clip(0, 255)
        x = np.ascontiguousarray(x, dtype)
        step = self._batch or len(x)
        parts = []
        for start in range(0, len(x), step):
            part = x[start : start + step]
            part = np.pad(part, [(0, step - len(part)), *[(0, 0)] * 3], mode="edge")
            parts.append(self._session.run(list(names), {self._input.name: part}))
        return {
            name: np.concatenate(values)[: len(x)].reshape(len(x), -1).astype(np.float32)
            for name, *values in zip(names, *parts, strict=True)
        }


def check(models: Mapping[str, Any], heads: Mapping[str, Any]) -> None:
    """Raises `UserError` for settings of config.distill.onnx that are wrong with any data.

    Args:
      heads: config.heads.
    """
    for name, given in models.items():
        where = f"{WHERE}.{name}"
        SETTINGS.check(given, where)
        options = SETTINGS.defaults() | dict(given)
        if not options["path"] or not expand(options["path"]).is_file():
            raise UserError(f"{where}.path: there is no file {options['path']!r}")
        for kind in KINDS:
            for head, output in options[kind].items():
                if head not in heads:
                    raise UserError(f"{where}.{kind}: config.heads has no {head}")
                if not isinstance(output, str):
                    raise UserError(f"{where}.{kind}.{head}: {output!r}; name an output")
    if models and importlib.util.find_spec("onnxruntime") is None:
        raise UserError(f"{WHERE}: the package onnxruntime is missing; pip install -e '.[onnx]'")
    if models and jax.process_count() > 1:
        raise UserError(
            f"{WHERE}: runs of several processes take no ONNX models; write their predictions to a "
            "file, as docs/training.md says"
        )


def opened(
    name: str,
    given: Mapping[str, Any],
    heads: Mapping[str, Head],
    ratios: Mapping[str, Sequence[float]],
) -> OnnxTeacher:
    """Opens the model of config.distill.onnx.NAME as a teacher.

    Args:
      heads: the student's heads with probabilities.
      ratios: their `training.log_ratios`.

    Raises:
      UserError: as `OnnxModel`; or an output is missing, or has another width.
    """
    where = f"{WHERE}.{name}"
    options = SETTINGS.defaults() | dict(given)
    model = OnnxModel(where, options)
    answers = {}
    for kind in KINDS:
        for head, output in options[kind].items():
            if head in heads:
                answers[head] = _answer(where, model, kind, head, output, heads[head], options)
    answers = {
        head: dataclasses.replace(answer, shift=priors.between((), ratios[head]))
        for head, answer in answers.items()
    }
    if features := options["features"]:
        _check_output(where, "features", features, model)
    return OnnxTeacher(
        name=name,
        model=model,
        size=model.size,
        heads=dict.fromkeys(answers, 1.0),
        answers=answers,
        features=model.widths[features] if features else 0,
        output=features,
    )


def digest(path: str) -> str:
    """A text that changes with a model's file and with files beside it that hold its weights."""
    place = expand(path)
    with place.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    for name in sorted(_weights_beside(place)):
        with (place.parent / name).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def _weights_beside(path: pathlib.Path) -> set[str]:
    """The files to which a model leaves weights, as torch's exporter writes them by default."""
    try:
        import onnx
    except ImportError:  # onnxruntime alone runs a model
        return set()
    graph = onnx.load(path, load_external_data=False).graph
    beside = (entry for tensor in graph.initializer for entry in tensor.external_data)
    return {entry.value for entry in beside if entry.key == "location"}


def _answer(
    where: str,
    model: OnnxModel,
    kind: str,
    name: str,
    output: str,
    head: Head,
    options: Mapping[str, Any],
) -> Answer:
    _check_output(where, f"{kind}.{name}", output, model)
    wanted = head.outcomes
    names = tuple(map(str, options["outcomes"].get(name, wanted)))
    width = model.widths[output]
    if sorted(names) != sorted(wanted):
        raise UserError(
            f"{where}.outcomes.{name}: {few(names)} are not those of this run, {few(wanted)}"
        )
    if kind == "years":
        if not all(outcome.isdecimal() for outcome in wanted):
            raise UserError(f"{where}.years.{name}: that head has no years; use probabilities")
        right = width == 1
    else:
        right = width == len(wanted) or (width == 1 and len(wanted) == 2)
    if not right:
        raise UserError(
            f"{where}.{kind}.{name}: output {output} has {width} numbers, this run's head "
            f"{len(wanted)} outcomes"
        )
    ages = tuple(map(float, wanted)) if kind == "years" else ()
    order = tuple(names.index(outcome) for outcome in wanted)
    return Answer(output, kind, order, (), ages, float(options["sigma"]))


def _check_output(where: str, key: str, output: str, model: OnnxModel) -> None:
    if output not in model.widths:
        raise UserError(
            f"{where}.{key}: it has no output {output!r}; its outputs are {few(model.widths)}"
        )
