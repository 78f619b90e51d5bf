"""Every setting of a run with its default; a config file changes what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from agejax.data import augment
from agejax.errors import UserError, check_values, is_number


def default() -> ml_collections.ConfigDict:
    """The base config. Durations are dicts with exactly one of: steps, epochs, examples, percent.

    They are floats, so that `--config.total.epochs=0.5` may follow on any of them.
    """
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.total = {"epochs": 15.0}

    c.data = ml_collections.ConfigDict()
    c.data.name = "utkface"  # a builder of agejax/data/builders
    c.data.source = config_dict.placeholder(str)  # the archive or folder the user downloaded
    c.data.options = ml_collections.ConfigDict()  # the builder's own options
    # Several data sets as one, in place of the three above: part -> {name, source, options, weight
    # (its share of the draws; default: as its size says)}.
    c.data.mixture = ml_collections.ConfigDict()
    c.data.edits = ml_collections.ConfigDict()  # before the splits: agejax/data/edits.py
    # A CSV of labels in place of the data set's own, such as corrected ones, or pseudo_label's.
    c.data.edits.labels = config_dict.placeholder(str)
    c.data.edits.drop = ml_collections.ConfigDict()  # {"ethnicity": ("Other",)}
    c.data.edits.keep = ml_collections.ConfigDict()  # {"ethnicity": {"Asian": 0.25}}
    c.data.edits.only = ml_collections.ConfigDict()  # {"gender": "female"}
    c.data.edits.min_age = config_dict.placeholder(float)  # years; both ends stay
    c.data.edits.max_age = config_dict.placeholder(float)
    c.data.edits.seed = 0  # of what `keep` keeps
    c.data.cache_dir = config_dict.placeholder(str)  # default: $AGEJAX_CACHE or ~/.cache/agejax
    # Edge of the decoded cache, pixels; about 1.5 times the model's, so that moving does not blur.
    c.data.image_size = 200
    c.data.batch_size = 64  # global, over all devices and processes
    c.data.workers = 0  # grain worker processes; 0 reads in threads
    c.data.split = ml_collections.ConfigDict()
    c.data.split.seed = 0
    # The default way to split; or set one of official, files, folds and balanced.n.
    c.data.split.fractions = ml_collections.ConfigDict({"train": 0.8, "val": 0.1, "test": 0.1})
    c.data.split.official = False  # the data set's own splits
    c.data.split.files = ml_collections.ConfigDict()  # split -> file of names
    c.data.split.folds = 0  # cross-validation: fold number `fold` is test, the others are train
    c.data.split.fold = 0
    # n images of every crossing of `over` are one split, the rest goes by fractions.
    c.data.split.balanced = ml_collections.ConfigDict()
    c.data.split.balanced.n = 0  # 0: none
    c.data.split.balanced.split = "test"
    c.data.split.balanced.over = ("gender", "ethnicity", "decade")
    c.data.split.balanced.short = "error"  # cells of too few images; "take": half of these
    # Where none of these makes a val, this share of train is held out as val. 0: no val at all;
    # its images are trained on, for a length that is known to be right.
    c.data.split.val_of_train = 0.1
    # This share of val is kept out of it, as the split "calibration", which calibrates the run. 0:
    # val does, though it has also chosen the checkpoint.
    c.data.split.calibration_of_val = 0.0
    c.data.split.train_share = 1.0  # of train that is trained on; the other splits stay
    # Official splits and files: train does without the images that have a copy in another split.
    c.data.split.drop_copies_from_train = False

    c.sampling = ml_collections.ConfigDict()
    c.sampling.kind = "uniform"  # uniform | density | lds | inverse | oversample: data/draws.py
    c.sampling.alpha = 0.5  # density (DenseWeight of the age): 0 is uniform, 1 inverts it
    c.sampling.reweight = "sqrt"  # lds (smoothed counts of the age): sqrt | inverse
    c.sampling.lds_sigma = 2.0  # years
    c.sampling.lds_size = 5  # years, of the smoothing window
    c.sampling.over = ("age",)  # inverse: of age, decade, gender, ethnicity; several are crossed
    c.sampling.power = 1.0  # inverse: 1, or 0.5 for the square root
    # Under-sampling: shares of classes of the training images to keep, such as
    # {"ethnicity": {"White": 0.5}}; the class "majority" is the largest.
    c.sampling.keep = ml_collections.ConfigDict()
    c.sampling.keep_seed = 0
    c.sampling.copy_strength = 1.0  # augmentation strength of an example's later draws in an epoch

    c.augment = augment.default()

    c.model = ml_collections.ConfigDict()
    c.model.name = "mobilenet_v3_small"
    c.model.options = ml_collections.ConfigDict()  # the backbone's own options
    c.model.image_size = 128  # pixels, of the images that the network sees
    c.model.dtype = "float32"  # compute: float32 | bfloat16; parameters and logits stay float32
    # Recompute the activations of each block in the backward pass: less memory, more time.
    c.model.remat = False
    c.model.hidden = 0  # width of a dense layer between backbone and heads; 0: none
    c.model.dropout = 0.2
    # Where the backbone is frozen: of how many views of each training image its features are
    # computed once and kept in the cache, for the heads to train on. 1: the image as evaluation
    # sees it; more: augmented ones too. 0: the backbone runs in every step.
    c.model.cached_views = 0
    # Of RGB in 0..1; default: as the pretrained weights expect, ImageNet's without any.
    c.model.mean = config_dict.placeholder(tuple)
    c.model.std = config_dict.placeholder(tuple)
    # A weights file of torchvision, timm, Keras, AugReg, ..., or the folder of a run to start from:
    # docs/models.md.
    c.model.pretrained = config_dict.placeholder(str)

    c.heads = ml_collections.ConfigDict()  # name -> {kind, weight, ...}: agejax/heads/

    # Teachers: trained networks, or files of their answers, that this run learns from beside its
    # labels (docs/training.md).
    c.distill = ml_collections.ConfigDict()
    c.distill.runs = ()  # folders of runs or ensembles: they see each image as it is augmented
    c.distill.files = ()  # .npz files, as python -m agejax.distill writes them
    c.distill.onnx = ml_collections.ConfigDict()  # name -> {path, ...}: distillation/onnx_models.py
    c.distill.share = 0.5  # of the loss that is the teachers'; the labels have the rest
    # Training images that no file has a row for: an error, or they learn from their labels alone.
    c.distill.missing = "error"  # error | labels
    # Teachers that may have trained on the images that this run is judged on: refused unless True.
    c.distill.allow_seen = False
    c.distill.probabilities = ml_collections.ConfigDict()
    c.distill.probabilities.weight = 1.0  # of every head's teachers, beside the head's own weight
    c.distill.probabilities.temperature = 1.0  # above 1 softens both sides (Hinton et al. 2015)
    # The teacher's pooled features, learned from the student's through a linear map.
    c.distill.features = ml_collections.ConfigDict()
    c.distill.features.weight = 0.0  # as of one more head; 0: off
    c.distill.features.loss = "cosine"  # cosine | l2, the mean of squared differences
    c.distill.features.teacher = ""  # whose, where several have some: a path of runs or files

    c.optim = ml_collections.ConfigDict()
    c.optim.name = "adamw"  # adamw | adam | sgd
    c.optim.b1 = 0.9  # adam's first moment, and sgd's momentum
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.clip_norm = 1.0  # global gradient norm; 0: off
    c.optim.accumulate = 1  # micro-batches a step
    c.optim.weight_decay = 0.0
    # Ordered (regex, value): the first match of a parameter's path wins, one that none covers is
    # an error. A learning-rate multiplier of None freezes, batch-norm statistics included.
    c.optim.lr_multipliers = ((".*", 1.0),)
    # The learning rate of the backbone's last layer is multiplied by this, that of the layer below
    # by its square, and so on down to the stem; heads keep 1. Off at 1; 0.65 to 0.9 to fine-tune.
    c.optim.layer_decay = 1.0
    c.optim.decay_multipliers = ((".*/(bias|scale|noise|cls_token|pos_embed)$", 0.0), (".*", 1.0))
    # (regex, value) too, 0 for what none covers: added to the loss are l1 |p| and l2 / 2 p².
    c.optim.l1 = ()
    c.optim.l2 = ()
    c.optim.ema = 0.0  # decay of the parameter average used to evaluate; 0: off

    c.schedule = ml_collections.ConfigDict()
    c.schedule.kind = "one_cycle"  # one_cycle | warmup_cosine | exponential | constant
    c.schedule.lr = 1e-3  # the peak
    # The batch size that lr was found for: with another data.batch_size it is scaled, for sgd in
    # proportion, for adam by the square root. 0: lr is what it says, whatever the batch.
    c.schedule.lr_batch_size = 0
    c.schedule.warmup = {"percent": 30.0}  # one_cycle and warmup_cosine: the rising part
    c.schedule.div = 25.0  # one_cycle: peak / start
    c.schedule.final_div = 1e4  # one_cycle and warmup_cosine: start (peak) / end
    c.schedule.decay_every = {"epochs": 1.0}  # exponential
    c.schedule.decay_rate = 0.95
    # Smaller images at first: ((duration from the start, pixels), ...), durations increasing, such
    # as (({"percent": 60.0}, 128),); after the last one they have model.image_size.
    c.schedule.image_size = ()

    c.eval = ml_collections.ConfigDict()
    c.eval.every = {"epochs": 1.0}
    c.eval.batch_size = 256
    c.eval.image_size = 0  # pixels, of the images to score and predict; 0: model.image_size
    c.eval.best = "age/mae"  # a path into metrics.json: the best checkpoint, early stopping
    c.eval.best_mode = "min"
    c.eval.patience = 0  # evaluations without a better value before stopping; 0: never
    c.eval.final_split = "test"  # scored with the best checkpoint at the end; "": none

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every = {"epochs": 1.0}
    c.log_every = {"steps": 50}
    c.profile = 0  # steps to trace soon after the start: WORKDIR/profile/summary.md; 0: none
    # A loss or gradient that is not finite: stop there, skip that step's update, or rollback to the
    # last checkpoint and come to that step without taking it.
    c.nonfinite = "stop"
    # Seconds without a step or an evaluation before all stacks go to stderr; 0: never.
    c.watchdog = 1800.0

    c.sharding = ml_collections.ConfigDict()
    c.sharding.devices = 0  # how many devices to use; 0: all
    c.sharding.fsdp = 1  # parameters are split over this many of them
    return c


# Where numbers may lie; both ends are allowed. Others are checked where they are used.
LIMITS: dict[str, dict[str, tuple[float, float]]] = {
    "config": {"seed": (0, 2**31 - 1), "watchdog": (0, 1e9)},
    "config.data": {"image_size": (1, 4096), "batch_size": (1, 2**16), "workers": (0, 1024)},
    "config.data.edits": {"seed": (0, 2**31 - 1)},
    "config.data.split": {
        "seed": (0, 2**31 - 1), "val_of_train": (0, 0.99), "calibration_of_val": (0, 0.99),
        "train_share": (0, 1),
    },
    "config.data.split.balanced": {"n": (0, 2**31 - 1)},
    "config.sampling": {
        "alpha": (0, 1000), "lds_sigma": (1e-3, 100), "lds_size": (1, 100),
        "keep_seed": (0, 2**31 - 1), "copy_strength": (0, 100),
    },
    "config.model": {
        "image_size": (1, 4096), "hidden": (0, 2**16), "dropout": (0, 0.99),
        "cached_views": (0, 1000),
    },
    "config.distill": {"share": (0, 1)},
    "config.distill.probabilities": {"weight": (0, 1e6), "temperature": (0.01, 100)},
    "config.distill.features": {"weight": (0, 1e6)},
    "config.optim": {
        "b1": (0, 0.9999), "b2": (0, 0.999999), "eps": (0, 1), "clip_norm": (0, 1e9),
        "layer_decay": (1e-3, 1), "accumulate": (1, 2**16), "weight_decay": (0, 1e3),
        "ema": (0, 0.999999),
    },
    "config.schedule": {
        "lr": (1e-30, 1e30), "div": (1e-3, 1e12), "final_div": (1e-3, 1e12),
        "decay_rate": (1e-12, 1e12),
    },
    "config.eval": {
        "batch_size": (1, 2**16), "image_size": (0, 4096), "patience": (0, 2**31 - 1),
    },
    "config.sharding": {"devices": (0, 2**20), "fsdp": (1, 2**20)},
}  # fmt: skip
# Groups whose keys are the user's, or one of several, and that are checked where they are used.
OPEN = (
    "total", "log_every", "eval.every", "checkpoint.every", "schedule.warmup",
    "schedule.decay_every", "data.split.fractions",
)  # fmt: skip


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for a setting that is unknown or missing, of another type than its
    default, or out of `LIMITS`."""
    _check(config, default(), "config")
    for name in ("mean", "std"):
        colour = config.model[name]
        if colour is not None and not (len(colour) == 3 and all(map(is_number, colour))):
            raise UserError(f"config.model.{name}: {colour!r}; set it to three numbers, of RGB")
    if config.model.std is not None and min(config.model.std) <= 0:
        raise UserError(f"config.model.std: {config.model.std!r}; set it above 0")


