"""Settings on the command line and in a config file, up to the first step of training."""

from __future__ import annotations

import contextlib
import pathlib
import random
import sys
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from PIL import Image

from agejax import command_line, heads
from agejax.config import default
from agejax.data import pipeline
from agejax.heads import weights
from agejax.models import registry
from agejax.runs import run_folder
from agejax.train import train
from agejax.training import augment
from agejax.training import step as step_lib
from experiments.fuzzing import Target
from experiments.fuzzing.mutations import ODD_TEXTS, changed_text, text

CONFIG = """
from agejax.config import default

def get_config():
    c = default()
    c.total = {"steps": 24}
    c.data.source, c.data.cache_dir = SOURCE, CACHE
    c.data.image_size, c.data.batch_size = 16, 16
    c.data.split.fractions = {"train": 0.6, "val": 0.2, "test": 0.2}
    c.model.name, c.model.options, c.model.image_size = "cnn", {"widths": (4, 8)}, 16
    c.heads.age = {"kind": "regression"}
    c.heads.gender = {"kind": "binary", "weight": 0.2}
    c.heads.ethnicity = {"kind": "categorical", "weight": 0.2}
    c.eval.batch_size = 16
    c.log_every = {"steps": 2}
    c.sharding.devices = 1
"""
HEAVY = 0.02  # share of the inputs that name another model, whose shapes take time
PLACES = ("data.source", "data.cache_dir")  # not changed: paths are not what is tested
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e-9, 1e30, float("nan"), float("inf"), 2**70),
    *(
        (),
        (1,),
        (0.5, 2.0),
        (2, 1),
        [1, 2],
        ("a", 1.0),
        ((".*", None),),
        (("(", 1.0),),
        {},
        {"a": 1},
    ),
    *({"epochs": 1.0}, {"percent": -5.0}, {"steps": 3, "epochs": 1}, {"steps": "soon"}, "x", ""),
)

# Values of options with choices.
WORDS = (
    *("ce", "focal", "ldam", "lmf", "dldl", "mean_variance", "sord", "l1", "l2", "huber", "bmc"),
    *("gai", "log", "unit", "identity", "median", "expectation", "mode", "corn", "or_cnn", "sqrt"),
    *("inverse", "density", "lds", "oversample", "age", "gender", "apparent_age_std", "flatten"),
    *("constant", "exponential", "warmup_cosine", "sgd", "adam", "bfloat16", "take", "rollback"),
)


class Reached(Exception):
    """The config passed all checks, and nothing has been written yet."""


def prepare(folder: pathlib.Path) -> Target:
    faces, cache = folder / "UTKFace", folder / "cache"
    faces.mkdir()
    pixels = np.random.default_rng(0)
    for i in range(60):
        name = f"{1 + i}_{i % 2}_{i % 5}_201701{i:011d}.jpg"
        Image.fromarray(pixels.integers(0, 255, (20, 20, 3), np.uint8)).save(faces / name)
    base = CONFIG.replace("SOURCE", repr(str(faces))).replace("CACHE", repr(str(cache)))
    settings = {path: value for path, value in _leaves(default()).items() if path not in PLACES}
    settings |= {"heads.age.kind": "", "heads.age.weight": 1.0, "total.steps": 1}
    settled: dict[str, Any] = {}

    def make_train_step(*arguments: Any, **more: Any) -> Any:
        settled["step"], settled["state"] = real_step(*arguments, **more), arguments[3]
        return settled["step"]

    def make_batches(*arguments: Any) -> Any:
        settled["batches"] = real_batches(*arguments)
        return settled["batches"]

    def claim(workdir: pathlib.Path) -> Any:
        raise Reached

    real_step, real_batches = step_lib.make_train_step, pipeline.TrainBatches
    step_lib.make_train_step, run_folder.Claim = make_train_step, claim  # type: ignore[misc,assignment]
    pipeline.TrainBatches = make_batches  # type: ignore[misc,assignment]

    def target(rng: random.Random, folder: pathlib.Path) -> bool:
        path = folder / f"config_{rng.getrandbits(60)}.py"
        path.write_text(base + _statements(rng) + "    return c\n")
        config = _parsed(["main", f"--config={path}", *_arguments(rng, settings)])
        with contextlib.suppress(Reached):
            train(config, folder / "run")
        batch = next(settled["batches"].iterate(0, 1, 0))
        jax.eval_shape(settled["step"], settled["state"], batch)
        return True

    # No input causes what the first use reads and prepares.
    (folder / "base.py").write_text(base + "    return c\n")
    with contextlib.suppress(Reached):
        train(_parsed(["main", f"--config={folder / 'base.py'}"]), folder / "run")
    return target


def _parsed(argv: list[str]) -> ml_collections.ConfigDict:
    """Parses a command line as a new process would."""
    for name in list(flags.FLAGS):
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    sys.argv = argv
    return command_line.parse(argv)


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value, of settings and groups of settings."""
    found = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            found |= _leaves(value, f"{prefix}{key}.")
            value = value.to_dict()
        found[f"{prefix}{key}"] = value
    return found


def _arguments(rng: random.Random, settings: dict[str, Any]) -> list[str]:
    """Overrides, valid and invalid: mostly values of the setting's own type."""
    made = []
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        path = rng.choice(tuple(settings))
        value = str(_other(rng, settings[path]))
        if rng.random() < 0.1:
            value = rng.choice((rng.choice(ODD_TEXTS), text(rng)))
        if rng.random() < 0.05:
            path = changed_text(rng, path)
        form = rng.choice(("--config.{}={}",) * 20 + ("--config.{} {}", "--noconfig.{}", "{}={}"))
        made.append(form.format(path, value))
    return made


def _statements(rng: random.Random) -> str:
    """Lines of a config file that set open parts: heads, options, recipes, splits, edits."""
    lines = []
    for _ in range(rng.randint(0, 2)):
        make = rng.choice((_head, _head, _head, _augment, _data, _model, _optimizer))
        place, value = make(rng)
        lines.append(f"    c.{place} = {value!r}\n")
    return "".join(lines).replace("nan", 'float("nan")').replace("inf", 'float("inf")')


def _some(rng: random.Random, options: dict[str, Any]) -> dict[str, Any]:
    """A few of the options, with their own or other values, and sometimes an unknown option."""
    keys = rng.sample(sorted(options), min(len(options), rng.randint(0, 3)))
    made = {key: _other(rng, options[key]) for key in keys}
    return made | ({changed_text(rng, "weight"): 1} if rng.random() < 0.05 else {})


def _other(rng: random.Random, value: Any) -> Any:
    """The value itself, mostly another of its type, or an odd value."""
    if rng.random() < 0.15:
        return rng.choice(ODD)
    match value:
        case bool():
            return rng.choice((True, False))
        case int() | None:
            return rng.choice((value, 0, 1, 2, 3, 7, 16, -1, 10**6, 2**40))
        case float():
            return value * rng.choice((1, 1, 0, 0.5, 2, 100, -1, 1e12, 1e-12))
        case str():
            return rng.choice((value, value, *WORDS))
        case tuple():
            return rng.choice((value, value, value[::-1], value[:1], value + value, ()))
    return value


def _head(rng: random.Random) -> tuple[str, Any]:
    kind = rng.choice(tuple(heads.head.KINDS))
    head = {"kind": kind} | _some(rng, heads.head.KINDS[kind].options.defaults())
    label = rng.choice(("age", "age", "gender", "ethnicity", "apparent_age"))
    match rng.randrange(5):
        case 0:
            weighing = rng.choice(tuple(weights.KINDS))
            more = weights.KINDS[weighing].defaults() | {"after": {"epochs": 0.5}}
            head["example_weights"] = {"kind": weighing} | _some(rng, more)
        case 1:
            neck = {"convs": (4,), "hidden": (8,), "pool": "mean", "dropout": 0.1}
            head["neck"] = _some(rng, neck | {"activation": "relu", "greyscale": True})
        case 2:
            head["fds"] = _some(rng, {"sigma": 2.0, "size": 5, "momentum": 0.9, "start": 0})
    return f"heads.{label}", rng.choice((head, head, head, head, rng.choice(ODD)))


def _augment(rng: random.Random) -> tuple[str, Any]:
    if rng.random() < 0.3:
        return "augment.copies", _some(rng, augment.RECIPE.defaults())
    key = rng.choice(tuple(augment.SETTINGS))
    return f"augment.{key}", rng.choice(ODD)


def _data(rng: random.Random) -> tuple[str, Any]:
    shares = {"train": 0.5, "val": 0.2, "test": 0.3}
    part = {"a": {"name": "utkface", "source": "x"}}
    cases: tuple[tuple[str, Any], ...] = (
        ("data.split.fractions", _some(rng, shares)),
        ("data.split.balanced", _some(rng, {"n": 1, "over": ("gender",), "short": "take"})),
        ("data.split.files", rng.choice(({"train": "nowhere.txt"}, *ODD))),
        ("data.edits.drop", rng.choice(({"ethnicity": ("Other",)}, *ODD))),
        ("data.edits.only", rng.choice(({"gender": "female"}, *ODD))),
        ("data.edits.keep", {"gender": rng.choice(({"male": 0.5}, *ODD))}),
        ("sampling.keep", {"gender": rng.choice(({"majority": 0.5}, *ODD))}),
        ("sampling.over", rng.choice((("age", "gender"), *ODD))),
        ("sampling.kind", rng.choice(("density", "lds", "inverse", "oversample"))),
        ("data.options", _some(rng, {"labels": "x.csv", "min_face_score": 1.0})),
        ("data.mixture", rng.choice((part, *ODD))),
        ("total", rng.choice(ODD)),
    )
    return rng.choice(cases)


def _model(rng: random.Random) -> tuple[str, Any]:
    if rng.random() < HEAVY:
        return "model.name", rng.choice(tuple(registry.MODELS))
    options = {"widths": (4,), "dropout": 0.1, "image_size": 3, "num_classes": 2, "dtype": "x"}
    place = rng.choice(("model.options", "model.options", "model.mean", "model.std"))
    return place, _some(rng, options) if place == "model.options" else rng.choice(ODD)


def _optimizer(rng: random.Random) -> tuple[str, Any]:
    key = rng.choice(("lr_multipliers", "decay_multipliers", "l1", "l2"))
    rule = (rng.choice((".*", ".*/bias", "(", text(rng))), rng.choice(ODD))
    return f"optim.{key}", rng.choice(((rule,), (rule, (".*", 1.0)), rng.choice(ODD)))