def _check(config: ml_collections.ConfigDict, defaults: Any, where: str) -> None:
    if missing := [key for key in defaults if key not in config]:
        raise UserError(f"{where}.{missing[0]} is missing; change it alone, and not all of {where}")
    groups = [key for key, value in defaults.items() if hasattr(value, "items")]
    typed = [key for key in defaults if key not in groups and defaults[key] is None]
    plain = {key: value for key, value in config.items() if key not in typed}
    check_values(plain, dict(defaults), where, LIMITS.get(where, {}))
    for key in typed:
        kind, value = defaults.get_type(key), config[key]
        kinds = (tuple, list) if kind is tuple else kind  # JSON has lists only
        if value is not None and not (
            is_number(value) if kind is float else isinstance(value, kinds)
        ):
            raise UserError(f"{where}.{key}: {value!r}; set it to a {kind.__name__}")
    for key in groups:
        path = f"{where}.{key}"
        if defaults[key] and path.removeprefix("config.") not in OPEN:
            _check(config[key], defaults[key], path)


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config as what JSON gives back: dicts, lists, numbers, strings."""
    value: dict[str, Any] = json.loads(config.to_json_best_effort())
    return value


def from_json(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config that a run has stored.

    Settings that it lacks came to be since it was stored; they stay missing.

    Raises:
      UserError: it is damaged, or a later version's.
    """
    try:
        config = ml_collections.ConfigDict(values)
        check(completed(config))
    except (ValueError, TypeError, UserError) as error:
        raise UserError(f"{error}; it is damaged, or of another version of agejax") from error
    return config


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy with defaults for settings that are missing, as in runs from before there were any."""
    copy: ml_collections.ConfigDict = _completed(
        config.copy_and_resolve_references(), default(), "config"
    )
    return copy


def _completed(config: Any, defaults: Any, where: str) -> Any:
    """The config with defaults for settings that are missing."""
    for key, value in defaults.items():
        path = f"{where}.{key}"
        is_group = value and hasattr(value, "items") and path.removeprefix("config.") not in OPEN
        if key not in config:
            config[key] = value
        elif is_group and hasattr(config[key], "items"):
            _completed(config[key], value, path)
    return config


def replaced(
    config: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A copy with the settings at dotted paths replaced; what is a dict becomes a part of it.

    Raises:
      UserError: a path that is not there.
    """
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        for path, value in values.items():
            *where, key = path.split(".")
            group = copy
            for part in where:
                if not isinstance(group.get(part), ml_collections.ConfigDict):
                    raise UserError(f"config.{path}: there is no {part!r}")
                group = group[part]
            if key not in group and where[:1] not in (["heads"], ["model"]):  # which are open
                raise UserError(f"config.{path}: there is no setting {key!r}")
            group[key] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
    return copy
